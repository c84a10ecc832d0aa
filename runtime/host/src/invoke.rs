//! A provider call as an actor: attempts, deadlines, the answer passed on, the cancel passed down.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use rspp_actors::{
    CancellationToken, Clock, ControlRef, DataRef, ExitReason, NoData, NoTelemetry, Offer, Pump,
    PumpContext,
};
use rspp_proto::{EventId, InvocationId, Monotonic, OutcomeClass, ProviderId, spec::Modality};
use rspp_provider_api::{Attempt, Call, ChunkStream, Deadlines, Fault, LlmChunk, SttChunk};
use rspp_timeline::{AttemptRecord, InvocationOutcome, RetryDecision};
use tokio::time::Instant;

use crate::{
    event::{Arrival, CallEnd, CallKey, Chunk},
    node::{CallRequest, NodeSettings},
    session::SessionControl,
};

/// Attempts at one provider (providers.md §4).
const ATTEMPTS_PER_PROVIDER: u32 = 2;
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
    began: Monotonic,
    records: Vec<AttemptRecord>,
    running: Option<Running>,
    progress: Progress,
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
    text: bool,
    audio: Duration,
    concluded: bool,
}

impl Work {
    fn new(site: CallSite, request: CallRequest) -> Self {
        let settings = &site.settings;
        let turn = settings.turn.map(|turn| turn.id());
        let modality = request.modality();
        let label = format!("{}-{}", settings.node(), site.key.0);
        let event = EventId::new(label).expect("a node id and a number are no blank text");
        let id =
            InvocationId::canonical(&settings.session, turn.as_ref(), &event, modality.as_str());
        Self {
            began: Monotonic::from_duration(site.clock.now()),
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

    /// Goes through the candidates of the frozen plan until one answers.
    async fn run(&mut self) -> Result<(), Fault> {
        let candidates = Arc::clone(&self.site.settings.providers);
        let mut last = Fault::blocked("provider_endpoint_missing", "no provider is bound");
        for (place, provider) in candidates.iter().enumerate() {
            let mut attempt = Attempt::FIRST;
            loop {
                let Err(fault) = self.attempt(provider, attempt).await else {
                    return Ok(());
                };
                let more = place + 1 < candidates.len();
                let decision = self.decide(&fault, attempt, more);
                self.record(Err(&fault), decision);
                let backoff = fault.backoff.unwrap_or_default();
                last = fault;
                match decision {
                    RetryDecision::None => return Err(last),
                    RetryDecision::ProviderSwitch | RetryDecision::Fallback => break,
                    RetryDecision::Retry => {
                        tokio::time::sleep(backoff).await;
                        attempt = attempt.next();
                    }
                }
            }
        }
        Err(last)
    }

    /// What a failure leads to. Words that were passed on cannot be taken back, so a language model
    /// is asked again only if it has said nothing yet.
    fn decide(&self, fault: &Fault, attempt: Attempt, more: bool) -> RetryDecision {
        let spent = self.now().since(self.began);
        let left =
            Duration::from_millis(self.site.settings.budgets.turn_budget_ms).saturating_sub(spent);
        let repeatable = match self.modality {
            Modality::Llm => !self.progress.text,
            Modality::Stt => !self.progress.concluded,
            Modality::Tts | Modality::Vad | Modality::EndOfTurn | Modality::External => true,
        };
        if fault.class == OutcomeClass::Cancelled || !repeatable || left.is_zero() {
            return RetryDecision::None;
        }
        let patient = fault.backoff.unwrap_or_default() < left;
        if fault.retryable && attempt.get() < ATTEMPTS_PER_PROVIDER && patient && !more {
            RetryDecision::Retry
        } else if more {
            // Another provider is at hand: that is quicker than waiting for this one.
            RetryDecision::ProviderSwitch
        } else {
            RetryDecision::None
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
        self.record(Ok(()), RetryDecision::None);
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
            turn: settings.turn.map(|turn| turn.id()),
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
        if let Some(running) = &mut self.running {
            running.first_chunk.get_or_insert(now);
            running.chunks += 1;
            running.bytes += match &chunk {
                Chunk::Stt(SttChunk::Partial { text } | SttChunk::Final { text, .. }) => text.len(),
                Chunk::Llm(LlmChunk::Delta(text)) => text.len(),
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
                self.progress.text = true;
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
                self.progress.audio += length - *skip;
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
            self.site.to.space().await;
        }
    }

    fn record(&mut self, outcome: Result<(), &Fault>, decision: RetryDecision) {
        let Some(running) = self.running.take() else {
            return; // The attempt never reached a provider.
        };
        let fault = outcome.err();
        self.records.push(AttemptRecord {
            provider_invocation_id: self.id.clone(),
            turn_id: self.site.settings.turn.map(|turn| turn.id()),
            modality: self.modality,
            provider_id: running.provider,
            attempt: running.attempt.get(),
            outcome_class: fault.map_or(OutcomeClass::Success, |fault| fault.class),
            reason: fault.map_or_else(String::new, |fault| fault.reason.to_owned()),
            retryable: fault.is_some_and(|fault| fault.retryable),
            retry_decision: decision,
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
            self.record(Err(fault), RetryDecision::None);
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
            if self.site.session.send(message).is_err() {
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
