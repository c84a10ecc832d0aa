//! A provider call as an actor: attempts, deadlines, the answer passed on, the cancel passed down.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use futures::StreamExt;
use rspp_actors::{
    CancellationToken, Clock, ControlRef, DataRef, ExitReason, NoData, NoTelemetry, Offer, Pump,
    PumpContext,
};
use rspp_kernel::invocation::{self as kernel, Failure, InvocationSignal, Order};
use rspp_proto::{
    EventId, InvocationId, Monotonic, OutcomeClass, ProviderId, TurnNumber, abi::Signal,
    spec::Modality,
};
use rspp_provider_api::{Attempt, Call, ChunkStream, Deadlines, Fault, LlmChunk, SttChunk};
use rspp_timeline::{AttemptRecord, InvocationOutcome, RetryDecision};
use tokio::time::Instant;

use crate::{
    event::{Arrival, CallEnd, CallKey, Chunk},
    node::{CallRequest, NodeSettings},
    pulse::{CallInProgress, Pulse},
    session::SessionControl,
};

/// How much longer a local model may be silent than a networked provider.
const LOCAL_PATIENCE: u32 = 5;

/// Where a call comes from and where its answer goes.
pub(crate) struct CallSite {
    pub(crate) key: CallKey,
    pub(crate) settings: NodeSettings,
    pub(crate) to: DataRef<Arrival>,
    pub(crate) session: ControlRef<SessionControl>,
    pub(crate) cancel: CancellationToken,
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
        let label = format!("{}-{}", settings.node(), self.key.0);
        let event = EventId::new(label).expect("a node id and a number are no blank text");
        InvocationId::canonical(&settings.session, turn.as_ref(), &event, modality.as_str())
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

    async fn run(&mut self, ctx: &mut PumpContext<Self>) -> ExitReason {
        let Some(InvocationSetup { site, request }) = self.setup.take() else {
            return ExitReason::Failed("a provider call is not begun twice".to_owned());
        };
        let stopped = ctx.cancellation().clone();
        let cancel = site.cancel.clone();
        let mut work = Work::new(site, request);
        let end = tokio::select! {
            biased;
            () = stopped.cancelled() => Err(Fault::cancelled()),
            () = cancel.cancelled() => Err(Fault::cancelled()),
            end = work.run() => end,
        };
        // Nobody waits for the end of a call that was given up; its evidence is kept all the same.
        work.conclude(end);
        ExitReason::Finished
    }
}

/// One call in progress: dropping it drops the provider's stream, which aborts the call.
struct Work {
    site: CallSite,
    request: CallRequest,
    modality: Modality,
    id: InvocationId,
    machine: kernel::Invocation,
    began: Monotonic,
    records: Vec<AttemptRecord>,
    running: Option<Running>,
    progress: Progress,
    /// As long as the provider is what is waited for: it has deadlines of its own.
    in_progress: Option<CallInProgress>,
}

/// The attempt in progress.
struct Running {
    provider: ProviderId,
    attempt: Attempt,
    streaming: bool,
    began: Monotonic,
    first_chunk: Option<Monotonic>,
    chunks: u64,
    bytes: u64,
}

/// What all attempts together have passed on.
#[derive(Default)]
struct Progress {
    audio: Duration,
    concluded: bool,
}

impl Work {
    fn new(site: CallSite, request: CallRequest) -> Self {
        let settings = &site.settings;
        let modality = request.modality();
        let id = site.invocation_id(modality);
        let began = Monotonic::from_duration(site.clock.now());
        let budgets = &settings.budgets;
        let limit = match modality {
            // An utterance lasts as long as the user speaks.
            Modality::Stt => budgets.max_turn_duration_ms * 2,
            // A sentence is spoken for as long as it is; what is late with its first sound is the
            // turn's business.
            Modality::Tts => budgets.max_turn_duration_ms,
            Modality::Llm | Modality::Vad | Modality::EndOfTurn | Modality::External => {
                budgets.turn_budget_ms
            }
        };
        let machine = kernel::Invocation::new(
            id.clone(),
            settings.providers.to_vec(),
            settings.calls.policy.clone(),
            began,
            began + Duration::from_millis(limit),
        );
        Self {
            machine,
            began,
            in_progress: Some(site.pulse.call()),
            site,
            request,
            modality,
            id,
            records: Vec::new(),
            running: None,
            progress: Progress::default(),
        }
    }

    fn now(&self) -> Monotonic {
        Monotonic::from_duration(self.site.clock.now())
    }

    /// Carries out what the kernel's machine orders, until it says that the call is over.
    async fn run(&mut self) -> Result<(), Fault> {
        let rules = Arc::clone(&self.site.settings.calls);
        let modality = self.modality;
        let mut verdict = {
            let now = self.now();
            self.machine.begin(now, |provider| {
                rules.circuits.admits(modality, provider, now)
            })
        };
        let mut last = Fault::blocked("provider_endpoint_missing", "no provider is bound");
        loop {
            self.emit(verdict.signals);
            let (provider, attempt, at) = match verdict.order {
                Order::Attempt {
                    provider,
                    attempt,
                    at,
                } => (provider, attempt, at),
                Order::Finish(outcome) if outcome.class == OutcomeClass::Success => return Ok(()),
                Order::Finish(_) => return Err(last),
            };
            let wait = at.since(self.now());
            // A sleep of no time takes up to a millisecond, the timer's step.
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let attempt = NonZeroU32::new(attempt).map_or(Attempt::FIRST, Attempt);
            let outcome = self.attempt(&provider, attempt).await;
            let now = self.now();
            let (class, wish) = match &outcome {
                Ok(()) => (OutcomeClass::Success, None),
                Err(fault) => (fault.class, fault.backoff.filter(|_| fault.circuit_open)),
            };
            if let Some(change) = rules.circuits.record(modality, &provider, now, class, wish) {
                self.emit(vec![InvocationSignal {
                    signal: Signal::CircuitEvent,
                    reason: format!("{provider} {}", change.reason()),
                }]);
            }
            verdict = match outcome {
                Ok(()) => self.machine.succeeded(now),
                Err(fault) => {
                    let failure = Failure {
                        class: fault.class,
                        retryable: fault.retryable,
                        reason: fault.reason,
                        circuit_open: fault.circuit_open,
                        backoff: fault.backoff,
                    };
                    let admits =
                        |provider: &ProviderId| rules.circuits.admits(modality, provider, now);
                    let verdict = self.machine.failed(now, &failure, admits);
                    let decision = self.machine.attempts().last().map(|last| last.decision);
                    self.record(Err(&fault), decision.unwrap_or(kernel::RetryDecision::None));
                    last = fault;
                    verdict
                }
            };
        }
    }

    /// Has signals stamped and published by the session.
    fn emit(&self, signals: Vec<InvocationSignal>) {
        for InvocationSignal { signal, reason } in signals {
            let message = SessionControl::ProviderSignal {
                turn: self.site.settings.turn,
                signal,
                reason,
                at: self.now(),
            };
            if self.site.session.send_reserved(message).is_err() {
                tracing::debug!(call = %self.id, "the session takes no signal");
            }
        }
    }

    async fn attempt(&mut self, provider: &ProviderId, attempt: Attempt) -> Result<(), Fault> {
        let (mut answer, streaming, patience) = self.open(provider, attempt)?;
        self.running = Some(Running {
            provider: provider.clone(),
            attempt,
            streaming,
            began: self.now(),
            first_chunk: None,
            chunks: 0,
            bytes: 0,
        });
        let mut skip = self.progress.audio;
        let mut deadline = Instant::now() + patience.first_byte;
        loop {
            let listening = self.request.is_listening();
            let next = tokio::select! {
                biased;
                () = self.request.listen(), if listening => {
                    // A recogniser owes its answer from the end of the audio on.
                    deadline = Instant::now() + patience.first_byte;
                    continue;
                }
                next = answer.next() => next,
                () = tokio::time::sleep_until(deadline), if !listening => {
                    return Err(Fault::timeout("no answer within the deadline"));
                }
            };
            let chunk = match next {
                None => break,
                Some(Err(fault)) => return Err(fault),
                Some(Ok(chunk)) => chunk,
            };
            let done = matches!(chunk, Chunk::Stt(SttChunk::Final { .. }));
            if let Some(chunk) = self.account(chunk, &mut skip) {
                self.pass_on(chunk).await;
            }
            if done {
                break;
            }
            deadline = Instant::now() + patience.inter_chunk;
        }
        if !self.progress.concluded && self.modality != Modality::Tts {
            return Err(Fault::stream("the answer ended before it was complete"));
        }
        self.record(Ok(()), kernel::RetryDecision::None);
        Ok(())
    }

    /// Opens the provider's stream, and says how long it may be silent.
    fn open(
        &mut self,
        provider: &ProviderId,
        attempt: Attempt,
    ) -> Result<(ChunkStream<Chunk>, bool, Deadlines), Fault> {
        let settings = &self.site.settings;
        let budgets = &settings.budgets;
        let ms = |key: &str, default: u64| {
            Duration::from_millis(settings.number(key, default as f64) as u64)
        };
        let deadlines = Deadlines {
            first_byte: ms("first_byte_ms", budgets.provider_first_byte_ms),
            inter_chunk: ms("inter_chunk_ms", budgets.provider_inter_chunk_ms),
        };
        let call = Call {
            invocation: self.id.clone(),
            attempt,
            session: settings.session.clone(),
            turn: settings.turn.map(TurnNumber::id),
            epoch: settings.epoch,
            idempotency_key: self.id.to_string(),
            deadlines,
            cancel: self.site.cancel.clone(),
        };
        let unknown = |error: rspp_provider_api::RegistryError| {
            Fault::blocked("provider_endpoint_missing", error.to_string())
        };
        let registry = Arc::clone(&settings.registry);
        let (answer, description): (ChunkStream<Chunk>, _) = match &mut self.request {
            CallRequest::Stt(request) => {
                let provider = registry.stt(provider).map_err(unknown)?;
                let audio = request.audio();
                let answer = provider.transcribe(call, request.request.clone(), audio);
                let answer = answer.map(|chunk| chunk.map(Chunk::Stt)).boxed();
                (answer, provider.describe().clone())
            }
            CallRequest::Llm(request) => {
                let provider = registry.llm(provider).map_err(unknown)?;
                let answer = provider.generate(call, request.clone());
                let answer = answer.map(|chunk| chunk.map(Chunk::Llm)).boxed();
                (answer, provider.describe().clone())
            }
            CallRequest::Tts(request) => {
                let provider = registry.tts(provider).map_err(unknown)?;
                let answer = provider.synthesize(call, request.clone());
                let answer = answer.map(|chunk| chunk.map(Chunk::Tts)).boxed();
                (answer, provider.describe().clone())
            }
        };
        let patience = if description.networked {
            deadlines
        } else {
            // A model on this machine that is slow is busy, and asking again makes it slower: it
            // gets more time before it counts as stuck.
            Deadlines {
                first_byte: deadlines.first_byte * LOCAL_PATIENCE,
                inter_chunk: deadlines.inter_chunk * LOCAL_PATIENCE,
            }
        };
        Ok((answer, description.streaming, patience))
    }

    /// Counts a chunk; `None` if it repeats audio that an earlier attempt has passed on.
    fn account(&mut self, chunk: Chunk, skip: &mut Duration) -> Option<Chunk> {
        let now = self.now();
        self.machine.chunk(now);
        if let Some(running) = &mut self.running {
            running.first_chunk.get_or_insert(now);
            running.chunks += 1;
            running.bytes += match &chunk {
                Chunk::Stt(SttChunk::Partial { text } | SttChunk::Final { text, .. })
                | Chunk::Llm(LlmChunk::Delta(text)) => text.len(),
                Chunk::Llm(LlmChunk::ToolCall(call)) => call.arguments.len(),
                Chunk::Llm(LlmChunk::Finished { .. }) => 0,
                Chunk::Tts(audio) => audio.pcm.len(),
            } as u64;
        }
        match chunk {
            Chunk::Stt(SttChunk::Final { .. }) | Chunk::Llm(LlmChunk::Finished { .. }) => {
                self.progress.concluded = true;
                Some(chunk)
            }
            Chunk::Llm(LlmChunk::Delta(_) | LlmChunk::ToolCall(_)) => {
                // Words that were passed on cannot be taken back (P6).
                self.machine.commit();
                Some(chunk)
            }
            Chunk::Stt(SttChunk::Partial { .. }) => Some(chunk),
            Chunk::Tts(mut audio) => {
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

    fn record(&mut self, outcome: Result<(), &Fault>, decision: kernel::RetryDecision) {
        let Some(running) = self.running.take() else {
            return; // The attempt never reached a provider.
        };
        let fault = outcome.err();
        self.records.push(AttemptRecord {
            provider_invocation_id: self.id.clone(),
            turn_id: self.site.settings.turn.map(TurnNumber::id),
            modality: self.modality,
            provider_id: running.provider,
            attempt: running.attempt.get(),
            outcome_class: fault.map_or(OutcomeClass::Success, |fault| fault.class),
            reason: fault.map_or_else(String::new, |fault| fault.reason.to_owned()),
            retryable: fault.is_some_and(|fault| fault.retryable),
            retry_decision: recorded(decision),
            authority_epoch: self.site.settings.epoch,
            started_at: running.began,
            ended_at: self.now(),
            first_chunk_at: running.first_chunk,
            streaming_used: running.streaming,
            chunk_count: running.chunks,
            bytes_out: running.bytes,
            circuit_open: fault.is_some_and(|fault| fault.circuit_open),
            backoff_ms: fault
                .and_then(|fault| fault.backoff)
                .map(|backoff| backoff.as_millis() as u64),
            output_status_code: fault.and_then(|fault| fault.status),
            input_payload: None,
            output_payload: None,
            payload_truncated: false,
        });
    }

    /// Tells the session how it went, and the node that it is over.
    fn conclude(mut self, end: Result<(), Fault>) {
        if let Err(fault) = &end {
            self.record(Err(fault), kernel::RetryDecision::None);
        }
        let ended_at = self.now();
        if let Some(last) = self.records.last() {
            let outcome = InvocationOutcome {
                provider_invocation_id: self.id.clone(),
                turn_id: last.turn_id.clone(),
                modality: self.modality,
                provider_id: last.provider_id.clone(),
                outcome_class: last.outcome_class,
                retryable: last.retryable,
                retry_decision: last.retry_decision,
                attempt_count: self.records.len() as u32,
                final_attempt_latency_ms: last.latency().as_millis() as u64,
                total_invocation_latency_ms: ended_at.since(self.began).as_millis() as u64,
                ended_at,
            };
            let message = SessionControl::Invocation {
                turn: self.site.settings.turn,
                attempts: std::mem::take(&mut self.records),
                outcome: Box::new(outcome),
            };
            if self.site.session.send_reserved(message).is_err() {
                tracing::debug!(call = %self.id, "the session takes no invocation record");
            }
        }
        let end = match end {
            Ok(()) => CallEnd::SUCCESS,
            Err(fault) => CallEnd {
                class: fault.class,
                reason: Some(fault.reason),
                message: Some(fault.to_string().into()),
            },
        };
        let call = self.site.key;
        let _node_is_gone = self.site.to.offer(Arrival::CallEnded { call, end });
    }
}

/// The decision as the timeline writes it.
fn recorded(decision: kernel::RetryDecision) -> RetryDecision {
    match decision {
        kernel::RetryDecision::None => RetryDecision::None,
        kernel::RetryDecision::Retry => RetryDecision::Retry,
        kernel::RetryDecision::ProviderSwitch => RetryDecision::ProviderSwitch,
        kernel::RetryDecision::Fallback => RetryDecision::Fallback,
    }
}
