//! Calls of several sessions in one (F-051): gathered in a window that no call's deadline suffers from.
//!
//! Nothing runs in the background: each call waits for its own latest start, and whichever comes first
//! takes all that wait with it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use rspp_proto::spec::BatchingSpec;
use tokio::{sync::oneshot, time::Instant};

use crate::{Call, ChunkStream, Description, Fault, LanguageModel, LlmChunk, LlmRequest};

/// The part of a call's patience that may be spent on waiting for others.
const PATIENCE: u32 = 4;

/// A language model that answers several calls together for little more than one of them costs.
pub trait BatchLanguageModel: Send + Sync + 'static {
    /// What this is.
    fn describe(&self) -> &Description;

    /// Whether two requests can be answered together.
    fn fits(&self, one: &LlmRequest, other: &LlmRequest) -> bool {
        one.tools == other.tools && one.temperature == other.temperature
    }

    /// Answers all calls; an answer for each, in order. Each keeps its own cancel: one that is
    /// cancelled or dropped takes nothing from the others.
    fn generate_batch(&self, calls: Vec<(Call, LlmRequest)>) -> Vec<ChunkStream<LlmChunk>>;
}

/// What has been gathered so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchCounters {
    /// How many batches there were of each size; of one call first.
    pub by_size: Vec<u64>,
    /// The longest that a call waited for others.
    pub longest_wait: Duration,
}

impl BatchCounters {
    /// Calls so far.
    pub fn calls(&self) -> u64 {
        let sizes = self.by_size.iter().zip(1_u64..);
        sizes.map(|(batches, size)| batches * size).sum()
    }

    /// Batches so far.
    pub fn batches(&self) -> u64 {
        self.by_size.iter().sum()
    }

    fn count(&mut self, size: usize) {
        if self.by_size.len() < size {
            self.by_size.resize(size, 0);
        }
        if let Some(count) = self.by_size.get_mut(size.wrapping_sub(1)) {
            *count += 1;
        }
    }
}

/// A language model whose calls are gathered.
pub struct Batching {
    shared: Arc<Shared>,
}

struct Shared {
    model: Arc<dyn BatchLanguageModel>,
    /// How calls are gathered; `None` answers each alone.
    spec: Option<BatchingSpec>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    gathering: Vec<Batch>,
    next: u64,
    counters: BatchCounters,
}

/// Calls that go together.
struct Batch {
    number: u64,
    members: Vec<Member>,
}

struct Member {
    call: Call,
    request: LlmRequest,
    since: Instant,
    answer: oneshot::Sender<ChunkStream<LlmChunk>>,
}

impl Batching {
    /// Gathers calls of `model`; without a `spec` each is answered alone.
    pub fn new(model: Arc<dyn BatchLanguageModel>, spec: Option<BatchingSpec>) -> Self {
        Self {
            shared: Arc::new(Shared {
                model,
                spec,
                state: Mutex::default(),
            }),
        }
    }

    /// What has been gathered so far.
    pub fn counters(&self) -> BatchCounters {
        self.shared.lock().counters.clone()
    }
}

impl LanguageModel for Batching {
    fn describe(&self) -> &Description {
        self.shared.model.describe()
    }

    fn generate(&self, call: Call, request: LlmRequest) -> ChunkStream<LlmChunk> {
        let shared = Arc::clone(&self.shared);
        let answer = async move {
            let cancel = call.cancel.clone();
            tokio::select! {
                biased;
                () = cancel.cancelled() => stream::once(async { Err(Fault::cancelled()) }).boxed(),
                answer = shared.answer(call, request) => answer,
            }
        };
        stream::once(answer).flatten().boxed()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What is gathered is whole between any two of our own lines.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins those that wait, and waits with them until somebody has to start.
    async fn answer(&self, call: Call, request: LlmRequest) -> ChunkStream<LlmChunk> {
        let wait = self.spec.map_or(Duration::ZERO, |spec| {
            let window = Duration::from_millis(spec.window_ms);
            window.min(call.deadlines.first_byte / PATIENCE)
        });
        let latest = Instant::now() + wait;
        // What waits for company waits for us.
        let _waiting = call.queue.wait();
        let (number, mut answer) = self.join(call, request);
        if !wait.is_zero() {
            tokio::select! {
                biased;
                answer = &mut answer => return given(answer),
                () = tokio::time::sleep_until(latest) => {}
            }
        }
        self.start(number);
        given(answer.await)
    }

    fn join(
        &self,
        call: Call,
        request: LlmRequest,
    ) -> (u64, oneshot::Receiver<ChunkStream<LlmChunk>>) {
        let (to, answer) = oneshot::channel();
        let since = Instant::now();
        let mut state = self.lock();
        let open = state.gathering.iter().position(|batch| {
            let first = batch.members.first();
            first.is_some_and(|first| self.model.fits(&first.request, &request))
        });
        let member = Member {
            call,
            request,
            since,
            answer: to,
        };
        let most = self.spec.map_or(1, |spec| spec.max_calls.max(1) as usize);
        let at = open.unwrap_or_else(|| {
            state.next += 1;
            let number = state.next;
            state.gathering.push(Batch {
                number,
                members: Vec::new(),
            });
            state.gathering.len() - 1
        });
        let batch = &mut state.gathering[at];
        // Who has left meanwhile takes up no room.
        batch.members.retain(|member| !member.answer.is_closed());
        batch.members.push(member);
        let (number, is_full) = (batch.number, batch.members.len() >= most);
        drop(state);
        if is_full {
            self.start(number);
        }
        (number, answer)
    }

    /// Starts a batch, unless somebody has.
    fn start(&self, number: u64) {
        let members = {
            let mut state = self.lock();
            let found = state.gathering.iter().position(|b| b.number == number);
            let Some(at) = found else {
                return;
            };
            let mut members = state.gathering.swap_remove(at).members;
            members.retain(|member| !member.answer.is_closed());
            state.counters.count(members.len());
            let waits = members.iter().map(|member| member.since.elapsed());
            let longest = waits.max().unwrap_or_default();
            state.counters.longest_wait = state.counters.longest_wait.max(longest);
            members
        };
        if members.is_empty() {
            return;
        }
        let (calls, answers): (Vec<_>, Vec<_>) = members
            .into_iter()
            .map(|member| ((member.call, member.request), member.answer))
            .unzip();
        for (to, answer) in answers.into_iter().zip(self.model.generate_batch(calls)) {
            // Who has left meanwhile drops its answer, which aborts it.
            let _left = to.send(answer);
        }
    }
}

/// The answer of the batch; a model that gave too few has failed.
fn given(
    answer: Result<ChunkStream<LlmChunk>, oneshot::error::RecvError>,
) -> ChunkStream<LlmChunk> {
    answer.unwrap_or_else(|_| {
        let fault = Fault::model("the batch was answered without this call");
        stream::once(async { Err(fault) }).boxed()
    })
}

impl std::fmt::Debug for Batching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batching")
            .field("model", self.describe())
            .field("spec", &self.shared.spec)
            .field("counters", &self.counters())
            .finish()
    }
}
