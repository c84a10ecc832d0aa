//! Why there is no plan.

use rspp_proto::{
    NodeId,
    spec::{Modality, PortType},
};
use thiserror::Error;

/// What kept a plan from being made; the turn does not open then (T5a).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// A profile that does not exist.
    #[error("unknown execution profile `{name}`; only `simple/v1` is supported")]
    UnsupportedProfile {
        /// What was asked for.
        name: String,
    },
    /// The caller says that its snapshots are too old.
    #[error("the control plane's snapshots are stale; wait for fresh ones")]
    StaleSnapshots,
    /// A snapshot reference is blank.
    #[error("snapshot reference `{name}` is blank; a plan names all six")]
    MissingSnapshot {
        /// Which.
        name: &'static str,
    },
    /// The policy bundle belongs to another snapshot than the one in force.
    #[error("the policy bundle is {bundle}, but the policy snapshot in force is {snapshot}")]
    PolicyVersion {
        /// What the bundle says.
        bundle: String,
        /// What is in force.
        snapshot: String,
    },
    /// The graph was compiled from another spec.
    #[error(
        "the graph's fingerprint is {graph}, but {expected} was expected; compile the spec again"
    )]
    GraphVersion {
        /// What the graph has.
        graph: String,
        /// What was expected.
        expected: String,
    },
    /// Some of the five surfaces are overridden and some are not.
    #[error("a policy overrides all five surfaces or none; missing: {}", missing.join(", "))]
    PartialOverride {
        /// The surfaces that are not overridden.
        missing: Vec<&'static str>,
    },
    /// A node needs a provider and none is bound.
    #[error(
        "node `{node}` needs a provider for {0}; bind one under provider_bindings.{0}",
        modality.as_str()
    )]
    Unbound {
        /// The node.
        node: NodeId,
        /// What it needs.
        modality: Modality,
    },
    /// A setting names an edge or node that the pipeline does not have.
    #[error("{path} names nothing in the pipeline; known: {}", known.join(", "))]
    UnknownName {
        /// The setting's path.
        path: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A policy inserts where the pipeline does not let it.
    #[error(
        "the policy inserts after node `{node}`, which the pipeline does not leave open; open_to_policy: [{}]",
        open.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
    )]
    NotOpen {
        /// Where it would stand.
        node: NodeId,
        /// Where it could.
        open: Vec<NodeId>,
    },
    /// A policy inserts a node under a name that is taken.
    #[error("the policy inserts a node `{node}`, and there is one of that name; give it another")]
    NameTaken {
        /// The name.
        node: NodeId,
    },
    /// A policy inserts after a node that nothing of that type leaves.
    #[error("the policy inserts after node `{node}`, but no edge with {} leaves it", carries.as_str())]
    NothingToFollow {
        /// Where it would stand.
        node: NodeId,
        /// What it would take.
        carries: PortType,
    },
    /// A number that is larger than anybody needs.
    #[error("{path}: {found} is too large; at most {most} is possible")]
    Beyond {
        /// The field's path.
        path: String,
        /// What it is.
        found: u64,
        /// What it may be.
        most: u64,
    },
    /// A value that cannot work.
    #[error("{path}: {problem}")]
    Invalid {
        /// The field's path.
        path: String,
        /// What is wrong with it and what helps.
        problem: &'static str,
    },
}

impl PlanError {
    /// A stable code, for evidence and clients.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnsupportedProfile { .. } => "execution_profile_unsupported",
            Self::StaleSnapshots => "snapshot_stale",
            Self::MissingSnapshot { .. } => "snapshot_missing",
            Self::PolicyVersion { .. } => "policy_snapshot_mismatch",
            Self::GraphVersion { .. } => "graph_mismatch",
            Self::PartialOverride { .. } => "policy_override_incomplete",
            Self::Unbound { .. } => "provider_unbound",
            Self::UnknownName { .. } => "setting_names_nothing",
            Self::NotOpen { .. } => "insertion_not_allowed",
            Self::NameTaken { .. } => "insertion_name_taken",
            Self::NothingToFollow { .. } => "insertion_follows_nothing",
            Self::Beyond { .. } | Self::Invalid { .. } => "setting_invalid",
        }
    }

    /// What is unusable about the inputs is not a fault of the pipeline: it may pass.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::StaleSnapshots | Self::MissingSnapshot { .. } | Self::PolicyVersion { .. } => {
                true
            }
            Self::UnsupportedProfile { .. }
            | Self::GraphVersion { .. }
            | Self::PartialOverride { .. }
            | Self::Unbound { .. }
            | Self::UnknownName { .. }
            | Self::NotOpen { .. }
            | Self::NameTaken { .. }
            | Self::NothingToFollow { .. }
            | Self::Beyond { .. }
            | Self::Invalid { .. } => false,
        }
    }
}
