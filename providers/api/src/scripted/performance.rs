//! One attempt under way: its pace, its trouble, its cancellation, its counting.

use std::{
    future, iter,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::stream;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{Call, ChunkStream, Fault};

use super::{Conduct, OnCancel, Script, Tally, Trouble, tally::Counters};

/// What all streaming scripted providers share.
#[derive(Debug, Default)]
pub(super) struct Stage {
    script: Mutex<Script>,
    counters: Arc<Counters>,
}

impl Stage {
    pub(super) fn set_script(&self, script: Script) {
        *self.script.lock().unwrap_or_else(PoisonError::into_inner) = script;
    }

    pub(super) fn tally(&self) -> Tally {
        self.counters.tally()
    }

    /// Begins an attempt.
    pub(super) fn begin(&self, call: &Call) -> Performance {
        let number = self.counters.calls.add();
        let script = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        Performance {
            conduct: script.conduct(call.attempt, number),
            cancel: call.cancel.clone(),
            counters: Arc::clone(&self.counters),
            chunks: 0,
            cancel_counted: false,
            ended: false,
        }
    }
}

/// What an attempt does next.
#[derive(Debug)]
pub(super) enum Cue {
    /// Hands out its next chunk.
    Emit,
    /// Ends with a fault.
    Fail(Fault),
    /// Ends.
    End,
}

/// One attempt under way.
#[derive(Debug)]
pub(super) struct Performance {
    conduct: Conduct,
    cancel: CancellationToken,
    counters: Arc<Counters>,
    chunks: u32,
    cancel_counted: bool,
    ended: bool,
}

impl Performance {
    /// Waits until the next chunk is due, `pace` from now, and says whether it comes.
    pub(super) async fn cue(&mut self, pace: Duration) -> Cue {
        let late = match self.chunks {
            0 => self.conduct.first_chunk_after,
            1.. => Duration::ZERO,
        };
        let cue = match self.trouble_now() {
            Some(trouble) => self.get_into(trouble, pace + late).await,
            None => match self.unless_cancelled(rest(pace + late)).await {
                Ok(()) => Cue::Emit,
                Err(cancelled) => cancelled,
            },
        };
        match &cue {
            Cue::Emit => self.count_chunk(),
            Cue::Fail(_) | Cue::End => self.ended = true,
        }
        cue
    }

    /// The answer is complete; whether the attempt ends well.
    pub(super) async fn finish(&mut self) -> Cue {
        let cue = if let Some(trouble) = self.trouble_now() {
            self.get_into(trouble, Duration::ZERO).await
        } else {
            self.counters.completed.add();
            Cue::End
        };
        self.ended = true;
        cue
    }

    /// An answer that is only a refusal, unless the script knows worse.
    pub(super) fn refuse<T: Send + 'static>(mut self, fault: Fault) -> ChunkStream<T> {
        if self.conduct.trouble.is_none() {
            self.conduct = self.conduct.clone().failing_after(0, fault);
        }
        play(self, iter::empty())
    }

    /// Whether something goes wrong before another chunk comes.
    pub(super) fn trouble_now(&self) -> Option<Trouble> {
        self.conduct
            .trouble
            .as_ref()
            .filter(|(after, _)| *after == self.chunks)
            .map(|(_, trouble)| trouble.clone())
    }

    /// Waits for `work`, or for the cancel if this attempt listens to it: then how it ends.
    pub(super) async fn unless_cancelled<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Cue> {
        let stop_after = match self.conduct.on_cancel {
            OnCancel::Stop => Duration::ZERO,
            OnCancel::StopAfter(delay) => delay,
            OnCancel::Ignore => return Ok(work.await),
        };
        let cancel = self.cancel.clone();
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            done = work => return Ok(done),
        }
        self.count_cancel();
        rest(stop_after).await;
        self.counters.failed.add();
        self.ended = true;
        Err(Cue::Fail(Fault::cancelled()))
    }

    async fn get_into(&mut self, trouble: Trouble, after: Duration) -> Cue {
        if let Err(cancelled) = self.unless_cancelled(rest(after)).await {
            return cancelled;
        }
        match trouble {
            Trouble::Stall => match self.unless_cancelled(future::pending()).await {
                Ok(()) => Cue::End,
                Err(cancelled) => cancelled,
            },
            Trouble::Fail(fault) => {
                self.counters.failed.add();
                Cue::Fail(fault)
            }
            Trouble::Truncate => {
                self.counters.completed.add();
                Cue::End
            }
            Trouble::Panic => panic!("scripted panic after {} chunks", self.chunks),
        }
    }

    fn count_chunk(&mut self) {
        self.chunks += 1;
        self.counters.chunks.add();
        if self.cancel.is_cancelled() {
            self.counters.chunks_after_cancel.add();
            self.count_cancel();
        }
    }

    fn count_cancel(&mut self) {
        if !self.cancel_counted {
            self.cancel_counted = true;
            self.counters.cancelled.add();
        }
    }
}

impl Drop for Performance {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.counters.dropped.add();
        if self.cancel.is_cancelled() {
            self.count_cancel();
        }
    }
}

/// Plays an answer that needs no further input, each chunk after its pace.
pub(super) fn play<T: Send + 'static>(
    performance: Performance,
    chunks: impl Iterator<Item = (Duration, T)> + Send + 'static,
) -> ChunkStream<T> {
    let start = Some((performance, chunks));
    Box::pin(stream::unfold(start, |state| async move {
        let (mut performance, mut chunks) = state?;
        let Some((pace, chunk)) = chunks.next() else {
            return last_item(performance.finish().await);
        };
        match performance.cue(pace).await {
            Cue::Emit => Some((Ok(chunk), Some((performance, chunks)))),
            cue @ (Cue::Fail(_) | Cue::End) => last_item(cue),
        }
    }))
}

/// The last item of a stream, if any, and the state after it.
pub(super) fn last_item<T, S>(cue: Cue) -> Option<(Result<T, Fault>, Option<S>)> {
    match cue {
        Cue::Fail(fault) => Some((Err(fault), None)),
        Cue::Emit | Cue::End => None,
    }
}

/// Sleeps; no time at all does not even yield, so that an instant provider costs nothing.
async fn rest(delay: Duration) {
    if delay.is_zero() {
        return;
    }
    match Instant::now().checked_add(delay) {
        Some(until) => sleep_until(until).await,
        None => sleep(delay).await,
    }
}
