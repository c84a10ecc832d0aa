//! The door of a runtime for transports: opens a session for each client that a transport lets in.

use std::{collections::BTreeMap, fmt, sync::Arc};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use rspp_controlplane_api::LeaseError;
use rspp_kernel::plan::LayeredSettings;
use rspp_proto::{
    Monotonic, PipelineVersion, SessionId,
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

/// Who knows other versions than the program's own.
type Find =
    Box<dyn Fn(PipelineVersion) -> BoxFuture<'static, Result<PipelineSpec, Refusal>> + Send + Sync>;

/// Opens sessions on one runtime: of one program, and of other versions where somebody knows them.
pub struct Reception {
    runtime: Arc<Runtime>,
    program: Program,
    record: Option<Record>,
    find: Option<Find>,
}

impl Reception {
    /// Sessions of `program` on `runtime`, unrecorded.
    pub fn new(runtime: Arc<Runtime>, program: Program) -> Self {
        Self {
            runtime,
            program,
            record: None,
            find: None,
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

    /// Serves other versions of the pipeline too, as far as `find` knows them.
    #[must_use]
    pub fn finding(
        mut self,
        find: impl Fn(PipelineVersion) -> BoxFuture<'static, Result<PipelineSpec, Refusal>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.find = Some(Box::new(find));
        self
    }

    /// What a client runs that was granted `wanted`.
    async fn pipeline(&self, wanted: Option<PipelineVersion>) -> Result<PipelineSpec, Refusal> {
        let own = &self.program.pipeline;
        match (wanted.filter(|wanted| *wanted != own.version), &self.find) {
            (None, _) => Ok(own.clone()),
            (Some(wanted), Some(find)) => find(wanted).await,
            (Some(wanted), None) => Err(Refusal::NotHere(format!(
                "the token is for pipeline `{wanted}`, served here is `{}`",
                own.version
            ))),
        }
    }

    async fn open_session(
        &self,
        admitted: Admitted,
        session: SessionId,
        transport: Transport,
    ) -> Result<Opened, Refusal> {
        let program = &self.program;
        let (tenant, wanted) = match admitted {
            Admitted::Local(tenant) => (tenant, None),
            Admitted::Granted(grant) => (grant.tenant, grant.pipeline),
        };
        let pipeline = self.pipeline(wanted).await?;
        let recorder = match &self.record {
            Some(record) => record(&session).await,
            None => Recorder::null(),
        };
        let request = SessionRequest {
            tenant,
            session,
            pipeline,
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
        let epoch = handle.epoch();
        let news = news(handle.subscribe()).boxed();
        let drain = handle.drainer();
        let ended = async move {
            let report = handle.wait().await;
            report.map_or_else(|| "the session failed".to_owned(), |report| report.ended)
        };
        Ok(Opened {
            epoch,
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
        OpenError::Lease(error) => match error {
            LeaseError::Unreachable { .. } => Refusal::Busy(message),
            LeaseError::Refused { may_retry, .. } if *may_retry => Refusal::Busy(message),
            // It is somebody else's to run.
            LeaseError::Refused { .. } | LeaseError::Stale { .. } | LeaseError::Unknown { .. } => {
                Refusal::NotHere(message)
            }
        },
        OpenError::Graph(_)
        | OpenError::UnknownNode { .. }
        | OpenError::Sandbox { .. }
        | OpenError::UnknownTool { .. }
        | OpenError::Plan(_)
        | OpenError::Provider { .. }
        | OpenError::UnknownRecording { .. }
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
