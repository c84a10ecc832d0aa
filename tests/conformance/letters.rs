//! Events that a node cannot deal with.

use std::{
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use rspp_host::{
    Event, Notice,
    node::{NodeContext, NodeError, Step},
};
use rspp_proto::{
    Payload,
    abi::{PayloadClass, Signal},
    spec::{
        AudioRedaction, ErrorAction, NodeSpec, PiiPattern, RecordingLevel, RecordingPolicy,
        RedactSpec, ReplayMode,
    },
};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Cast, Ended, first, says},
    nodes::{Hooks, Probes, custom, edge, forward, get, insert},
};
use rspp_timeline::{Entry, RedactionAction};
use serde_json::json;

fn forgiving() -> NodeSpec {
    NodeSpec {
        on_error: ErrorAction::DeadLetter,
        ..custom("probe")
    }
}

/// A call of one turn in which the probe fails on the model's third word in one way or another.
async fn poisoned(
    poison: impl for<'a> Fn(&'a mut NodeContext) -> Step<'a> + Send + Sync + 'static,
) -> (Ended, Arc<Hooks>) {
    let mut probes = Probes::default();
    let seen = AtomicU32::new(0);
    let hooks = probes.add("probe", move |nth, cx: &mut NodeContext, event: Event| {
        if rspp_tests::nodes::add(&seen) == 3 {
            return poison(cx);
        }
        forward(nth, cx, event)
    });
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| insert(spec, "llm", forgiving(), "segmenter"))
        .configure(probes.install())
        .hold()
        .await;
    (ended, hooks)
}

#[track_caller]
fn check_letter(ended: &Ended, reason: &str) {
    // The node went on: only the poison is missing.
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text, "Good day you. How can I help?");

    let [letter] = &ended.report.dead_letters[..] else {
        panic!("{:#?}", ended.report.dead_letters);
    };
    assert_eq!(letter.node.as_str(), "probe");
    assert!(letter.reason.contains(reason), "{}", letter.reason);
    assert_eq!(
        letter.turn_id.as_ref().map(ToString::to_string),
        Some("turn-0001".to_owned())
    );
    // What the recording level hides stays hidden: at L0, words are hashed.
    let redacted = letter
        .redacted
        .as_ref()
        .expect("words are not for everybody");
    assert_eq!(redacted.action, RedactionAction::Hash);
    let shown = format!("{:?}", letter.event.payload);
    assert!(!shown.contains("to "), "{shown}");

    // The timeline holds the event under the same id, and a subscriber was told it too.
    let in_timeline = ended.entries.iter().any(|entry| match entry {
        Entry::Event(event) => event.record.envelope.event_id == letter.event_id,
        _something_else => false,
    });
    assert!(in_timeline, "{:#?}", ended.entries);
    let told = ended.log.notices().into_iter().any(|notice| match notice {
        Notice::Event(event) => {
            event.envelope.causal_parent_id.as_ref() == Some(&letter.event_id)
                && matches!(&event.payload, Some(Payload::Error(note)) if note.message.contains(reason))
        }
        Notice::Signal(_) | Notice::State(_) | Notice::Turn(_) | Notice::Foreign(_) => false,
    });
    assert!(told);
    assert_eq!(ended.log.reasons_of(Signal::Degrade), ["dead_letter"]);
    assert_eq!(ended.report.degraded[0].reason, "dead_letter");
}

/// F-132: an event that a node fails on goes to the dead-letter stream with node, reason and id, and
/// the node goes on.
#[tokio::test(start_paused = true)]
async fn a_poison_event_goes_to_the_dead_letter_stream_and_the_node_goes_on() {
    let (ended, hooks) = poisoned(|_cx| Step::Done(Err(NodeError::new("cannot digest it")))).await;
    check_letter(&ended, "cannot digest it");
    assert_eq!(get(&hooks.init), 1);
}

/// F-132: however it fails: also late, and also by a panic, after which the node is made anew.
#[tokio::test(start_paused = true)]
async fn a_poison_event_may_make_its_node_panic() {
    let (ended, hooks) = poisoned(|_cx| panic!("a planted fault")).await;
    check_letter(&ended, "panicked: a planted fault");
    assert_eq!([get(&hooks.init), get(&hooks.stop)], [2, 1]);
    let (ended, hooks) = poisoned(|_cx| {
        Step::Wait(Box::pin(async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            panic!("a late fault")
        }))
    })
    .await;
    check_letter(&ended, "panicked: a late fault");
    assert_eq!(get(&hooks.init), 2);
    let (ended, _) = poisoned(|_cx| {
        Step::Wait(Box::pin(async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Err(NodeError::new("a late error"))
        }))
    })
    .await;
    check_letter(&ended, "a late error");
}

/// F-132: without the policy, the same event ends its turn.
#[tokio::test(start_paused = true)]
async fn without_a_dead_letter_stream_a_poison_event_ends_its_turn() {
    let mut probes = Probes::default();
    probes.add("probe", |nth, cx: &mut NodeContext, event: Event| {
        if nth == 3 {
            return Step::Done(Err(NodeError::new("cannot digest it")));
        }
        forward(nth, cx, event)
    });
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| insert(spec, "llm", custom("probe"), "segmenter"))
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["node_timeout_or_failure"]);
    assert!(ended.report.dead_letters.is_empty());
}

/// F-132: a node that can deal with nothing fills neither the report nor the timeline: the stream is
/// bounded, and what is beyond it is counted.
#[tokio::test(start_paused = true)]
async fn the_dead_letter_stream_is_bounded() {
    let mut probes = Probes::default();
    let hooks = probes.add("probe", |_nth, _cx: &mut NodeContext, _event: Event| {
        Step::Done(Err(NodeError::new("cannot digest it")))
    });
    let mut builder = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| insert(spec, "ingress", forgiving(), "stt"))
        .configure(probes.install());
    builder.script.reply_timeout = Duration::from_secs(2);
    let ended = builder.hold().await;
    assert!(get(&hooks.events) > 100, "a frame every 20 ms");
    assert_eq!(ended.report.dead_letters.len(), 64);
    assert_eq!(ended.report.dead_lettered, u64::from(get(&hooks.events)));
    let degrades = ended
        .signals()
        .into_iter()
        .filter(|name| *name == "degrade");
    assert_eq!(degrades.count(), 1, "it is said once");
    // Sound is dropped at L0, whatever became of it.
    let first = &ended.report.dead_letters[0];
    assert!(first.event.payload.is_none(), "{first:?}");
}

/// A call recorded whole but for what `redact` takes away, two nodes of which can deal with nothing: one that
/// hears the user, one that reads the agent's text.
async fn undigested(redact: RedactSpec, full_capture: &[PayloadClass]) -> Ended {
    let mut probes = Probes::default();
    probes.add("probe", |_nth, _cx: &mut NodeContext, _event: Event| {
        Step::Done(Err(NodeError::new("cannot digest it")))
    });
    let llm = ScriptedLlm::new("llm").answers(["Your card is 4111 1111 1111 1111. Is it?"]);
    let cast = Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    };
    let policy = RecordingPolicy {
        recording_level: RecordingLevel::L2,
        allowed_replay_modes: [ReplayMode::ReplayDecisions].into(),
        full_capture: full_capture.iter().copied().collect(),
        redact,
    };
    let mut builder = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| {
            let named = |id: &str| NodeSpec {
                id: id.parse().unwrap(),
                ..forgiving()
            };
            spec.nodes.extend([named("reader"), named("listener")]);
            for (from, to, carries) in [
                ("segmenter", "reader", "text"),
                ("tts", "listener", "audio"),
            ] {
                let tap = json!({ "from": from, "to": to, "carries": carries });
                spec.edges.push(edge(tap));
            }
        })
        .configure(probes.install());
    builder.settings.session.recording_policy = Some(policy);
    builder.hold().await
}

/// F-073, F-132: the plan's redaction holds for dead letters as for all that is recorded: audio that it masks
/// leaves its length and not even a hash, a text loses what is personal in it and nothing else. The letters are
/// the same in number, order, size and time.
#[tokio::test(start_paused = true)]
async fn dead_letters_hold_no_more_than_the_plan_lets_be_recorded() {
    let masks = RedactSpec {
        patterns: [PiiPattern::Card].into(),
        audio: AudioRedaction::Mask,
        ..RedactSpec::default()
    };
    let classes = [PayloadClass::TextRaw];
    let plain = undigested(RedactSpec::default(), &classes).await;
    let masked = undigested(masks, &classes).await;
    let shape = |ended: &Ended| -> Vec<_> {
        let letters = ended.report.dead_letters.iter();
        letters
            .map(|letter| {
                let bytes = letter.redacted.as_ref().map(|it| it.bytes);
                let is_audio = letter.event.envelope.payload_class == PayloadClass::AudioRaw;
                (letter.node.clone(), letter.at, bytes.filter(|_| is_audio))
            })
            .collect()
    };
    assert_eq!(shape(&plain), shape(&masked));
    let of = |ended: &Ended, node: &str| -> Vec<_> {
        let letters = ended.report.dead_letters.iter();
        let letters = letters.filter(|letter| letter.node.as_str() == node);
        letters.cloned().collect()
    };
    let mut sounds = 0;
    for (plain, masked) in of(&plain, "listener").iter().zip(of(&masked, "listener")) {
        let Some(taken) = &plain.redacted else {
            continue; // The end of the stream says nothing.
        };
        assert_eq!(taken.action, RedactionAction::Hash);
        assert!(taken.sha256.is_some());
        let redacted = masked.redacted.as_ref().expect("it was masked");
        assert_eq!(redacted.action, RedactionAction::Mask);
        assert_eq!(
            (&redacted.sha256, redacted.duration_us),
            (&None, taken.duration_us)
        );
        let Some(Payload::AudioChunk(silence)) = &masked.event.payload else {
            panic!("{masked:?}");
        };
        assert!(silence.data.iter().all(|byte| *byte == 0));
        sounds += 1;
    }
    assert!(sounds > 10, "{sounds}");
    let texts = |ended: &Ended| format!("{:?}", of(ended, "reader"));
    assert!(texts(&plain).contains("4111 1111"));
    assert!(!texts(&masked).contains("4111"));
    assert!(texts(&masked).contains("Your card is **** **** **** ****."));
}
