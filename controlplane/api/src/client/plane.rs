//! What a runtime asks, as calls.

use std::{collections::BTreeMap, pin::Pin};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, future::BoxFuture, stream};
use rspp_proto::{
    RuntimeId, SessionId,
    control::{Description, Emptying, Holder, Kind, Load, Removal},
    reading::VersionCount,
};
use tonic::Status;

use super::{Client, MAX_MESSAGE_BYTES, calls::items, connect::pause};
use crate::{
    Acquire, Answer, Artifact, Beyond, ControlError, ControlPlane, Duty, Granted, HeldSession,
    Joined, Leave, Order, Orders, Renewed, Route, RouteAsk, SnapshotKind, Snapshots, StatusReport,
    Stored, UsageReport, Version, WireError, Write, Writer, convert, wire,
};

/// An answer as our own type.
fn read<A, B: TryFrom<A, Error = WireError>>(answer: A) -> Result<B, ControlError> {
    B::try_from(answer).map_err(ControlError::from)
}

impl ControlPlane for Client {
    fn register(&self, runtime: RuntimeId, description: Description) -> Answer<Joined> {
        let this = self.clone();
        Box::pin(async move {
            let request = wire::RegisterRequest {
                runtime: runtime.to_string(),
                description: Some(description.into()),
            };
            read(this.register_runtime(request).await?)
        })
    }

    fn heartbeat(&self, by: &Holder, load: Load) -> Answer<Duty> {
        let this = self.clone();
        let request = wire::HeartbeatRequest {
            by: Some(by.into()),
            load: Some(load.into()),
        };
        Box::pin(async move {
            let answer = this.beat(request).await?;
            Ok(if answer.draining {
                Duty::Draining
            } else {
                Duty::Serving
            })
        })
    }

    fn begin_drain(
        &self,
        by: &Holder,
        how: Option<Emptying>,
        sessions: Vec<SessionId>,
    ) -> Answer<()> {
        let this = self.clone();
        let request = wire::BeginDrainRequest {
            by: Some(by.into()),
            how: how.map_or(0, |how| wire::DrainHow::from(how).into()),
            sessions: sessions.iter().map(ToString::to_string).collect(),
        };
        Box::pin(async move { this.note_drain(request).await.map(|_| ()) })
    }

    fn tell_removal(&self, by: &Holder, removal: Removal) -> Answer<()> {
        let this = self.clone();
        let request = wire::NoteRemovalRequest {
            by: Some(by.into()),
            step: wire::RemovalStep::from(removal.step).into(),
            recordings: removal.recordings,
            why: removal.why,
        };
        Box::pin(async move { this.note_removal(request).await.map(|_| ()) })
    }

    fn acquire(&self, ask: Acquire) -> Answer<Granted> {
        let this = self.clone();
        Box::pin(async move { read(this.acquire_lease(ask.into()).await?) })
    }

    fn renew(&self, by: &Holder, held: Vec<HeldSession>) -> Answer<Renewed> {
        let this = self.clone();
        let request = wire::RenewRequest {
            by: Some(by.into()),
            held: held.into_iter().map(Into::into).collect(),
        };
        Box::pin(async move { read(this.renew_leases(request).await?) })
    }

    fn release(&self, writer: Writer, leave: Leave) -> Answer<()> {
        let this = self.clone();
        Box::pin(async move {
            let request = wire::ReleaseRequest {
                by: Some((&writer.by).into()),
                session: writer.session.to_string(),
                epoch: writer.epoch.get(),
                end: match &leave {
                    Leave::Release => false,
                    Leave::End { .. } => true,
                },
                why: match leave {
                    Leave::Release => String::new(),
                    Leave::End { why } => why,
                },
            };
            this.release_lease(request).await.map(|_| ())
        })
    }

    fn load_state(&self, reader: Writer, keys: Vec<String>) -> Answer<BTreeMap<String, Stored>> {
        let this = self.clone();
        Box::pin(async move {
            let request = wire::LoadStateRequest {
                by: Some((&reader.by).into()),
                session: reader.session.to_string(),
                epoch: reader.epoch.get(),
                keys,
            };
            let answer = this.load_values(request).await?;
            Ok(convert::values(answer.values)?)
        })
    }

    fn commit_state(&self, writer: Writer, writes: Vec<Write>) -> Answer<Vec<Version>> {
        let this = self.clone();
        Box::pin(async move {
            let request = wire::CommitStateRequest {
                by: Some((&writer.by).into()),
                session: writer.session.to_string(),
                epoch: writer.epoch.get(),
                writes: writes.into_iter().map(Into::into).collect(),
            };
            let answer = this.commit_values(request).await?;
            Ok(answer.versions.into_iter().map(Version).collect())
        })
    }

    fn report_status(&self, by: &Holder, reports: Vec<StatusReport>) -> Answer<Vec<SessionId>> {
        let this = self.clone();
        let request = wire::ReportStatusRequest {
            by: Some(by.into()),
            reports: reports.into_iter().map(Into::into).collect(),
        };
        Box::pin(async move {
            let answer = this.tell_status(request).await?;
            Ok(convert::sessions(&answer.stale)?)
        })
    }

    fn report_usage(&self, report: UsageReport) -> Answer<Option<Beyond>> {
        let this = self.clone();
        Box::pin(async move {
            let request = wire::ReportUsageRequest {
                tenant: report.tenant.to_string(),
                tokens: report.tokens,
                request_id: report.report,
                pipeline: report.pipeline.to_string(),
            };
            let answer = this.count_usage(request).await?;
            answer.beyond.map(read).transpose()
        })
    }

    fn report_readings(&self, by: &Holder, number: u64, counts: Vec<VersionCount>) -> Answer<()> {
        let this = self.clone();
        let request = wire::ReportReadingsRequest {
            by: Some(by.into()),
            number,
            counts: counts.into_iter().map(Into::into).collect(),
        };
        Box::pin(async move { this.report_readings(request).await.map(|_| ()) })
    }

    fn route(&self, ask: RouteAsk) -> Answer<Route> {
        let this = self.clone();
        Box::pin(async move { read(this.route_session(ask.into()).await?) })
    }

    fn artifact(&self, kind: Kind, version: String) -> Answer<Artifact> {
        let this = self.clone();
        Box::pin(async move {
            let request = wire::GetArtifactRequest {
                kind: wire::Kind::from(kind).into(),
                version,
            };
            read(this.get_artifact(request).await?)
        })
    }

    fn orders(&self, by: &Holder) -> Orders {
        let this = self.clone();
        let request = wire::WatchOrdersRequest {
            by: Some(by.into()),
        };
        lasting(move || {
            let (this, request) = (this.clone(), this.request(request.clone()));
            Box::pin(async move {
                let mut client = wire::fleet_client::FleetClient::new(this.channel);
                let stream = client.watch_orders(request).await?.into_inner();
                let orders = items(stream).map(|it| it.and_then(read::<_, Order>));
                Ok(Box::pin(orders) as Items<Order>)
            })
        })
    }

    fn snapshots(&self, kinds: Vec<SnapshotKind>) -> Snapshots {
        let this = self.clone();
        let kinds = kinds.into_iter().map(wire::SnapshotKind::from);
        let request = wire::WatchSnapshotsRequest {
            kinds: kinds.map(Into::into).collect(),
        };
        lasting(move || {
            let (this, request) = (this.clone(), this.request(request.clone()));
            Box::pin(async move {
                let client = wire::snapshots_client::SnapshotsClient::new(this.channel);
                let mut client = client.max_decoding_message_size(MAX_MESSAGE_BYTES);
                let stream = client.watch_snapshots(request).await?.into_inner();
                let updates = items(stream).map(|it| it.and_then(read));
                Ok(Box::pin(updates) as Items<_>)
            })
        })
    }
}

impl Client {
    /// The whole audit trail as JSON lines, its end signed.
    pub async fn export_trail(
        &self,
    ) -> Result<impl Stream<Item = Result<String, ControlError>> + use<>, ControlError> {
        let stream = self.begin(|request| {
            let mut client = wire::audit_client::AuditClient::new(self.channel.clone());
            async move { client.export_trail(request).await }
        });
        Ok(items(stream.await?).map(|it| it.map(|chunk| chunk.lines)))
    }

    /// Everything that is stored, as a file's bytes.
    pub async fn take_backup(
        &self,
    ) -> Result<impl Stream<Item = Result<Bytes, ControlError>> + use<>, ControlError> {
        let stream = self.begin(|request| {
            let mut client = wire::backup_client::BackupClient::new(self.channel.clone());
            async move { client.take_backup(request).await }
        });
        Ok(items(stream.await?).map(|it| it.map(|chunk| chunk.data)))
    }

    /// Restores a backup into an empty control plane.
    pub async fn restore(
        &self,
        chunks: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<wire::RestoreResponse, ControlError> {
        let mut client = wire::backup_client::BackupClient::new(self.channel.clone());
        let request = self.request(chunks.map(|data| wire::BackupChunk { data }));
        Ok(client.restore(request).await?.into_inner())
    }
}

type Items<T> = Pin<Box<dyn Stream<Item = Result<T, ControlError>> + Send>>;
type Opening<T> = BoxFuture<'static, Result<Items<T>, Status>>;

/// A stream that is opened again, after a pause, whenever it breaks; each break is told. Ends when
/// opening it again cannot help.
fn lasting<T: Send + 'static>(open: impl Fn() -> Opening<T> + Send + 'static) -> Items<T> {
    let state = Lasting {
        open,
        items: None,
        failures: 0,
        over: false,
    };
    Box::pin(stream::unfold(state, |mut state| async move {
        if state.over {
            return None;
        }
        let next = state.next().await;
        if let Err(error) = &next {
            state.items = None;
            state.failures += 1;
            state.over = !error.is_transient();
        } else {
            state.failures = 0;
        }
        Some((next, state))
    }))
}

struct Lasting<T, F> {
    open: F,
    items: Option<Items<T>>,
    failures: usize,
    over: bool,
}

impl<T, F: Fn() -> Opening<T>> Lasting<T, F> {
    async fn next(&mut self) -> Result<T, ControlError> {
        let items = if let Some(items) = &mut self.items {
            items
        } else {
            if self.failures > 0 {
                tokio::time::sleep(pause(self.failures)).await;
            }
            self.items.insert((self.open)().await?)
        };
        items.next().await.unwrap_or_else(|| {
            Err(ControlError::Unavailable {
                reason: String::new(),
                retry_after: None,
                message: "the control plane ended the stream".to_owned(),
            })
        })
    }
}
