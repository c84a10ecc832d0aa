//! Runs voice sessions: drives the kernel with supervised actors and carries out its effects.
//!
//! A [`Runtime`] is one node: the root of a supervision tree with a session actor for each
//! conversation, a turn actor for its turn, a host for each pipeline node, an actor for each
//! provider call and one for each connection (design §2). What is decided is the kernel's; here it
//! is done.

mod runtime;

mod reception;

mod admission;

mod capacity;

mod schedule;

pub mod report;

pub mod scrape;

mod scope;

mod session;

mod turn;

mod assembly;

mod blueprint;

mod effective;

pub mod node;

mod invoke;

mod tool;

mod circuits;

mod exporter;

mod providers;

mod capture;

mod carriage;

mod connection;

mod clip;

mod event;

mod memory;

mod overhead;

mod observe;

mod plane;

mod meters;
mod pulse;
mod totals;
mod view;

mod snapshots;

pub mod testing;

mod watchdog;

mod wishes;

pub use admission::SessionRefused;
pub use assembly::Pools;
pub use capacity::{CapacityEvent, CapacityKind, CpuProbe};
pub use clip::Clip;
pub use effective::EffectivePipeline;
pub use event::{Arrival, CallEnd, CallKey, Chunk, Event, Port, Stamp, Tags};
pub use memory::MemoryUse;
pub use meters::{EdgeMeasurements, Latency, Measurements, NodeMeasurements, ProviderMeasurements};
pub use node::builtin::{NodeFactory, NodeRegistry};
pub use observe::{Capture, CaptureBounds, CaptureEnd, Filter, Notice};
pub use overhead::{Overhead, Percentiles};
pub use plane::{AwayMode, PlaneConfig, PlaneHandle, PlaneStatus, StaleView, Step};
pub use providers::ProviderBoard;
pub use reception::{Begun, Program, Published, Reception, Recorded};
pub use rspp_proto::control::Emptying;
pub use runtime::{
    Config, OpenError, PlannedSession, Runtime, SessionHandle, SessionRequest, Uncounted,
};
pub use session::{CancelReceipt, CancelTarget, Foreign, SessionStatus};
pub use snapshots::Snapshots;
pub use tool::{HttpToolFactory, ToolRegistry};
pub use totals::LatencySeries;
pub use view::SessionView;
