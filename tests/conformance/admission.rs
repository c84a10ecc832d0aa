//! Limits bind before a session or a turn exists; those who are in carry on.

use std::time::Duration;

use rspp_host::{OpenError, Runtime, SessionRefused};
use rspp_kernel::admission::{Limit, Whose};
use rspp_proto::{
    Payload, SessionId, TenantId,
    abi::{DecisionOutcome, Emitter, OutcomeKind, OutcomePhase, OutcomeScope, Signal},
    spec::{DegradeSpec, LimitsSpec, OverLimit, Quota, QuotasSpec},
};
use rspp_tests::call::{
    Builder, Cast, Ended, Placed, REPLY, after_reply, assert_nothing_left, first, says,
};
use rspp_timeline::{Entry, Options, Recorder};
use rspp_transport_api::loopback::Utterance;

fn quotas(change: impl FnOnce(&mut QuotasSpec)) -> QuotasSpec {
    let mut quotas = QuotasSpec::default();
    change(&mut quotas);
    quotas
}

/// A node that holds tenants to these quotas.
async fn node(cast: &Cast, tenant: QuotasSpec) -> Runtime {
    let mut host = Builder::new(cast, vec![]).configure(move |config| {
        config.limits = LimitsSpec {
            tenant,
            ..LimitsSpec::default()
        };
    });
    host.runtime().await
}

fn call(cast: &Cast, tenant: &str, session: &str, utterances: Vec<Utterance>) -> Builder {
    let mut builder = Builder::new(cast, utterances);
    builder.tenant = TenantId::new(tenant).unwrap();
    builder.session = SessionId::new(session).unwrap();
    builder
}

/// A session that is refused: why, and what was recorded of it.
async fn refused(mut builder: Builder, runtime: &Runtime) -> (SessionRefused, Vec<Entry>) {
    let (recorder, recording) = Recorder::in_memory(Options::default());
    builder.recorder = Some(recorder);
    match builder.open(runtime).await {
        Err(OpenError::Refused(refused)) => (*refused, recording.entries()),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the session was let in"),
    }
}

fn outcomes(entries: &[Entry]) -> Vec<DecisionOutcome> {
    let entries = entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Outcome(outcome) => Some((**outcome).clone()),
            _not_a_decision => None,
        })
        .collect()
}

/// Nothing of a turn was ever said (F1).
#[track_caller]
fn no_turn(entries: &[Entry]) {
    let signals: Vec<_> = entries.iter().filter_map(Entry::signal).collect();
    for never in [Signal::TurnOpen, Signal::Abort, Signal::Close] {
        assert!(!signals.contains(&never), "{signals:?}");
    }
}

/// The fields of the notes about capacity, in order.
fn notes(ended: &Ended) -> Vec<std::collections::BTreeMap<String, String>> {
    let payloads = ended.log.payloads().into_iter();
    payloads
        .filter_map(|payload| match payload {
            Payload::Debug(note) if note.message == "capacity_control" => Some(note.fields),
            _something_else => None,
        })
        .map(|fields| fields.into_iter().collect())
        .collect()
}

/// F-049, F-050, F1: beyond a tenant's sessions newcomers are told to come back, with signal and
/// outcome of RK-25 in their own recording and no trace of a turn; those inside and other tenants
/// carry on, and the counts are the tenant's.
#[tokio::test(start_paused = true)]
async fn newcomers_beyond_a_tenant_s_sessions_are_told_so_and_others_carry_on() {
    for (over, kind, signal, reason) in [
        (
            OverLimit::Reject,
            OutcomeKind::Reject,
            Signal::Reject,
            "admission_capacity_reject",
        ),
        (
            OverLimit::Defer,
            OutcomeKind::Defer,
            Signal::Defer,
            "admission_capacity_defer",
        ),
    ] {
        let cast = Cast::default();
        let limits = quotas(|quotas| quotas.sessions = Some(Quota::at(1).then(over)));
        let runtime = node(&cast, limits).await;
        let inside = call(&cast, "acme", "inside", vec![says(first())]);
        let inside = inside.open(&runtime).await.expect("there is room");
        let one_more = call(&cast, "acme", "one-more", vec![says(first())]);
        let (refused, entries) = refused(one_more, &runtime).await;
        assert_eq!(refused.outcome.outcome_kind, kind);
        assert_eq!(refused.outcome.phase, OutcomePhase::PreTurn);
        assert_eq!(refused.outcome.scope, OutcomeScope::Tenant);
        assert_eq!(refused.outcome.emitted_by, Emitter::LocalAdmission);
        assert_eq!(refused.outcome.reason.as_str(), reason);
        let cause = refused.cause.unwrap();
        assert_eq!((cause.whose, cause.limit), (Whose::Tenant, Limit::Sessions));
        assert_eq!(refused.retry_after.is_some(), over == OverLimit::Defer);
        assert_eq!(outcomes(&entries), [refused.outcome]);
        let said: Vec<_> = entries.iter().filter_map(Entry::signal).collect();
        assert_eq!(said, [signal]);
        no_turn(&entries);

        let other = call(&cast, "other", "other", vec![says(first())]);
        let other = other.open(&runtime).await.expect("another tenant");
        for ended in [inside.end().await, other.end().await] {
            assert_eq!(ended.endings(), ["commit"]);
            let decided = outcomes(&ended.entries);
            assert_eq!(decided[0].outcome_kind, OutcomeKind::Admit);
            assert_eq!(decided[0].scope, OutcomeScope::Session);
        }
        let report = runtime.admission();
        let acme = report.tenant("acme").sessions;
        assert_eq!((acme.admitted, acme.rejected + acme.deferred), (1, 1));
        assert_eq!(report.tenant("other").sessions.admitted, 1);
        assert_eq!(report.tenant("other").sessions.rejected, 0);
        assert_nothing_left(&runtime);
    }
}

/// F-049: where the policy is to throttle, newcomers wait for whoever leaves, but not for ever, and
/// only so many of them.
#[tokio::test(start_paused = true)]
async fn throttled_newcomers_wait_for_room() {
    let cast = Cast::default();
    let mut host = Builder::new(&cast, vec![]).configure(|config| {
        config.limits.node.sessions = Some(Quota::at(1).then(OverLimit::Throttle));
        config.limits.max_wait_ms = 60_000;
        config.limits.max_waiting = 1;
    });
    let runtime = host.runtime().await;
    let open = |name: &str| call(&cast, name, name, vec![says(first())]).open(&runtime);
    let inside = open("inside").await.expect("there is room");
    let began = tokio::time::Instant::now();
    let (waited, refused, left) = tokio::join!(
        async {
            let placed: Placed = open("waiting").await.expect("there is room later");
            (began.elapsed(), placed)
        },
        async {
            // Behind the one that waits already.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let refused = open("waiting").await.err();
            refused.expect("no room to wait in either")
        },
        async {
            let ended = inside.end().await;
            (began.elapsed(), ended)
        },
    );
    assert!(matches!(refused, OpenError::Refused(_)), "{refused}");
    assert_eq!(left.1.endings(), ["commit"]);
    assert!(waited.0 > Duration::from_secs(1), "{:?}", waited.0);
    assert!(waited.0 <= left.0, "let in when the other left");
    let (placed, began) = (waited.1, tokio::time::Instant::now());
    let late = open("late");
    let (late, ended) = tokio::join!(late, placed.end());
    assert!(late.is_ok(), "after {:?}", began.elapsed());
    assert_eq!(ended.endings(), ["commit"]);
    late.expect("just looked at").end().await;
    assert!(runtime.admission().node.sessions.throttled >= 2);
    assert_nothing_left(&runtime);
}

/// F-049: a wait in vain ends with an answer.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_ever() {
    let cast = Cast::default();
    let mut host = Builder::new(&cast, vec![]).configure(|config| {
        config.limits.node.sessions = Some(Quota::at(0).then(OverLimit::Throttle));
        config.limits.max_wait_ms = 2_000;
    });
    let runtime = host.runtime().await;
    let began = tokio::time::Instant::now();
    let (why, entries) = refused(call(&cast, "a", "a", vec![]), &runtime).await;
    assert_eq!(why.outcome.outcome_kind, OutcomeKind::Defer);
    assert!(began.elapsed() >= Duration::from_millis(1_700));
    assert!(began.elapsed() <= Duration::from_millis(2_500));
    no_turn(&entries);
}

/// F-050: sessions a minute bind, and say when to come back; then there is room again.
#[tokio::test(start_paused = true)]
async fn sessions_a_minute_bind_and_say_when_to_come_back() {
    let cast = Cast::default();
    let limits = quotas(|quotas| {
        quotas.sessions_per_minute = Some(Quota::at(2).then(OverLimit::Defer));
    });
    let runtime = node(&cast, limits).await;
    for name in ["one", "two"] {
        let placed = call(&cast, "acme", name, vec![]).open(&runtime).await;
        let placed = placed.expect("within the rate");
        placed.session.drain();
        placed.end().await;
    }
    let (why, _) = refused(call(&cast, "acme", "three", vec![]), &runtime).await;
    assert_eq!(why.cause.unwrap().limit, Limit::SessionsPerMinute);
    let wait = why.retry_after.expect("it is only for now");
    assert!(wait <= Duration::from_secs(30), "{wait:?}");
    tokio::time::sleep(wait).await;
    let later = call(&cast, "acme", "four", vec![]).open(&runtime).await;
    later.expect("it was worth waiting").session.drain();
}

async fn held(utterances: usize, limits: QuotasSpec) -> (Ended, Runtime) {
    held_with(utterances, limits, None).await
}

/// A call of so many utterances under these quotas.
async fn held_with(
    utterances: usize,
    limits: QuotasSpec,
    degrade: Option<DegradeSpec>,
) -> (Ended, Runtime) {
    let cast = Cast::default();
    let runtime = node(&cast, limits).await;
    let mut said = vec![says(first())];
    said.extend((1..utterances).map(|_| says(after_reply())));
    let mut builder = call(&cast, "acme", "call", said).pipeline(|spec| spec.degrade = degrade);
    builder.script.reply_timeout = Duration::from_secs(20);
    let placed = builder.open(&runtime).await.expect("there is room");
    (placed.end().await, runtime)
}

/// F-050, F1, T2: turns a minute bind at each turn, before it exists, and are counted by tenant.
#[tokio::test(start_paused = true)]
async fn turns_a_minute_bind_before_a_turn_exists() {
    for (over, signal, reason) in [
        (
            OverLimit::Reject,
            Signal::Reject,
            "admission_capacity_reject",
        ),
        (OverLimit::Defer, Signal::Defer, "admission_capacity_defer"),
    ] {
        let limits = quotas(|q| q.turns_per_minute = Some(Quota::at(1).then(over)));
        let (ended, runtime) = held(2, limits).await;
        assert_eq!(ended.endings(), ["commit"], "the first turn was let in");
        assert_eq!(ended.report.refused, 1);
        assert_eq!(ended.log.reasons_of(signal), [reason]);
        let last = outcomes(&ended.entries).pop().unwrap();
        assert_eq!(last.phase, OutcomePhase::PreTurn);
        assert_eq!(last.scope, OutcomeScope::Tenant);
        assert_eq!(last.turn_id, None);
        let notes = notes(&ended);
        assert_eq!(notes[0]["limit"], "turns_per_minute");
        assert_eq!(notes[0]["whose"], "tenant");
        assert_eq!(
            notes[0].contains_key("retry_after_ms"),
            over == OverLimit::Defer
        );
        let turns = runtime.admission().tenant("acme").turns;
        assert_eq!((turns.admitted, turns.rejected + turns.deferred), (1, 1));
    }
}

/// F-050: tokens that a model has read and written hold the tenant's next turn back.
#[tokio::test(start_paused = true)]
async fn tokens_a_minute_bind_at_the_next_turn() {
    let limits = quotas(|q| q.tokens_per_minute = Some(Quota::at(8).then(OverLimit::Defer)));
    let (ended, runtime) = held(2, limits).await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(
        ended.log.reasons_of(Signal::Defer),
        ["admission_capacity_defer"]
    );
    assert_eq!(notes(&ended)[0]["limit"], "tokens_per_minute");
    let spent = runtime.admission().tenant("acme").tokens;
    let written = REPLY.split_whitespace().count() as u64;
    assert!(spent > 8 && spent >= written, "{spent}");
}

/// F-050: where the policy is to throttle, what was said is answered once there is room.
#[tokio::test(start_paused = true)]
async fn throttled_words_are_answered_later() {
    // A question and its reply are nine: the next has to wait for a minute.
    let strict = quotas(|q| q.tokens_per_minute = Some(Quota::at(5).then(OverLimit::Throttle)));
    let cast = Cast::default();
    let mut host = Builder::new(&cast, vec![]).configure(|config| {
        config.limits.tenant = strict;
        config.limits.max_wait_ms = 180_000;
    });
    let runtime = host.runtime().await;
    let said = vec![says(first()), says(after_reply())];
    let mut builder = call(&cast, "acme", "call", said).pipeline(|spec| spec.instructions = None);
    builder.script.reply_timeout = Duration::from_mins(4);
    let placed = builder.open(&runtime).await.expect("there is room");
    let ended = placed.end().await;
    assert_eq!(ended.endings(), ["commit"; 2]);
    let last = ended.report.turns.last().expect("just counted");
    assert_eq!(last.user_text, "and again");
    let defers = ended.log.reasons_of(Signal::Defer);
    assert!(!defers.is_empty());
    assert!(defers.iter().all(|why| why == "admission_capacity_defer"));
    let heard = ended.heard();
    let gap = heard[1].began.saturating_sub(heard[0].ended);
    assert!(gap > Duration::from_secs(30), "it had to wait: {gap:?}");
}

/// F-050: where the policy is to degrade, the turn is served with less, and says so.
#[tokio::test(start_paused = true)]
async fn a_turn_beyond_its_quota_is_served_with_less() {
    let limits = || quotas(|q| q.turns_per_minute = Some(Quota::at(1).then(OverLimit::Degrade)));
    let less = DegradeSpec {
        max_tokens: Some(2),
        ..DegradeSpec::default()
    };
    let (ended, runtime) = held_with(2, limits(), Some(less)).await;
    assert_eq!(ended.endings(), ["commit"; 2]);
    assert_eq!(ended.turn(1).agent_text_played, REPLY);
    assert_eq!(
        ended.turn(2).agent_text_played.split_whitespace().count(),
        2
    );
    assert_eq!(
        ended.log.reasons_of(Signal::Degrade),
        ["quota_degrade_posture"]
    );
    assert_eq!(runtime.admission().tenant("acme").turns.degraded, 1);
    // Without a posture there is nothing to serve it less of.
    let (ended, _) = held_with(2, limits(), None).await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(
        ended.log.reasons_of(Signal::Defer),
        ["admission_capacity_defer"]
    );
}

/// F1: a session that nobody waits for gives its place back too; so does one whose lease is refused.
#[tokio::test(start_paused = true)]
async fn places_are_given_back_however_a_session_ends() {
    let cast = Cast::default();
    let limits = quotas(|q| q.sessions = Some(Quota::at(1)));
    let runtime = node(&cast, limits).await;
    for _ in 0..3 {
        let call: Placed = call(&cast, "acme", "call", vec![says(first())])
            .open(&runtime)
            .await
            .expect("the place was given back");
        tokio::time::sleep(Duration::from_secs(2)).await;
        call.session.revoke();
        let Placed { session, .. } = call;
        session.wait().await.expect("a report");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_nothing_left(&runtime);
    assert_eq!(runtime.admission().node.open_turns, 0);
}

/// A tenant's decisions of a kind, as they are measured.
fn measured(runtime: &Runtime, tenant: &str, subject: &str, decision: &str) -> u64 {
    let wanted = [
        ("tenant_id", tenant),
        ("subject", subject),
        ("decision", decision),
    ];
    let samples = runtime.admission().samples();
    let found = samples.iter().find(|sample| {
        sample.name == "admission_decisions_total"
            && sample.labels.len() == wanted.len()
            && wanted
                .iter()
                .all(|(label, value)| sample.labels.get(*label).is_some_and(|it| it == value))
    });
    found.map_or(0, |sample| sample.value as u64)
}

/// F-050: each quota of a tenant, on sessions and turns, at once and a minute, and on tokens, binds where a
/// session opens or at a turn, by each action; every time the tenant's own metric says so, and nobody
/// else's moves.
#[tokio::test(start_paused = true)]
async fn every_quota_acts_and_is_measured_by_tenant() {
    type Set = fn(&mut QuotasSpec, Quota);
    let one = |limit: u64| move |over| Quota::at(limit).then(over);
    let sessions: [(&str, Set); 2] = [
        ("sessions", |quotas, one| quotas.sessions = Some(one)),
        ("sessions a minute", |quotas, one| {
            quotas.sessions_per_minute = Some(one);
        }),
    ];
    let turns: [(&str, u64, Set); 3] = [
        ("turns", 0, |quotas, one| quotas.turns = Some(one)),
        ("turns a minute", 1, |quotas, one| {
            quotas.turns_per_minute = Some(one);
        }),
        ("tokens a minute", 5, |quotas, one| {
            quotas.tokens_per_minute = Some(one);
        }),
    ];
    for (over, decision) in [
        (OverLimit::Reject, "rejected"),
        (OverLimit::Defer, "deferred"),
        (OverLimit::Throttle, "throttled"),
        (OverLimit::Degrade, "degraded"),
    ] {
        let less = Some(DegradeSpec {
            max_tokens: Some(2),
            ..DegradeSpec::default()
        });
        for (name, set) in sessions {
            let cast = Cast::default();
            let mut host = Builder::new(&cast, vec![]).configure(move |config| {
                let own = quotas(|quotas| set(quotas, one(1)(over)));
                config
                    .limits
                    .tenants
                    .insert(TenantId::new("acme").unwrap(), own);
                config.limits.max_wait_ms = 90_000;
            });
            let runtime = host.runtime().await;
            let less = less.clone();
            let placing = |tenant: &str, session: &str| {
                let less = less.clone();
                call(&cast, tenant, session, vec![]).pipeline(move |spec| spec.degrade = less)
            };
            let mut inside = Vec::new();
            for (tenant, session) in [("acme", "a"), ("acme", "b"), ("other", "c"), ("other", "d")]
            {
                match placing(tenant, session).open(&runtime).await {
                    Ok(placed) => inside.push(placed),
                    Err(OpenError::Refused(_)) => assert_eq!(session, "b", "{name}"),
                    Err(other) => panic!("{other}"),
                }
            }
            // Who is kept waiting is let in when there is room.
            let let_in = match over {
                OverLimit::Throttle | OverLimit::Degrade => 4,
                OverLimit::Reject | OverLimit::Defer => 3,
            };
            assert_eq!(inside.len(), let_in, "{name} {decision}");
            assert!(
                measured(&runtime, "acme", "session", decision) >= 1,
                "{name} {decision}"
            );
            assert_eq!(
                measured(&runtime, "other", "session", "admitted"),
                2,
                "{name}"
            );
            assert_eq!(
                measured(&runtime, "other", "session", decision),
                0,
                "{name}"
            );
            for placed in inside {
                placed.session.drain();
                let _ended = placed.end().await;
            }
        }
        for (name, most, set) in turns {
            let limits = quotas(|quotas| set(quotas, one(most)(over)));
            let cast = Cast::default();
            let mut host = Builder::new(&cast, vec![]).configure(move |config| {
                config.limits.tenant = limits;
                config.limits.max_wait_ms = 180_000;
            });
            let runtime = host.runtime().await;
            let less = less.clone();
            let said = vec![says(first()), says(after_reply())];
            let mut two = call(&cast, "acme", "two", said).pipeline(|spec| {
                spec.degrade = less;
                spec.instructions = None;
            });
            two.script.reply_timeout = Duration::from_secs(20);
            let ended = two.open(&runtime).await.expect("there is room").end().await;
            assert!(
                measured(&runtime, "acme", "turn", decision) >= 1,
                "{name} {decision}"
            );
            let served = if over == OverLimit::Degrade {
                2
            } else {
                usize::from(most > 0)
            };
            assert_eq!(ended.endings().len(), served, "{name} {decision}");
            let open = measured(&runtime, "acme", "turn", "admitted");
            assert_eq!(open, served as u64, "{name} {decision}");
            let tokens = runtime.admission().samples();
            let tokens = tokens.iter().find(|it| it.name == "tenant_tokens_total");
            assert_eq!(tokens.is_some(), served > 0, "{name} {decision}");
        }
    }
}
