//! What comes for a turn that is over never reopens it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use rspp_controlplane_api::LocalLeases;
use rspp_host::{
    Event, Snapshots,
    node::{NodeContext, Step},
};
use rspp_kernel::plan::SnapshotProvenance;
use rspp_proto::{
    Lane, Payload, SessionId, Speaker, TurnNumber,
    abi::{OutcomeKind, OutcomePhase, Signal},
    spec::{LateEventPolicy, POLICY_SCHEMA, PlanFailurePolicy, PolicyBundle, ProvidersSpec},
};
use rspp_provider_api::scripted::{Conduct, Script, ScriptedEndOfTurn, ScriptedLlm, ScriptedStt};
use rspp_tests::{
    call::{Builder, Cast, Ended, LONG, after_reply, first, says, tone},
    nodes::{Probes, add, custom, get, insert},
    wire::{Opening, Wire},
};
use rspp_timeline::Entry;
use rspp_transport_api::{
    Ingress,
    loopback::{Start, Utterance},
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A user who speaks twice in one breath; the words of the second half are recognised only when the
/// turn has been answered without them.
async fn late_words(policy: LateEventPolicy) -> Ended {
    let late = Script::calls([Conduct::good(), Conduct::good().late(ms(4_500))]);
    let stt = ScriptedStt::new("stt").utterances(["I would like", "to order", "something else"]);
    let cast = Cast {
        stt: Arc::new(stt.script(late)),
        llm: Arc::new(ScriptedLlm::new("llm").answers(["Yes."])),
        end_of_turn: Arc::new(ScriptedEndOfTurn::always("eot", 0.0)),
        ..Cast::default()
    };
    let half = |at| Utterance {
        audio: tone(ms(500)),
        start: Start::At(ms(at)),
    };
    let mut builder = Builder::new(&cast, vec![half(300), half(1_300), half(9_000)]);
    builder.script.reply_timeout = ms(12_000);
    builder
        .pipeline(move |spec| {
            spec.turns.late_events = policy;
            spec.turns.transcript_timeout_ms = 500;
        })
        .hold()
        .await
}

/// What became of late events, as the timeline has it.
fn late_actions(ended: &Ended) -> Vec<String> {
    let payloads = ended.log.payloads().into_iter();
    payloads
        .filter_map(|payload| match payload {
            Payload::Debug(note) if note.message == "late_event_of_closed_turn" => {
                Some(note.fields["action"].clone())
            }
            _something_else => None,
        })
        .collect()
}

/// T11, F-140, lifecycle invariant 9: late words of a closed turn are dropped, noted, or a turn of their
/// own; the turn that they were for stays closed, and the next words are answered in any case.
#[tokio::test(start_paused = true)]
async fn late_words_are_treated_as_the_policy_says() {
    for (policy, action, said) in [
        (
            LateEventPolicy::Drop,
            "drop",
            &["I would like", "something else"][..],
        ),
        (
            LateEventPolicy::Diagnostics,
            "diagnostics",
            &["I would like", "something else"],
        ),
        (
            LateEventPolicy::Repropose,
            "repropose",
            &["I would like", "to order", "something else"],
        ),
    ] {
        let ended = late_words(policy).await;
        let turns = ended.report.turns.iter();
        let heard: Vec<_> = turns.map(|turn| turn.user_text.as_str()).collect();
        assert_eq!(heard, said, "{action}");
        assert!(ended.endings().iter().all(|ending| *ending == "commit"));
        assert_eq!(late_actions(&ended), [action]);
        // The first turn was closed once and for all when the words came.
        let signals = ended.signals_of(1);
        assert_eq!(signals.iter().filter(|s| **s == "close").count(), 1);
        assert_eq!(signals.last(), Some(&"close"));
    }
}

/// P23, F-140: output of a turn that is lost when the next one runs already is counted where it belongs:
/// here what was committed to be heard, and the peer had no room for.
#[tokio::test(start_paused = true)]
async fn output_lost_late_is_its_own_turn_s() {
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "All right."])),
        ..Cast::default()
    };
    let mut opening = Opening::default();
    opening.pipeline.turns.commit_ahead_ms = 200;
    let wire = Wire::open(&cast, opening).await;
    wire.types("tell me a story");
    wire.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(ms(510)).await;
    wire.peer.refuses_one_of(1);
    wire.types("stop");
    wire.until(Signal::TurnOpen, 2).await;
    tokio::time::sleep(ms(150)).await;
    wire.peer.refuses_one_of(0);
    wire.until(Signal::PlaybackCompleted, 1).await;
    let over = wire.end().await;
    assert_eq!(over.endings(), ["cancelled", "commit"]);
    let unplayed = over.report.line.unplayed;
    assert!((5..=10).contains(&unplayed), "{unplayed}");
    let lost = |turn: usize| over.report.turns[turn].dropped[&Lane::Data];
    assert!(lost(0) >= unplayed, "{} of {unplayed}", lost(0));
    assert_eq!(lost(1), 0);
}

/// T3: a placement whose lease has been rotated away does not open a turn: the epoch is stale, nothing
/// is aborted or closed.
#[tokio::test(start_paused = true)]
async fn a_turn_does_not_open_under_a_stale_epoch() {
    let leases = Arc::new(LocalLeases::default());
    let granted = Arc::clone(&leases);
    let call = Builder::new(&Cast::default(), vec![says(first())])
        .configure(move |config| config.leases = granted)
        .start()
        .await;
    let session = SessionId::new("call").unwrap();
    leases.acquire(&session).unwrap();
    let ended = call.end().await;
    assert!(ended.report.turns.is_empty());
    assert_eq!(ended.report.refused, 1);
    assert_eq!(
        ended.log.reasons_of(Signal::StaleEpochReject),
        ["authority_epoch_mismatch"]
    );
    for never in ["turn_open", "abort", "close", "admit"] {
        assert!(!ended.signals().contains(&never), "{never}");
    }
}

/// What was decided about turns that did not open.
fn refusals(ended: &Ended) -> Vec<(OutcomeKind, OutcomePhase, String)> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Outcome(outcome) if outcome.outcome_kind != OutcomeKind::Admit => Some((
                outcome.outcome_kind,
                outcome.phase,
                outcome.reason.to_string(),
            )),
            _something_else => None,
        })
        .collect()
}

/// T2, F-141: without snapshots that can be trusted no turn opens; with others the next one does.
#[tokio::test(start_paused = true)]
async fn a_turn_does_not_open_on_stale_snapshots() {
    let board = Arc::new(Snapshots::default());
    let read = Arc::clone(&board);
    let said = vec![says(first()), says(Start::At(ms(4_000)))];
    let call = Builder::new(&Cast::default(), said)
        .configure(move |config| config.snapshots = read)
        .start()
        .await;
    board.expire();
    tokio::time::sleep(ms(3_000)).await;
    board.publish(SnapshotProvenance::local());
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(2).user_text, "and again");
    assert_eq!(
        refusals(&ended),
        [(
            OutcomeKind::Defer,
            OutcomePhase::PreTurn,
            "snapshot_invalid_or_missing".to_owned()
        )]
    );
    assert!(ended.signals_of(1).is_empty(), "{:?}", ended.signals_of(1));
}

/// T5a, invariant 11: a plan that cannot be built, here because another policy is in force than the
/// session brought, is deferred or rejected as the pipeline says; nothing opens, nothing is aborted.
#[tokio::test(start_paused = true)]
async fn a_turn_whose_plan_cannot_be_built_does_not_open() {
    for (policy, outcome) in [
        (PlanFailurePolicy::Defer, OutcomeKind::Defer),
        (PlanFailurePolicy::Reject, OutcomeKind::Reject),
    ] {
        let board = Arc::new(Snapshots::default());
        let read = Arc::clone(&board);
        let in_force = |policy: &str| SnapshotProvenance {
            policy_resolution_snapshot: policy.to_owned(),
            ..SnapshotProvenance::local()
        };
        board.publish(in_force("policy/1"));
        let said = vec![says(first()), says(Start::At(ms(6_000)))];
        let mut builder = Builder::new(&Cast::default(), said)
            .pipeline(move |spec| spec.turns.plan_failure = policy)
            .configure(move |config| config.snapshots = read);
        builder.policy = Some(PolicyBundle {
            schema: POLICY_SCHEMA.to_owned(),
            policy_resolution_snapshot: "policy/1".to_owned(),
            allowed_adaptive_actions: BTreeSet::new(),
            budgets: None,
            provider_bindings: None,
            edge_buffer_policies: None,
            flow_control: None,
            recording_policy: None,
            node_execution_policies: BTreeMap::new(),
            insert_nodes: Vec::new(),
            providers: ProvidersSpec::default(),
        });
        let call = builder.start().await;
        call.log.until(Signal::Commit, 1).await;
        board.publish(in_force("policy/2"));
        let ended = call.end().await;
        assert_eq!(ended.endings(), ["commit"]);
        let reason = "plan_materialization_failed".to_owned();
        assert_eq!(refusals(&ended), [(outcome, OutcomePhase::PreTurn, reason)]);
        assert!(ended.signals_of(2).is_empty(), "{:?}", ended.signals_of(2));
    }
}

/// F-014: turns are opened and closed by signals that number them within the session, and what a node of
/// a turn knew is gone with the turn.
#[tokio::test(start_paused = true)]
async fn turns_are_numbered_and_nodes_start_anew_with_each() {
    let mut probes = Probes::default();
    let firsts = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&firsts);
    let hooks = probes.add("probe", move |nth, cx: &mut NodeContext, event: Event| {
        if nth == 1 {
            add(&counted);
        }
        cx.forward(event);
        Step::OK
    });
    let said = vec![says(first()), says(after_reply()), says(after_reply())];
    let ended = Builder::new(&Cast::default(), said)
        .pipeline(|spec| insert(spec, "llm", custom("probe"), "segmenter"))
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit", "commit", "commit"]);
    let boundaries: Vec<_> = ended
        .log
        .signals()
        .into_iter()
        .filter(|signal| matches!(signal.signal, Signal::TurnOpen | Signal::Close))
        .map(|signal| (signal.signal, signal.envelope.turn_id))
        .collect();
    let expected: Vec<_> = (1..=3)
        .flat_map(|n| [Signal::TurnOpen, Signal::Close].map(|s| (s, Some(TurnNumber(n).id()))))
        .collect();
    assert_eq!(boundaries, expected);
    assert_eq!(get(&firsts), 3, "each turn's node saw a first event");
    assert_eq!((get(&hooks.init), get(&hooks.stop)), (3, 3));
}

/// F-042: push to talk: with the user's voice still on the line the words are final and the turn is over
/// at once; nothing waits for silence.
#[tokio::test(start_paused = true)]
async fn push_to_talk_gives_final_words_and_the_end_of_the_turn_at_once() {
    let talks = Utterance {
        audio: tone(ms(3_000)),
        start: first(),
    };
    let mut builder = Builder::new(&Cast::default(), vec![talks]);
    builder.script.reply_timeout = ms(6_000);
    let client = builder.client();
    let call = builder.start().await;
    tokio::time::sleep(ms(1_500)).await;
    client.send(Ingress::EndOfUtterance).unwrap();
    tokio::time::sleep(ms(40)).await;
    let texts = call.log.texts(Speaker::User);
    let final_text = texts.iter().find(|text| text.is_final);
    assert_eq!(&*final_text.expect("a final text").text, "hello there");
    assert_eq!(call.log.signals_of(Signal::TurnOpen).len(), 1);
    let ended = call.end().await;
    let turn = ended.turn(1);
    assert_eq!(turn.user_text, "hello there");
    // The utterance ended where the user said so, not where the sound did.
    let over_at = turn.anchors.end_of_turn_ts.expect("it was over");
    let opened = turn.anchors.turn_open_emitted_ts.expect("a turn opened");
    assert!(opened.since(over_at) <= ms(20));
    let sounded_until = ended.user_began()[0] + ms(3_000);
    assert!(over_at.since(ended.report.opened_at) + ms(1_500) < sounded_until);
}
