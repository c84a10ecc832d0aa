//! Who may speak for the session: exact epoch checks, and the time at which a lease has to be
//! renewed or given up (design §5).

use std::time::Duration;

use rspp_proto::{Epoch, Monotonic, abi::Signal};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where an epoch is checked. There is no committing without a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checkpoint {
    /// An event comes in.
    Ingress,
    /// A node or provider is about to work.
    Dispatch,
    /// Something is about to be heard, sent or stored.
    Egress,
}

/// Why an epoch was refused. Never retried, never repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AuthorityFault {
    /// A writer that was replaced.
    #[error("epoch {offered} is stale; this placement holds {held}")]
    Stale {
        /// What this placement holds.
        held: Epoch,
        /// What was offered.
        offered: Epoch,
    },
    /// A writer that nobody here has seen a lease for.
    #[error("epoch {offered} is above {held} and no lease for it was granted here")]
    WithoutLease {
        /// What this placement holds.
        held: Epoch,
        /// What was offered.
        offered: Epoch,
    },
    /// This placement itself may not write.
    #[error("this placement has lost the session; epoch {offered} is not looked at")]
    Revoked {
        /// What was offered.
        offered: Epoch,
    },
}

impl AuthorityFault {
    /// Why `offered` is refused where `held` is the only epoch that passes.
    pub fn of(held: Option<Epoch>, offered: Epoch) -> Self {
        match held {
            None => Self::Revoked { offered },
            Some(held) if offered > held => Self::WithoutLease { held, offered },
            Some(held) => Self::Stale { held, offered },
        }
    }

    /// The signal that tells of it.
    pub fn signal(&self) -> Signal {
        match self {
            Self::Stale { .. } | Self::WithoutLease { .. } => Signal::StaleEpochReject,
            Self::Revoked { .. } => Signal::DeauthorizedDrain,
        }
    }

    /// The reason as the signal carries it (lifecycle.md §5); `in_turn` if a turn is open.
    pub fn reason(&self, in_turn: bool) -> &'static str {
        match self {
            Self::Stale { .. } | Self::WithoutLease { .. } => "authority_epoch_mismatch",
            Self::Revoked { .. } if in_turn => "authority_revoked_in_turn",
            Self::Revoked { .. } => "authority_revoked_before_open",
        }
    }
}

/// A new lease was not taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a lease at {offered} cannot follow one at {held}: epochs only rise")]
pub struct GrantRefused {
    /// What this placement holds or has held.
    pub held: Epoch,
    /// What was offered.
    pub offered: Epoch,
}

/// How often epochs were checked at one checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckCount {
    /// All checks (`authority_epoch_check_total`).
    pub checked: u64,
    /// Refused ones (`authority_epoch_reject_total`).
    pub refused: u64,
}

/// A placement's right to write for one session.
#[derive(Clone, Debug)]
pub struct Authority {
    held: Epoch,
    revoked: bool,
    counts: [CheckCount; 3],
}

impl Authority {
    /// The right that a lease at `epoch` gives.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            held: epoch,
            revoked: false,
            counts: [CheckCount::default(); 3],
        }
    }

    /// Compares exactly: a lower epoch is stale, and a higher one without a lease granted here is
    /// refused too.
    pub fn check(&mut self, at: Checkpoint, offered: Epoch) -> Result<(), AuthorityFault> {
        let verdict = self.judge(offered);
        let count = &mut self.counts[at as usize];
        count.checked += 1;
        count.refused += u64::from(verdict.is_err());
        verdict
    }

    /// Takes over a newer lease; a revoked placement may write again under it.
    pub fn grant(&mut self, epoch: Epoch) -> Result<(), GrantRefused> {
        if epoch <= self.held {
            return Err(GrantRefused {
                held: self.held,
                offered: epoch,
            });
        }
        self.held = epoch;
        self.revoked = false;
        Ok(())
    }

    /// The lease is lost; nothing passes until a newer one is granted.
    pub fn revoke(&mut self) {
        self.revoked = true;
    }

    /// The epoch to write under; `None` once revoked.
    pub fn epoch(&self) -> Option<Epoch> {
        (!self.revoked).then_some(self.held)
    }

    /// How often epochs were checked there.
    pub fn counts(&self, at: Checkpoint) -> CheckCount {
        self.counts[at as usize]
    }

    fn judge(&self, offered: Epoch) -> Result<(), AuthorityFault> {
        let held = self.epoch();
        if held == Some(offered) {
            Ok(())
        } else {
            Err(AuthorityFault::of(held, offered))
        }
    }
}

/// When a lease has to be renewed, and when this placement must fall silent without one.
///
/// Counted from before the renewal was *asked for*, on this machine's monotonic clock: whatever the
/// answer took, the lease cannot have expired elsewhere before this placement has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTimer {
    asked: Monotonic,
    ttl: Duration,
}

impl LeaseTimer {
    /// A lease of `ttl` that was asked for at `asked`.
    pub fn new(asked: Monotonic, ttl: Duration) -> Self {
        Self { asked, ttl }
    }

    /// A lease that was asked for at `asked` and whose holder falls silent at `silent_at`, or a moment before.
    pub fn ending(asked: Monotonic, silent_at: Monotonic) -> Self {
        let ttl = silent_at.since(asked) * 10 / 9;
        Self { asked, ttl }
    }

    /// How long it lasts.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Takes over a renewal. An answer to an older request changes nothing.
    pub fn renewed(&mut self, asked: Monotonic, ttl: Duration) {
        if asked >= self.asked {
            *self = Self { asked, ttl };
        }
    }

    /// When to ask for a renewal at the latest: before half the lease is over.
    pub fn renew_at(&self) -> Monotonic {
        self.asked + self.ttl * 2 / 5
    }

    /// When to fall silent: a tenth of the lease before its end, for clocks that run apart.
    pub fn silent_at(&self) -> Monotonic {
        self.asked + self.ttl * 9 / 10
    }

    /// Whether this placement must have stopped.
    pub fn is_over(&self, now: Monotonic) -> bool {
        now >= self.silent_at()
    }
}

/// What the holder of a lease has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseDuty {
    /// Ask for a renewal.
    Renew,
    /// Stop: the lease may be somebody else's.
    FallSilent,
}

/// A lease while it is held: asks for renewals in time, again after a failure, and gives up in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    timer: LeaseTimer,
    /// The request that has not been answered, if any.
    asked: Option<Monotonic>,
    /// Not before this is a request repeated.
    again_at: Monotonic,
    ttl: Duration,
}

impl Tenure {
    /// A lease of `ttl` that was asked for at `asked`.
    pub fn new(asked: Monotonic, ttl: Duration) -> Self {
        Self {
            timer: LeaseTimer::new(asked, ttl),
            asked: None,
            again_at: Monotonic::ZERO,
            ttl,
        }
    }

    /// When to fall silent without a renewal.
    pub fn silent_at(&self) -> Monotonic {
        self.timer.silent_at()
    }

    /// When to [`poll`](Self::poll) at the latest.
    pub fn next_deadline(&self) -> Monotonic {
        match self.asked {
            Some(_) => self.timer.silent_at(),
            None => self
                .timer
                .renew_at()
                .max(self.again_at)
                .min(self.timer.silent_at()),
        }
    }

    /// What is to be done at `now`. A renewal is asked for once; it has to be answered.
    pub fn poll(&mut self, now: Monotonic) -> Option<LeaseDuty> {
        if self.timer.is_over(now) {
            return Some(LeaseDuty::FallSilent);
        }
        let due = self.asked.is_none() && now >= self.timer.renew_at().max(self.again_at);
        due.then(|| {
            self.asked = Some(now);
            LeaseDuty::Renew
        })
    }

    /// The request was granted; the lease counts from when it was asked for.
    pub fn renewed(&mut self, ttl: Duration) {
        if let Some(asked) = self.asked.take() {
            self.timer.renewed(asked, ttl);
            self.ttl = ttl;
        }
    }

    /// The request was not answered; it is repeated a little later, while there is time.
    pub fn unanswered(&mut self, now: Monotonic) {
        self.asked = None;
        self.again_at = now + self.ttl / 20;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn e(epoch: u64) -> Epoch {
        Epoch::new(epoch).unwrap()
    }

    /// T12, F-156: exact compare at every checkpoint, one row each.
    #[test]
    fn an_epoch_is_compared_exactly() {
        #[track_caller]
        fn check(offered: u64, expected: Result<(), AuthorityFault>) {
            let mut authority = Authority::new(e(5));
            for at in [
                Checkpoint::Ingress,
                Checkpoint::Dispatch,
                Checkpoint::Egress,
            ] {
                assert_eq!(authority.check(at, e(offered)), expected);
                let refused = u64::from(expected.is_err());
                assert_eq!(
                    authority.counts(at),
                    CheckCount {
                        checked: 1,
                        refused
                    }
                );
            }
        }
        let (held, higher) = (e(5), e(6));
        check(5, Ok(()));
        check(
            4,
            Err(AuthorityFault::Stale {
                held,
                offered: e(4),
            }),
        );
        check(
            1,
            Err(AuthorityFault::Stale {
                held,
                offered: e(1),
            }),
        );
        let without = AuthorityFault::WithoutLease {
            held,
            offered: higher,
        };
        check(6, Err(without));
        assert_eq!(without.signal(), Signal::StaleEpochReject);
        assert_eq!(without.reason(true), "authority_epoch_mismatch");
    }

    /// T4, T8: the reason tells whether a turn was open.
    #[test]
    fn a_revoked_placement_refuses_its_own_epoch() {
        let mut authority = Authority::new(e(5));
        authority.revoke();
        let fault = authority.check(Checkpoint::Egress, e(5)).unwrap_err();
        assert_eq!(fault, AuthorityFault::Revoked { offered: e(5) });
        assert_eq!(fault.signal(), Signal::DeauthorizedDrain);
        assert_eq!(fault.reason(true), "authority_revoked_in_turn");
        assert_eq!(fault.reason(false), "authority_revoked_before_open");
        assert_eq!(authority.epoch(), None);
        // The old lease does not come back; a newer one does.
        assert!(authority.grant(e(5)).is_err());
        assert_eq!(authority.grant(e(6)), Ok(()));
        assert_eq!(authority.check(Checkpoint::Egress, e(6)), Ok(()));
    }

    proptest! {
        /// Design §1 promise 3: whatever is granted in whatever order, the epoch only rises and
        /// nothing but it passes.
        #[test]
        fn one_epoch_passes_and_it_only_rises(
            grants in prop::collection::vec(1u64..20, 0..40),
            offered in 1u64..20,
        ) {
            let mut authority = Authority::new(e(3));
            let mut highest = 3;
            for grant in grants {
                let taken = authority.grant(e(grant)).is_ok();
                prop_assert_eq!(taken, grant > highest);
                highest = highest.max(grant);
            }
            let passes = authority.check(Checkpoint::Ingress, e(offered)).is_ok();
            prop_assert_eq!(passes, offered == highest);
        }
    }

    /// lifecycle §7: renew before half the TTL, silent before its end.
    #[test]
    fn a_lease_is_renewed_early_and_given_up_in_time() {
        let ttl = Duration::from_secs(10);
        let mut timer = LeaseTimer::new(Monotonic::from_millis(1_000), ttl);
        assert_eq!(timer.renew_at(), Monotonic::from_millis(5_000));
        assert_eq!(timer.silent_at(), Monotonic::from_millis(10_000));
        assert!(!timer.is_over(Monotonic::from_millis(9_999)));
        assert!(timer.is_over(Monotonic::from_millis(10_000)));
        timer.renewed(Monotonic::from_millis(5_000), ttl);
        timer.renewed(Monotonic::from_millis(2_000), ttl);
        assert_eq!(timer.silent_at(), Monotonic::from_millis(14_000));
    }

    /// lifecycle §7: what is asked once is asked again only after an answer or a failure.
    #[test]
    fn a_renewal_is_asked_for_once_and_again_after_a_failure() {
        let ms = Monotonic::from_millis;
        let ttl = Duration::from_secs(10);
        let mut tenure = Tenure::new(ms(0), ttl);
        assert_eq!(tenure.next_deadline(), ms(4_000));
        assert_eq!(tenure.poll(ms(3_999)), None);
        assert_eq!(tenure.poll(ms(4_000)), Some(LeaseDuty::Renew));
        assert_eq!(tenure.poll(ms(4_001)), None);
        assert_eq!(tenure.next_deadline(), ms(9_000));
        tenure.unanswered(ms(4_100));
        assert_eq!(tenure.next_deadline(), ms(4_600));
        assert_eq!(tenure.poll(ms(4_600)), Some(LeaseDuty::Renew));
        // Counted from the request, not from its answer.
        tenure.renewed(ttl);
        assert_eq!(tenure.next_deadline(), ms(8_600));
        assert_eq!(tenure.poll(ms(8_600)), Some(LeaseDuty::Renew));
        assert_eq!(tenure.poll(ms(13_600)), Some(LeaseDuty::FallSilent));
    }

    proptest! {
        /// Design §5: whatever is answered and whenever, nobody speaks past nine tenths of the last
        /// lease that was granted, counted from when it was asked for.
        #[test]
        fn nobody_speaks_past_the_lease(answers in prop::collection::vec((0u64..6_000, any::<bool>()), 1..20)) {
            let ttl = Duration::from_secs(10);
            let mut tenure = Tenure::new(Monotonic::ZERO, ttl);
            let (mut now, mut granted) = (Monotonic::ZERO, Monotonic::ZERO);
            for (late, ok) in answers {
                now = now.max(tenure.next_deadline());
                match tenure.poll(now) {
                    Some(LeaseDuty::Renew) => {
                        let asked = now;
                        now = now + Duration::from_millis(late);
                        if tenure.timer.is_over(now) {
                            break;
                        }
                        if ok {
                            tenure.renewed(ttl);
                            granted = asked;
                        } else {
                            tenure.unanswered(now);
                        }
                    }
                    Some(LeaseDuty::FallSilent) => break,
                    None => {}
                }
                prop_assert!(now < granted + ttl * 9 / 10);
                prop_assert!(tenure.next_deadline() <= granted + ttl * 9 / 10);
            }
        }
    }
}
