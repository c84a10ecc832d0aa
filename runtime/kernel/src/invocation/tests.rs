use proptest::prelude::*;

use super::*;

fn ms(ms: u64) -> Monotonic {
    Monotonic::from_millis(ms)
}

fn provider(name: &str) -> ProviderId {
    ProviderId::new(name).unwrap()
}

fn policy(actions: &[AdaptiveAction]) -> InvocationPolicy {
    InvocationPolicy {
        actions: actions.iter().copied().collect(),
        ..InvocationPolicy::default()
    }
}

const ALL: [AdaptiveAction; 3] = [
    AdaptiveAction::Retry,
    AdaptiveAction::ProviderSwitch,
    AdaptiveAction::Fallback,
];

fn call(policy: InvocationPolicy, budget: u64) -> Invocation {
    let candidates = vec![provider("a"), provider("b")];
    let id = InvocationId::new("pvi/s/t/e/llm").unwrap();
    Invocation::new(id, candidates, policy, ms(0), ms(budget))
}

fn fault(class: OutcomeClass) -> Failure {
    let (retryable, reason, circuit_open, backoff) = match class {
        OutcomeClass::Timeout => (true, "provider_timeout", false, None),
        OutcomeClass::Overload => (
            true,
            "provider_overload",
            true,
            Some(Duration::from_millis(500)),
        ),
        OutcomeClass::Blocked => (false, "provider_client_error", false, None),
        OutcomeClass::InfrastructureFailure => (true, "provider_transport_error", false, None),
        OutcomeClass::Cancelled => (false, "provider_cancelled", false, None),
        OutcomeClass::Success => panic!("a success is no fault"),
    };
    Failure {
        class,
        retryable,
        reason,
        circuit_open,
        backoff,
    }
}

/// `a#1@0` for an attempt, `timeout/provider_timeout` for an end.
fn told(verdict: &Verdict) -> String {
    match &verdict.order {
        Order::Attempt {
            provider,
            attempt,
            at,
        } => format!("{provider}#{attempt}@{}", at.as_millis()),
        Order::Finish(outcome) => format!("{}/{}", outcome.class.as_str(), outcome.reason),
    }
}

/// providers §4: what each class leads to at the first failure, by what the plan allows.
#[test]
fn each_class_has_its_answer() {
    use AdaptiveAction::{Fallback, ProviderSwitch, Retry};
    use OutcomeClass::{Blocked, Cancelled, InfrastructureFailure, Overload, Timeout};
    #[track_caller]
    fn check(class: OutcomeClass, actions: &[AdaptiveAction], expected: &str) {
        let mut call = call(policy(actions), 2_000);
        assert_eq!(told(&call.begin(ms(0), |_| true)), "a#1@0");
        assert_eq!(
            told(&call.failed(ms(100), &fault(class), |_| true)),
            expected
        );
    }
    check(Timeout, &ALL, "a#2@150");
    check(InfrastructureFailure, &ALL, "a#2@150");
    // Overload: left alone if there is another, else after the backoff that it asked for.
    check(Overload, &ALL, "b#1@100");
    check(Overload, &[Retry], "a#2@600");
    check(Timeout, &[ProviderSwitch], "b#1@100");
    check(Timeout, &[Fallback], "b#1@100");
    check(Timeout, &[], "timeout/provider_timeout");
    // Never on blocked unless policy says so, never on cancelled.
    check(Blocked, &ALL, "blocked/provider_client_error");
    check(Cancelled, &ALL, "cancelled/provider_cancelled");
    let mut call = call(
        InvocationPolicy {
            switch_on_blocked: true,
            ..policy(&ALL)
        },
        2_000,
    );
    let _ = call.begin(ms(0), |_| true);
    assert_eq!(
        told(&call.failed(ms(100), &fault(Blocked), |_| true)),
        "b#1@100"
    );
}

/// providers §4: order, signals and records of a call that goes all the way.
#[test]
fn attempts_run_in_order_and_leave_evidence() {
    let mut call = call(policy(&ALL), 2_000);
    let timeout = Failure::timeout();
    let mut steps = vec![told(&call.begin(ms(0), |_| true))];
    for at in [100, 300] {
        let verdict = call.failed(ms(at), &timeout, |_| true);
        steps.push(told(&verdict));
        if at == 300 {
            let signals: Vec<_> = verdict
                .signals
                .iter()
                .map(|s| (s.signal, s.reason.as_str()))
                .collect();
            assert_eq!(
                signals,
                [
                    (Signal::ProviderError, "a timeout provider_timeout"),
                    (Signal::ProviderSwitch, "from=a to=b")
                ]
            );
        }
    }
    call.chunk(ms(400));
    call.chunk(ms(420));
    let verdict = call.succeeded(ms(500));
    steps.push(told(&verdict));
    assert_eq!(steps, ["a#1@0", "a#2@150", "b#1@300", "success/ok"]);
    let Order::Finish(outcome) = verdict.order else {
        panic!("the call is over");
    };
    let records: Vec<_> = outcome
        .attempts
        .iter()
        .map(|a| (a.provider.as_str(), a.attempt, a.class, a.decision))
        .collect();
    assert_eq!(
        records,
        [
            ("a", 1, OutcomeClass::Timeout, RetryDecision::Retry),
            ("a", 2, OutcomeClass::Timeout, RetryDecision::ProviderSwitch),
            ("b", 1, OutcomeClass::Success, RetryDecision::None),
        ]
    );
    let last = &outcome.attempts[2];
    assert_eq!((last.chunks, last.first_chunk), (2, Some(ms(400))));
    assert_eq!(outcome.provider, Some(provider("b")));
    assert_eq!(outcome.decision, RetryDecision::ProviderSwitch);
    assert_eq!(outcome.latency, Duration::from_millis(500));
    assert!(call.is_over());
}

/// F-059: retries cease once what is left is too little, waiting included; with a reason.
#[test]
fn retries_fit_the_remaining_budget() {
    let mut first = call(policy(&[AdaptiveAction::Retry]), 640);
    let _ = first.begin(ms(0), |_| true);
    // 100 + 500 of backoff leaves 40 ms, less than is worth while.
    let verdict = first.failed(ms(100), &fault(OutcomeClass::Overload), |_| true);
    assert_eq!(told(&verdict), "overload/provider_overload");
    let mut late = call(policy(&ALL), 640);
    let _ = late.begin(ms(0), |_| true);
    let verdict = late.failed(ms(600), &Failure::timeout(), |_| true);
    assert_eq!(told(&verdict), "timeout/provider_budget_exhausted");
    // Without a single attempt there is an outcome and a reason all the same.
    let mut none = call(policy(&ALL), 50);
    let verdict = none.begin(ms(0), |_| true);
    assert_eq!(told(&verdict), "timeout/provider_budget_exhausted");
}

/// P6: what was heard is not said again.
#[test]
fn a_committed_answer_is_not_begun_again() {
    let mut call = call(policy(&ALL), 2_000);
    let _ = call.begin(ms(0), |_| true);
    call.chunk(ms(100));
    call.commit();
    let failure = fault(OutcomeClass::InfrastructureFailure);
    let verdict = call.failed(ms(200), &failure, |_| true);
    assert_eq!(
        told(&verdict),
        "infrastructure_failure/provider_transport_error"
    );
}

/// P14, F-046: silence is noticed before the first chunk and between chunks.
#[test]
fn silence_has_a_deadline() {
    let mut call = call(policy(&ALL), 1_800);
    let _ = call.begin(ms(0), |_| true);
    assert_eq!(call.next_deadline(), Some(ms(1_000)));
    call.chunk(ms(900));
    assert_eq!(call.next_deadline(), Some(ms(1_600)));
    call.chunk(ms(1_500));
    // An answer that flows is not cut off by the budget to its beginning.
    assert_eq!(call.next_deadline(), Some(ms(2_200)));
    assert!(!call.is_silent(ms(2_199)) && call.is_silent(ms(2_200)));
    let _ = call.failed(ms(2_200), &Failure::timeout(), |_| true);

    let mut tight = super::tests::call(policy(&ALL), 700);
    let _ = tight.begin(ms(0), |_| true);
    assert_eq!(
        tight.next_deadline(),
        Some(ms(700)),
        "the budget is stricter"
    );
}

/// F-033, F-160: a cancel ends the call at once, also between attempts, and is timed.
#[test]
fn a_cancel_ends_the_call_in_any_state() {
    let mut call = call(policy(&ALL), 2_000);
    let _ = call.begin(ms(0), |_| true);
    let _ = call.failed(ms(100), &Failure::timeout(), |_| true);
    let Order::Finish(outcome) = call.cancel(ms(110), ms(125)).order else {
        panic!("the call is over");
    };
    assert_eq!(outcome.class, OutcomeClass::Cancelled);
    assert_eq!(outcome.cancel_latency, Some(Duration::from_millis(15)));
    assert_eq!(outcome.attempts.len(), 2);
    assert!(outcome.attempts.iter().all(|a| a.ended >= a.began));
}

/// F-057: a provider whose circuit is open is passed over; none left has its own reason.
#[test]
fn open_circuits_are_passed_over() {
    let b_only = |id: &ProviderId| id.as_str() == "b";
    let mut call = call(policy(&ALL), 2_000);
    assert_eq!(told(&call.begin(ms(0), b_only)), "b#1@0");
    let mut none = super::tests::call(policy(&ALL), 2_000);
    assert_eq!(
        told(&none.begin(ms(0), |_| false)),
        "overload/provider_circuit_open"
    );
    // A retry at the same provider does not spend another one's trial.
    let mut asked = 0;
    let mut call = super::tests::call(policy(&ALL), 2_000);
    let _ = call.begin(ms(0), |_| true);
    let _ = call.failed(ms(10), &Failure::timeout(), |_| {
        asked += 1;
        true
    });
    assert_eq!(asked, 0);
}

fn breaker() -> CircuitBreaker {
    CircuitBreaker::new(CircuitPolicy::default())
}

/// F-057: closed, open, half-open and closed again, and back when the trial fails.
#[test]
fn a_circuit_walks_through_its_states() {
    use CircuitState::{Closed, HalfOpen, Open};
    let change = |from, to| Some(CircuitChange { from, to });
    let mut circuit = breaker();
    for n in 0..4 {
        assert_eq!(circuit.record(ms(n), OutcomeClass::Timeout, None), None);
    }
    assert_eq!(
        circuit.record(ms(4), OutcomeClass::Timeout, None),
        change(Closed, Open)
    );
    assert_eq!(circuit.admit(ms(2_003)), (Admission::Refuse, None));
    assert_eq!(
        circuit.admit(ms(2_004)),
        (Admission::Trial, change(Open, HalfOpen))
    );
    assert_eq!(
        circuit.admit(ms(2_005)),
        (Admission::Refuse, None),
        "one trial at a time"
    );
    let failed = circuit.record(ms(2_010), OutcomeClass::InfrastructureFailure, None);
    assert_eq!(failed, change(HalfOpen, Open));
    assert_eq!(
        circuit.admit(ms(6_009)).0,
        Admission::Refuse,
        "twice as long"
    );
    assert_eq!(circuit.admit(ms(6_010)).0, Admission::Trial);
    let healed = circuit.record(ms(6_020), OutcomeClass::Success, None);
    assert_eq!(healed, change(HalfOpen, Closed));
    assert_eq!(healed.unwrap().reason(), "from=half_open to=closed");
    assert_eq!(circuit.admit(ms(6_021)), (Admission::Pass, None));
    // The old faults are forgiven.
    assert_eq!(circuit.record(ms(6_030), OutcomeClass::Timeout, None), None);
}

/// P27: neither a barge-in nor a bad request marks a provider as down.
#[test]
fn only_the_providers_own_faults_count() {
    let mut circuit = breaker();
    for n in 0..100 {
        assert_eq!(circuit.record(ms(n), OutcomeClass::Cancelled, None), None);
        assert_eq!(circuit.record(ms(n), OutcomeClass::Blocked, None), None);
    }
    assert_eq!(circuit.state(), CircuitState::Closed);
    // A cancelled trial says nothing, so the next call is a trial again.
    for n in 0..5 {
        let _ = circuit.record(ms(n), OutcomeClass::Timeout, None);
    }
    assert_eq!(circuit.admit(ms(5_000)).0, Admission::Trial);
    assert_eq!(
        circuit.record(ms(5_001), OutcomeClass::Cancelled, None),
        None
    );
    assert_eq!(circuit.admit(ms(5_002)).0, Admission::Trial);
}

/// providers §2: a rate limit is honoured for as long as the provider says.
#[test]
fn a_provider_that_asks_for_peace_gets_it() {
    let mut circuit = breaker();
    let wait = Some(Duration::from_millis(500));
    assert!(
        circuit
            .record(ms(0), OutcomeClass::Overload, wait)
            .is_some()
    );
    assert_eq!(circuit.admit(ms(499)).0, Admission::Refuse);
    assert_eq!(circuit.admit(ms(500)).0, Admission::Trial);
}

/// Faults of long ago do not add up with today's.
#[test]
fn old_faults_are_forgotten() {
    let mut circuit = breaker();
    for n in 0..4 {
        let _ = circuit.record(ms(n), OutcomeClass::Timeout, None);
    }
    assert_eq!(
        circuit.record(ms(60_000), OutcomeClass::Timeout, None),
        None
    );
}

proptest! {
    /// providers §4, F-059: over any failures the call ends, attempts rise from 1 at each provider
    /// in candidate order, none begins with too little time left, none follows a commit.
    #[test]
    fn a_call_always_ends_within_its_bounds(
        classes in prop::collection::vec(0usize..5, 20),
        durations in prop::collection::vec(1u64..600, 20),
        commit_at in prop::option::of(0usize..12),
        budget in 1u64..4_000,
        refused in prop::bool::ANY,
    ) {
        let all = [
            OutcomeClass::Timeout, OutcomeClass::Overload, OutcomeClass::Blocked,
            OutcomeClass::InfrastructureFailure, OutcomeClass::Cancelled,
        ];
        let mut call = call(
            InvocationPolicy { switch_on_blocked: refused, ..policy(&ALL) },
            budget,
        );
        let mut now = 0;
        let mut begun: Vec<(String, u32)> = Vec::new();
        let mut committed = false;
        let mut verdict = call.begin(ms(0), |_| true);
        for (step, (class, took)) in classes.into_iter().zip(durations).enumerate() {
            let Order::Attempt { provider, attempt, at } = &verdict.order else { break };
            prop_assert!(!committed, "an attempt after a commit");
            prop_assert!(at.as_millis() + 100 <= budget);
            begun.push((provider.to_string(), *attempt));
            now = at.as_millis() + took;
            if commit_at == Some(step) {
                call.commit();
                committed = true;
            }
            verdict = call.failed(ms(now), &fault(all[class]), |_| true);
        }
        let Order::Finish(outcome) = &verdict.order else {
            return Err(TestCaseError::fail("the call never ends"));
        };
        prop_assert!(call.is_over());
        prop_assert_eq!(outcome.attempts.len(), begun.len());
        prop_assert!(begun.len() <= 4);
        prop_assert!(begun.is_sorted());
        prop_assert_eq!(outcome.latency, Duration::from_millis(now));
        for pair in begun.windows(2) {
            let same = pair[0].0 == pair[1].0;
            prop_assert_eq!(pair[1].1, if same { pair[0].1 + 1 } else { 1 });
        }
    }
}
