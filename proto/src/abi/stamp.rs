//! What an emitter knows about where and when it speaks.

use super::{Envelope, EventScope, PayloadClass, SchemaVersion};
use crate::{Epoch, EventId, Lane, Monotonic, PipelineVersion, SessionId, TurnId, WallClock};

/// Where and when an event was made: everything of an envelope that its maker need not think about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The conversation.
    pub session_id: SessionId,
    /// The turn, if any.
    pub turn_id: Option<TurnId>,
    /// The pipeline that the session runs.
    pub pipeline_version: PipelineVersion,
    /// The writer's epoch.
    pub authority_epoch: Epoch,
    /// Counts the session's events; becomes part of the event id.
    pub ordinal: u64,
    /// Order of emission: strictly increasing per session, edge and lane.
    pub runtime_sequence: u64,
    /// Order given by the transport or provider, if it gave one.
    pub transport_sequence: Option<u64>,
    /// On the node's monotonic clock.
    pub at: Monotonic,
    /// On the calendar.
    pub wall: WallClock,
}

impl Stamp {
    /// The canonical id of the event that carries this stamp.
    pub fn event_id(&self) -> EventId {
        EventId::canonical(&self.session_id, self.turn_id.as_ref(), self.ordinal)
    }

    /// An envelope with this stamp and nothing optional in it.
    pub fn into_envelope(self, scope: EventScope, lane: Lane, class: PayloadClass) -> Envelope {
        let event_id = self.event_id();
        Envelope {
            schema_version: SchemaVersion::CURRENT,
            event_scope: scope,
            session_id: self.session_id,
            turn_id: self.turn_id,
            pipeline_version: self.pipeline_version,
            node_id: None,
            edge_id: None,
            event_id,
            causal_parent_id: None,
            idempotency_key: None,
            provider_invocation_id: None,
            lane,
            transport_sequence: self.transport_sequence,
            runtime_sequence: self.runtime_sequence,
            sync_id: None,
            sync_domain: None,
            discontinuity_id: None,
            merge_group_id: None,
            merged_from_event_ids: None,
            late_after_cancel: false,
            authority_epoch: Some(self.authority_epoch),
            lease_token: None,
            runtime_timestamp_ms: self.at.as_millis(),
            wall_clock_timestamp_ms: self.wall,
            timestamp_ms: None,
            payload_class: class,
            media_time: None,
        }
    }
}
