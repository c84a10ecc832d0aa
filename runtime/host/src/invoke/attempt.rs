//! One attempt: opening the provider's stream, and what is to be known of it beside its chunks.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, stream};
use rspp_actors::CancellationToken;
use rspp_kernel::invocation::{AttemptKey, Patience};
use rspp_proto::{InvocationId, ProviderId, Spending, TurnNumber};
use rspp_provider_api::{
    Attempt, Call, ChunkStream, Deadlines, Extras, Fault, LlmChunk, QueueTime, RegistryError,
    SttChunk,
};

use super::CallSite;
use crate::{event::Chunk, node::CallRequest, providers::Candidates};

/// An attempt in progress: dropping it aborts the provider's work.
pub(super) struct Attempting {
    pub(super) key: AttemptKey,
    pub(super) cancel: CancellationToken,
    /// How much of its audio was passed on by an earlier attempt.
    pub(super) skip: Duration,
    /// Whether it goes on with what another has begun, and has not said anything yet.
    pub(super) goes_on: bool,
    /// How long it waits for this machine.
    pub(super) queue: Arc<QueueTime>,
    answer: ChunkStream<Chunk>,
}

/// What evidence asks of an attempt beside what the kernel knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) streaming: bool,
    pub(super) bytes: u64,
    /// Bytes of what the provider was asked.
    pub(super) asked: u64,
    /// What its adapter counts beside.
    extras: Arc<Extras>,
    pub(super) status: Option<u16>,
    /// Whether there was no room for it on this machine.
    pub(super) shed: bool,
    pub(super) spending: Spending,
}

impl Facts {
    /// What its adapter has counted beside what all count.
    pub(super) fn extras(&self) -> BTreeMap<String, f64> {
        let counts = self.extras.counts().into_iter();
        counts
            .map(|(name, amount)| (name.to_owned(), amount))
            .collect()
    }

    /// Counts a chunk.
    pub(super) fn count(&mut self, chunk: &Chunk) {
        let (bytes, tokens) = match chunk {
            Chunk::Stt(SttChunk::Partial { text } | SttChunk::Final { text, .. }) => {
                (text.len(), 0)
            }
            // A delta is a token, as far as one can tell before the model says what it counted.
            Chunk::Llm(LlmChunk::Delta(text)) => (text.len(), 1),
            Chunk::Llm(LlmChunk::ToolCall(call)) => (call.arguments.len(), 0),
            Chunk::Llm(LlmChunk::Finished { usage, .. }) => {
                if let Some(usage) = usage {
                    self.spending.tokens_read = usage.prompt_tokens;
                    self.spending.tokens_written = usage.completion_tokens;
                }
                (0, 0)
            }
            Chunk::Tts(audio) => (audio.pcm.len(), 0),
        };
        self.bytes += bytes as u64;
        self.spending.tokens_written += tokens;
    }
}

impl Attempting {
    /// The next piece of the answer; `None` at its end. Cancel safe.
    pub(super) async fn next(&mut self) -> (AttemptKey, Option<Result<Chunk, Fault>>) {
        (self.key, self.answer.next().await)
    }

    /// The next piece of whichever answer has one.
    pub(super) async fn next_of(
        attempts: &mut [Self],
    ) -> (AttemptKey, Option<Result<Chunk, Fault>>) {
        match attempts {
            [only] => only.next().await,
            several => {
                let nexts = several.iter_mut().map(|attempt| attempt.next().boxed());
                futures::future::select_all(nexts).await.0
            }
        }
    }
}

/// Opens the provider's stream. However an adapter behaves, what comes of it is an answer or a
/// fault: a panic is one too, and costs no more than its attempt (F-134).
pub(super) fn open(
    site: &CallSite,
    id: &InvocationId,
    request: &mut CallRequest,
    key: AttemptKey,
    provider: &ProviderId,
    attempt: u32,
) -> Result<(Attempting, Facts), Fault> {
    let cancel = site.cancel.child_token();
    let queue = Arc::<QueueTime>::default();
    let extras = Arc::<Extras>::default();
    let call = Call {
        invocation: id.clone(),
        attempt: NonZeroU32::new(attempt).map_or(Attempt::FIRST, Attempt),
        session: site.settings.session.clone(),
        turn: site.settings.turn.map(TurnNumber::id),
        epoch: site.settings.epoch,
        idempotency_key: id.to_string(),
        deadlines: deadlines(site, provider),
        share: Arc::clone(site.settings.schedule.share()),
        queue: Arc::clone(&queue),
        extras: Arc::clone(&extras),
        cancel: cancel.clone(),
    };
    let registry = &site.settings.registry;
    let candidates = site.settings.candidates.as_deref();
    let streams = |of: &Candidates| of.streaming.contains(provider);
    let mut facts = Facts {
        streaming: candidates.is_some_and(streams),
        asked: request.bytes(),
        extras,
        ..Facts::default()
    };
    let begin = |request: &mut CallRequest| -> Result<ChunkStream<Chunk>, Fault> {
        Ok(match request {
            CallRequest::Stt(request) => {
                let provider = registry.stt(provider).map_err(|error| unknown(&error))?;
                let audio = request.audio();
                let answer = provider.transcribe(call, request.request.clone(), audio);
                guarded(answer, Chunk::Stt)
            }
            CallRequest::Llm(request) => {
                let provider = registry.llm(provider).map_err(|error| unknown(&error))?;
                guarded(provider.generate(call, request.clone()), Chunk::Llm)
            }
            CallRequest::Tts(request) => {
                let provider = registry.tts(provider).map_err(|error| unknown(&error))?;
                facts.spending.tts_characters = request.text.chars().count() as u64;
                guarded(provider.synthesize(call, request.clone()), Chunk::Tts)
            }
        })
    };
    let capture = site.settings.capture.as_ref().map(|capture| {
        let turn = site.settings.turn;
        let provider = provider.clone();
        capture.asked(turn, id, provider, attempt, &*request)
    });
    let begun = catch_unwind(AssertUnwindSafe(|| begin(request)));
    let begun = begun.unwrap_or_else(|_| Err(panicked()));
    let answer = match (begun, capture) {
        (Ok(answer), Some(mut capture)) => answer
            .map(Some)
            .chain(stream::once(std::future::ready(None)))
            .inspect(move |item| capture.answered(item.as_ref()))
            .filter_map(std::future::ready)
            .boxed(),
        (Ok(answer), None) => answer,
        (Err(fault), capture) => {
            if let Some(mut capture) = capture {
                capture.answered(Some(&Err(fault.clone())));
            }
            return Err(fault);
        }
    };
    let attempting = Attempting {
        key,
        cancel,
        skip: Duration::ZERO,
        goes_on: false,
        queue,
        answer,
    };
    Ok((attempting, facts))
}

/// How long the runtime will wait, for adapters that set time-outs of their own.
fn deadlines(site: &CallSite, provider: &ProviderId) -> Deadlines {
    let candidates = site.settings.candidates.as_deref();
    let asked = candidates.and_then(|candidates| {
        let mut all = candidates.all.iter();
        all.find(|candidate| candidate.provider == *provider)
    });
    let patience = asked.map_or_else(
        || Patience::of(&site.settings.budgets),
        |candidate| candidate.patience,
    );
    Deadlines {
        first_byte: patience.first_byte,
        inter_chunk: patience.inter_chunk,
    }
}

fn unknown(error: &RegistryError) -> Fault {
    Fault::blocked("provider_endpoint_missing", error.to_string())
}

/// What a panic says may hold anything, so nothing of it is told.
fn panicked() -> Fault {
    Fault::model("the provider's adapter panicked")
}

fn guarded<T: Send + 'static>(
    answer: impl Stream<Item = Result<T, Fault>> + Send + 'static,
    chunk: fn(T) -> Chunk,
) -> ChunkStream<Chunk> {
    let answer = AssertUnwindSafe(answer).catch_unwind();
    // After its first fault an answer is over, whatever else the adapter has to say.
    stream::unfold(Some(Box::pin(answer)), move |answer| async move {
        let mut answer = answer?;
        match answer.next().await? {
            Ok(Ok(next)) => Some((Ok(chunk(next)), Some(answer))),
            Ok(Err(fault)) => Some((Err(fault), None)),
            Err(_panic) => Some((Err(panicked()), None)),
        }
    })
    .boxed()
}
