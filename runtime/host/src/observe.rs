//! Who listens in on a session, and to what (F-022, F-027, F-076).
//!
//! Subscribers filter by type, by node and by signal. What nobody asked for costs one look at one
//! word: audio is not copied, debug events are not made.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use rspp_kernel::SessionState;
use rspp_proto::{
    EventType, Monotonic, NodeId, Payload,
    abi::{ControlSignal, EventRecord, Signal},
};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

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

impl Notice {
    /// Bytes that it takes, estimated.
    fn weight(&self) -> u64 {
        /// What a record has beside its payload.
        const ENVELOPE: u64 = 256;
        let payload = match self {
            Self::Event(event) => event.payload.as_ref().map_or(0, Payload::weight),
            Self::Foreign(foreign) => foreign.raw.as_ref().map_or(0, |(_, raw)| raw.len()),
            Self::Signal(_) | Self::State(_) | Self::Turn(_) => 0,
        };
        ENVELOPE + payload as u64
    }
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

/// How far a capture of debug events goes: the bound that is met first ends it (F-076). So does a node
/// with too much to do to take newcomers: what is looked at must not be at the cost of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureBounds {
    /// How long.
    pub length: Duration,
    /// How many events.
    pub events: u32,
    /// How many bytes of them.
    pub bytes: u64,
}

impl Default for CaptureBounds {
    /// Ten seconds, 10,000 events, 1 MiB.
    fn default() -> Self {
        Self {
            length: Duration::from_secs(10),
            events: 10_000,
            bytes: 1 << 20,
        }
    }
}

/// Why a capture is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaptureEnd {
    /// Its time was up.
    Time,
    /// It had all the events that it may have.
    Events,
    /// It had all the bytes that it may have.
    Bytes,
    /// The node had too much else to do.
    Overload,
    /// The session ended.
    Session,
}

/// The debug events of one session, for a while.
#[derive(Debug)]
pub struct Capture {
    notices: broadcast::Receiver<Notice>,
    ended: Arc<OnceLock<CaptureEnd>>,
    missed: u64,
}

impl Capture {
    /// The next event; `None` when the capture is over.
    pub async fn next(&mut self) -> Option<Notice> {
        loop {
            match self.notices.recv().await {
                Ok(notice) => return Some(notice),
                Err(RecvError::Lagged(count)) => self.missed += count,
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// The next event, if there is one already.
    pub fn try_next(&mut self) -> Option<Notice> {
        loop {
            match self.notices.try_recv() {
                Ok(notice) => return Some(notice),
                Err(TryRecvError::Lagged(count)) => self.missed += count,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
            }
        }
    }

    /// Events that came faster than they were read, and are gone.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Why it is over; `None` while it is not.
    pub fn ended(&self) -> Option<CaptureEnd> {
        let over = || self.notices.is_closed().then_some(CaptureEnd::Session);
        self.ended.get().copied().or_else(over)
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
const CAPTURED: u8 = 8;

/// Who listens in on a session.
#[derive(Debug, Default)]
pub(crate) struct Observers {
    /// What there is to be done at all, for a look without the lock.
    flags: AtomicU8,
    subscribers: Mutex<Vec<Subscriber>>,
}

#[derive(Debug)]
struct Subscriber {
    filter: Filter,
    to: broadcast::Sender<Notice>,
    /// Of a capture, what is left of it.
    capture: Option<Left>,
}

#[derive(Debug)]
struct Left {
    until: Monotonic,
    events: u32,
    bytes: u64,
    ended: Arc<OnceLock<CaptureEnd>>,
}

impl Left {
    fn end(&self, how: CaptureEnd) {
        // The first bound that is met has the say.
        let _earlier = self.ended.set(how);
    }

    /// Takes what an event costs; `false` if there is not so much left.
    fn spend(&mut self, bytes: u64) -> bool {
        let left = (self.events.checked_sub(1), self.bytes.checked_sub(bytes));
        match left {
            (Some(events), Some(bytes)) => {
                (self.events, self.bytes) = (events, bytes);
                if events == 0 {
                    self.end(CaptureEnd::Events);
                }
                true
            }
            (None, _) => {
                self.end(CaptureEnd::Events);
                false
            }
            (Some(_), None) => {
                self.end(CaptureEnd::Bytes);
                false
            }
        }
    }
}

impl Subscriber {
    fn is_there(&self) -> bool {
        let over = |left: &Left| left.ended.get().is_some();
        self.to.receiver_count() > 0 && !self.capture.as_ref().is_some_and(over)
    }
}

impl Observers {
    /// What is said from now on and passes `filter`.
    pub(crate) fn subscribe(&self, filter: Filter) -> broadcast::Receiver<Notice> {
        self.add(filter, None)
    }

    /// The debug events from now on, until one of the bounds is met.
    pub(crate) fn capture(&self, now: Monotonic, bounds: CaptureBounds) -> Capture {
        let ended = Arc::<OnceLock<CaptureEnd>>::default();
        let left = Left {
            until: now + bounds.length,
            events: bounds.events,
            bytes: bounds.bytes,
            ended: Arc::clone(&ended),
        };
        if bounds.events == 0 {
            left.end(CaptureEnd::Events);
        }
        Capture {
            notices: self.add(Filter::of([EventType::Debug]), Some(left)),
            ended,
            missed: 0,
        }
    }

    fn add(&self, filter: Filter, capture: Option<Left>) -> broadcast::Receiver<Notice> {
        let (to, notices) = broadcast::channel(BEHIND);
        let mut subscribers = self.lock();
        subscribers.push(Subscriber {
            filter,
            to,
            capture,
        });
        self.note(&subscribers);
        notices
    }

    /// Ends the captures whose time is up, or all of them while the node is loaded. When the next one is
    /// due.
    pub(crate) fn end_captures(&self, now: Monotonic, loaded: bool) -> Option<Monotonic> {
        let mut subscribers = self.lock();
        for left in subscribers.iter().filter_map(|it| it.capture.as_ref()) {
            if left.until <= now {
                left.end(CaptureEnd::Time);
            } else if loaded {
                left.end(CaptureEnd::Overload);
            }
        }
        subscribers.retain(Subscriber::is_there);
        self.note(&subscribers);
        let captures = subscribers.iter().filter_map(|it| it.capture.as_ref());
        captures.map(|left| left.until).min()
    }

    /// Says something to those who want to hear it.
    pub(crate) fn publish(&self, about: &About<'_>, notice: impl FnOnce() -> Notice) {
        if !self.has(LISTENED_TO) {
            return;
        }
        let mut subscribers = self.lock();
        let mut made = None;
        let mut notice = Some(notice);
        for subscriber in subscribers.iter_mut().filter(|s| s.filter.wants(about)) {
            let notice = made.get_or_insert_with(|| (notice.take().expect("it is made once"))());
            let allowed = match &mut subscriber.capture {
                Some(left) => left.spend(notice.weight()),
                None => true,
            };
            if allowed {
                let _left_just_now = subscriber.to.send(notice.clone());
            }
        }
        if !subscribers.iter().all(Subscriber::is_there) {
            subscribers.retain(Subscriber::is_there);
            self.note(&subscribers);
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

    /// Has debug events made for as long as the session lives.
    pub(crate) fn debug(&self) {
        self.flags.fetch_or(DEBUGGED, Ordering::Relaxed);
    }

    /// Whether debug events are wanted.
    pub(crate) fn is_debugging(&self) -> bool {
        self.has(DEBUGGED | CAPTURED)
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
        if subscribers.iter().any(|s| s.capture.is_some()) {
            flags |= CAPTURED;
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
