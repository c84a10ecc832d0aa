//! What happens in a simulation, as a list that can be read, shortened and played again.

use std::{fmt, time::Duration};

use rspp_proto::spec::{DataHandling, Modality, OverLimit};
use rspp_provider_api::scripted::{Conduct, Trouble};

/// A whole simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Where it came from; jitter within the pieces follows from it too.
    pub seed: u64,
    /// What happens, in no order: each piece says when.
    pub pieces: Vec<Piece>,
}

/// One thing that happens, or is different from the plainest call. Any piece may be left out.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Somebody calls. All that is said of a caller who does not call is void.
    Caller {
        /// Who.
        caller: u8,
        /// When the session is opened.
        opens_ms: u64,
        /// When the user hangs up, from then.
        hangs_up_ms: u64,
        /// How much audio a packet holds.
        packet_ms: u64,
    },
    /// The user does something.
    User {
        /// Who.
        caller: u8,
        /// When, from the opening of the session.
        at_ms: u64,
        /// What.
        does: UserAct,
    },
    /// An operator or the control plane orders something.
    Operator {
        /// Of whose session.
        caller: u8,
        /// When, from the beginning.
        at_ms: u64,
        /// What.
        orders: Order,
    },
    /// The connection misbehaves.
    Line {
        /// Whose.
        caller: u8,
        /// How.
        fault: LineFault,
    },
    /// The timeline is written to a disk that misbehaves.
    Disk {
        /// Whose.
        caller: u8,
        /// How.
        fault: DiskFault,
    },
    /// So little may wait for the disk, beside what one turn cannot do without.
    Tight {
        /// Whose timeline.
        caller: u8,
        /// Entries of all kinds.
        entries: usize,
    },
    /// Each voice detector panics after so many windows of 20 ms.
    DeafeningNoise {
        /// How many.
        windows: u64,
    },
    /// How sure the end-of-turn model is that the user has finished, question by question, in percent.
    Hesitation {
        /// The answers, round and round.
        percent: Vec<u64>,
    },
    /// Somebody subscribes to the session and does not listen.
    DeafSubscriber {
        /// Whose session.
        caller: u8,
    },
    /// A call to a provider goes like this.
    Provider {
        /// Which provider.
        part: Part,
        /// Its n-th call of all, from 0.
        call: u32,
        /// How it goes.
        conduct: Conduct,
    },
    /// How fast the providers are.
    Pace {
        /// Between two words of the model.
        token_ms: u64,
        /// Share of a clause's length that synthesis takes, in percent.
        voice_percent: u64,
        /// From the end of an utterance to its transcript.
        final_ms: u64,
    },
    /// The pipeline is another one.
    Twist(Twist),
    /// The runtime holds no more than this.
    Limits {
        /// Sessions.
        sessions: usize,
        /// Turns.
        turns: usize,
    },
    /// Each tenant, or the node, has no more than this. Callers are of two tenants, in turn.
    Quota {
        /// Whether all tenants share it.
        shared: bool,
        /// What is counted.
        of: Counted,
        /// How many.
        most: u64,
        /// What is done about more.
        over: OverLimit,
    },
    /// The processors are so busy from then on.
    Load {
        /// From when, from the beginning.
        at_ms: u64,
        /// How busy.
        percent: u64,
    },
    /// Nobody is on the line: the call comes last under load.
    Background {
        /// Whose.
        caller: u8,
    },
    /// The model may call a tool that has effects.
    Tool(Chore),
    /// Answers are begun on a guess, within these budgets.
    Guesses {
        /// Most in a minute.
        per_minute: u32,
        /// Most tokens wasted in a minute.
        wasted_tokens: u64,
    },
    /// Leases last so long unless they are renewed.
    Lease {
        /// How long.
        ms: u64,
    },
    /// The session goes on in the other runtime.
    Move {
        /// Whose.
        caller: u8,
        /// When, from the beginning.
        at_ms: u64,
        /// How.
        by: Departure,
    },
    /// Sessions may hold no more than this.
    Memory {
        /// From where on they shed, in KiB.
        soft_kib: u64,
        /// Where they end, in KiB.
        cap_kib: u64,
    },
}

/// What a quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Sessions at once.
    Sessions,
    /// Sessions a minute.
    SessionsPerMinute,
    /// Turns at once.
    Turns,
    /// Turns a minute.
    TurnsPerMinute,
    /// Tokens a minute.
    TokensPerMinute,
}

/// How a session leaves a runtime for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// In order: it is told to leave, and some time later that it is handed over.
    HandOver {
        /// How much later.
        after_ms: u64,
    },
    /// Its runtime cannot reach the leases any more; the other takes the session over as soon as it is
    /// granted that. Nothing, where leases do not run out.
    Lost,
}

/// A tool, and how it behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chore {
    /// Whether a failed attempt may be repeated under the same key.
    pub idempotent: bool,
    /// Whether it asks for leave itself, right before its effect, after so long.
    pub prepares_ms: Option<u64>,
    /// How long it takes from its effect to its answer.
    pub takes_ms: u64,
    /// What becomes of it with its turn.
    pub finishes: bool,
    /// The most that it may take.
    pub timeout_ms: u64,
    /// How it misbehaves.
    pub fault: ChoreFault,
}

/// How a tool misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChoreFault {
    /// Not at all.
    None,
    /// So many attempts fail before their effect, and may be repeated.
    Fails {
        /// How many.
        attempts: u32,
    },
    /// It never answers.
    Deaf,
    /// It panics after its effect.
    Panics,
    /// What it has begun to prepare goes on when it is given up.
    Stubborn,
}

/// What a user does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserAct {
    /// Speaks for so long. Short: a cough.
    Speaks {
        /// How long.
        for_ms: u64,
    },
    /// Types.
    Types(String),
    /// Says that the utterance is over.
    EndsUtterance,
    /// Cancels the running turn.
    Cancels,
}

/// What an operator or the control plane orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Cancel the running turn.
    CancelTurn,
    /// Cancel the session.
    CancelSession,
    /// Cancel one node's work.
    CancelNode(&'static str),
    /// Cancel a provider call, by the modality and number of its node.
    CancelCall(&'static str, u32),
    /// Grant a newer lease, and tell the session.
    Rotate,
    /// Tell the session of a lease that is no news.
    RotateBack,
    /// Give the session's lease to somebody else, and tell nobody.
    Steal,
    /// Take the session's authority.
    Revoke,
    /// Let the session end with its turn.
    Drain,
    /// Shut the runtime down.
    ShutDown,
}

/// How a connection misbehaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineFault {
    /// Packets come late by up to so much, in order.
    Jitter {
        /// How much.
        up_to_ms: u64,
    },
    /// Nothing comes for a while, then everything.
    Stalls {
        /// From when, from the opening of the session.
        at_ms: u64,
        /// For how long.
        for_ms: u64,
    },
    /// The peer takes no audio for a while.
    Full {
        /// From when.
        at_ms: u64,
        /// For how long.
        for_ms: u64,
    },
    /// The peer is gone: nothing comes any more, and it takes nothing.
    Dies {
        /// When.
        at_ms: u64,
    },
    /// The peer takes nothing any more, though it still sends.
    Closes {
        /// When.
        at_ms: u64,
    },
    /// No audio is sent for a while, and none later in its place.
    Mute {
        /// From when, from the opening of the session.
        at_ms: u64,
        /// For how long.
        for_ms: u64,
    },
    /// The link is lost and comes back.
    Reconnects {
        /// When.
        at_ms: u64,
        /// How long that takes.
        for_ms: u64,
    },
}

/// How a disk misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// Nothing; but the timeline goes through it.
    None,
    /// Each batch takes so long.
    Slow {
        /// How long.
        ms: u64,
    },
    /// It is full after so many bytes.
    Full {
        /// How many.
        bytes: usize,
    },
    /// It fails after so many bytes, and works again afterwards.
    Fails {
        /// How many.
        bytes: usize,
    },
}

/// A provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// What it does.
    pub modality: Modality,
    /// Whether it is the second of its modality.
    pub second: bool,
}

/// How a pipeline differs from the built-in one.
#[derive(Clone, Debug, PartialEq)]
pub enum Twist {
    /// An edge has bounds of its own.
    Buffer {
        /// From which node.
        from: &'static str,
        /// To which.
        to: &'static str,
        /// What gives when it is full.
        strategy: DataHandling,
        /// Most items.
        items: u64,
        /// What else is said of it.
        tuned: Tuned,
    },
    /// A second provider stands behind the first.
    Second(Modality),
    /// A second model node stands by for the first.
    Standby,
    /// A second voice node stands by for the first.
    StandbyVoice,
    /// Model and segmenter are connected by two branches, of which an attribute chooses one.
    Branches {
        /// Whether they meet in a `select`, or else in a `merge`.
        select: bool,
    },
    /// Beside the edge from segmenter to voice there is a second way.
    Beside {
        /// How long an event takes there.
        ms: u64,
        /// Whether it is the only one that anything goes.
        only: bool,
    },
    /// A node that looks at what passes, on an edge.
    Tap {
        /// From which node.
        from: &'static str,
        /// To which.
        to: &'static str,
    },
    /// A node that misbehaves, on an edge.
    Node {
        /// From which node.
        from: &'static str,
        /// To which.
        to: &'static str,
        /// Which event, from 1.
        nth: u32,
        /// How.
        fault: NodeFault,
    },
    /// The model's node has so much time.
    Budget {
        /// How much.
        ms: u64,
    },
    /// Providers have so much time for their first word, and between two.
    Patience {
        /// How much.
        ms: u64,
    },
    /// Under load, or beyond a quota, turns are served with less.
    Posture,
    /// What is said of the connection, and what becomes of it, comes sooner.
    Impatience {
        /// Until `silence`.
        silence_ms: u64,
        /// Until `stall`.
        stall_ms: u64,
        /// Until a stalled or lost connection is given up.
        cleanup_ms: u64,
    },
    /// The user's words do not interrupt the agent.
    NoBargeIn,
    /// What comes late is told of.
    Diagnostics,
}

/// What may be said of an edge beside its strategy and bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tuned {
    /// Nothing.
    Plain,
    /// Its sender needs credit.
    Credit,
    /// Its sender needs credit and is stopped and started.
    Hybrid,
    /// Partials are delivered at most this often; with `merge` only.
    Coalesced {
        /// How often.
        ms: u64,
    },
    /// What has waited this long goes.
    Aged {
        /// How long.
        ms: u64,
    },
    /// What belongs together is dropped together.
    Atomic,
    /// What is lost is told to whoever listens, as a discontinuity.
    Reset,
}

/// How a node misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeFault {
    /// Panics.
    Panics,
    /// Returns an error.
    Fails,
    /// Takes so long for each event from then on.
    Slow {
        /// How long.
        ms: u64,
    },
    /// Never comes back.
    Hangs,
}

impl LineFault {
    /// The same on a clock that began so much later.
    pub(super) fn sooner(&mut self, by_ms: u64) {
        match self {
            Self::Jitter { .. } => {}
            Self::Dies { at_ms } | Self::Closes { at_ms } => *at_ms = at_ms.saturating_sub(by_ms),
            Self::Stalls { at_ms, for_ms }
            | Self::Full { at_ms, for_ms }
            | Self::Mute { at_ms, for_ms }
            | Self::Reconnects { at_ms, for_ms } => {
                let until = (*at_ms + *for_ms).saturating_sub(by_ms);
                *at_ms = at_ms.saturating_sub(by_ms);
                *for_ms = until.saturating_sub(*at_ms);
            }
        }
    }
}

impl Scenario {
    /// Whether nothing fails, nobody orders anything and nothing is too tight.
    pub(super) fn is_plain(&self) -> bool {
        self.pieces.iter().all(|piece| match piece {
            Piece::Caller { .. }
            | Piece::User { .. }
            | Piece::DeafSubscriber { .. }
            | Piece::Hesitation { .. }
            | Piece::Background { .. }
            | Piece::Guesses { .. }
            | Piece::Lease { .. }
            | Piece::Pace { .. } => true,
            Piece::Tool(chore) => chore.fault == ChoreFault::None,
            Piece::Line { fault, .. } => matches!(fault, LineFault::Jitter { .. }),
            Piece::Disk { fault, .. } => matches!(fault, DiskFault::None),
            Piece::Twist(twist) => match twist {
                Twist::Second(_)
                | Twist::Standby
                | Twist::StandbyVoice
                | Twist::Branches { .. }
                | Twist::Beside { .. }
                | Twist::Tap { .. }
                | Twist::Posture
                | Twist::Impatience { .. }
                | Twist::NoBargeIn
                | Twist::Diagnostics => true,
                Twist::Buffer { .. }
                | Twist::Node { .. }
                | Twist::Budget { .. }
                | Twist::Patience { .. } => false,
            },
            Piece::Operator { .. }
            | Piece::Provider { .. }
            | Piece::Tight { .. }
            | Piece::DeafeningNoise { .. }
            | Piece::Quota { .. }
            | Piece::Load { .. }
            | Piece::Move { .. }
            | Piece::Memory { .. }
            | Piece::Limits { .. } => false,
        })
    }

    /// The same as if these callers had never called.
    pub(super) fn without(&self, callers: &[u8]) -> Self {
        let mut without = self.clone();
        without.pieces.retain(
            |piece| !matches!(piece, Piece::Caller { caller, .. } if callers.contains(caller)),
        );
        without
    }

    /// Whether all that fails is a model before its first word, for which another stands by.
    pub(super) fn is_stood_in_for(&self) -> bool {
        let mut without = self.clone();
        without.pieces.retain(|piece| match piece {
            Piece::Provider { part, conduct, .. } => {
                let first = part.modality == Modality::Llm && !part.second;
                let at_once = matches!(
                    conduct.trouble,
                    Some((0, Trouble::Fail(_) | Trouble::Panic))
                );
                !(first && at_once)
            }
            _something_else => true,
        });
        let mut pieces = self.pieces.iter();
        pieces.any(|piece| *piece == Piece::Twist(Twist::Standby)) && without.is_plain()
    }

    /// What `caller` types while nobody and nothing keeps a turn from opening.
    pub(super) fn typed(&self, caller: u8) -> Vec<(Duration, &str)> {
        let hindered = self.pieces.iter().any(|piece| match piece {
            Piece::Operator { .. }
            | Piece::Limits { .. }
            | Piece::Quota { .. }
            | Piece::Load { .. }
            | Piece::Move { .. }
            | Piece::Memory { .. }
            | Piece::DeafeningNoise { .. } => true,
            Piece::Twist(twist) => matches!(twist, Twist::NoBargeIn),
            Piece::Line { caller: of, fault } => {
                *of == caller && !matches!(fault, LineFault::Jitter { .. })
            }
            // What listens and cannot go on ends the session.
            Piece::Provider { part, .. } => part.modality == Modality::Stt,
            _else => false,
        });
        let mut hangs_up = 0;
        let mut typed = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Caller {
                    caller: of,
                    hangs_up_ms,
                    ..
                } if *of == caller => hangs_up = *hangs_up_ms,
                Piece::User {
                    caller: of,
                    at_ms,
                    does: UserAct::Types(text),
                } if *of == caller => typed.push((*at_ms, text.as_str())),
                _something_else => {}
            }
        }
        // The line needs a moment to hand the last words over.
        typed.retain(|(at, _)| !hindered && at + 200 < hangs_up);
        let listed = typed.into_iter();
        listed
            .map(|(at, text)| (Duration::from_millis(at), text))
            .collect()
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}:", self.seed)?;
        for piece in &self.pieces {
            writeln!(f, "  {piece:?}")?;
        }
        Ok(())
    }
}
