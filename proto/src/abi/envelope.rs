//! What every event says about itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EventScope, PayloadClass, SchemaVersion};
use crate::{
    DiscontinuityId, EdgeId, Epoch, EventId, IdempotencyKey, InvocationId, Lane, LeaseToken,
    MergeGroupId, NodeId, PipelineVersion, SampleIndex, SessionId, SyncDomain, SyncId, TurnId,
    WallClock,
};

/// Most sources one merged event may name.
pub const MAX_MERGE_SOURCES: usize = 64;

/// Where in its stream a piece of media belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MediaTime {
    /// Counted in samples: the canonical audio timeline.
    SampleIndex(SampleIndex),
    /// A presentation time in milliseconds.
    PtsMs(u64),
}

/// Writes a struct whose first fields are the envelope's. Records are flat on the wire, and serde
/// cannot both flatten and refuse unknown fields, so the list is stamped into each.
macro_rules! with_envelope {
    (
        $(#[$meta:meta])* $vis:vis struct $name:ident {
            $($(#[$own_meta:meta])* $own:ident: $own_type:ty,)*
        }
    ) => {
        $(#[$meta])*
        $vis struct $name {
            /// Version of the Event ABI that the record was written with.
            pub schema_version: SchemaVersion,
            /// Whether the event belongs to the session or to a turn.
            pub event_scope: EventScope,
            /// The conversation.
            pub session_id: SessionId,
            /// The turn; required for what is scoped to one.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub turn_id: Option<TurnId>,
            /// The pipeline that the session runs.
            pub pipeline_version: PipelineVersion,
            /// The node that made the event.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub node_id: Option<NodeId>,
            /// The edge it rode.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub edge_id: Option<EdgeId>,
            /// The event itself.
            pub event_id: EventId,
            /// The event that caused it.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub causal_parent_id: Option<EventId>,
            /// Stays the same over retry, reconnect and failover.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub idempotency_key: Option<IdempotencyKey>,
            /// The provider call it belongs to.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub provider_invocation_id: Option<InvocationId>,
            /// Its priority class.
            pub lane: Lane,
            /// Order given by the transport or provider; absent for what the runtime made.
            #[serde(default)]
            pub transport_sequence: Option<u64>,
            /// Order of emission: strictly increasing per session, edge and lane.
            pub runtime_sequence: u64,
            /// Group of events that belong to one moment.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub sync_id: Option<SyncId>,
            /// Streams that are kept in step.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub sync_domain: Option<SyncDomain>,
            /// The break that a sync domain has to reset at.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub discontinuity_id: Option<DiscontinuityId>,
            /// The merge that made the event.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub merge_group_id: Option<MergeGroupId>,
            /// The events folded into it: 1 to 64, unique.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub merged_from_event_ids: Option<Vec<EventId>>,
            /// Whether it was made after its turn's cancel was accepted.
            #[serde(default, skip_serializing_if = "std::ops::Not::not")]
            pub late_after_cancel: bool,
            /// The writer's epoch; required in a turn and on the control lane.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub authority_epoch: Option<Epoch>,
            /// Proof of the epoch; only where a record leaves its node.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub lease_token: Option<LeaseToken>,
            /// Milliseconds on the node's monotonic clock.
            pub runtime_timestamp_ms: u64,
            /// Milliseconds since the Unix epoch.
            pub wall_clock_timestamp_ms: WallClock,
            /// The single time stamp of older writers.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub timestamp_ms: Option<u64>,
            /// What the payload reveals.
            pub payload_class: PayloadClass,
            /// Where in its stream; required for raw audio.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub media_time: Option<MediaTime>,
            $($(#[$own_meta])* pub $own: $own_type,)*
        }
    };
}

/// Takes the envelope out of a flat record.
macro_rules! envelope_of {
    ($flat:ident) => {
        $crate::abi::Envelope {
            schema_version: $flat.schema_version,
            event_scope: $flat.event_scope,
            session_id: $flat.session_id,
            turn_id: $flat.turn_id,
            pipeline_version: $flat.pipeline_version,
            node_id: $flat.node_id,
            edge_id: $flat.edge_id,
            event_id: $flat.event_id,
            causal_parent_id: $flat.causal_parent_id,
            idempotency_key: $flat.idempotency_key,
            provider_invocation_id: $flat.provider_invocation_id,
            lane: $flat.lane,
            transport_sequence: $flat.transport_sequence,
            runtime_sequence: $flat.runtime_sequence,
            sync_id: $flat.sync_id,
            sync_domain: $flat.sync_domain,
            discontinuity_id: $flat.discontinuity_id,
            merge_group_id: $flat.merge_group_id,
            merged_from_event_ids: $flat.merged_from_event_ids,
            late_after_cancel: $flat.late_after_cancel,
            authority_epoch: $flat.authority_epoch,
            lease_token: $flat.lease_token,
            runtime_timestamp_ms: $flat.runtime_timestamp_ms,
            wall_clock_timestamp_ms: $flat.wall_clock_timestamp_ms,
            timestamp_ms: $flat.timestamp_ms,
            payload_class: $flat.payload_class,
            media_time: $flat.media_time,
        }
    };
}

with_envelope! {
    /// What every event says about itself (event-abi §2, F-020).
    #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    pub struct Envelope {}
}

pub(super) use {envelope_of, with_envelope};
