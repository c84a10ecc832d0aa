//! Between messages and what is decided with, where the runtime's client has no use for it.

use std::collections::BTreeSet;

use rspp_controlplane::{
    account::{Accounted, Became},
    admission::Decision,
    audit,
    authority::Past,
    fleet,
    registry::{Artifact, VersionName},
    rollout::{
        BurnAlert, Candidate, Change, ErrorBudget, Freeze, Gate, Proposal, ProposalState, Proposed,
        Reading, Readings, Rollout, Strategy, Window,
    },
    status,
};
use rspp_controlplane_api::{WireError, text, wire};
use rspp_proto::{SessionId, TenantId, WallClock, abi::OutcomeKind, control::Kind};

pub(crate) fn kind(kind: Kind) -> i32 {
    wire::Kind::from(kind).into()
}

pub(crate) fn artifact(artifact: Artifact, with_source: bool) -> wire::Artifact {
    wire::Artifact {
        kind: kind(artifact.kind),
        version: artifact.version.to_string(),
        hash: artifact.hash.to_string(),
        author: artifact.author.to_string(),
        created_at_ms: artifact.created_at.0,
        labels: artifact.labels,
        source: if with_source {
            artifact.source
        } else {
            String::new()
        },
    }
}

fn gate(gate: &Gate) -> wire::Gate {
    wire::Gate {
        min_sessions: gate.min_sessions,
        max_failed_per_10k: gate.max_failed_per_10k,
        max_first_audio_p95_ms: gate.max_first_audio_p95_ms,
        max_regression_percent: gate.max_regression_percent,
    }
}

fn names(tenants: &BTreeSet<TenantId>) -> Vec<String> {
    tenants.iter().map(ToString::to_string).collect()
}

fn strategy(it: Strategy) -> wire::Strategy {
    use wire::strategy::Strategy as To;
    let to = match it {
        Strategy::Allowlist { tenants } => To::Allowlist(wire::TenantList {
            tenants: names(&tenants),
        }),
        Strategy::Percentage { percent } => To::Percent(u32::from(percent)),
        Strategy::Canary {
            tenants,
            percent,
            gate: bounds,
        } => To::Canary(wire::Canary {
            tenants: names(&tenants),
            percent: u32::from(percent),
            gate: Some(gate(&bounds)),
        }),
    };
    wire::Strategy { strategy: Some(to) }
}

pub(crate) fn rollout(it: Rollout) -> wire::Rollout {
    let candidate = |it: Candidate| wire::Candidate {
        version: it.version.to_string(),
        strategy: Some(strategy(it.strategy)),
        paused: it.paused,
        since_ms: it.since.0,
    };
    let frozen = it.frozen.map(|why| match why {
        Freeze::BudgetSpent => "budget_spent",
        Freeze::FastBurn => "fast_burn",
        Freeze::Operator => "operator",
    });
    wire::Rollout {
        kind: kind(it.kind),
        line: it.line,
        stable: it.stable.to_string(),
        candidate: it.candidate.map(candidate),
        history: it.history.iter().map(ToString::to_string).collect(),
        frozen: frozen.unwrap_or_default().to_owned(),
        generation: it.generation,
        readings: None,
    }
}

fn reading(it: Reading) -> wire::Reading {
    wire::Reading {
        sessions: it.sessions,
        failed: it.failed,
        first_audio_p95_ms: it.first_audio_p95_ms,
    }
}

pub(crate) fn readings(it: &Readings, budget: &ErrorBudget, now: WallClock) -> wire::LineReadings {
    let spending = it.budget(now);
    let window = |it: Window| {
        Some(wire::BudgetWindow {
            sessions: it.sessions,
            failed: it.failed,
        })
    };
    let (tried, candidate, stable) = match it.trial() {
        Some((tried, candidate, stable)) => (
            tried.to_string(),
            Some(reading(candidate)),
            Some(reading(stable)),
        ),
        None => (String::new(), None, None),
    };
    wire::LineReadings {
        tried,
        candidate,
        stable,
        budget: Some(wire::BudgetReading {
            five_minutes: window(spending.five_minutes),
            hour: window(spending.hour),
            six_hours: window(spending.six_hours),
            month: window(spending.month),
        }),
        burn_alert: alert(budget.alert(&spending)).to_owned(),
    }
}

pub(crate) fn alert(it: Option<BurnAlert>) -> &'static str {
    match it {
        None => "",
        Some(BurnAlert::Slow) => "slow",
        Some(BurnAlert::Fast) => "fast",
    }
}

pub(crate) fn proposal(it: Proposal) -> wire::Proposal {
    let state = match it.state {
        ProposalState::Waiting => "waiting",
        ProposalState::Approved => "approved",
        ProposalState::Rejected => "rejected",
        ProposalState::Activated => "activated",
    };
    let (kind, line, change, approvals) = match it.what {
        Proposed::Rollout {
            kind: of,
            line,
            change: what,
        } => (kind(of), line, Some(change(what)), None),
        Proposed::Approvals { approvals } => {
            let approvals = wire::Approvals {
                people: approvals.approvals.into(),
                expires_after_ms: approvals.expires_after_ms,
            };
            let of = wire::Kind::Unspecified.into();
            (of, String::new(), None, Some(approvals))
        }
    };
    wire::Proposal {
        id: it.id,
        kind,
        line,
        change,
        approvals,
        author: it.author.to_string(),
        at_ms: it.at.0,
        approved_by: it.approved_by.iter().map(ToString::to_string).collect(),
        state: state.to_owned(),
        generation: it.generation,
    }
}

fn change(it: Change) -> wire::Change {
    use wire::change::Change as To;
    let nothing = wire::Nothing {};
    let to = match it {
        Change::Direct { version } => To::Direct(version.to_string()),
        Change::Try {
            version,
            strategy: who,
        } => To::Try(wire::Try {
            version: version.to_string(),
            strategy: Some(strategy(who)),
        }),
        Change::Promote => To::Promote(nothing),
        Change::Pause => To::Pause(nothing),
        Change::Resume => To::Resume(nothing),
        Change::RollBack { to } => To::RollBack(to.map_or_else(String::new, |it| it.to_string())),
        Change::Freeze { .. } => To::Freeze(nothing),
        Change::Thaw => To::Thaw(nothing),
    };
    wire::Change { change: Some(to) }
}

fn missing(field: &'static str) -> WireError {
    WireError::new(field, "is missing")
}

fn percent(number: u32) -> Result<u8, WireError> {
    u8::try_from(number).map_err(|_| WireError::new("percent", "is more than all"))
}

fn tenants(names: &[String]) -> Result<BTreeSet<TenantId>, WireError> {
    names.iter().map(|name| text("tenants", name)).collect()
}

fn read_strategy(it: Option<wire::Strategy>) -> Result<Strategy, WireError> {
    use wire::strategy::Strategy as From;
    let it = it.and_then(|it| it.strategy);
    Ok(match it.ok_or_else(|| missing("strategy"))? {
        From::Allowlist(list) => Strategy::Allowlist {
            tenants: tenants(&list.tenants)?,
        },
        From::Percent(number) => Strategy::Percentage {
            percent: percent(number)?,
        },
        From::Canary(canary) => Strategy::Canary {
            tenants: tenants(&canary.tenants)?,
            percent: percent(canary.percent)?,
            gate: canary.gate.map_or_else(Gate::default, |gate| Gate {
                min_sessions: gate.min_sessions,
                max_failed_per_10k: gate.max_failed_per_10k,
                max_first_audio_p95_ms: gate.max_first_audio_p95_ms,
                max_regression_percent: gate.max_regression_percent,
            }),
        },
    })
}

pub(crate) fn read_change(it: Option<wire::Change>) -> Result<Change, WireError> {
    use wire::change::Change as From;
    let version = |name: &str| text::<VersionName>("version", name);
    let it = it.and_then(|it| it.change);
    Ok(match it.ok_or_else(|| missing("change"))? {
        From::Direct(name) => Change::Direct {
            version: version(&name)?,
        },
        From::Try(it) => Change::Try {
            version: version(&it.version)?,
            strategy: read_strategy(it.strategy)?,
        },
        From::Promote(_) => Change::Promote,
        From::Pause(_) => Change::Pause,
        From::Resume(_) => Change::Resume,
        From::RollBack(to) if to.is_empty() => Change::RollBack { to: None },
        From::RollBack(to) => Change::RollBack {
            to: Some(version(&to)?),
        },
        From::Freeze(_) => Change::Freeze {
            why: Freeze::Operator,
        },
        From::Thaw(_) => Change::Thaw,
    })
}

pub(crate) fn decision(it: &Decision) -> wire::Decision {
    let outcome = match it.outcome {
        OutcomeKind::Admit => "admit",
        OutcomeKind::Defer => "defer",
        _no_other_is_decided_here => "reject",
    };
    let reached = it.reached;
    let retry_after = it.retry_after.unwrap_or_default().as_millis();
    wire::Decision {
        outcome: outcome.to_owned(),
        reason: it.reason.to_string(),
        degraded: it.degraded,
        retry_after_ms: u64::try_from(retry_after).unwrap_or(u64::MAX),
        limit: reached.map_or("", |it| it.limit.as_str()).to_owned(),
        allowed: reached.map_or(0, |it| it.allowed),
        observed: reached.map_or(0, |it| it.observed),
        source: it.source.as_str().to_owned(),
        mode: it.mode.as_str().to_owned(),
        counted: it.counted,
        snapshot: it.snapshot.clone(),
    }
}

pub(crate) fn status(view: status::View, binding: wire::Binding) -> wire::SessionStatus {
    wire::SessionStatus {
        session: view.session.to_string(),
        phase: wire::SessionPhase::from(view.phase).into(),
        reason: view.reason,
        binding: Some(binding),
        epoch: view.epoch.get(),
        runtime: view.runtime.map_or_else(String::new, |it| it.to_string()),
        region: view.region.map_or_else(String::new, |it| it.to_string()),
        since_ms: view.since.0,
        past: view.past.iter().map(past).collect(),
    }
}

fn past(it: &Past) -> wire::Past {
    wire::Past {
        holder: Some((&it.holder).into()),
        epoch: it.epoch.get(),
        how: it.how.as_str().to_owned(),
        at_ms: it.at.0,
    }
}

pub(crate) fn accounted(session: &SessionId, it: &Accounted) -> wire::Accounted {
    let (to, epoch, why) = match &it.became {
        Became::Remains => (None, 0, ""),
        Became::Moved { to, epoch } | Became::TakenOver { to, epoch } => {
            (Some(to), epoch.get(), "")
        }
        Became::Finished { why } => (None, 0, why.as_str()),
        Became::Waits { to } => (to.as_ref(), 0, ""),
        Became::Lost { why } => (None, 0, why.as_str()),
    };
    wire::Accounted {
        session: session.to_string(),
        tenant: it
            .tenant
            .as_ref()
            .map_or_else(String::new, ToString::to_string),
        became: it.became.as_str().to_owned(),
        to: to.map_or_else(String::new, ToString::to_string),
        epoch,
        why: why.to_owned(),
    }
}

pub(crate) fn runtime(sight: fleet::Sight, placed: u32) -> wire::Runtime {
    wire::Runtime {
        holder: Some((&sight.runtime.holder).into()),
        description: Some(sight.runtime.description.into()),
        load: Some(sight.load.into()),
        presence: sight.presence.as_str().to_owned(),
        draining: sight.runtime.duty == fleet::Duty::Draining,
        since_ms: sight.runtime.since.0,
        placed,
    }
}

pub(crate) fn entry(it: audit::Entry) -> wire::AuditEntry {
    let record = it.record;
    wire::AuditEntry {
        sequence: it.sequence,
        at_ms: record.at.0,
        actor: record.actor.map_or_else(String::new, |it| it.to_string()),
        role: record.role.map_or("", |it| it.as_str()).to_owned(),
        tenant: record.tenant.map_or_else(String::new, |it| it.to_string()),
        operation: record.operation,
        subject: record.subject,
        outcome: record.outcome.as_str().to_owned(),
        detail: record.detail.to_string(),
        before: it.before.to_string(),
        hash: it.hash.to_string(),
    }
}
