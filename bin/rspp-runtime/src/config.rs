//! The settings of a runtime.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use rspp_host::AwayMode;
use rspp_otlp::Protocol;
use rspp_proto::{ProviderId, spec::Modality};
use rspp_provider_http::SecretRef;
use rspp_service::{logs::Logs, settings::Settings, span::Span};
use rspp_timeline::export::ExportPolicy;
use serde::{Deserialize, Serialize};

/// All settings; the defaults are what one machine needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Its name in the fleet.
    pub(crate) name: String,
    /// Where it stands.
    pub(crate) region: String,
    /// Sessions that it takes.
    pub(crate) capacity: u32,
    /// What else it can: pipelines may ask for it.
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) listen: Listen,
    pub(crate) control_plane: ControlPlane,
    /// The pipeline of clients that ask for none; the built-in one without.
    pub(crate) pipeline: Option<PathBuf>,
    /// A folder of packages: nodes that pipelines name as `name@version`.
    pub(crate) packages: Option<PathBuf>,
    pub(crate) providers: Providers,
    pub(crate) timelines: Timelines,
    pub(crate) drain: Drain,
    pub(crate) telemetry: Telemetry,
    /// Where every accepted frame is noted, a JSON object a line: for checks that nobody else spoke.
    pub(crate) outputs: Option<PathBuf>,
    /// Where the addresses are written once it serves, as JSON.
    pub(crate) announce: Option<PathBuf>,
    pub(crate) log: Logs,
}

/// Where callers come in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Listen {
    /// Clients, by WebSocket.
    pub(crate) calls: SocketAddr,
    /// How clients reach it from elsewhere; what it listens on without.
    pub(crate) advertise: Option<String>,
    /// `/livez`, `/readyz` and `/status`, over plain HTTP.
    pub(crate) health: SocketAddr,
}

/// The fleet; without addresses it stands alone, and serves this machine only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ControlPlane {
    /// `https://host:port` of each replica.
    pub(crate) addresses: Vec<String>,
    /// The authorities whose certificates it may show.
    pub(crate) authorities: Option<PathBuf>,
    /// Our certificate, and those between it and the authority.
    pub(crate) certificate: Option<PathBuf>,
    /// Its private key.
    pub(crate) key: Option<PathBuf>,
    /// `strict` refuses new sessions while nobody answers; `availability` takes those that nobody else can
    /// be given.
    pub(crate) mode: AwayMode,
    /// How long snapshots are decided by after they were last heard to be as they are.
    pub(crate) max_staleness: Span,
    /// How old what is known of the fleet may be where sessions move: when one is taken on or handed over, or
    /// a client is told where to go. What is older is fetched anew first.
    pub(crate) max_view_age: Span,
}

/// Who serves speech and language.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Providers {
    pub(crate) stt: Option<ProviderId>,
    pub(crate) llm: Option<ProviderId>,
    pub(crate) tts: Option<ProviderId>,
    pub(crate) vad: Option<ProviderId>,
    pub(crate) end_of_turn: Option<ProviderId>,
    /// Who is asked when the one above fails, in this order, by what they do: `llm: [dialogue]`.
    pub(crate) alternates: BTreeMap<Modality, Vec<ProviderId>>,
    /// Where the local models are; the usual place without.
    pub(crate) models: Option<PathBuf>,
    /// Offers `scripted` recognition and synthesis, which need no models: to try a fleet out.
    pub(crate) scripted: bool,
    pub(crate) openai: OpenAi,
}

/// A server that speaks OpenAI's protocol, offered as `openai`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct OpenAi {
    /// Such as `http://127.0.0.1:8080/v1`.
    pub(crate) url: Option<String>,
    /// The model to ask it for.
    pub(crate) model: Option<String>,
    /// Where its key is, never the key itself: `env://NAME`.
    pub(crate) api_key: Option<SecretRef>,
}

/// Who is told how calls go, while they go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Telemetry {
    pub(crate) otlp: OtlpSettings,
}

/// A collector of traces; without an address none are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct OtlpSettings {
    /// Such as `http://127.0.0.1:4317`.
    pub(crate) url: Option<String>,
    /// `grpc`, in the clear, or `http`, also over TLS.
    pub(crate) protocol: Protocol,
    /// Where its token is, never the token itself: `env://NAME`.
    pub(crate) token: Option<SecretRef>,
    /// Turns whose spans may wait for it; what is beyond that is lost, and counted.
    pub(crate) queue: usize,
}

impl Default for OtlpSettings {
    fn default() -> Self {
        Self {
            url: None,
            protocol: Protocol::default(),
            token: None,
            queue: 1_024,
        }
    }
}

/// Where sessions' timelines go; they are not recorded without `to`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Timelines {
    /// The archive: a directory, `s3://bucket/prefix` or `http://host/bucket/prefix`.
    pub(crate) to: Option<String>,
    /// The region that it lies in; the runtime's own without. Tenants whose residency does not allow it are not
    /// served here.
    pub(crate) region: Option<String>,
    /// Where they wait for the archive, on a disk that survives a restart.
    pub(crate) spool: PathBuf,
    /// A file of keys that they are sealed with in the archive; in the clear without.
    pub(crate) keys: Option<PathBuf>,
    /// How often there is looked for what has waited for longer than its tenant's rule allows.
    pub(crate) expire_every: Span,
    pub(crate) policy: ExportPolicy,
}

/// What becomes of sessions when the program is asked to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Drain {
    pub(crate) how: DrainMode,
    /// How long it may take; what is left is cut off.
    pub(crate) deadline: Span,
}

/// What becomes of sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DrainMode {
    /// Each moves once what it says is said, for another runtime to go on with; they end if there is none.
    #[default]
    Move,
    /// Each ends once what it says is said.
    Finish,
    /// Each goes on until its user hangs up.
    Wait,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "runtime-1".to_owned(),
            region: "local".to_owned(),
            capacity: 100,
            labels: BTreeMap::new(),
            listen: Listen::default(),
            control_plane: ControlPlane::default(),
            pipeline: None,
            packages: None,
            providers: Providers::default(),
            timelines: Timelines::default(),
            drain: Drain::default(),
            telemetry: Telemetry::default(),
            outputs: None,
            announce: None,
            log: Logs::default(),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            calls: SocketAddr::from(([127, 0, 0, 1], 7410)),
            advertise: None,
            health: SocketAddr::from(([127, 0, 0, 1], 7411)),
        }
    }
}

impl Default for ControlPlane {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            authorities: None,
            certificate: None,
            key: None,
            mode: AwayMode::default(),
            max_staleness: Span::seconds(30),
            max_view_age: Span::seconds(5),
        }
    }
}

impl Default for Timelines {
    fn default() -> Self {
        Self {
            to: None,
            region: None,
            spool: PathBuf::from("rspp-spool"),
            keys: None,
            expire_every: Span::seconds(60),
            policy: ExportPolicy::default(),
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            how: DrainMode::default(),
            deadline: Span::seconds(30),
        }
    }
}

impl Settings for Config {
    const PREFIX: &'static str = "RSPP_RUNTIME_";
    const FREE: &'static [&'static str] = &["labels", "providers.alternates"];
}
