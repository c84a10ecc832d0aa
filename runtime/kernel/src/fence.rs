//! The output fence: the one place where an output becomes accepted, and where a dead turn stops.
//!
//! Accepting and fencing are compare-and-swaps of the same word, so that they have one order: an
//! output is accepted before the fence falls or never (event-abi.md §5 rules 2 and 3). Silence does
//! not wait for a message to be delivered (design §2).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rspp_proto::{Epoch, Monotonic, TurnNumber};

use crate::authority::{AuthorityFault, CheckCount, Checkpoint};

/// What became of an output at the fence.
#[must_use = "an output that was not accepted must not be played"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It may be played; it is this many outputs into its turn, counted from 1.
    Accepted {
        /// Outputs accepted of the turn so far, this one included.
        ordinal: u32,
    },
    /// Its turn is over or was cancelled.
    Fenced,
    /// Its turn is no turn yet, but a guess (P9).
    Provisional,
    /// It was made under another epoch than the session's (T12): refused and reported.
    StaleEpoch {
        /// The session's epoch; `None` when authority is lost altogether.
        current: Option<Epoch>,
    },
}

/// Guards everything that a session lets out.
///
/// The word holds the first live turn (upper half), how many of its accepted outputs were committed
/// ahead and have not been played (8 bits), and how many were accepted in all (24 bits: at 50 outputs a
/// second, 93 hours of one turn).
#[derive(Debug)]
pub struct OutputFence {
    word: AtomicU64,
    /// 0 when nobody may write.
    epoch: AtomicU64,
    /// When the right to write ends, in microseconds; the largest number if it does not end by itself.
    ends: AtomicU64,
    /// The turn whose playout is held; 0 for none.
    held: AtomicU32,
    /// The newest turn that was ever held; 0 for none.
    once_held: AtomicU32,
    /// Checks and refusals by checkpoint.
    checks: [Checks; 3],
    /// The turn that is a guess yet; 0 for none.
    provisional: AtomicU32,
}

#[derive(Debug, Default)]
struct Checks {
    checked: AtomicU64,
    refused: AtomicU64,
}

const NO_TURN_LIVES: u32 = u32::MAX;
/// The right to write does not end by itself.
const NEVER: u64 = u64::MAX;
/// Turns count from 1.
const NO_GUESS: u32 = 0;

/// Accepted outputs are counted up to here.
const MOST_ACCEPTED: u32 = (1 << 24) - 1;
/// So many outputs may be committed ahead.
pub const MOST_COMMITTED: u32 = u8::MAX as u32;

/// What the word says.
#[derive(Clone, Copy)]
struct Word {
    first_live: u32,
    /// Of the accepted ones, those that wait for their moment.
    committed: u32,
    accepted: u32,
}

fn pack(first_live: u32, committed: u32, accepted: u32) -> u64 {
    let counts = committed.min(MOST_COMMITTED) << 24 | accepted.min(MOST_ACCEPTED);
    u64::from(first_live) << 32 | u64::from(counts)
}

fn unpack(word: u64) -> Word {
    Word {
        first_live: (word >> 32) as u32,
        committed: (word as u32) >> 24,
        accepted: (word as u32) & MOST_ACCEPTED,
    }
}

impl Word {
    fn pack(self) -> u64 {
        pack(self.first_live, self.committed, self.accepted)
    }

    /// Without what was committed: nobody will hear that.
    fn voided(self) -> Self {
        Self {
            committed: 0,
            accepted: self.accepted.saturating_sub(self.committed),
            ..self
        }
    }
}

impl OutputFence {
    /// A fence that lets out turns from the first on, made under `epoch`.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            word: AtomicU64::new(pack(TurnNumber::FIRST.0, 0, 0)),
            epoch: AtomicU64::new(epoch.get()),
            ends: AtomicU64::new(NEVER),
            held: AtomicU32::new(0),
            once_held: AtomicU32::new(0),
            provisional: AtomicU32::new(NO_GUESS),
            checks: Default::default(),
        }
    }

    /// The session's epoch as everybody in this process sees it at this moment; `None` when authority
    /// is lost. What comes in without an epoch of its own is taken to be under this one (AE-004).
    pub fn epoch(&self) -> Option<Epoch> {
        Epoch::new(self.epoch.load(Ordering::Acquire))
    }

    /// Compares an epoch exactly with the session's, and counts it (T12).
    pub fn check(&self, at: Checkpoint, offered: Epoch) -> Result<(), AuthorityFault> {
        let held = self.epoch();
        let verdict = if held == Some(offered) {
            Ok(())
        } else {
            Err(AuthorityFault::of(held, offered))
        };
        self.count(at, verdict.is_err());
        verdict
    }

    fn count(&self, at: Checkpoint, refused: bool) {
        let checks = &self.checks[at as usize];
        checks.checked.fetch_add(1, Ordering::Relaxed);
        if refused {
            checks.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often epochs were checked there.
    pub fn counts(&self, at: Checkpoint) -> CheckCount {
        let checks = &self.checks[at as usize];
        CheckCount {
            checked: checks.checked.load(Ordering::Relaxed),
            refused: checks.refused.load(Ordering::Relaxed),
        }
    }

    /// Lets nothing more of `turn` be heard for now. Unlike a fence it can be taken back, and counts
    /// nothing: what is accepted at this very moment is heard.
    pub fn hold(&self, turn: TurnNumber) {
        self.once_held.store(turn.0, Ordering::Release);
        self.held.store(turn.0, Ordering::Release);
    }

    /// Whether the playout of `turn` is held or has been.
    pub fn was_held(&self, turn: TurnNumber) -> bool {
        self.once_held.load(Ordering::Acquire) == turn.0
    }

    /// What was held may be heard again.
    pub fn release(&self) {
        self.held.store(0, Ordering::Release);
    }

    /// Whether the playout of `turn` is held.
    pub fn is_held(&self, turn: TurnNumber) -> bool {
        self.held.load(Ordering::Acquire) == turn.0
    }

    /// Takes `turn` for a guess: nothing of it leaves until it is promoted, or ever (P9).
    pub fn guess(&self, turn: TurnNumber) {
        self.provisional.store(turn.0, Ordering::Release);
    }

    /// The guess was right: from here on `turn` is a turn like any other.
    pub fn promote(&self, turn: TurnNumber) {
        let _another_is_held = self.provisional.compare_exchange(
            turn.0,
            NO_GUESS,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }

    /// The guess came to nothing: `turn` is fenced before it is let go.
    pub fn discard(&self, turn: TurnNumber) {
        let _nothing_was_accepted = self.raise(turn);
        self.promote(turn);
    }

    fn is_guess(&self, turn: TurnNumber) -> bool {
        self.provisional.load(Ordering::Acquire) == turn.0
    }

    /// Asks whether one output of `turn`, made under `epoch`, may leave.
    pub fn accept(&self, turn: TurnNumber, epoch: Epoch) -> Passage {
        self.pass(turn, epoch, 0)
    }

    /// Accepts an output whose moment has not come: a cancel cuts it off no more (F-039), a lost lease
    /// does. When its moment comes, [`play`](Self::play) is asked.
    pub fn commit(&self, turn: TurnNumber, epoch: Epoch) -> Passage {
        self.pass(turn, epoch, 1)
    }

    /// Whether a committed output may be played: the moment of a cancel's exemption is over for nobody,
    /// that of an epoch is (F-156, T8). One that may not was not heard, and is counted no more.
    pub fn play(&self, turn: TurnNumber, epoch: Epoch) -> Result<(), AuthorityFault> {
        let held = self.epoch();
        if held != Some(epoch) {
            self.count(Checkpoint::Egress, true);
            return Err(AuthorityFault::of(held, epoch));
        }
        // Of a turn that was cancelled it is known already what is heard of it.
        let played = self.change(turn, |word| {
            let committed = word.committed.checked_sub(1)?;
            Some(Word { committed, ..word })
        });
        // Committed to a live turn, and void: the epoch has moved on at this very moment.
        if !played && self.is_live(turn) {
            return Err(AuthorityFault::of(self.epoch(), epoch));
        }
        Ok(())
    }

    fn pass(&self, turn: TurnNumber, epoch: Epoch, committed: u32) -> Passage {
        let current = self.epoch();
        if current != Some(epoch) {
            self.count(Checkpoint::Egress, true);
            return Passage::StaleEpoch { current };
        }
        self.count(Checkpoint::Egress, false);
        if self.is_guess(turn) {
            return Passage::Provisional;
        }
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            let before = unpack(word);
            if turn.0 < before.first_live {
                return Passage::Fenced;
            }
            // A later turn's first output ends the count of the turn before it.
            let (ahead, ordinal) = if turn.0 == before.first_live {
                (before.committed + committed, before.accepted + 1)
            } else {
                (committed, 1)
            };
            match self.word.compare_exchange_weak(
                word,
                pack(turn.0, ahead, ordinal),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                // An epoch that moved on meanwhile may have done so before: then this came too late.
                Ok(_) => {
                    let current = self.epoch();
                    if current == Some(epoch) {
                        return Passage::Accepted { ordinal };
                    }
                    if committed == 0 {
                        self.take_back(turn);
                    } else {
                        self.uncommit(turn);
                    }
                    self.checks[Checkpoint::Egress as usize]
                        .refused
                        .fetch_add(1, Ordering::Relaxed);
                    return Passage::StaleEpoch { current };
                }
                Err(changed) => word = changed,
            }
        }
    }

    /// Changes what the word says of `turn`; `false` if it is of another, or there is nothing to change.
    fn change(&self, turn: TurnNumber, change: impl Fn(Word) -> Option<Word>) -> bool {
        let changed = self
            .word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let word = unpack(word);
                let of_turn = Some(word).filter(|word| word.first_live == turn.0);
                of_turn.and_then(&change).map(Word::pack)
            });
        changed.is_ok()
    }

    /// Whether something of `turn` that was made under `epoch` may still leave. For what is shown,
    /// not played: it counts nothing.
    pub fn admits(&self, turn: TurnNumber, epoch: Epoch) -> bool {
        let in_force = self.epoch.load(Ordering::Acquire) == epoch.get();
        in_force && self.is_live(turn) && !self.is_guess(turn)
    }

    /// Takes the last acceptance of `turn` back: the transport had no room for it, so that it was
    /// not heard. Does nothing once the turn is fenced, since the cut has been told by then: `false`.
    pub fn take_back(&self, turn: TurnNumber) -> bool {
        self.change(turn, |word| {
            let accepted = word.accepted.checked_sub(1)?;
            Some(Word { accepted, ..word })
        })
    }

    /// Takes the last commitment of `turn` back, as [`take_back`](Self::take_back) does with an acceptance.
    pub fn uncommit(&self, turn: TurnNumber) -> bool {
        self.change(turn, |word| {
            let committed = word.committed.checked_sub(1)?;
            let accepted = word.accepted.checked_sub(1)?;
            Some(Word {
                committed,
                accepted,
                ..word
            })
        })
    }

    /// Whether outputs of `turn` may still leave; for work that would be in vain.
    pub fn is_live(&self, turn: TurnNumber) -> bool {
        turn.0 >= unpack(self.word.load(Ordering::Acquire)).first_live
    }

    /// Fences `turn` and every turn before it. Returns how many outputs of `turn` were accepted:
    /// exactly those that were heard or are being heard.
    pub fn raise(&self, turn: TurnNumber) -> u32 {
        let next = turn.next().0;
        let before = self
            .word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                (unpack(word).first_live < next).then(|| pack(next, 0, 0))
            });
        match before.map(unpack) {
            Ok(before) if before.first_live == turn.0 => before.accepted,
            Ok(_) | Err(_) => 0,
        }
    }

    /// Fences everything: authority is lost (T8). Returns the accepted outputs of the live turn, without
    /// those that were only committed: nobody hears them.
    pub fn revoke(&self) -> u32 {
        self.epoch.store(0, Ordering::Release);
        let word = self.word.swap(pack(NO_TURN_LIVES, 0, 0), Ordering::AcqRel);
        unpack(word).voided().accepted
    }

    /// The right to write ends then unless it is prolonged; see [`expire`](Self::expire).
    pub fn lasts_until(&self, ends: Monotonic) {
        let ends = ends.as_duration().as_micros() as u64;
        self.ends.store(ends, Ordering::Release);
    }

    /// Lets nothing more out if the right to write is over at `now`. Asked before each output, by whoever
    /// lets it out: a process that was stopped and wakes up does that first, of all that is due at once.
    pub fn expire(&self, now: Monotonic) {
        let ends = self.ends.load(Ordering::Acquire);
        if ends != NEVER && now.as_duration().as_micros() as u64 >= ends {
            self.forfeit();
        }
    }

    /// Lets nothing more out: the session is, or may be, somebody else's. How much was accepted until
    /// then is answered by [`revoke`](Self::revoke), which follows.
    pub fn forfeit(&self) {
        self.epoch.store(0, Ordering::Release);
        self.void();
    }

    /// Moves to a newer epoch: outputs made under the older one are refused from here on, committed or
    /// not.
    pub fn rotate(&self, epoch: Epoch) {
        if self.epoch.fetch_max(epoch.get(), Ordering::AcqRel) < epoch.get() {
            self.void();
        }
    }

    /// What was committed under an epoch that is over is not heard.
    fn void(&self) {
        let voided = |word| Some(unpack(word).voided().pack());
        let _always_changed = self
            .word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, voided);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const E1: Epoch = Epoch::FIRST;
    const T1: TurnNumber = TurnNumber(1);
    const T2: TurnNumber = TurnNumber(2);

    /// F-175, CF-001, CF-002, P1.
    #[test]
    fn nothing_of_a_turn_is_accepted_after_its_fence() {
        let fence = OutputFence::new(E1);
        assert_eq!(fence.accept(T1, E1), Passage::Accepted { ordinal: 1 });
        assert_eq!(fence.accept(T1, E1), Passage::Accepted { ordinal: 2 });
        assert_eq!(fence.raise(T1), 2);
        assert_eq!(fence.accept(T1, E1), Passage::Fenced);
        assert_eq!(fence.accept(T2, E1), Passage::Accepted { ordinal: 1 });
        assert_eq!(
            fence.raise(T1),
            0,
            "an older fence does not disturb the live turn"
        );
        assert_eq!(fence.accept(T2, E1), Passage::Accepted { ordinal: 2 });
    }

    /// F-039, F-156, T8, AE-002: what is committed is heard although its turn is cancelled, and is not once
    /// the lease is lost, runs out or moves on; what is counted as heard is what is.
    #[test]
    fn a_commitment_outlives_a_cancel_and_no_lease() {
        let committed = || {
            let fence = OutputFence::new(E1);
            assert_eq!(fence.accept(T1, E1), Passage::Accepted { ordinal: 1 });
            for ordinal in 2..=4 {
                assert_eq!(fence.commit(T1, E1), Passage::Accepted { ordinal });
            }
            assert_eq!(fence.play(T1, E1), Ok(()));
            fence
        };
        let cancelled = committed();
        assert_eq!(cancelled.raise(T1), 4);
        assert_eq!(cancelled.play(T1, E1), Ok(()));
        assert_eq!(cancelled.accept(T2, E1), Passage::Accepted { ordinal: 1 });
        assert_eq!(cancelled.play(T1, E1), Ok(()), "behind it stands the next");
        assert_eq!(cancelled.raise(T2), 1);

        let taken_back = committed();
        assert!(taken_back.uncommit(T1) && taken_back.uncommit(T1));
        assert!(!taken_back.uncommit(T1), "the rest has been played");
        assert_eq!(taken_back.raise(T1), 2);

        let lost = committed();
        assert_eq!(lost.revoke(), 2);
        assert!(lost.play(T1, E1).is_err());

        let over = committed();
        over.lasts_until(Monotonic::from_millis(10));
        over.expire(Monotonic::from_millis(10));
        assert!(over.play(T1, E1).is_err());
        assert_eq!(over.revoke(), 2);

        let moved = committed();
        moved.rotate(E1.next());
        assert!(moved.play(T1, E1).is_err());
        assert_eq!(moved.raise(T1), 2);
        assert_eq!(moved.counts(Checkpoint::Egress).refused, 1);
    }

    /// F-156: design §5: a right that is over lets nothing out, whether or not anybody has told the session; what
    /// was accepted before is still known to whoever asks then.
    #[test]
    fn a_right_that_is_over_lets_nothing_out() {
        let fence = OutputFence::new(E1);
        fence.expire(Monotonic::from_millis(u64::from(u32::MAX)));
        assert_eq!(fence.accept(T1, E1), Passage::Accepted { ordinal: 1 });
        fence.lasts_until(Monotonic::from_millis(100));
        fence.expire(Monotonic::from_millis(99));
        assert_eq!(fence.accept(T1, E1), Passage::Accepted { ordinal: 2 });
        fence.expire(Monotonic::from_millis(100));
        let over = Passage::StaleEpoch { current: None };
        assert_eq!(fence.accept(T1, E1), over);
        assert!(!fence.admits(T1, E1));
        assert_eq!(fence.revoke(), 2);
    }

    /// F-156: what is only shown passes the same checks.
    #[test]
    fn what_is_shown_is_admitted_by_turn_and_epoch() {
        let fence = OutputFence::new(E1);
        assert!(fence.admits(T1, E1));
        assert!(!fence.admits(T1, E1.next()));
        assert_eq!(fence.raise(T1), 0, "looking counts nothing");
        assert!(!fence.admits(T1, E1));
        assert!(fence.admits(T2, E1));
        fence.revoke();
        assert!(!fence.admits(T2, E1));
    }

    /// P11, P12: what is held stops at once, is of one turn, and counts as it would have.
    #[test]
    fn a_held_turn_goes_on_where_it_was() {
        let fence = OutputFence::new(E1);
        assert!(!fence.is_held(T1));
        assert_eq!(fence.accept(T1, E1), Passage::Accepted { ordinal: 1 });
        fence.hold(T1);
        assert!(fence.is_held(T1) && !fence.is_held(T2));
        assert!(fence.is_live(T1));
        fence.release();
        assert!(!fence.is_held(T1) && fence.was_held(T1));
        assert_eq!(fence.accept(T1, E1), Passage::Accepted { ordinal: 2 });
        fence.hold(T1);
        assert_eq!(fence.raise(T1), 2, "the cut is where it was held");
    }

    /// P2: what the transport had no room for does not count as heard.
    #[test]
    fn an_acceptance_can_be_taken_back_until_the_fence_falls() {
        let fence = OutputFence::new(E1);
        assert_eq!(fence.accept(T1, E1), Passage::Accepted { ordinal: 1 });
        fence.take_back(T1);
        assert_eq!(fence.accept(T1, E1), Passage::Accepted { ordinal: 1 });
        assert_eq!(fence.raise(T1), 1);
        fence.take_back(T1);
        assert_eq!(fence.accept(T2, E1), Passage::Accepted { ordinal: 1 });
    }

    /// F-156: after a rotation has returned, nothing of the older epoch is accepted any more, however
    /// the two race.
    #[test]
    fn nothing_of_an_older_epoch_is_accepted_after_the_rotation() {
        use std::sync::atomic::AtomicBool;
        for _ in 0..50 {
            let fence = Arc::new(OutputFence::new(E1));
            let rotated = Arc::new(AtomicBool::new(false));
            let worker = {
                let (fence, rotated) = (Arc::clone(&fence), Arc::clone(&rotated));
                std::thread::spawn(move || {
                    for _ in 0..10_000 {
                        let before = rotated.load(Ordering::SeqCst);
                        let passage = fence.accept(T1, E1);
                        if before {
                            assert!(matches!(passage, Passage::StaleEpoch { .. }), "{passage:?}");
                        }
                    }
                })
            };
            fence.rotate(E1.next());
            rotated.store(true, Ordering::SeqCst);
            worker.join().unwrap();
            let counts = fence.counts(Checkpoint::Egress);
            assert_eq!(counts.checked, 10_000);
        }
    }

    /// T12, AE-004: one view of the epoch, compared exactly and counted.
    #[test]
    fn epochs_are_checked_and_counted_by_checkpoint() {
        let fence = OutputFence::new(E1.next());
        assert_eq!(fence.epoch(), Some(E1.next()));
        assert_eq!(fence.check(Checkpoint::Ingress, E1.next()), Ok(()));
        let (held, offered) = (E1.next(), E1);
        assert_eq!(
            fence.check(Checkpoint::Ingress, E1),
            Err(AuthorityFault::Stale { held, offered })
        );
        let offered = E1.next().next();
        assert_eq!(
            fence.check(Checkpoint::Dispatch, offered),
            Err(AuthorityFault::WithoutLease { held, offered })
        );
        fence.revoke();
        assert_eq!(fence.epoch(), None);
        assert_eq!(
            fence.check(Checkpoint::Dispatch, held),
            Err(AuthorityFault::Revoked { offered: held })
        );
        let count = |checked, refused| CheckCount { checked, refused };
        assert_eq!(fence.counts(Checkpoint::Ingress), count(2, 1));
        assert_eq!(fence.counts(Checkpoint::Dispatch), count(2, 2));
        assert_eq!(fence.counts(Checkpoint::Egress), count(0, 0));
    }

    /// P9: nothing of a guess leaves before it is promoted, and nothing ever of one that was wrong.
    #[test]
    fn a_guess_is_refused_until_it_is_promoted() {
        let fence = OutputFence::new(E1);
        fence.guess(T1);
        assert_eq!(fence.accept(T1, E1), Passage::Provisional);
        assert!(!fence.admits(T1, E1));
        assert!(fence.is_live(T1), "its work is wanted");
        fence.promote(T2);
        assert_eq!(fence.accept(T1, E1), Passage::Provisional);
        fence.promote(T1);
        assert_eq!(fence.accept(T1, E1), Passage::Accepted { ordinal: 1 });
        fence.raise(T1);
        fence.guess(T2);
        fence.discard(T2);
        assert_eq!(fence.accept(T2, E1), Passage::Fenced);
        let third = TurnNumber(3);
        assert_eq!(fence.accept(third, E1), Passage::Accepted { ordinal: 1 });
    }

    /// P4: a turn can be fenced before its first output.
    #[test]
    fn a_turn_that_never_spoke_can_be_fenced() {
        let fence = OutputFence::new(E1);
        assert_eq!(fence.raise(T1), 0);
        assert_eq!(fence.accept(T1, E1), Passage::Fenced);
    }

    /// F-156, T12: epochs are compared exactly.
    #[test]
    fn other_epochs_are_refused_lower_and_higher() {
        let fence = OutputFence::new(E1.next());
        let current = Some(E1.next());
        assert_eq!(fence.accept(T1, E1), Passage::StaleEpoch { current });
        assert_eq!(
            fence.accept(T1, E1.next().next()),
            Passage::StaleEpoch { current }
        );
        fence.rotate(E1.next().next());
        assert_eq!(
            fence.accept(T1, E1.next().next()),
            Passage::Accepted { ordinal: 1 }
        );
        assert_eq!(fence.revoke(), 1);
        assert_eq!(
            fence.accept(T1, E1.next().next()),
            Passage::StaleEpoch { current: None }
        );
    }

    /// Invariant: what `raise` reports is exactly what was accepted, under contention.
    #[test]
    fn accepted_outputs_and_the_cut_agree_under_contention() {
        for _ in 0..50 {
            let fence = Arc::new(OutputFence::new(E1));
            let workers: Vec<_> = (0..2)
                .map(|_| {
                    let fence = Arc::clone(&fence);
                    std::thread::spawn(move || {
                        (0..10_000)
                            .take_while(|_| {
                                matches!(fence.accept(T1, E1), Passage::Accepted { .. })
                            })
                            .count()
                    })
                })
                .collect();
            let cut = fence.raise(T1) as usize;
            let accepted: usize = workers.into_iter().map(|w| w.join().unwrap()).sum();
            assert_eq!(accepted, cut);
        }
    }
}
