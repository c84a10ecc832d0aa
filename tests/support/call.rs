//! A scripted call: scripted providers, a scripted caller, real actors, virtual time.

use std::{sync::Arc, time::Duration};

use rspp_host::{
    Config, Notice, Pools, Runtime, SessionHandle, SessionRequest, report::SessionReport,
};
use rspp_kernel::plan::{LayeredSettings, Settings};
use rspp_proto::{
    ProviderId, SessionId, TenantId,
    spec::{Modality, PipelineSpec},
};
use rspp_provider_api::{
    Providers,
    scripted::{ScriptedEndOfTurn, ScriptedLlm, ScriptedStt, ScriptedTts, ScriptedVoice},
};
use rspp_timeline::{Entry, MemoryRecording, Options, Recorder};
use rspp_transport_api::loopback::{self, Line, Script, Start, Utterance};
use tokio::sync::broadcast;

/// The scripted providers of a call; change them before it starts.
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
            llm: Arc::new(ScriptedLlm::new("llm").answers(["Good day to you. How can I help?"])),
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
}

/// A call that is over.
pub struct Ended {
    /// What the session leaves.
    pub report: SessionReport,
    /// What was recorded.
    pub entries: Vec<Entry>,
    /// Both sides.
    pub line: Line,
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
}

impl Builder {
    /// A call of the simple pipeline with these utterances.
    pub fn new(cast: &Cast, utterances: Vec<Utterance>) -> Self {
        Self {
            providers: cast.providers(),
            pipeline: PipelineSpec::simple(),
            script: Script {
                utterances,
                ..Script::default()
            },
            configure: Box::new(|_| {}),
        }
    }

    /// Places the call; on a paused clock it takes no time.
    pub async fn start(self) -> Call {
        let mut config = Config::new(self.providers, Pools::in_virtual_time(2));
        (self.configure)(&mut config);
        let runtime = Runtime::start(config).await.expect("the runtime starts");
        let (recorder, recording) = Recorder::in_memory(Options::default());
        let (transport, line) = loopback::call(self.script).expect("usual rates");
        let session = runtime
            .open(SessionRequest {
                tenant: TenantId::new("tenant").expect("not blank"),
                session: SessionId::new("call").expect("not blank"),
                pipeline: self.pipeline,
                policy: None,
                settings: bindings(),
                attributes: [].into(),
                transport,
                recorder,
            })
            .await
            .expect("the session opens");
        let notices = session.subscribe();
        Call {
            runtime,
            session,
            line,
            recording,
            notices,
        }
    }

    /// Places the call and waits until the user hangs up.
    pub async fn hold(self) -> Ended {
        self.start().await.end().await
    }
}

impl Call {
    /// Waits until the call is over, and everything with it.
    pub async fn end(self) -> Ended {
        let limit = Duration::from_secs(600);
        let report = tokio::time::timeout(limit, self.session.wait())
            .await
            .expect("the call ends")
            .expect("the session leaves a report");
        assert!(
            self.runtime.shut_down(Duration::from_secs(5)).await,
            "something had to be killed: {:?}",
            self.runtime.tree()
        );
        Ended {
            report,
            entries: self.recording.entries(),
            line: self.line,
        }
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
}
