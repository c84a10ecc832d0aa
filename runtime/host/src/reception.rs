//! The door of a runtime for transports: opens a session for each client that a transport lets in.

use std::{collections::BTreeMap, fmt, sync::Arc};

use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, join},
    stream,
};
use rspp_controlplane_api::LeaseError;
use rspp_kernel::plan::{LayeredSettings, ProviderSettings};
use rspp_proto::{
    Monotonic, PipelineVersion, SessionId, TenantId,
    control::Versions,
    spec::{PipelineSpec, PolicyBundle, RecordingPolicy},
};
use rspp_timeline::{Recorder, Recording};
use rspp_transport_api::{
    Admitted, Elsewhere, Farewell, Grant, News, Opened, Refusal, Sessions, Transport, TurnNews,
    Wishes,
};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{
    Notice, OpenError, PlaneHandle, Runtime, SessionHandle, SessionRequest, report::TurnReport,
    session::MOVED, wishes::wished,
};

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

/// A session whose timeline is to begin.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Whose it is.
    pub tenant: TenantId,
    /// The session.
    pub session: SessionId,
    /// What it runs.
    pub pipeline: PipelineVersion,
    /// How it is to be recorded.
    pub policy: RecordingPolicy,
}

/// A timeline that has begun: where entries go, and what writes them until it is closed.
pub type Recorded = (Recorder, Option<Recording>);

/// Where a session's timeline goes; a refusal keeps the session from being opened here.
type Record = Box<dyn Fn(Begun) -> BoxFuture<'static, Result<Recorded, Refusal>> + Send + Sync>;

/// A published version of a pipeline, and what goes with it.
#[derive(Clone, Debug)]
pub struct Published {
    /// The pipeline.
    pub pipeline: PipelineSpec,
    /// The policy that goes with it, if one does.
    pub policy: Option<PolicyBundle>,
    /// The provider settings that go with it, if any do.
    pub providers: Option<ProviderSettings>,
}

/// Who knows what is published.
type Find = Box<
    dyn Fn(PipelineVersion, Versions) -> BoxFuture<'static, Result<Published, Refusal>>
        + Send
        + Sync,
>;

/// Opens sessions on one runtime: of published versions where somebody knows them, else of one program.
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

    /// Has its sessions recorded. Who may not be recorded here is refused, and told where else it may go on
    /// (F-168).
    #[must_use]
    pub fn recording(
        mut self,
        record: impl Fn(Begun) -> BoxFuture<'static, Result<Recorded, Refusal>> + Send + Sync + 'static,
    ) -> Self {
        self.record = Some(Box::new(record));
        self
    }

    /// Serves what is published, as `find` knows it, to whoever was granted a version; the program's own
    /// pipeline is for everybody else.
    #[must_use]
    pub fn finding(
        mut self,
        find: impl Fn(PipelineVersion, Versions) -> BoxFuture<'static, Result<Published, Refusal>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.find = Some(Box::new(find));
        self
    }

    /// What a client runs that was granted `wanted`.
    async fn program(
        &self,
        wanted: Option<PipelineVersion>,
        versions: &Versions,
    ) -> Result<Program, Refusal> {
        let own = &self.program;
        let served = &own.pipeline.version;
        match (wanted, &self.find) {
            (None, _) => Ok(own.clone()),
            (Some(wanted), Some(find)) => {
                let found = find(wanted, versions.clone()).await?;
                let mut settings = own.settings.clone();
                settings.published = found.providers;
                Ok(Program {
                    pipeline: found.pipeline,
                    policy: found.policy.or_else(|| own.policy.clone()),
                    settings,
                })
            }
            (Some(wanted), None) if wanted == *served && versions.is_empty() => Ok(own.clone()),
            (Some(wanted), None) => Err(Refusal::NotHere(format!(
                "the token is for pipeline `{wanted}`{}, served here is `{served}`",
                if versions.is_empty() {
                    ""
                } else {
                    " with versions of policy or providers"
                },
            ))),
        }
    }

    /// Opens a session with a timeline, which begins once it is known that the session can run. What is in the
    /// way, and who else could be asked.
    async fn open_recorded(
        &self,
        request: SessionRequest,
    ) -> Result<(SessionHandle, Option<Recording>), (Refusal, Option<Others>)> {
        let failed = |error: OpenError| (refusal(&error), for_others(&error));
        let (tenant, session) = (request.tenant.clone(), request.session.clone());
        let mut planned = self.runtime.plan(request).map_err(failed)?;
        let mut recording = None;
        if let Some(record) = &self.record {
            let begun = Begun {
                tenant,
                session,
                pipeline: planned.pipeline().clone(),
                policy: planned.recording_policy().clone(),
            };
            let recorded = record(begun).await;
            let (recorder, begun) = recorded.map_err(|refusal| (refusal, Some(Others::Anybody)))?;
            planned.record(recorder);
            recording = begun;
        }
        let opening = Box::pin(self.runtime.open_planned(planned));
        Ok((opening.await.map_err(failed)?, recording))
    }

    async fn open_session(
        &self,
        admitted: Admitted,
        session: SessionId,
        wishes: &Wishes,
        transport: Transport,
    ) -> Result<Opened, Refusal> {
        let (tenant, wanted, versions) = match admitted {
            Admitted::Local(tenant) => (tenant, None, Versions::default()),
            Admitted::Granted(grant) => (grant.tenant, grant.pipeline, grant.versions),
        };
        let kind = transport.kind.as_str();
        let elsewhere = Whereabouts {
            plane: self.runtime.plane(),
            tenant: tenant.clone(),
            session: session.clone(),
            kind,
        };
        let Program {
            pipeline,
            policy,
            settings,
        } = self.program(wanted, &versions).await?;
        let request = SessionRequest {
            tenant,
            session,
            pipeline: wished(pipeline, wishes).map_err(Refusal::Failed)?,
            policy,
            settings,
            versions,
            attributes: BTreeMap::new(),
            transport,
            recorder: Recorder::null(),
        };
        let (handle, recording) = match self.open_recorded(request).await {
            Ok(opened) => opened,
            Err((refusal, who)) => {
                let to = match who {
                    Some(who) => elsewhere.find(who).await,
                    None => None,
                };
                return Err(to.map_or(refusal, Refusal::Elsewhere));
            }
        };
        let epoch = handle.epoch();
        let news = news(handle.subscribe()).boxed();
        let drain = handle.drainer();
        let ended = async move {
            let session = elsewhere.session.clone();
            let report = handle.wait().await;
            let goes_on = report.as_ref().is_some_and(|it| it.ended == MOVED);
            let to = async {
                if goes_on {
                    elsewhere.find(Others::Anybody).await
                } else {
                    None
                }
            };
            // What is left of the timeline is written while somebody else is asked.
            let (elsewhere, ()) = join(to, close(recording, &session)).await;
            let because = report.map_or_else(|| "the session failed".to_owned(), |it| it.ended);
            Farewell {
                elsewhere,
                ..Farewell::because(because)
            }
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
    fn session_of(&self, grant: &Grant) -> SessionId {
        let plane = self.runtime.plane();
        let own = plane.and_then(|plane| plane.stands_in(grant.epoch));
        own.unwrap_or_else(|| grant.session.clone())
    }

    fn open(
        &self,
        admitted: Admitted,
        session: SessionId,
        wishes: Wishes,
        transport: Transport,
    ) -> BoxFuture<'_, Result<Opened, Refusal>> {
        async move {
            self.open_session(admitted, session, &wishes, transport)
                .await
        }
        .boxed()
    }
}

impl fmt::Debug for Reception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reception({})", self.program.pipeline.version)
    }
}

async fn close(recording: Option<Recording>, session: &SessionId) {
    if let Some(recording) = recording
        && let Err(error) = recording.close().await
    {
        tracing::warn!(session_id = %session, %error, "a timeline is not whole");
    }
}

/// Who to ask where else a session is to be had.
struct Whereabouts {
    plane: Option<PlaneHandle>,
    tenant: TenantId,
    session: SessionId,
    kind: &'static str,
}

/// Who may have a session that is not to be had here.
enum Others {
    /// Whoever holds it.
    Holder,
    /// Whoever has room.
    Anybody,
}

impl Whereabouts {
    async fn find(self, who: Others) -> Option<Elsewhere> {
        let Self {
            plane,
            tenant,
            session,
            kind,
        } = self;
        let plane = plane?;
        let route = match who {
            Others::Holder => plane.held_elsewhere(tenant, session, kind).await?,
            Others::Anybody => plane.next_home(tenant, session, kind).await?,
        };
        Some(Elsewhere {
            url: route.endpoint.url,
            token: Some(route.token.token),
        })
    }
}

/// Who may open what was not opened here.
fn for_others(error: &OpenError) -> Option<Others> {
    match error {
        OpenError::Lease(error) => match error {
            LeaseError::Refused { .. } | LeaseError::Stale { .. } => Some(Others::Holder),
            LeaseError::Unreachable { .. } | LeaseError::Unknown { .. } => None,
        },
        OpenError::Emptying | OpenError::Closed => Some(Others::Anybody),
        // Where all are busy, clients would be sent in circles: they ask for a route again.
        OpenError::Refused(_)
        | OpenError::Busy
        | OpenError::BoundOtherwise { .. }
        | OpenError::Graph(_)
        | OpenError::UnknownNode { .. }
        | OpenError::Package { .. }
        | OpenError::Sandbox { .. }
        | OpenError::UnknownTool { .. }
        | OpenError::Plan(_)
        | OpenError::Provider { .. }
        | OpenError::UnknownRecording { .. }
        | OpenError::Start(_) => None,
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
        OpenError::BoundOtherwise { .. } => Refusal::NotHere(message),
        OpenError::Graph(_)
        | OpenError::UnknownNode { .. }
        | OpenError::Package { .. }
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
        spending: report.spending,
    }
}
