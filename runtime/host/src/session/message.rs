//! What a session is told, and by whom.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use rspp_actors::DataRef;
use rspp_controlplane_api::{Lease, LeaseError};
use rspp_kernel::{
    CancelReason, Input,
    authority::AuthorityFault,
    edge::EdgeNotice,
    refused::RefusedMove,
    timebase::Mapping,
    tool::{ToolOutcome, ToolRequest},
};
use rspp_proto::{
    EdgeId, Epoch, IdempotencyKey, InvocationId, Lane, Monotonic, NodeId, TurnNumber,
    abi::{CancelScope, Encoding, SeqRange, Signal, UnknownEvent},
    spec::NodeSpec,
};
use rspp_timeline::{AttemptRecord, InvocationOutcome};
use tokio::sync::oneshot;

use crate::{
    event::{Arrival, Event},
    memory::Mark,
    node::NodeReport,
    schedule::Shed,
};

/// What happened at the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Playback {
    /// A turn's first frame was accepted.
    Started,
    /// A turn's last frame was accepted, or it ended without any.
    Finished,
    /// The clause that a soft cancel let end has been heard.
    ClauseOver,
    /// A frame was made under another epoch and refused.
    Stale(AuthorityFault),
}

/// What happened at the transport.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TransportEvent {
    /// The link is up, for the first time or again.
    Connected,
    /// The connection is over.
    Disconnected,
    Reconnecting,
    Lost,
    /// No audio comes in any more.
    Silent,
    /// The peer takes no output any more.
    Stalled,
    /// Media flows, for the first time or again.
    Flowing,
    EndOfUtterance,
    Cancel,
    Text(String),
    /// One of the three above under an idempotency key.
    Keyed {
        key: IdempotencyKey,
        event: Box<TransportEvent>,
    },
    /// Something came in under another epoch than the session's, and was refused.
    Stale(AuthorityFault),
    /// Something came in that is not what it should be, and was refused.
    Malformed(String),
    /// An event of an unknown type came in.
    Foreign(Box<Foreign>),
    /// Data that only a client or a transport understands.
    Extension(Box<Event>),
    /// The user's audio broke off and goes on elsewhere.
    Discontinuity(&'static str),
    /// The client says how much was heard of a turn that is fenced.
    Played(rspp_transport_api::Receipt),
    /// The client says what came of a tool's call.
    ToolResult(Box<rspp_transport_api::ClientResult>),
    /// When the user's audio was said can be told less well than it has to be, or well again.
    Mapping(Mapping),
    /// Output was too old to be played.
    Aged {
        turn: TurnNumber,
        range: SeqRange,
    },
}

/// An event of a type that this build does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What it says about itself, and what became of it.
    pub audit: UnknownEvent,
    /// The whole record as it came, if it was passed through.
    pub raw: Option<(Encoding, Bytes)>,
}

/// What an operator or the control plane asks of a session.
#[derive(Debug)]
pub(crate) enum Command {
    Cancel {
        target: CancelTarget,
        reason: CancelReason,
        answer: oneshot::Sender<CancelReceipt>,
    },
    /// A capture of debug events has begun.
    Capture,
    Rotate(Epoch),
    Leave,
    /// Leave, and hand over by oneself: once what was begun is over, or a little before `until`.
    LetGo {
        until: Monotonic,
    },
    HandOver,
    Revoke,
    Drain,
    /// What a test has the kernel be told.
    Forge(Box<Input>),
}

/// What to cancel: the four scopes of a cancel (event-abi.md §1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CancelTarget {
    /// The running turn, and the session with it.
    Session,
    /// The running turn.
    Turn,
    /// One node's work and everything downstream of it. If the user would hear of it, that is the
    /// turn.
    Node(NodeId),
    /// One provider call; its node goes on without the rest of the answer.
    Invocation(InvocationId),
}

impl CancelTarget {
    pub(crate) fn scope(&self) -> CancelScope {
        match self {
            Self::Session => CancelScope::Session,
            Self::Turn => CancelScope::Turn,
            Self::Node(_) => CancelScope::Node,
            Self::Invocation(_) => CancelScope::ProviderInvocation,
        }
    }
}

/// How a cancel went, for whoever asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CancelReceipt {
    /// The turn that was cancelled; `None` if none was running.
    pub turn: Option<TurnNumber>,
    /// From acceptance to the fence, in real time.
    pub fence: Duration,
    /// Why nothing was cancelled: it named no node, or no call at work.
    pub refused: Option<RefusedMove>,
}

/// Everything that a session is told.
pub(crate) enum SessionControl {
    /// Start the nodes that listen. The session's own first message: whoever opens sessions need not
    /// wait for what the nodes of one do when they begin.
    Begin,
    Node {
        turn: Option<TurnNumber>,
        node: NodeId,
        at: Monotonic,
        report: NodeReport,
    },
    Invocation {
        turn: Option<TurnNumber>,
        attempts: Vec<AttemptRecord>,
        outcome: Box<InvocationOutcome>,
    },
    ProviderSignal {
        turn: Option<TurnNumber>,
        /// Who asked the provider, and by which call.
        node: NodeId,
        call: InvocationId,
        signal: Signal,
        reason: String,
        at: Monotonic,
    },
    /// Work was shed where it is scheduled.
    Shed {
        turn: Option<TurnNumber>,
        node: Option<NodeId>,
        shed: Shed,
        at: Monotonic,
    },
    Playback {
        turn: TurnNumber,
        playback: Playback,
        at: Monotonic,
    },
    Transport {
        event: TransportEvent,
    },
    /// An edge that leads out has something to report.
    Edge {
        edge: EdgeId,
        lane: Lane,
        notice: EdgeNotice,
        at: Monotonic,
    },
    /// The session has come to a limit of its memory.
    Memory {
        mark: Mark,
        held: u64,
    },
    /// What is recorded from here on is not kept, but for how a turn ends (T9).
    EvidenceLost,
    /// A node blocks the thread that it was called on.
    Blocked {
        turn: Option<TurnNumber>,
        node: NodeId,
        for_at_least: Duration,
        /// Whether there is no hope left for a node that listens.
        is_lost: bool,
    },
    /// What the holder of the leases said to a renewal.
    Lease(Result<Lease, LeaseError>),
    /// A node's model calls tools.
    Tools {
        turn: TurnNumber,
        node: Arc<NodeSpec>,
        calls: Vec<ToolRequest>,
        /// Where the answers go.
        to: DataRef<Arrival>,
    },
    /// A tool's executor has passed its gate.
    ToolBegan {
        turn: TurnNumber,
        call: Arc<str>,
        at: Monotonic,
    },
    /// A tool has come back.
    ToolEnded {
        turn: TurnNumber,
        call: Arc<str>,
        outcome: ToolOutcome,
    },
    /// A durable write of a placement that was replaced was refused (T12).
    StaleWrite {
        node: NodeId,
        at: Monotonic,
    },
    Command(Command),
}

impl SessionControl {
    /// The turn that the message is about, if it is about one's work.
    pub(crate) fn turn(&self) -> Option<TurnNumber> {
        match self {
            Self::Node { turn, .. }
            | Self::Invocation { turn, .. }
            | Self::Blocked { turn, .. }
            | Self::Shed { turn, .. }
            | Self::ProviderSignal { turn, .. } => *turn,
            Self::Playback { turn, .. }
            | Self::Tools { turn, .. }
            | Self::ToolBegan { turn, .. }
            | Self::ToolEnded { turn, .. } => Some(*turn),
            Self::Transport { .. }
            | Self::Edge { .. }
            | Self::Begin
            | Self::Memory { .. }
            | Self::EvidenceLost
            | Self::StaleWrite { .. }
            | Self::Lease(_)
            | Self::Command(_) => None,
        }
    }
}
