//! A scripted call: scripted providers, a scripted caller, real actors, virtual time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::LocalBoxFuture};
use rspp_host::{
    Config, Notice, OpenError, Pools, Runtime, SessionHandle, SessionRequest,
    report::{SessionReport, TurnReport},
};
use rspp_kernel::plan::{LayeredSettings, Settings};
use rspp_proto::{
    AudioChunk, MetricSample, Payload, ProviderId, SampleRate, SessionId, Speaker, TenantId,
    TextChunk, TurnNumber,
    abi::{ControlSignal, Signal},
    control::Versions,
    spec::{Modality, PipelineSpec, PolicyBundle},
};
use rspp_provider_api::{
    Providers,
    scripted::{ScriptedEndOfTurn, ScriptedLlm, ScriptedStt, ScriptedTts, ScriptedVoice},
};
use rspp_timeline::{Entry, MemoryRecording, Options, Recorder};
use rspp_transport_api::{
    Ingress, Outgoing, Sink, SinkError, Source,
    loopback::{self, Line, Moment, Script, Start, Utterance},
};
use tokio::sync::{broadcast, mpsc};

/// What the agent says, unless a test has it say something else.
pub const REPLY: &str = "Good day to you. How can I help?";

/// A reply that is long enough to be interrupted.
pub const LONG: &str = "Well, let me tell you a very long story. It begins in a small town by the sea, where \
    nobody ever went.";

/// The scripted providers of a call; change them before it starts.
#[derive(Clone)]
pub struct Cast {
    /// Recognition.
    pub stt: Arc<ScriptedStt>,
    /// Language.
    pub llm: Arc<ScriptedLlm>,
    /// Synthesis.
    pub tts: Arc<ScriptedTts>,
    /// Voice activity.
    pub voice: Arc<ScriptedVoice>,
    /// End of turn.
    pub end_of_turn: Arc<ScriptedEndOfTurn>,
}

impl Default for Cast {
    fn default() -> Self {
        Self {
            stt: Arc::new(ScriptedStt::new("stt").utterances(["hello there", "and again"])),
            llm: Arc::new(ScriptedLlm::new("llm").answers([REPLY])),
            tts: Arc::new(ScriptedTts::new("tts")),
            voice: Arc::new(ScriptedVoice::by_energy("vad")),
            end_of_turn: Arc::new(ScriptedEndOfTurn::always("eot", 1.0)),
        }
    }
}

impl Cast {
    /// The cast as a registry.
    pub fn providers(&self) -> Providers {
        let mut providers = Providers::new();
        providers
            .add_stt(self.stt.clone())
            .add_llm(self.llm.clone())
            .add_tts(self.tts.clone())
            .add_voice(self.voice.clone())
            .add_end_of_turn(self.end_of_turn.clone());
        providers
    }

    /// Whether every call to a provider has ended or was dropped (P20).
    pub fn is_idle(&self) -> bool {
        let running = [self.stt.tally(), self.llm.tally(), self.tts.tally()];
        running.iter().all(|tally| tally.running() == 0)
            && self.voice.tally().alive == 0
            && self.end_of_turn.tally().alive == 0
    }
}

/// Binds the one scripted provider of each modality.
pub fn bindings() -> LayeredSettings {
    let id = |id: &str| vec![ProviderId::new(id).expect("not blank")];
    LayeredSettings {
        defaults: Settings {
            provider_bindings: [
                (Modality::Stt, id("stt")),
                (Modality::Llm, id("llm")),
                (Modality::Tts, id("tts")),
                (Modality::Vad, id("vad")),
                (Modality::EndOfTurn, id("eot")),
            ]
            .into(),
            ..Settings::default()
        },
        ..LayeredSettings::default()
    }
}

/// Speech, as far as a scripted detector is concerned: a tone.
pub fn tone(length: Duration) -> Vec<i16> {
    let samples = (length.as_secs_f64() * 16_000.0) as usize;
    let wave = |n: usize| (n as f64 * 220.0 * std::f64::consts::TAU / 16_000.0).sin();
    (0..samples).map(|n| (wave(n) * 8_000.0) as i16).collect()
}

/// An utterance of a second after the reply before it.
pub fn says(start: Start) -> Utterance {
    Utterance {
        audio: tone(Duration::from_secs(1)),
        start,
    }
}

/// Once the call is 300 ms old.
pub fn first() -> Start {
    Start::At(Duration::from_millis(300))
}

/// Once the reply has been heard.
pub fn after_reply() -> Start {
    Start::AfterReply {
        pause: Duration::from_millis(400),
    }
}

/// Over the reply, once that much of it was heard.
pub fn over_reply(heard_ms: u64) -> Start {
    Start::BargeIn {
        after_reply_audio: Duration::from_millis(heard_ms),
    }
}

/// What a session said to a subscriber who never falls behind.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<Notice>>>);

impl Log {
    fn follow(mut notices: broadcast::Receiver<Notice>) -> Self {
        let log = Self::default();
        let to = log.clone();
        tokio::spawn(async move {
            loop {
                match notices.recv().await {
                    Ok(notice) => to.0.lock().expect("nobody panics here").push(notice),
                    Err(broadcast::error::RecvError::Closed) => return,
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        panic!("a subscriber missed {missed} notices")
                    }
                }
            }
        });
        log
    }

    /// Everything so far.
    pub fn notices(&self) -> Vec<Notice> {
        self.0.lock().expect("nobody panics here").clone()
    }

    /// Signals so far, in order.
    pub fn signals(&self) -> Vec<ControlSignal> {
        let notices = self.notices().into_iter();
        notices
            .filter_map(|notice| match notice {
                Notice::Signal(signal) => Some(*signal),
                Notice::Event(_) | Notice::State(_) | Notice::Turn(_) | Notice::Foreign(_) => None,
            })
            .collect()
    }

    /// Signals of one kind so far.
    pub fn signals_of(&self, kind: Signal) -> Vec<ControlSignal> {
        let signals = self.signals().into_iter();
        signals.filter(|signal| signal.signal == kind).collect()
    }

    /// Reasons of the signals of one kind so far.
    pub fn reasons_of(&self, kind: Signal) -> Vec<String> {
        let signals = self.signals_of(kind).into_iter();
        signals
            .map(|signal| signal.reason.map_or_else(String::new, |r| r.to_string()))
            .collect()
    }

    /// Payloads of the events so far, in order.
    pub fn payloads(&self) -> Vec<Payload> {
        let notices = self.notices().into_iter();
        notices
            .filter_map(|notice| match notice {
                Notice::Event(event) => event.payload,
                Notice::Signal(_) | Notice::State(_) | Notice::Turn(_) | Notice::Foreign(_) => None,
            })
            .collect()
    }

    /// What `speaker` said so far, partial and final.
    pub fn texts(&self, speaker: Speaker) -> Vec<TextChunk> {
        let payloads = self.payloads().into_iter();
        payloads
            .filter_map(|payload| match payload {
                Payload::Text(text) if text.speaker == speaker => Some(*text),
                _not_text_of_the_speaker => None,
            })
            .collect()
    }

    /// What was measured in band so far.
    pub fn samples(&self) -> Vec<MetricSample> {
        let payloads = self.payloads().into_iter();
        payloads
            .filter_map(|payload| match payload {
                Payload::Metrics(sample) => Some(*sample),
                _something_else => None,
            })
            .collect()
    }

    /// Waits until a signal of that kind was given `times` times, and for what it belongs to.
    pub async fn until(&self, kind: Signal, times: usize) -> ControlSignal {
        for _ in 0..60_000 {
            if let Some(signal) = self.signals_of(kind).into_iter().nth(times - 1) {
                return signal;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("no {times}. {kind} within a minute: {:#?}", self.signals());
    }
}

/// A session in a runtime.
pub struct Placed {
    /// The session.
    pub session: SessionHandle,
    /// Both sides, to listen in on.
    pub line: Line,
    /// What was recorded.
    pub recording: MemoryRecording,
    /// What the session says.
    pub notices: broadcast::Receiver<Notice>,
    /// What the session has said.
    pub log: Log,
    /// Who serves it.
    pub cast: Cast,
}

/// A call in progress.
pub struct Call {
    /// The runtime it runs in.
    pub runtime: Runtime,
    /// Its session.
    pub session: SessionHandle,
    /// Both sides, to listen in on.
    pub line: Line,
    /// What was recorded.
    pub recording: MemoryRecording,
    /// What the session says.
    pub notices: broadcast::Receiver<Notice>,
    /// What the session has said.
    pub log: Log,
    /// Who serves it.
    pub cast: Cast,
}

/// A call that is over.
pub struct Ended {
    /// What the session leaves.
    pub report: SessionReport,
    /// What was recorded.
    pub entries: Vec<Entry>,
    /// Both sides.
    pub line: Line,
    /// What the session said.
    pub log: Log,
}

/// How to place a call.
pub struct Builder {
    /// Who serves it.
    pub providers: Providers,
    /// What it runs.
    pub pipeline: PipelineSpec,
    /// What the user says.
    pub script: Script,
    /// Changes of the runtime's configuration.
    pub configure: Box<dyn FnOnce(&mut Config)>,
    /// Who it is accounted to.
    pub tenant: TenantId,
    /// The session's id.
    pub session: SessionId,
    /// Overrides of the pipeline's defaults.
    pub policy: Option<PolicyBundle>,
    /// Settings by layer.
    pub settings: LayeredSettings,
    /// What conditions may ask of the session.
    pub attributes: BTreeMap<String, serde_json::Value>,
    /// Where the timeline goes; into memory unless something else is set.
    pub recorder: Option<Recorder>,
    cast: Cast,
    injected: Option<mpsc::UnboundedReceiver<Ingress>>,
    sent: Option<mpsc::UnboundedSender<Outgoing>>,
}

impl Builder {
    /// A call of the simple pipeline with these utterances.
    pub fn new(cast: &Cast, utterances: Vec<Utterance>) -> Self {
        Self {
            providers: cast.providers(),
            pipeline: PipelineSpec::simple(),
            script: Script {
                utterances,
                // The runtime's own rate: converting costs more than all the rest of a call.
                sink_rate: SampleRate::HZ_16000,
                ..Script::default()
            },
            configure: Box::new(|_| {}),
            tenant: TenantId::new("tenant").expect("not blank"),
            session: SessionId::new("call").expect("not blank"),
            policy: None,
            settings: bindings(),
            attributes: BTreeMap::new(),
            recorder: None,
            cast: cast.clone(),
            injected: None,
            sent: None,
        }
    }

    /// Lets the test send what a client sends beside speech.
    pub fn client(&mut self) -> mpsc::UnboundedSender<Ingress> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.injected = Some(receiver);
        sender
    }

    /// Lets the test see what is sent to the client beside audio.
    pub fn screen(&mut self) -> mpsc::UnboundedReceiver<Outgoing> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.sent = Some(sender);
        receiver
    }

    /// Changes the pipeline.
    #[must_use]
    pub fn pipeline(mut self, change: impl FnOnce(&mut PipelineSpec)) -> Self {
        change(&mut self.pipeline);
        self
    }

    /// Changes the runtime's configuration.
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut Config) + 'static) -> Self {
        self.configure = Box::new(change);
        self
    }

    /// The runtime that the call wants.
    pub async fn runtime(&mut self) -> Runtime {
        let mut config = Config::new(self.providers.clone(), Pools::in_virtual_time(2));
        let configure = std::mem::replace(&mut self.configure, Box::new(|_| {}));
        configure(&mut config);
        Runtime::start(config).await.expect("the runtime starts")
    }

    /// Asks `runtime` for the session.
    pub fn open(self, runtime: &Runtime) -> LocalBoxFuture<'_, Result<Placed, OpenError>> {
        self.open_now(runtime).boxed_local()
    }

    async fn open_now(self, runtime: &Runtime) -> Result<Placed, OpenError> {
        let (in_memory, recording) = Recorder::in_memory(Options::default());
        let (mut transport, line) = loopback::call(self.script).expect("usual rates");
        if let Some(injected) = self.injected {
            transport.source = with_client(transport.source, injected);
        }
        if let Some(sent) = self.sent {
            transport.sink = Box::new(Screen {
                sink: transport.sink,
                sent,
            });
        }
        let session = runtime
            .open(SessionRequest {
                tenant: self.tenant,
                session: self.session,
                pipeline: self.pipeline,
                policy: self.policy,
                settings: self.settings,
                versions: Versions::default(),
                attributes: self.attributes,
                transport,
                recorder: self.recorder.unwrap_or(in_memory),
            })
            .await?;
        Ok(Placed {
            notices: session.subscribe(),
            log: Log::follow(session.subscribe()),
            session,
            line,
            recording,
            cast: self.cast,
        })
    }

    /// Places the call; on a paused clock it takes no time.
    pub fn start(self) -> LocalBoxFuture<'static, Call> {
        self.start_now().boxed_local()
    }

    async fn start_now(mut self) -> Call {
        let runtime = self.runtime().await;
        let placed = self.open(&runtime).await.expect("the session opens");
        Call {
            runtime,
            session: placed.session,
            line: placed.line,
            recording: placed.recording,
            notices: placed.notices,
            log: placed.log,
            cast: placed.cast,
        }
    }

    /// Places the call and waits until the user hangs up.
    pub fn hold(self) -> LocalBoxFuture<'static, Ended> {
        async { self.start().await.end().await }.boxed_local()
    }
}

/// The user's audio, and what the client sends beside it, until the user hangs up.
fn with_client(source: Source, injected: mpsc::UnboundedReceiver<Ingress>) -> Source {
    let state = (source, injected);
    Box::pin(futures::stream::unfold(
        state,
        |(mut source, mut injected)| async move {
            let next = tokio::select! {
                biased;
                Some(next) = injected.recv() => Some(next),
                next = source.next() => next,
            };
            next.map(|next| (next, (source, injected)))
        },
    ))
}

/// A sink that shows what is sent beside audio.
struct Screen {
    sink: Box<dyn Sink>,
    sent: mpsc::UnboundedSender<Outgoing>,
}

impl Sink for Screen {
    fn sample_rate(&self) -> SampleRate {
        self.sink.sample_rate()
    }

    fn lead(&self) -> Duration {
        self.sink.lead()
    }

    fn codec(&self) -> rspp_proto::Codec {
        self.sink.codec()
    }

    fn play(&mut self, turn: TurnNumber, chunk: &AudioChunk) -> Result<(), SinkError> {
        self.sink.play(turn, chunk)
    }

    fn clear(&mut self, turn: TurnNumber) {
        self.sink.clear(turn);
    }

    fn send(&mut self, outgoing: Outgoing) -> Result<(), SinkError> {
        // A test that is over does not look any more.
        let _unseen = self.sent.send(outgoing.clone());
        match outgoing {
            // The test is the client that runs it.
            Outgoing::ToolCall(_) => Ok(()),
            other => self.sink.send(other),
        }
    }

    fn pause(&mut self) {
        self.sink.pause();
    }

    fn wire(&self) -> Option<rspp_transport_api::wire::WireReport> {
        self.sink.wire()
    }
}

impl Placed {
    /// Waits until the session is over, and checks what every session has to leave.
    pub async fn end(self) -> Ended {
        let limit = Duration::from_mins(10);
        let report = tokio::time::timeout(limit, self.session.wait())
            .await
            .expect("the call ends")
            .expect("the session leaves a report");
        // The line hangs up, the last notices arrive.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let entries = self.recording.entries();
        let violations = rspp_timeline::verify::verify(&entries);
        assert!(violations.is_empty(), "{violations:#?}\n{entries:#?}");
        assert_eq!(self.line.leaked(), 0, "frames passed a fence");
        Ended {
            report,
            entries,
            line: self.line,
            log: self.log,
        }
    }
}

impl Call {
    /// Waits until the call is over, and checks that nothing is left of it.
    pub async fn end(self) -> Ended {
        let Self {
            runtime,
            session,
            line,
            recording,
            notices,
            log,
            cast,
        } = self;
        let placed = Placed {
            session,
            line,
            recording,
            notices,
            log,
            cast: cast.clone(),
        };
        let ended = placed.end().await;
        assert_nothing_left(&runtime);
        assert!(cast.is_idle(), "a provider still works for the call");
        assert!(
            runtime.shut_down(Duration::from_secs(5)).await,
            "something had to be killed: {:?}",
            runtime.tree()
        );
        ended
    }
}

/// Nothing but the tree's roots, and what exports timelines, is left of any session (P20).
#[track_caller]
pub fn assert_nothing_left(runtime: &Runtime) {
    let mut kinds: Vec<_> = runtime.tree().iter().map(|actor| actor.kind).collect();
    kinds.retain(|kind| *kind != "timeline_exporter");
    assert_eq!(kinds, ["node", "sessions", "listener"]);
    assert_eq!(runtime.sessions(), 0);
}

/// A reply, as the user heard it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The agent's turn.
    pub turn: TurnNumber,
    /// From when, on the call's clock.
    pub began: Duration,
    /// Until when.
    pub ended: Duration,
    /// Whether there was more to hear.
    pub cut: bool,
}

impl Heard {
    /// How long it was heard.
    pub fn length(&self) -> Duration {
        self.ended.saturating_sub(self.began)
    }
}

impl Ended {
    /// Signals by name, in order.
    pub fn signals(&self) -> Vec<&'static str> {
        let entries = self.entries.iter();
        entries
            .filter_map(Entry::signal)
            .map(rspp_proto::abi::Signal::as_str)
            .collect()
    }

    /// Signals of one turn by name, in order, as recorded.
    pub fn signals_of(&self, turn: u32) -> Vec<&'static str> {
        let id = TurnNumber(turn).id();
        let entries = self.entries.iter();
        entries
            .filter(|entry| entry.turn_id() == Some(&id))
            .filter_map(Entry::signal)
            .map(Signal::as_str)
            .collect()
    }

    /// The signals of a turn, in order, but for those of its edges: what is flushed lets its sender go a moment
    /// after the turn.
    pub fn steps_of(&self, turn: u32) -> Vec<&'static str> {
        let mut signals = self.signals_of(turn);
        signals.retain(|signal| !signal.starts_with("flow_"));
        signals
    }

    /// The report of a turn, counted from 1.
    #[track_caller]
    pub fn turn(&self, turn: u32) -> &TurnReport {
        let id = TurnNumber(turn).id();
        let found = self.report.turns.iter().find(|report| report.turn_id == id);
        found.unwrap_or_else(|| panic!("no turn {turn} in {:#?}", self.report))
    }

    /// How the turns ended: `commit`, or why they were aborted.
    pub fn endings(&self) -> Vec<&str> {
        let turns = self.report.turns.iter();
        turns
            .map(|turn| turn.reason.as_deref().unwrap_or(&turn.outcome))
            .collect()
    }

    /// The replies, as the user heard them.
    pub fn heard(&self) -> Vec<Heard> {
        let moments = self.line.moments();
        let began = |of: TurnNumber| {
            moments.iter().find_map(|moment| match *moment {
                Moment::ReplyBegan { turn, at } if turn == of => Some(at),
                _something_else => None,
            })
        };
        let ends = moments.iter().filter_map(|moment| match *moment {
            Moment::ReplyEnded { turn, at, cut } => Some((turn, at, cut)),
            _something_else => None,
        });
        ends.filter_map(|(turn, ended, cut)| {
            Some(Heard {
                turn,
                began: began(turn)?,
                ended,
                cut,
            })
        })
        .collect()
    }

    /// When the user began to speak, utterance by utterance.
    pub fn user_began(&self) -> Vec<Duration> {
        let moments = self.line.moments();
        let began = moments.iter().filter_map(|moment| match *moment {
            Moment::UserBegan { at, .. } => Some(at),
            _something_else => None,
        });
        began.collect()
    }
}
