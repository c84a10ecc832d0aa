//! What a session leaves for the placement after it, written whenever a turn ends (lifecycle.md §7).
//!
//! One task writes, one value at a time, and only the newest: a store that is slow or away costs the
//! session nothing but the wait for its next commit.

use std::{sync::Arc, time::Duration};

use rspp_actors::{CancellationToken, Context};
use rspp_controlplane_api::{Lease, StateStore, StoreError, Write};
use rspp_kernel::{Input, continuation::Continuation};
use rspp_proto::{EventId, IdempotencyKey, Monotonic};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::Session;

/// Where it is kept, beside what nodes keep: no node's name has a slash in front.
pub(crate) const KEY: &str = "/session";
/// Most bytes of words that are kept; older ones are forgotten first.
const MOST_BYTES: usize = 192 * 1024;
/// Keys of events that are kept.
const MOST_KEYS: usize = 256;
/// The first wait before a write is tried again.
const AGAIN_FIRST: Duration = Duration::from_millis(50);
/// The longest.
const AGAIN_MOST: Duration = Duration::from_secs(1);

/// What is kept of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The conversation.
    pub(crate) conversation: Continuation,
    /// Keys under which clients have sent events, with the event that took effect, oldest first.
    pub(crate) keys: Vec<(IdempotencyKey, EventId)>,
}

/// How far the writing has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    Upto(u64),
    /// Somebody else writes now.
    Refused,
}

/// A value to write.
type Newest = Option<(u64, Arc<str>)>;

/// The writing end.
pub(super) struct Remembrance {
    newest: watch::Sender<Newest>,
    written: watch::Receiver<Written>,
    count: u64,
}

impl Remembrance {
    /// Writes for the holder of `lease`, in a task of the session's own.
    pub(super) fn begin(
        ctx: &mut Context<Session>,
        store: Arc<dyn StateStore>,
        lease: Lease,
    ) -> Self {
        let (newest, values) = watch::channel(None);
        let (progress, written) = watch::channel(Written::Upto(0));
        let stopped = ctx.cancellation().clone();
        ctx.spawn_task(
            "remembrance",
            write(store, lease, values, progress, stopped),
        );
        Self {
            newest,
            written,
            count: 0,
        }
    }

    /// Whether the newest value has been kept, once that is known or `patience` is over.
    async fn is_kept(&mut self, patience: Duration) -> bool {
        let count = self.count;
        let known = self.written.wait_for(|written| match written {
            Written::Upto(upto) => *upto >= count,
            Written::Refused => true,
        });
        match tokio::time::timeout(patience, known).await {
            Ok(Ok(written)) => *written != Written::Refused,
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

/// Writes the newest value, again and again until it is there.
async fn write(
    store: Arc<dyn StateStore>,
    lease: Lease,
    mut values: watch::Receiver<Newest>,
    progress: watch::Sender<Written>,
    stopped: CancellationToken,
) {
    loop {
        tokio::select! {
            biased;
            changed = values.changed() => if changed.is_err() { return },
            () = stopped.cancelled() => return,
        }
        let mut wait = AGAIN_FIRST;
        loop {
            let Some((count, value)) = values.borrow_and_update().clone() else {
                break;
            };
            let write = Write {
                key: KEY.to_owned(),
                value,
                expected: None,
            };
            match store.write(&lease, write).await {
                Ok(_) => {
                    progress.send_replace(Written::Upto(count));
                    break;
                }
                Err(StoreError::Lease(error)) => {
                    tracing::debug!(%error, "the conversation is kept by somebody else");
                    progress.send_replace(Written::Refused);
                    return;
                }
                Err(error @ (StoreError::Unavailable(_) | StoreError::Conflict { .. })) => {
                    tracing::warn!(session = %lease.session, %error, "the conversation is not kept yet");
                }
            }
            tokio::select! {
                biased;
                () = stopped.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(AGAIN_MOST);
        }
    }
}

impl Session {
    /// What another placement would need, as of now.
    fn kept(&self) -> Kept {
        let mut conversation = self.kernel.continuation();
        conversation.fit(MOST_BYTES);
        let keys = self.keys.iter();
        let mut keys: Vec<_> = keys
            .map(|(key, event)| (key.clone(), event.clone()))
            .collect();
        keys.drain(..keys.len().saturating_sub(MOST_KEYS));
        Kept { conversation, keys }
    }

    /// Keeps what the turn that ends has come to. One that is to be committed is kept before anybody is told
    /// that it was, so that no committed turn is ever lost; `false` if it could not be. Others wait for
    /// nothing: the user has begun to speak.
    pub(super) async fn keep(&mut self, waits: bool) -> bool {
        if self.remembrance.is_none() {
            return true;
        }
        let kept = self.kept();
        let value = serde_json::to_string(&kept).expect("plain data becomes JSON");
        // Longer than the lease lasts there is nothing to wait for.
        let patience = self.setup.place.lease.ttl.unwrap_or(Duration::from_secs(5));
        let Some(remembrance) = &mut self.remembrance else {
            return true;
        };
        remembrance.count += 1;
        let newest = (remembrance.count, value.into());
        remembrance.newest.send_replace(Some(newest));
        !waits || remembrance.is_kept(patience).await
    }

    /// Goes on with what an earlier placement has kept.
    pub(super) fn resume(&mut self, now: Monotonic, kept: Kept) {
        for (key, event) in kept.keys {
            let _first = self.keys.see(key, || event);
        }
        let conversation = Box::new(kept.conversation);
        self.kernel.handle(now, Input::Resumed(conversation));
    }
}
