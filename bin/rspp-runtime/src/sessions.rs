//! Opens sessions whose every accepted frame is noted.

use std::sync::{Arc, OnceLock};

use futures::{FutureExt, StreamExt, future::BoxFuture};
use rspp_proto::SessionId;
use rspp_transport_api::{Admitted, Grant, News, Opened, Refusal, Sessions, Transport, Wishes};

use crate::outputs::{Noted, Outputs, now_us};

/// Sessions whose outputs are noted.
pub(crate) struct NotedSessions<S> {
    pub(crate) sessions: S,
    pub(crate) outputs: Outputs,
}

impl<S: Sessions> Sessions for NotedSessions<S> {
    fn session_of(&self, grant: &Grant) -> SessionId {
        self.sessions.session_of(grant)
    }

    fn open(
        &self,
        admitted: Admitted,
        session: SessionId,
        wishes: Wishes,
        transport: Transport,
    ) -> BoxFuture<'_, Result<Opened, Refusal>> {
        self.begin(admitted, session, wishes, transport).boxed()
    }
}

impl<S: Sessions> NotedSessions<S> {
    async fn begin(
        &self,
        admitted: Admitted,
        session: SessionId,
        wishes: Wishes,
        mut transport: Transport,
    ) -> Result<Opened, Refusal> {
        let epoch = Arc::<OnceLock<_>>::default();
        transport.sink = Box::new(Noted {
            sink: transport.sink,
            outputs: self.outputs.clone(),
            session: session.clone(),
            epoch: Arc::clone(&epoch),
        });
        let opened = self
            .sessions
            .open(admitted, session.clone(), wishes, transport)
            .await?;
        let held = *epoch.get_or_init(|| opened.epoch);
        self.outputs
            .note(now_us(), "open", &session, Some(held), None);
        let outputs = self.outputs.clone();
        let news = opened.news.inspect(move |news| {
            if let News::Turn(turn) = news {
                let id = turn.turn.as_str();
                outputs.note(now_us(), &turn.outcome, &session, Some(held), Some(id));
            }
        });
        Ok(Opened {
            news: news.boxed(),
            ..opened
        })
    }
}
