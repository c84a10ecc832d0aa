//! Whether a tenant may open another session (F-098, CP-05).
//!
//! Limits are looked up for the tenant, then its pipeline, then everybody; the first record found counts
//! as a whole. What a tenant uses is one record of the store, changed in the same transaction as the
//! session's placement, so that replicas of the control plane count together.

use std::{collections::BTreeMap, time::Duration};

use rspp_proto::{
    Reason, TenantId, WallClock,
    abi::{OutcomeKind, OutcomeScope},
    reason,
    spec::{OverLimit, Quota, QuotasSpec},
};
use serde::{Deserialize, Serialize};

/// What is done when the counters cannot be read. A choice of the operator, recorded with every
/// decision that it makes; never an error that somebody swallowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Newcomers are put off: no limit is ever exceeded.
    #[default]
    Strict,
    /// Newcomers are let in uncounted: nobody is turned away for our fault.
    Availability,
}

impl Mode {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Availability => "availability",
        }
    }
}

/// All limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Names this version of the limits.
    pub version: u64,
    /// What is done when nothing can be counted.
    pub mode: Mode,
    /// For everybody else.
    pub default: QuotasSpec,
    /// For a pipeline's line.
    pub pipelines: BTreeMap<String, QuotasSpec>,
    /// For a tenant.
    pub tenants: BTreeMap<TenantId, QuotasSpec>,
}

impl Policy {
    /// The limits that count: the tenant's, else the pipeline's, else everybody's, each as a whole.
    pub fn limits(&self, tenant: &TenantId, line: &str) -> (&QuotasSpec, Source) {
        if let Some(limits) = self.tenants.get(tenant) {
            (limits, Source::Tenant)
        } else if let Some(limits) = self.pipelines.get(line) {
            (limits, Source::Pipeline)
        } else {
            (&self.default, Source::Default)
        }
    }

    /// The name of the snapshot that decisions were made by.
    pub fn snapshot(&self) -> String {
        format!("admission-policy/{}", self.version)
    }
}

/// Whose limits counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Everybody's.
    Default,
    /// The pipeline's.
    Pipeline,
    /// The tenant's own.
    Tenant,
}

impl Source {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Pipeline => "pipeline",
            Self::Tenant => "tenant",
        }
    }
}

const MINUTE_MS: u64 = 60_000;

/// Counts what happens in a minute that slides: this minute's count, and of the one before the share
/// that still lies within 60 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MinuteCount {
    minute: u64,
    now: u64,
    before: u64,
}

impl MinuteCount {
    /// Goes on to the minute of `now`; a clock that is behind counts into the newest minute there is.
    fn turn(&mut self, now: WallClock) {
        let minute = now.0 / MINUTE_MS;
        if minute > self.minute {
            self.before = if minute == self.minute + 1 {
                self.now
            } else {
                0
            };
            self.now = 0;
            self.minute = minute;
        }
    }

    /// Counts `more`.
    pub fn add(&mut self, now: WallClock, more: u64) {
        self.turn(now);
        self.now = self.now.saturating_add(more);
    }

    /// How many there were within the last 60 s.
    pub fn within(mut self, now: WallClock) -> u64 {
        self.turn(now);
        let elapsed = now.0.saturating_sub(self.minute * MINUTE_MS).min(MINUTE_MS);
        let left = u128::from(MINUTE_MS - elapsed);
        // Rounded up, so that a limit is never passed by rounding.
        let before = (u128::from(self.before) * left).div_ceil(u128::from(MINUTE_MS)) as u64;
        self.now.saturating_add(before)
    }

    /// When there will be room for one more under `limit`, at the earliest.
    fn free_after(mut self, now: WallClock, limit: u64) -> Duration {
        self.turn(now);
        let elapsed = now.0.saturating_sub(self.minute * MINUTE_MS).min(MINUTE_MS);
        let to_next = MINUTE_MS - elapsed;
        if limit == 0 {
            return Duration::from_millis(to_next);
        }
        if self.now < limit && self.before > 0 {
            // The share of the minute before has to shrink to what is left of the limit.
            let room = u128::from(limit - self.now - 1);
            let share = room * u128::from(MINUTE_MS) / u128::from(self.before);
            let at = u128::from(MINUTE_MS).saturating_sub(share) as u64;
            return Duration::from_millis(at.saturating_sub(elapsed).max(1));
        }
        // In the next minute, what is counted now becomes the minute before.
        let share = u128::from(limit - 1) * u128::from(MINUTE_MS) / u128::from(self.now.max(1));
        let at = u128::from(MINUTE_MS).saturating_sub(share) as u64;
        Duration::from_millis(to_next + at)
    }
}

/// What a tenant uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Sessions that are open.
    pub open: u64,
    /// Sessions opened.
    pub opened: MinuteCount,
    /// Tokens that language models read and wrote.
    pub tokens: MinuteCount,
}

impl Usage {
    /// Counts a session in.
    pub fn open(&mut self, now: WallClock) {
        self.open = self.open.saturating_add(1);
        self.opened.add(now, 1);
    }

    /// Counts a session out.
    pub fn close(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    /// Counts tokens, as runtimes report them.
    pub fn spend(&mut self, now: WallClock, tokens: u64) {
        self.tokens.add(now, tokens);
    }
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Sessions at once.
    Sessions,
    /// Sessions opened in a minute.
    SessionsPerMinute,
    /// Tokens in a minute.
    TokensPerMinute,
}

impl Limit {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::SessionsPerMinute => "sessions_per_minute",
            Self::TokensPerMinute => "tokens_per_minute",
        }
    }
}

/// A limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Which.
    pub limit: Limit,
    /// How many are allowed.
    pub allowed: u64,
    /// How many there were.
    pub observed: u64,
}

/// What was decided, and all that is needed to explain it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Admit, defer or reject.
    pub outcome: OutcomeKind,
    /// Always about the tenant.
    pub scope: OutcomeScope,
    /// Why.
    pub reason: Reason,
    /// Whether it is let in to be served with less.
    pub degraded: bool,
    /// When to ask again, if deferred.
    pub retry_after: Option<Duration>,
    /// The limit that decided, if one did.
    pub reached: Option<Reached>,
    /// Whose limits counted.
    pub source: Source,
    /// What is done when nothing can be counted; on the record whether it was needed or not.
    pub mode: Mode,
    /// Whether it was counted: in availability mode a session may be let in without.
    pub counted: bool,
    /// Names the limits.
    pub snapshot: String,
}

/// Whether the tenant may open another session. `usage` is `None` if it could not be read; a tenant
/// that never had a session has the default one.
pub fn admit(
    policy: &Policy,
    tenant: &TenantId,
    line: &str,
    usage: Option<&Usage>,
    now: WallClock,
) -> Decision {
    let (limits, source) = policy.limits(tenant, line);
    let decision = |outcome, reason| Decision {
        outcome,
        scope: OutcomeScope::Tenant,
        reason,
        degraded: false,
        retry_after: None,
        reached: None,
        source,
        mode: policy.mode,
        counted: usage.is_some(),
        snapshot: policy.snapshot(),
    };
    let Some(usage) = usage else {
        return match policy.mode {
            Mode::Strict => Decision {
                retry_after: Some(Duration::from_secs(1)),
                ..decision(OutcomeKind::Defer, reason::CP_ADMISSION_DEFER_UNAVAILABLE)
            },
            Mode::Availability => {
                decision(OutcomeKind::Admit, reason::CP_ADMISSION_ALLOWED_UNCOUNTED)
            }
        };
    };
    let mut degraded = None;
    for (limit, quota, reached, free_after) in [
        (Limit::Sessions, limits.sessions, usage.open, None),
        (
            Limit::SessionsPerMinute,
            limits.sessions_per_minute,
            usage.opened.within(now),
            Some(usage.opened),
        ),
        (
            Limit::TokensPerMinute,
            limits.tokens_per_minute,
            usage.tokens.within(now),
            Some(usage.tokens),
        ),
    ] {
        let Some(Quota {
            limit: allowed,
            over,
        }) = quota
        else {
            continue;
        };
        if reached < allowed {
            continue;
        }
        let reached = Some(Reached {
            limit,
            allowed,
            observed: reached,
        });
        match over {
            OverLimit::Reject => {
                let why = if allowed == 0 {
                    reason::CP_ADMISSION_REJECT_POLICY
                } else {
                    reason::CP_ADMISSION_REJECT_QUOTA
                };
                return Decision {
                    reached,
                    ..decision(OutcomeKind::Reject, why)
                };
            }
            // The control plane holds nobody's request open: who is throttled asks again.
            OverLimit::Defer | OverLimit::Throttle => {
                let wait = free_after.map(|count| count.free_after(now, allowed));
                return Decision {
                    reached,
                    retry_after: Some(wait.unwrap_or(Duration::from_secs(1))),
                    ..decision(OutcomeKind::Defer, reason::CP_ADMISSION_DEFER_CAPACITY)
                };
            }
            OverLimit::Degrade => degraded = degraded.or(reached),
        }
    }
    match degraded {
        Some(reached) => Decision {
            degraded: true,
            reached: Some(reached),
            ..decision(OutcomeKind::Admit, reason::CP_ADMISSION_ALLOWED_DEGRADED)
        },
        None => decision(OutcomeKind::Admit, reason::CP_ADMISSION_ALLOWED),
    }
}

/// What stands against further turns of a tenant with a pipeline of this line: nothing, or what is done about them,
/// and for how long if nothing more is used (F-050). A limit of nothing at all lets no session in to begin with.
pub fn beyond_tokens(
    policy: &Policy,
    tenant: &TenantId,
    line: &str,
    usage: &Usage,
    now: WallClock,
) -> Option<(OverLimit, Duration)> {
    let (limits, _) = policy.limits(tenant, line);
    let Quota { limit, over } = limits.tokens_per_minute?;
    (usage.tokens.within(now) >= limit).then(|| (over, usage.tokens.free_after(now, limit)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: WallClock = WallClock(10 * MINUTE_MS + 15_000);

    fn tenant() -> TenantId {
        TenantId::new("acme").unwrap()
    }

    fn policy(limits: QuotasSpec) -> Policy {
        Policy {
            default: limits,
            ..Policy::default()
        }
    }

    fn usage(open: u64, opened: u64, tokens: u64) -> Usage {
        let mut usage = Usage {
            open,
            ..Usage::default()
        };
        usage.opened.add(NOW, opened);
        usage.spend(NOW, tokens);
        usage
    }

    #[track_caller]
    fn check(
        limits: QuotasSpec,
        usage: Usage,
        outcome: OutcomeKind,
        reason: Reason,
        limit: Option<Limit>,
    ) {
        let found = admit(&policy(limits), &tenant(), "desk", Some(&usage), NOW);
        let limit_found = found.reached.map(|reached| reached.limit);
        assert_eq!(
            (found.outcome, found.reason, limit_found),
            (outcome, reason, limit)
        );
        assert_eq!(found.retry_after.is_some(), outcome == OutcomeKind::Defer);
    }

    /// F-098: each limit, with each thing that may be done about it.
    #[test]
    fn a_limit_is_kept() {
        use OutcomeKind::{Admit, Defer, Reject};
        let none = QuotasSpec::default();
        check(
            none.clone(),
            usage(9, 9, 9),
            Admit,
            reason::CP_ADMISSION_ALLOWED,
            None,
        );
        let of = |sessions, per_minute, tokens| QuotasSpec {
            sessions,
            sessions_per_minute: per_minute,
            tokens_per_minute: tokens,
            ..QuotasSpec::default()
        };
        let three = Some(Quota::at(3));
        check(
            of(three, None, None),
            usage(2, 0, 0),
            Admit,
            reason::CP_ADMISSION_ALLOWED,
            None,
        );
        check(
            of(three, None, None),
            usage(3, 0, 0),
            Reject,
            reason::CP_ADMISSION_REJECT_QUOTA,
            Some(Limit::Sessions),
        );
        check(
            of(None, three, None),
            usage(0, 3, 0),
            Reject,
            reason::CP_ADMISSION_REJECT_QUOTA,
            Some(Limit::SessionsPerMinute),
        );
        check(
            of(None, None, three),
            usage(0, 0, 3),
            Reject,
            reason::CP_ADMISSION_REJECT_QUOTA,
            Some(Limit::TokensPerMinute),
        );
        let put_off = Some(Quota::at(3).then(OverLimit::Defer));
        check(
            of(put_off, None, None),
            usage(3, 0, 0),
            Defer,
            reason::CP_ADMISSION_DEFER_CAPACITY,
            Some(Limit::Sessions),
        );
        let slowed = Some(Quota::at(3).then(OverLimit::Throttle));
        check(
            of(None, slowed, None),
            usage(0, 3, 0),
            Defer,
            reason::CP_ADMISSION_DEFER_CAPACITY,
            Some(Limit::SessionsPerMinute),
        );
        let less = Some(Quota::at(3).then(OverLimit::Degrade));
        check(
            of(less, None, None),
            usage(3, 0, 0),
            Admit,
            reason::CP_ADMISSION_ALLOWED_DEGRADED,
            Some(Limit::Sessions),
        );
        // What is refused by one limit is not let in by another.
        check(
            of(less, None, three),
            usage(3, 0, 3),
            Reject,
            reason::CP_ADMISSION_REJECT_QUOTA,
            Some(Limit::TokensPerMinute),
        );
        check(
            of(Some(Quota::at(0)), None, None),
            usage(0, 0, 0),
            Reject,
            reason::CP_ADMISSION_REJECT_POLICY,
            Some(Limit::Sessions),
        );
    }

    /// F-050, F-098: what is used up stands against turns too, for as long as it takes to slide out.
    #[test]
    fn tokens_that_are_used_up_stand_against_turns() {
        let limits = QuotasSpec {
            tokens_per_minute: Some(Quota::at(20).then(OverLimit::Defer)),
            ..QuotasSpec::default()
        };
        let policy = policy(limits);
        let beyond = |usage: &Usage, now| beyond_tokens(&policy, &tenant(), "desk", usage, now);
        assert_eq!(beyond(&usage(1, 1, 19), NOW), None);
        let used = usage(1, 1, 291);
        let (over, wait) = beyond(&used, NOW).unwrap();
        assert_eq!(over, OverLimit::Defer);
        let after = |wait: Duration| WallClock(NOW.0 + wait.as_millis() as u64);
        assert!(beyond(&used, after(wait.saturating_sub(Duration::from_secs(1)))).is_some());
        assert_eq!(beyond(&used, after(wait + Duration::from_millis(1))), None);
        let free = Policy::default();
        assert_eq!(beyond_tokens(&free, &tenant(), "desk", &used, NOW), None);
    }

    /// controlplane §6: a tenant's record replaces a pipeline's, and that everybody's, as a whole.
    #[test]
    fn the_nearest_limits_count_as_a_whole() {
        let sessions = |limit| QuotasSpec {
            sessions: Some(Quota::at(limit)),
            ..QuotasSpec::default()
        };
        let tokens = QuotasSpec {
            tokens_per_minute: Some(Quota::at(1)),
            ..QuotasSpec::default()
        };
        let policy = Policy {
            default: sessions(1),
            pipelines: BTreeMap::from([("desk".to_owned(), sessions(5))]),
            tenants: BTreeMap::from([(tenant(), tokens)]),
            ..Policy::default()
        };
        let of = |name: &str, line| {
            let tenant = TenantId::new(name).unwrap();
            let found = admit(&policy, &tenant, line, Some(&usage(3, 3, 0)), NOW);
            (found.outcome, found.source)
        };
        assert_eq!(of("acme", "desk"), (OutcomeKind::Admit, Source::Tenant));
        assert_eq!(of("other", "desk"), (OutcomeKind::Admit, Source::Pipeline));
        assert_eq!(of("other", "shop"), (OutcomeKind::Reject, Source::Default));
    }

    /// controlplane §8's fail-open gap: what happens without counters is chosen and on the record.
    #[test]
    fn what_happens_without_counters_is_a_choice() {
        let mut policy = policy(QuotasSpec {
            sessions: Some(Quota::at(1)),
            ..QuotasSpec::default()
        });
        let strict = admit(&policy, &tenant(), "desk", None, NOW);
        assert_eq!(strict.outcome, OutcomeKind::Defer);
        assert_eq!(
            (strict.reason, strict.counted),
            (reason::CP_ADMISSION_DEFER_UNAVAILABLE, false)
        );
        policy.mode = Mode::Availability;
        let open = admit(&policy, &tenant(), "desk", None, NOW);
        assert_eq!(open.outcome, OutcomeKind::Admit);
        assert_eq!(
            (open.reason, open.mode),
            (reason::CP_ADMISSION_ALLOWED_UNCOUNTED, Mode::Availability)
        );
    }

    #[test]
    fn a_minute_slides() {
        let at = |ms| WallClock(10 * MINUTE_MS + ms);
        let mut count = MinuteCount::default();
        count.add(at(30_000), 60);
        assert_eq!(count.within(at(30_000)), 60);
        assert_eq!(count.within(at(MINUTE_MS + 15_000)), 45);
        assert_eq!(count.within(at(2 * MINUTE_MS - 1)), 1);
        assert_eq!(count.within(at(2 * MINUTE_MS)), 0);
        // A replica whose clock is behind counts with the others.
        count.add(at(MINUTE_MS), 1);
        count.add(at(MINUTE_MS - 1_000), 1);
        assert_eq!(count.within(at(MINUTE_MS)), 62);
    }

    proptest! {
        /// However sessions come, and with whatever limit: in no stretch of 60 s that begins with a
        /// minute are more let in, and who waits as long as told is let in next.
        #[test]
        fn a_rate_is_never_exceeded(limit in 1..40u64, gaps in proptest::collection::vec(0..9_000u64, 1..200)) {
            let policy = policy(QuotasSpec {
                sessions_per_minute: Some(Quota::at(limit).then(OverLimit::Defer)),
                ..QuotasSpec::default()
            });
            let mut usage = Usage::default();
            let mut now = WallClock(7 * MINUTE_MS);
            let mut per_minute = BTreeMap::<u64, u64>::new();
            for gap in gaps {
                now.0 += gap;
                let decision = admit(&policy, &tenant(), "desk", Some(&usage), now);
                if let Some(wait) = decision.retry_after {
                    prop_assert!(wait <= Duration::from_mins(2));
                    now.0 += wait.as_millis() as u64;
                    let again = admit(&policy, &tenant(), "desk", Some(&usage), now);
                    prop_assert_eq!(again.outcome, OutcomeKind::Admit);
                }
                usage.open(now);
                let count = per_minute.entry(now.0 / MINUTE_MS).or_default();
                *count += 1;
                prop_assert!(*count <= limit);
            }
        }
    }
}
