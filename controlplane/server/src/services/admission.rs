//! Whether a tenant may open another session (F-098), and the rules of everybody.

use prost::Message as _;
use rspp_controlplane::{
    access::{Operation, Principal},
    admission::{self, Usage},
    governance::Governance,
    keys,
    registry::VersionName,
    rollout::Proposed,
    routing::Residency,
    store::{Compare, Entry, Txn, bytes},
};
use rspp_controlplane_api::{
    Beyond, WireError, text,
    wire::{self, admission_server::Admission},
};
use rspp_proto::TenantId;
use serde_json::json;
use tonic::{Request, Response, Status};

use super::rollouts::{proposal, proposing};
use crate::{
    audit::done,
    commit::{Asked, Decided},
    failure::Failure,
    plane::{Plane, wall_clock},
    wire as to,
};

pub(crate) struct AdmissionService(pub(crate) Plane);

/// Largest document of rules, in bytes.
const MAX_DOCUMENT: usize = 256 * 1024;

#[tonic::async_trait]
impl Admission for AdmissionService {
    async fn evaluate(
        &self,
        request: Request<wire::EvaluateRequest>,
    ) -> Result<Response<wire::Decision>, Status> {
        let tenant = tenant(&request.get_ref().tenant)?;
        self.0
            .admit(&request, Operation::Admit, Some(&tenant), "admission")?;
        let line = request.into_inner().line;
        let decision = self.0.decision(&tenant, &line).await;
        Ok(Response::new(to::decision(&decision)))
    }

    async fn get_usage(
        &self,
        request: Request<wire::GetUsageRequest>,
    ) -> Result<Response<wire::Usage>, Status> {
        let tenant = tenant(&request.get_ref().tenant)?;
        self.0
            .admit(&request, Operation::Admit, Some(&tenant), "usage")?;
        let (usage, _) = self.0.read::<Usage>(&keys::usage(&tenant)).await?;
        let (usage, now) = (usage.unwrap_or_default(), wall_clock());
        Ok(Response::new(wire::Usage {
            open: usage.open,
            opened_per_minute: usage.opened.within(now),
            tokens_per_minute: usage.tokens.within(now),
        }))
    }

    async fn count_usage(
        &self,
        request: Request<wire::ReportUsageRequest>,
    ) -> Result<Response<wire::ReportUsageResponse>, Status> {
        let plane = &self.0;
        let tenant = tenant(&request.get_ref().tenant)?;
        let by = plane.admit(&request, Operation::Admit, Some(&tenant), "usage")?;
        let message = request.into_inner();
        if message.request_id.is_empty() {
            let missing = WireError::new("request_id", "is missing: counting twice must be told");
            return Err(Failure::from(missing).into());
        }
        plane
            .spend_once(&by, &message.request_id, &tenant, message.tokens)
            .await?;
        let beyond = plane.beyond_tokens(&tenant, &message.pipeline).await?;
        Ok(Response::new(wire::ReportUsageResponse {
            beyond: beyond.map(Into::into),
        }))
    }

    async fn get_governance(
        &self,
        request: Request<wire::GetGovernanceRequest>,
    ) -> Result<Response<wire::Governance>, Status> {
        self.0
            .admit(&request, Operation::Govern, None, "governance")?;
        let (found, _) = self.0.read_governance().await?;
        Ok(Response::new(answer(&found)))
    }

    async fn set_governance(
        &self,
        request: Request<wire::SetGovernanceRequest>,
    ) -> Result<Response<wire::Governance>, Status> {
        let plane = &self.0;
        let by = plane.admit(&request, Operation::Govern, None, "governance")?;
        let message = request.into_inner();
        if message.document.len() > MAX_DOCUMENT {
            return Err(Failure::TooLarge {
                what: "document",
                limit: MAX_DOCUMENT,
            }
            .into());
        }
        let wanted: Governance = serde_saphyr::from_str(&message.document)
            .map_err(|error| Failure::from(WireError::new("document", error)))?;
        wanted
            .check()
            .map_err(|error| Failure::from(WireError::new("document", error)))?;
        plane.may_keep(&wanted.residency)?;
        let encoded = message.encode_to_vec();
        let asked = Asked {
            by: &by,
            operation: Operation::Govern.as_str(),
            subject: "governance",
            id: &message.request_id,
            message: &encoded,
        };
        let answer = plane
            .change(asked, || plane.governed(&by, &wanted, message.if_version))
            .await?;
        Ok(Response::new(answer))
    }
}

impl Plane {
    /// Whether session data may be kept by this control plane at all, of those whom a rule names (F-168).
    fn may_keep(&self, residency: &Residency) -> Result<(), Failure> {
        let Some(region) = &self.settings().region else {
            return Ok(());
        };
        let mut tenants = residency.tenants.keys();
        let Some(tenant) = tenants.find(|it| !residency.allows(it, region)) else {
            return Ok(());
        };
        let what = format!(
            "residency.tenants: {tenant}: session data is kept in {region} by this control plane; allow that, \
             or have {tenant} served by a control plane elsewhere"
        );
        Err(WireError::new("document", what).into())
    }
}

fn tenant(name: &str) -> Result<TenantId, Failure> {
    Ok(text("tenant", name)?)
}

/// Fewer approvals have to be approved themselves, and nothing that was not looked at comes with them (F-165).
fn only_approvals(before: &Governance, wanted: &Governance) -> Result<Proposed, Failure> {
    let mut else_equal = Governance {
        approvals: before.approvals.clone(),
        ..wanted.clone()
    };
    // It is given when they are set.
    else_equal.admission.version = before.admission.version;
    if else_equal == *before {
        let approvals = wanted.approvals.clone();
        return Ok(Proposed::Approvals { approvals });
    }
    let (now, wanted) = (before.approvals.approvals, wanted.approvals.approvals);
    let what = format!(
        "approvals.approvals: {now} are in force and {wanted} asked for, which has to be approved: change that by \
         itself (`rspp rules approvals {wanted}`), or leave it at {now} here"
    );
    Err(WireError::new("document", what).into())
}

fn answer(governance: &Governance) -> wire::Governance {
    wire::Governance {
        document: serde_json::to_string_pretty(governance).expect("rules are plain data"),
        version: governance.version(),
        proposal: None,
    }
}

impl Plane {
    pub(crate) async fn read_governance(&self) -> Result<(Governance, Option<Entry>), Failure> {
        let (found, entry) = self.read::<Governance>(&keys::governance()).await?;
        Ok((found.unwrap_or_default(), entry))
    }

    async fn governed(
        &self,
        by: &Principal,
        wanted: &Governance,
        if_version: u64,
    ) -> Result<Decided<wire::Governance>, Failure> {
        let (before, entry) = self.read_governance().await?;
        if if_version != 0 && if_version != before.version() {
            return Err(Failure::VersionConflict {
                expected: if_version,
                found: before.version(),
            });
        }
        let key = keys::governance();
        if before.approvals.is_lowered_by(&wanted.approvals) {
            let wait = only_approvals(&before, wanted)?;
            let proposal = proposal(by, wait, before.version());
            let detail = json!({ "proposal": proposal.id, "approvals": wanted.approvals });
            let txn = Txn::default().when(Compare::unchanged(&key, entry.as_ref()));
            return Ok(Decided {
                txn: proposing(txn, &proposal),
                record: done(wall_clock(), by, "rules_propose", "governance", detail),
                answer: wire::Governance {
                    proposal: Some(to::proposal(proposal)),
                    ..answer(&before)
                },
            });
        }
        let after = wanted.clone().following(&before);
        let detail = json!({ "version": after.version(), "rules": after });
        Ok(Decided {
            txn: Txn::default()
                .when(Compare::unchanged(&key, entry.as_ref()))
                .put(key, bytes(&after)),
            record: done(
                wall_clock(),
                by,
                Operation::Govern.as_str(),
                "governance",
                detail,
            ),
            answer: answer(&after),
        })
    }

    /// What stands against further turns of a tenant with that pipeline (F-050).
    async fn beyond_tokens(
        &self,
        tenant: &TenantId,
        pipeline: &str,
    ) -> Result<Option<Beyond>, Failure> {
        let policy = self.governance().admission;
        let name = VersionName::new(pipeline);
        let line = name.as_ref().map_or(pipeline, VersionName::line);
        let (usage, _) = self.read::<Usage>(&keys::usage(tenant)).await?;
        let usage = usage.unwrap_or_default();
        let beyond = admission::beyond_tokens(&policy, tenant, line, &usage, wall_clock());
        Ok(beyond.map(|(over, wait)| Beyond { over, wait }))
    }

    /// Whether a tenant may open another session. A store that does not answer is no error here: what is
    /// done then was chosen, and is on the record.
    pub(crate) async fn decision(&self, tenant: &TenantId, line: &str) -> admission::Decision {
        let read = self.read::<Usage>(&keys::usage(tenant)).await;
        let usage = match read {
            Ok((usage, _)) => Some(usage.unwrap_or_default()),
            Err(failure) => {
                tracing::warn!(%failure, "what a tenant uses cannot be read");
                None
            }
        };
        let policy = self.governance().admission;
        admission::admit(&policy, tenant, line, usage.as_ref(), wall_clock())
    }
}
