//! A value of a session's durable state as it changes: only the newest matters, and it is written until it is
//! there or somebody else speaks for the session. A store that is slow or away costs nobody but those who
//! wait for its word.

use std::{sync::Arc, time::Duration};

use rspp_controlplane_api::{Lease, StateStore, StoreError, Write};
use rspp_proto::Epoch;
use tokio::{sync::watch, task::JoinHandle, time::Instant};

/// The first wait before a write is tried again.
const AGAIN_FIRST: Duration = Duration::from_millis(50);
/// The longest.
const AGAIN_MOST: Duration = Duration::from_secs(1);
/// How long the last value of a session that is gone may take.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The writing end of one value.
pub(super) struct Latest {
    key: &'static str,
    /// Counts changes.
    revision: u64,
    writer: Option<Writer>,
}

struct Writer {
    to: watch::Sender<Value>,
    written: watch::Receiver<Written>,
    task: JoinHandle<()>,
}

/// What is to be written.
#[derive(Clone)]
struct Value {
    revision: u64,
    epoch: Epoch,
    text: Arc<str>,
}

/// What the store has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    UpTo(u64),
    /// Somebody else speaks for the session.
    Refused,
}

/// Word of whether a value is there.
pub(crate) struct Receipt {
    revision: u64,
    written: watch::Receiver<Written>,
}

impl Receipt {
    /// Waits until the value or a newer one is written; `false` if it will not be.
    pub(crate) async fn is_written(&self) -> bool {
        let is_known = |written: &Written| match written {
            Written::UpTo(revision) => *revision >= self.revision,
            Written::Refused => true,
        };
        let mut written = self.written.clone();
        match written.wait_for(is_known).await {
            Ok(written) => *written != Written::Refused,
            // Its writer is gone without a word.
            Err(_) => false,
        }
    }
}

impl Latest {
    pub(super) fn new(key: &'static str) -> Self {
        Self {
            key,
            revision: 0,
            writer: None,
        }
    }

    /// Has a newer value written, under the epoch in force.
    pub(super) fn write(
        &mut self,
        store: &Arc<dyn StateStore>,
        lease: &Lease,
        epoch: Epoch,
        text: Arc<str>,
    ) -> Receipt {
        self.revision += 1;
        let value = Value {
            revision: self.revision,
            epoch,
            text,
        };
        // One that was refused has ended; if the session goes on under a newer epoch, so does this.
        let running = self.writer.take().filter(|it| !it.task.is_finished());
        let writer = if let Some(writer) = running {
            writer.to.send_replace(value);
            writer
        } else {
            let (to, from) = watch::channel(value);
            let (told, written) = watch::channel(Written::UpTo(0));
            let writing = write(Arc::clone(store), self.key, lease.clone(), from, told);
            let task = tokio::spawn(writing);
            Writer { to, written, task }
        };
        let receipt = Receipt {
            revision: self.revision,
            written: writer.written.clone(),
        };
        self.writer = Some(writer);
        receipt
    }

    /// Until the last value is written, or is known not to be.
    pub(super) async fn finish(&mut self) {
        if let Some(Writer { to, mut task, .. }) = self.writer.take() {
            drop(to);
            if tokio::time::timeout(LAST_WORD, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

async fn write(
    store: Arc<dyn StateStore>,
    key: &'static str,
    lease: Lease,
    mut from: watch::Receiver<Value>,
    told: watch::Sender<Written>,
) {
    let mut wait = AGAIN_FIRST;
    // When it was seen that nobody will bring another value.
    let mut last_since = None;
    loop {
        let Value {
            revision,
            epoch,
            text,
        } = from.borrow_and_update().clone();
        let lease = Lease {
            epoch,
            ..lease.clone()
        };
        let write = Write {
            key: key.to_owned(),
            value: text,
            expected: None,
        };
        match store.write(&lease, write).await {
            Ok(_) => {
                told.send_replace(Written::UpTo(revision));
                wait = AGAIN_FIRST;
            }
            // Somebody else speaks for the session, and has read what was there.
            Err(StoreError::Lease(error)) => {
                told.send_replace(Written::Refused);
                return tracing::debug!(%error, key, "a value is another's to write");
            }
            Err(error @ (StoreError::Conflict { .. } | StoreError::Unavailable(_))) => {
                tracing::warn!(session_id = %lease.session, %error, key, "a value is not written yet");
                if from.has_changed().is_err()
                    && last_since.get_or_insert_with(Instant::now).elapsed() >= LAST_WORD
                {
                    return;
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(AGAIN_MOST);
                continue;
            }
        }
        if from.changed().await.is_err() {
            return;
        }
    }
}
