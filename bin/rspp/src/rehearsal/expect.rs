//! What a scenario expects, and what is found instead.

use std::collections::{BTreeMap, BTreeSet};

use rspp_host::{
    CaptureEnd,
    report::{SessionReport, TurnReport},
};
use rspp_proto::{
    TurnId, TurnNumber,
    abi::{ControlSignal, Signal},
};
use rspp_timeline::Entry;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::Value;

use super::measures::ExpectedMeasure;

/// What a call is expected to come to. What is left out may be anything.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Expected {
    /// A part of why the call is not taken at all.
    pub(crate) refused: Option<String>,
    /// All turns, in order.
    pub(crate) turns: Option<Vec<ExpectedTurn>>,
    /// Intents that did not become turns.
    pub(crate) refused_turns: Option<u64>,
    /// Moves that were asked for and could not be made, by their code.
    pub(crate) refused_moves: Option<BTreeMap<String, u64>>,
    /// These signals, in this order; others may come between.
    pub(crate) signals: Vec<Pattern>,
    /// So many of these signals in all.
    pub(crate) counts: BTreeMap<Signal, usize>,
    /// None of these.
    pub(crate) never: Vec<Pattern>,
    /// Gaps that the user hears in the agent's speech.
    pub(crate) gaps: Option<u64>,
    /// What is not as it should be, by its reason.
    pub(crate) degraded: Option<Vec<String>>,
    /// A part of why the session ended.
    pub(crate) ended: Option<String>,
    /// What each capture of debug events came to, in the order in which they were begun.
    pub(crate) captures: Option<Vec<ExpectedCapture>>,
    /// What the call measures of itself, if `observe` has it do so.
    pub(crate) measures: Vec<ExpectedMeasure>,
}

/// What a capture is expected to come to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpectedCapture {
    /// Which bound ended it.
    pub(crate) ends: CaptureEnd,
    /// So many events, those included that came too fast to be read.
    #[serde(default)]
    pub(crate) events: Option<u64>,
}

/// What a turn is expected to come to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ExpectedTurn {
    /// `commit`, or the reason of the abort.
    pub(crate) ends: Option<String>,
    /// What the user said.
    pub(crate) user: Option<String>,
    /// What was heard of the reply, whole.
    pub(crate) heard: Option<String>,
    /// What was heard of the reply at least, or at most when it was cut.
    pub(crate) heard_begins: Option<String>,
    /// Values of its frozen plan by path, as `budgets/turn_budget_ms`.
    pub(crate) plan: BTreeMap<String, Value>,
    /// The one rate that its audio went out in, in hertz.
    pub(crate) carried_at: Option<u32>,
    /// From the end of the user's speech to the reply's first audio, in milliseconds.
    pub(crate) first_audio_ms: Option<Between>,
}

/// Bounds of a number, themselves included.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Between {
    pub(super) at_least: Option<f64>,
    pub(super) at_most: Option<f64>,
}

impl Between {
    pub(super) fn holds(self, value: f64) -> bool {
        self.at_least.is_none_or(|least| value >= least)
            && self.at_most.is_none_or(|most| value <= most)
    }
}

impl std::fmt::Display for Between {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.at_least, self.at_most) {
            (Some(least), Some(most)) => write!(f, "{least} to {most}"),
            (Some(least), None) => write!(f, "at least {least}"),
            (None, Some(most)) => write!(f, "at most {most}"),
            (None, None) => f.write_str("some"),
        }
    }
}

/// A signal, with what it has to say: `provider_switch`, or `2: abort cancelled` for the turn and a part
/// of its wording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    turn: Option<u32>,
    signal: Signal,
    reason: String,
    text: String,
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(D::Error::custom)
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        let (turn, rest) = match text.split_once(": ") {
            Some((turn, rest)) => match turn.parse() {
                Ok(turn) => (Some(turn), rest),
                Err(_) => (None, text),
            },
            None => (None, text),
        };
        let (name, reason) = rest.split_once(' ').unwrap_or((rest, ""));
        let signal = Signal::ALL.iter().find(|signal| signal.as_str() == name);
        let signal = *signal.ok_or_else(|| format!("`{name}` is no signal"))?;
        Ok(Self {
            turn,
            signal,
            reason: reason.trim().to_owned(),
            text: text.to_owned(),
        })
    }

    fn matches(&self, signal: &ControlSignal) -> bool {
        let turn = self.turn.map(|turn| TurnNumber(turn).id());
        self.signal == signal.signal
            && (turn.is_none() || turn == signal.envelope.turn_id)
            && wording(signal).contains(&self.reason)
    }
}

/// What a signal says beside its name: why, on which edge or at which node, about which events.
pub(crate) fn wording(signal: &ControlSignal) -> String {
    let envelope = &signal.envelope;
    let reason = signal.reason.as_ref().map(ToString::to_string);
    let edge = envelope.edge_id.as_ref().map(ToString::to_string);
    let node = envelope.node_id.as_ref().map(ToString::to_string);
    let range = signal.seq_range.as_ref();
    let range = range.map(|range| format!("{}..{}", range.start, range.end));
    let parts = [reason, edge.or(node), range].into_iter().flatten();
    parts.collect::<Vec<_>>().join(" ")
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    /// What should be.
    pub(crate) expected: String,
    /// What is instead; nothing if it holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) found: Option<String>,
}

impl Finding {
    pub(crate) fn holds(&self) -> bool {
        self.found.is_none()
    }

    /// Whether `holds`; if not, what was found.
    pub(super) fn of(
        expected: impl Into<String>,
        holds: bool,
        found: impl FnOnce() -> String,
    ) -> Self {
        Self {
            expected: expected.into(),
            found: (!holds).then(found),
        }
    }

    /// Whether a call is refused with these words, by what it was refused with.
    pub(super) fn refused(part: &str, found: &str) -> Self {
        let expected = format!("refused: {part}");
        Self::of(expected, found.contains(part), || found.to_owned())
    }
}

impl Expected {
    /// Compares with what became of the call.
    pub(super) fn check(&self, report: &SessionReport, signals: &[ControlSignal]) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(turns) = &self.turns {
            findings.extend(check_turns(turns, &report.turns));
        }
        if let Some(refused) = &self.refused_moves {
            findings.push(Finding::of(
                format!("moves refused: {refused:?}"),
                *refused == report.moves_refused,
                || format!("{:?}", report.moves_refused),
            ));
        }
        if let Some(refused) = self.refused_turns {
            findings.push(Finding::of(
                format!("{refused} intents refused"),
                report.refused == refused,
                || report.refused.to_string(),
            ));
        }
        let mut rest = signals.iter();
        for pattern in &self.signals {
            let found = rest.any(|signal| pattern.matches(signal));
            findings.push(Finding::of(
                format!("signal `{}`, in this order", pattern.text),
                found,
                || format!("not among {}", told(signals, pattern.signal)),
            ));
            if !found {
                break; // What comes after it cannot be placed any more.
            }
        }
        for (signal, count) in &self.counts {
            let found = signals.iter().filter(|it| it.signal == *signal).count();
            findings.push(Finding::of(
                format!("{count} of `{signal}`"),
                found == *count,
                || found.to_string(),
            ));
        }
        for pattern in &self.never {
            let found = signals.iter().any(|signal| pattern.matches(signal));
            findings.push(Finding::of(
                format!("no `{}`", pattern.text),
                !found,
                || told(signals, pattern.signal),
            ));
        }
        if let Some(gaps) = self.gaps {
            let found = report.line.wire.map_or(0, |wire| wire.gaps);
            findings.push(Finding::of(
                format!("{gaps} gaps are heard"),
                found == gaps,
                || found.to_string(),
            ));
        }
        if let Some(degraded) = &self.degraded {
            let found: Vec<&str> = report
                .degraded
                .iter()
                .map(|it| it.reason.as_str())
                .collect();
            findings.push(Finding::of(
                format!("degraded by {degraded:?}"),
                found == *degraded,
                || format!("{found:?}"),
            ));
        }
        if let Some(ended) = &self.ended {
            findings.push(Finding::of(
                format!("ended because `{ended}`"),
                report.ended.contains(ended),
                || report.ended.clone(),
            ));
        }
        findings
    }
}

impl Expected {
    /// Compares the plans that turns ran with what is expected of them.
    pub(super) fn check_plans(&self, entries: &[Entry], turns: &[TurnReport]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (turn, expected) in self.numbered(turns) {
            for (path, wanted) in &expected.plan {
                let mut plans = entries.iter().rev().filter_map(|entry| match entry {
                    Entry::Plan(plan) if plan.turn_id == *turn => Some(plan),
                    _another_entry => None,
                });
                let found = plans.next().and_then(|plan| plan.plan.at(path));
                findings.push(Finding::of(
                    format!("{turn} runs with {path} {wanted}"),
                    found == Some(wanted),
                    || found.map_or_else(|| "no such value".to_owned(), ToString::to_string),
                ));
            }
        }
        findings
    }

    /// Compares how the line carried each turn with what is expected.
    pub(super) fn check_line(
        &self,
        rates: &BTreeMap<TurnNumber, BTreeSet<u32>>,
        turns: &[TurnReport],
    ) -> Vec<Finding> {
        let expected = self.numbered(turns);
        let expected = expected.filter_map(|(turn, it)| Some((turn, it.carried_at?)));
        expected
            .map(|(turn, rate)| {
                let found = rates.iter().find(|(number, _)| number.id() == *turn);
                let found = found.map(|(_, rates)| rates);
                Finding::of(
                    format!("{turn} is carried at {rate} Hz"),
                    found.is_some_and(|found| found.iter().eq([&rate])),
                    || format!("{found:?}"),
                )
            })
            .collect()
    }

    /// The turns that there were, in order; a number may be a guess's that came to nothing.
    fn numbered<'a>(
        &'a self,
        turns: &'a [TurnReport],
    ) -> impl Iterator<Item = (&'a TurnId, &'a ExpectedTurn)> {
        let expected = self.turns.iter().flatten();
        turns.iter().map(|turn| &turn.turn_id).zip(expected)
    }
}

/// What a capture came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FoundCapture {
    pub(super) ended: Option<CaptureEnd>,
    pub(super) events: u64,
}

/// Compares captures with what is expected of them.
pub(super) fn check_captures(expected: &[ExpectedCapture], found: &[FoundCapture]) -> Vec<Finding> {
    let count = Finding::of(
        format!("{} captures", expected.len()),
        expected.len() == found.len(),
        || found.len().to_string(),
    );
    let mut findings = vec![count];
    for (nth, (expected, found)) in (1..).zip(expected.iter().zip(found)) {
        let ends = expected.ends;
        findings.push(Finding::of(
            format!("capture {nth} ends by {ends:?}"),
            found.ended == Some(ends),
            || format!("{:?}", found.ended),
        ));
        let events = expected.events.unwrap_or(found.events);
        findings.push(Finding::of(
            format!("capture {nth} has {events} events"),
            found.events == events && events > 0,
            || found.events.to_string(),
        ));
    }
    findings
}

fn check_turns(expected: &[ExpectedTurn], found: &[TurnReport]) -> Vec<Finding> {
    let count = Finding::of(
        format!("{} turns", expected.len()),
        expected.len() == found.len(),
        || found.len().to_string(),
    );
    let mut findings = vec![count];
    for (expected, turn) in expected.iter().zip(found) {
        let id = &turn.turn_id;
        let ending = turn.reason.as_deref().unwrap_or(&turn.outcome);
        let mut check =
            |what: &str, wanted: Option<&String>, holds: &dyn Fn(&str) -> bool, is: &str| {
                if let Some(wanted) = wanted {
                    let text = format!("{id} {what} `{wanted}`");
                    findings.push(Finding::of(text, holds(wanted), || format!("`{is}`")));
                }
            };
        check(
            "ends by",
            expected.ends.as_ref(),
            &|it| it == ending,
            ending,
        );
        let user = turn.user_text.as_str();
        check("answers", expected.user.as_ref(), &|it| it == user, user);
        let heard = turn.agent_text_played.as_str();
        check(
            "is heard as",
            expected.heard.as_ref(),
            &|it| it == heard,
            heard,
        );
        check(
            "is heard from",
            expected.heard_begins.as_ref(),
            &|it| heard.starts_with(it) || it.starts_with(heard),
            heard,
        );
        if let Some(bounds) = expected.first_audio_ms {
            let first = turn.first_audio_ms;
            findings.push(Finding::of(
                format!("{id} is heard after {bounds} ms"),
                first.is_some_and(|first| bounds.holds(first)),
                || first.map_or_else(|| "never".to_owned(), |first| format!("{first} ms")),
            ));
        }
    }
    findings
}

fn told(signals: &[ControlSignal], kind: Signal) -> String {
    let of_kind = signals.iter().filter(|signal| signal.signal == kind);
    let told: Vec<String> = of_kind
        .map(|signal| format!("`{kind} {}`", wording(signal)).replace(" `", "`"))
        .collect();
    if told.is_empty() {
        format!("no `{kind}`")
    } else {
        told.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_names_a_signal_and_may_say_more() {
        let pattern = Pattern::parse("2: abort cancelled").unwrap();
        assert_eq!(pattern.turn, Some(2));
        assert_eq!(pattern.signal, Signal::Abort);
        assert_eq!(pattern.reason, "cancelled");
        assert_eq!(Pattern::parse("close").unwrap().turn, None);
        let from_to = Pattern::parse("provider_switch from=a to=b").unwrap();
        assert_eq!(from_to.reason, "from=a to=b");
        assert!(Pattern::parse("aborts").unwrap_err().contains("no signal"));
    }
}
