//! Who listens in on a session, and to what (F-022, F-027, F-076).
//!
//! Subscribers filter by type, by node and by signal. What nobody asked for costs one look at one
//! word: audio is not copied, debug events are not made.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
};

use rspp_kernel::SessionState;
use rspp_proto::{
    EventType, NodeId,
    abi::{ControlSignal, EventRecord, Signal},
};
use tokio::sync::broadcast;

use crate::{event::Event, report::TurnReport, session::Foreign};

/// What subscribers of a session hear.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A control signal.
    Signal(Box<ControlSignal>),
    /// An event: audio, text, errors, notes, measurements.
    Event(Box<EventRecord>),
    /// The session's state changed.
    State(SessionState),
    /// A turn is closed.
    Turn(Box<TurnReport>),
    /// An event of an unknown type was passed through, as it came (F-020). Counts as debug.
    Foreign(Box<Foreign>),
}

/// What a subscriber wants to hear (F-022). By default everything but audio.
///
/// Audio, and whatever named nodes make, is taken where it is made and copied to the subscriber; it
/// is lost before it delays anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    types: BTreeSet<EventType>,
    nodes: Option<BTreeSet<NodeId>>,
    signals: Option<BTreeSet<Signal>>,
}

impl Default for Filter {
    fn default() -> Self {
        Self::of([
            EventType::Text,
            EventType::Control,
            EventType::Metrics,
            EventType::Debug,
            EventType::Error,
        ])
    }
}

impl Filter {
    /// Only these types. Changes of state and closed turns count as control.
    pub fn of(types: impl IntoIterator<Item = EventType>) -> Self {
        Self {
            types: types.into_iter().collect(),
            nodes: None,
            signals: None,
        }
    }

    /// Only what these nodes make; `ingress` is the user's audio. Of control signals, those about
    /// these nodes.
    #[must_use]
    pub fn from_nodes(mut self, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        self.nodes = Some(nodes.into_iter().collect());
        self
    }

    /// Of control signals only these.
    #[must_use]
    pub fn only_signals(mut self, signals: impl IntoIterator<Item = Signal>) -> Self {
        self.signals = Some(signals.into_iter().collect());
        self
    }

    fn wants(&self, what: &About<'_>) -> bool {
        let of_node = self
            .nodes
            .as_ref()
            .is_none_or(|nodes| what.node.is_some_and(|node| nodes.contains(node)));
        let of_signal = match (&self.signals, what.signal) {
            (Some(signals), Some(signal)) => signals.contains(&signal),
            (Some(_), None) => what.kind != EventType::Control,
            (None, _) => true,
        };
        self.types.contains(&what.kind) && of_node && of_signal
    }

    /// Whether it asks for events that are otherwise not said to anybody.
    fn taps(&self) -> bool {
        self.types.contains(&EventType::Audio) || self.nodes.is_some()
    }
}

/// What a notice is about, for filters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About<'a> {
    pub(crate) kind: EventType,
    pub(crate) node: Option<&'a NodeId>,
    pub(crate) signal: Option<Signal>,
}

/// Something to show on the session's telemetry lane.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) node: NodeId,
    pub(crate) edge: Option<rspp_proto::EdgeId>,
    pub(crate) event: Event,
    /// Whether it went its way and this is a copy for those who listen in. Else nobody downstream
    /// asked for it.
    pub(crate) copied: bool,
}

/// Notices that a slow subscriber may be behind before it misses some.
const BEHIND: usize = 1_024;

const LISTENED_TO: u8 = 1;
const TAPPED: u8 = 2;
const DEBUGGED: u8 = 4;

/// Who listens in on a session.
#[derive(Debug, Default)]
pub(crate) struct Observers {
    /// What there is to be done at all, for a look without the lock.
    flags: AtomicU8,
    /// Debug events that may still be made.
    debug_left: AtomicU32,
    subscribers: Mutex<Vec<Subscriber>>,
}

#[derive(Debug)]
struct Subscriber {
    filter: Filter,
    to: broadcast::Sender<Notice>,
}

impl Observers {
    /// What is said from now on and passes `filter`.
    pub(crate) fn subscribe(&self, filter: Filter) -> broadcast::Receiver<Notice> {
        let (to, notices) = broadcast::channel(BEHIND);
        let mut subscribers = self.lock();
        subscribers.push(Subscriber { filter, to });
        self.note(&subscribers);
        notices
    }

    /// Says something to those who want to hear it.
    pub(crate) fn publish(&self, about: &About<'_>, notice: impl FnOnce() -> Notice) {
        if !self.has(LISTENED_TO) {
            return;
        }
        let mut subscribers = self.lock();
        let before = subscribers.len();
        subscribers.retain(|subscriber| subscriber.to.receiver_count() > 0);
        if subscribers.len() < before {
            self.note(&subscribers);
        }
        let mut wanted = subscribers
            .iter()
            .filter(|s| s.filter.wants(about))
            .peekable();
        if wanted.peek().is_some() {
            let notice = notice();
            for subscriber in wanted {
                let _left_just_now = subscriber.to.send(notice.clone());
            }
        }
    }

    /// Whether a copy of what a node makes has to be shown to somebody.
    pub(crate) fn taps(&self, node: &NodeId, kind: EventType) -> bool {
        if !self.has(TAPPED) {
            return false;
        }
        let about = About {
            kind,
            node: Some(node),
            signal: None,
        };
        let subscribers = self.lock();
        subscribers
            .iter()
            .any(|s| s.filter.taps() && s.filter.wants(&about))
    }

    /// Turns debug events on, for at most `most` of them.
    pub(crate) fn debug(&self, most: u32) {
        self.debug_left.store(most, Ordering::Relaxed);
        self.flags.fetch_or(DEBUGGED, Ordering::Relaxed);
    }

    /// Turns debug events off.
    pub(crate) fn end_debug(&self) {
        self.flags.fetch_and(!DEBUGGED, Ordering::Relaxed);
    }

    /// Whether debug events are wanted.
    pub(crate) fn is_debugging(&self) -> bool {
        self.has(DEBUGGED)
    }

    /// Whether one more debug event may be made; the last one turns them off.
    pub(crate) fn spend_debug(&self) -> bool {
        if !self.is_debugging() {
            return false;
        }
        let left = self
            .debug_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
        if left.is_err() {
            self.end_debug();
        }
        left.is_ok()
    }

    fn has(&self, flag: u8) -> bool {
        self.flags.load(Ordering::Relaxed) & flag != 0
    }

    fn note(&self, subscribers: &[Subscriber]) {
        let mut flags = 0;
        if !subscribers.is_empty() {
            flags |= LISTENED_TO;
        }
        if subscribers.iter().any(|s| s.filter.taps()) {
            flags |= TAPPED;
        }
        let _old = self
            .flags
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
                Some((old & DEBUGGED) | flags)
            });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Subscriber>> {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
