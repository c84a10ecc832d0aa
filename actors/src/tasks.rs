//! Tasks that belong to an actor: told to stop together, waited for together, aborted when they will not.

use std::borrow::Cow;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{Instrument, warn};

/// The tasks of one incarnation. Dropping it aborts them.
#[derive(Default)]
pub(crate) struct Tasks {
    running: JoinSet<()>,
}

impl Tasks {
    pub(crate) fn spawn(
        &mut self,
        actor: &str,
        name: impl Into<Cow<'static, str>>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        // Finished tasks are let go here, so that a long-lived actor holds only those that run.
        while let Some(ended) = self.running.try_join_next() {
            report(actor, ended);
        }
        let named = Named {
            name: name.into(),
            actor: actor.to_owned(),
            ended: false,
        };
        let work = async move {
            let mut named = named;
            task.await;
            named.ended = true;
        };
        self.running.spawn(work.in_current_span());
    }

    /// Waits for all of them until `deadline`, then aborts the rest.
    pub(crate) async fn wind_down(&mut self, actor: &str, deadline: Instant) {
        let all_ended = async {
            while let Some(ended) = self.running.join_next().await {
                report(actor, ended);
            }
        };
        if tokio::time::timeout_at(deadline, all_ended).await.is_err() {
            self.running.shutdown().await;
        }
    }
}

fn report(actor: &str, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        warn!(actor, %error, "a task of this actor panicked");
    }
}

/// Says which task was cut short: a task that ignores its token is a bug to find.
struct Named {
    name: Cow<'static, str>,
    actor: String,
    ended: bool,
}

impl Drop for Named {
    fn drop(&mut self) {
        if !self.ended {
            tracing::debug!(actor = %self.actor, task = %self.name, "task cut short");
        }
    }
}
