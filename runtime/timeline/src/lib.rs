//! The record of every accepted turn: its file format, recorder and reader.
//!
//! Entries go in through a [`Recorder`] that never waits, are written by the [`Recording`] that owns
//! the file, and come out through a [`Timeline`]. [`verify`] says whether a recording keeps the
//! invariants, [`show`] renders it for people, [`Waterfall`] says where a turn's time went.

mod account;
mod capture;
mod entry;
mod evidence;
pub mod export;
mod fidelity;
mod format;
pub mod gates;
mod invocation;
mod pii;
mod plan;
mod queue;
mod reader;
mod recorder;
mod redact;
mod sampling;
mod scan;
pub mod show;
mod tool;
pub mod trace;
pub mod verify;
mod waterfall;
mod writer;

pub use account::{ACCOUNT_SCHEMA, Account, AccountError, Prices, UnitPrices};
pub use capture::{
    CallRef, Came, CaptureEntry, Captured, LineNote, OpeningEntry, Ordered, Piece, ProviderNote,
    ViewNote,
};
pub use entry::{
    DropNote, Entry, EntryClass, EntryKind, EventEntry, FileHeader, JournalEntry, PlanEntry,
    PlayoutEntry, Summary, TransitionEntry,
};
pub use evidence::{
    CancelEvidence, NodeWork, NondeterminismSource, NondeterministicInput,
    OR02_EVIDENCE_SCHEMA_VERSION, SnapshotRefs, TerminalOutcome, TurnBaseline,
};
pub use fidelity::{Fidelity, FidelityPolicy, LevelChange, LevelTrigger, Pressure, Threshold};
pub use format::{
    FRAME_HEADER_BYTES, FormatVersion, FrameTooLong, MAGIC, MAX_PAYLOAD_BYTES, PREAMBLE_BYTES,
    PreambleError, VERSION, preamble, write_frame,
};
pub use invocation::{AttemptRecord, HandoffAction, HandoffRecord, InvocationOutcome};
pub use plan::{PlanFields, PlanRecord};
pub use queue::{Capacity, CapacityError, Room, TURN_ROOM};
pub use reader::{Filter, Item, ReadError, Report, Timeline};
pub use recorder::{
    Alarm, AppendError, KEPT_FREE, MemoryRecording, Options, Recorder, RecorderStats, SyncPolicy,
};
pub use redact::{Redacted, Redaction, RedactionAction, RedactionDecision};
pub use scan::{Damage, DamagedPart, Torn};
pub use tool::{ToolEntry, ToolStep};
pub use waterfall::{Anchor, Anchors, CHART_COLUMNS, Segment, Waterfall};
pub use writer::{CloseError, OpenError, Pace, Recording, Recovered, Storage};
