//! Which version new sessions get (F-093, F-100, F-165, NF-030).

use std::collections::BTreeMap;

use prost::Message as _;
use rspp_controlplane::{
    access::{Operation, Principal},
    audit::Record,
    governance::Governance,
    keys,
    registry::{Kind, VersionName},
    rollout::{
        ApprovalPolicy, Change, Proposal, ProposalState, Proposed, Readings, Reported, Rollout,
    },
    store::{Compare, Txn, bytes},
};
use rspp_controlplane_api::{
    WireError, optional, text,
    wire::{self, change_rollout_response::Outcome, rollouts_server::Rollouts},
};
use rspp_proto::{control::Holder, reading::VersionCount};
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
        Ok(Response::new(self.0.measured_rollout(found).await?))
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
        let (found, next_page_token) = page.await?;
        let mut rollouts = Vec::with_capacity(found.len());
        for rollout in found {
            rollouts.push(self.0.measured_rollout(rollout).await?);
        }
        Ok(Response::new(wire::ListRolloutsResponse {
            rollouts,
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
        let by = wire::Holder::required(request.get_ref().by.clone()).map_err(Failure::from)?;
        plane.admit_holder(&request, Operation::ReportGate, &by.runtime)?;
        let message = request.into_inner();
        if message.counts.len() > MAX_COUNTS {
            let what = "counts";
            let limit = MAX_COUNTS;
            return Err(Failure::TooLarge { what, limit }.into());
        }
        let reported = Reported::new(&by, message.number);
        let mut lines = BTreeMap::<(Kind, String), Vec<VersionCount>>::new();
        for count in message.counts {
            let count = VersionCount::try_from(count).map_err(Failure::from)?;
            // What was never published has no rollout.
            if let Ok(version) = VersionName::new(count.version.as_str()) {
                let line = (count.kind, version.line().to_owned());
                lines.entry(line).or_default().push(count);
            }
        }
        let mut judged = Vec::new();
        for ((kind, line), counts) in lines {
            let of_line = || plane.judged_rollout(&by, reported, (kind, &line), &counts);
            judged.extend(plane.settle(of_line).await?);
        }
        Ok(Response::new(wire::ReportReadingsResponse { judged }))
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

/// Versions of one report.
const MAX_COUNTS: usize = 1_000;

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
            let what = Proposed::Rollout {
                kind: wanted.kind,
                line: wanted.line.to_owned(),
                change: wanted.change.clone(),
            };
            let proposal = proposal(by, what, generation);
            let detail =
                json!({ "proposal": proposal.id, "change": change, "reason": wanted.reason });
            return Ok(Decided {
                txn: proposing(txn, &proposal),
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
        let line = (wanted.kind, wanted.line);
        let txn = self.forgiving(txn, line, &wanted.change).await?;
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
        let txn = Txn::default().when(Compare::unchanged(&key, entry.as_ref()));
        let (kind, line, change) = match proposal.what.clone() {
            Proposed::Rollout { kind, line, change } => (kind, line, change),
            Proposed::Approvals { approvals } => {
                return self
                    .decided_approvals(by, proposal, approvals, approve, txn)
                    .await;
            }
        };
        let policy = self.governance().approvals;
        let now = wall_clock();
        let subject = format!("{}/{line}", kind.as_str());
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
        let rollout_key = keys::rollout(kind, &line);
        let (before, before_entry) = self.read::<Rollout>(&rollout_key).await?;
        let generation = before.as_ref().map_or(0, |it| it.generation);
        proposal.activate(&policy, generation, now)?;
        let after = apply(before.as_ref(), kind, &line, &change)?;
        let mut record = changed(by, change.as_str(), &subject, before.as_ref(), &after);
        record.detail["proposal"] = json!(id);
        record.detail["approved_by"] = json!(proposal.approved_by);
        let txn = self.forgiving(txn, (kind, &line), &change).await?;
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

    /// Fewer approvals, decided by as many as are in force (F-165).
    async fn decided_approvals(
        &self,
        by: &Principal,
        mut proposal: Proposal,
        approvals: ApprovalPolicy,
        approve: bool,
        mut txn: Txn,
    ) -> Result<Answered, Failure> {
        let (rules, entry) = self.read_governance().await?;
        let (policy, now) = (&rules.approvals, wall_clock());
        let mut detail = json!({ "proposal": proposal.id });
        let operation = if approve {
            proposal.approve(&by.actor, policy, now)?;
            if proposal.state == ProposalState::Approved {
                // The last approval that it needs carries it out.
                proposal.activate(policy, rules.version(), now)?;
                let after = Governance {
                    approvals,
                    ..rules.clone()
                };
                let after = after.following(&rules);
                detail["approved_by"] = json!(proposal.approved_by);
                detail["version"] = json!(after.version());
                detail["rules"] = json!(after);
                let key = keys::governance();
                txn = txn
                    .when(Compare::unchanged(&key, entry.as_ref()))
                    .put(key, bytes(&after));
                Operation::Govern.as_str()
            } else {
                "rules_approve"
            }
        } else {
            proposal.reject(policy, now)?;
            "rules_reject"
        };
        Ok(Decided {
            txn: txn.put(keys::proposal(&proposal.id), bytes(&proposal)),
            record: done(now, by, operation, "governance", detail),
            answer: proposed(proposal),
        })
    }

    /// A rollout with what was measured of it.
    async fn measured_rollout(&self, rollout: Rollout) -> Result<wire::Rollout, Failure> {
        let key = keys::readings(rollout.kind, &rollout.line);
        let (readings, _) = self.read::<Readings>(&key).await?;
        let budget = self.governance().error_budget;
        let readings = readings.map(|it| to::readings(&it, &budget, wall_clock()));
        Ok(wire::Rollout {
            readings,
            ..to::rollout(rollout)
        })
    }

    /// Whoever lets a rollout go on lets go of what was spent of its budget too.
    async fn forgiving(
        &self,
        txn: Txn,
        (kind, line): (Kind, &str),
        change: &Change,
    ) -> Result<Txn, Failure> {
        if *change != Change::Thaw {
            return Ok(txn);
        }
        let key = keys::readings(kind, line);
        let (readings, entry) = self.read::<Readings>(&key).await?;
        let txn = txn.when(Compare::unchanged(&key, entry.as_ref()));
        let Some(mut readings) = readings else {
            return Ok(txn);
        };
        readings.forgive();
        Ok(txn.put(key, bytes(&readings)))
    }

    /// Counts what a runtime tells of a line, once, and does what follows from all that was told. Nothing is
    /// answered of a line that is not rolled out, nor of what was counted before.
    async fn judged_rollout(
        &self,
        by: &Holder,
        reported: Reported,
        (kind, line): (Kind, &str),
        counts: &[VersionCount],
    ) -> Result<(Option<Txn>, Option<wire::JudgedRollout>), Failure> {
        let key = keys::rollout(kind, line);
        let (Some(before), entry) = self.read::<Rollout>(&key).await? else {
            return Ok((None, None));
        };
        let told_key = keys::reported(&by.runtime, kind, line);
        let (told, told_entry) = self.read::<Reported>(&told_key).await?;
        if told.is_some_and(|told| told >= reported) {
            return Ok((None, None));
        }
        let readings_key = keys::readings(kind, line);
        let (readings, readings_entry) = self.read::<Readings>(&readings_key).await?;
        let mut readings = readings.unwrap_or_default();
        let (now, budget) = (wall_clock(), self.governance().error_budget);
        readings.count(&before, counts, now);
        let judged = readings.judge(&before, &budget, now);
        let subject = format!("{}/{line}", kind.as_str());
        let mut records: Vec<Record> = Vec::new();
        if let Some(why) = &judged.breach {
            let tried = before.candidate.as_ref().map(|it| it.version.as_str());
            tracing::warn!(%subject, tried, %why, "the gate is breached: the trial is ended");
            let measured = readings
                .trial()
                .map(|(_, candidate, stable)| json!({ "candidate": candidate, "stable": stable }));
            let what = json!({
                "candidate": tried,
                "breach": why,
                "why": why.to_string(),
                "back_to": judged.rollout.stable,
                "measured": measured,
            });
            records.push(Record::automatic(now, "automatic_rollback", &subject, what));
        }
        if let Some(why) = judged.freeze {
            tracing::warn!(%subject, %why, "nothing new is rolled out any more");
            let what = json!({ "why": why, "spent": readings.budget(now) });
            records.push(Record::automatic(now, "automatic_freeze", &subject, what));
        }
        let alert = to::alert(judged.alert);
        if !alert.is_empty() {
            tracing::warn!(%subject, alert, "the error budget burns");
        }
        let mut txn = Txn::default()
            .when(Compare::unchanged(&key, entry.as_ref()))
            .when(Compare::unchanged(&told_key, told_entry.as_ref()))
            .when(Compare::unchanged(&readings_key, readings_entry.as_ref()))
            .put(told_key, bytes(&reported))
            .put(readings_key, bytes(&readings));
        if !records.is_empty() {
            txn = txn.put(key, bytes(&judged.rollout));
            txn = self.with_audit(txn, records).await?;
        }
        let answer = wire::JudgedRollout {
            rollout: Some(to::rollout(judged.rollout)),
            breach: judged.breach.map_or_else(String::new, |it| it.to_string()),
            burn_alert: alert.to_owned(),
        };
        Ok((Some(txn), Some(answer)))
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

/// What somebody proposes, as nobody has decided it yet.
pub(crate) fn proposal(by: &Principal, what: Proposed, generation: u64) -> Proposal {
    let now = wall_clock();
    let id = format!("{:013}-{:08x}", now.0, rand::random::<u32>());
    Proposal::new(id, what, generation, by.actor.clone(), now)
}

/// Writes down what is proposed.
pub(crate) fn proposing(txn: Txn, proposal: &Proposal) -> Txn {
    let key = keys::proposal(&proposal.id);
    txn.when(Compare::Absent(key.clone()))
        .put(key, bytes(proposal))
}

fn proposed(proposal: Proposal) -> wire::ChangeRolloutResponse {
    wire::ChangeRolloutResponse {
        outcome: Some(Outcome::Proposal(to::proposal(proposal))),
    }
}
