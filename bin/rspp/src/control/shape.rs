//! How answers look: as tables, and as JSON.

use rspp_controlplane_api::wire;
use rspp_proto::{Hex, WallClock, control::SessionPhase};
use serde_json::{Value, json};

/// Columns under their names, as wide as they have to be.
pub(crate) fn table<const N: usize>(names: [&str; N], rows: &[[String; N]]) -> String {
    if rows.is_empty() {
        return "nothing found\n".to_owned();
    }
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([names[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..N).map(width).collect();
    let line = |cells: Vec<&str>| {
        let cells = cells.iter().zip(&widths);
        let padded = cells.map(|(cell, width)| format!("{cell:<width$}"));
        let text = padded.collect::<Vec<_>>().join("  ");
        text.trim_end().to_owned() + "\n"
    };
    let upper = names.map(str::to_uppercase);
    let mut text = line(upper.iter().map(String::as_str).collect());
    for row in rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text
}

/// A moment in UTC, e.g. `2026-11-29 10:53:07Z`.
pub(crate) fn when(ms: u64) -> String {
    WallClock(ms).to_utc().replace('T', " ")
}

/// A message as programs read it.
pub(crate) trait Shape {
    /// Its fields by the names that the protocol gives them.
    fn shape(&self) -> Value;
}

/// One after the other.
pub(crate) fn json_of<T: Shape>(messages: &[T]) -> Value {
    messages.iter().map(Shape::shape).collect()
}

impl Shape for wire::Artifact {
    fn shape(&self) -> Value {
        let mut value = json!({
            "version": self.version,
            "hash": self.hash,
            "author": self.author,
            "created_at_ms": self.created_at_ms,
            "labels": self.labels,
        });
        if !self.source.is_empty() {
            value["source"] = json!(self.source);
        }
        value
    }
}

impl Shape for wire::Rollout {
    fn shape(&self) -> Value {
        let candidate = self.candidate.as_ref().map(|it| {
            let strategy = it.strategy.as_ref().and_then(|it| it.strategy.as_ref());
            let gate = match strategy {
                Some(wire::strategy::Strategy::Canary(canary)) => canary.gate.as_ref(),
                Some(_) | None => None,
            };
            json!({
                "version": it.version,
                "paused": it.paused,
                "since_ms": it.since_ms,
                "who": who(it),
                "gate": gate.map(Shape::shape),
            })
        });
        json!({
            "line": self.line,
            "stable": self.stable,
            "candidate": candidate,
            "history": self.history,
            "frozen": self.frozen,
            "generation": self.generation,
            "readings": self.readings.as_ref().map(Shape::shape),
        })
    }
}

impl Shape for wire::Gate {
    fn shape(&self) -> Value {
        json!({
            "min_sessions": self.min_sessions,
            "max_failed_per_10k": self.max_failed_per_10k,
            "max_first_audio_p95_ms": self.max_first_audio_p95_ms,
            "max_regression_percent": self.max_regression_percent,
        })
    }
}

impl Shape for wire::LineReadings {
    fn shape(&self) -> Value {
        let reading = |it: &wire::Reading| {
            json!({
                "sessions": it.sessions,
                "failed": it.failed,
                "first_audio_p95_ms": it.first_audio_p95_ms,
            })
        };
        let budget = self.budget.unwrap_or_default();
        let window = |it: Option<wire::BudgetWindow>| {
            let it = it.unwrap_or_default();
            json!({ "sessions": it.sessions, "failed": it.failed })
        };
        json!({
            "tried": self.tried,
            "candidate": self.candidate.as_ref().map(reading),
            "stable": self.stable.as_ref().map(reading),
            "budget": {
                "five_minutes": window(budget.five_minutes),
                "hour": window(budget.hour),
                "six_hours": window(budget.six_hours),
                "month": window(budget.month),
            },
            "burn_alert": self.burn_alert,
        })
    }
}

/// Who gets a candidate, in words.
pub(crate) fn who(candidate: &wire::Candidate) -> String {
    let who = whom(candidate.strategy.as_ref());
    if candidate.paused {
        format!("{who}, paused")
    } else {
        who
    }
}

fn whom(strategy: Option<&wire::Strategy>) -> String {
    use wire::strategy::Strategy;
    match strategy.and_then(|it| it.strategy.as_ref()) {
        Some(Strategy::Allowlist(list)) => list.tenants.join(", "),
        Some(Strategy::Percent(percent)) => format!("{percent} %"),
        Some(Strategy::Canary(canary)) => format!("canary {} %", canary.percent),
        None => "nobody".to_owned(),
    }
}

/// What is proposed, in words: whoever approves has to see it.
pub(crate) fn proposed(proposal: &wire::Proposal) -> String {
    use wire::change::Change;
    if let Some(approvals) = proposal.approvals {
        return format!("{} approvals", approvals.people);
    }
    let change = proposal.change.as_ref().and_then(|it| it.change.as_ref());
    match change {
        Some(Change::Direct(version)) => format!("{version} to everybody"),
        Some(Change::Try(it)) => format!("{} to {}", it.version, whom(it.strategy.as_ref())),
        Some(Change::Promote(_)) => "promote".to_owned(),
        Some(Change::Pause(_)) => "pause".to_owned(),
        Some(Change::Resume(_)) => "resume".to_owned(),
        Some(Change::RollBack(to)) if to.is_empty() => "roll back".to_owned(),
        Some(Change::RollBack(to)) => format!("roll back to {to}"),
        Some(Change::Freeze(_)) => "freeze".to_owned(),
        Some(Change::Thaw(_)) => "thaw".to_owned(),
        None => "unknown to this version of rspp".to_owned(),
    }
}

/// Of what it is, e.g. `policy greeter`.
pub(crate) fn subject(proposal: &wire::Proposal) -> String {
    let line = &proposal.line;
    match proposal.kind() {
        wire::Kind::Unspecified => "rules".to_owned(),
        wire::Kind::Pipeline => format!("pipeline {line}"),
        wire::Kind::Policy => format!("policy {line}"),
        wire::Kind::Providers => format!("providers {line}"),
        wire::Kind::Limits => format!("limits {line}"),
    }
}

impl Shape for wire::Proposal {
    fn shape(&self) -> Value {
        let approvals = self
            .approvals
            .map(|it| json!({ "approvals": it.people, "expires_after_ms": it.expires_after_ms }));
        json!({
            "id": self.id,
            "of": subject(self),
            "line": self.line,
            "change": proposed(self),
            "author": self.author,
            "at_ms": self.at_ms,
            "approved_by": self.approved_by,
            "state": self.state,
            "approvals": approvals,
        })
    }
}

impl Shape for wire::SessionStatus {
    fn shape(&self) -> Value {
        let binding = self.binding.clone().unwrap_or_default();
        json!({
            "session": self.session,
            "tenant": binding.tenant,
            "phase": phase(self),
            "reason": self.reason,
            "pipeline": binding.pipeline,
            "policy": binding.policy,
            "providers": binding.providers,
            "epoch": self.epoch,
            "runtime": self.runtime,
            "region": self.region,
            "since_ms": self.since_ms,
            "past": json_of(&self.past),
        })
    }
}

impl Shape for wire::Past {
    fn shape(&self) -> Value {
        let holder = self.holder.clone().unwrap_or_default();
        json!({
            "runtime": holder.runtime,
            "incarnation": holder.incarnation,
            "epoch": self.epoch,
            "how": self.how,
            "at_ms": self.at_ms,
        })
    }
}

impl Shape for wire::Outage {
    fn shape(&self) -> Value {
        json!({
            "modality": self.modality,
            "provider": self.provider,
            "alternate": self.alternate,
        })
    }
}

impl Shape for wire::Passed {
    fn shape(&self) -> Value {
        json!({ "region": self.region, "why": self.why })
    }
}

/// A provider that fails, in words.
pub(crate) fn failing(outage: &wire::Outage) -> String {
    let wire::Outage {
        modality,
        provider,
        alternate,
    } = outage;
    if alternate.is_empty() {
        format!("{modality} {provider}, nobody instead")
    } else {
        format!("{modality} {provider}, {alternate} instead")
    }
}

/// What becomes of the sessions of a runtime that goes, in a word.
pub(crate) fn drained_how(how: wire::DrainHow) -> &'static str {
    match how {
        wire::DrainHow::Unspecified => "unknown",
        wire::DrainHow::Move => "move",
        wire::DrainHow::Finish => "finish",
        wire::DrainHow::Wait => "wait",
    }
}

impl Shape for wire::DrainAccount {
    fn shape(&self) -> Value {
        let holder = self.holder.clone().unwrap_or_default();
        let sessions = self.sessions.iter().map(|it| {
            json!({
                "session": it.session,
                "tenant": it.tenant,
                "became": it.became,
                "to": it.to,
                "epoch": it.epoch,
                "why": it.why,
            })
        });
        let mut sums = serde_json::Map::new();
        for it in &self.sessions {
            let sum = sums.entry(it.became.clone()).or_insert_with(|| json!(0));
            *sum = json!(sum.as_u64().unwrap_or_default() + 1);
        }
        json!({
            "runtime": holder.runtime,
            "incarnation": holder.incarnation,
            "how": drained_how(self.how()),
            "by": self.by,
            "since_ms": self.since_ms,
            "alive": self.alive,
            "had": self.sessions.len(),
            "became": sums,
            "sessions": sessions.collect::<Vec<_>>(),
        })
    }
}

/// How a session goes, in a word.
pub(crate) fn phase(status: &wire::SessionStatus) -> &'static str {
    SessionPhase::try_from(status.phase()).map_or("unknown", SessionPhase::as_str)
}

impl Shape for wire::Runtime {
    fn shape(&self) -> Value {
        let holder = self.holder.clone().unwrap_or_default();
        let description = self.description.clone().unwrap_or_default();
        let load = self.load.clone().unwrap_or_default();
        json!({
            "runtime": holder.runtime,
            "incarnation": holder.incarnation,
            "region": description.region,
            "presence": self.presence,
            "draining": self.draining,
            "ready": load.ready,
            "overloaded": load.overloaded,
            "outages": json_of(&load.outages),
            "placed": self.placed,
            "capacity": description.capacity,
            "cpu_percent": load.cpu_percent,
            "build": description.build,
            "endpoints": description.endpoints.iter().map(|it| &it.url).collect::<Vec<_>>(),
        })
    }
}

impl Shape for wire::Region {
    fn shape(&self) -> Value {
        json!({
            "region": self.region,
            "duty": duty(self),
            "by_operator": self.by_operator,
            "well": self.well,
            "runtimes": self.runtimes,
            "dead": self.dead,
            "outages": json_of(&self.outages),
        })
    }
}

/// What is wanted of a region, in a word.
pub(crate) fn duty(region: &wire::Region) -> &'static str {
    match region.duty() {
        wire::RegionDuty::Unspecified => "unknown",
        wire::RegionDuty::Serving => "serving",
        wire::RegionDuty::Drain => "draining",
        wire::RegionDuty::Migrate => "migrating",
    }
}

impl Shape for wire::PublicKey {
    fn shape(&self) -> Value {
        let public = Hex(&self.public).to_string();
        json!({
            "kid": self.kid,
            "public": public,
            "added_ms": self.added_ms,
            "retires_ms": self.retires_ms,
            "signs": self.signs,
        })
    }
}

impl Shape for wire::AuditEntry {
    fn shape(&self) -> Value {
        let detail: Value = serde_json::from_str(&self.detail).unwrap_or_default();
        json!({
            "sequence": self.sequence,
            "at_ms": self.at_ms,
            "actor": self.actor,
            "role": self.role,
            "tenant": self.tenant,
            "operation": self.operation,
            "subject": self.subject,
            "outcome": self.outcome,
            "detail": detail,
            "hash": self.hash,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_in_utc() {
        assert_eq!(when(0), "1970-01-01 00:00:00Z");
        assert_eq!(when(1_709_210_096_999), "2024-02-29 12:34:56Z");
    }

    #[test]
    fn columns_line_up() {
        let rows = [["a", "bb"], ["ccc", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(["x", "long"], &rows), "X    LONG\na    bb\nccc\n");
        assert_eq!(table(["x"], &[]), "nothing found\n");
    }
}
