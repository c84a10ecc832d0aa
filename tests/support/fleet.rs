//! Many calls at once, for benches: users whose microphones a metronome drives, agents whose sound
//! is timed frame by frame. Scripted providers, real actors, real time.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use futures::stream;
use hdrhistogram::Histogram;
use rspp_host::{
    Config, Event, Pools, Port, Runtime, SessionHandle, SessionRequest,
    node::{
        Node, NodeContext, Step,
        builtin::{NodeFactory, NodeRegistry},
    },
};
use rspp_proto::{
    AudioChunk, Payload, SampleRate, SessionId, TenantId, TurnNumber,
    control::Versions,
    spec::{OverloadSpec, PipelineSpec, QuotasSpec},
};
use rspp_provider_api::{
    Providers,
    scripted::{ScriptedEndOfTurn, ScriptedLlm, ScriptedStt, ScriptedTts, ScriptedVoice},
};
use rspp_timeline::{MemoryRecording, Options, Recorder};
use rspp_transport_api::{Ingress, Outgoing, Sink, SinkError, Source, Transport, TransportKind};
use tokio::{sync::mpsc, time::MissedTickBehavior};

use crate::{
    bench::{Watch, histogram},
    call::{bindings, tone},
};

/// Length of a frame.
pub const FRAME: Duration = Duration::from_millis(20);
/// Bytes of a frame at 16 kHz.
pub const FRAME_BYTES: usize = 640;
/// Frames that a microphone may be ahead of the runtime; what comes then is lost.
const MICROPHONE: usize = 64;
/// What a probe is called in pipelines.
pub const PROBE: &str = "probe";

/// What the user says to be told something short; to everything else the answer is long.
pub const GREETING: &str = "Good morning.";

/// Providers that answer at once; a reply takes about `speech` to be heard, unless it is to a greeting.
pub fn providers(speech: Duration, voice: ScriptedVoice) -> Providers {
    let tts = ScriptedTts::new("tts");
    let mut reply = String::new();
    while tts.duration_of(&reply) < speech {
        reply.push_str("This is one more sentence of an answer without an end. ");
    }
    let llm = ScriptedLlm::new("llm").answer_with(move |request| {
        let said = request.messages.last().map_or("", |last| &last.content);
        if said == GREETING {
            crate::call::REPLY.to_owned()
        } else {
            reply.clone()
        }
    });
    // A model that looks at audio has its session keep as much: 250 KiB for eight seconds.
    let eot = ScriptedEndOfTurn::always("eot", 1.0).window(1);
    let mut providers = Providers::new();
    providers
        .add_stt(Arc::new(ScriptedStt::new("stt")))
        .add_llm(Arc::new(llm))
        .add_tts(Arc::new(tts))
        .add_voice(Arc::new(voice))
        .add_end_of_turn(Arc::new(eot));
    providers
}

/// The built-in pipeline, with a probe beside its listening nodes.
pub fn probed() -> PipelineSpec {
    let text = PipelineSpec::simple_template();
    let node = format!("nodes:\n  - {{ id: {PROBE}, kind: {{ custom: {PROBE} }} }}");
    let edge = format!("edges:\n  - {{ from: ingress, to: {PROBE}, carries: audio }}");
    pipeline(
        &text
            .replacen("nodes:", &node, 1)
            .replacen("edges:", &edge, 1),
    )
}

/// A pipeline from YAML that is known to be right.
pub fn pipeline(text: &str) -> PipelineSpec {
    match PipelineSpec::parse("bench.yaml", text, rspp_proto::spec::Mode::Strict) {
        Ok(parsed) => parsed.spec,
        Err(problems) => panic!("{problems}"),
    }
}

/// What all calls of a bench are timed by and add up in.
pub struct Meters {
    /// The bench's watch.
    pub watch: Watch,
    /// Whether lateness counts now.
    pub counting: AtomicBool,
    /// From a microphone's frame to the probe, in nanoseconds.
    pub inward: Mutex<Histogram<u64>>,
    /// How late frames of replies left, against a schedule that their first counted frame began.
    pub outward: Mutex<Histogram<u64>>,
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            watch: Watch::start(),
            counting: AtomicBool::new(false),
            inward: Mutex::new(histogram()),
            outward: Mutex::new(histogram()),
        }
    }
}

impl Meters {
    /// Forgets what was counted.
    pub fn reset(&self) {
        for counted in [&self.inward, &self.outward] {
            counted.lock().expect("nobody panics").reset();
        }
    }

    fn count(&self, into: &Mutex<Histogram<u64>>, nanos: u64) {
        if self.counting.load(Ordering::Relaxed) {
            into.lock().expect("nobody panics").saturating_record(nanos);
        }
    }
}

/// A node that times the frames that reach it by the time written into them.
struct Probe(Arc<Meters>);

impl Node for Probe {
    fn on_event<'a>(&'a mut self, _cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        if let Payload::AudioChunk(chunk) = &event.payload
            && let Some(sent) = sent_at(chunk)
        {
            let took = self.0.watch.nanos().saturating_sub(sent);
            self.0.count(&self.0.inward, took);
        }
        Step::OK
    }
}

/// When a frame was sent, if that is written into it.
pub fn sent_at(chunk: &AudioChunk) -> Option<u64> {
    let bytes = chunk.data.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*bytes))
}

/// A frame that says when it was sent.
pub fn stamped(watch: &Watch) -> Bytes {
    let mut frame = vec![0; FRAME_BYTES];
    frame[..8].copy_from_slice(&watch.nanos().to_le_bytes());
    frame.into()
}

/// What was heard of one reply, in nanoseconds on the bench's watch.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// The turn.
    pub turn: TurnNumber,
    /// Its first frame.
    pub first: u64,
    /// Its newest frame.
    pub last: u64,
    /// Its frames.
    pub frames: u64,
    /// When the line was told to forget it.
    pub cleared: Option<u64>,
    /// Frames that came afterwards.
    pub leaked: u64,
    /// When the next frame is due, once lateness counts.
    due: Option<u64>,
}

/// What was heard on one line.
#[derive(Default)]
pub struct Heard {
    replies: Mutex<Vec<Reply>>,
    frames: AtomicU64,
}

impl Heard {
    /// Frames so far.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// The newest reply.
    pub fn newest(&self) -> Option<Reply> {
        self.replies.lock().expect("nobody panics").last().copied()
    }

    /// The reply of that turn.
    pub fn reply(&self, turn: TurnNumber) -> Option<Reply> {
        let replies = self.replies.lock().expect("nobody panics");
        replies.iter().rev().find(|r| r.turn == turn).copied()
    }

    /// All replies so far.
    pub fn replies(&self) -> Vec<Reply> {
        self.replies.lock().expect("nobody panics").clone()
    }
}

struct MeteredSink {
    heard: Arc<Heard>,
    meters: Arc<Meters>,
}

impl Sink for MeteredSink {
    fn sample_rate(&self) -> SampleRate {
        SampleRate::HZ_16000
    }

    fn lead(&self) -> Duration {
        Duration::from_millis(60)
    }

    fn codec(&self) -> rspp_proto::Codec {
        rspp_proto::Codec::Pcm16
    }

    fn play(&mut self, turn: TurnNumber, _chunk: &AudioChunk) -> Result<(), SinkError> {
        let now = self.meters.watch.nanos();
        self.heard.frames.fetch_add(1, Ordering::Relaxed);
        let mut replies = self.heard.replies.lock().expect("nobody panics");
        match replies.iter_mut().rev().find(|reply| reply.turn == turn) {
            Some(reply) => {
                reply.frames += 1;
                reply.last = now;
                reply.leaked += u64::from(reply.cleared.is_some());
                if self.meters.counting.load(Ordering::Relaxed) {
                    let due = reply.due.unwrap_or(now);
                    reply.due = Some(due + FRAME.as_nanos() as u64);
                    self.meters
                        .count(&self.meters.outward, now.saturating_sub(due));
                }
            }
            None => replies.push(Reply {
                turn,
                first: now,
                last: now,
                frames: 1,
                cleared: None,
                leaked: 0,
                due: None,
            }),
        }
        Ok(())
    }

    fn clear(&mut self, turn: TurnNumber) {
        let now = self.meters.watch.nanos();
        let mut replies = self.heard.replies.lock().expect("nobody panics");
        for reply in replies.iter_mut().filter(|reply| reply.turn <= turn) {
            reply.cleared.get_or_insert(now);
        }
    }

    fn send(&mut self, _outgoing: Outgoing) -> Result<(), SinkError> {
        Ok(())
    }

    fn pause(&mut self) {}

    fn wire(&self) -> Option<rspp_transport_api::wire::WireReport> {
        None
    }
}

/// One call.
pub struct Caller {
    /// Its session.
    pub session: SessionHandle,
    /// What comes in.
    pub microphone: mpsc::Sender<Ingress>,
    /// What goes out.
    pub heard: Arc<Heard>,
    /// Whether the user speaks, for metronomes that care.
    pub speaking: Arc<AtomicBool>,
    recording: Option<Arc<MemoryRecording>>,
}

impl Caller {
    /// Takes away what was recorded so far, as a disk would.
    pub fn store(&self) {
        drop(self.recording.as_ref().map(|recording| recording.take()));
    }

    /// Types a sentence, which opens a turn.
    pub fn types(&self, text: &str) {
        let typed = Ingress::Text(text.to_owned());
        assert!(self.microphone.try_send(typed).is_ok(), "the line listens");
    }
}

/// A runtime for benches: the usual nodes and a probe.
pub async fn runtime(providers: Providers, meters: &Arc<Meters>) -> Runtime {
    let probed = Arc::clone(meters);
    let make: NodeFactory = Arc::new(move |_| Box::new(Probe(Arc::clone(&probed))));
    runtime_with(providers, [(PROBE, make)], meters.watch).await
}

/// A runtime with other nodes.
pub async fn runtime_with<const N: usize>(
    providers: Providers,
    nodes: [(&str, NodeFactory); N],
    watch: Watch,
) -> Runtime {
    let mut registry = NodeRegistry::default();
    for (name, make) in nodes {
        registry.register(name, make);
    }
    let mut config = Config::new(providers, Pools::new(1));
    config.nodes = Arc::new(registry);
    config.clock = watch.clock;
    // What is beyond the runtime's own limits is what is measured.
    config.limits.node = QuotasSpec::default();
    config.limits.overload = OverloadSpec {
        scheduler_late_ms: None,
        output_late_ms: None,
        ..OverloadSpec::default()
    };
    Runtime::start(config).await.expect("the runtime starts")
}

/// Opens a session whose user is `source`.
pub async fn open(
    runtime: &Runtime,
    name: &str,
    pipeline: &PipelineSpec,
    source: Source,
    sink: Box<dyn Sink>,
    recorder: Recorder,
) -> SessionHandle {
    runtime
        .open(SessionRequest {
            tenant: TenantId::new("bench").expect("not blank"),
            session: SessionId::new(name).expect("not blank"),
            pipeline: pipeline.clone(),
            policy: None,
            settings: bindings(),
            versions: Versions::default(),
            attributes: [].into(),
            transport: Transport {
                kind: TransportKind::Loopback,
                source_rate: SampleRate::HZ_16000,
                source,
                sink,
                caller: None,
            },
            recorder,
        })
        .await
        .expect("the session opens")
}

/// Opens a call; its timeline is kept in memory and taken away by the metronome.
pub async fn call(
    runtime: &Runtime,
    name: &str,
    pipeline: &PipelineSpec,
    meters: &Arc<Meters>,
) -> Caller {
    let (recorder, recording) = Recorder::in_memory(Options::default());
    let mut caller = call_with(runtime, name, pipeline, meters, recorder).await;
    caller.recording = Some(Arc::new(recording));
    caller
}

/// Opens a call whose timeline goes where `recorder` has it.
pub async fn call_with(
    runtime: &Runtime,
    name: &str,
    pipeline: &PipelineSpec,
    meters: &Arc<Meters>,
    recorder: Recorder,
) -> Caller {
    let (microphone, frames) = mpsc::channel(MICROPHONE);
    let heard = Arc::<Heard>::default();
    let sink = Box::new(MeteredSink {
        heard: Arc::clone(&heard),
        meters: Arc::clone(meters),
    });
    let session = open(runtime, name, pipeline, listen(frames), sink, recorder).await;
    Caller {
        session,
        microphone,
        heard,
        speaking: Arc::default(),
        recording: None,
    }
}

/// What comes out of a channel, as a transport's source.
pub fn listen(frames: mpsc::Receiver<Ingress>) -> Source {
    Box::pin(stream::unfold(frames, |mut frames| async move {
        let next = frames.recv().await?;
        Some((next, frames))
    }))
}

/// Opens so many calls.
pub async fn calls(
    runtime: &Runtime,
    count: usize,
    pipeline: &PipelineSpec,
    meters: &Arc<Meters>,
) -> Vec<Caller> {
    let mut callers = Vec::with_capacity(count);
    for n in 0..count {
        callers.push(call(runtime, &format!("call-{n}"), pipeline, meters).await);
    }
    callers
}

/// Gives each caller a frame every 20 ms, spread over the 20 ms, from a thread of its own; what a
/// network and a disk would do. Stops when dropped.
pub struct Metronome {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What microphones pick up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sound {
    /// Frames that say when they were sent.
    Stamped,
    /// A tone while the user speaks, silence otherwise.
    Speech,
}

struct Microphone {
    to: mpsc::Sender<Ingress>,
    speaking: Arc<AtomicBool>,
    recording: Option<Arc<MemoryRecording>>,
}

impl Metronome {
    /// Starts it.
    pub fn start(callers: &[Caller], sound: Sound, meters: &Arc<Meters>) -> Self {
        let microphones: Vec<_> = callers
            .iter()
            .map(|caller| Microphone {
                to: caller.microphone.clone(),
                speaking: Arc::clone(&caller.speaking),
                recording: caller.recording.clone(),
            })
            .collect();
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let watch = meters.watch;
        let thread = thread::Builder::new()
            .name("metronome".to_owned())
            .spawn(move || {
                let own = tokio::runtime::Builder::new_current_thread()
                    .enable_time()
                    .build()
                    .expect("a runtime of its own");
                own.block_on(beat(&microphones, sound, &watch, &stopped));
            })
            .expect("a thread starts");
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Metronome {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _it_panicked = thread.join();
        }
    }
}

async fn beat(microphones: &[Microphone], sound: Sound, watch: &Watch, stop: &AtomicBool) {
    let voice: Bytes = tone(FRAME).into_iter().flat_map(i16::to_le_bytes).collect();
    let silence = Bytes::from(vec![0; FRAME_BYTES]);
    let beats = FRAME.as_millis() as usize;
    let mut interval = tokio::time::interval(Duration::from_millis(1));
    interval.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for beat in 0_usize.. {
        interval.tick().await;
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let due = microphones.iter().enumerate();
        for (at, microphone) in due.skip(beat % beats).step_by(beats) {
            let frame = match sound {
                Sound::Stamped => stamped(watch),
                Sound::Speech if microphone.speaking.load(Ordering::Relaxed) => voice.clone(),
                Sound::Speech => silence.clone(),
            };
            // A line that is full or gone loses the frame, as a network would.
            let _lost = microphone.to.try_send(Ingress::Audio(frame));
            // Disks do not write for all calls at once.
            if (beat / beats + at / beats).is_multiple_of(16)
                && let Some(recording) = &microphone.recording
            {
                drop(recording.take());
            }
        }
    }
}

/// Ends everything.
pub async fn end(runtime: Runtime, callers: Vec<Caller>) {
    drop(callers);
    runtime.shut_down(Duration::from_secs(20)).await;
}
