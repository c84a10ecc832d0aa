//! What runtimes decide by, as it changes (F-155, F-159).

use std::{collections::BTreeMap, pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use rspp_controlplane::{access::Operation, failover::RegionDuty};
use rspp_controlplane_api::{
    Snapshot, SnapshotKind, SnapshotUpdate, WireError,
    wire::{self, snapshots_server::Snapshots},
};
use rspp_proto::control::Outage;
use serde_json::json;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::{failure::Failure, plane::Plane};

pub(crate) struct SnapshotsService(pub(crate) Plane);

/// How often something is said when nothing changes.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

const ALL: [SnapshotKind; 4] = [
    SnapshotKind::RoutingView,
    SnapshotKind::VersionResolution,
    SnapshotKind::Governance,
    SnapshotKind::Keyring,
];

#[tonic::async_trait]
impl Snapshots for SnapshotsService {
    type WatchSnapshotsStream =
        Pin<Box<dyn Stream<Item = Result<wire::SnapshotUpdate, Status>> + Send>>;

    async fn watch_snapshots(
        &self,
        request: Request<wire::WatchSnapshotsRequest>,
    ) -> Result<Response<Self::WatchSnapshotsStream>, Status> {
        let plane = self.0.clone();
        plane.admit(&request, Operation::ReadFleet, None, "snapshots")?;
        let asked = request.into_inner();
        let kinds: Result<Vec<_>, WireError> = asked.kinds().map(SnapshotKind::try_from).collect();
        let mut kinds = kinds.map_err(Failure::from)?;
        kinds.sort();
        kinds.dedup();
        if kinds.is_empty() {
            kinds = ALL.to_vec();
        }
        let shared = &plane.shared;
        let watched = vec![
            shared.runtimes.changes(),
            shared.alive.changes(),
            shared.regions.changes(),
            shared.drains.changes(),
            shared.rollouts.changes(),
            shared.governance.changes(),
            shared.keyring.changes(),
        ];
        let telling = Telling {
            plane,
            kinds,
            watched,
            told: BTreeMap::new(),
            queue: Vec::new(),
            over: false,
        };
        let updates = stream::unfold(telling, |mut it| async move {
            if it.over {
                return None;
            }
            let next = it.next().await;
            it.over = next.is_err();
            Some((next, it))
        });
        let updates = updates.map(|it| match it {
            Ok(update) => Ok(wire::SnapshotUpdate::from(update)),
            Err(failure) => Err(Status::from(failure)),
        });
        Ok(Response::new(Box::pin(updates)))
    }
}

struct Telling {
    plane: Plane,
    kinds: Vec<SnapshotKind>,
    watched: Vec<watch::Receiver<u64>>,
    /// What was told last, by its document: what is not new is not told again.
    told: BTreeMap<SnapshotKind, std::sync::Arc<str>>,
    queue: Vec<Snapshot>,
    over: bool,
}

impl Telling {
    /// Queues the documents that are not as they were told.
    fn look(&mut self) {
        for changes in &mut self.watched {
            changes.mark_unchanged();
        }
        for kind in &self.kinds {
            let snapshot = self.plane.snapshot(*kind);
            if self.told.get(kind) != Some(&snapshot.document) {
                self.told.insert(*kind, snapshot.document.clone());
                self.queue.push(snapshot);
            }
        }
    }

    async fn next(&mut self) -> Result<SnapshotUpdate, Failure> {
        loop {
            if let Some(snapshot) = self.queue.pop() {
                return Ok(SnapshotUpdate {
                    snapshot: Some(snapshot),
                    age: self.plane.age(),
                });
            }
            if self.told.is_empty() {
                self.look();
                continue;
            }
            let leaving = self.plane.shared.leaving.clone();
            let changes = self.watched.iter_mut().map(|it| Box::pin(it.changed()));
            tokio::select! {
                (changed, _, _) = futures::future::select_all(changes) => {
                    changed.map_err(|_| Failure::ShuttingDown)?;
                }
                () = tokio::time::sleep(SIGN_OF_LIFE) => {
                    return Ok(SnapshotUpdate { snapshot: None, age: self.plane.age() });
                }
                () = leaving.cancelled() => return Err(Failure::ShuttingDown),
            }
            self.look();
        }
    }
}

impl Plane {
    /// How long ago the store was last heard to be as shown.
    fn age(&self) -> Duration {
        let shared = &self.shared;
        let ages = [
            shared.runtimes.age(),
            shared.alive.age(),
            shared.regions.age(),
            shared.drains.age(),
            shared.rollouts.age(),
            shared.governance.age(),
            shared.keyring.age(),
        ];
        ages.into_iter().max().unwrap_or_default()
    }

    fn snapshot(&self, kind: SnapshotKind) -> Snapshot {
        let shared = &self.shared;
        let (name, revision, document) = match kind {
            SnapshotKind::RoutingView => {
                let regions = shared.regions.records();
                let outages: BTreeMap<String, Vec<Outage>> = regions
                    .iter()
                    .filter(|(_, record)| !record.incidents.is_empty())
                    .map(|(key, record)| {
                        let incidents = record.incidents.iter();
                        (key.last(), incidents.map(|it| it.outage.clone()).collect())
                    })
                    .collect();
                let regions: BTreeMap<String, RegionDuty> = regions
                    .iter()
                    .map(|(key, record)| (key.last(), record.duty))
                    .collect();
                let runtimes = self.sights().into_iter().map(|sight| {
                    let alive = self.seems_alive(&sight.runtime.holder);
                    json!({
                        "holder": sight.runtime.holder,
                        "region": sight.runtime.description.region,
                        "endpoints": sight.runtime.description.endpoints,
                        "duty": sight.runtime.duty,
                        "alive": alive,
                    })
                });
                let runtimes: Vec<_> = runtimes.collect();
                let revision = self.view_version();
                let document =
                    json!({ "runtimes": runtimes, "regions": regions, "outages": outages });
                (format!("routing-view/{revision}"), revision, document)
            }
            SnapshotKind::VersionResolution => {
                let revision = shared.rollouts.revision();
                let rollouts: Vec<_> = shared.rollouts.records().values().cloned().collect();
                let document = json!({ "rollouts": rollouts });
                (format!("version-resolution/{revision}"), revision, document)
            }
            SnapshotKind::Governance => {
                let rules = self.governance();
                let name = rules.admission.snapshot();
                (name, rules.version(), json!(rules))
            }
            SnapshotKind::Keyring => {
                let revision = shared.keyring.revision();
                let document = json!(self.keyring());
                (format!("keyring/{revision}"), revision, document)
            }
        };
        Snapshot {
            kind,
            name,
            revision,
            document: document.to_string().into(),
        }
    }
}
