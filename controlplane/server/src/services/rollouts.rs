//! Which version new sessions get (F-093, F-100, F-165, NF-030).

use prost::Message as _;
use rspp_controlplane::{
    access::{Operation, Principal},
    audit::Record,
    keys,
    registry::{Kind, VersionName},
    rollout::{BurnAlert, Change, Proposal, ProposalState, Rollout},
    store::{Compare, Txn, bytes},
};
use rspp_controlplane_api::{
    WireError, optional, text,
    wire::{self, change_rollout_response::Outcome, rollouts_server::Rollouts},
};
use serde_json::json;
use tonic::{Request, Response, Status};

use crate::{
    audit::done,
    commit::{Asked, Decided},
    failure::Failure,
    plane::{Plane, wall_clock},
    wire as to,
};

pub(crate) struct RolloutsService(pub(crate) Plane);

#[tonic::async_trait]
impl Rollouts for RolloutsService {
    async fn get_rollout(
        &self,
        request: Request<wire::GetRolloutRequest>,
    ) -> Result<Response<wire::Rollout>, Status> {
        let line = request.get_ref().line.clone();
        self.0
            .admit(&request, Operation::ReadRollouts, None, &line)?;
        let kind: Kind = request.get_ref().kind().try_into().map_err(Failure::from)?;
        let (found, _) = self.0.read_rollout(kind, &line).await?;
        Ok(Response::new(to::rollout(found)))
    }

    async fn list_rollouts(
        &self,
        request: Request<wire::ListRolloutsRequest>,
    ) -> Result<Response<wire::ListRolloutsResponse>, Status> {
        self.0
            .admit(&request, Operation::ReadRollouts, None, "rollouts")?;
        let message = request.into_inner();
        let kind: Kind = message.kind().try_into().map_err(Failure::from)?;
        let prefix = keys::rollouts(kind);
        let page = self
            .0
            .page::<Rollout>(prefix, &message.page_token, message.page_size);
        let (rollouts, next_page_token) = page.await?;
        Ok(Response::new(wire::ListRolloutsResponse {
            rollouts: rollouts.into_iter().map(to::rollout).collect(),
            next_page_token,
        }))
    }

    async fn change_rollout(
        &self,
        request: Request<wire::ChangeRolloutRequest>,
    ) -> Result<Response<wire::ChangeRolloutResponse>, Status> {
        let plane = &self.0;
        let line = request.get_ref().line.clone();
        let change = to::read_change(request.get_ref().change.clone());
        // What makes things safer needs less.
        let operation = match &change {
            Ok(change) if change.is_retreat() => Operation::RollBack,
            Ok(_) | Err(_) => Operation::ChangeRollout,
        };
        let by = plane.admit(&request, operation, None, &line)?;
        let change = change.map_err(Failure::from)?;
        let message = request.into_inner();
        let wanted = Wanted {
            kind: message.kind().try_into().map_err(Failure::from)?,
            line: &line,
            change,
            reason: &message.reason,
            generation: message.if_generation,
        };
        let encoded = message.encode_to_vec();
        let asked = Asked {
            by: &by,
            operation: operation.as_str(),
            subject: &line,
            id: &message.request_id,
            message: &encoded,
        };
        let answer = plane
            .change(asked, || plane.changed_rollout(&by, &wanted))
            .await?;
        Ok(Response::new(answer))
    }

    async fn decide_proposal(
        &self,
        request: Request<wire::DecideProposalRequest>,
    ) -> Result<Response<wire::ChangeRolloutResponse>, Status> {
        let plane = &self.0;
        let id = request.get_ref().id.clone();
        let by = plane.admit(&request, Operation::Approve, None, &id)?;
        let message = request.into_inner();
        let encoded = message.encode_to_vec();
        let asked = Asked {
            by: &by,
            operation: Operation::Approve.as_str(),
            subject: &id,
            id: &message.request_id,
            message: &encoded,
        };
        let answer = plane
            .change(asked, || plane.decided_proposal(&by, &id, message.approve))
            .await?;
        Ok(Response::new(answer))
    }

    async fn list_proposals(
        &self,
        request: Request<wire::ListProposalsRequest>,
    ) -> Result<Response<wire::ListProposalsResponse>, Status> {
        self.0
            .admit(&request, Operation::ReadRollouts, None, "proposals")?;
        let message = request.into_inner();
        let prefix = keys::proposals();
        let page = self
            .0
            .page::<Proposal>(prefix, &message.page_token, message.page_size);
        let (mut proposals, next_page_token) = page.await?;
        if message.open_only {
            proposals
                .retain(|it| matches!(it.state, ProposalState::Waiting | ProposalState::Approved));
        }
        Ok(Response::new(wire::ListProposalsResponse {
            proposals: proposals.into_iter().map(to::proposal).collect(),
            next_page_token,
        }))
    }

    async fn report_readings(
        &self,
        request: Request<wire::ReportReadingsRequest>,
    ) -> Result<Response<wire::ReportReadingsResponse>, Status> {
        let plane = &self.0;
        let line = request.get_ref().line.clone();
        plane.admit(&request, Operation::ReportGate, None, &line)?;
        let message = request.into_inner();
        let kind: Kind = message.kind().try_into().map_err(Failure::from)?;
        let answer = plane
            .settle(|| plane.judged_rollout(kind, &line, &message))
            .await?;
        Ok(Response::new(answer))
    }

    async fn resolve(
        &self,
        request: Request<wire::ResolveRequest>,
    ) -> Result<Response<wire::ResolveResponse>, Status> {
        let line = request.get_ref().line.clone();
        self.0
            .admit(&request, Operation::ReadRollouts, None, &line)?;
        let message = request.into_inner();
        let read = |error: WireError| Failure::from(error);
        let kind: Kind = message.kind().try_into().map_err(read)?;
        let tenant = text("tenant", &message.tenant).map_err(read)?;
        let session = text("session", &message.session).map_err(read)?;
        let requested = optional::<VersionName>("requested", &message.requested).map_err(read)?;
        let (rollout, _) = self.0.read_rollout(kind, &line).await?;
        let found = rollout.resolve(&tenant, &session, requested.as_ref());
        let found = found.map_err(Failure::from)?;
        Ok(Response::new(wire::ResolveResponse {
            version: found.version.to_string(),
            why: found.why.as_str().to_owned(),
            snapshot: found.snapshot,
        }))
    }
}

/// A change as it was asked for.
struct Wanted<'a> {
    kind: Kind,
    line: &'a str,
    change: Change,
    reason: &'a str,
    generation: u64,
}

type Answered = Decided<wire::ChangeRolloutResponse>;

impl Plane {
    async fn read_rollout(&self, kind: Kind, line: &str) -> Result<(Rollout, Compare), Failure> {
        let key = keys::rollout(kind, line);
        let (found, entry) = self.read::<Rollout>(&key).await?;
        let found = found.ok_or_else(|| Failure::NotFound {
            what: "rollout",
            name: line.to_owned(),
        })?;
        Ok((found, Compare::unchanged(&key, entry.as_ref())))
    }

    async fn changed_rollout(
        &self,
        by: &Principal,
        wanted: &Wanted<'_>,
    ) -> Result<Answered, Failure> {
        let key = keys::rollout(wanted.kind, wanted.line);
        let (before, entry) = self.read::<Rollout>(&key).await?;
        let generation = before.as_ref().map_or(0, |it| it.generation);
        if wanted.generation != 0 && wanted.generation != generation {
            return Err(Failure::VersionConflict {
                expected: wanted.generation,
                found: generation,
            });
        }
        let mut txn = Txn::default().when(Compare::unchanged(&key, entry.as_ref()));
        if let Some(version) = wanted.change.version() {
            txn = txn.when(self.is_published(wanted.kind, version).await?);
        }
        let after = apply(before.as_ref(), wanted.kind, wanted.line, &wanted.change)?;
        let approvals = self.governance().approvals;
        let subject = format!("{}/{}", wanted.kind.as_str(), wanted.line);
        let change = json!(wanted.change);
        if approvals.approvals > 0 && !wanted.change.is_retreat() {
            let proposal = Proposal {
                id: format!("{:013}-{:08x}", wall_clock().0, rand::random::<u32>()),
                kind: wanted.kind,
                line: wanted.line.to_owned(),
                change: wanted.change.clone(),
                generation,
                author: by.actor.clone(),
                at: wall_clock(),
                approved_by: std::collections::BTreeSet::new(),
                state: ProposalState::Waiting,
            };
            let detail =
                json!({ "proposal": proposal.id, "change": change, "reason": wanted.reason });
            let new = keys::proposal(&proposal.id);
            return Ok(Decided {
                txn: txn
                    .when(Compare::Absent(new.clone()))
                    .put(new, bytes(&proposal)),
                record: done(wall_clock(), by, "rollout_propose", &subject, detail),
                answer: proposed(proposal),
            });
        }
        let mut record = changed(
            by,
            wanted.change.as_str(),
            &subject,
            before.as_ref(),
            &after,
        );
        record.detail["reason"] = json!(wanted.reason);
        Ok(Decided {
            txn: txn.put(key, bytes(&after)),
            record,
            answer: rolled_out(after),
        })
    }

    async fn decided_proposal(
        &self,
        by: &Principal,
        id: &str,
        approve: bool,
    ) -> Result<Answered, Failure> {
        let key = keys::proposal(id);
        let (found, entry) = self.read::<Proposal>(&key).await?;
        let mut proposal = found.ok_or_else(|| Failure::NotFound {
            what: "proposal",
            name: id.to_owned(),
        })?;
        let policy = self.governance().approvals;
        let now = wall_clock();
        let txn = Txn::default().when(Compare::unchanged(&key, entry.as_ref()));
        let subject = format!("{}/{}", proposal.kind.as_str(), proposal.line);
        let detail = json!({ "proposal": id });
        if !approve {
            proposal.reject(&policy, now)?;
            return Ok(Decided {
                txn: txn.put(key, bytes(&proposal)),
                record: done(now, by, "rollout_reject", &subject, detail),
                answer: proposed(proposal),
            });
        }
        proposal.approve(&by.actor, &policy, now)?;
        if proposal.state != ProposalState::Approved {
            return Ok(Decided {
                txn: txn.put(key, bytes(&proposal)),
                record: done(now, by, "rollout_approve", &subject, detail),
                answer: proposed(proposal),
            });
        }
        // The last approval that it needs carries it out.
        let rollout_key = keys::rollout(proposal.kind, &proposal.line);
        let (before, before_entry) = self.read::<Rollout>(&rollout_key).await?;
        let generation = before.as_ref().map_or(0, |it| it.generation);
        proposal.activate(&policy, generation, now)?;
        let after = apply(
            before.as_ref(),
            proposal.kind,
            &proposal.line,
            &proposal.change,
        )?;
        let operation = proposal.change.as_str();
        let mut record = changed(by, operation, &subject, before.as_ref(), &after);
        record.detail["proposal"] = json!(id);
        record.detail["approved_by"] = json!(proposal.approved_by);
        let txn = txn
            .when(Compare::unchanged(&rollout_key, before_entry.as_ref()))
            .put(key, bytes(&proposal))
            .put(rollout_key, bytes(&after));
        Ok(Decided {
            txn,
            record,
            answer: rolled_out(after),
        })
    }

    async fn judged_rollout(
        &self,
        kind: Kind,
        line: &str,
        message: &wire::ReportReadingsRequest,
    ) -> Result<(Option<Txn>, wire::ReportReadingsResponse), Failure> {
        let (before, compare) = self.read_rollout(kind, line).await?;
        let now = wall_clock();
        let subject = format!("{}/{line}", kind.as_str());
        let mut records: Vec<Record> = Vec::new();
        let mut after = before.clone();
        let mut breach = String::new();
        let tried = before.candidate.as_ref().map(|it| it.version.as_str());
        if tried == Some(message.candidate_version.as_str()) {
            let candidate = to::read_reading(message.candidate);
            let stable = to::read_reading(message.stable);
            if let Some((back, why)) = before.judge(candidate, stable, now) {
                breach = why.to_string();
                let what = json!({ "candidate": tried, "breach": why, "back_to": back.stable });
                records.push(Record::automatic(now, "automatic_rollback", &subject, what));
                after = back;
            }
        }
        let budget = self.governance().error_budget;
        let reading = message.budget.map(to::read_budget);
        let alert = reading.as_ref().and_then(|it| budget.alert(it));
        let freeze = reading.as_ref().and_then(|it| budget.freeze(it));
        if let Some(why) = freeze
            && after.frozen.is_none()
        {
            after = after.change(&Change::Freeze { why }, now)?;
            records.push(Record::automatic(
                now,
                "automatic_freeze",
                &subject,
                json!({ "why": why }),
            ));
        }
        let answer = wire::ReportReadingsResponse {
            rollout: Some(to::rollout(after.clone())),
            breach,
            burn_alert: match alert {
                None => String::new(),
                Some(BurnAlert::Slow) => "slow".to_owned(),
                Some(BurnAlert::Fast) => "fast".to_owned(),
            },
        };
        if records.is_empty() {
            return Ok((None, answer));
        }
        let txn = Txn::default()
            .when(compare)
            .put(keys::rollout(kind, line), bytes(&after));
        Ok((Some(self.with_audit(txn, records).await?), answer))
    }

    /// A version must be published to be rolled out, and stays so.
    async fn is_published(&self, kind: Kind, version: &VersionName) -> Result<Compare, Failure> {
        self.artifact(kind, version.as_str()).await?;
        Ok(Compare::Exists(keys::artifact(kind, version.as_str())))
    }
}

/// The first version of a line begins its rollout; all else changes one.
fn apply(
    before: Option<&Rollout>,
    kind: Kind,
    line: &str,
    change: &Change,
) -> Result<Rollout, Failure> {
    match (before, change) {
        (Some(before), _) => Ok(before.change(change, wall_clock())?),
        (None, Change::Direct { version }) if version.line() == line => {
            Ok(Rollout::first(kind, version.clone()))
        }
        (None, _) => Err(Failure::NotFound {
            what: "rollout",
            name: line.to_owned(),
        }),
    }
}

fn changed(
    by: &Principal,
    operation: &str,
    subject: &str,
    before: Option<&Rollout>,
    after: &Rollout,
) -> Record {
    let detail = json!({
        "from": before.map(|it| &it.stable),
        "to": after.stable,
        "candidate": after.candidate,
        "generation": after.generation,
    });
    done(wall_clock(), by, operation, subject, detail)
}

fn rolled_out(rollout: Rollout) -> wire::ChangeRolloutResponse {
    wire::ChangeRolloutResponse {
        outcome: Some(Outcome::Rollout(to::rollout(rollout))),
    }
}

fn proposed(proposal: Proposal) -> wire::ChangeRolloutResponse {
    wire::ChangeRolloutResponse {
        outcome: Some(Outcome::Proposal(to::proposal(proposal))),
    }
}
