//! OR-02: what must be known of every accepted turn so that it can be explained and replayed.
//!
//! The field list is observability.md §2 with the additions of the requirements document. A turn is
//! complete when [`TurnBaseline::missing`] is empty; gate 5 asks that of every accepted turn. How the
//! evidence is gathered is the host's business, how it is kept the recorder's.

use std::collections::BTreeSet;

use rspp_proto::{
    Epoch, EventId, InvocationId, Monotonic, NodeId, PipelineVersion, Reason, SessionId, TenantId,
    TurnId, WallClock,
    abi::{CancelMode, CancelScope, DecisionOutcome, Envelope, OutcomeKind, PayloadClass},
};
use serde::{Deserialize, Serialize};

use crate::{Anchors, InvocationOutcome, RedactionDecision};

/// The version of this field list.
pub const OR02_EVIDENCE_SCHEMA_VERSION: &str = "or02/v1.0";

/// Everything OR-02 keeps of one turn; written once, when the turn closes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnBaseline {
    /// Which field list this is; [`OR02_EVIDENCE_SCHEMA_VERSION`].
    pub or02_evidence_schema_version: String,

    // Identity.
    /// The conversation.
    pub session_id: SessionId,
    /// The turn.
    pub turn_id: TurnId,
    /// Who is accounted for it, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<TenantId>,
    /// The pipeline it ran.
    pub pipeline_version: PipelineVersion,
    /// The event that opened it.
    pub event_id: EventId,
    /// The envelope of that event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envelope_snapshot: Option<Box<Envelope>>,

    // What was recorded, and how.
    /// Classes of payload that the turn touched; at least one, no duplicate.
    #[serde(default)]
    pub payload_tags: Vec<PayloadClass>,
    /// What was done with each of them; exactly one decision a class.
    #[serde(default)]
    pub redaction_decisions: Vec<RedactionDecision>,

    // The plan.
    /// Names the turn's frozen plan.
    #[serde(default)]
    pub resolved_turn_plan_id: String,
    /// SHA-256 of the frozen plan: 64 lowercase hexadecimal digits.
    #[serde(default)]
    pub plan_hash: String,
    /// The execution profile with its version, e.g. `simple/v1`.
    #[serde(default)]
    pub execution_profile_version: String,
    /// The control-plane snapshots that the plan was resolved from.
    #[serde(default)]
    pub snapshots: SnapshotRefs,

    // Authority and admission.
    /// The epoch under which the evidence was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority_epoch: Option<Epoch>,
    /// The lease's epoch when the turn opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_epoch_at_turn_open: Option<Epoch>,
    /// The lease's epoch when the turn ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_epoch_at_terminal: Option<Epoch>,
    /// The decision that let the turn in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission_outcome: Option<Box<DecisionOutcome>>,
    /// All decisions about the turn, the admission among them; at least one.
    #[serde(default)]
    pub decision_outcomes: Vec<DecisionOutcome>,

    // Determinism.
    /// Seed of everything random in the turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub determinism_seed: Option<u64>,
    /// What orders events; at least one, unique.
    #[serde(default)]
    pub ordering_markers: Vec<String>,
    /// The rule that ordered events across edges.
    #[serde(default)]
    pub merge_rule_id: String,
    /// Its version.
    #[serde(default)]
    pub merge_rule_version: String,
    /// What the turn depended on that a replay cannot derive; may be empty.
    #[serde(default)]
    pub nondeterministic_inputs: Vec<NondeterministicInput>,

    // Life.
    /// When the proposal came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_open_proposed_at: Option<Monotonic>,
    /// When the turn opened. A turn that has this was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_open_at: Option<Monotonic>,
    /// The same on the calendar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_open_wall: Option<WallClock>,
    /// When the first output left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_output_at: Option<Monotonic>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal_outcome: Option<TerminalOutcome>,
    /// Why it was aborted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal_reason: Option<Reason>,
    /// When it ended; not before it opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_terminal_at: Option<Monotonic>,
    /// When it closed; not before it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn_close_at: Option<Monotonic>,
    /// Whether `close` was emitted.
    #[serde(default)]
    pub close_emitted: bool,

    /// The cancel, if one was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<CancelEvidence>,

    // Providers.
    /// The calls that the turn made.
    #[serde(default)]
    pub provider_invocation_ids: Vec<InvocationId>,
    /// How each of them ended.
    #[serde(default)]
    pub invocation_outcomes: Vec<InvocationOutcome>,

    // As known.
    /// Moves of the placement while the turn ran, e.g. `migration_start`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub migration_markers: Vec<String>,
    /// Outputs of a stale epoch that were accepted: gate 4 says none.
    #[serde(default)]
    pub accepted_stale_epoch_outputs: u64,
    /// When everything happened, for gates and waterfall.
    #[serde(default)]
    pub anchors: Anchors,
    /// What each node did, where that is looked at (F-070).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_work: Vec<NodeWork>,
}

/// What a node did for a turn; one that listens for the session, since the turn before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeWork {
    /// The node.
    pub node_id: NodeId,
    /// When its first handler began.
    pub began_at: Monotonic,
    /// When its last handler ended.
    pub ended_at: Monotonic,
    /// How many there were.
    pub handled: u64,
    /// What they took together, in microseconds; what waits is counted as well.
    pub busy_us: u64,
}

/// How an accepted turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TerminalOutcome {
    /// Generation finished.
    Commit,
    /// It ended before that.
    Abort,
}

impl TerminalOutcome {
    /// The outcome's name, which is its signal's.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Abort => "abort",
        }
    }
}

/// An accepted cancel and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CancelEvidence {
    /// What it reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_scope: Option<CancelScope>,
    /// Why: the reason code of its signal (F-035).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_reason: Option<Reason>,
    /// Whether what was in flight was finished first (F-041).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_mode: Option<CancelMode>,
    /// When it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_accepted_at: Option<Monotonic>,
    /// When the local output fence stood; not before the cancel was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_fence_applied_at: Option<Monotonic>,
    /// When it was passed on to nodes and providers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_sent_at: Option<Monotonic>,
    /// When a provider confirmed it, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_ack_at: Option<Monotonic>,
    /// Outputs that came after the fence and were refused, by event; see
    /// [`Self::late_outputs_rejected`] for how many there were in all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejection_markers: Vec<EventId>,
    /// How many outputs the fence refused; zero says that none came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_outputs_rejected: Option<u64>,
}

/// The control-plane snapshots behind a plan (turn-plan.md §1). Blank means missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotRefs {
    /// Who serves whom.
    pub routing_view_snapshot: String,
    /// Quotas.
    pub admission_policy_snapshot: String,
    /// Which ABI versions meet.
    pub abi_compatibility_snapshot: String,
    /// Which pipeline version was chosen.
    pub version_resolution_snapshot: String,
    /// Which policy was chosen.
    pub policy_resolution_snapshot: String,
    /// How providers were.
    pub provider_health_snapshot: String,
}

impl SnapshotRefs {
    /// Names and references, in the order of the specification.
    pub fn entries(&self) -> [(&'static str, &str); 6] {
        [
            ("routing_view_snapshot", &self.routing_view_snapshot),
            ("admission_policy_snapshot", &self.admission_policy_snapshot),
            (
                "abi_compatibility_snapshot",
                &self.abi_compatibility_snapshot,
            ),
            (
                "version_resolution_snapshot",
                &self.version_resolution_snapshot,
            ),
            (
                "policy_resolution_snapshot",
                &self.policy_resolution_snapshot,
            ),
            ("provider_health_snapshot", &self.provider_health_snapshot),
        ]
    }
}

/// Something a turn depended on that a replay cannot derive (F-150).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NondeterministicInput {
    /// Names the input.
    pub input_key: String,
    /// Where it came from.
    pub source: NondeterminismSource,
    /// Where the recording holds it.
    pub evidence_ref: String,
}

/// Where an input that cannot be derived came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NondeterminismSource {
    /// A provider or tool.
    ExternalCall,
    /// A clock.
    SystemTime,
    /// Entropy.
    Random,
    /// A person's decision.
    OperatorOverride,
    /// Anything else.
    Other,
}

impl TurnBaseline {
    /// The evidence of a turn of which only its identity is known yet.
    pub fn new(
        session_id: SessionId,
        turn_id: TurnId,
        pipeline_version: PipelineVersion,
        event_id: EventId,
    ) -> Self {
        Self {
            or02_evidence_schema_version: OR02_EVIDENCE_SCHEMA_VERSION.to_owned(),
            session_id,
            turn_id,
            tenant_id: None,
            pipeline_version,
            event_id,
            envelope_snapshot: None,
            payload_tags: Vec::new(),
            redaction_decisions: Vec::new(),
            resolved_turn_plan_id: String::new(),
            plan_hash: String::new(),
            execution_profile_version: String::new(),
            snapshots: SnapshotRefs::default(),
            authority_epoch: None,
            lease_epoch_at_turn_open: None,
            lease_epoch_at_terminal: None,
            admission_outcome: None,
            decision_outcomes: Vec::new(),
            determinism_seed: None,
            ordering_markers: Vec::new(),
            merge_rule_id: String::new(),
            merge_rule_version: String::new(),
            nondeterministic_inputs: Vec::new(),
            turn_open_proposed_at: None,
            turn_open_at: None,
            turn_open_wall: None,
            first_output_at: None,
            terminal_outcome: None,
            terminal_reason: None,
            turn_terminal_at: None,
            turn_close_at: None,
            close_emitted: false,
            cancel: None,
            provider_invocation_ids: Vec::new(),
            invocation_outcomes: Vec::new(),
            migration_markers: Vec::new(),
            accepted_stale_epoch_outputs: 0,
            anchors: Anchors::default(),
            node_work: Vec::new(),
        }
    }

    /// Whether the turn was accepted, so that gate 5 asks for its evidence.
    pub fn is_accepted(&self) -> bool {
        self.turn_open_at.is_some()
    }

    /// Whether nothing is [`missing`](Self::missing).
    pub fn is_complete(&self) -> bool {
        self.missing().is_empty()
    }

    /// The required fields that are absent or wrong, conditional ones included, in the order of the
    /// field list. A field that contradicts another counts as missing: it proves nothing.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        let mut need = |present: bool, field: &'static str| {
            if !present {
                missing.push(field);
            }
        };

        let version = self.or02_evidence_schema_version == OR02_EVIDENCE_SCHEMA_VERSION;
        need(version, "or02_evidence_schema_version");
        let envelope_fits = self.envelope_snapshot.as_ref().is_some_and(|envelope| {
            envelope.session_id == self.session_id
                && envelope
                    .turn_id
                    .as_ref()
                    .is_none_or(|turn| *turn == self.turn_id)
        });
        need(envelope_fits, "envelope_snapshot");

        let tags: BTreeSet<_> = self.payload_tags.iter().collect();
        need(
            !tags.is_empty() && tags.len() == self.payload_tags.len(),
            "payload_tags",
        );
        let decided: BTreeSet<_> = self
            .redaction_decisions
            .iter()
            .map(|decision| &decision.payload_class)
            .collect();
        let decided_once = decided.len() == self.redaction_decisions.len();
        let all_decided = !decided.is_empty() && tags.is_subset(&decided);
        need(decided_once && all_decided, "redaction_decisions");

        need(
            is_said(&self.resolved_turn_plan_id),
            "resolved_turn_plan_id",
        );
        need(is_sha256(&self.plan_hash), "plan_hash");
        need(
            is_said(&self.execution_profile_version),
            "execution_profile_version",
        );
        for (name, reference) in self.snapshots.entries() {
            need(is_said(reference), name);
        }

        need(self.authority_epoch.is_some(), "authority_epoch");
        need(
            self.lease_epoch_at_turn_open.is_some(),
            "lease_epoch_at_turn_open",
        );
        // Epochs only rise.
        let rises = self.lease_epoch_at_terminal >= self.lease_epoch_at_turn_open;
        need(
            self.lease_epoch_at_terminal.is_some() && rises,
            "lease_epoch_at_terminal",
        );
        let admitted = self.admission_outcome.as_ref().is_some_and(|outcome| {
            outcome.outcome_kind == OutcomeKind::Admit && outcome.validate().is_ok()
        });
        need(admitted, "admission_outcome");
        let all_valid = self
            .decision_outcomes
            .iter()
            .all(|outcome| outcome.validate().is_ok());
        need(
            !self.decision_outcomes.is_empty() && all_valid,
            "decision_outcomes",
        );

        need(self.determinism_seed.is_some(), "determinism_seed");
        let markers: BTreeSet<_> = self.ordering_markers.iter().collect();
        let unique = markers.len() == self.ordering_markers.len();
        let all_said = self.ordering_markers.iter().all(|marker| is_said(marker));
        need(
            !markers.is_empty() && unique && all_said,
            "ordering_markers",
        );
        need(is_said(&self.merge_rule_id), "merge_rule_id");
        need(is_said(&self.merge_rule_version), "merge_rule_version");
        let referenced = self
            .nondeterministic_inputs
            .iter()
            .all(|input| is_said(&input.input_key) && is_said(&input.evidence_ref));
        need(referenced, "nondeterministic_inputs");

        need(self.turn_open_at.is_some(), "turn_open_at");
        need(self.terminal_outcome.is_some(), "terminal_outcome");
        // A commit has no reason, an abort has one.
        let reason_fits = match self.terminal_outcome {
            Some(TerminalOutcome::Abort) => self.terminal_reason.is_some(),
            Some(TerminalOutcome::Commit) => self.terminal_reason.is_none(),
            None => true,
        };
        need(reason_fits, "terminal_reason");
        need(
            follows(self.turn_open_at, self.turn_terminal_at),
            "turn_terminal_at",
        );
        need(
            follows(self.turn_terminal_at, self.turn_close_at),
            "turn_close_at",
        );
        need(self.close_emitted, "close_emitted");

        if let Some(cancel) = &self.cancel {
            need(cancel.cancel_scope.is_some(), "cancel_scope");
            need(cancel.cancel_accepted_at.is_some(), "cancel_accepted_at");
            let fenced = follows(cancel.cancel_accepted_at, cancel.cancel_fence_applied_at);
            need(fenced, "cancel_fence_applied_at");
            let sent = follows(cancel.cancel_accepted_at, cancel.cancel_sent_at);
            need(sent, "cancel_sent_at");
            // Which events were refused may be cut short; how many may not.
            let counted = cancel
                .late_outputs_rejected
                .is_some_and(|count| count >= cancel.rejection_markers.len() as u64);
            need(counted, "post_cancel_rejection_markers");
        }

        let ended: BTreeSet<_> = self
            .invocation_outcomes
            .iter()
            .filter(|outcome| outcome.is_valid())
            .map(|outcome| &outcome.provider_invocation_id)
            .collect();
        let all_valid = self
            .invocation_outcomes
            .iter()
            .all(InvocationOutcome::is_valid);
        let all_ended = self
            .provider_invocation_ids
            .iter()
            .all(|id| ended.contains(id));
        need(all_valid && all_ended, "invocation_outcomes");
        missing
    }
}

fn is_said(text: &str) -> bool {
    !text.trim().is_empty()
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether `later` is known and not before `earlier`, as far as that is known.
fn follows(earlier: Option<Monotonic>, later: Option<Monotonic>) -> bool {
    later.is_some() && later >= earlier
}
