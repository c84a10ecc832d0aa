//! Sessions do not notice each other.

use std::sync::{Arc, atomic::AtomicU32};

use rspp_host::{
    Event,
    node::{NodeContext, Step},
};
use rspp_kernel::CancelReason;
use rspp_proto::{PipelineVersion, ProviderId, SessionId, abi::Signal, spec::Modality};
use rspp_provider_api::scripted::{Conduct, Script, ScriptedLlm, ScriptedStt, ScriptedTts};
use rspp_tests::{
    call::{
        Builder, Cast, LONG, Placed, after_reply, assert_nothing_left, first, over_reply, says,
    },
    nodes::{Probes, add, custom, insert},
};
use rspp_timeline::{Anchor, Entry};
use std::time::Duration;

const SESSIONS: usize = 50;

fn name(n: usize) -> String {
    format!("call-{n:02}")
}

/// A cast that says to each session what that session said.
fn echoes() -> Cast {
    let stt = ScriptedStt::new("stt")
        .understand(|heard| format!("I am {} {}", heard.session, heard.number));
    Cast {
        stt: Arc::new(stt),
        llm: Arc::new(ScriptedLlm::new("llm")),
        ..Cast::default()
    }
}

/// Nothing that was recorded of a session speaks of another.
#[track_caller]
fn assert_speaks_of_itself(entries: &[Entry], n: usize) {
    for entry in entries {
        if let Some(envelope) = entry.envelope() {
            assert_eq!(envelope.session_id.as_str(), name(n));
        }
        let shown = format!("{entry:?}");
        for part in shown.split("call-").skip(1) {
            assert!(part.starts_with(&name(n)["call-".len()..]), "{shown}");
        }
    }
}

/// F-016, F-034, F-114: fifty calls at once, on two versions of a pipeline, each with its own words; one of
/// them is cancelled, which the others do not notice.
#[tokio::test(start_paused = true)]
async fn fifty_calls_at_once_do_not_notice_each_other() {
    let cast = echoes();
    let mut host = Builder::new(&cast, vec![]);
    let runtime = host.runtime().await;
    let mut calls: Vec<Placed> = Vec::new();
    for n in 0..SESSIONS {
        let mut builder = Builder::new(&cast, vec![says(first())]);
        builder.session = SessionId::new(name(n)).unwrap();
        if n % 2 == 1 {
            builder.pipeline.version = PipelineVersion::new("simple-2").unwrap();
        }
        calls.push(builder.open(&runtime).await.expect("the session opens"));
    }
    assert_eq!(runtime.sessions(), SESSIONS);
    calls[7].log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    calls[7].session.cancel(CancelReason::UserCancel).await;
    for (n, call) in calls.into_iter().enumerate() {
        let ended = call.end().await;
        let expected = if n == 7 { "cancelled" } else { "commit" };
        assert_eq!(ended.endings(), [expected], "{}", name(n));
        assert_eq!(ended.turn(1).user_text, format!("I am {} 1", name(n)));
        assert!(ended.turn(1).agent_text.contains(&name(n)));
        let version = if n % 2 == 1 { "simple-2" } else { "simple-1" };
        assert_eq!(ended.report.pipeline_version.as_str(), version);
        assert_speaks_of_itself(&ended.entries, n);
        for envelope in ended.entries.iter().filter_map(Entry::envelope) {
            assert_eq!(envelope.pipeline_version.as_str(), version);
        }
    }
    assert_nothing_left(&runtime);
    assert!(cast.is_idle());
}

/// F-134: a node that panics in one call is that call's trouble.
#[tokio::test(start_paused = true)]
async fn a_panic_in_one_call_is_not_heard_in_another() {
    let cast = echoes();
    let mut probes = Probes::default();
    let seen = AtomicU32::new(0);
    probes.add("probe", move |_nth, cx: &mut NodeContext, event: Event| {
        assert_ne!(add(&seen), 2, "a planted fault");
        cx.forward(event);
        Step::OK
    });
    let mut host = Builder::new(&cast, vec![]).configure(probes.install());
    let runtime = host.runtime().await;
    let mut calls = Vec::new();
    for n in 0..4 {
        let mut builder = Builder::new(&cast, vec![says(first())]);
        builder.session = SessionId::new(name(n)).unwrap();
        if n == 2 {
            builder = builder.pipeline(|spec| insert(spec, "llm", custom("probe"), "segmenter"));
        }
        calls.push(builder.open(&runtime).await.expect("the session opens"));
    }
    for (n, call) in calls.into_iter().enumerate() {
        let ended = call.end().await;
        let expected = if n == 2 {
            "node_timeout_or_failure"
        } else {
            "commit"
        };
        assert_eq!(ended.endings(), [expected], "{}", name(n));
    }
    assert_nothing_left(&runtime);
}

/// P30: where the time of each turn went is told in segments that follow each other without a gap and add
/// up to the whole, in many calls at once as in one; each is its own call's, a slow model in one call is
/// a slow segment there and nowhere else, and synthesis takes the time that it takes.
#[tokio::test(start_paused = true)]
async fn latencies_of_many_calls_add_up_each_for_itself() {
    const CALLS: usize = 12;
    let late = |n: usize| Duration::from_millis(40 * n as u64);
    let cast = Cast {
        tts: Arc::new(ScriptedTts::new("tts").real_time_factor(0.2)),
        ..Cast::default()
    };
    let mut host = Builder::new(&cast, vec![]);
    for n in 0..CALLS {
        let script = Script::always(Conduct::good().late(late(n)));
        let model = ScriptedLlm::new(&format!("llm-{n:02}")).answers([LONG]);
        host.providers.add_llm(Arc::new(model.script(script)));
    }
    let runtime = host.runtime().await;
    let mut placed: Vec<Placed> = Vec::new();
    for n in 0..CALLS {
        let said = vec![says(first()), says(over_reply(900)), says(after_reply())];
        let mut builder = Builder::new(&cast, said);
        builder.session = SessionId::new(name(n)).unwrap();
        let model = ProviderId::new(format!("llm-{n:02}")).unwrap();
        let bound = &mut builder.settings.defaults.provider_bindings;
        bound.insert(Modality::Llm, vec![model]);
        placed.push(builder.open(&runtime).await.expect("there is room"));
    }
    let all = futures::future::join_all(placed.into_iter().map(Placed::end)).await;
    for (n, ended) in all.iter().enumerate() {
        assert_eq!(ended.endings(), ["cancelled", "commit", "commit"], "{n}");
        assert_speaks_of_itself(&ended.entries, n);
        for turn in &ended.report.turns {
            let waterfall = turn.anchors.waterfall();
            let segments = &waterfall.segments;
            assert!(segments.len() >= 10, "{n}: {segments:?}");
            for two in segments.windows(2) {
                assert_eq!(
                    (two[0].end, two[0].until),
                    (two[1].start, two[1].from),
                    "{n}"
                );
            }
            let (begin, end) = (segments[0].start, segments[segments.len() - 1].end);
            assert_eq!(waterfall.total(), end.since(begin), "{n}");
            let until = |anchor| {
                let found = segments.iter().find(|segment| segment.until == anchor);
                found.expect("it is cut there").duration()
            };
            let thought = until(Anchor::LlmFirstToken);
            assert!(thought >= late(n), "{n}: {thought:?}");
            assert!(
                thought <= late(n) + Duration::from_millis(10),
                "{n}: {thought:?}"
            );
            let anchors = &turn.anchors;
            let spoken = anchors.get(Anchor::TtsFirstAudio).expect("it was spoken");
            let clause = anchors.get(Anchor::FirstClause).expect("there was one");
            assert!(
                spoken.since(clause) > Duration::ZERO,
                "{n}: synthesis takes no time"
            );
        }
    }
    assert_nothing_left(&runtime);
}
