//! What a node may ask for while it is called.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rspp_actors::Clock;
use rspp_kernel::{
    CancelReason,
    authority::AuthorityFault,
    budget::BudgetEvent,
    conversation::Said,
    cost::{Allowance, CostKind},
    edge::EdgeNotice,
    plan::{Extent, Handoff},
    tool::ToolRequest,
    turn::Ending,
};
use rspp_proto::{
    DebugNote, EdgeId, Epoch, ErrorCode, Lane, Monotonic, NodeId, Payload, PipelineVersion,
    ProviderId, SampleIndex, SessionId, SpeechMark, TurnNumber,
    abi::OutcomeScope,
    spec::{
        BudgetPer, Budgets, CapAction, FlowMode, NodeExecutionPolicy, NodeSpec, SandboxPolicy,
        TurnPolicy,
    },
};
use rspp_provider_api::{
    AudioStream, InferencePool, LlmRequest, Providers, SttRequest, ToolCall, TtsRequest,
};
use rspp_timeline::HandoffAction;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    DurableState, Hook, HotState, NodeError, StateAccess, TurnState,
    call::{CallRequest, Dictation},
    taking::{Handing, Taking},
};
use crate::{
    capture::Capture,
    event::{CallEnd, CallKey, Event, Stamp, Tags},
    memory::{Meter, Share},
    observe::Observers,
    providers::{CallRules, Candidates},
    schedule::NodeSchedule,
};

/// What a node is told when it is made; constant while it lives.
#[derive(Clone)]
pub struct NodeSettings {
    /// Its place in the pipeline, with its own settings.
    pub spec: Arc<NodeSpec>,
    /// The session.
    pub session: SessionId,
    /// The turn; `None` for session-scoped nodes.
    pub turn: Option<TurnNumber>,
    /// The authority under which it works.
    pub epoch: Epoch,
    /// When turns open and end.
    pub turns: Arc<TurnPolicy>,
    /// Time limits.
    pub budgets: Arc<Budgets>,
    /// How long one of its handlers may take before the node is told (F-045).
    pub budget: Duration,
    /// What that counts by, and what else is limited (F-107).
    pub(crate) limits: Limits,
    /// Providers for its modality, preferred first, from the frozen plan.
    pub providers: Arc<[ProviderId]>,
    /// All providers of the process.
    pub registry: Arc<Providers>,
    /// How calls to them may be repeated and moved.
    pub(crate) calls: Arc<CallRules>,
    /// Whom it may call; `None` if it needs nobody.
    pub(crate) candidates: Option<Arc<Candidates>>,
    /// How it is said what is to be said.
    pub(crate) speech: Speech,
    /// Where inference runs.
    pub pool: InferencePool,
    /// How text is handed to the next stage before all of it is there, from the frozen plan (turn-plan.md
    /// §7): by a node that finds the end of turns to the model, by all others to synthesis.
    pub handoff: Arc<Handoff>,
    /// How the data lane is held back, from the frozen plan.
    pub(crate) flow_mode: FlowMode,
    /// Whom it hands text to, for a node that cuts text for a voice.
    pub(crate) handing: Option<Handing>,
    /// What it has taken of that, for the voice.
    pub(crate) taking: Option<Arc<Taking>>,
    /// Where what a foreign node emits goes while its handler goes on.
    pub(crate) way_out: Option<mpsc::Sender<Event>>,
    /// When it may work.
    pub(crate) schedule: NodeSchedule,
    /// How much it may take.
    pub extent: Extent,
    /// What the agent is told it is.
    pub instructions: Option<Arc<str>>,
    /// The conversation before this turn, as heard; empty for session-scoped nodes.
    pub conversation: Arc<[Said]>,
    /// What conditions may ask of the session.
    pub attributes: Arc<BTreeMap<String, serde_json::Value>>,
    /// Who listens in on the session.
    pub(crate) observers: Arc<Observers>,
    /// Keeps what providers say, if the recording may hold it.
    pub(crate) capture: Option<Capture>,
    /// What it may remember.
    pub(crate) state: Arc<StateAccess>,
    /// What its events and calls were numbered up to.
    pub(crate) numbers: Arc<Numbers>,
    /// The pipeline that the session runs.
    pub pipeline_version: PipelineVersion,
    /// What the session holds in memory.
    pub(crate) memory: Arc<Meter>,
}

/// What a node may take, from the frozen plan (F-045, F-107).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) budget_per: BudgetPer,
    /// Of each second.
    pub(crate) cpu: Option<Duration>,
    /// Bytes that it may keep.
    pub(crate) memory: Option<usize>,
    /// What it is kept from.
    pub(crate) sandbox: Option<SandboxPolicy>,
}

impl Limits {
    pub(crate) fn of(policy: Option<&NodeExecutionPolicy>) -> Self {
        let Some(policy) = policy else {
            return Self::default();
        };
        Self {
            budget_per: policy.budget_per,
            cpu: policy.cpu_ms_per_second.map(Duration::from_millis),
            memory: policy
                .memory_bytes
                .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            sandbox: policy.sandbox,
        }
    }
}

/// How far the events and calls of a place in the graph are numbered. Whoever stands there goes on
/// counting, after a restart and as a standby too: a number is given once on an edge (event-abi.md §5,
/// 1), and no two calls go by one id (F-160).
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    events: AtomicU64,
    calls: AtomicU32,
}

impl Numbers {
    fn next_event(&self) -> u64 {
        self.events.fetch_add(1, Relaxed) + 1
    }

    fn next_call(&self) -> u32 {
        self.calls.fetch_add(1, Relaxed) + 1
    }
}

/// How what a turn has to say is said (F-137).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speech {
    /// By voice alone.
    Voice,
    /// By voice, or as text when that fails.
    VoiceElseText,
    /// As text.
    Text,
}

impl NodeSettings {
    /// The node's id.
    pub fn node(&self) -> &NodeId {
        &self.spec.id
    }

    /// The preferred provider of its modality.
    pub fn provider(&self) -> Result<&ProviderId, NodeError> {
        self.providers.first().ok_or_else(|| {
            NodeError::new(format!("no provider is bound to node `{}`", self.spec.id))
        })
    }

    /// A setting of the node's own: a number, or `default` if there is none.
    pub fn number(&self, key: &str, default: f64) -> f64 {
        self.spec
            .config
            .get(key)
            .and_then(serde_json::Value::as_f64)
            .unwrap_or(default)
    }

    /// A setting of the node's own: a text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.spec
            .config
            .get(key)
            .and_then(serde_json::Value::as_str)
    }
}

/// What a node tells the session, beside what it emits on its edges.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeReport {
    /// The user's speech began, stopped, or the turn is over.
    Speech(SpeechMark),
    /// The user has fallen silent; whether speech has stopped is not certain yet.
    SpeechPaused {
        /// First sample of the silence.
        at: SampleIndex,
    },
    /// The user goes on after a pause that was none.
    SpeechResumed {
        /// First sample of sound.
        at: SampleIndex,
    },
    /// The user's words of an utterance; final ones are complete.
    Transcript {
        /// Which utterance.
        segment: u32,
        /// Its first sample.
        at: SampleIndex,
        /// The words so far.
        text: Arc<str>,
        /// Whether they are final.
        is_final: bool,
    },
    /// The user has said something that wants an answer.
    UserTurn {
        /// The words.
        text: Arc<str>,
        /// First sample of the speech that they are of.
        from: SampleIndex,
        /// First sample after the speech that the turn ends with.
        until: SampleIndex,
    },
    /// Words have waited too long on an edge for the node to take them.
    EdgeBudget {
        /// Which edge.
        edge: EdgeId,
        /// How long, and what follows.
        event: BudgetEvent,
    },
    /// The user has finished, and no word of it is known.
    NothingHeard {
        /// Whether there may be words that are overdue.
        is_overdue: bool,
    },
    /// The user pauses, and may have finished with these words.
    UserPaused {
        /// The words so far.
        text: Arc<str>,
    },
    /// What the user has said so far is handed to the model before all of it is known (turn-plan.md §7).
    WordsHanded {
        /// The words.
        text: Arc<str>,
        /// Counts the revisions of the utterance, from 1.
        revision: u32,
        /// What was done with it.
        action: HandoffAction,
        /// When the oldest words that it brings came.
        accepted: Monotonic,
        /// Revisions that were handed over in this utterance.
        pending: u64,
        /// Whether those are as many as there may be.
        is_full: bool,
    },
    /// The model's first words of a turn.
    FirstToken,
    /// A clause is about to be spoken.
    ClauseBegun {
        /// Counts clauses within the turn.
        segment: u32,
        /// Its words.
        text: Arc<str>,
    },
    /// Audio of a clause was made, in frames of 20 ms.
    FramesMade {
        /// Which clause.
        segment: u32,
        /// How many frames.
        frames: u32,
    },
    /// A piece of text was handed to the next stage before all of it was there (turn-plan.md §7).
    HandedOver {
        /// The clause.
        segment: u32,
        /// What became of it.
        action: HandoffAction,
        /// When its first words came.
        accepted: Monotonic,
        /// Pieces that were handed over and not taken yet, this one included.
        pending: u64,
        /// Whether those are as many as there may be.
        is_full: bool,
    },
    /// All audio of a clause was made.
    ClauseMade {
        /// Which clause.
        segment: u32,
    },
    /// A clause is to be sent to the user as text, since there is no voice for it (F-137).
    ClauseShown {
        /// Counts clauses within the turn.
        segment: u32,
        /// Its words.
        text: Arc<str>,
    },
    /// The voice has failed for good, and the node goes on without it (F-137).
    VoiceLost {
        /// How.
        end: CallEnd,
    },
    /// A cost cap was reached (F-058).
    CapReached {
        /// Which, and what follows.
        reason: Arc<str>,
        /// Whether the turn cannot go on.
        ends_turn: bool,
    },
    /// A provider call failed.
    CallFailed {
        /// How it ended.
        end: CallEnd,
    },
    /// An edge that leads to this node, or what it hands over, has something to report.
    EdgeNotice {
        /// Which edge.
        edge: EdgeId,
        /// Which of its lanes.
        lane: Lane,
        /// What happened.
        notice: EdgeNotice,
    },
    /// A conditional edge was taken or not (F-018).
    Routed {
        /// Which edge.
        edge: EdgeId,
        /// Whether the event took it.
        taken: bool,
    },
    /// A select node forwards another input (F-006).
    Selected {
        /// The edge; `None` if no condition holds.
        input: Option<Arc<str>>,
    },
    /// A guard kept something from being said (F-118).
    Guarded {
        /// The clause.
        segment: u32,
        /// How many times.
        found: u32,
        /// Whether the whole clause was replaced.
        blocked: bool,
    },
    /// Work under another epoch than the session's was refused (T12). Told once for each host; all are
    /// counted.
    StaleEpoch {
        /// What was wrong.
        fault: AuthorityFault,
    },
    /// A handler took longer than the node's budget, or the handlers of a turn did together (F-045).
    OverBudget {
        /// Whether it is given up, since somebody stands by; else it goes on.
        is_given_up: bool,
    },
    /// It has used up its processor time: what comes for it waits (F-107). Told once a second at most.
    Throttled {
        /// For how long.
        wait: Duration,
    },
    /// It keeps more than it may, and is stopped (F-107).
    OverMemory {
        /// Bytes that it keeps.
        kept: usize,
        /// Bytes that it may keep.
        limit: usize,
    },
    /// A handler of a node that listens was given up; the node is made anew (P16).
    Hung {
        /// How long it was waited for.
        after: Duration,
    },
    /// A cancel has arrived, and what the node was doing has ended (F-036).
    CancelAcknowledged {
        /// Why it was cancelled.
        reason: CancelReason,
        /// From the cancel to here.
        after: Duration,
        /// Whether the node had to be forced.
        is_forced: bool,
        /// Who serves the node, if anybody.
        provider: Option<ProviderId>,
    },
    /// The node was deaf to a cancel, or to the end of its turn, and was cut off (F-037).
    ForceStopped {
        /// The grace that it did not use.
        after: Duration,
    },
    /// Work of the node keeps a thread of the pool though nobody waits for it: another took its place.
    WorkerLost {
        /// How long it was waited for.
        after: Duration,
    },
    /// A hook failed, or took too long (F-012).
    HookFailed {
        /// Which.
        hook: Hook,
        /// What happened.
        message: Arc<str>,
    },
    /// The host of the node crashed; it is made anew, or its standby goes on (F-134).
    Crashed {
        /// What happened.
        message: Arc<str>,
    },
    /// A node that listens was cancelled while the user was speaking: what it worked on is lost.
    UtteranceLost,
    /// The node could not deal with an event and goes on without it (F-132).
    DeadLetter {
        /// The event.
        event: Box<Event>,
        /// Why.
        reason: Arc<str>,
    },
    /// Work of the node was shed where it is scheduled.
    Shed {
        /// Where.
        point: OutcomeScope,
        /// Why.
        reason: &'static str,
    },
    /// The node's standby goes on in its place (F-007, F-133).
    TookOver {
        /// The node that goes on.
        standby: NodeId,
        /// Why the node could not.
        reason: Arc<str>,
    },
    /// The node cannot go on.
    Failed {
        /// What this means for the turn.
        ending: Ending,
        /// The taxonomy's word for it (F-131).
        code: ErrorCode,
        /// What happened.
        message: Arc<str>,
    },
}

/// Something that a handler asked for; carried out by the host when the handler returns.
pub(crate) enum Ask {
    Call(CallKey, CallRequest),
    Abort(CallKey),
    Report(NodeReport),
    Tools(Vec<ToolRequest>),
}

/// What a node may use, and where it leaves what it wants done.
pub struct NodeContext {
    settings: NodeSettings,
    clock: Clock,
    cancel: CancellationToken,
    wake_at: Option<Monotonic>,
    settled: usize,
    share: Share,
    kept: usize,
    charged: Duration,
    /// What its process took to start, since somebody asked.
    started: Option<Duration>,
    pub(crate) emitted: VecDeque<Event>,
    pub(crate) asked: VecDeque<Ask>,
}

impl NodeContext {
    /// A context for a node; `cancel` fires when its work is no longer wanted.
    pub(crate) fn new(settings: NodeSettings, clock: Clock, cancel: CancellationToken) -> Self {
        Self {
            share: Share::of(&settings.memory),
            settings,
            clock,
            cancel,
            wake_at: None,
            settled: 0,
            kept: 0,
            charged: Duration::ZERO,
            started: None,
            emitted: VecDeque::new(),
            asked: VecDeque::new(),
        }
    }

    /// What the node was told when it was made.
    pub fn settings(&self) -> &NodeSettings {
        &self.settings
    }

    /// The node's clock.
    pub fn now(&self) -> Monotonic {
        Monotonic::from_duration(self.clock.now())
    }

    /// What goes with the turn; `None` for nodes that are of no turn.
    pub fn turn_state(&self) -> Option<TurnState<'_>> {
        TurnState::new(&self.settings.state, self.settings.node())
    }

    /// What the session remembers as long as it stays where it is.
    pub fn hot_state(&self) -> HotState<'_> {
        HotState::new(&self.settings.state, self.settings.node())
    }

    /// What the conversation keeps wherever it goes.
    pub fn durable_state(&self) -> DurableState {
        let access = Arc::clone(&self.settings.state);
        DurableState::new(access, self.settings.node().clone())
    }

    /// Where blocking work runs.
    pub fn pool(&self) -> InferencePool {
        self.settings.pool.clone()
    }

    /// Fires when the node's work is no longer wanted; for long work that polls it (F-036).
    pub fn cancellation(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Says how many bytes the node keeps by itself: the runtime sees what waits for it, but not what
    /// it holds. Cheap enough to say for each frame (P19).
    pub fn hold(&mut self, bytes: usize) {
        self.share.hold(bytes);
        self.kept = bytes;
    }

    /// Says that processor time was spent for the node where the runtime does not see it: on a thread or
    /// in a process of its own. It counts against the node's limit, if it has one (F-107).
    pub fn charge(&mut self, time: Duration) {
        self.charged += time;
    }

    /// Says how long a process of the node's own took to be ready.
    pub(crate) fn started(&mut self, took: Duration) {
        self.started = Some(took);
    }

    pub(crate) fn take_started(&mut self) -> Option<Duration> {
        self.started.take()
    }

    pub(crate) fn take_charged(&mut self) -> Duration {
        std::mem::take(&mut self.charged)
    }

    /// Whether the node's processor time is limited, so that it is worth measuring.
    pub fn is_charged(&self) -> bool {
        self.settings.limits.cpu.is_some()
    }

    /// The bytes that it keeps beyond its limit, with that; `None` if it may (F-107).
    pub(crate) fn keeps_too_much(&self) -> Option<(usize, usize)> {
        let limit = self.settings.limits.memory?;
        (self.kept > limit).then_some((self.kept, limit))
    }

    /// Says that the oldest text that it was given is dealt with: should the node fail, its standby
    /// need not be told it again.
    pub fn settle_input(&mut self) {
        self.settled += 1;
    }

    pub(crate) fn renew_cancellation(&mut self, cancel: CancellationToken) {
        self.cancel = cancel;
    }

    /// What is emitted and asked for from now on is under a newer epoch.
    pub(crate) fn rotate(&mut self, epoch: Epoch) {
        self.settings.epoch = epoch;
    }

    pub(crate) fn take_settled(&mut self) -> usize {
        std::mem::take(&mut self.settled)
    }

    /// Says that the node has begun with a segment of the text that it is given: whoever cuts the text
    /// may hand over more (turn-plan.md §7).
    pub fn begin_segment(&mut self, segment: u32) {
        if let Some(taking) = &self.settings.taking {
            taking.begin(segment);
        }
    }

    /// Says that the node has nothing to do until it is given more text.
    pub fn rest(&mut self) {
        if let Some(taking) = &self.settings.taking {
            taking.rest();
        }
    }

    /// Emits on every edge that leads from this node and carries the payload's type.
    pub fn emit(&mut self, payload: Payload) {
        self.emit_at(payload, SampleIndex(0), 0);
    }

    /// Emits, with a position in the user's audio and the clause or utterance it is part of.
    pub fn emit_at(&mut self, payload: Payload, media: SampleIndex, segment: u32) {
        let sequence = self.settings.numbers.next_event();
        self.emit_numbered(sequence, payload, media, segment);
    }

    /// Emits while the handler goes on: what is emitted leaves now, and not when the handler returns.
    /// Waits as long as no edge has room. Of a handler that fails what has left stays so. Only a node of
    /// a registered kind can; what a built-in one emits leaves with its handler.
    pub async fn emit_now(&mut self, payload: Payload, media: SampleIndex, segment: u32) {
        self.emit_at(payload, media, segment);
        let Some(way_out) = self.settings.way_out.clone() else {
            return;
        };
        // In order: also what was emitted before, and has not left.
        while let Some(event) = self.emitted.pop_front() {
            if way_out.send(event).await.is_err() {
                return; // Its host is gone.
            }
        }
    }

    fn emit_numbered(&mut self, sequence: u64, payload: Payload, media: SampleIndex, segment: u32) {
        let stamp = Stamp {
            turn: self.settings.turn,
            epoch: self.settings.epoch,
            sequence,
            made: self.now(),
            media,
            segment,
        };
        self.emitted.push_back(Event::new(stamp, payload));
    }

    /// The same, with what else is to be said of the event: what it is in step with, and a key.
    pub fn emit_tagged(
        &mut self,
        payload: Payload,
        media: SampleIndex,
        segment: u32,
        tags: Arc<Tags>,
    ) {
        self.emit_at(payload, media, segment);
        if let Some(event) = self.emitted.back_mut() {
            event.tags = Some(tags);
        }
    }

    /// Passes an event on, keeping when it was made and whose it is. It gets a number of this
    /// node's: what leaves on an edge is numbered in the order in which it leaves, whoever made it.
    pub fn forward(&mut self, mut event: Event) {
        event.stamp.sequence = self.settings.numbers.next_event();
        self.emitted.push_back(event);
    }

    /// Whether debug events are wanted; for what costs something to say (F-027).
    pub fn is_debugging(&self) -> bool {
        self.settings.observers.is_debugging()
    }

    /// Says something to a developer. Costs a look at a word while the session does not debug.
    pub fn debug(&mut self, message: &str, fields: &[(&str, &str)]) {
        if !self.is_debugging() {
            return;
        }
        let note = DebugNote {
            message: message.to_owned(),
            fields: fields
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        // Numbered apart: what a developer is told does not renumber what the node says.
        let next = self.settings.numbers.events.load(Relaxed) + 1;
        self.emit_numbered(next, Payload::Debug(Box::new(note)), SampleIndex(0), 0);
    }

    /// Calls a recogniser; the answer arrives at `on_chunk`, then `on_call_end`.
    pub fn transcribe(&mut self, request: SttRequest, audio: AudioStream) -> CallKey {
        let share = Share::of(&self.settings.memory);
        let dictation = Dictation::new(request, audio, share);
        self.call(CallRequest::Stt(Box::new(dictation)))
    }

    /// Calls a language model.
    pub fn generate(&mut self, request: LlmRequest) -> CallKey {
        self.call(CallRequest::Llm(request))
    }

    /// Calls a voice.
    pub fn synthesize(&mut self, request: TtsRequest) -> CallKey {
        self.call(CallRequest::Tts(request))
    }

    fn call(&mut self, request: CallRequest) -> CallKey {
        let key = CallKey(self.settings.numbers.next_call());
        self.asked.push_back(Ask::Call(key, request));
        key
    }

    /// What the session may still spend of something; `None` if nothing limits it (F-058).
    pub fn allowance(&self, kind: CostKind) -> Option<Allowance> {
        let rules = &self.settings.calls;
        rules.meter().left(&rules.caps, kind)
    }

    /// Says that a cap was reached by work that has `begun` or not, and so whether the turn ends by it.
    pub fn report_cap(&mut self, cap: &Allowance, begun: bool) {
        let follows = cap.effect(begun);
        self.report(NodeReport::CapReached {
            reason: cap.reason(follows).into(),
            ends_turn: follows == CapAction::Refuse,
        });
    }

    /// Says that a cap was reached, and that what does not fit is said in short.
    pub fn report_summary(&mut self, cap: &Allowance) {
        self.report(NodeReport::CapReached {
            reason: cap.reason(CapAction::Summarize).into(),
            ends_turn: false,
        });
    }

    /// Has tools of its node's spec called; what comes of each arrives at `on_tool_answer`, as far as the
    /// turn lives. `calls` have ids that are unique within the turn; `round` counts its answers.
    pub fn call_tools(&mut self, calls: impl IntoIterator<Item = ToolCall>, round: u32) {
        let calls = calls.into_iter().map(|call| ToolRequest {
            call: call.id.into(),
            tool: call.name.into(),
            arguments: call.arguments.into(),
            round,
        });
        self.asked.push_back(Ask::Tools(calls.collect()));
    }

    /// Gives a call up: the provider is told, and nothing more of it arrives.
    pub fn abort(&mut self, call: CallKey) {
        self.asked.push_back(Ask::Abort(call));
    }

    /// Tells the session something.
    pub fn report(&mut self, report: NodeReport) {
        self.asked.push_back(Ask::Report(report));
    }

    /// Tells the session what a hand-over has to say, as the data edge of that name.
    pub(crate) fn report_notices(
        &mut self,
        edge: &str,
        notices: impl IntoIterator<Item = EdgeNotice>,
    ) {
        for notice in notices {
            self.report(NodeReport::EdgeNotice {
                edge: EdgeId::new(edge).expect("not blank"),
                lane: Lane::Data,
                notice,
            });
        }
    }

    /// Asks for `on_wake` in `after`; replaces an earlier wish.
    pub fn wake_in(&mut self, after: Duration) {
        self.wake_at = Some(self.now() + after);
    }

    /// Asks for `on_wake` in `after`, unless it is to come before that.
    pub(crate) fn wake_within(&mut self, after: Duration) {
        let at = self.now() + after;
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// No longer wants `on_wake`.
    pub fn forget_wake(&mut self) {
        self.wake_at = None;
    }

    pub(crate) fn wake_at(&self) -> Option<Monotonic> {
        self.wake_at
    }

    /// Takes a wish for `on_wake` whose time has come.
    pub(crate) fn take_due_wake(&mut self) -> bool {
        let due = self.wake_at.is_some_and(|at| at <= self.now());
        if due {
            self.wake_at = None;
        }
        due
    }
}
