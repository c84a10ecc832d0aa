use std::collections::BTreeMap;

use proptest::prelude::*;
use rspp_proto::spec::{CallPolicy, CircuitPolicy, Modality};

use super::*;

fn ms(ms: u64) -> Monotonic {
    Monotonic::from_millis(ms)
}

fn provider(name: &str) -> ProviderId {
    ProviderId::new(name).unwrap()
}

fn policy(actions: &[AdaptiveAction]) -> InvocationPolicy {
    let actions = actions.iter().copied().collect();
    InvocationPolicy::of(&CallPolicy::default(), &actions, Modality::Llm)
}

const PATIENCE: Patience = Patience {
    first_byte: Duration::from_secs(1),
    inter_chunk: Duration::from_millis(700),
};

fn candidate(name: &str) -> Candidate {
    Candidate {
        provider: provider(name),
        patience: PATIENCE,
    }
}

/// Until then, and nothing to share.
fn until(end: u64) -> CallDeadlines {
    CallDeadlines {
        end: ms(end),
        share: None,
        quiet: QUIET,
    }
}

const QUIET: Quiet = Quiet {
    gap: Duration::from_millis(1_500),
    most: Duration::from_secs(4),
    last: Monotonic::from_millis(60_000),
};

/// The attempts of a call that goes one after the other.
const FIRST: AttemptKey = AttemptKey(0);
const SECOND: AttemptKey = AttemptKey(1);

const ALL: [AdaptiveAction; 3] = [
    AdaptiveAction::Retry,
    AdaptiveAction::ProviderSwitch,
    AdaptiveAction::Fallback,
];

fn call(policy: InvocationPolicy, budget: u64) -> Invocation {
    let candidates = vec![candidate("a"), candidate("b")];
    let id = InvocationId::new("pvi/s/t/e/llm").unwrap();
    Invocation::new(id, candidates, policy, ms(0), until(budget))
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

/// `a#1@0` for an attempt, `!0` for one that is stopped, `timeout/provider_timeout` for an end.
fn told(verdict: &Verdict) -> String {
    let orders = verdict.orders.iter().map(|order| match order {
        Order::Attempt {
            key: _,
            provider,
            attempt,
            at,
        } => format!("{provider}#{attempt}@{}", at.as_millis()),
        Order::Stop(AttemptKey(key)) => format!("!{key}"),
        Order::Finish(outcome) => format!("{}/{}", outcome.class.as_str(), outcome.reason),
    });
    orders.collect::<Vec<_>>().join(" ")
}

fn signals(verdict: &Verdict) -> Vec<(Signal, &str)> {
    let signals = verdict.signals.iter();
    signals.map(|s| (s.signal, s.reason.as_str())).collect()
}

fn outcome(verdict: Verdict) -> InvocationOutcome {
    match verdict.orders.into_iter().next_back() {
        Some(Order::Finish(outcome)) => *outcome,
        other => panic!("the call is not over: {other:?}"),
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
            told(&call.failed(FIRST, ms(100), &fault(class), |_| true)),
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
        told(&call.failed(FIRST, ms(100), &fault(Blocked), |_| true)),
        "b#1@100"
    );
}

/// providers §4: order, signals and records of a call that goes all the way.
#[test]
fn attempts_run_in_order_and_leave_evidence() {
    let mut call = call(policy(&ALL), 2_000);
    let timeout = Failure::timeout();
    let mut steps = vec![told(&call.begin(ms(0), |_| true))];
    for (key, at) in [(FIRST, 100), (SECOND, 300)] {
        let verdict = call.failed(key, ms(at), &timeout, |_| true);
        steps.push(told(&verdict));
        if at == 300 {
            assert_eq!(
                signals(&verdict),
                [
                    (Signal::ProviderError, "a timeout provider_timeout"),
                    (Signal::ProviderSwitch, "from=a to=b")
                ]
            );
        }
    }
    let third = AttemptKey(2);
    for at in [400, 420] {
        assert_eq!(call.chunk(third, ms(at)), Verdict::default());
    }
    let verdict = call.succeeded(third, ms(500));
    steps.push(told(&verdict));
    assert_eq!(steps, ["a#1@0", "a#2@150", "b#1@300", "success/ok"]);
    let outcome = outcome(verdict);
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
}

/// F-059: retries cease once what is left is too little, waiting included; with a reason.
#[test]
fn retries_fit_the_remaining_budget() {
    let mut first = call(policy(&[AdaptiveAction::Retry]), 640);
    let _ = first.begin(ms(0), |_| true);
    // 100 + 500 of backoff leaves 40 ms, less than is worth while.
    let verdict = first.failed(FIRST, ms(100), &fault(OutcomeClass::Overload), |_| true);
    assert_eq!(told(&verdict), "overload/provider_budget_exhausted");
    let mut late = call(policy(&ALL), 640);
    let _ = late.begin(ms(0), |_| true);
    let verdict = late.failed(FIRST, ms(600), &Failure::timeout(), |_| true);
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
    let _ = call.chunk(FIRST, ms(100));
    call.commit();
    let failure = fault(OutcomeClass::InfrastructureFailure);
    let verdict = call.failed(FIRST, ms(200), &failure, |_| true);
    assert_eq!(
        told(&verdict),
        "infrastructure_failure/provider_transport_error"
    );
}

/// P14, F-046: silence is noticed before the first chunk and between chunks, and given up there.
#[test]
fn silence_has_a_deadline() {
    let mut call = call(policy(&ALL), 1_800);
    let _ = call.begin(ms(0), |_| true);
    assert_eq!(call.next_deadline(), Some(ms(1_000)));
    let _ = call.chunk(FIRST, ms(900));
    assert_eq!(call.next_deadline(), Some(ms(1_600)));
    let _ = call.chunk(FIRST, ms(1_500));
    // An answer that flows is not cut off by the budget to its beginning.
    assert_eq!(call.next_deadline(), Some(ms(2_200)));
    // Waiting until somebody takes it is no silence of the provider's.
    call.passed_on(ms(1_700));
    assert_eq!(call.next_deadline(), Some(ms(2_400)));
    assert_eq!(call.tick(ms(2_399), |_| true), Verdict::default());
    let verdict = call.tick(ms(2_400), |_| true);
    // Whoever falls silent in the middle of an answer is not listened to again.
    assert_eq!(told(&verdict), "!0 b#1@2400");

    let mut tight = super::tests::call(policy(&ALL), 700);
    let _ = tight.begin(ms(0), |_| true);
    assert_eq!(
        tight.next_deadline(),
        Some(ms(700)),
        "the budget is stricter"
    );
}

/// F-046: while there is somebody else to ask, one that is silent gets half of what is left, so that
/// a fallback fits; the last one gets all of it.
#[test]
fn candidates_share_what_is_left_of_the_budget() {
    let patient = |name: &str| Candidate {
        patience: PATIENCE.local(&CallPolicy::default()),
        ..candidate(name)
    };
    let id = InvocationId::new("pvi/s/t/e/llm").unwrap();
    let deadlines = CallDeadlines {
        end: ms(2_000),
        share: Some(ms(2_000)),
        quiet: QUIET,
    };
    let rules = policy(&[AdaptiveAction::ProviderSwitch]);
    let both = vec![patient("a"), patient("b")];
    let mut call = Invocation::new(id.clone(), both, rules.clone(), ms(0), deadlines);
    let _ = call.begin(ms(0), |_| true);
    assert_eq!(call.next_deadline(), Some(ms(1_000)));
    assert_eq!(told(&call.tick(ms(1_000), |_| true)), "!0 b#1@1000");
    assert_eq!(call.next_deadline(), Some(ms(2_000)));
    let verdict = call.tick(ms(2_000), |_| true);
    assert_eq!(told(&verdict), "!1 timeout/provider_budget_exhausted");

    let mut alone = Invocation::new(id, vec![patient("a")], rules, ms(0), deadlines);
    let _ = alone.begin(ms(0), |_| true);
    assert_eq!(alone.next_deadline(), Some(ms(2_000)));
}

/// A recogniser owes nothing while the user speaks, and all of its time from the end on.
#[test]
fn nobody_owes_an_answer_to_half_a_question() {
    let mut call = call(policy(&ALL), 120_000);
    call.listen();
    let _ = call.begin(ms(0), |_| true);
    assert_eq!(call.next_deadline(), None);
    let _ = call.chunk(FIRST, ms(400));
    assert_eq!(call.next_deadline(), None, "a partial changes nothing");
    call.heard_out(ms(9_000));
    assert_eq!(call.next_deadline(), Some(ms(10_000)));
}

fn hedged(after: u64) -> InvocationPolicy {
    InvocationPolicy {
        hedge_after: Some(Duration::from_millis(after)),
        ..policy(&ALL)
    }
}

/// P14: a slow one is hedged; the first to speak wins, and the other is stopped.
#[test]
fn the_first_to_speak_wins() {
    let begin = || {
        let mut call = call(hedged(300), 2_000);
        let _ = call.begin(ms(0), |_| true);
        assert_eq!(call.next_deadline(), Some(ms(300)));
        assert_eq!(told(&call.tick(ms(300), |_| true)), "b#1@300");
        assert_eq!(call.next_deadline(), Some(ms(1_000)), "hedged once");
        call
    };
    let records = |verdict: Verdict| -> Vec<_> {
        let attempts = outcome(verdict).attempts.into_iter();
        attempts
            .map(|a| (a.provider.to_string(), a.reason, a.decision))
            .collect()
    };
    let mut first = begin();
    assert_eq!(told(&first.chunk(FIRST, ms(350))), "!1");
    let ended = first.succeeded(FIRST, ms(900));
    assert_eq!(
        records(ended),
        [
            ("a".to_owned(), "ok", RetryDecision::None),
            ("b".to_owned(), "provider_overtaken", RetryDecision::None),
        ]
    );
    let mut second = begin();
    let won = second.chunk(SECOND, ms(350));
    assert_eq!(told(&won), "!0");
    assert_eq!(
        signals(&won),
        [(Signal::ProviderSwitch, "from=a to=b hedged")]
    );
    let ended = second.succeeded(SECOND, ms(900));
    assert_eq!(
        records(ended),
        [
            (
                "a".to_owned(),
                "provider_overtaken",
                RetryDecision::ProviderSwitch
            ),
            ("b".to_owned(), "ok", RetryDecision::None),
        ]
    );
    // One that fails leaves the answer to the other.
    for (fails, answers) in [(FIRST, SECOND), (SECOND, FIRST)] {
        let mut call = begin();
        let failure = fault(OutcomeClass::InfrastructureFailure);
        assert_eq!(told(&call.failed(fails, ms(350), &failure, |_| true)), "");
        let _ = call.chunk(answers, ms(400));
        assert_eq!(told(&call.succeeded(answers, ms(900))), "success/ok");
    }
}

/// P14: a recogniser owes its text once the user has fallen silent: then it is hedged like any other,
/// whatever it has said before.
#[test]
fn a_recogniser_is_hedged_from_the_end_of_the_speech() {
    let mut call = call(hedged(300), 20_000);
    call.listen();
    let _ = call.begin(ms(0), |_| true);
    let _ = call.chunk(FIRST, ms(400));
    assert_eq!(told(&call.tick(ms(5_000), |_| true)), "");
    call.heard_out(ms(9_000));
    assert_eq!(call.next_deadline(), Some(ms(9_300)));
    assert_eq!(told(&call.tick(ms(9_300), |_| true)), "b#1@9300");
    assert_eq!(told(&call.chunk(SECOND, ms(9_400))), "!0");
}

/// A hedge is a call like any other: not without leave, somebody else to ask, or time.
#[test]
fn a_hedge_needs_somebody_who_may_be_asked() {
    let slow = |policy: InvocationPolicy, budget: u64, admitted: bool| {
        let mut call = call(policy, budget);
        let _ = call.begin(ms(0), |_| true);
        told(&call.tick(ms(300), |_| admitted))
    };
    assert_eq!(slow(hedged(300), 2_000, true), "b#1@300");
    assert_eq!(slow(hedged(300), 2_000, false), "");
    assert_eq!(slow(hedged(300), 390, true), "");
    let unauthorised = InvocationPolicy {
        actions: [AdaptiveAction::Retry].into(),
        ..hedged(300)
    };
    assert_eq!(slow(unauthorised, 2_000, true), "");
    assert_eq!(slow(policy(&ALL), 2_000, true), "");
    // Once somebody has spoken there is nothing to hedge.
    let mut call = call(hedged(300), 2_000);
    let _ = call.begin(ms(0), |_| true);
    let _ = call.chunk(FIRST, ms(100));
    assert_eq!(call.next_deadline(), Some(ms(800)));
}

/// F-046: the turn's deadline comes down to its calls, that of its first output on the way there.
#[test]
fn a_turns_deadline_comes_down_to_its_calls() {
    let budgets = crate::plan::profile::budgets();
    let turn = TurnDeadlines {
        first_output: ms(2_000),
        end: ms(60_000),
    };
    let call = |at, modality, first, node: Option<u64>| {
        let node = node.map(Duration::from_millis);
        let call = turn.of_call(ms(at), modality, first, node, &budgets);
        (call.end, call.share)
    };
    let llm = Modality::Llm;
    assert_eq!(call(500, llm, true, None), (ms(2_000), Some(ms(2_000))));
    assert_eq!(
        call(500, llm, true, Some(800)),
        (ms(2_000), Some(ms(1_300)))
    );
    // A later call, as after a tool, has a budget of its own within the turn's length.
    assert_eq!(
        call(9_000, llm, false, None),
        (ms(11_000), Some(ms(11_000)))
    );
    assert_eq!(
        call(59_000, llm, false, None),
        (ms(60_000), Some(ms(60_000)))
    );
    // What is said late is said; but somebody else is asked in time.
    assert_eq!(
        call(900, Modality::Tts, true, None),
        (ms(4_900), Some(ms(2_000)))
    );
    assert_eq!(call(900, Modality::Tts, false, None), (ms(60_000), None));
}

/// F-047: later calls go to others first, until the time has come to try again.
#[test]
fn who_had_to_be_given_up_comes_last_for_a_while() {
    let mut overruns = Overruns::default();
    let order = |overruns: &mut Overruns, at, modality| {
        let mut candidates = vec![candidate("a"), candidate("b"), candidate("c")];
        let instead = overruns.order(ms(at), modality, &mut candidates);
        let names: Vec<_> = candidates.iter().map(|c| c.provider.to_string()).collect();
        (names.concat(), instead.map(|id| id.to_string()))
    };
    let a = || Some("a".to_owned());
    let stay_away = Duration::from_secs(30);
    overruns.note(ms(0), Modality::Stt, &provider("a"), stay_away);
    assert_eq!(order(&mut overruns, 1, Modality::Stt), ("bca".into(), a()));
    assert_eq!(order(&mut overruns, 1, Modality::Tts), ("abc".into(), None));
    overruns.note(ms(10), Modality::Stt, &provider("b"), stay_away);
    assert_eq!(order(&mut overruns, 11, Modality::Stt), ("cab".into(), a()));
    assert_eq!(
        order(&mut overruns, 30_000, Modality::Stt),
        ("acb".into(), None)
    );
    overruns.note(ms(0), Modality::Stt, &provider("a"), Duration::ZERO);
    assert_eq!(
        order(&mut overruns, 40_000, Modality::Stt),
        ("abc".into(), None)
    );
}

/// F-033, F-160: a cancel ends the call at once, also between attempts, and is timed.
#[test]
fn a_cancel_ends_the_call_in_any_state() {
    let mut call = call(policy(&ALL), 2_000);
    let _ = call.begin(ms(0), |_| true);
    let _ = call.failed(FIRST, ms(100), &Failure::timeout(), |_| true);
    let verdict = call.cancel(ms(110), ms(125));
    assert_eq!(told(&verdict), "!1 cancelled/provider_cancelled");
    let outcome = outcome(verdict);
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
    let _ = call.failed(FIRST, ms(10), &Failure::timeout(), |_| {
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
    #[track_caller]
    fn check(change: Option<CircuitChange>, reason: &str) {
        assert_eq!(
            change.map(|change| change.reason()).as_deref(),
            Some(reason)
        );
    }
    let mut circuit = breaker();
    for n in 0..4 {
        assert_eq!(
            circuit.record(ms(n), OutcomeClass::Timeout, "code", None),
            None
        );
    }
    // P27, F-136: thresholds and code are told.
    let bad = circuit.record(ms(4), OutcomeClass::Timeout, "provider_timeout", None);
    assert_eq!(
        bad.as_ref().map(|bad| (bad.from, bad.to)),
        Some((Closed, Open))
    );
    check(
        bad,
        "from=closed to=open faults=5/5 threshold=50% code=provider_timeout",
    );
    assert_eq!(circuit.admit(ms(2_003)), (Admission::Refuse, None));
    assert!(circuit.is_resting(ms(2_003)) && !circuit.is_resting(ms(2_004)));
    let (admission, change) = circuit.admit(ms(2_004));
    assert_eq!((admission, circuit.state()), (Admission::Trial, HalfOpen));
    check(change, "from=open to=half_open");
    assert_eq!(
        circuit.admit(ms(2_005)),
        (Admission::Refuse, None),
        "one trial at a time"
    );
    assert!(circuit.is_resting(ms(2_005)));
    let class = OutcomeClass::InfrastructureFailure;
    let failed = circuit.record(ms(2_010), class, "provider_server_error", None);
    check(failed, "from=half_open to=open code=provider_server_error");
    assert_eq!(
        circuit.admit(ms(6_009)).0,
        Admission::Refuse,
        "twice as long"
    );
    assert_eq!(circuit.admit(ms(6_010)).0, Admission::Trial);
    let healed = circuit.record(ms(6_020), OutcomeClass::Success, "ok", None);
    check(healed, "from=half_open to=closed");
    assert_eq!(circuit.admit(ms(6_021)), (Admission::Pass, None));
    // The old faults are forgiven.
    assert_eq!(
        circuit.record(ms(6_030), OutcomeClass::Timeout, "code", None),
        None
    );
}

/// P27: neither a barge-in nor a bad request marks a provider as down.
#[test]
fn only_the_providers_own_faults_count() {
    let mut circuit = breaker();
    for n in 0..100 {
        assert_eq!(
            circuit.record(ms(n), OutcomeClass::Cancelled, "code", None),
            None
        );
        assert_eq!(
            circuit.record(ms(n), OutcomeClass::Blocked, "code", None),
            None
        );
    }
    assert_eq!(circuit.state(), CircuitState::Closed);
    // A cancelled trial says nothing, so the next call is a trial again.
    for n in 0..5 {
        let _ = circuit.record(ms(n), OutcomeClass::Timeout, "code", None);
    }
    assert_eq!(circuit.admit(ms(5_000)).0, Admission::Trial);
    assert_eq!(
        circuit.record(ms(5_001), OutcomeClass::Cancelled, "code", None),
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
            .record(ms(0), OutcomeClass::Overload, "code", wait)
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
        let _ = circuit.record(ms(n), OutcomeClass::Timeout, "code", None);
    }
    assert_eq!(
        circuit.record(ms(60_000), OutcomeClass::Timeout, "code", None),
        None
    );
}

proptest! {
    /// providers §4, F-059: over any failures, hedges and ticks the call ends, attempts rise from 1 at
    /// each provider in candidate order, none begins with too little time left, none follows a
    /// commit, at most two run at once, and each leaves one record.
    #[test]
    fn a_call_always_ends_within_its_bounds(
        classes in prop::collection::vec(0usize..7, 40),
        durations in prop::collection::vec(1u64..600, 40),
        commit_at in prop::option::of(0usize..12),
        budget in 1u64..4_000,
        hedge_after in prop::option::of(1u64..800),
        refused in prop::bool::ANY,
    ) {
        let all = [
            OutcomeClass::Timeout, OutcomeClass::Overload, OutcomeClass::Blocked,
            OutcomeClass::InfrastructureFailure, OutcomeClass::Cancelled,
        ];
        let mut call = call(
            InvocationPolicy {
                switch_on_blocked: refused,
                hedge_after: hedge_after.map(Duration::from_millis),
                ..policy(&ALL)
            },
            budget,
        );
        let mut now = 0;
        let mut running: BTreeMap<AttemptKey, u64> = BTreeMap::new();
        let mut begun: Vec<(String, u32)> = Vec::new();
        let (mut committed, mut spoke) = (false, false);
        let mut ended = None;
        let mut verdict = call.begin(ms(0), |_| true);
        for (step, (class, took)) in classes.into_iter().zip(durations).enumerate() {
            for order in std::mem::take(&mut verdict.orders) {
                match order {
                    Order::Attempt { key, provider, attempt, at } => {
                        prop_assert!(!committed, "an attempt after a commit");
                        // The budget is to the first chunk.
                        let end = if spoke { 60_000 } else { budget };
                        prop_assert!(at.as_millis() + 100 <= end);
                        begun.push((provider.to_string(), attempt));
                        running.insert(key, at.as_millis());
                    }
                    Order::Stop(key) => prop_assert!(running.remove(&key).is_some()),
                    Order::Finish(outcome) => ended = Some(outcome),
                }
            }
            prop_assert!(running.len() <= 2);
            prop_assert_eq!(ended.is_some(), running.is_empty());
            let Some((key, at)) = running.iter().next_back().map(|(key, at)| (*key, *at)) else {
                break;
            };
            now = now.max(at) + took;
            if class == 5 && call.next_deadline().is_some_and(|due| due > ms(now)) {
                verdict = call.chunk(key, ms(now));
                spoke = true;
                continue;
            }
            if commit_at == Some(step) && running.len() == 1 {
                call.commit();
                committed = true;
            }
            verdict = if let Some(class) = all.get(class) {
                running.remove(&key);
                call.failed(key, ms(now), &fault(*class), |_| true)
            } else {
                now = now.max(call.next_deadline().map_or(0, Monotonic::as_millis));
                call.tick(ms(now), |_| true)
            };
        }
        let Some(outcome) = ended else {
            return Err(TestCaseError::fail("the call never ends"));
        };
        prop_assert_eq!(outcome.attempts.len(), begun.len());
        prop_assert!(begun.len() <= 4);
        let told = outcome.attempts.iter().map(|a| (a.provider.to_string(), a.attempt));
        prop_assert_eq!(told.collect::<Vec<_>>(), begun.clone());
        for name in ["a", "b"] {
            let of = begun.iter().filter(|(provider, _)| provider == name);
            let numbers: Vec<u32> = of.map(|(_, attempt)| *attempt).collect();
            prop_assert_eq!(&numbers, &(1..=numbers.len() as u32).collect::<Vec<_>>());
        }
        if hedge_after.is_none() {
            prop_assert!(begun.is_sorted());
        }
    }
}

/// P14, P6: after words were passed on the same provider is not asked again, but another may go on from there
/// in the time that the turn may be silent; after more than words nobody is.
#[test]
fn words_that_broke_off_are_gone_on_with_by_another() {
    let broke = fault(OutcomeClass::InfrastructureFailure);
    let begun = || {
        let mut call = call(policy(&ALL), 2_000);
        let _ = call.begin(ms(0), |_| true);
        let _ = call.chunk(FIRST, ms(500));
        call.said();
        call
    };
    let mut words = begun();
    assert_eq!(
        told(&words.failed(FIRST, ms(9_000), &broke, |_| true)),
        "b#1@9000"
    );
    assert_eq!(words.next_deadline(), Some(ms(10_000)));
    let verdict = words.failed(SECOND, ms(9_100), &broke, |_| true);
    assert_eq!(
        told(&verdict),
        "infrastructure_failure/provider_transport_error"
    );
    let mut more = begun();
    more.commit();
    let verdict = more.failed(FIRST, ms(9_000), &broke, |_| true);
    assert_eq!(
        told(&verdict),
        "infrastructure_failure/provider_transport_error"
    );
}

/// F-045, F-046: a node's own budget for a call is warned of and told when it is spent, once each, counted
/// from when an answer is owed; what has begun to answer is in time.
#[test]
fn a_nodes_budget_for_a_call_is_told_of() {
    let budget = Some(Duration::from_millis(100));
    let one = || {
        let id = InvocationId::new("pvi/s/t/e/llm").unwrap();
        let rules = policy(&[AdaptiveAction::Degrade]);
        let call = Invocation::new(id, vec![candidate("a")], rules, ms(0), until(2_000));
        let mut call = call.within(budget);
        let _ = call.begin(ms(0), |_| true);
        call
    };
    let mut late = one();
    assert_eq!(late.next_deadline(), Some(ms(80)));
    let warned = late.tick(ms(80), |_| true);
    let reason = "provider_budget";
    assert_eq!(signals(&warned), [(Signal::BudgetWarning, reason)]);
    assert_eq!(late.tick(ms(90), |_| true), Verdict::default());
    let spent = late.tick(ms(100), |_| true);
    assert_eq!(
        signals(&spent),
        [(Signal::BudgetExhausted, reason), (Signal::Degrade, reason)]
    );
    assert!(spent.orders.is_empty(), "there is nobody else");
    assert_eq!(late.next_deadline(), Some(ms(1_000)));

    let mut prompt = one();
    let _ = prompt.chunk(FIRST, ms(70));
    assert_eq!(prompt.next_deadline(), Some(ms(770)));

    let mut listening = one();
    listening.listen();
    assert_eq!(listening.next_deadline(), None);
    listening.heard_out(ms(500));
    assert_eq!(listening.next_deadline(), Some(ms(580)));
}

/// P13: when the turn has gone mute, who is silent is given up for another, who has as long; who speaks is
/// not; and with nobody else the call ends.
#[test]
fn a_mute_turn_gives_up_who_is_silent() {
    let gap = Duration::from_millis(1_500);
    let patient = |name: &str| Candidate {
        patience: PATIENCE.local(&CallPolicy::default()),
        ..candidate(name)
    };
    let begun = |names: &[&str]| {
        let id = InvocationId::new("pvi/s/t/e/tts").unwrap();
        let all = names.iter().map(|name| patient(name)).collect();
        let mut call = Invocation::new(id, all, policy(&ALL), ms(0), until(60_000));
        let _ = call.begin(ms(0), |_| true);
        call
    };
    let mut call = begun(&["a", "b"]);
    assert_eq!(call.unstick(ms(1_000), gap, |_| true), Verdict::default());
    assert_eq!(told(&call.unstick(ms(4_000), gap, |_| true)), "!0 b#1@4000");
    assert_eq!(call.next_deadline(), Some(ms(5_500)));
    let verdict = call.tick(ms(5_500), |_| true);
    assert_eq!(told(&verdict), "!1 timeout/provider_budget_exhausted");
    let mut alone = begun(&["a"]);
    let verdict = alone.unstick(ms(4_000), gap, |_| true);
    assert_eq!(told(&verdict), "!0 timeout/provider_timeout");
    assert_eq!(
        signals(&verdict),
        [(Signal::ProviderError, "a timeout provider_timeout")]
    );
}

/// F-059, P14: a call that nobody is asked for says why.
#[test]
fn a_call_that_does_not_begin_says_why() {
    let mut late = call(policy(&ALL), 99);
    let verdict = late.begin(ms(0), |_| true);
    assert_eq!(told(&verdict), "timeout/provider_budget_exhausted");
    let why = [(Signal::ProviderError, "a timeout provider_budget_exhausted")];
    assert_eq!(signals(&verdict), why);
    let mut resting = call(policy(&ALL), 2_000);
    let verdict = resting.begin(ms(0), |_| false);
    let why = [(Signal::ProviderError, "a overload provider_circuit_open")];
    assert_eq!(signals(&verdict), why);
}

/// P9, F-046: a call that was begun on a guess is held to the turn's deadlines once there is a turn.
#[test]
fn a_call_is_held_to_the_deadlines_of_its_turn() {
    let mut call = call(policy(&[AdaptiveAction::ProviderSwitch]), 60_000);
    assert_eq!(told(&call.begin(ms(0), |_| true)), "a#1@0");
    assert_eq!(call.next_deadline(), Some(ms(1_000)));
    call.hold_to(CallDeadlines {
        end: ms(900),
        share: Some(ms(900)),
        quiet: QUIET,
    });
    assert_eq!(call.next_deadline(), Some(ms(450)), "so that another fits");
    assert_eq!(told(&call.tick(ms(450), |_| true)), "!0 b#1@450");
    assert_eq!(call.next_deadline(), Some(ms(900)), "and nobody after that");
}

/// providers.md §4: what waits in a queue of this machine does not wait for its provider.
#[test]
fn a_provider_is_not_waited_for_while_its_call_waits_here() {
    let mut busy = call(policy(&[]), 60_000);
    assert_eq!(told(&busy.begin(ms(0), |_| true)), "a#1@0");
    busy.queued(FIRST, Duration::from_millis(900));
    assert_eq!(busy.next_deadline(), Some(ms(1_900)));
    assert_eq!(told(&busy.tick(ms(1_000), |_| true)), "");
    let slow = outcome(busy.tick(ms(1_900), |_| true));
    assert_eq!(slow.reason, "provider_timeout", "it had its second");
    let attempt = &slow.attempts[0];
    assert_eq!((attempt.excused, attempt.queued.as_millis()), (false, 900));

    let mut fluent = call(policy(&[]), 60_000);
    assert_eq!(told(&fluent.begin(ms(0), |_| true)), "a#1@0");
    fluent.queued(FIRST, Duration::from_millis(900));
    assert_eq!(told(&fluent.chunk(FIRST, ms(1_500))), "");
    assert_eq!(fluent.next_deadline(), Some(ms(2_200)), "between chunks");
    fluent.queued(FIRST, Duration::from_secs(1));
    assert_eq!(
        fluent.next_deadline(),
        Some(ms(2_300)),
        "100 ms of it since"
    );
}

/// providers.md §4, F-057: the turn's time runs on while a call waits here, but whom that leaves no
/// time is not blamed.
#[test]
fn a_provider_that_was_given_no_time_is_excused() {
    #[track_caller]
    fn check(waits: u64, given_up: u64, reason: &str, excused: bool) {
        let mut late = call(policy(&[]), 2_000);
        late.let_in(ms(waits), until(2_000));
        assert_eq!(
            told(&late.begin(ms(waits), |_| true)),
            format!("a#1@{waits}")
        );
        assert_eq!(late.next_deadline(), Some(ms(given_up)));
        let ended = outcome(late.tick(ms(given_up), |_| true));
        assert_eq!(ended.class, OutcomeClass::Timeout);
        assert_eq!(ended.attempts[0].reason, reason, "after {waits} ms");
        assert_eq!(ended.attempts[0].excused, excused, "after {waits} ms");
    }
    check(0, 1_000, "provider_timeout", false);
    check(1_000, 2_000, "provider_timeout", false);
    check(1_001, 2_000, "provider_budget_exhausted", true);
    check(1_800, 2_000, "provider_budget_exhausted", true);

    // Late for another reason than that, it is the provider's.
    let mut late = call(policy(&[]), 500);
    assert_eq!(told(&late.begin(ms(0), |_| true)), "a#1@0");
    assert!(!outcome(late.tick(ms(500), |_| true)).attempts[0].excused);
    // Given up for another while it waits here.
    let mut shared = call(policy(&[AdaptiveAction::ProviderSwitch]), 2_000);
    shared.hold_to(CallDeadlines {
        end: ms(2_000),
        share: Some(ms(1_000)),
        quiet: QUIET,
    });
    assert_eq!(told(&shared.begin(ms(0), |_| true)), "a#1@0");
    shared.queued(FIRST, Duration::from_millis(400));
    assert_eq!(told(&shared.tick(ms(500), |_| true)), "!0 b#1@500");
    let ended = shared.take_ended();
    assert!(ended[0].excused && !ended[0].was_given_up());
}
