//! Where sessions run, how they go, who may connect (F-094, F-099, F-101, F-119, F-159).

use std::{collections::BTreeMap, time::Duration};

use futures::future::try_join_all;
use prost::Message as _;
use rspp_controlplane::{
    access::{Operation, Principal},
    audit::Record,
    authority::{Placement, Refusal, Revoke, Standing, WhyRevoked},
    fleet::{self, Duty, Endpoint, Presence},
    keys,
    routing::{self, Choice},
    status::{self, Report},
    store::{Compare, Query, Txn, bytes, parse},
    token::SessionClaims,
};
use rspp_controlplane_api::{
    RouteAsk, StatusReport, WireError, millis, optional, text,
    wire::{self, sessions_server::Sessions},
};
use rspp_proto::{
    Epoch, PipelineVersion, RuntimeId, SessionId, TenantId,
    abi::OutcomeKind,
    control::{Holder, Outage, Versions},
};
use serde_json::json;
use tonic::{Request, Response, Status};

use super::placements::line_of;
use crate::{
    audit::{Note, done},
    commit::{Asked, Decided},
    failure::Failure,
    plane::{Plane, next_page, page_after, page_size, wall_clock},
    wire as to,
};

pub(crate) struct SessionsService(pub(crate) Plane);

/// Soonest that somebody is told to ask again.
const SOON: Duration = Duration::from_millis(200);
/// Most reports of one call.
const MAX_REPORTS: usize = 1_000;
/// Longest reason of a report, in bytes.
const MAX_REASON: usize = 256;

#[tonic::async_trait]
impl Sessions for SessionsService {
    async fn route_session(
        &self,
        request: Request<wire::RouteRequest>,
    ) -> Result<Response<wire::Route>, Status> {
        let plane = &self.0;
        let ask = RouteAsk::try_from(request.get_ref().clone()).map_err(Failure::from)?;
        let operation = Operation::RouteSession;
        plane.admit(&request, operation, Some(&ask.tenant), ask.session.as_str())?;
        Ok(Response::new(plane.routed(&ask).await?))
    }

    async fn get_status(
        &self,
        request: Request<wire::GetStatusRequest>,
    ) -> Result<Response<wire::SessionStatus>, Status> {
        let plane = &self.0;
        let (tenant, session) = named(&request.get_ref().tenant, &request.get_ref().session)?;
        let operation = Operation::ReadSessions;
        plane.admit(&request, operation, Some(&tenant), session.as_str())?;
        let (placement, _) = plane.placement_of(&tenant, &session).await?;
        Ok(Response::new(plane.status(&placement).await?))
    }

    async fn list_sessions(
        &self,
        request: Request<wire::ListSessionsRequest>,
    ) -> Result<Response<wire::ListSessionsResponse>, Status> {
        let plane = &self.0;
        let read = |error: WireError| Failure::from(error);
        let tenant = optional::<TenantId>("tenant", &request.get_ref().tenant).map_err(read)?;
        plane.admit(
            &request,
            Operation::ReadSessions,
            tenant.as_ref(),
            "sessions",
        )?;
        let message = request.into_inner();
        let runtime = optional::<RuntimeId>("runtime", &message.runtime).map_err(read)?;
        let is_wanted = |it: &Placement| {
            let of_tenant = tenant
                .as_ref()
                .is_none_or(|tenant| it.binding.tenant == *tenant);
            let there = runtime
                .as_ref()
                .is_none_or(|runtime| it.spokesman().is_some_and(|it| it.runtime == *runtime));
            let goes_on = message.ended || !matches!(it.standing, Standing::Ended { .. });
            of_tenant && there && goes_on
        };
        let size = page_size(message.page_size);
        let mut after = message.page_token.clone();
        let mut found = Vec::new();
        // A page is filled from as many pages of the store as it takes.
        loop {
            let query = Query {
                after: page_after(&keys::placements(), &after).map_err(Failure::from)?,
                ..Query::first(keys::placements())
            };
            let page = plane.store().list(query).await.map_err(Failure::from)?;
            let mut cut = None;
            for entry in &page.entries {
                let placement: Placement = parse(entry).map_err(Failure::from)?;
                if is_wanted(&placement) {
                    if found.len() == size {
                        break;
                    }
                    found.push(placement);
                }
                cut = Some(entry.key.as_str().to_owned());
            }
            let looked_at_all = cut.as_deref() == page.entries.last().map(|it| it.key.as_str());
            after = if looked_at_all {
                next_page(&page)
            } else {
                cut.unwrap_or(after)
            };
            if after.is_empty() || found.len() == size {
                break;
            }
        }
        let sessions = try_join_all(found.iter().map(|it| plane.status(it))).await?;
        Ok(Response::new(wire::ListSessionsResponse {
            sessions,
            next_page_token: after,
        }))
    }

    async fn move_session(
        &self,
        request: Request<wire::MoveSessionRequest>,
    ) -> Result<Response<wire::SessionStatus>, Status> {
        let plane = &self.0;
        let (tenant, session) = named(&request.get_ref().tenant, &request.get_ref().session)?;
        let operation = Operation::MoveSession;
        let by = plane.admit(&request, operation, Some(&tenant), session.as_str())?;
        let message = request.into_inner();
        let why = match message.why() {
            wire::WhyRevoked::Unspecified => WhyRevoked::Transfer,
            why => why.try_into().map_err(Failure::from)?,
        };
        let to = optional::<RuntimeId>("to", &message.to).map_err(Failure::from)?;
        if let Some(to) = &to {
            let runtime = plane.runtime(to).ok_or_else(|| Failure::NotFound {
                what: "runtime",
                name: to.to_string(),
            })?;
            if runtime.duty == Duty::Draining {
                let why =
                    format!("`{to}` is being emptied: name another, or nobody for whoever is fit");
                return Err(Failure::from(WireError::new("to", why)).into());
            }
        }
        let order = Revoke {
            why,
            finish_within: plane.finish_within(message.finish_within_ms)?,
            to,
        };
        let encoded = message.encode_to_vec();
        let asked = Asked {
            by: &by,
            operation: operation.as_str(),
            subject: session.as_str(),
            id: &message.request_id,
            message: &encoded,
        };
        let answer: wire::SessionStatus = plane
            .change(asked, || plane.moved(&by, &tenant, &session, &order))
            .await?;
        plane.light(&session).await?;
        Ok(Response::new(answer))
    }

    async fn tell_status(
        &self,
        request: Request<wire::ReportStatusRequest>,
    ) -> Result<Response<wire::ReportStatusResponse>, Status> {
        let plane = &self.0;
        let by = wire::Holder::required(request.get_ref().by.clone()).map_err(Failure::from)?;
        plane.admit_holder(&request, Operation::WriteState, &by.runtime)?;
        let reports = request.into_inner().reports;
        if reports.len() > MAX_REPORTS {
            return Err(Failure::TooLarge {
                what: "report",
                limit: MAX_REPORTS,
            }
            .into());
        }
        let mut stale = Vec::new();
        for report in reports {
            let report = StatusReport::try_from(report).map_err(Failure::from)?;
            let told = plane.settle(|| plane.reported(&by, &report)).await;
            match told {
                Ok(()) => {}
                Err(Failure::Lease(_)) => stale.push(report.session.to_string()),
                Err(failure) => return Err(failure.into()),
            }
        }
        Ok(Response::new(wire::ReportStatusResponse { stale }))
    }
}

fn named(tenant: &str, session: &str) -> Result<(TenantId, SessionId), Failure> {
    Ok((text("tenant", tenant)?, text("session", session)?))
}

/// Where a session goes, before the token for it is signed.
struct Target {
    to: Whereto,
    pipeline: PipelineVersion,
    versions: Versions,
    why: &'static str,
    epoch: Option<Epoch>,
    decision: Option<wire::Decision>,
    version_resolution: String,
}

/// To whom, and why to that one.
struct Whereto {
    endpoint: Endpoint,
    runtime: RuntimeId,
    region: rspp_proto::Region,
    view: String,
    placing: &'static str,
    passed: Vec<wire::Passed>,
    outage: Option<Outage>,
    /// How sure it is that the holder is there.
    signs: Signs,
}

/// Whether a session's holder is there: until its lease has ended nobody may say that it is not.
#[derive(Clone, Copy, Default)]
struct Signs {
    /// For how long it has not been heard, if that is longer than it should be.
    silent: Duration,
    /// After how long it is either heard again, or somebody else may have the session.
    again_after: Duration,
}

impl From<Choice> for Whereto {
    fn from(choice: Choice) -> Self {
        let passed = choice.passed.into_iter().map(|(region, why)| wire::Passed {
            region: region.to_string(),
            why: why.as_str().to_owned(),
        });
        Self {
            endpoint: choice.endpoint,
            runtime: choice.runtime,
            region: choice.region,
            view: choice.view,
            placing: choice.placing.as_str(),
            passed: passed.collect(),
            outage: choice.outage,
            signs: Signs::default(),
        }
    }
}

impl Plane {
    /// A tenant's session. One of another tenant is as if it were not there (F-114).
    async fn placement_of(
        &self,
        tenant: &TenantId,
        session: &SessionId,
    ) -> Result<(Placement, Compare), Failure> {
        let key = keys::placement(session);
        let (found, entry) = self.read::<Placement>(&key).await?;
        let found = found.filter(|it| it.binding.tenant == *tenant);
        let found = found.ok_or(Refusal::Unknown)?;
        Ok((found, Compare::unchanged(&key, entry.as_ref())))
    }

    async fn status(&self, placement: &Placement) -> Result<wire::SessionStatus, Failure> {
        let (report, _) = self
            .read::<Report>(&keys::status(&placement.session))
            .await?;
        let holder = placement.spokesman();
        let alive = holder.is_some_and(|holder| self.seems_alive(holder));
        let runtime = holder.and_then(|holder| self.runtime(&holder.runtime));
        let region = runtime.map(|it| it.description.region);
        let view = status::of(placement, report.as_ref(), alive, region);
        Ok(to::status(view, placement.binding.clone().into()))
    }

    async fn moved(
        &self,
        by: &Principal,
        tenant: &TenantId,
        session: &SessionId,
        order: &Revoke,
    ) -> Result<Decided<wire::SessionStatus>, Failure> {
        let (placement, unchanged) = self.placement_of(tenant, session).await?;
        let holder = placement.holder().map(|it| &it.runtime);
        if let Some(to) = order.to.as_ref().filter(|to| holder == Some(to)) {
            let why = format!(
                "the session is on `{to}` already: name another, or nobody for whoever is fit"
            );
            return Err(WireError::new("to", why).into());
        }
        let (txn, after) = Self::order(Some(&placement), unchanged, order)?;
        let operation = Operation::MoveSession.as_str();
        let detail = json!({
            "why": order.why,
            "from": placement.holder(),
            "to": order.to,
            "epoch": after.epoch,
        });
        let mut record = done(wall_clock(), by, operation, session.as_str(), detail);
        record.tenant = Some(tenant.clone());
        Ok(Decided {
            txn,
            record,
            answer: self.status(&after).await?,
        })
    }

    async fn reported(
        &self,
        by: &Holder,
        report: &StatusReport,
    ) -> Result<(Option<Txn>, ()), Failure> {
        let placement_key = keys::placement(&report.session);
        let (placement, entry) = self.read::<Placement>(&placement_key).await?;
        rspp_controlplane::authority::check(placement.as_ref(), by, report.epoch)?;
        let reason = report.reason.clone();
        let reason = reason.map(|it| it.chars().take(MAX_REASON).collect());
        let report_record = Report {
            phase: report.phase,
            at: wall_clock(),
            reason,
            epoch: report.epoch,
        };
        let txn = Txn::default()
            .when(Compare::unchanged(&placement_key, entry.as_ref()))
            .put(keys::status(&report.session), bytes(&report_record));
        Ok((Some(txn), ()))
    }

    async fn routed(&self, ask: &RouteAsk) -> Result<wire::Route, Failure> {
        let key = keys::placement(&ask.session);
        let (placement, _) = self.read::<Placement>(&key).await?;
        let target = match placement {
            Some(placement) if placement.binding.tenant != ask.tenant => {
                return Err(Refusal::Unknown.into());
            }
            Some(placement) => self.route_again(ask, &placement)?,
            None => self.route_new(ask).await?,
        };
        let now = wall_clock();
        let longest = self.settings().token_ttl;
        let ttl = ask.token_ttl.unwrap_or(longest);
        if ttl > longest {
            let what = format!(
                "is {} s: tokens are valid for at most {} s here",
                ttl.as_secs(),
                longest.as_secs()
            );
            return Err(WireError::new("token_ttl_seconds", what).into());
        }
        let issued = now.0 / 1_000;
        let claims = SessionClaims {
            jti: format!("{:032x}", rand::random::<u128>()),
            session: ask.session.clone(),
            tenant: ask.tenant.clone(),
            pipeline: target.pipeline.clone(),
            versions: target.versions,
            runtime: target.to.runtime.clone(),
            epoch: target.epoch,
            transport: ask.transport.clone(),
            iat: issued,
            exp: issued + ttl.as_secs(),
        };
        Ok(wire::Route {
            endpoint: Some(target.to.endpoint.into()),
            runtime: target.to.runtime.to_string(),
            region: target.to.region.to_string(),
            pipeline: target.pipeline.to_string(),
            why: target.why.to_owned(),
            token: Some(wire::SessionToken {
                token: self.signer()?.sign(&claims),
                id: claims.jti,
                expires_at_ms: claims.exp * 1_000,
            }),
            epoch: target.epoch.map_or(0, Epoch::get),
            decision: target.decision,
            routing_view_snapshot: target.to.view,
            version_resolution_snapshot: target.version_resolution,
            placing: target.to.placing.to_owned(),
            passed: target.to.passed,
            outage: target.to.outage.map(Into::into),
            silent_ms: millis(target.to.signs.silent),
            again_after_ms: millis(target.to.signs.again_after),
        })
    }

    /// Who dies is given sessions of its own until its lease has ended: the client is told when to ask again.
    fn signs(&self, by: &Holder) -> Signs {
        let silent_for = self.silent_for(&by.runtime).unwrap_or_default();
        let (beat, lease) = (self.settings().heartbeat, self.settings().term.kept());
        let is_late = fleet::presence(true, false, silent_for, beat) == Presence::Suspect;
        Signs {
            silent: if is_late { silent_for } else { Duration::ZERO },
            // It may have renewed for the last time just before it was to be heard next.
            again_after: (lease + beat).saturating_sub(silent_for).max(SOON),
        }
    }

    /// A session that was placed before: to whom holds it, if that one is alive; else anew, with what it
    /// was bound to.
    fn route_again(&self, ask: &RouteAsk, placement: &Placement) -> Result<Target, Failure> {
        let bound = &placement.binding;
        let target = |to: Whereto, epoch| Target {
            to,
            pipeline: bound.pipeline.clone(),
            versions: bound.versions(),
            why: "bound",
            epoch,
            decision: None,
            version_resolution: String::new(),
        };
        match &placement.standing {
            Standing::Ended { .. } => return Err(Refusal::Ended.into()),
            Standing::Held { by } if self.seems_alive(by) => {
                let runtime = self.runtime(&by.runtime);
                let runtime = runtime.ok_or_else(|| Failure::HolderGone(by.to_string()))?;
                let endpoints = runtime.description.endpoints.into_iter();
                let mut fitting = endpoints.filter(|it| it.transport == ask.transport);
                if let Some(endpoint) = fitting.next() {
                    let held = Whereto {
                        endpoint,
                        runtime: by.runtime.clone(),
                        region: runtime.description.region,
                        view: self.view()?.name(),
                        placing: "held",
                        passed: Vec::new(),
                        outage: None,
                        signs: self.signs(by),
                    };
                    return Ok(target(held, Some(placement.epoch)));
                }
            }
            Standing::Held { .. } | Standing::Revoking { .. } | Standing::Vacant { .. } => {}
        }
        let mut request = self.request(ask, &line_of(&bound.pipeline));
        let view = self.view()?;
        // Who is to have it next comes first; who lets go of it does not come again.
        if let Standing::Revoking { from, .. } = &placement.standing {
            request.except.insert(from.runtime.clone());
        }
        if let Some(reserved) = placement.reserved() {
            let mut only = view.clone();
            only.runtimes.retain(|id, _| id == reserved);
            if let Ok(choice) = routing::choose(&only, &request) {
                let reserved = Whereto {
                    placing: "reserved",
                    ..choice.into()
                };
                return Ok(target(reserved, None));
            }
        }
        let choice = routing::choose(&view, &request)?;
        self.sent(ask, &choice);
        Ok(target(choice.into(), None))
    }

    /// Counts where a session is sent; what is done about an outage is told the audit trail, once for each
    /// tenant.
    fn sent(&self, ask: &RouteAsk, choice: &Choice) {
        if !self.shared.tally.placed(&ask.tenant, &ask.session, choice) {
            return;
        }
        let passed = choice.passed.iter();
        let passed: BTreeMap<_, _> = passed.map(|(region, why)| (region, why.as_str())).collect();
        let detail = json!({
            "placing": choice.placing.as_str(),
            "outage": choice.outage,
            "passed": passed,
            "region": choice.region,
            "runtime": choice.runtime,
            "view": choice.view,
        });
        let name = ask.session.as_str();
        let mut record = Record::automatic(wall_clock(), "outage_answered", name, detail);
        record.tenant = Some(ask.tenant.clone());
        self.note(Note::happened(record));
    }

    async fn route_new(&self, ask: &RouteAsk) -> Result<Target, Failure> {
        let asked = ask.pipeline.as_deref();
        let (pipeline, why, version_resolution) =
            self.resolved(&ask.tenant, &ask.session, asked)?;
        let decision = self.decision(&ask.tenant, &line_of(&pipeline)).await;
        if decision.outcome != OutcomeKind::Admit {
            self.shared.tally.decided(&ask.tenant, &decision);
            return Err(Failure::NotAdmitted(Box::new(decision)));
        }
        let request = self.request(ask, &line_of(&pipeline));
        let choice = routing::choose(&self.view()?, &request)?;
        self.sent(ask, &choice);
        Ok(Target {
            to: choice.into(),
            versions: self.versions(&ask.tenant, &ask.session, &pipeline),
            pipeline,
            why,
            epoch: None,
            decision: Some(to::decision(&decision)),
            version_resolution,
        })
    }

    fn request(&self, ask: &RouteAsk, line: &str) -> routing::Request {
        routing::Request {
            tenant: ask.tenant.clone(),
            session: ask.session.clone(),
            transport: ask.transport.clone(),
            latencies_ms: ask.latencies_ms.clone(),
            needs: ask.needs.clone(),
            except: ask.except.clone(),
            answers: self
                .governance()
                .outages
                .answers(&ask.tenant, line)
                .to_vec(),
        }
    }
}
