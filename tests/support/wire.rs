//! A session on a bare line: the test is the client, frame by frame and event by event.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::stream;
use rspp_host::{
    Config, Notice, Pools, Runtime, SessionHandle, SessionRequest, report::SessionReport,
};
use rspp_proto::{
    AudioChunk, SampleRate, SessionId, TenantId, TraceParent, TurnNumber, abi::Signal,
    control::Versions, spec::PipelineSpec,
};
use rspp_timeline::{Entry, MemoryRecording, Options, Recorder};
use rspp_transport_api::{Ingress, Outgoing, Sink, SinkError, Transport, TransportKind};
use tokio::{
    sync::{broadcast, mpsc},
    time::Instant,
};

use crate::call::{Cast, bindings};

/// How a peer takes what it is offered; change it while the call runs.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Of so many frames one is refused: 0 for none, 1 for all.
    refuses: Arc<AtomicU32>,
    offered: Arc<AtomicU64>,
    taken: Arc<AtomicU64>,
    times: Arc<Mutex<Vec<Instant>>>,
}

impl Peer {
    /// From now on one of so many frames is refused: 0 for none, 1 for all.
    pub fn refuses_one_of(&self, frames: u32) {
        self.refuses.store(frames, Ordering::Relaxed);
    }

    /// When it took each of them.
    pub fn times(&self) -> Vec<Instant> {
        self.times.lock().expect("nobody panics here").clone()
    }

    /// Frames that it took.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Sink for Peer {
    fn sample_rate(&self) -> SampleRate {
        SampleRate::HZ_16000
    }

    fn lead(&self) -> Duration {
        Duration::from_millis(60)
    }

    fn codec(&self) -> rspp_proto::Codec {
        rspp_proto::Codec::Pcm16
    }

    fn play(&mut self, _turn: TurnNumber, _chunk: &AudioChunk) -> Result<(), SinkError> {
        let refuses = u64::from(self.refuses.load(Ordering::Relaxed));
        let nth = self.offered.fetch_add(1, Ordering::Relaxed);
        if refuses > 0 && nth.is_multiple_of(refuses) {
            return Err(SinkError::Full);
        }
        self.taken.fetch_add(1, Ordering::Relaxed);
        let mut times = self.times.lock().expect("nobody panics here");
        times.push(Instant::now());
        Ok(())
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

/// How to open a session on a bare line.
pub struct Opening {
    /// What it runs.
    pub pipeline: PipelineSpec,
    /// Which transport it says it is.
    pub kind: TransportKind,
    /// Where in a trace its client is.
    pub caller: Option<TraceParent>,
    /// Changes of the runtime's configuration.
    pub configure: Box<dyn FnOnce(&mut Config)>,
}

impl Default for Opening {
    fn default() -> Self {
        Self {
            pipeline: PipelineSpec::simple(),
            kind: TransportKind::Websocket,
            caller: None,
            configure: Box::new(|_| {}),
        }
    }
}

/// A session on a bare line.
pub struct Wire {
    /// The session.
    pub session: SessionHandle,
    /// Sends what the client sends; dropping it hangs up.
    pub client: mpsc::UnboundedSender<Ingress>,
    /// Takes what is played.
    pub peer: Peer,
    /// What the session says.
    pub notices: broadcast::Receiver<Notice>,
    /// How often each signal was given so far.
    given: Arc<Mutex<BTreeMap<Signal, usize>>>,
    recording: MemoryRecording,
    runtime: Runtime,
}

/// What a session on a bare line leaves.
pub struct Over {
    /// Its report.
    pub report: SessionReport,
    /// What was recorded.
    pub entries: Vec<Entry>,
}

impl Wire {
    /// Opens a session named `call`, served by `cast`.
    pub async fn open(cast: &Cast, opening: Opening) -> Self {
        let mut config = Config::new(cast.providers(), Pools::in_virtual_time(2));
        (opening.configure)(&mut config);
        let runtime = Runtime::start(config).await.expect("the runtime starts");
        let (client, from_client) = mpsc::unbounded_channel();
        let source = stream::unfold(from_client, |mut from| async move {
            from.recv().await.map(|ingress| (ingress, from))
        });
        let (recorder, recording) = Recorder::in_memory(Options::default());
        let peer = Peer::default();
        let session = runtime
            .open(SessionRequest {
                tenant: TenantId::new("tenant").expect("not blank"),
                session: SessionId::new("call").expect("not blank"),
                pipeline: opening.pipeline,
                policy: None,
                settings: bindings(),
                versions: Versions::default(),
                attributes: BTreeMap::new(),
                transport: Transport {
                    kind: opening.kind,
                    source_rate: SampleRate::HZ_16000,
                    source: Box::pin(source),
                    sink: Box::new(peer.clone()),
                    caller: opening.caller,
                },
                recorder,
            })
            .await
            .expect("the session opens");
        let given = count(session.subscribe(), &recording);
        Self {
            notices: session.subscribe(),
            session,
            client,
            peer,
            given,
            recording,
            runtime,
        }
    }

    /// The client sends something.
    pub fn send(&self, ingress: Ingress) {
        self.client.send(ingress).expect("the session goes on");
    }

    /// The client types.
    pub fn types(&self, text: &str) {
        self.send(Ingress::Text(text.to_owned()));
    }

    /// Signals so far by name, in order.
    pub fn signals(&self) -> Vec<Signal> {
        let entries = self.recording.entries();
        entries.iter().filter_map(Entry::signal).collect()
    }

    fn times_given(&self, signal: Signal) -> usize {
        let given = self.given.lock().expect("nobody panics here");
        given.get(&signal).copied().unwrap_or(0)
    }

    /// Waits until a signal was given so many times.
    pub async fn until(&self, signal: Signal, times: usize) {
        for _ in 0..60_000 {
            if self.times_given(signal) >= times {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("no {times}. {signal} within a minute: {:?}", self.signals());
    }

    /// Waits until the session is over, and checks what every session has to leave.
    pub async fn end(self) -> Over {
        let Self {
            session,
            client,
            recording,
            runtime,
            ..
        } = self;
        drop(client);
        over(session, &recording, &runtime).await
    }

    /// The same, but the client stays on the line.
    pub async fn end_by_itself(self) -> Over {
        let _client = self.client;
        over(self.session, &self.recording, &self.runtime).await
    }
}

/// Counts the signals of a session, from its first one on.
fn count(
    mut notices: broadcast::Receiver<Notice>,
    recording: &MemoryRecording,
) -> Arc<Mutex<BTreeMap<Signal, usize>>> {
    let mut given = BTreeMap::new();
    for signal in recording.entries().iter().filter_map(Entry::signal) {
        *given.entry(signal).or_default() += 1;
    }
    let given = Arc::new(Mutex::new(given));
    let counted = Arc::clone(&given);
    tokio::spawn(async move {
        loop {
            match notices.recv().await {
                Ok(Notice::Signal(signal)) => {
                    let mut given = given.lock().expect("nobody panics here");
                    *given.entry(signal.signal).or_default() += 1;
                }
                Ok(_no_signal) => {}
                Err(broadcast::error::RecvError::Closed) => return,
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    panic!("a subscriber missed {missed} notices")
                }
            }
        }
    });
    counted
}

async fn over(session: SessionHandle, recording: &MemoryRecording, runtime: &Runtime) -> Over {
    let limit = Duration::from_mins(5);
    let report = tokio::time::timeout(limit, session.wait())
        .await
        .expect("the session ends")
        .expect("the session leaves a report");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let entries = recording.entries();
    let violations = rspp_timeline::verify::verify(&entries);
    assert!(violations.is_empty(), "{violations:#?}\n{entries:#?}");
    assert!(runtime.shut_down(Duration::from_secs(5)).await);
    Over { report, entries }
}

impl Over {
    /// How the turns ended: `commit`, or why they were aborted.
    pub fn endings(&self) -> Vec<&str> {
        let turns = self.report.turns.iter();
        turns
            .map(|turn| turn.reason.as_deref().unwrap_or(&turn.outcome))
            .collect()
    }

    /// Signals by name, in order.
    pub fn signals(&self) -> Vec<&'static str> {
        let entries = self.entries.iter();
        entries
            .filter_map(Entry::signal)
            .map(Signal::as_str)
            .collect()
    }
}
