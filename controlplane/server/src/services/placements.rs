//! Leases (design §5, F-095, F-111, F-156).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use rspp_controlplane::{
    access::Operation,
    audit::Record,
    authority::{self, Binding, Placement, Refusal, Revoke, Seen, Standing},
    fleet::{Duty, Runtime},
    keys,
    registry::{Kind, VersionName},
    routing::{Exclusion, NoRoute},
    store::{Compare, Entry, Key, LeaseId, Op, Txn, bytes, list_all, parse},
    token::LeaseClaims,
};
use rspp_controlplane_api::{
    Acquire, Granted, HeldSession, Leave, Lost, Renewed, Revocation, Wanted, WireError, Writer,
    text,
    wire::{self, placements_server::Placements},
};
use rspp_proto::{
    Epoch, LeaseToken, PipelineVersion, RuntimeId, SessionId, TenantId,
    control::{Holder, Versions, WhyRevoked},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tonic::{Request, Response, Status};

use crate::{
    audit::Note,
    commit::Write,
    failure::Failure,
    plane::{Plane, exist, wall_clock},
};

pub(crate) struct PlacementsService(pub(crate) Plane);

/// How long a proof is good; who renews may have it anew.
pub(crate) const PROOF_TTL: Duration = Duration::from_mins(10);
/// Most sessions of one renewal.
const MAX_HELD: usize = 20_000;
/// How many records are looked up at once where what is followed does not suffice.
const LOOKUPS: usize = 32;

/// The order to let go, as its holder finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) epoch: Epoch,
    pub(crate) why: WhyRevoked,
    #[serde(default)]
    pub(crate) finish_within: Duration,
    pub(crate) to: Option<RuntimeId>,
}

impl Mark {
    pub(crate) fn of(&self, session: SessionId) -> Revocation {
        Revocation {
            session,
            epoch: self.epoch,
            why: self.why,
            finish_within: self.finish_within,
            to: self.to.clone(),
        }
    }
}

#[tonic::async_trait]
impl Placements for PlacementsService {
    async fn acquire_lease(
        &self,
        request: Request<wire::AcquireRequest>,
    ) -> Result<Response<wire::Lease>, Status> {
        let plane = &self.0;
        let ask = Acquire::try_from(request.get_ref().clone()).map_err(Failure::from)?;
        let by = plane.admit_holder(&request, Operation::HoldLeases, &ask.by.runtime)?;
        if !by.tenants.include(&ask.wanted.tenant) {
            // As if it were not there (F-114).
            return Err(Failure::from(Refusal::Unknown).into());
        }
        let ((placement, taken_over), decision) =
            plane.settle_counted(|| plane.granted(&ask)).await?;
        if taken_over {
            let from = placement.past.last().map(|it| it.holder.to_string());
            tracing::warn!(
                session_id = %ask.session,
                tenant = %placement.binding.tenant,
                epoch = placement.epoch.get(),
                from,
                to = %ask.by,
                "a session was taken over"
            );
            let detail = json!({ "epoch": placement.epoch, "to": ask.by, "why": "failover" });
            let mut record =
                Record::automatic(wall_clock(), "failover", ask.session.as_str(), detail);
            record.tenant = Some(placement.binding.tenant.clone());
            plane.note(Note::happened(record));
        }
        if let Some(decision) = decision.as_ref().filter(|it| it.degraded || !it.counted) {
            let detail = json!({
                "reason": decision.reason,
                "mode": decision.mode,
                "snapshot": decision.snapshot,
            });
            let mut record = Record::automatic(wall_clock(), "admit", ask.session.as_str(), detail);
            record.tenant = Some(placement.binding.tenant.clone());
            plane.note(Note::happened(record));
        }
        let granted = Granted {
            proof: plane.prove(&placement, &ask.by)?,
            session: ask.session,
            epoch: placement.epoch,
            ttl: plane.settings().term.told(),
            taken_over,
            resumed: placement.epoch > Epoch::FIRST,
            degraded: decision.is_some_and(|it| it.degraded),
            binding: placement.binding,
        };
        Ok(Response::new(granted.into()))
    }

    async fn renew_leases(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        let plane = &self.0;
        let by = wire::Holder::required(request.get_ref().by.clone()).map_err(Failure::from)?;
        plane.admit_holder(&request, Operation::HoldLeases, &by.runtime)?;
        let held = request.into_inner().held;
        if held.len() > MAX_HELD {
            return Err(Failure::TooLarge {
                what: "renewal",
                limit: MAX_HELD,
            }
            .into());
        }
        let held = held.into_iter().map(HeldSession::try_from);
        let held: Result<Vec<_>, WireError> = held.collect();
        let renewed = plane.renewed(&by, held.map_err(Failure::from)?).await?;
        Ok(Response::new(renewed.into()))
    }

    async fn release_lease(
        &self,
        request: Request<wire::ReleaseRequest>,
    ) -> Result<Response<wire::ReleaseResponse>, Status> {
        let plane = &self.0;
        let message = request.get_ref();
        let writer = Writer::from_wire(message.by.clone(), &message.session, message.epoch);
        let writer = writer.map_err(Failure::from)?;
        let leave = if message.end {
            Leave::end(&message.why)
        } else {
            Leave::Release
        };
        plane.admit_holder(&request, Operation::HoldLeases, &writer.by.runtime)?;
        plane.settle(|| plane.left(&writer, &leave)).await??;
        Ok(Response::new(wire::ReleaseResponse {}))
    }
}

impl Plane {
    /// What a life of a runtime renews, unless a later one is known: that is another process, and this one
    /// has to fall silent by itself.
    fn liveness_of(&self, by: &Holder) -> Result<Key, Failure> {
        let newest = self.runtime(&by.runtime);
        if newest.is_some_and(|it| it.holder.incarnation > by.incarnation) {
            return Err(Failure::HolderGone(by.to_string()));
        }
        Ok(keys::liveness(by))
    }

    /// Whether this life of a runtime is its newest and still renews, by the store.
    pub(crate) async fn check_alive(&self, by: &Holder) -> Result<Key, Failure> {
        let key = self.liveness_of(by)?;
        match self.store().get(&key).await? {
            Some(_) => Ok(key),
            None => Err(Failure::HolderGone(by.to_string())),
        }
    }

    /// The store's lease that a runtime's liveness hangs on.
    pub(crate) async fn lease_of(&self, by: &Holder) -> Result<LeaseId, Failure> {
        let key = self.liveness_of(by)?;
        if let Some(Some(lease)) = self.shared.alive.get(&key) {
            return Ok(lease);
        }
        let entry = self.store().get(&key).await?;
        let lease = entry.and_then(|entry| entry.lease);
        lease.ok_or_else(|| Failure::HolderGone(by.to_string()))
    }

    /// What the store shows beside a session's record. Read after the record: a liveness that is gone
    /// stays gone, and a fuse is lit only together with a change of the record, which the transaction
    /// would notice.
    async fn seen(
        &self,
        current: Option<&Placement>,
        session: &SessionId,
    ) -> Result<Seen, Failure> {
        let nobody = Seen {
            holder_alive: false,
            fuse_burns: false,
            reserved_alive: false,
        };
        let Some(current) = current else {
            return Ok(nobody);
        };
        // For one that takes no sessions nobody is kept waiting.
        let reserved = current
            .reserved()
            .and_then(|it| self.runtime(it))
            .filter(|it| it.duty == Duty::Serving);
        let absent = keys::fuse(session);
        let asked = [
            current
                .holder()
                .map_or_else(|| absent.clone(), keys::liveness),
            keys::fuse(session),
            reserved
                .as_ref()
                .map_or(absent, |it| keys::liveness(&it.holder)),
        ];
        let found = exist(self.store(), &asked).await?;
        Ok(Seen {
            holder_alive: current.holder().is_some() && found[0],
            fuse_burns: found[1],
            reserved_alive: reserved.is_some() && found[2],
        })
    }

    async fn granted(&self, ask: &Acquire) -> Result<(Option<Write>, (Placement, bool)), Failure> {
        let key = keys::placement(&ask.session);
        let (current, entry) = self.read::<Placement>(&key).await?;
        let alive = self.check_alive(&ask.by).await?;
        self.check_residency(&ask.wanted.tenant, &ask.by.runtime)
            .await?;
        let seen = self.seen(current.as_ref(), &ask.session).await?;
        let binding = match &current {
            Some(current) => Binding {
                tenant: ask.wanted.tenant.clone(),
                ..current.binding.clone()
            },
            None => self.bind(&ask.wanted, &ask.session).await?,
        };
        let request = authority::Acquire {
            session: ask.session.clone(),
            by: ask.by.clone(),
            attempt: ask.attempt,
            binding,
        };
        let granted = authority::acquire(current.as_ref(), seen, &request, wall_clock())?;
        let answer = (granted.placement, granted.taken_over);
        if granted.repeated {
            return Ok((None, answer));
        }
        let txn = Txn::default()
            .when(Compare::unchanged(&key, entry.as_ref()))
            .when(Compare::Exists(alive))
            .put(key, bytes(&answer.0))
            .delete(keys::revocation(&ask.by, &ask.session));
        let write = match &current {
            Some(_) => Write::Plain(txn),
            None => Write::Opens {
                txn,
                tenant: answer.0.binding.tenant.clone(),
                line: line_of(&answer.0.binding.pipeline),
            },
        };
        Ok((Some(write), answer))
    }

    /// Whether a tenant's sessions, and what is kept of them, may be where a runtime stands (F-168).
    async fn check_residency(&self, tenant: &TenantId, id: &RuntimeId) -> Result<(), Failure> {
        let residency = self.governance().residency;
        if !residency.tenants.contains_key(tenant) {
            return Ok(());
        }
        let (runtime, _) = self.read::<Runtime>(&keys::runtime(id)).await?;
        let own = self.settings().region.as_ref();
        let allowed = runtime.is_some_and(|it| residency.admits(tenant, &it.description))
            && own.is_none_or(|region| residency.allows(tenant, region));
        if allowed {
            return Ok(());
        }
        let allowed = residency.tenants.get(tenant).cloned();
        Err(NoRoute {
            excluded: BTreeMap::from([(id.clone(), Exclusion::Residency)]),
            allowed: allowed.unwrap_or_default(),
            closed: BTreeSet::new(),
        }
        .into())
    }

    /// What a new session is bound to: what it asks for if that is published; what the rollouts give if it
    /// names no pipeline.
    pub(crate) async fn bind(
        &self,
        wanted: &Wanted,
        session: &SessionId,
    ) -> Result<Binding, Failure> {
        let tenant = wanted.tenant.clone();
        for (kind, version) in [
            (
                Kind::Pipeline,
                wanted.pipeline.as_ref().map(PipelineVersion::as_str),
            ),
            (Kind::Policy, wanted.policy.as_deref()),
            (Kind::Providers, wanted.providers.as_deref()),
        ] {
            if let Some(version) = version {
                self.artifact(kind, version).await?;
            }
        }
        let Some(pipeline) = wanted.pipeline.clone() else {
            let pipeline = self.resolved(&tenant, session, None)?.0;
            let Versions { policy, providers } = self.versions(&tenant, session, &pipeline);
            return Ok(Binding {
                policy: wanted.policy.clone().or(policy),
                providers: wanted.providers.clone().or(providers),
                tenant,
                pipeline,
            });
        };
        Ok(Binding {
            policy: wanted.policy.clone(),
            providers: wanted.providers.clone(),
            tenant,
            pipeline,
        })
    }

    /// The versions that the rollouts of its line give a new session beside that of its pipeline (F-102).
    pub(crate) fn versions(
        &self,
        tenant: &TenantId,
        session: &SessionId,
        pipeline: &PipelineVersion,
    ) -> Versions {
        let line = line_of(pipeline);
        let given = |kind| {
            let rollout = self.rollout(kind, &line)?;
            let found = rollout.resolve(tenant, session, None).ok()?;
            Some(found.version.to_string())
        };
        Versions {
            policy: given(Kind::Policy),
            providers: given(Kind::Providers),
        }
    }

    /// The version that a new session gets, why, and by which state of the rollout. `asked` is a line or
    /// a version that is offered.
    pub(crate) fn resolved(
        &self,
        tenant: &TenantId,
        session: &SessionId,
        asked: Option<&str>,
    ) -> Result<(PipelineVersion, &'static str, String), Failure> {
        let rollouts = self.shared.rollouts.records();
        let of_line = |line: &str| rollouts.get(&keys::rollout(Kind::Pipeline, line));
        let (rollout, requested) = if let Some(asked) = asked {
            if let Some(rollout) = of_line(asked) {
                (rollout, None)
            } else {
                let version = text::<VersionName>("pipeline", asked)?;
                let rollout = of_line(version.line()).ok_or_else(|| Failure::NotFound {
                    what: "rollout",
                    name: version.line().to_owned(),
                })?;
                (rollout, Some(version))
            }
        } else {
            let mut pipelines = rollouts.values().filter(|it| it.kind == Kind::Pipeline);
            let only = pipelines.next().ok_or(Failure::NoPipeline)?;
            if let Some(another) = pipelines.next() {
                let all = [only, another].into_iter().chain(pipelines);
                let lines = all.map(|it| it.line.clone()).collect();
                return Err(Failure::Ambiguous(lines));
            }
            (only, None)
        };
        let found = rollout.resolve(tenant, session, requested.as_ref())?;
        let version = text("pipeline", found.version.as_str())?;
        Ok((version, found.why.as_str(), found.snapshot))
    }

    fn prove(&self, placement: &Placement, by: &Holder) -> Result<LeaseToken, Failure> {
        let issued = wall_clock().0 / 1_000;
        let claims = LeaseClaims {
            session: placement.session.clone(),
            tenant: placement.binding.tenant.clone(),
            runtime: by.runtime.clone(),
            incarnation: by.incarnation,
            epoch: placement.epoch,
            iat: issued,
            exp: issued + PROOF_TTL.as_secs(),
        };
        let token = LeaseToken::new(self.signer()?.sign(&claims));
        Ok(token.map_err(|error| WireError::new("session", error))?)
    }

    /// Renews a runtime, and says what of that which it believes to hold it does not.
    ///
    /// The runtime's life is prolonged first; the orders to let go are read after that, from the store
    /// itself. So a session that is not named as revoked had no fuse burning when its time began anew.
    async fn renewed(&self, by: &Holder, held: Vec<HeldSession>) -> Result<Renewed, Failure> {
        let lease = self.lease_of(by).await?;
        self.store()
            .keep_alive(lease)
            .await
            .map_err(|error| match error {
                rspp_controlplane::store::StoreError::LeaseGone { .. } => {
                    Failure::HolderGone(by.to_string())
                }
                error => error.into(),
            })?;
        let revoked = self.marks(by).await?;
        let mut renewed = Renewed {
            ttl: self.settings().term.told(),
            revoked,
            ..Renewed::default()
        };
        let is_held = |placement: &Placement, it: &HeldSession| {
            placement.epoch == it.epoch && placement.holder() == Some(by)
        };
        // What is followed may be a moment old. It can only be too old to know of a grant: who was
        // replaced was told to let go before, or has no life to prolong.
        let mut unsure = Vec::new();
        let mut prove = Vec::new();
        {
            let placements = self.shared.placements.records();
            for it in held {
                match placements.get(&keys::placement(&it.session)) {
                    Some(placement) if is_held(placement, &it) => {
                        if it.prove {
                            prove.push(placement.clone());
                        }
                    }
                    Some(_) | None => unsure.push(it),
                }
            }
        }
        let looked_up: Vec<_> = stream::iter(unsure)
            .map(|it| async move {
                let key = keys::placement(&it.session);
                Ok::<_, Failure>((self.read::<Placement>(&key).await?.0, it))
            })
            .buffer_unordered(LOOKUPS)
            .try_collect()
            .await?;
        for (placement, it) in looked_up {
            match placement {
                Some(placement) if is_held(&placement, &it) => {
                    if it.prove {
                        prove.push(placement);
                    }
                }
                other => renewed.lost.push(Lost {
                    session: it.session,
                    newest: other.map(|placement| placement.epoch),
                }),
            }
        }
        for placement in prove {
            let proof = self.prove(&placement, by)?;
            renewed.proofs.push((placement.session, proof));
        }
        Ok(renewed)
    }

    /// All orders to let go that a holder has not followed.
    async fn marks(&self, by: &Holder) -> Result<Vec<Revocation>, Failure> {
        let found = list_all(self.store(), &keys::revocations(by), None).await?;
        let mark = |entry: &Entry| {
            let session = text("session", &entry.key.last())?;
            Ok(parse::<Mark>(entry)?.of(session))
        };
        found.records.values().map(mark).collect()
    }

    /// What giving up leads to. The inner result is what is answered once all is written.
    async fn left(
        &self,
        writer: &Writer,
        leave: &Leave,
    ) -> Result<(Option<Write>, Result<(), Failure>), Failure> {
        let key = keys::placement(&writer.session);
        let (current, entry) = self.read::<Placement>(&key).await?;
        let mark_key = keys::revocation(&writer.by, &writer.session);
        let (mark, mark_entry) = self.read::<Mark>(&mark_key).await?;
        let is_marked = mark.is_some_and(|mark| mark.epoch == writer.epoch);
        let decided = match leave {
            Leave::Release => authority::release(current.as_ref(), &writer.by, writer.epoch),
            Leave::End { why } => authority::end(
                current.as_ref(),
                &writer.by,
                writer.epoch,
                why,
                wall_clock(),
            ),
        };
        let let_go = || {
            let unchanged = Compare::unchanged(&mark_key, mark_entry.as_ref());
            Write::Plain(Txn::default().when(unchanged).delete(mark_key.clone()))
        };
        match decided {
            Ok(Some(after)) => {
                let mut txn = Txn::default()
                    .when(Compare::unchanged(&key, entry.as_ref()))
                    .put(key, bytes(&after))
                    .delete(mark_key.clone());
                let write = match leave {
                    Leave::Release => Write::Plain(txn),
                    Leave::End { .. } => {
                        txn.then.push(Op::DeleteAll(keys::states(&writer.session)));
                        let tenant = after.binding.tenant;
                        Write::Closes { txn, tenant }
                    }
                };
                Ok((Some(write), Ok(())))
            }
            Ok(None) => Ok((is_marked.then(let_go), Ok(()))),
            // Somebody else has it already: what was asked for is so.
            Err(_) if is_marked => Ok((Some(let_go()), Ok(()))),
            Err(refusal) => Ok((None, Err(refusal.into()))),
        }
    }

    /// An order to let go, as a transaction and the session's record after it.
    pub(crate) fn order(
        current: Option<&Placement>,
        unchanged: Compare,
        order: &Revoke,
    ) -> Result<(Txn, Placement), Failure> {
        let after = authority::revoke(current, order)?;
        let key = unchanged.key().clone();
        let mut txn = Txn::default().when(unchanged).put(key, bytes(&after));
        if let Standing::Revoking {
            from,
            why,
            finish_within,
            to,
            fuse: _,
        } = &after.standing
        {
            let mark = Mark {
                epoch: after.epoch,
                why: *why,
                finish_within: *finish_within,
                to: to.clone(),
            };
            txn = txn.put(keys::revocation(from, &after.session), bytes(&mark));
        }
        Ok((txn, after))
    }

    /// Lets the time of a revoked holder run, once the order is stored. Doing it again changes nothing.
    pub(crate) async fn light(&self, session: &SessionId) -> Result<(), Failure> {
        self.settle(|| async {
            let key = keys::placement(session);
            let (current, entry) = self.read::<Placement>(&key).await?;
            let lit = current.as_ref().and_then(authority::light);
            let Some((lit, burns)) = lit.and_then(|lit| {
                let burns = lit.fuse(self.settings().term)?;
                Some((lit, burns))
            }) else {
                return Ok((None, ()));
            };
            let fuse = self.store().grant(burns).await?;
            let txn = Txn::default()
                .when(Compare::unchanged(&key, entry.as_ref()))
                .put(key, bytes(&lit))
                .put_leased(keys::fuse(session), "burns", fuse.id);
            Ok((Some(txn), ()))
        })
        .await
    }
}

/// What all versions of a pipeline have in common; a name without a number is its own line.
pub(crate) fn line_of(pipeline: &PipelineVersion) -> String {
    match pipeline.as_str().parse::<VersionName>() {
        Ok(version) => version.line().to_owned(),
        Err(_) => pipeline.to_string(),
    }
}
