//! A provider call as an actor: attempts, the answer passed on, the cancel passed down. When to try
//! whom, when to wait and when to give up is the kernel's machine's to say.

mod attempt;
mod evidence;
mod resume;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rspp_actors::{
    CancellationToken, Clock, ControlRef, DataRef, ExitReason, NoData, NoTelemetry, Offer, Pump,
    PumpContext,
};
use rspp_kernel::invocation::{
    self as kernel, AttemptKey, CallDeadlines, CircuitChange, Failure, InvocationPolicy,
    InvocationSignal, Order, Verdict,
};
use rspp_proto::{
    EventId, InvocationId, Monotonic, OutcomeClass, ProviderId, RetryDecision, TurnNumber,
    abi::{OutcomeScope, Signal},
    spec::Modality,
};
use rspp_provider_api::{Fault, LlmChunk, SttChunk, Usage};
use tokio::{sync::Notify, time::Instant};
use tracing::Span;

use crate::{
    event::{Arrival, CallEnd, CallKey, Chunk},
    node::{CallRequest, NodeSettings},
    providers::Promotion,
    pulse::{CallInProgress, Pulse},
    schedule::Shed,
    scope,
    session::SessionControl,
};
use attempt::{Attempting, Facts};

/// Where a call comes from and where its answer goes.
pub(crate) struct CallSite {
    pub(crate) key: CallKey,
    /// How often the node's host had been restarted: a new host counts its calls anew, and no two calls
    /// may go by one id.
    pub(crate) life: u32,
    pub(crate) settings: NodeSettings,
    pub(crate) to: DataRef<Arrival>,
    pub(crate) session: ControlRef<SessionControl>,
    pub(crate) cancel: CancellationToken,
    /// Told when the turn has gone mute.
    pub(crate) unstick: Arc<Notify>,
    pub(crate) clock: Clock,
    /// Told that somebody is at work for the turn.
    pub(crate) pulse: Arc<Pulse>,
}

/// A call that has not begun.
pub(crate) struct InvocationSetup {
    site: CallSite,
    request: CallRequest,
}

impl InvocationSetup {
    pub(crate) fn new(site: CallSite, request: CallRequest) -> Self {
        Self { site, request }
    }

    pub(crate) fn modality(&self) -> Modality {
        self.request.modality()
    }

    /// The id that the call goes by, over all its attempts (F-160).
    pub(crate) fn id(&self) -> InvocationId {
        self.site.invocation_id(self.modality())
    }
}

impl CallSite {
    fn invocation_id(&self, modality: Modality) -> InvocationId {
        let settings = &self.settings;
        let turn = settings.turn.map(TurnNumber::id);
        let (node, key) = (settings.node(), self.key.0);
        let label = match self.life {
            0 => format!("{node}-{key}"),
            restarted => format!("{node}.{restarted}-{key}"),
        };
        let event = EventId::new(label).expect("a node id and a number are no blank text");
        InvocationId::canonical(&settings.session, turn.as_ref(), &event, modality.as_str())
    }

    /// By when the call's first chunk is to come: what is left of the turn, the node and the call.
    fn deadlines(&self, modality: Modality, now: Monotonic) -> CallDeadlines {
        let settings = &self.settings;
        let rules = &settings.calls;
        let budgets = &settings.budgets;
        let candidates = settings.candidates.as_ref();
        let node = candidates.and_then(|candidates| candidates.budget);
        match rules.bound.deadlines() {
            Some(turn) => turn.of_call(now, modality, self.key == CallKey::FIRST, node, budgets),
            None => CallDeadlines::of_session(now, modality, node, budgets),
        }
    }
}

/// How a call ended whose actor crashed.
pub(crate) fn crashed(reason: &ExitReason) -> CallEnd {
    CallEnd {
        class: OutcomeClass::InfrastructureFailure,
        reason: Some("adapter_invoke_error"),
        message: Some(format!("the provider's adapter {reason}").into()),
    }
}

/// The actor.
pub(crate) struct Invocation {
    setup: Option<InvocationSetup>,
}

impl Invocation {
    pub(crate) fn new(setup: Option<InvocationSetup>) -> Self {
        Self { setup }
    }
}

impl Pump for Invocation {
    type Control = std::convert::Infallible;
    type Data = NoData;
    type Telemetry = NoTelemetry;
    const KIND: &'static str = "provider-invocation";

    fn scope(&self) -> Span {
        let setup = self.setup.as_ref();
        setup.map_or_else(Span::none, |setup| scope::of_call(&setup.id()))
    }

    async fn run(&mut self, ctx: &mut PumpContext<Self>) -> ExitReason {
        let Some(InvocationSetup { site, request }) = self.setup.take() else {
            return ExitReason::Failed("a provider call is not begun twice".to_owned());
        };
        let stopped = ctx.cancellation().clone();
        let cancel = site.cancel.clone();
        let mut work = Work::new(site, request);
        let outcome = tokio::select! {
            biased;
            () = stopped.cancelled() => None,
            () = cancel.cancelled() => None,
            outcome = work.run() => Some(outcome),
        };
        // Nobody waits for the end of a call that was given up; its evidence is kept all the same.
        if let Some(outcome) = outcome.or_else(|| work.cancelled()) {
            let (node, class) = (work.site.settings.node(), outcome.class.as_str());
            tracing::debug!(%node, modality = work.modality.as_str(), class, "a provider was asked");
            work.conclude(&outcome);
        }
        ExitReason::Finished
    }
}

/// One call in progress: dropping it drops the providers' streams, which aborts the call.
struct Work {
    site: CallSite,
    request: CallRequest,
    modality: Modality,
    id: InvocationId,
    began: Monotonic,
    machine: kernel::Invocation,
    /// Why these providers are asked in this order.
    routing: String,
    attempts: Vec<Attempting>,
    facts: BTreeMap<AttemptKey, Facts>,
    /// What the last attempt that failed had to say, for people.
    complaint: Option<Fault>,
    progress: Progress,
    /// As long as the provider is what is waited for: it has deadlines of its own.
    in_progress: Option<CallInProgress>,
    /// Of a guess that is none of its turn's yet.
    promotion: Option<Arc<Promotion>>,
}

/// What all attempts together have passed on.
#[derive(Default)]
struct Progress {
    audio: Duration,
    /// What a language model has written, for whoever goes on in its place.
    text: String,
    concluded: bool,
}

/// What comes next.
enum Step {
    /// More input was taken in, or it is complete.
    Listened,
    /// A piece of an answer, its fault, or its end.
    Answered(AttemptKey, Option<Result<Chunk, Fault>>),
    /// A deadline has come.
    Due,
    /// The turn has gone mute.
    Mute,
    /// The guess that it belongs to is a turn now.
    Promoted,
}

impl Work {
    fn new(site: CallSite, request: CallRequest) -> Self {
        let modality = request.modality();
        let id = site.invocation_id(modality);
        let now = Monotonic::from_duration(site.clock.now());
        let settings = &site.settings;
        let rules = &settings.calls;
        let chosen = settings.candidates.as_deref();
        let mut candidates = chosen.map_or_else(Vec::new, |chosen| chosen.all.clone());
        let mut routing = chosen
            .map_or("", |chosen| chosen.reason.as_str())
            .to_owned();
        if let Some(instead) = rules.overruns().order(now, modality, &mut candidates) {
            routing = format!("overrun:{instead}");
        }
        // Promoted from here on, it finds the turn's deadlines itself.
        let promotion = rules.bound.promotion();
        let machine = kernel::Invocation::new(
            id.clone(),
            candidates,
            InvocationPolicy::of(&rules.calls, &rules.actions, modality),
            now,
            site.deadlines(modality, now),
        )
        .within(chosen.and_then(|chosen| chosen.budget));
        Self {
            machine,
            routing,
            in_progress: Some(site.pulse.call()),
            promotion,
            site,
            request,
            modality,
            id,
            began: now,
            attempts: Vec::new(),
            facts: BTreeMap::new(),
            complaint: None,
            progress: Progress::default(),
        }
    }

    fn now(&self) -> Monotonic {
        Monotonic::from_duration(self.site.clock.now())
    }

    /// Carries out what the kernel's machine orders, until it says that the call is over.
    async fn run(&mut self) -> Box<kernel::InvocationOutcome> {
        let deadlines = self.site.deadlines(self.modality, self.began);
        let left = deadlines.end.since(self.began);
        let _slot = match self.site.settings.schedule.slot(left).await {
            Ok(slot) => slot,
            Err(shed) => return Box::new(self.refused(shed.reason)),
        };
        let now = self.now();
        if now > self.began {
            let deadlines = self.site.deadlines(self.modality, now);
            self.machine.let_in(now, deadlines);
        }
        let _under_way = self.site.settings.schedule.session().gatekeeper.call();
        if self.request.is_listening() {
            self.machine.listen();
        }
        let mut verdict = self.decide(|machine, now, admits| machine.begin(now, admits));
        loop {
            if let Some(outcome) = self.obey(verdict).await {
                return outcome;
            }
            let step = self.next().await;
            self.note_queues();
            verdict = match step {
                Step::Listened => {
                    if !self.request.is_listening() {
                        self.machine.heard_out(self.now());
                    }
                    Verdict::default()
                }
                Step::Due => self.decide(|machine, now, admits| machine.tick(now, admits)),
                Step::Mute => {
                    let gap = self.site.settings.budgets.output_gap_ms;
                    let gap = Duration::from_millis(gap);
                    self.decide(|machine, now, admits| machine.unstick(now, gap, admits))
                }
                Step::Promoted => {
                    self.promotion = None;
                    let deadlines = self.site.deadlines(self.modality, self.now());
                    self.machine.hold_to(deadlines);
                    Verdict::default()
                }
                Step::Answered(key, None) => self.ended(key),
                Step::Answered(key, Some(Err(fault))) => self.failed(key, fault),
                Step::Answered(key, Some(Ok(chunk))) => {
                    let now = self.now();
                    if says_something(&chunk) {
                        self.site.pulse.answers(now);
                    }
                    let verdict = self.machine.chunk(key, now);
                    if let Some(outcome) = self.obey(verdict).await {
                        return outcome;
                    }
                    self.take(key, chunk).await
                }
            };
        }
    }

    /// There was no slot of the node for the call, and it is shed (RK-25): nobody is asked.
    fn refused(&mut self, reason: &'static str) -> kernel::InvocationOutcome {
        self.shed(reason);
        let fault = Fault::shed(reason, "there is no room for the call");
        let candidates = self.site.settings.candidates.as_deref();
        let first = candidates.and_then(|candidates| candidates.all.first());
        let outcome = kernel::InvocationOutcome {
            invocation: self.id.clone(),
            provider: first.map(|candidate| candidate.provider.clone()),
            class: fault.class,
            reason,
            decision: RetryDecision::None,
            attempts: Vec::new(),
            latency: self.now().since(self.began),
            cancel_latency: None,
        };
        self.complaint = Some(fault);
        outcome
    }

    fn shed(&self, reason: &'static str) {
        let message = SessionControl::Shed {
            turn: self.site.settings.turn,
            node: Some(self.site.settings.node().clone()),
            shed: Shed {
                point: OutcomeScope::NodeDispatch,
                reason,
            },
            at: self.now(),
        };
        if self.site.session.send_reserved(message).is_err() {
            tracing::debug!(call = %self.id, "the session takes no word of what was shed");
        }
    }

    /// Accounts what a language model has read and written. One that does not say has written at
    /// least a token a piece.
    fn spend(&self, key: AttemptKey, usage: Option<Usage>) {
        let facts = self.facts.get(&key);
        let written = facts.map_or(0, |facts| facts.spending.tokens_written);
        let tokens = usage.map_or(written, |usage| {
            usage.prompt_tokens.saturating_add(usage.completion_tokens)
        });
        let session = self.site.settings.schedule.session();
        let gatekeeper = &session.gatekeeper;
        gatekeeper.spend_tokens(&session.tenant, &session.version, tokens);
    }

    /// Tells the machine how long attempts have waited for this machine.
    fn note_queues(&mut self) {
        for attempt in &self.attempts {
            self.machine.queued(attempt.key, attempt.queue.total());
        }
    }

    async fn next(&mut self) -> Step {
        self.note_queues();
        let due = self.machine.next_deadline();
        let due = due.map(|due| self.site.clock.instant_at(due.as_duration()));
        let listening = self.request.is_listening();
        let answering = !self.attempts.is_empty();
        let promotion = self.promotion.as_deref();
        tokio::select! {
            biased;
            () = promoted(promotion), if promotion.is_some() => Step::Promoted,
            () = self.request.listen(), if listening => Step::Listened,
            () = self.site.unstick.notified() => Step::Mute,
            (key, next) = Attempting::next_of(&mut self.attempts), if answering => {
                Step::Answered(key, next)
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                Step::Due
            }
        }
    }

    /// Asks the machine something that may lead to another attempt.
    fn decide(
        &mut self,
        ask: impl FnOnce(
            &mut kernel::Invocation,
            Monotonic,
            &mut dyn FnMut(&ProviderId) -> bool,
        ) -> Verdict,
    ) -> Verdict {
        let now = self.now();
        let rules = &self.site.settings.calls;
        let (policy, modality) = (rules.circuit, self.modality);
        let circuits = &rules.board.circuits;
        let mut changes = Vec::new();
        let mut admits = |provider: &ProviderId| {
            let (admitted, change) = circuits.admits(policy, modality, provider, now);
            changes.extend(change.map(|change| circuit_event(provider, &change)));
            admitted
        };
        let mut verdict = ask(&mut self.machine, now, &mut admits);
        verdict.signals.extend(changes);
        verdict
    }

    /// Carries out a verdict; the outcome, if the call is over.
    async fn obey(&mut self, verdict: Verdict) -> Option<Box<kernel::InvocationOutcome>> {
        let mut next = Some(verdict);
        while let Some(verdict) = next.take() {
            self.tell(verdict.signals);
            for order in verdict.orders {
                match order {
                    Order::Stop(key) => self.stop(key),
                    Order::Finish(outcome) => return Some(outcome),
                    Order::Attempt {
                        key,
                        provider,
                        attempt,
                        at,
                    } => {
                        let wait = at.since(self.now());
                        // A sleep of no time takes up to a millisecond, the timer's step.
                        if !wait.is_zero() {
                            tokio::time::sleep(wait).await;
                        }
                        if let Err(fault) = self.open(key, &provider, attempt) {
                            next = Some(self.failed(key, fault));
                        }
                    }
                }
            }
        }
        None
    }

    fn open(&mut self, key: AttemptKey, provider: &ProviderId, attempt: u32) -> Result<(), Fault> {
        let (site, id) = (&self.site, &self.id);
        let mut resumed = resume::request(&self.request, &self.progress.text);
        let goes_on = resumed.is_some();
        let request = resumed.as_mut().unwrap_or(&mut self.request);
        let (mut attempting, facts) = attempt::open(site, id, request, key, provider, attempt)?;
        attempting.goes_on = goes_on;
        attempting.skip = self.progress.audio;
        self.facts.insert(key, facts);
        self.attempts.push(attempting);
        Ok(())
    }

    /// Aborts an attempt: its provider is told, and its stream dropped.
    fn stop(&mut self, key: AttemptKey) {
        if let Some(at) = self.attempts.iter().position(|attempt| attempt.key == key) {
            self.attempts.swap_remove(at).cancel.cancel();
        }
        self.account(key);
    }

    fn ended(&mut self, key: AttemptKey) -> Verdict {
        let fault = match self.modality {
            Modality::Tts => self.is_mute().then_some("the voice said nothing"),
            Modality::Stt
            | Modality::Llm
            | Modality::Vad
            | Modality::EndOfTurn
            | Modality::External => {
                let is_cut = !self.progress.concluded;
                is_cut.then_some("the answer ended before it was complete")
            }
        };
        if let Some(fault) = fault {
            return self.failed(key, Fault::stream(fault));
        }
        self.stop(key);
        self.machine.succeeded(key, self.now())
    }

    /// Whether there was something to say, and nothing of it was said.
    fn is_mute(&self) -> bool {
        match &self.request {
            CallRequest::Tts(request) => {
                self.progress.audio.is_zero() && request.text.contains(char::is_alphanumeric)
            }
            CallRequest::Stt(_) | CallRequest::Llm(_) => false,
        }
    }

    fn failed(&mut self, key: AttemptKey, fault: Fault) -> Verdict {
        self.stop(key);
        let facts = self.facts.entry(key).or_default();
        facts.status = fault.status;
        facts.shed = fault.is_shed();
        if fault.is_shed() {
            self.shed(fault.reason);
        }
        let failure = Failure {
            class: fault.class,
            retryable: fault.retryable,
            reason: fault.reason,
            circuit_open: fault.circuit_open,
            backoff: fault.backoff,
        };
        self.complaint = Some(fault);
        self.decide(|machine, now, admits| machine.failed(key, now, &failure, admits))
    }

    /// What an attempt costs beside what its chunks say.
    fn account(&mut self, key: AttemptKey) {
        if let (Some(facts), CallRequest::Stt(dictation)) =
            (self.facts.get_mut(&key), &self.request)
        {
            facts.spending.audio_ms = dictation.heard().as_millis() as u64;
            facts.asked = self.request.bytes();
        }
    }

    /// Has signals stamped and published by the session, and lets circuits and session know how
    /// attempts ended.
    fn tell(&mut self, signals: Vec<InvocationSignal>) {
        for signal in signals {
            self.emit(signal);
        }
        let ended = self.machine.take_ended();
        for attempt in ended {
            // What found no room here says nothing about the provider.
            if self.facts.get(&attempt.key).is_some_and(|facts| facts.shed) {
                continue;
            }
            let rules = &self.site.settings.calls;
            if attempt.was_given_up() {
                let stay_away = Duration::from_millis(rules.calls.stay_away_ms);
                let mut overruns = rules.overruns();
                overruns.note(attempt.ended, self.modality, &attempt.provider, stay_away);
            }
            let circuits = &rules.board.circuits;
            if let Some(change) = circuits.record(rules.circuit, self.modality, &attempt) {
                self.emit(circuit_event(&attempt.provider, &change));
            }
        }
    }

    fn emit(&self, InvocationSignal { signal, reason }: InvocationSignal) {
        let message = SessionControl::ProviderSignal {
            turn: self.site.settings.turn,
            node: self.site.settings.node().clone(),
            call: self.id.clone(),
            signal,
            reason,
            at: self.now(),
        };
        if self.site.session.send_reserved(message).is_err() {
            tracing::debug!(call = %self.id, "the session takes no signal");
        }
    }

    /// Takes a chunk of an attempt that runs, and passes it on.
    async fn take(&mut self, key: AttemptKey, chunk: Chunk) -> Verdict {
        if let Some(facts) = self.facts.get_mut(&key) {
            facts.count(&chunk);
        }
        let done = matches!(chunk, Chunk::Stt(SttChunk::Final { .. }));
        if let Some(chunk) = self.news(key, chunk) {
            self.pass_on(chunk).await;
            self.machine.passed_on(self.now());
        }
        if done {
            self.ended(key)
        } else {
            Verdict::default()
        }
    }

    /// What a chunk adds to what was passed on; `None` if it repeats audio of an earlier attempt.
    fn news(&mut self, key: AttemptKey, chunk: Chunk) -> Option<Chunk> {
        match chunk {
            Chunk::Stt(SttChunk::Final { .. }) => {
                self.progress.concluded = true;
                Some(chunk)
            }
            Chunk::Llm(LlmChunk::Finished { usage, .. }) => {
                self.spend(key, usage);
                self.progress.concluded = true;
                Some(chunk)
            }
            Chunk::Llm(LlmChunk::Delta(text)) => {
                // Words that were passed on cannot be taken back (P6).
                self.machine.said();
                let text = self.joined(key, text);
                self.progress.text.push_str(&text);
                Some(Chunk::Llm(LlmChunk::Delta(text)))
            }
            Chunk::Llm(LlmChunk::ToolCall(_)) => {
                self.machine.commit();
                Some(chunk)
            }
            Chunk::Stt(SttChunk::Partial { .. }) => Some(chunk),
            Chunk::Tts(mut audio) => {
                let attempt = self
                    .attempts
                    .iter_mut()
                    .find(|attempt| attempt.key == key)?;
                let skip = &mut attempt.skip;
                let length = audio.sample_rate.duration_of(audio.pcm.len() as u64 / 2);
                if length <= *skip {
                    *skip -= length;
                    return None;
                }
                let drop = audio.sample_rate.samples_in(*skip) as usize * 2;
                audio.pcm = audio.pcm.slice(drop..);
                self.progress.audio += length.saturating_sub(*skip);
                *skip = Duration::ZERO;
                Some(Chunk::Tts(audio))
            }
        }
    }

    /// The words as they follow those of whoever has begun the answer.
    fn joined(&mut self, key: AttemptKey, text: String) -> String {
        let attempt = self.attempts.iter_mut().find(|attempt| attempt.key == key);
        let is_first = attempt.is_some_and(|attempt| std::mem::take(&mut attempt.goes_on));
        if is_first {
            resume::joined(&self.progress.text, text)
        } else {
            text
        }
    }

    /// Passes a chunk on, and waits as long as the node has no room for it.
    async fn pass_on(&mut self, chunk: Chunk) {
        let mut arrival = Arrival::Chunk {
            call: self.site.key,
            chunk,
        };
        loop {
            match self.site.to.offer(arrival) {
                Offer::Queued | Offer::Displaced(_) | Offer::Closed(_) => return,
                Offer::Full(back) => arrival = back,
            }
            self.in_progress = None;
            self.site.to.space().await;
            self.in_progress = Some(self.site.pulse.call());
        }
    }

    /// The result is no longer wanted.
    fn cancelled(&mut self) -> Option<Box<kernel::InvocationOutcome>> {
        let now = self.now();
        self.complaint = None;
        let verdict = self.machine.cancel(now, now);
        let mut outcome = None;
        for order in verdict.orders {
            match order {
                Order::Stop(key) => self.stop(key),
                Order::Finish(ended) => outcome = Some(ended),
                Order::Attempt { .. } => {}
            }
        }
        outcome
    }

    /// Tells the session how it went, and the node that it is over.
    fn conclude(mut self, outcome: &kernel::InvocationOutcome) {
        self.tell(Vec::new());
        let (site, routing) = (&self.site, self.routing.clone());
        let records = evidence::records(
            site,
            self.modality,
            routing,
            outcome,
            &self.facts,
            self.now(),
        );
        if let Some((attempts, outcome)) = records {
            self.site.settings.calls.meter().spend(outcome.spending);
            let message = SessionControl::Invocation {
                turn: self.site.settings.turn,
                attempts,
                outcome: Box::new(outcome),
            };
            if self.site.session.send_reserved(message).is_err() {
                tracing::debug!(call = %self.id, "the session takes no invocation record");
            }
        }
        let end = match outcome.class {
            OutcomeClass::Success => CallEnd::SUCCESS,
            OutcomeClass::Timeout
            | OutcomeClass::Overload
            | OutcomeClass::Blocked
            | OutcomeClass::InfrastructureFailure
            | OutcomeClass::Cancelled => CallEnd {
                class: outcome.class,
                reason: Some(outcome.reason),
                message: self
                    .complaint
                    .filter(|fault| fault.reason == outcome.reason)
                    .map(|fault| fault.to_string().into()),
            },
        };
        let call = self.site.key;
        let _node_is_gone = self.site.to.offer(Arrival::CallEnded { call, end });
    }
}

/// Whether a chunk brings the turn on: blanks are as silent as nothing.
fn says_something(chunk: &Chunk) -> bool {
    match chunk {
        Chunk::Llm(LlmChunk::Delta(text)) => !text.trim().is_empty(),
        Chunk::Tts(audio) => !audio.pcm.is_empty(),
        Chunk::Llm(LlmChunk::ToolCall(_) | LlmChunk::Finished { .. })
        | Chunk::Stt(SttChunk::Partial { .. } | SttChunk::Final { .. }) => true,
    }
}

async fn promoted(promotion: Option<&Promotion>) {
    if let Some(promotion) = promotion {
        promotion.token().cancelled().await;
    }
}

fn circuit_event(provider: &ProviderId, change: &CircuitChange) -> InvocationSignal {
    InvocationSignal {
        signal: Signal::CircuitEvent,
        reason: format!("{provider} {}", change.reason()),
    }
}
