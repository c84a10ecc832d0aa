//! Limits against what they are for.

use proptest::prelude::*;
use rspp_proto::spec::OverloadSpec;

use super::*;

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn at(ms: u64) -> Monotonic {
    Monotonic::from_millis(ms)
}

fn ask(tenant: &TenantId) -> Ask<'_> {
    Ask {
        tenant,
        priority: Priority::Interactive,
        waited: Duration::ZERO,
        can_degrade: false,
        beyond: None,
    }
}

fn limited(change: impl FnOnce(&mut LimitsSpec)) -> Admission {
    let mut limits = LimitsSpec::default();
    change(&mut limits);
    Admission::new(limits, Monotonic::ZERO)
}

fn of(whose: Whose, limit: Limit) -> Cause {
    Cause { whose, limit }
}

/// F-049: beyond the limit newcomers are refused; who leaves makes room.
#[test]
fn sessions_at_once_are_limited_for_node_and_tenant() {
    let (a, b) = (tenant("a"), tenant("b"));
    let mut admission = limited(|limits| {
        limits.node.sessions = Some(Quota::at(3));
        limits.tenant.sessions = Some(Quota::at(2).then(OverLimit::Defer));
    });
    assert_eq!(admission.open_session(at(0), ask(&a)), Decision::ADMIT);
    assert_eq!(admission.open_session(at(0), ask(&a)), Decision::ADMIT);
    let third = admission.open_session(at(0), ask(&a));
    assert_eq!(third.cause, Some(of(Whose::Tenant, Limit::Sessions)));
    assert_eq!(
        third.verdict,
        Verdict::Defer {
            retry_after: RECHECK
        }
    );
    assert_eq!(admission.open_session(at(0), ask(&b)), Decision::ADMIT);
    let full = admission.open_session(at(0), ask(&b));
    assert_eq!(full.verdict, Verdict::Reject);
    assert_eq!(full.cause, Some(of(Whose::Node, Limit::Sessions)));
    admission.close_session(&a);
    assert_eq!(admission.open_session(at(0), ask(&b)), Decision::ADMIT);
    let report = admission.report();
    assert_eq!(report.node.open_sessions, 3);
    assert_eq!(report.tenant("a").sessions.deferred, 1);
    assert_eq!(report.tenant("b").sessions.rejected, 1);
    assert_eq!(report.tenant("b").sessions.admitted, 2);
}

/// F-050: a tenant with limits of its own has those and no others.
#[test]
fn a_named_tenant_has_its_own_limits() {
    let (big, small) = (tenant("big"), tenant("small"));
    let mut admission = limited(|limits| {
        limits.tenant.turns = Some(Quota::at(1));
        let own = QuotasSpec {
            turns: Some(Quota::at(2)),
            ..QuotasSpec::default()
        };
        limits.tenants.insert(big.clone(), own);
    });
    assert!(admission.open_turn(at(0), ask(&big)).verdict.is_admitted());
    assert!(admission.open_turn(at(0), ask(&big)).verdict.is_admitted());
    assert!(!admission.open_turn(at(0), ask(&big)).verdict.is_admitted());
    assert!(
        admission
            .open_turn(at(0), ask(&small))
            .verdict
            .is_admitted()
    );
    assert!(
        !admission
            .open_turn(at(0), ask(&small))
            .verdict
            .is_admitted()
    );
}

/// F-050: rates bind, and say when to come back.
#[test]
fn rates_say_when_to_ask_again() {
    let a = tenant("a");
    let mut admission = limited(|limits| {
        limits.tenant.sessions_per_minute = Some(Quota::at(2).then(OverLimit::Defer));
    });
    for _ in 0..2 {
        assert_eq!(admission.open_session(at(0), ask(&a)), Decision::ADMIT);
    }
    let refused = admission.open_session(at(0), ask(&a));
    assert_eq!(refused.verdict.retry_after(), Some(Duration::from_secs(30)));
    assert_eq!(
        refused.cause,
        Some(of(Whose::Tenant, Limit::SessionsPerMinute))
    );
    assert_eq!(admission.open_session(at(30_000), ask(&a)), Decision::ADMIT);
}

/// F-050: tokens are known afterwards; what was overdrawn is owed.
#[test]
fn tokens_that_were_overdrawn_hold_turns_back() {
    let a = tenant("a");
    let mut admission = limited(|limits| {
        limits.tenant.tokens_per_minute = Some(Quota::at(600).then(OverLimit::Defer));
    });
    assert_eq!(admission.open_turn(at(0), ask(&a)), Decision::ADMIT);
    admission.spend_tokens(at(0), &a, 900);
    let refused = admission.open_turn(at(0), ask(&a));
    assert_eq!(
        refused.cause,
        Some(of(Whose::Tenant, Limit::TokensPerMinute))
    );
    let wait = refused.verdict.retry_after().unwrap();
    assert_eq!(wait, Duration::from_millis(30_100));
    assert_eq!(
        admission.open_turn(Monotonic::ZERO + wait, ask(&a)),
        Decision::ADMIT
    );
    assert_eq!(admission.report().tenant("a").tokens, 900);
}

/// F-050: each of the four answers, by policy; the strictest of what is exceeded counts.
#[test]
fn what_is_done_about_more_is_policy() {
    let a = tenant("a");
    let answer = |over: OverLimit, waited: Duration, can_degrade: bool| {
        let mut admission = limited(|limits| {
            limits.tenant.turns = Some(Quota::at(0).then(over));
            limits.max_wait_ms = 1_000;
        });
        let ask = Ask {
            waited,
            can_degrade,
            ..ask(&a)
        };
        admission.open_turn(at(0), ask).verdict
    };
    let retry_after = RECHECK;
    let zero = Duration::ZERO;
    assert_eq!(answer(OverLimit::Reject, zero, true), Verdict::Reject);
    assert_eq!(
        answer(OverLimit::Defer, zero, true),
        Verdict::Defer { retry_after }
    );
    assert_eq!(
        answer(OverLimit::Throttle, zero, true),
        Verdict::Throttle { retry_after }
    );
    assert_eq!(
        answer(OverLimit::Throttle, Duration::from_millis(900), true),
        Verdict::Defer { retry_after },
        "waited long enough"
    );
    assert_eq!(answer(OverLimit::Degrade, zero, true), Verdict::Degrade);
    assert_eq!(
        answer(OverLimit::Degrade, zero, false),
        Verdict::Defer { retry_after },
        "there is nothing to serve it less of"
    );
}

/// F-050, F-098: what the fleet says stands against a tenant's turns, and against no session: those it decides about
/// itself.
#[test]
fn what_the_fleet_says_stands_against_turns() {
    let a = tenant("a");
    let mut admission = limited(|_| {});
    let wait = Duration::from_secs(20);
    let beyond = |over| Ask {
        beyond: Some((over, wait)),
        ..ask(&a)
    };
    let rejected = admission.open_turn(at(0), beyond(OverLimit::Reject));
    let cause = Cause {
        whose: Whose::Tenant,
        limit: Limit::TokensPerMinute,
    };
    assert_eq!(
        (rejected.verdict, rejected.cause),
        (Verdict::Reject, Some(cause))
    );
    let deferred = admission.open_turn(at(0), beyond(OverLimit::Defer));
    assert_eq!(deferred.verdict, Verdict::Defer { retry_after: wait });
    assert!(!admission.has_room(at(0), beyond(OverLimit::Reject)));
    let session = admission.open_session(at(0), beyond(OverLimit::Reject));
    assert_eq!(session, Decision::ADMIT);
    assert_eq!(admission.open_turn(at(0), ask(&a)), Decision::ADMIT);
}

/// F-172, F-173: newcomers first, then background work; who is there and live goes on.
#[test]
fn load_refuses_newcomers_and_then_background_turns() {
    let a = tenant("a");
    let mut admission = limited(|limits| limits.overload = OverloadSpec::default());
    let background = Ask {
        priority: Priority::Background,
        ..ask(&a)
    };
    let degradable = Ask {
        can_degrade: true,
        ..ask(&a)
    };
    let outcome = |admission: &mut Admission| {
        [
            admission.open_session(at(0), ask(&a)).verdict,
            admission.open_turn(at(0), background).verdict,
            admission.open_turn(at(0), ask(&a)).verdict,
            admission.open_turn(at(0), degradable).verdict,
        ]
        .map(|verdict| match verdict {
            Verdict::Admit => "admit",
            Verdict::Degrade => "degrade",
            Verdict::Throttle { .. } => "throttle",
            Verdict::Defer { .. } => "defer",
            Verdict::Reject => "reject",
        })
    };
    assert_eq!(outcome(&mut admission), ["admit"; 4]);
    admission.set_load(Load::High);
    let high = outcome(&mut admission);
    assert_eq!(high, ["defer", "admit", "admit", "degrade"]);
    admission.set_load(Load::Severe);
    let severe = outcome(&mut admission);
    assert_eq!(severe, ["defer", "defer", "admit", "degrade"]);
    admission.set_load(Load::Normal);
    assert_eq!(outcome(&mut admission), ["admit"; 4]);
}

/// Reports name a bounded number of tenants and lose no count.
#[test]
fn a_report_names_the_busiest_and_adds_up_the_rest() {
    let mut admission = limited(|_| {});
    for n in 0..150 {
        let tenant = tenant(&format!("t{n}"));
        for _ in 0..=n {
            admission.open_turn(at(0), ask(&tenant));
            admission.close_turn(&tenant);
        }
    }
    let report = admission.report();
    assert_eq!(report.tenants.len(), 101);
    assert_eq!(report.tenant("t149").turns.admitted, 150);
    assert_eq!(report.tenant("t0").turns.admitted, 0, "not by name");
    let total: u64 = report.tenants.values().map(|t| t.turns.admitted).sum();
    assert_eq!(total, report.node.turns.admitted);
}

/// A flood of tenants that nobody has heard of does not grow without bound.
#[test]
fn accounts_are_bounded() {
    let mut admission = limited(|limits| {
        limits.tenant.turns_per_minute = Some(Quota::at(10));
    });
    for n in 0..MAX_ACCOUNTS + 10 {
        let tenant = tenant(&format!("t{n}"));
        admission.open_turn(at(0), ask(&tenant));
        admission.close_turn(&tenant);
    }
    assert_eq!(admission.tenants.len(), MAX_ACCOUNTS);
    // The ten that came last share an account, and its limit.
    let late = tenant("one more");
    assert_eq!(
        admission.open_turn(at(0), ask(&late)).verdict,
        Verdict::Reject
    );
    let later = at(600_000);
    assert_eq!(admission.open_turn(later, ask(&late)), Decision::ADMIT);
    assert_eq!(admission.tenants.len(), 1, "the idle ones are forgotten");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Open(u8),
    Close(u8),
    OpenTurn(u8),
    CloseTurn(u8),
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        (0_u8..4).prop_map(Step::Open),
        (0_u8..4).prop_map(Step::Close),
        (0_u8..4).prop_map(Step::OpenTurn),
        (0_u8..4).prop_map(Step::CloseTurn),
    ];
    prop::collection::vec((0_u64..2_000, step), 1..300)
}

proptest! {
    /// F-049, F-050: whatever comes and goes, no limit is ever exceeded and nothing is miscounted.
    #[test]
    fn limits_are_never_exceeded(steps in steps()) {
        let mut admission = limited(|limits| {
            limits.node.sessions = Some(Quota::at(6));
            limits.tenant.sessions = Some(Quota::at(2).then(OverLimit::Throttle));
            limits.tenant.turns = Some(Quota::at(1).then(OverLimit::Defer));
            limits.tenant.turns_per_minute = Some(Quota::at(30));
        });
        let tenants: Vec<_> = (0..4).map(|n| tenant(&format!("t{n}"))).collect();
        let (mut sessions, mut turns, mut opened) = ([0_u64; 4], [0_u64; 4], [0_u64; 4]);
        let mut now = Monotonic::ZERO;
        for (gap, step) in steps {
            now = now + Duration::from_millis(gap);
            match step {
                Step::Open(n) => {
                    let n = usize::from(n);
                    let verdict = admission.open_session(now, ask(&tenants[n])).verdict;
                    let total: u64 = sessions.iter().sum();
                    prop_assert_eq!(verdict.is_admitted(), sessions[n] < 2 && total < 6);
                    sessions[n] += u64::from(verdict.is_admitted());
                }
                Step::Close(n) => {
                    let n = usize::from(n);
                    if sessions[n] > 0 {
                        sessions[n] -= 1;
                        admission.close_session(&tenants[n]);
                    }
                }
                Step::OpenTurn(n) => {
                    let n = usize::from(n);
                    let verdict = admission.open_turn(now, ask(&tenants[n])).verdict;
                    prop_assert!(turns[n] == 0 || !verdict.is_admitted());
                    turns[n] += u64::from(verdict.is_admitted());
                    opened[n] += u64::from(verdict.is_admitted());
                    let worth = 30.0 + now.as_millis_f64() * 30.0 / 60_000.0;
                    prop_assert!(opened[n] as f64 <= worth + 1e-6);
                }
                Step::CloseTurn(n) => {
                    let n = usize::from(n);
                    if turns[n] > 0 {
                        turns[n] -= 1;
                        admission.close_turn(&tenants[n]);
                    }
                }
            }
            let report = admission.report();
            prop_assert_eq!(report.node.open_sessions, sessions.iter().sum::<u64>());
            prop_assert_eq!(report.node.open_turns, turns.iter().sum::<u64>());
        }
    }
}
