//! What was said, for the placement after this one: written whenever a turn ends (lifecycle.md §7).

use std::time::Duration;

use super::Session;

/// Where it is kept, beside what nodes keep: no node's name has a slash in front.
pub(crate) const KEY: &str = "/session";
/// Most bytes of words that are kept; older ones are forgotten first.
const MOST_BYTES: usize = 192 * 1024;

impl Session {
    /// Keeps what the turn that ends has come to. One that is to be committed is kept before anybody is told
    /// that it was, so that no committed turn is ever lost; `false` if it could not be. Others wait for
    /// nothing: the user has begun to speak.
    pub(super) async fn keep(&mut self, waits: bool) -> bool {
        let Some(remembrance) = &mut self.remembrance else {
            return true;
        };
        let mut conversation = self.kernel.continuation();
        conversation.fit(MOST_BYTES);
        let text = serde_json::to_string(&conversation).expect("plain data becomes JSON");
        let (lease, epoch) = (&self.setup.place.lease, self.kernel.epoch());
        let receipt = remembrance.write(&self.state.store, lease, epoch, text.into());
        // Longer than the lease lasts there is nothing to wait for.
        let patience = lease.ttl.unwrap_or(Duration::from_secs(5));
        let written = tokio::time::timeout(patience, receipt.is_written());
        !waits || written.await.unwrap_or(false)
    }
}
