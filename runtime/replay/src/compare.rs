//! Two recordings, set against each other (F-077).

use std::collections::{BTreeMap, BTreeSet};

use rspp_proto::{Monotonic, Payload, SessionId, TurnId};
use rspp_timeline::{Anchor, Captured, Entry, TurnBaseline};
use similar::{Algorithm, DiffOp, capture_diff_slices};

use crate::{
    Divergence, DivergenceClass as Class,
    divergence::{FINAL_LATENCY, TOTAL_LATENCY},
};

/// How far apart times may be.
#[derive(Clone, Debug, PartialEq)]
pub struct Tolerance {
    /// Between the same anchors of the same turn, in milliseconds from the turn's proposal.
    pub timing_ms: f64,
    /// Longest last attempt of a provider call of the candidate, in milliseconds (RD-005).
    pub final_attempt_latency_ms: Option<u64>,
    /// Longest provider call of the candidate over all attempts, in milliseconds (RD-005).
    pub total_invocation_latency_ms: Option<u64>,
    /// Which provider calls of the candidate these two hold for: a modality, a provider or a call each; all that it
    /// has if there is none. One that fits no call is a difference: nothing was measured (RD-005).
    pub latency_scopes: BTreeSet<String>,
}

impl Default for Tolerance {
    /// The specification's 15 ms (gates.md §1).
    fn default() -> Self {
        Self {
            timing_ms: 15.0,
            final_attempt_latency_ms: None,
            total_invocation_latency_ms: None,
            latency_scopes: BTreeSet::new(),
        }
    }
}

/// What of a recording is compared, turn by turn.
#[derive(Debug, Default)]
struct Trace {
    session: Option<SessionId>,
    /// Signals with their reasons, in order, of the whole session.
    said: Vec<Said>,
    /// What the nodes put out, where both recordings hold it: words, and what providers were asked.
    outputs: Vec<Said>,
    turns: BTreeMap<TurnId, TurnTrace>,
}

/// One signal, without when and under which id it was given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Said {
    turn: Option<TurnId>,
    signal: String,
    reason: String,
}

impl Said {
    fn scope(&self) -> String {
        self.turn
            .as_ref()
            .map_or_else(|| "trace".to_owned(), |turn| format!("turn:{turn}"))
    }

    fn text(&self) -> String {
        format!("{} {}", self.signal, self.reason).trim().to_owned()
    }
}

#[derive(Debug, Default)]
struct TurnTrace {
    plan: Option<String>,
    providers: Vec<String>,
    baseline: Option<Box<TurnBaseline>>,
}

/// Where `candidate` differs from `baseline`, in the order of the baseline.
///
/// Signals are aligned before they are compared, so that one that is missing is one difference and not
/// a hundred. The same signals in another order are a difference in order, not in outcome.
pub fn compare(baseline: &[Entry], candidate: &[Entry], tolerance: &Tolerance) -> Vec<Divergence> {
    let (a, b) = (Trace::of(baseline), Trace::of(candidate));
    let mut found = said(&a.said, &b.said);
    // Words of which only a hash is left say nothing beyond their session's own salt.
    if a.session == b.session {
        found.extend(said(&a.outputs, &b.outputs));
    }
    let turns: BTreeSet<&TurnId> = a.turns.keys().chain(b.turns.keys()).collect();
    let none = TurnTrace::default();
    for turn in turns {
        let (ours, theirs) = (a.turns.get(turn), b.turns.get(turn));
        let (ours, theirs) = (ours.unwrap_or(&none), theirs.unwrap_or(&none));
        compare_turn(turn, ours, theirs, tolerance, &mut found);
    }
    found.extend(slow(candidate, tolerance));
    found
}

/// Provider calls that took longer than they may (RD-005): a fault of the candidate alone.
fn slow(candidate: &[Entry], tolerance: &Tolerance) -> Vec<Divergence> {
    let limits = [
        (tolerance.final_attempt_latency_ms, FINAL_LATENCY),
        (tolerance.total_invocation_latency_ms, TOTAL_LATENCY),
    ];
    let calls = candidate.iter().filter_map(|entry| match entry {
        Entry::Invocation(outcome) => Some(&**outcome),
        _no_provider_call => None,
    });
    let mut unmet = tolerance.latency_scopes.clone();
    let mut found = Vec::new();
    for call in calls {
        let names = [
            call.modality.as_str(),
            call.provider_id.as_str(),
            call.provider_invocation_id.as_str(),
        ];
        unmet.retain(|scope| !names.contains(&scope.as_str()));
        let scopes = &tolerance.latency_scopes;
        if !scopes.is_empty() && !names.iter().any(|name| scopes.contains(*name)) {
            continue;
        }
        let took = [
            call.final_attempt_latency_ms,
            call.total_invocation_latency_ms,
        ];
        for (latency, (most, prefix)) in took.into_iter().zip(limits) {
            if let Some(most) = most.filter(|most| latency > *most) {
                found.push(Divergence {
                    class: Class::TimingDivergence,
                    scope: format!("{prefix}{}", call.provider_invocation_id),
                    baseline: format!("at most {most} ms"),
                    candidate: format!("{latency} ms"),
                    diff_ms: Some((latency - most) as f64),
                });
            }
        }
    }
    for scope in unmet {
        for (most, prefix) in limits {
            if let Some(most) = most {
                found.push(Divergence {
                    class: Class::TimingDivergence,
                    scope: format!("{prefix}{scope}"),
                    baseline: format!("at most {most} ms"),
                    candidate: "no such call".to_owned(),
                    diff_ms: None,
                });
            }
        }
    }
    found
}

fn said(a: &[Said], b: &[Said]) -> Vec<Divergence> {
    let ops = capture_diff_slices(Algorithm::Myers, a, b);
    let (mut missing, mut added) = (Vec::new(), Vec::new());
    for op in ops {
        match op {
            DiffOp::Equal { .. } => {}
            DiffOp::Delete { .. } | DiffOp::Insert { .. } | DiffOp::Replace { .. } => {
                missing.extend(a[op.old_range()].iter());
                added.extend(b[op.new_range()].iter());
            }
        }
    }
    let mut found = Vec::new();
    for said in missing {
        let moved = added.iter().position(|other| *other == said);
        let (class, candidate) = match moved {
            Some(at) => {
                added.remove(at);
                (
                    Class::OrderingDivergence,
                    "the same at another place".to_owned(),
                )
            }
            None => (Class::OutcomeDivergence, "nothing".to_owned()),
        };
        found.push(Divergence {
            class,
            scope: said.scope(),
            baseline: said.text(),
            candidate,
            diff_ms: None,
        });
    }
    found.extend(added.into_iter().map(|said| Divergence {
        class: Class::OutcomeDivergence,
        scope: said.scope(),
        baseline: "nothing".to_owned(),
        candidate: said.text(),
        diff_ms: None,
    }));
    found
}

fn compare_turn(
    turn: &TurnId,
    a: &TurnTrace,
    b: &TurnTrace,
    tolerance: &Tolerance,
    found: &mut Vec<Divergence>,
) {
    let mut differ = |class, ours: String, theirs: String, diff_ms| {
        found.push(Divergence {
            class,
            scope: format!("turn:{turn}"),
            baseline: ours,
            candidate: theirs,
            diff_ms,
        });
    };
    if a.plan != b.plan {
        let text = |plan: &Option<String>| plan.clone().unwrap_or_else(|| "no plan".to_owned());
        differ(Class::PlanDivergence, text(&a.plan), text(&b.plan), None);
    }
    if a.providers != b.providers {
        let text = |providers: &[String]| providers.join(", ");
        differ(
            Class::ProviderChoiceDivergence,
            text(&a.providers),
            text(&b.providers),
            None,
        );
    }
    let (Some(ours), Some(theirs)) = (&a.baseline, &b.baseline) else {
        return; // A turn without evidence shows among the signals.
    };
    if ours.snapshots != theirs.snapshots {
        let refs = |of: &TurnBaseline| {
            let refs = of.snapshots.entries().into_iter();
            let refs: Vec<_> = refs.map(|(_, reference)| reference.to_owned()).collect();
            refs.join(", ")
        };
        differ(Class::PlanDivergence, refs(ours), refs(theirs), None);
    }
    let epochs = |of: &TurnBaseline| {
        let open = of.lease_epoch_at_turn_open;
        let end = of.lease_epoch_at_terminal;
        let text = |epoch: Option<rspp_proto::Epoch>| {
            epoch.map_or_else(|| "none".to_owned(), |epoch| epoch.to_string())
        };
        format!("{} to {}", text(open), text(end))
    };
    if epochs(ours) != epochs(theirs) {
        differ(
            Class::AuthorityDivergence,
            epochs(ours),
            epochs(theirs),
            None,
        );
    }
    for anchor in Anchor::ALL {
        let since = |of: &TurnBaseline| -> Option<f64> {
            let began: Monotonic = of.anchors.get(Anchor::TurnOpenProposed)?;
            let at = of.anchors.get(*anchor)?;
            Some(at.as_millis_f64() - began.as_millis_f64())
        };
        if let (Some(ours), Some(theirs)) = (since(ours), since(theirs))
            && (ours - theirs).abs() > tolerance.timing_ms
        {
            let text = |ms: f64| format!("{} at {ms:.1} ms", anchor.as_str());
            let diff = theirs - ours;
            differ(
                Class::TimingDivergence,
                text(ours),
                text(theirs),
                Some(diff),
            );
        }
    }
}

impl Trace {
    fn of(entries: &[Entry]) -> Self {
        let mut trace = Self::default();
        for entry in entries {
            match entry {
                Entry::Signal(signal) => trace.said.push(Said {
                    turn: signal.envelope.turn_id.clone(),
                    signal: signal.signal.as_str().to_owned(),
                    reason: signal
                        .reason
                        .as_ref()
                        .map_or_else(String::new, ToString::to_string),
                }),
                Entry::Header(header) => trace.session = Some(header.session_id.clone()),
                Entry::Event(event) => {
                    if let Some(Payload::Text(text)) = &event.record.payload
                        && text.is_final
                    {
                        trace.outputs.push(Said {
                            turn: event.record.envelope.turn_id.clone(),
                            signal: format!("{:?} said", text.speaker).to_lowercase(),
                            reason: text.text.to_string(),
                        });
                    }
                }
                Entry::Capture(capture) => {
                    if let Captured::Asked { call, request } = &capture.what {
                        trace.outputs.push(Said {
                            turn: capture.turn_id.clone(),
                            signal: format!("{} asked `{}`", call.invocation, call.provider),
                            reason: request.to_string(),
                        });
                    }
                }
                Entry::Plan(plan) => {
                    // Equal policy has an equal hash whichever turn and epoch it is for.
                    let policy = plan.plan.get("policy_hash").and_then(|it| it.as_str());
                    let policy = policy.unwrap_or(&plan.plan_hash).to_owned();
                    trace.turns.entry(plan.turn_id.clone()).or_default().plan = Some(policy);
                }
                Entry::Invocation(outcome) => {
                    if let Some(turn) = &outcome.turn_id {
                        let providers = &mut trace.turns.entry(turn.clone()).or_default().providers;
                        let modality = outcome.modality.as_str();
                        providers.push(format!("{modality}: {}", outcome.provider_id));
                    }
                }
                Entry::Turn(baseline) => {
                    let turn = trace.turns.entry(baseline.turn_id.clone()).or_default();
                    turn.baseline = Some(Box::new(TurnBaseline::clone(baseline)));
                }
                _says_nothing_to_compare => {}
            }
        }
        trace
    }
}
