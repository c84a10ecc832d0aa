//! The door of a runtime for transports: opens a session for each client that a transport lets in.

use std::{collections::BTreeMap, fmt, sync::Arc};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use rspp_kernel::plan::LayeredSettings;
use rspp_proto::{
    Monotonic, SessionId,
    spec::{PipelineSpec, PolicyBundle},
};
use rspp_timeline::Recorder;
use rspp_transport_api::{Admitted, News, Opened, Refusal, Sessions, Transport, TurnNews};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{Notice, OpenError, Runtime, SessionRequest, report::TurnReport};

/// What a reception's sessions run.
#[derive(Clone, Debug)]
pub struct Program {
    /// The pipeline.
    pub pipeline: PipelineSpec,
    /// Overrides of its defaults.
    pub policy: Option<PolicyBundle>,
    /// Settings by layer.
    pub settings: LayeredSettings,
}

/// Where a session's timeline goes.
type Record = Box<dyn Fn(&SessionId) -> BoxFuture<'_, Recorder> + Send + Sync>;

/// Opens sessions of one program on one runtime.
pub struct Reception {
    runtime: Arc<Runtime>,
    program: Program,
    record: Option<Record>,
}

impl Reception {
    /// Sessions of `program` on `runtime`, unrecorded.
    pub fn new(runtime: Arc<Runtime>, program: Program) -> Self {
        Self {
            runtime,
            program,
            record: None,
        }
    }

    /// Has its sessions recorded.
    #[must_use]
    pub fn recording(
        mut self,
        record: impl Fn(&SessionId) -> BoxFuture<'_, Recorder> + Send + Sync + 'static,
    ) -> Self {
        self.record = Some(Box::new(record));
        self
    }

    async fn open_session(
        &self,
        admitted: Admitted,
        session: SessionId,
        transport: Transport,
    ) -> Result<Opened, Refusal> {
        let program = &self.program;
        let tenant = match admitted {
            Admitted::Local(tenant) => tenant,
            Admitted::Granted(grant) => {
                let served = &program.pipeline.version;
                if let Some(wanted) = grant.pipeline.filter(|wanted| wanted != served) {
                    return Err(Refusal::NotHere(format!(
                        "the token is for pipeline `{wanted}`, served here is `{served}`"
                    )));
                }
                grant.tenant
            }
        };
        let recorder = match &self.record {
            Some(record) => record(&session).await,
            None => Recorder::null(),
        };
        let request = SessionRequest {
            tenant,
            session,
            pipeline: program.pipeline.clone(),
            policy: program.policy.clone(),
            settings: program.settings.clone(),
            attributes: BTreeMap::new(),
            transport,
            recorder,
        };
        let handle = self
            .runtime
            .open(request)
            .await
            .map_err(|error| refusal(&error))?;
        let news = news(handle.subscribe()).boxed();
        let drain = handle.drainer();
        let ended = async move {
            let report = handle.wait().await;
            report.map_or_else(|| "the session failed".to_owned(), |report| report.ended)
        };
        Ok(Opened {
            ended: ended.boxed(),
            news,
            drain: Box::new(drain),
        })
    }
}

impl Sessions for Reception {
    fn open(
        &self,
        admitted: Admitted,
        session: SessionId,
        transport: Transport,
    ) -> BoxFuture<'_, Result<Opened, Refusal>> {
        self.open_session(admitted, session, transport).boxed()
    }
}

impl fmt::Debug for Reception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reception({})", self.program.pipeline.version)
    }
}

fn refusal(error: &OpenError) -> Refusal {
    let message = error.to_string();
    match error {
        OpenError::Refused(_) | OpenError::Busy | OpenError::Emptying | OpenError::Closed => {
            Refusal::Busy(message)
        }
        OpenError::Graph(_)
        | OpenError::UnknownNode { .. }
        | OpenError::Sandbox { .. }
        | OpenError::UnknownTool { .. }
        | OpenError::Plan(_)
        | OpenError::Provider { .. }
        | OpenError::UnknownRecording { .. }
        | OpenError::Lease(_)
        | OpenError::Start(_) => Refusal::Failed(message),
    }
}

fn news(notices: Receiver<Notice>) -> impl stream::Stream<Item = News> {
    stream::unfold(notices, |mut notices| async move {
        loop {
            let told = match notices.recv().await {
                Ok(Notice::Signal(signal)) => News::Signal(signal),
                Ok(Notice::Turn(report)) => News::Turn(Box::new(turn(*report))),
                // Whoever is too slow for news misses the oldest.
                Ok(Notice::Event(_) | Notice::State(_) | Notice::Foreign(_))
                | Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return None,
            };
            return Some((told, notices));
        }
    })
}

fn turn(report: TurnReport) -> TurnNews {
    TurnNews {
        anchors_ms: report.anchors_ms(Monotonic::default()),
        turn: report.turn_id,
        outcome: report.outcome,
        reason: report.reason,
        user_text: report.user_text,
        agent_text: report.agent_text,
        heard_text: report.agent_text_played,
        first_audio_ms: report.first_audio_ms,
    }
}
