//! The quality gates, over what real runs have recorded (gates.md §1).
//!
//! A gate whose data is missing fails: no turns, no cancel to measure, an anchor that a turn should
//! have. Percentiles are by nearest rank. What a release does with the verdict is for others.

use std::{collections::BTreeMap, fmt, time::Duration};

use rspp_proto::{
    NodeId, OutcomeClass, Payload, TurnId,
    abi::{EventRecord, Signal},
    spec::Modality,
};
use serde::Serialize;

use crate::{
    Entry, TerminalOutcome, TurnBaseline,
    verify::{Rule, Verifier},
};

/// What a report calls its own format.
pub const GATES_SCHEMA: &str = "rspp.gates.v1";

/// The note of a node that took longer to let go of cancelled work than it may (NF-003).
pub const SLOW_CANCEL: &str = "slow_cancel";
/// The note's field: from the cancel until the node let go, in milliseconds.
pub const AFTER_MS: &str = "after_ms";
/// The note's field: who serves the node, if anybody.
pub const PROVIDER_ID: &str = "provider_id";

/// Nodes that are told apart among the slow ones.
const MAX_SLOW: usize = 100;

/// Most violations that are told one by one.
const MAX_LISTED: usize = 100;

/// Gathers turns, recording by recording.
#[derive(Debug, Default)]
pub struct Gates {
    recordings: u64,
    accepted: u64,
    happy: u64,
    cancelled: u64,
    complete: u64,
    correct: u64,
    stale_outputs: u64,
    turn_open: Vec<Duration>,
    first_output: Vec<Duration>,
    cancel_fence: Vec<Duration>,
    end_to_end: Vec<Duration>,
    end_to_end_from_first_frame: Vec<Duration>,
    /// By node and who serves it.
    slow_cancels: BTreeMap<(NodeId, Option<String>), (u64, u64)>,
    violations: Vec<GateViolation>,
    unlisted: u64,
}

/// What the entries of one recording say about each of its turns.
#[derive(Debug, Default)]
struct Seen {
    opens: u32,
    ends: Vec<Signal>,
    baseline: Option<Box<TurnBaseline>>,
}

/// A gate of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// 1, NF-024: from the accepted proposal to `turn_open`.
    TurnOpenDecision,
    /// 2, NF-025: from `turn_open` to the first output, when all goes well.
    FirstOutput,
    /// 3, NF-026: from an accepted cancel to its fence.
    CancelFence,
    /// 4, NF-027: outputs of a stale epoch that were accepted.
    AuthoritySafety,
    /// 5, NF-028: accepted turns with complete OR-02 evidence.
    Evidence,
    /// 6, NF-029: accepted turns with one terminal, then close.
    Terminals,
    /// 7, NF-038: from the user's last audio to the reply's first.
    EndToEnd,
}

impl Gate {
    /// All gates, in order.
    pub const ALL: &[Self] = &[
        Self::TurnOpenDecision,
        Self::FirstOutput,
        Self::CancelFence,
        Self::AuthoritySafety,
        Self::Evidence,
        Self::Terminals,
        Self::EndToEnd,
    ];

    /// Its number in the specification.
    pub fn number(self) -> u8 {
        self as u8 + 1
    }

    /// Its name, as people say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TurnOpenDecision => "turn-open decision",
            Self::FirstOutput => "first output",
            Self::CancelFence => "cancel fence",
            Self::AuthoritySafety => "authority safety",
            Self::Evidence => "OR-02 completeness",
            Self::Terminals => "terminal correctness",
            Self::EndToEnd => "end to end",
        }
    }
}

/// Why a gate fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GateViolation {
    /// Which gate.
    pub gate: Gate,
    /// Which turn, if it is about one.
    pub turn_id: Option<TurnId>,
    /// What was found.
    pub detail: String,
}

/// One limit of a gate, and what was measured. Times are milliseconds, ratios 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Which gate.
    pub gate: Gate,
    /// What is measured, e.g. `turn_open_decision_p95_ms`.
    pub metric: &'static str,
    /// Nothing if there was nothing to measure.
    pub value: Option<f64>,
    /// The limit.
    pub limit: f64,
    /// How many turns went into it.
    pub samples: u64,
    /// Whether the value keeps to the limit; not if there is none.
    pub passed: bool,
}

/// A node that took longer than it may to let go of cancelled work, with whoever serves it (NF-003).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlowCancels {
    /// The node.
    pub node_id: NodeId,
    /// Who serves it, if anybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<String>,
    /// How often.
    pub times: u64,
    /// The longest that it took, in milliseconds.
    pub longest_ms: u64,
}

/// The gates' verdict over all recordings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GateReport {
    /// [`GATES_SCHEMA`].
    pub schema: &'static str,
    /// Recordings that were read.
    pub recordings: u64,
    /// Turns that opened.
    pub accepted_turns: u64,
    /// Of those, turns in which nothing went wrong and the agent spoke.
    pub happy_path_turns: u64,
    /// Turns in which a cancel was accepted.
    pub cancel_observed_turns: u64,
    /// Every limit.
    pub measured: Vec<Measured>,
    /// Beside gate 7: from the user's *first* audio, at the median; the user's own speech included.
    pub end_to_end_from_first_frame_p50_ms: Option<f64>,
    /// Beside gate 3: the same at p99, which has no limit of its own (NF-003).
    pub cancel_fence_p99_ms: Option<f64>,
    /// Who was slow to let go of cancelled work; the user had silence by then.
    pub slow_cancels: Vec<SlowCancels>,
    /// What is wrong, at most a hundred.
    pub violations: Vec<GateViolation>,
    /// Violations beyond those.
    pub violations_not_listed: u64,
    /// Whether every gate passed.
    pub passed: bool,
}

impl Gates {
    /// Takes in a whole recording.
    pub fn add<'a>(&mut self, entries: impl IntoIterator<Item = &'a Entry>) {
        self.recordings += 1;
        let mut turns: BTreeMap<TurnId, Seen> = BTreeMap::new();
        let mut verifier = Verifier::default();
        for entry in entries {
            verifier.observe(entry);
            match entry {
                Entry::Turn(baseline) => {
                    let seen = turns.entry(baseline.turn_id.clone()).or_default();
                    seen.baseline = Some(Box::new(TurnBaseline::clone(baseline)));
                }
                Entry::Signal(signal) => {
                    let Some(turn) = &signal.envelope.turn_id else {
                        continue;
                    };
                    match signal.signal {
                        Signal::TurnOpen => turns.entry(turn.clone()).or_default().opens += 1,
                        end @ (Signal::Commit | Signal::Abort | Signal::Close) => {
                            turns.entry(turn.clone()).or_default().ends.push(end);
                        }
                        _says_nothing_of_a_turns_life => {}
                    }
                }
                Entry::Event(event) => self.note(&event.record),
                Entry::Header(_)
                | Entry::Plan(_)
                | Entry::Outcome(_)
                | Entry::Transition(_)
                | Entry::Attempt(_)
                | Entry::Invocation(_)
                | Entry::Handoff(_)
                | Entry::Playout(_)
                | Entry::Level(_)
                | Entry::Dropped(_)
                | Entry::Journal(_)
                | Entry::Tool(_)
                | Entry::Opening(_)
                | Entry::Capture(_)
                | Entry::Footer(_) => {}
            }
        }
        for (turn, seen) in turns {
            self.add_turn(&turn, &seen);
        }
        for violation in verifier.finish() {
            let gate = match violation.rule {
                Rule::NoStaleOutput | Rule::EpochRises => Gate::AuthoritySafety,
                // A tool that begins for a cancelled turn is an output like any other (P1).
                Rule::NothingAfterFence | Rule::ToolBeginsInTime => Gate::CancelFence,
                Rule::EvidenceAgrees | Rule::PlanRecorded => Gate::Evidence,
                Rule::EndWithoutOpen | Rule::TransitionLegal | Rule::NothingAfterTerminal => {
                    Gate::Terminals
                }
                // Counted turn by turn, or of no gate.
                Rule::TerminalOnce
                | Rule::CloseAfterTerminal
                | Rule::OpenOnce
                | Rule::EvidencePresent
                | Rule::EvidenceComplete
                | Rule::SequenceRises
                | Rule::ToolEndOnce => continue,
            };
            let detail = format!("{}: {}", violation.rule, violation.detail);
            self.violate(gate, violation.turn_id.as_ref(), detail);
        }
    }

    fn note(&mut self, record: &EventRecord) {
        let (Some(Payload::Debug(note)), Some(node)) = (&record.payload, &record.envelope.node_id)
        else {
            return;
        };
        if note.message != SLOW_CANCEL {
            return;
        }
        let by = (node.clone(), note.fields.get(PROVIDER_ID).cloned());
        if self.slow_cancels.len() == MAX_SLOW && !self.slow_cancels.contains_key(&by) {
            return;
        }
        let took = note.fields.get(AFTER_MS).and_then(|ms| ms.parse().ok());
        let (times, longest) = self.slow_cancels.entry(by).or_default();
        *times += 1;
        *longest = took.unwrap_or(0).max(*longest);
    }

    fn add_turn(&mut self, turn: &TurnId, seen: &Seen) {
        if seen.opens == 0 {
            return; // Never accepted; that it neither ended nor closed is a rule's business.
        }
        self.accepted += 1;
        match seen.ends.as_slice() {
            [Signal::Commit | Signal::Abort, Signal::Close] if seen.opens == 1 => self.correct += 1,
            ends => {
                let ends: Vec<_> = ends.iter().map(|end| end.as_str()).collect();
                let detail = format!("opened {} times, then: {}", seen.opens, ends.join(", "));
                self.violate(Gate::Terminals, Some(turn), detail);
            }
        }
        let Some(baseline) = &seen.baseline else {
            self.violate(Gate::Evidence, Some(turn), "has no evidence".to_owned());
            return;
        };
        let missing = baseline.missing();
        if missing.is_empty() {
            self.complete += 1;
        } else {
            let detail = format!("lacks {}", missing.join(", "));
            self.violate(Gate::Evidence, Some(turn), detail);
        }
        let stale = baseline.accepted_stale_epoch_outputs;
        self.stale_outputs += stale;
        if stale > 0 {
            let detail = format!("{stale} outputs of a stale epoch were accepted");
            self.violate(Gate::AuthoritySafety, Some(turn), detail);
        }
        self.time(turn, baseline);
    }

    fn time(&mut self, turn: &TurnId, baseline: &TurnBaseline) {
        let anchors = &baseline.anchors;
        let mut lacks = Vec::new();
        let mut take = |gate: Gate, span: Option<Duration>, into: &mut Vec<Duration>| match span {
            Some(span) => into.push(span),
            None => lacks.push(gate),
        };
        take(
            Gate::TurnOpenDecision,
            anchors.turn_open_decision(),
            &mut self.turn_open,
        );
        if baseline.cancel.is_some() {
            self.cancelled += 1;
            take(
                Gate::CancelFence,
                anchors.cancel_fence(),
                &mut self.cancel_fence,
            );
        }
        if is_happy(baseline) {
            self.happy += 1;
            take(
                Gate::FirstOutput,
                anchors.first_output(),
                &mut self.first_output,
            );
            // A typed turn has no audio to count from.
            let spoken = anchors.transcript_final_ts.is_some() || anchors.speech_end_ts.is_some();
            if spoken {
                take(Gate::EndToEnd, anchors.end_to_end(), &mut self.end_to_end);
                let whole = anchors.end_to_end_from_first_frame();
                self.end_to_end_from_first_frame.extend(whole);
            }
        }
        for gate in lacks {
            let detail = "has no time for one end of what is measured".to_owned();
            self.violate(gate, Some(turn), detail);
        }
    }

    fn violate(&mut self, gate: Gate, turn: Option<&TurnId>, detail: String) {
        if self.violations.len() == MAX_LISTED {
            self.unlisted += 1;
            return;
        }
        self.violations.push(GateViolation {
            gate,
            turn_id: turn.cloned(),
            detail,
        });
    }

    /// The verdict.
    pub fn report(mut self) -> GateReport {
        let of_accepted =
            |part: u64| (self.accepted > 0).then(|| part as f64 / self.accepted as f64);
        let at_most = |gate, metric, value: Option<f64>, limit, samples| Measured {
            gate,
            metric,
            value,
            limit,
            samples,
            passed: value.is_some_and(|value| value <= limit),
        };
        let stale = (self.accepted > 0).then_some(self.stale_outputs as f64);
        let whole = |gate, metric, value: Option<f64>, samples| Measured {
            gate,
            metric,
            value,
            limit: 1.0,
            samples,
            passed: value.is_some_and(|value| value >= 1.0),
        };
        let (complete, correct) = (of_accepted(self.complete), of_accepted(self.correct));
        let accepted = self.accepted;
        let times = |samples: &mut Vec<Duration>| {
            samples.sort_unstable();
            samples.len() as u64
        };
        let counts = [
            times(&mut self.turn_open),
            times(&mut self.first_output),
            times(&mut self.cancel_fence),
            times(&mut self.end_to_end),
        ];
        times(&mut self.end_to_end_from_first_frame);
        let measured = vec![
            at_most(
                Gate::TurnOpenDecision,
                "turn_open_decision_p95_ms",
                nearest_rank(&self.turn_open, 95),
                120.0,
                counts[0],
            ),
            at_most(
                Gate::FirstOutput,
                "first_output_p95_ms",
                nearest_rank(&self.first_output, 95),
                1_500.0,
                counts[1],
            ),
            at_most(
                Gate::CancelFence,
                "cancel_fence_p95_ms",
                nearest_rank(&self.cancel_fence, 95),
                150.0,
                counts[2],
            ),
            at_most(
                Gate::AuthoritySafety,
                "stale_epoch_outputs_accepted",
                stale,
                0.0,
                accepted,
            ),
            whole(
                Gate::Evidence,
                "baseline_completeness_ratio",
                complete,
                accepted,
            ),
            whole(
                Gate::Terminals,
                "terminal_correctness_ratio",
                correct,
                accepted,
            ),
            at_most(
                Gate::EndToEnd,
                "end_to_end_p50_ms",
                nearest_rank(&self.end_to_end, 50),
                1_500.0,
                counts[3],
            ),
            at_most(
                Gate::EndToEnd,
                "end_to_end_p95_ms",
                nearest_rank(&self.end_to_end, 95),
                2_000.0,
                counts[3],
            ),
        ];
        for it in measured.iter().filter(|it| it.value.is_none()) {
            let detail = format!("no turn to take {} from", it.metric);
            self.violate(it.gate, None, detail);
        }
        let passed = self.violations.is_empty() && measured.iter().all(|it| it.passed);
        GateReport {
            schema: GATES_SCHEMA,
            recordings: self.recordings,
            accepted_turns: self.accepted,
            happy_path_turns: self.happy,
            cancel_observed_turns: self.cancelled,
            measured,
            end_to_end_from_first_frame_p50_ms: nearest_rank(&self.end_to_end_from_first_frame, 50),
            cancel_fence_p99_ms: nearest_rank(&self.cancel_fence, 99),
            slow_cancels: self
                .slow_cancels
                .into_iter()
                .map(
                    |((node_id, provider_id), (times, longest_ms))| SlowCancels {
                        node_id,
                        provider_id,
                        times,
                        longest_ms,
                    },
                )
                .collect(),
            violations: self.violations,
            violations_not_listed: self.unlisted,
            passed,
        }
    }
}

/// Whether the agent spoke and nothing went wrong on the way: no abort, no failed call.
fn is_happy(baseline: &TurnBaseline) -> bool {
    let calls = &baseline.invocation_outcomes;
    let all_well = calls
        .iter()
        .all(|call| call.outcome_class == OutcomeClass::Success && call.attempt_count == 1);
    let spoke = calls.iter().any(|call| call.modality == Modality::Tts);
    baseline.terminal_outcome == Some(TerminalOutcome::Commit)
        && baseline.cancel.is_none()
        && all_well
        && spoke
}

/// The percentile by nearest rank, `ceil(p·n)`, in milliseconds; of sorted samples.
fn nearest_rank(sorted: &[Duration], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    let at = sorted.get(rank.checked_sub(1)?)?;
    Some(at.as_secs_f64() * 1e3)
}

impl fmt::Display for GateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} turns of {} recordings: {} on the happy path, {} cancelled",
            self.accepted_turns, self.recordings, self.happy_path_turns, self.cancel_observed_turns
        )?;
        for it in &self.measured {
            let value = it
                .value
                .map_or_else(|| "missing".to_owned(), |value| format!("{value:.3}"));
            let verdict = if it.passed { "ok" } else { "FAILED" };
            writeln!(
                f,
                "{}  {:<21} {:<29} {:>10}  limit {:>6}  {:>6} turns  {verdict}",
                it.gate.number(),
                it.gate.name(),
                it.metric,
                value,
                it.limit,
                it.samples
            )?;
        }
        if let Some(p99) = self.cancel_fence_p99_ms {
            writeln!(f, "   cancel fence p99 {p99:.3} ms")?;
        }
        for it in &self.slow_cancels {
            let often = match it.times {
                1 => "once".to_owned(),
                times => format!("{times} times"),
            };
            write!(f, "   slow to let go: node {}", it.node_id)?;
            if let Some(provider) = &it.provider_id {
                write!(f, ", served by {provider}")?;
            }
            writeln!(f, ", {often}, {} ms at most", it.longest_ms)?;
        }
        for it in &self.violations {
            let turn = it.turn_id.as_ref().map_or("-", TurnId::as_str);
            writeln!(f, "gate {}  {turn}  {}", it.gate.number(), it.detail)?;
        }
        if self.violations_not_listed > 0 {
            writeln!(f, "… and {} more", self.violations_not_listed)?;
        }
        let verdict = if self.passed {
            "all gates pass"
        } else {
            "a gate FAILED"
        };
        writeln!(f, "{verdict}")
    }
}
