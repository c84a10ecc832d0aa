//! What peers, providers and fate do to a runtime: each of these has to cost one call at most.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream};
use rspp_actors::Stopwatch;
use rspp_controlplane_api::{Lease, LeaseError, Leases, LocalLeases, Taking, Wanted};
use rspp_host::{Config, Event, OpenError, Pools, Runtime, SessionRequest, node::NodeContext};
use rspp_proto::{
    AudioChunk, SampleRate, SessionId, TenantId, TurnNumber,
    abi::Signal,
    control::Versions,
    spec::{PipelineSpec, Quota},
};
use rspp_provider_api::scripted::{ScriptedLlm, ScriptedStt};
use rspp_tests::{
    call::{Builder, Cast, bindings, first, says, tone},
    nodes::{Probes, custom, get, insert},
};
use rspp_timeline::{Entry, EntryKind, Options, Recorder, TerminalOutcome};
use rspp_transport_api::{
    Ingress, Outgoing, Sink, SinkError, Source, Transport, TransportKind,
    loopback::{Start, Utterance},
};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A peer that takes everything, or nothing.
struct Peer {
    full: bool,
}

impl Sink for Peer {
    fn sample_rate(&self) -> SampleRate {
        SampleRate::HZ_16000
    }

    fn lead(&self) -> Duration {
        ms(60)
    }

    fn codec(&self) -> rspp_proto::Codec {
        rspp_proto::Codec::Pcm16
    }

    fn play(&mut self, _turn: TurnNumber, _chunk: &AudioChunk) -> Result<(), SinkError> {
        if self.full {
            Err(SinkError::Full)
        } else {
            Ok(())
        }
    }

    fn clear(&mut self, _turn: TurnNumber) {}

    fn send(&mut self, _outgoing: Outgoing) -> Result<(), SinkError> {
        Ok(())
    }

    fn pause(&mut self) {}

    fn wire(&self) -> Option<rspp_transport_api::wire::WireReport> {
        None
    }
}

fn request(name: &str, source: Source, rate: SampleRate, full: bool) -> SessionRequest {
    SessionRequest {
        tenant: TenantId::new("tenant").unwrap(),
        session: SessionId::new(name).unwrap(),
        pipeline: PipelineSpec::simple(),
        policy: None,
        settings: bindings(),
        versions: Versions::default(),
        attributes: BTreeMap::new(),
        transport: Transport {
            kind: TransportKind::Loopback,
            source_rate: rate,
            source,
            sink: Box::new(Peer { full }),
            caller: None,
        },
        recorder: Recorder::null(),
    }
}

async fn runtime(cast: &Cast) -> Runtime {
    let config = Config::new(cast.providers(), Pools::in_virtual_time(2));
    Runtime::start(config).await.unwrap()
}

fn silent() -> Source {
    Box::pin(stream::pending())
}

fn typing(text: &str) -> Source {
    let text = text.to_owned();
    Box::pin(stream::once(async { Ingress::Text(text) }).chain(silent()))
}

fn kinds(runtime: &Runtime) -> Vec<&'static str> {
    runtime.tree().iter().map(|actor| actor.kind).collect()
}

/// P15, P17: a connection that dies without a word takes its session with it.
#[tokio::test(start_paused = true)]
async fn a_connection_that_dies_ends_its_session() {
    let cast = Cast::default();
    let runtime = runtime(&cast).await;
    let panics = stream::repeat(()).map(|()| -> Ingress { panic!("a codec panics") });
    let impossible = SampleRate::new(1).unwrap();
    for (name, source, rate) in [
        ("panics", Box::pin(panics) as Source, SampleRate::HZ_16000),
        ("rate", silent(), impossible),
    ] {
        let session = runtime.open(request(name, source, rate, false)).await;
        let report = tokio::time::timeout(ms(60_000), session.unwrap().wait());
        assert!(report.await.is_ok(), "{name}: {:?}", kinds(&runtime));
    }
}

/// Authority that breaks when it is asked.
#[derive(Default)]
struct Broken(LocalLeases);

impl Leases for Broken {
    fn take(&self, session: &SessionId, wanted: &Wanted) -> Taking {
        self.0.take(session, wanted)
    }

    fn check(&self, _lease: &Lease) -> Result<(), LeaseError> {
        panic!("a planted fault")
    }

    fn release(&self, lease: &Lease) -> Result<(), LeaseError> {
        self.0.release(lease)
    }
}

/// F-134: a session that crashes hangs up and gives its place back.
#[tokio::test(start_paused = true)]
async fn a_session_that_crashes_leaves_nothing_behind() {
    let cast = Cast::default();
    let mut config = Config::new(cast.providers(), Pools::in_virtual_time(2));
    config.leases = Arc::new(Broken::default());
    let runtime = Runtime::start(config).await.unwrap();
    let rate = SampleRate::HZ_16000;
    let session = runtime
        .open(request("s", typing("hello"), rate, false))
        .await;
    assert!(session.unwrap().wait().await.is_none());
    tokio::time::sleep(ms(1_000)).await;
    assert_eq!(kinds(&runtime), ["node", "sessions", "listener"]);
    assert_eq!(runtime.sessions(), 0);
}

/// P2, P3: what the peer had no room for was not heard, and a peer without any room is gone.
#[tokio::test(start_paused = true)]
async fn frames_that_the_peer_refused_were_not_heard() {
    let cast = Cast::default();
    let runtime = runtime(&cast).await;
    let rate = SampleRate::HZ_16000;
    let session = runtime
        .open(request("s", typing("hello"), rate, true))
        .await;
    let report = tokio::time::timeout(ms(20_000), session.unwrap().wait());
    let report = report.await.expect("a stalled peer is given up").unwrap();
    assert_eq!(report.turns[0].agent_text_played, "");
    assert_eq!(
        report.turns[0].reason.as_deref(),
        Some("transport_disconnect_or_stall")
    );
}

/// P24: a burst of calls is answered, all of it.
#[tokio::test(start_paused = true)]
async fn a_burst_of_calls_is_taken() {
    let cast = Cast::default();
    let runtime = runtime(&cast).await;
    let opens = (0..300).map(|n| {
        let name = format!("s{n}");
        runtime.open(request(&name, silent(), SampleRate::HZ_16000, false))
    });
    let opened = futures::future::join_all(opens).await;
    assert!(opened.iter().all(Result::is_ok));
    assert_eq!(runtime.sessions(), 300);
}

/// P21: a call is a few actors in a process that has many, and not a process of its own: three hundred are open at
/// once in one runtime, each made of a handful of actors that hold some kilobytes; one that crashes takes nobody
/// with it.
#[tokio::test(start_paused = true)]
async fn a_call_is_a_few_actors_and_no_process() {
    const CALLS: usize = 300;
    let cast = Cast::default();
    let runtime = runtime(&cast).await;
    let roots = runtime.tree().len();
    let mut open = Vec::new();
    for n in 0..CALLS {
        let name = format!("s{n}");
        let session = runtime.open(request(&name, silent(), SampleRate::HZ_16000, false));
        open.push(session.await.expect("there is room"));
    }
    tokio::time::sleep(ms(500)).await;
    let actors = runtime.tree().len().saturating_sub(roots);
    assert!(actors <= 16 * CALLS, "{} a call", actors / CALLS);
    for session in &open {
        let held = session.memory().held;
        assert!(
            held < 128 * 1024,
            "{held} bytes for a call that says nothing"
        );
    }
    let panics = stream::repeat(()).map(|()| -> Ingress { panic!("a codec panics") });
    let crashes = runtime.open(request("c", Box::pin(panics), SampleRate::HZ_16000, false));
    let _report = crashes.await.expect("there is room").wait().await;
    assert_eq!(runtime.sessions(), CALLS);
}

/// P24: a session is made where the runtime is, when it is asked for: nothing waits for a process, a download or a
/// pool that may have rotted. It is open, or refused, in the moment that it is asked for, be it the first of a
/// runtime or one after many that crashed.
#[tokio::test(start_paused = true)]
async fn a_session_is_open_or_refused_at_once() {
    let cast = Cast::default();
    let mut config = Config::new(cast.providers(), Pools::in_virtual_time(2));
    config.limits.node.sessions = Some(Quota::at(50));
    let runtime = Runtime::start(config).await.unwrap();
    let asked = async |name: &str, source: Source| {
        let (clock, watch) = (tokio::time::Instant::now(), Stopwatch::start());
        let answer = runtime
            .open(request(name, source, SampleRate::HZ_16000, false))
            .await;
        assert_eq!(clock.elapsed(), Duration::ZERO, "{name} waited");
        (answer.is_ok(), watch.elapsed())
    };
    for n in 0..100 {
        let panics = stream::repeat(()).map(|()| -> Ingress { panic!("a codec panics") });
        let (is_open, _) = asked(&format!("crashes-{n}"), Box::pin(panics)).await;
        assert!(is_open, "those before it are gone");
        let gone = async {
            while runtime.sessions() > 0 {
                tokio::time::sleep(ms(10)).await;
            }
        };
        let gone = tokio::time::timeout(Duration::from_mins(1), gone).await;
        gone.expect("a crash leaves nothing behind");
    }
    let mut took = Vec::new();
    for n in 0..50 {
        let (is_open, time) = asked(&format!("s{n}"), silent()).await;
        assert!(is_open);
        took.push(time);
    }
    for n in 0..50 {
        let (is_open, time) = asked(&format!("late-{n}"), silent()).await;
        assert!(!is_open, "there is no room");
        took.push(time);
    }
    // Real time, of a machine that does other things too: far from what anybody would notice.
    took.sort_unstable();
    assert!(took[50] < ms(100), "{:?}", took[50]);
}

/// F-095: who is refused for want of room takes nobody's lease.
#[tokio::test(start_paused = true)]
async fn a_refused_call_leaves_the_running_one_its_lease() {
    let call = Builder::new(&Cast::default(), vec![says(Start::At(ms(3_000)))])
        .configure(|config| config.limits.node.sessions = Some(Quota::at(1)))
        .start()
        .await;
    let again = call
        .runtime
        .open(request("call", silent(), SampleRate::HZ_16000, false))
        .await;
    assert!(matches!(again, Err(OpenError::Refused(_))));
    assert_eq!(call.end().await.endings(), ["commit"]);
}

/// P11: a text that comes when its turn was given up is answered all the same, and the next utterance
/// too.
#[tokio::test(start_paused = true)]
async fn a_late_text_is_not_taken_for_the_next_utterance() {
    let stt = ScriptedStt::new("stt")
        .utterances(["first words", "second words"])
        .final_after(ms(4_500));
    let cast = Cast {
        stt: Arc::new(stt),
        ..Cast::default()
    };
    let at = |when| says(Start::At(ms(when)));
    let mut builder = Builder::new(&cast, vec![at(300), at(4_300)]);
    builder.script.reply_timeout = ms(30_000);
    let ended = builder.hold().await;
    let said: Vec<_> = ended.report.turns.iter().map(|t| &*t.user_text).collect();
    assert!(said.iter().any(|text| text.contains("first")), "{said:?}");
    assert!(said.iter().any(|text| text.contains("second")), "{said:?}");
}

/// T10, P13: a model that says nothing in many pieces is as silent as one that says nothing.
#[tokio::test(start_paused = true)]
async fn a_model_that_says_nothing_is_given_up() {
    let llm = ScriptedLlm::new("llm")
        .answers([" ".repeat(500)])
        .token_every(ms(600));
    let cast = Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    };
    let mut builder = Builder::new(&cast, vec![says(first())]);
    builder.script.reply_timeout = ms(10_000);
    assert_eq!(builder.hold().await.endings(), ["budget_exhausted"]);
}

/// design §7: the length of speech is bounded; noise without end is an utterance in the end.
#[tokio::test(start_paused = true)]
async fn speech_without_end_is_answered() {
    let utterance = Utterance {
        audio: tone(ms(80_000)),
        start: first(),
    };
    let call = Builder::new(&Cast::default(), vec![utterance])
        .start()
        .await;
    tokio::time::sleep(ms(70_000)).await;
    assert_eq!(call.log.signals_of(Signal::TurnOpen).len(), 1);
    call.end().await;
}

/// T9: evidence that was lost on the way cannot be made up for at the end.
#[tokio::test(start_paused = true)]
async fn a_turn_with_lost_evidence_is_not_committed() {
    let (recorder, recording) = Recorder::in_memory(Options::default());
    let mut builder = Builder::new(&Cast::default(), vec![says(first())]);
    builder.recorder = Some(recorder.clone());
    let runtime = builder.runtime().await;
    let placed = builder.open(&runtime).await.unwrap();
    placed.log.until(Signal::PlaybackStarted, 1).await;
    let kept = recording.entries();
    let outcome = kept.iter().find(|it| it.kind() == EntryKind::Outcome);
    let outcome = outcome.expect("how the session was let in").clone();
    while recorder.append(outcome.clone()).is_ok() {}
    let report = placed.session.wait().await.unwrap();
    assert_eq!(
        report.turns[0].reason.as_deref(),
        Some("recording_evidence_unavailable")
    );
    let kept = recording.entries();
    let ends: Vec<_> = kept.iter().filter_map(Entry::signal).collect();
    assert!(ends.ends_with(&[Signal::Abort, Signal::Close]), "{ends:?}");
    let evidence = kept.iter().find_map(|entry| match entry {
        Entry::Turn(evidence) => evidence.terminal_outcome,
        _another => None,
    });
    assert_eq!(evidence, Some(TerminalOutcome::Abort), "it says so too");
    // When it was lost, and not when all had been said.
    assert!(!ends.contains(&Signal::PlaybackCompleted), "{ends:?}");
}

/// P6: clearing an interrupted turn leaves the next one alone, however late it is carried out.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clearing_a_turn_leaves_the_next_one_alone() {
    let cast = Cast {
        llm: Arc::new(
            ScriptedLlm::new("llm").answers(["Good day to you, how are you?", "All right."]),
        ),
        ..Cast::default()
    };
    let config = Config::new(cast.providers(), Pools::new(2));
    let runtime = Runtime::start(config).await.unwrap();
    let busy = Arc::new(AtomicBool::new(false));
    let noticed = Arc::clone(&busy);
    let source = stream::once(async { Ingress::Text("one".into()) })
        .chain(stream::once(async {
            tokio::time::sleep(ms(300)).await;
            Ingress::Text("two".into())
        }))
        .chain(stream::once(async move {
            tokio::time::sleep(ms(200)).await;
            noticed.store(true, Ordering::SeqCst);
            #[expect(
                clippy::disallowed_methods,
                reason = "a transport that blocks is the point"
            )]
            std::thread::sleep(ms(400));
            Ingress::Audio(bytes::Bytes::new())
        }))
        .chain(stream::once(async {
            tokio::time::sleep(ms(3_000)).await;
            Ingress::Audio(bytes::Bytes::new())
        }));
    let mut request = request("s", Box::pin(source), SampleRate::HZ_16000, false);
    request.pipeline.turns.barge_in = false;
    let session = runtime.open(request).await.unwrap();
    while !busy.load(Ordering::SeqCst) {
        tokio::time::sleep(ms(1)).await;
    }
    session.cancel(rspp_kernel::CancelReason::UserCancel).await;
    let report = tokio::time::timeout(ms(15_000), session.wait());
    let report = report.await.unwrap().unwrap();
    assert_eq!(report.turns[1].outcome, "commit");
    assert_eq!(report.turns[1].agent_text_played, "All right.");
}

/// F-134: a node that panics costs its own turn; the session beside it does not notice.
#[tokio::test(start_paused = true)]
async fn a_panicking_node_is_not_noticed_by_the_session_beside_it() {
    let mut probes = Probes::default();
    let broken = probes.add("probe", |_nth, _cx: &mut NodeContext, _event: Event| {
        panic!("a planted fault")
    });
    let cast = Cast::default();
    let mut sick = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| insert(spec, "llm", custom("probe"), "segmenter"))
        .configure(probes.install());
    sick.session = SessionId::new("sick").unwrap();
    let runtime = sick.runtime().await;
    let mut well = Builder::new(&cast, vec![says(first())]);
    well.session = SessionId::new("well").unwrap();
    let sick = sick.open(&runtime).await.unwrap();
    let well = well.open(&runtime).await.unwrap();
    let (sick, well) = (sick.end().await, well.end().await);
    assert_eq!(sick.endings(), ["node_timeout_or_failure"]);
    assert_eq!(well.endings(), ["commit"]);
    assert_eq!(well.report.node_failures, 0);
    assert!(get(&broken.events) > 0);
}
