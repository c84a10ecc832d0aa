//! Which events a recording level holds (observability.md §3).
//!
//! Decided by what an event is and its place in the order, never by chance or load, so that two
//! recordings of one conversation at one level hold the same events.

use rspp_proto::{
    Payload, TextChunk,
    abi::{EventRecord, PayloadClass},
    spec::RecordingLevel,
};

/// At L1, one partial of this many is kept.
const PARTIALS: u64 = 4;

/// At L1, one audio chunk of this many is kept: one a second at 20 ms.
const CHUNKS: u64 = 50;

/// Whether a recording at `level` holds `record`.
pub(crate) fn holds(level: RecordingLevel, record: &EventRecord) -> bool {
    let sequence = record.envelope.runtime_sequence;
    let Some(payload) = &record.payload else {
        return true;
    };
    // A note that reveals nothing of what was said is an audit: of what came in and had no effect.
    let is_audit = record.envelope.payload_class == PayloadClass::Metadata;
    match (payload, level) {
        (Payload::Debug(_), RecordingLevel::L0) => is_audit,
        (_, RecordingLevel::L2)
        // Where speech and streams begin and end, and what went wrong, is summary.
        | (
            Payload::AudioEnd | Payload::TextEnd | Payload::Speech(_) | Payload::Error(_),
            RecordingLevel::L0 | RecordingLevel::L1,
        )
        | (
            Payload::Metrics(_) | Payload::Debug(_) | Payload::Extension(_),
            RecordingLevel::L1,
        ) => true,
        (
            Payload::AudioChunk(_)
            | Payload::Metrics(_)
            | Payload::Extension(_),
            RecordingLevel::L0,
        ) => false,
        (Payload::AudioChunk(_), RecordingLevel::L1) => sequence.is_multiple_of(CHUNKS),
        (Payload::Text(chunk), RecordingLevel::L0) => is_final(chunk),
        (Payload::Text(chunk), RecordingLevel::L1) => {
            is_final(chunk) || sequence.is_multiple_of(PARTIALS)
        }
    }
}

fn is_final(chunk: &TextChunk) -> bool {
    chunk.is_final
}
