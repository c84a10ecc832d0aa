//! Gathers spans, sends them, and waits for a collector that is away.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rspp_timeline::trace::SpanBatch;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    Counters,
    send::{Refusal, Sender},
};

/// Spans that travel together.
const TOGETHER: usize = 512;
/// Times that the same spans are sent.
const TRIES: u32 = 4;
/// How long the first pause between them is; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

pub(crate) struct Worker {
    pub(crate) from: mpsc::Receiver<SpanBatch>,
    /// Fires once nothing more is to be taken.
    pub(crate) ending: Option<oneshot::Receiver<()>>,
    pub(crate) sender: Sender,
    pub(crate) gather: Duration,
    pub(crate) counters: Arc<Counters>,
    /// Whether it is known that the collector does not take what is sent.
    pub(crate) is_away: bool,
}

impl Worker {
    pub(crate) async fn run(mut self) {
        while let Some(batches) = self.next().await {
            let count: usize = batches.iter().map(|batch| batch.spans.len()).sum();
            self.send(&batches, count as u64).await;
        }
    }

    async fn first(&mut self) -> Option<SpanBatch> {
        if let Some(ending) = &mut self.ending {
            tokio::select! {
                biased;
                first = self.from.recv() => return first,
                _asked_or_forgotten = ending => {}
            }
            self.ending = None;
            self.from.close();
        }
        self.from.recv().await
    }

    /// What waits, with what comes shortly after; `None` once nothing will come any more.
    async fn next(&mut self) -> Option<Vec<SpanBatch>> {
        let mut batches = vec![self.first().await?];
        let until = Instant::now() + self.gather;
        let spans = |batches: &[SpanBatch]| -> usize {
            batches.iter().map(|batch| batch.spans.len()).sum()
        };
        while spans(&batches) < TOGETHER {
            match tokio::time::timeout_at(until, self.from.recv()).await {
                Ok(Some(batch)) => batches.push(batch),
                Ok(None) | Err(_) => break,
            }
        }
        Some(batches)
    }

    async fn send(&mut self, batches: &[SpanBatch], count: u64) {
        let mut pause = FIRST_PAUSE;
        for attempt in 1..=TRIES {
            match self.sender.send(batches).await {
                Ok(refused) => {
                    let refused = refused.min(count);
                    let counters = &self.counters;
                    counters
                        .exported
                        .fetch_add(count - refused, Ordering::Relaxed);
                    counters.failed.fetch_add(refused, Ordering::Relaxed);
                    if self.is_away {
                        tracing::info!("the collector takes traces again");
                    }
                    self.is_away = false;
                    return;
                }
                Err(Refusal::Passing(why)) if attempt < TRIES => {
                    tracing::debug!(why, attempt, "traces are sent again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(Refusal::Passing(why) | Refusal::Final(why)) => {
                    self.counters.failed.fetch_add(count, Ordering::Relaxed);
                    // Said once, until it is there again.
                    if !self.is_away {
                        tracing::warn!(why, spans = count, "the collector takes no traces");
                    }
                    self.is_away = true;
                    return;
                }
            }
        }
    }
}
