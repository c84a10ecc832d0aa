//! Runtimes and regions (F-094, F-096, F-103, F-106, F-108, NF-032).

use std::{collections::BTreeMap, pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use prost::Message as _;
use rspp_controlplane::{
    access::{Operation, Principal},
    authority::{Placement, Revoke, WhyRevoked},
    failover::{FailoverMode, RegionDuty},
    fleet::{self, Duty, PROTOCOL, Presence, Runtime},
    keys,
    store::{Compare, Key, Op, Txn, bytes},
};
use rspp_controlplane_api::{
    Joined, Order, WireError, text,
    wire::{self, fleet_server::Fleet},
};
use rspp_proto::{
    Region, RuntimeId, SessionId,
    control::{Description, Emptying, Holder, Load, Removal},
};
use serde_json::json;
use tonic::{Request, Response, Status};

use super::placements::Mark;
use crate::{
    accounts::Word,
    audit::done,
    commit::{Asked, Decided},
    failure::Failure,
    plane::{MAX_FINISH, Plane, RegionRecord, wall_clock},
    wire as to,
};

pub(crate) struct FleetService(pub(crate) Plane);

/// How many sessions are told to move at once.
const MOVES: usize = 16;

#[tonic::async_trait]
impl Fleet for FleetService {
    type WatchOrdersStream = Pin<Box<dyn Stream<Item = Result<wire::Order, Status>> + Send>>;

    async fn register_runtime(
        &self,
        request: Request<wire::RegisterRequest>,
    ) -> Result<Response<wire::RegisterResponse>, Status> {
        let plane = &self.0;
        let id = text::<RuntimeId>("runtime", &request.get_ref().runtime).map_err(Failure::from)?;
        plane.admit_holder(&request, Operation::JoinFleet, &id)?;
        let description = request.into_inner().description;
        let description = description
            .ok_or_else(|| Failure::from(WireError::new("description", "is missing")))?;
        let description = Description::try_from(description).map_err(Failure::from)?;
        let protocol = PROTOCOL.common(description.protocol);
        let term = plane.settings().term;
        let lease = plane.store().grant(term.kept()).await;
        let lease = lease.map_err(Failure::from)?.id;
        let joined = plane
            .settle(|| plane.joined(&id, &description, lease))
            .await;
        let holder = joined?;
        tracing::info!(%holder, region = %description.region, "a runtime joined");
        let joined = Joined {
            holder,
            ttl: term.told(),
            heartbeat: plane.settings().heartbeat,
            protocol: protocol.expect("who joined speaks one of ours"),
        };
        Ok(Response::new(joined.into()))
    }

    async fn beat(
        &self,
        request: Request<wire::HeartbeatRequest>,
    ) -> Result<Response<wire::HeartbeatResponse>, Status> {
        let plane = &self.0;
        let by = wire::Holder::required(request.get_ref().by.clone()).map_err(Failure::from)?;
        plane.admit_holder(&request, Operation::JoinFleet, &by.runtime)?;
        let load = request.into_inner().load.unwrap_or_default();
        let load = Load::try_from(load).map_err(Failure::from)?;
        let lease = plane.lease_of(&by).await?;
        let alive = keys::liveness(&by);
        let txn = Txn::default().when(Compare::Exists(alive)).put_leased(
            keys::load(&by.runtime),
            bytes(&load),
            lease,
        );
        plane
            .store()
            .commit(txn)
            .await
            .map_err(|error| match error {
                rspp_controlplane::store::StoreError::Conflict => {
                    Failure::HolderGone(by.to_string())
                }
                error => error.into(),
            })?;
        let duty = plane.runtime(&by.runtime).map(|it| it.duty);
        Ok(Response::new(wire::HeartbeatResponse {
            draining: duty == Some(Duty::Draining),
        }))
    }

    async fn watch_orders(
        &self,
        request: Request<wire::WatchOrdersRequest>,
    ) -> Result<Response<Self::WatchOrdersStream>, Status> {
        let plane = self.0.clone();
        let by = wire::Holder::required(request.get_ref().by.clone()).map_err(Failure::from)?;
        plane.admit_holder(&request, Operation::JoinFleet, &by.runtime)?;
        plane.check_alive(&by).await?;
        let orders = orders(plane, by).map(|order| match order {
            Ok(order) => Ok(wire::Order::from(order)),
            Err(failure) => Err(Status::from(failure)),
        });
        Ok(Response::new(Box::pin(orders)))
    }

    async fn list_runtimes(
        &self,
        request: Request<wire::ListRuntimesRequest>,
    ) -> Result<Response<wire::ListRuntimesResponse>, Status> {
        let plane = &self.0;
        plane.admit(&request, Operation::ReadFleet, None, "runtimes")?;
        let view = plane.view()?;
        let placed = plane.placed();
        let name = view.name();
        let runtimes = view.runtimes.into_iter().map(|(id, sight)| {
            let placed = placed.get(&id).copied().unwrap_or_default();
            to::runtime(sight, placed)
        });
        Ok(Response::new(wire::ListRuntimesResponse {
            runtimes: runtimes.collect(),
            view: name,
        }))
    }

    async fn drain_runtime(
        &self,
        request: Request<wire::DrainRuntimeRequest>,
    ) -> Result<Response<wire::DrainRuntimeResponse>, Status> {
        let plane = &self.0;
        let name = request.get_ref().runtime.clone();
        let by = plane.admit(&request, Operation::OperateFleet, None, &name)?;
        let message = request.into_inner();
        let id = text::<RuntimeId>("runtime", &name).map_err(Failure::from)?;
        let finish_within = plane.finish_within(message.finish_within_ms)?;
        let duty = if message.serve {
            Duty::Serving
        } else {
            Duty::Draining
        };
        let encoded = message.encode_to_vec();
        let asked = Asked {
            by: &by,
            operation: "drain_runtime",
            subject: &name,
            id: &message.request_id,
            message: &encoded,
        };
        let runtime: wire::Runtime = plane
            .change(asked, || plane.on_duty(&by, &id, duty, message.migrate))
            .await?;
        if duty == Duty::Draining {
            let how = if message.migrate {
                Emptying::Move
            } else {
                Emptying::Wait
            };
            plane.goes(&id, how, by.actor).await?;
            if message.migrate {
                let order = Revoke {
                    why: WhyRevoked::Drain,
                    finish_within,
                    to: None,
                };
                plane.move_all(&id, &order).await?;
            }
        }
        let left = plane.placed().get(&id).copied().unwrap_or_default();
        Ok(Response::new(wire::DrainRuntimeResponse {
            runtime: Some(runtime),
            left,
        }))
    }

    async fn note_drain(
        &self,
        request: Request<wire::BeginDrainRequest>,
    ) -> Result<Response<wire::BeginDrainResponse>, Status> {
        let plane = &self.0;
        let by = wire::Holder::required(request.get_ref().by.clone()).map_err(Failure::from)?;
        plane.admit_holder(&request, Operation::JoinFleet, &by.runtime)?;
        let message = request.into_inner();
        let how = match message.how() {
            wire::DrainHow::Unspecified => None,
            how => Some(Emptying::try_from(how).map_err(Failure::from)?),
        };
        let sessions = message.sessions.iter().map(|it| text("sessions", it));
        let sessions: Result<Vec<SessionId>, WireError> = sessions.collect();
        let sessions = sessions.map_err(Failure::from)?;
        let word = how.map(|how| Word { how, by: None });
        plane.note_drain(&by, word, sessions).await?;
        Ok(Response::new(wire::BeginDrainResponse {}))
    }

    async fn note_removal(
        &self,
        request: Request<wire::NoteRemovalRequest>,
    ) -> Result<Response<wire::NoteRemovalResponse>, Status> {
        let plane = &self.0;
        let by = wire::Holder::required(request.get_ref().by.clone()).map_err(Failure::from)?;
        let who = plane.admit_holder(&request, Operation::JoinFleet, &by.runtime)?;
        let removal = Removal::try_from(request.into_inner()).map_err(Failure::from)?;
        plane.note_removal(&who, &by, &removal).await?;
        Ok(Response::new(wire::NoteRemovalResponse {}))
    }

    async fn account_drain(
        &self,
        request: Request<wire::AccountDrainRequest>,
    ) -> Result<Response<wire::DrainAccount>, Status> {
        let plane = &self.0;
        let name = request.get_ref().runtime.clone();
        plane.admit(&request, Operation::ReadFleet, None, &name)?;
        let message = request.into_inner();
        let id = text::<RuntimeId>("runtime", &name).map_err(Failure::from)?;
        Ok(Response::new(
            plane.drain_account(&id, message.incarnation).await?,
        ))
    }

    async fn list_regions(
        &self,
        request: Request<wire::ListRegionsRequest>,
    ) -> Result<Response<wire::ListRegionsResponse>, Status> {
        let plane = &self.0;
        plane.admit(&request, Operation::ReadFleet, None, "regions")?;
        Ok(Response::new(wire::ListRegionsResponse {
            regions: plane.regions(),
        }))
    }

    async fn set_region(
        &self,
        request: Request<wire::SetRegionRequest>,
    ) -> Result<Response<wire::Region>, Status> {
        let plane = &self.0;
        let name = request.get_ref().region.clone();
        let by = plane.admit(&request, Operation::OperateFleet, None, &name)?;
        let message = request.into_inner();
        let region = text::<Region>("region", &name).map_err(Failure::from)?;
        let duty = match message.duty() {
            wire::RegionDuty::Unspecified => None,
            wire::RegionDuty::Serving => Some(RegionDuty::Serving),
            wire::RegionDuty::Drain => Some(RegionDuty::Leaving(FailoverMode::Drain)),
            wire::RegionDuty::Migrate => Some(RegionDuty::Leaving(FailoverMode::Migrate)),
        };
        let encoded = message.encode_to_vec();
        let asked = Asked {
            by: &by,
            operation: "set_region",
            subject: &name,
            id: &message.request_id,
            message: &encoded,
        };
        let answer = plane
            .change(asked, || plane.region_decided(&by, &region, duty))
            .await?;
        Ok(Response::new(answer))
    }
}

impl Plane {
    async fn joined(
        &self,
        id: &RuntimeId,
        description: &Description,
        lease: rspp_controlplane::store::LeaseId,
    ) -> Result<(Option<Txn>, Holder), Failure> {
        let key = keys::runtime(id);
        let (before, entry) = self.read::<Runtime>(&key).await?;
        let (removed, removed_entry) = self.read(&keys::removed_lives()).await?;
        let runtime = fleet::register(
            before.as_ref(),
            removed,
            id.clone(),
            description.clone(),
            wall_clock(),
        )?;
        let holder = runtime.holder.clone();
        // The life before is left to end by itself: what it holds it may believe in until then.
        let mut txn = Txn::default()
            .when(Compare::unchanged(&key, entry.as_ref()))
            .when(Compare::unchanged(
                &keys::removed_lives(),
                removed_entry.as_ref(),
            ))
            .put(key, bytes(&runtime))
            .put_leased(keys::liveness(&holder), "alive", lease)
            .delete(keys::load(id));
        if let Some(before) = before {
            txn.then
                .push(Op::DeleteAll(keys::revocations(&before.holder)));
        }
        Ok((Some(txn), holder))
    }

    async fn on_duty(
        &self,
        by: &Principal,
        id: &RuntimeId,
        duty: Duty,
        migrate: bool,
    ) -> Result<Decided<wire::Runtime>, Failure> {
        let key = keys::runtime(id);
        let (before, entry) = self.read::<Runtime>(&key).await?;
        let mut runtime = before.ok_or_else(|| Failure::NotFound {
            what: "runtime",
            name: id.to_string(),
        })?;
        runtime.duty = duty;
        let placed = self.placed().get(id).copied().unwrap_or_default();
        let txn = Txn::default()
            .when(Compare::unchanged(&key, entry.as_ref()))
            .put(key, bytes(&runtime));
        let (txn, undone) = match duty {
            Duty::Serving => self.undo_drain(&runtime.holder, txn).await?,
            Duty::Draining => (txn, None),
        };
        let mut detail = json!({ "duty": duty, "migrate": migrate, "sessions": placed });
        let ends_by_itself = undone.as_ref().is_some_and(|it| it.ends_by_itself);
        if let Some(undone) = undone {
            detail["undone"] = undone.detail;
        }
        let mut sight = self.sight(runtime);
        if !ends_by_itself {
            // What is followed may not show yet what this changes.
            sight.runtime.duty = duty;
        }
        Ok(Decided {
            txn,
            record: done(wall_clock(), by, "drain_runtime", id.as_str(), detail),
            answer: to::runtime(sight, placed),
        })
    }

    async fn region_decided(
        &self,
        by: &Principal,
        region: &Region,
        duty: Option<RegionDuty>,
    ) -> Result<Decided<wire::Region>, Failure> {
        let key = keys::region(region);
        let (before, entry) = self.read::<RegionRecord>(&key).await?;
        if before.is_none() && !self.has_runtimes(region).await? {
            return Err(Failure::NotFound {
                what: "region",
                name: region.to_string(),
            });
        }
        let record = RegionRecord {
            duty: duty.unwrap_or(RegionDuty::Serving),
            by_operator: duty.is_some(),
            incidents: before.unwrap_or_default().incidents,
        };
        let detail = json!({ "duty": record.duty, "by_operator": record.by_operator });
        let answer = seen(region, Some(record.clone()), &self.sights());
        Ok(Decided {
            txn: Txn::default()
                .when(Compare::unchanged(&key, entry.as_ref()))
                .put(key, bytes(&record)),
            record: done(wall_clock(), by, "set_region", region.as_str(), detail),
            answer,
        })
    }

    /// Whether any runtime stands there; before a no the store itself is asked.
    async fn has_runtimes(&self, region: &Region) -> Result<bool, Failure> {
        let stands = |runtime: &Runtime| runtime.description.region == *region;
        if self.shared.runtimes.records().values().any(stands) {
            return Ok(true);
        }
        Ok(self.all(keys::runtimes()).await?.iter().any(stands))
    }

    fn regions(&self) -> Vec<wire::Region> {
        let sights = self.sights();
        let known = self.region_records().into_iter();
        let mut all: BTreeMap<Region, Option<RegionRecord>> =
            known.map(|(it, record)| (it, Some(record))).collect();
        for sight in &sights {
            let region = sight.runtime.description.region.clone();
            all.entry(region).or_default();
        }
        let regions = all.into_iter();
        regions
            .map(|(it, record)| seen(&it, record, &sights))
            .collect()
    }

    /// How many sessions each runtime holds. Those of a life that is over are lost: nobody holds them.
    pub(crate) fn placed(&self) -> BTreeMap<RuntimeId, u32> {
        let mut of_lives = BTreeMap::<Holder, u32>::new();
        for placement in self.shared.placements.records().values() {
            if let Some(holder) = placement.holder() {
                match of_lives.get_mut(holder) {
                    Some(count) => *count += 1,
                    None => drop(of_lives.insert(holder.clone(), 1)),
                }
            }
        }
        let mut counts = BTreeMap::new();
        for (holder, count) in of_lives {
            if self.seems_alive(&holder) {
                *counts.entry(holder.runtime).or_default() += count;
            }
        }
        counts
    }

    /// Tells a runtime to let go of all that it holds.
    pub(crate) async fn move_all(&self, id: &RuntimeId, order: &Revoke) -> Result<(), Failure> {
        let sessions: Vec<SessionId> = {
            let placements = self.shared.placements.records();
            let there = placements
                .values()
                .filter(|it| it.holder().is_some_and(|holder| holder.runtime == *id));
            there.map(|it| it.session.clone()).collect()
        };
        let moves = stream::iter(sessions).map(|session| async move {
            match self.revoke(&session, order, id).await {
                // It has ended, or somebody else has it by now.
                Ok(()) | Err(Failure::Lease(_)) => Ok(()),
                Err(failure) => Err(failure),
            }
        });
        let mut moves = moves.buffer_unordered(MOVES);
        while let Some(moved) = moves.next().await {
            moved?;
        }
        Ok(())
    }

    /// How long what is said may take to end: as it was asked for, or as it is set.
    pub(crate) fn finish_within(&self, asked_ms: Option<u64>) -> Result<Duration, Failure> {
        let Some(asked) = asked_ms.map(Duration::from_millis) else {
            return Ok(self.settings().finish_within);
        };
        if asked > MAX_FINISH {
            let most = format!("is longer than {} s, the most", MAX_FINISH.as_secs());
            return Err(WireError::new("finish_within_ms", most).into());
        }
        Ok(asked)
    }

    /// Tells one runtime to let go of a session that it holds, and lets its time run.
    pub(crate) async fn revoke(
        &self,
        session: &SessionId,
        order: &Revoke,
        from: &RuntimeId,
    ) -> Result<(), Failure> {
        let key = keys::placement(session);
        self.settle(|| async {
            let (current, entry) = self.read::<Placement>(&key).await?;
            let holder = current.as_ref().and_then(Placement::holder);
            if holder.is_none_or(|holder| holder.runtime != *from) {
                return Ok((None, ()));
            }
            let unchanged = Compare::unchanged(&key, entry.as_ref());
            let (txn, _) = Self::order(current.as_ref(), unchanged, order)?;
            Ok((Some(txn), ()))
        })
        .await?;
        self.light(session).await
    }

    /// The orders that wait for a holder, by their records.
    fn waiting(&self, by: &Holder) -> BTreeMap<Key, Mark> {
        let below = keys::revocations(by);
        let records = self.shared.revocations.records();
        let its = records.iter().filter(|(key, _)| below.holds(key));
        its.map(|(key, mark)| (key.clone(), mark.clone())).collect()
    }
}

/// A region as it seems to be among all runtimes.
fn seen(region: &Region, record: Option<RegionRecord>, sights: &[fleet::Sight]) -> wire::Region {
    let record = record.unwrap_or_default();
    let duty = match record.duty {
        RegionDuty::Serving => wire::RegionDuty::Serving,
        RegionDuty::Leaving(FailoverMode::Drain) => wire::RegionDuty::Drain,
        RegionDuty::Leaving(FailoverMode::Migrate) => wire::RegionDuty::Migrate,
    };
    let (mut there, mut well, mut dead) = (0, 0, 0);
    for sight in sights
        .iter()
        .filter(|it| it.runtime.description.region == *region)
    {
        match sight.presence {
            Presence::Alive => {
                there += 1;
                well += u32::from(sight.load.ready);
            }
            Presence::Suspect => there += 1,
            Presence::Dead => dead += 1,
            Presence::Left => {}
        }
    }
    wire::Region {
        region: region.to_string(),
        duty: duty.into(),
        runtimes: there,
        well,
        dead,
        by_operator: record.by_operator,
        outages: record
            .incidents
            .into_iter()
            .map(|it| it.outage.into())
            .collect(),
    }
}

/// What has been told of what waits.
struct Telling {
    plane: Plane,
    by: Holder,
    told: BTreeMap<Key, Mark>,
    duty: Duty,
    settled: bool,
    queue: std::collections::VecDeque<Order>,
    marks: tokio::sync::watch::Receiver<u64>,
    runtimes: tokio::sync::watch::Receiver<u64>,
    over: bool,
}

/// First all that waits, then each order as it is given; an error when this life of the runtime is over.
fn orders(plane: Plane, by: Holder) -> impl Stream<Item = Result<Order, Failure>> + Send {
    let telling = Telling {
        marks: plane.shared.revocations.changes(),
        runtimes: plane.shared.runtimes.changes(),
        plane,
        by,
        told: BTreeMap::new(),
        duty: Duty::Serving,
        settled: false,
        queue: std::collections::VecDeque::new(),
        over: false,
    };
    stream::unfold(telling, |mut it| async move {
        if it.over {
            return None;
        }
        let next = it.next().await;
        it.over = next.is_err();
        Some((next, it))
    })
}

impl Telling {
    async fn next(&mut self) -> Result<Order, Failure> {
        loop {
            if let Some(order) = self.queue.pop_front() {
                return Ok(order);
            }
            self.look()?;
            if !self.settled {
                self.settled = true;
                self.queue.push_back(Order::Settled);
                continue;
            }
            if self.queue.is_empty() {
                let leaving = self.plane.shared.leaving.clone();
                tokio::select! {
                    changed = self.marks.changed() => changed.map_err(|_| Failure::ShuttingDown)?,
                    changed = self.runtimes.changed() => changed.map_err(|_| Failure::ShuttingDown)?,
                    () = leaving.cancelled() => return Err(Failure::ShuttingDown),
                }
            }
        }
    }

    /// Queues what is new.
    fn look(&mut self) -> Result<(), Failure> {
        self.marks.mark_unchanged();
        self.runtimes.mark_unchanged();
        let runtime = self.plane.runtime(&self.by.runtime);
        if let Some(runtime) = runtime {
            if runtime.holder.incarnation > self.by.incarnation {
                return Err(Failure::HolderGone(self.by.to_string()));
            }
            if runtime.duty != self.duty {
                self.duty = runtime.duty;
                self.queue.push_back(match runtime.duty {
                    Duty::Serving => Order::Serve,
                    Duty::Draining => Order::Drain,
                });
            }
        }
        let waiting = self.plane.waiting(&self.by);
        for (key, mark) in &waiting {
            if self.told.get(key) != Some(mark)
                && let Ok(session) = SessionId::new(key.last())
            {
                self.queue.push_back(Order::Revoke(mark.of(session)));
            }
        }
        self.told = waiting;
        Ok(())
    }
}
