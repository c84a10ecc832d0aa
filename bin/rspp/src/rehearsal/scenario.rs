//! The scenario file, `rspp.scenario.v1`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rspp_host::CancelTarget;
use rspp_kernel::{
    CancelReason,
    plan::{Health, LayeredSettings},
};
use rspp_proto::{
    Epoch, IdempotencyKey, InvocationId, NodeId, ProviderId, SampleRate, SessionId, TenantId,
    abi::{CancelScope, Signal},
    spec::{LimitsSpec, Modality, Mode, PolicyBundle, Priority, RecordingLevel, ReplayMode},
};
use rspp_timeline::{Capacity, export::ExportPolicy};
use serde::Deserialize;
use serde_json::{Value, json};

use super::expect::Expected;
use crate::{problem::Problem, specs};

/// What the format calls itself.
const SCHEMA: &str = "rspp.scenario.v1";

/// A rehearsal.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// `rspp.scenario.v1`.
    schema: String,
    /// What it shows, in a sentence.
    pub(crate) title: String,
    /// Ids of the features and promises that it shows.
    #[serde(default)]
    pub(crate) shows: Vec<String>,
    /// A file, a whole pipeline, or what differs from the built-in one: maps are merged, nodes by `id`,
    /// edges by `id` or by their ends.
    #[serde(default)]
    pub(crate) pipeline: Value,
    /// A file, or a whole policy bundle.
    #[serde(default)]
    pub(crate) policy: Value,
    /// Settings by layer.
    #[serde(default)]
    pub(crate) settings: LayeredSettings,
    /// Scripted providers, preferred first; those of a modality that is not named go well.
    #[serde(default)]
    pub(crate) providers: Vec<Provider>,
    /// Kinds of nodes that only this rehearsal has, for the pipeline to name.
    #[serde(default)]
    pub(crate) nodes: BTreeMap<String, NodeConduct>,
    /// What answers the tools that post to an address, one by one; the last from then on.
    #[serde(default)]
    pub(crate) servers: BTreeMap<String, Vec<ServerAnswer>>,
    /// What the runtime takes on.
    #[serde(default)]
    pub(crate) limits: LimitsSpec,
    /// How busy the processors are, moment by moment; what this machine does without.
    #[serde(default)]
    pub(crate) cpu: Vec<Busy>,
    /// How often the hooks of all nodes of a kind ran, when all calls are over (F-012).
    #[serde(default)]
    pub(crate) hooks: BTreeMap<String, Hooks>,
    /// What batches the calls of language models go in, where `limits` has them gathered (F-051).
    #[serde(default)]
    pub(crate) batches: BTreeMap<ProviderId, Batches>,
    /// Where timelines go.
    #[serde(default)]
    pub(crate) recording: Recording,
    /// Run in real time.
    #[serde(default)]
    pub(crate) realtime: bool,
    /// The calls, in the order in which they are placed.
    pub(crate) calls: Vec<Call>,
    /// Where relative paths start.
    #[serde(skip)]
    pub(crate) folder: PathBuf,
}

/// How busy the processors are from some moment on.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Busy {
    pub(crate) from_ms: u64,
    pub(crate) percent: u64,
}

/// How often each hook ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Hooks {
    pub(crate) init: u32,
    pub(crate) start: u32,
    pub(crate) stop: u32,
}

/// What a language model is asked, when all calls are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Batches {
    pub(crate) batches: u64,
    /// In all of them together.
    pub(crate) calls: u64,
}

/// How timelines are kept, and on what.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Recording {
    /// The level; the plan's without.
    pub(crate) level: Option<RecordingLevel>,
    /// Bytes that fit on the disk; then it is full.
    pub(crate) disk_bytes: Option<usize>,
    /// What each write takes, in milliseconds.
    pub(crate) write_takes_ms: u64,
    /// How each call is replayed when all are over: it has to go the same way again.
    pub(crate) replays: Vec<ReplayMode>,
    /// Entries that may wait for the disk.
    pub(crate) queue_entries: Option<usize>,
    /// Timelines are exported while they are written: to an archive that only this rehearsal has.
    pub(crate) exports: Option<Exported>,
    /// What no recording may hold, wherever it stands.
    pub(crate) hides: Vec<String>,
    /// What each recording holds.
    pub(crate) holds: Vec<String>,
}

impl Recording {
    /// How much may wait for the disk.
    pub(crate) fn capacity(&self) -> Capacity {
        let mut capacity = Capacity::default();
        if let Some(entries) = self.queue_entries {
            capacity.total.entries = entries;
        }
        capacity
    }
}

/// How timelines are exported, and how the archive fares; the same words as in a file of settings.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Exported {
    pub(crate) policy: ExportPolicy,
    /// When the archive does not answer.
    pub(crate) outages: Vec<Outage>,
}

/// An archive that does not do what it is asked for, for a while.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Outage {
    #[serde(default)]
    pub(crate) from_ms: u64,
    pub(crate) to_ms: u64,
    pub(crate) how: OutageKind,
}

/// What it does instead.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OutageKind {
    /// It does not answer.
    Hangs,
    /// It says that it cannot.
    Fails,
}

/// A scripted provider.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Provider {
    pub(crate) id: ProviderId,
    pub(crate) modality: Modality,
    /// What a language model answers, turn by turn and over again; tool calls may follow a text.
    #[serde(default)]
    pub(crate) answers: Vec<Reply>,
    /// The pace of a model's tokens.
    #[serde(default)]
    pub(crate) token_every_ms: u64,
    /// From the end of an utterance to its final text.
    #[serde(default)]
    pub(crate) final_after_ms: u64,
    /// Audio that a word of a partial text takes.
    #[serde(default)]
    pub(crate) word_every_ms: Option<u64>,
    /// The confidence of final texts, 0 to 1.
    #[serde(default)]
    pub(crate) confidence: Option<f32>,
    /// How sure an end-of-turn model is, question by question.
    #[serde(default)]
    pub(crate) certainty: Vec<f32>,
    /// How the first calls go, one by one.
    #[serde(default)]
    pub(crate) goes: Vec<Goes>,
    /// How all other calls go.
    #[serde(default)]
    pub(crate) then: Goes,
}

/// What a language model answers.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Reply {
    /// These words.
    Words(String),
    /// It has tools called, after some words perhaps.
    Calls(ByTools),
}

/// An answer that has tools called.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByTools {
    #[serde(default)]
    pub(crate) says: String,
    pub(crate) calls: Vec<Called>,
    /// What follows in the same turn once the tools have answered; without, it says what they said.
    #[serde(default)]
    pub(crate) then: Option<Box<Reply>>,
}

/// A tool that is called.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Called {
    pub(crate) tool: String,
    /// Its arguments.
    #[serde(default)]
    pub(crate) with: serde_json::Map<String, Value>,
}

/// How a server answers one request.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServerAnswer {
    #[serde(default)]
    pub(crate) says: String,
    /// The status that it refuses with.
    #[serde(default)]
    pub(crate) refuses: Option<u16>,
    #[serde(default)]
    pub(crate) late_ms: u64,
}

/// How one attempt goes; well by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Goes {
    /// Waited before the first chunk.
    pub(crate) late_ms: u64,
    /// After how many chunks the trouble comes.
    pub(crate) after_chunks: u32,
    pub(crate) trouble: Option<Trouble>,
    pub(crate) on_cancel: OnCancel,
}

/// What goes wrong in an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Trouble {
    /// Nothing comes any more.
    Stall,
    /// The answer ends as if it were complete.
    Truncate,
    /// The adapter panics.
    Panic,
    /// The connection breaks.
    Disconnect,
    /// The provider has no capacity.
    Overload,
    /// The provider's server fails.
    ServerError,
    /// The request is refused.
    Refuse,
}

/// What an attempt does when it is cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnCancel {
    #[default]
    Stop,
    StopAfterMs(u64),
    Ignore,
}

/// How nodes of a kind go: they forward what they get, until the trouble comes.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NodeConduct {
    /// What each event takes.
    pub(crate) takes_ms: u64,
    /// After how many events of one node the trouble comes.
    pub(crate) after_events: u32,
    pub(crate) trouble: Option<NodeTrouble>,
    /// The hook that it comes in, in place of an event.
    pub(crate) hook: Option<Hook>,
    /// How often it comes in all; each time without.
    pub(crate) times: Option<u32>,
    /// Texts are numbered, and what counts them is kept there: they say what it survives.
    pub(crate) numbers_in: Option<Kept>,
    /// Each event goes out so many times, as the parts of one moment of the sync domain `av` (F-146); once and for
    /// itself without.
    pub(crate) parts: u32,
}

/// Where a node keeps something (F-155).
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kept {
    /// In itself.
    Node,
    /// In its turn.
    Turn,
    /// In its session, where that runs.
    Hot,
    /// In its session, wherever that goes.
    Durable,
}

/// What a node is asked once, whatever flows (F-012).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Hook {
    Init,
    Start,
    Stop,
}

/// What goes wrong in a node.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum NodeTrouble {
    /// The node panics.
    Panic,
    /// The node gives up.
    Fail,
    /// The node waits for what never comes.
    Hang,
    /// The node works on until it is cancelled, and puts its things in order.
    WorkOn,
    /// The node works on, cancelled or not.
    Deaf,
}

/// One call.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Call {
    #[serde(default = "call")]
    pub(crate) id: SessionId,
    /// So many calls that are all the same; each has its number after its id.
    #[serde(default)]
    pub(crate) copies: Option<u32>,
    /// The call whose session this is: a second runtime takes it over when this call is placed. Leases and
    /// durable state are shared by both.
    #[serde(default)]
    pub(crate) takes_over: Option<SessionId>,
    #[serde(default = "tenant")]
    pub(crate) tenant: TenantId,
    /// Who comes first; the pipeline's word without.
    #[serde(default)]
    pub(crate) priority: Option<Priority>,
    /// What conditions and policies may ask of it.
    #[serde(default)]
    pub(crate) attributes: BTreeMap<String, Value>,
    /// When it is placed.
    #[serde(default)]
    pub(crate) opens_at_ms: u64,
    /// What the user says, in order.
    #[serde(default)]
    pub(crate) says: Vec<Says>,
    /// The rate that the agent's audio is wanted in, in hertz.
    #[serde(default)]
    pub(crate) line_rate: Option<u32>,
    /// How long the user waits for a reply that does not come.
    #[serde(default)]
    pub(crate) patience_ms: Option<u64>,
    /// How long after the last reply the user hangs up.
    #[serde(default)]
    pub(crate) hangs_up_after_ms: Option<u64>,
    /// How the agent's voice comes back into the microphone.
    #[serde(default)]
    pub(crate) speakerphone: Option<Speakerphone>,
    /// What the call goes over.
    #[serde(default)]
    pub(crate) line: CallLine,
    /// What else happens, and when.
    #[serde(default)]
    pub(crate) cues: Vec<Cue>,
    #[serde(default)]
    pub(crate) expect: Expected,
}

/// What settings say of providers is held to the rules that it is held to when it is published.
fn providers_of(settings: &LayeredSettings) -> Result<(), String> {
    let published = settings.published.as_ref().map(|it| &it.providers);
    let layers = [
        ("defaults", Some(&settings.defaults.providers)),
        ("environment", Some(&settings.environment.providers)),
        ("tenant", Some(&settings.tenant.providers)),
        ("session", Some(&settings.session.providers)),
        ("published", published),
    ];
    for (layer, providers) in layers {
        let Some(providers) = providers.filter(|it| !it.is_empty()) else {
            continue;
        };
        let bundle = json!({
            "schema": "rspp.policy.bundle.v1",
            "policy_resolution_snapshot": layer,
            "allowed_adaptive_actions": [],
            "providers": providers,
        });
        PolicyBundle::parse(layer, &bundle.to_string(), Mode::Strict)
            .map_err(|wrong| specs::wrong_within(&format!("settings.{layer}"), &wrong))?;
    }
    Ok(())
}

/// A rate that a line may carry.
pub(crate) fn audible(rate: u32) -> Result<SampleRate, String> {
    SampleRate::new(rate)
        .filter(|_| (8_000..=48_000).contains(&rate))
        .ok_or_else(|| format!("{rate} is no rate of audio; 8000 to 48000 are"))
}

/// A loudspeaker in front of the microphone.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Speakerphone {
    /// How much of the agent's voice comes back, by amplitude.
    pub(crate) gain: f32,
    /// How long it takes.
    pub(crate) delay_ms: u64,
}

/// What a call goes over; nothing is late by default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CallLine {
    /// A telephone line: 8 kHz and G.711, both ways.
    pub(crate) telephone: bool,
    /// How late the agent's frames come to the user, one by one and over again.
    pub(crate) agent_late_ms: Vec<u64>,
    /// The same of the user's frames, which say where they belong then.
    pub(crate) user_late_ms: Vec<u64>,
    /// What the user's device waits for before it plays.
    pub(crate) cushion_ms: u64,
}

impl Call {
    /// As many calls as it stands for.
    fn copied(self) -> Vec<Self> {
        let Some(copies) = self.copies else {
            return vec![self];
        };
        let numbered = (1..=copies).map(|n| Self {
            id: SessionId::new(format!("{}-{n}", self.id)).expect("not blank"),
            ..self.clone()
        });
        numbered.collect()
    }

    /// The session that it is a call of.
    pub(crate) fn session(&self) -> &SessionId {
        self.takes_over.as_ref().unwrap_or(&self.id)
    }
}

impl Provider {
    /// What it is told that one of its modality does not do.
    fn check(&self) -> Result<(), String> {
        use Modality as M;
        let is_told = |what: bool, name: &'static str, of: &[Modality]| {
            (what && !of.contains(&self.modality)).then_some(name)
        };
        let streams = [M::Stt, M::Llm, M::Tts];
        let idle = [
            is_told(!self.answers.is_empty(), "answers", &[M::Llm]),
            is_told(self.token_every_ms > 0, "token_every_ms", &[M::Llm]),
            is_told(self.final_after_ms > 0, "final_after_ms", &[M::Stt]),
            is_told(self.word_every_ms.is_some(), "word_every_ms", &[M::Stt]),
            is_told(self.confidence.is_some(), "confidence", &[M::Stt]),
            is_told(!self.certainty.is_empty(), "certainty", &[M::EndOfTurn]),
            is_told(!self.goes.is_empty(), "goes", &streams),
            is_told(self.then != Goes::default(), "then", &streams),
        ];
        match idle.into_iter().flatten().next() {
            Some(name) => {
                let modality = self.modality.as_str();
                Err(format!("{name}: does nothing in a provider of {modality}"))
            }
            None => Ok(()),
        }
    }
}

fn call() -> SessionId {
    SessionId::new("call").expect("not blank")
}

fn tenant() -> TenantId {
    TenantId::new("tenant").expect("not blank")
}

/// Something that the user says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Says {
    /// The words, as recognition understands them; nothing for a noise without words.
    #[serde(default)]
    pub(crate) words: String,
    /// How long it sounds.
    #[serde(default = "a_second")]
    pub(crate) lasts_ms: u64,
    /// This long after the call began.
    #[serde(default)]
    pub(crate) at_ms: Option<u64>,
    /// This long after the reply before was over.
    #[serde(default)]
    pub(crate) after_reply_ms: Option<u64>,
    /// This long after the reply before became audible, whether or not it goes on.
    #[serde(default)]
    pub(crate) over_reply_ms: Option<u64>,
}

fn a_second() -> u64 {
    1_000
}

/// Something that happens in a call: at a time, or some time after a signal.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cue {
    /// This long after the call was placed.
    #[serde(default)]
    pub(crate) at_ms: Option<u64>,
    /// Counted from this signal.
    #[serde(default)]
    pub(crate) after: Option<Signal>,
    /// Which of these signals, from 1.
    #[serde(default = "once")]
    pub(crate) times: usize,
    /// How long after it.
    #[serde(default)]
    pub(crate) wait_ms: u64,
    pub(crate) happens: Happens,
}

fn once() -> usize {
    1
}

/// What users and operators do.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Happens {
    /// The user types.
    Types(String),
    /// Push to talk: the user says that the utterance is over.
    EndsUtterance,
    /// The user presses stop.
    PressesStop,
    /// The client sends something under an idempotency key, as it does when it is not sure that it
    /// arrived.
    Sends(Sends),
    /// The user's link breaks, and the transport tries to get it back.
    Reconnects,
    /// The user's link breaks.
    LosesLink,
    /// The link is there again.
    ComesBack,
    /// From now on the line wants the agent's audio in this rate, in hertz.
    LineChanges(u32),
    /// The user's microphone sends nothing any more.
    Mutes,
    /// It sends again.
    Unmutes,
    /// The user hangs up.
    HangsUp,
    /// An operator cancels.
    Cancel(Cancel),
    /// The lease moves to this epoch.
    Rotate(Epoch),
    /// The session begins to move to another placement.
    Leave,
    /// Another placement has taken the session over.
    HandOver,
    /// The lease is lost.
    Revoke,
    /// The session shall end after its turn.
    Drain,
    /// A probe or a price feed brings news, in place of all that was known before.
    News(Vec<News>),
    /// An operator captures debug events of this call.
    Captures(Captures),
}

/// How far a capture goes: whichever bound is met first ends it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Captures {
    pub(crate) for_ms: Option<u64>,
    pub(crate) events: Option<u32>,
    pub(crate) bytes: Option<u64>,
}

/// News of a provider.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct News {
    pub(crate) id: ProviderId,
    pub(crate) modality: Modality,
    /// Whether it is well.
    #[serde(default)]
    pub(crate) health: Health,
    /// What it costs, in millionths; comparable within a modality.
    #[serde(default)]
    pub(crate) price_micros: Option<u64>,
}

/// What a client sends with what it says about it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sends {
    /// The same for each time that it is sent.
    #[serde(default)]
    pub(crate) key: Option<IdempotencyKey>,
    /// The epoch that the client speaks under; the session's without.
    #[serde(default)]
    pub(crate) epoch: Option<Epoch>,
    /// Words; without, the user presses stop.
    #[serde(default)]
    pub(crate) words: Option<String>,
}

/// A cancel by an operator or a program.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cancel {
    pub(crate) scope: CancelScope,
    /// The node or provider call, for these two scopes.
    #[serde(default)]
    pub(crate) node: Option<NodeId>,
    #[serde(default)]
    pub(crate) invocation: Option<InvocationId>,
    #[serde(default = "user_cancel")]
    pub(crate) reason: CancelReason,
}

fn user_cancel() -> CancelReason {
    CancelReason::UserCancel
}

impl Cancel {
    /// Whom it is about.
    pub(crate) fn target(&self) -> Result<CancelTarget, String> {
        let named = match self.scope {
            CancelScope::Session | CancelScope::Turn => None,
            CancelScope::Node => Some("node"),
            CancelScope::ProviderInvocation => Some("invocation"),
        };
        let given = [
            ("node", self.node.is_some()),
            ("invocation", self.invocation.is_some()),
        ];
        let scope = self.scope.as_str();
        for (name, is_given) in given {
            if is_given && named != Some(name) {
                return Err(format!(
                    "{name}: means nothing to a cancel of scope `{scope}`; leave it out, or choose the scope \
                     that it is of"
                ));
            }
        }
        match (self.scope, &self.node, &self.invocation) {
            (CancelScope::Session, ..) => Ok(CancelTarget::Session),
            (CancelScope::Turn, ..) => Ok(CancelTarget::Turn),
            (CancelScope::Node, Some(node), _) => Ok(CancelTarget::Node(node.clone())),
            (CancelScope::ProviderInvocation, _, Some(call)) => {
                Ok(CancelTarget::Invocation(call.clone()))
            }
            (CancelScope::Node, None, _) => Err(
                "node: is missing; say which, e.g. `node: tts`, or cancel the whole turn with `scope: turn`"
                    .to_owned(),
            ),
            (CancelScope::ProviderInvocation, _, None) => Err(
                "invocation: is missing; say which, by its `pvi/…` name on a timeline, or cancel all that a node \
                 does with `scope: node`"
                    .to_owned(),
            ),
        }
    }
}

impl Scenario {
    /// Reads and checks a scenario.
    pub(crate) fn load(path: &Path) -> Result<Self, Problem> {
        let name = path.display();
        let text = specs::read(path).map_err(|refused| refused.into_problem(""))?;
        let mut scenario: Self = rspp_service::yaml::read(&text)
            .map_err(|error| Problem::input(format!("{name}: {error}")))?;
        path.parent()
            .unwrap_or(Path::new("."))
            .clone_into(&mut scenario.folder);
        let wrong = |what: String| Err(Problem::input(format!("{name}: {what}")));
        if scenario.schema != SCHEMA {
            return wrong(format!("schema: is `{}`, not `{SCHEMA}`", scenario.schema));
        }
        if let Err(error) = scenario.recording.capacity().check() {
            return wrong(format!("recording.queue_entries: {error}"));
        }
        if scenario.calls.is_empty() {
            return wrong("calls: at least one is needed".to_owned());
        }
        if let Some(at) = scenario
            .calls
            .iter()
            .position(|call| call.copies == Some(0))
        {
            return wrong(format!("calls[{at}].copies: at least one is needed"));
        }
        scenario.calls = scenario.calls.into_iter().flat_map(Call::copied).collect();
        let limits = serde_json::to_string(&scenario.limits).map_err(Problem::failure)?;
        if let Err(errors) = LimitsSpec::parse("limits", &limits, Mode::Strict) {
            return wrong(specs::wrong_within("limits", &errors));
        }
        if let Err(what) = providers_of(&scenario.settings) {
            return wrong(what);
        }
        for (at, provider) in scenario.providers.iter().enumerate() {
            if let Err(what) = provider.check() {
                return wrong(format!("providers[{at}].{what}"));
            }
        }
        for kind in scenario.hooks.keys() {
            if !scenario.nodes.contains_key(kind) {
                return wrong(format!("hooks.{kind}: is no kind of `nodes`"));
            }
        }
        for (at, call) in scenario.calls.iter().enumerate() {
            let earlier = &scenario.calls[..at];
            if let Some(other) = &call.takes_over {
                let known = earlier.iter().find(|call| call.id == *other);
                if known.is_none_or(|known| known.takes_over.is_some()) {
                    return wrong(format!(
                        "calls[{at}].takes_over: `{other}` is no call before it on the first runtime"
                    ));
                }
                let again = earlier
                    .iter()
                    .any(|call| call.takes_over.as_ref() == Some(other));
                if again {
                    return wrong(format!(
                        "calls[{at}].takes_over: `{other}` has moved already"
                    ));
                }
            }
            if call.id.as_str().contains('/') {
                return wrong(format!(
                    "calls[{at}].id: `{}` names the file of its timeline; leave out `/`",
                    call.id
                ));
            }
            if earlier.iter().any(|other| other.id == call.id) {
                return wrong(format!("calls[{at}].id: `{}` is taken", call.id));
            }
            for (n, says) in call.says.iter().enumerate() {
                let starts = [says.at_ms, says.after_reply_ms, says.over_reply_ms];
                if starts.iter().flatten().count() != 1 {
                    return wrong(format!(
                        "calls[{at}].says[{n}]: needs one of at_ms, after_reply_ms and over_reply_ms"
                    ));
                }
            }
            if let Some(rate) = call.line_rate
                && let Err(what) = audible(rate)
            {
                return wrong(format!("calls[{at}].line_rate: {what}"));
            }
            for (n, cue) in call.cues.iter().enumerate() {
                if let Happens::LineChanges(rate) = cue.happens
                    && let Err(what) = audible(rate)
                {
                    return wrong(format!("calls[{at}].cues[{n}].happens: {what}"));
                }
                if let Happens::Cancel(cancel) = &cue.happens
                    && let Err(what) = cancel.target()
                {
                    return wrong(format!("calls[{at}].cues[{n}].happens.cancel.{what}"));
                }
                if cue.at_ms.is_some() == cue.after.is_some() {
                    return wrong(format!(
                        "calls[{at}].cues[{n}]: needs either at_ms or after: <signal>"
                    ));
                }
            }
        }
        Ok(scenario)
    }
}
