//! What senders hold: one reference per lane, erased of the receiver's type.
//!
//! Priority is a capability, not a flag on a message: only a holder of a [`ControlRef`] can write the control lane.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};

use crate::id::ActorId;
use crate::lane::{Buffer, Offer};
use crate::lanes::{ControlRefused, Standing};
use crate::mailbox::Mailbox;

/// Sends control messages to one actor, across its restarts.
pub struct ControlRef<C> {
    port: Arc<dyn ControlPort<C>>,
}

/// Offers data to one actor, across its restarts.
pub struct DataRef<I> {
    port: Arc<dyn DataPort<I>>,
}

/// Offers telemetry to one actor, across its restarts.
pub struct TelemetryRef<T> {
    port: Arc<dyn TelemetryPort<T>>,
}

/// Where an actor can be reached: its identity and its three lanes.
///
/// It stays valid over restarts, because the mailbox is kept and handed to the next incarnation.
pub struct Address<C, I, T> {
    /// Who it is.
    pub id: ActorId,
    /// Its control lane.
    pub control: ControlRef<C>,
    /// Its data lane.
    pub data: DataRef<I>,
    /// Its telemetry lane.
    pub telemetry: TelemetryRef<T>,
}

// === impl ControlRef ===

impl<C> ControlRef<C> {
    /// Puts a message behind the control messages already waiting.
    pub fn send(&self, message: C) -> Result<(), ControlRefused<C>> {
        self.port.send(message, Standing::Ordinary)
    }

    /// The same, and may take the places kept in reserve: for supervision (cancel, fence, drain) only.
    pub fn send_reserved(&self, message: C) -> Result<(), ControlRefused<C>> {
        self.port.send(message, Standing::Reserved)
    }
}

// === impl DataRef ===

impl<I> DataRef<I> {
    /// Offers one item.
    pub fn offer(&self, item: I) -> Offer<I> {
        self.port.offer(item)
    }

    /// Offers items from the front of `batch` under one lock, and says how many went in.
    ///
    /// Stops at the first that is not taken and leaves it at the front. On a lane that displaces, what fell out is only
    /// counted: use [`offer_all_into`](Self::offer_all_into) where that is evidence.
    pub fn offer_all(&self, batch: &mut VecDeque<I>) -> usize {
        self.port.offer_all(batch, &mut Vec::new())
    }

    /// The same, collecting the items that fell out in `displaced`.
    pub fn offer_all_into(&self, batch: &mut VecDeque<I>, displaced: &mut Vec<I>) -> usize {
        self.port.offer_all(batch, displaced)
    }

    /// Waits until the lane [has space](Buffer::has_space) or is closed.
    ///
    /// Another sender may be quicker: offer again, and wait again if that comes back full.
    pub fn space(&self) -> impl Future<Output = ()> + Send + '_ {
        Space {
            port: &*self.port,
            part: None,
            place: None,
        }
    }

    /// Waits until one part of the lane [has space](Buffer::has_space_at) or the lane is closed.
    pub fn space_at(&self, part: usize) -> impl Future<Output = ()> + Send + '_ {
        Space {
            port: &*self.port,
            part: Some(part),
            place: None,
        }
    }

    /// Items waiting.
    pub fn depth(&self) -> usize {
        self.port.depth()
    }

    /// Whether the receiver has ended for good.
    pub fn is_closed(&self) -> bool {
        self.port.is_closed()
    }
}

// === impl TelemetryRef ===

impl<T> TelemetryRef<T> {
    /// Offers one item; never blocks. When the lane is full, the oldest item falls out, is counted and comes back.
    pub fn offer(&self, item: T) -> Offer<T> {
        self.port.offer(item)
    }

    /// Items that have fallen out since the actor was first started.
    pub fn dropped(&self) -> u64 {
        self.port.dropped()
    }
}

/// A place in the queue of senders that wait for space; left when the wait is given up.
struct Space<'a, I> {
    port: &'a dyn DataPort<I>,
    part: Option<usize>,
    place: Option<u64>,
}

impl<I> Future for Space<'_, I> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<()> {
        let (port, part) = (self.port, self.part);
        port.poll_space(cx, part, &mut self.place)
    }
}

impl<I> Drop for Space<'_, I> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.port.leave_space(place);
        }
    }
}

// === what the references are erased to ===

trait ControlPort<C>: Send + Sync {
    fn send(&self, message: C, standing: Standing) -> Result<(), ControlRefused<C>>;
}

trait DataPort<I>: Send + Sync {
    fn offer(&self, item: I) -> Offer<I>;
    fn offer_all(&self, batch: &mut VecDeque<I>, displaced: &mut Vec<I>) -> usize;
    fn poll_space(
        &self,
        cx: &mut task::Context<'_>,
        part: Option<usize>,
        place: &mut Option<u64>,
    ) -> Poll<()>;
    fn leave_space(&self, place: u64);
    fn depth(&self) -> usize;
    fn is_closed(&self) -> bool;
}

trait TelemetryPort<T>: Send + Sync {
    fn offer(&self, item: T) -> Offer<T>;
    fn dropped(&self) -> u64;
}

impl<C: Send, D: Buffer, T: Send> ControlPort<C> for Mailbox<C, D, T> {
    fn send(&self, message: C, standing: Standing) -> Result<(), ControlRefused<C>> {
        self.send_control(message, standing)
    }
}

impl<C: Send, D: Buffer, T: Send> DataPort<D::Item> for Mailbox<C, D, T> {
    fn offer(&self, item: D::Item) -> Offer<D::Item> {
        self.offer_data(item)
    }

    fn offer_all(&self, batch: &mut VecDeque<D::Item>, displaced: &mut Vec<D::Item>) -> usize {
        self.offer_all_data(batch, displaced)
    }

    fn poll_space(
        &self,
        cx: &mut task::Context<'_>,
        part: Option<usize>,
        place: &mut Option<u64>,
    ) -> Poll<()> {
        self.poll_data_space(cx, part, place)
    }

    fn leave_space(&self, place: u64) {
        self.leave_data_space(place);
    }

    fn depth(&self) -> usize {
        self.depths().1
    }

    fn is_closed(&self) -> bool {
        self.closed()
    }
}

impl<C: Send, D: Buffer, T: Send> TelemetryPort<T> for Mailbox<C, D, T> {
    fn offer(&self, item: T) -> Offer<T> {
        self.offer_telemetry(item)
    }

    fn dropped(&self) -> u64 {
        self.losses().1
    }
}

impl<C: Send + 'static> ControlRef<C> {
    pub(crate) fn new<D: Buffer, T: Send + 'static>(mailbox: Arc<Mailbox<C, D, T>>) -> Self {
        Self { port: mailbox }
    }
}

impl<I: Send + 'static> DataRef<I> {
    pub(crate) fn new<C, D, T>(mailbox: Arc<Mailbox<C, D, T>>) -> Self
    where
        C: Send + 'static,
        D: Buffer<Item = I>,
        T: Send + 'static,
    {
        Self { port: mailbox }
    }
}

impl<T: Send + 'static> TelemetryRef<T> {
    pub(crate) fn new<C: Send + 'static, D: Buffer>(mailbox: Arc<Mailbox<C, D, T>>) -> Self {
        Self { port: mailbox }
    }
}

impl<C: Send + 'static, I: Send + 'static, T: Send + 'static> Address<C, I, T> {
    pub(crate) fn new<D: Buffer<Item = I>>(id: ActorId, mailbox: &Arc<Mailbox<C, D, T>>) -> Self {
        Self {
            id,
            control: ControlRef::new(Arc::clone(mailbox)),
            data: DataRef::new(Arc::clone(mailbox)),
            telemetry: TelemetryRef::new(Arc::clone(mailbox)),
        }
    }
}

// Derives would ask that the items be `Clone` and `Debug` too.

impl<C> Clone for ControlRef<C> {
    fn clone(&self) -> Self {
        Self {
            port: Arc::clone(&self.port),
        }
    }
}

impl<I> Clone for DataRef<I> {
    fn clone(&self) -> Self {
        Self {
            port: Arc::clone(&self.port),
        }
    }
}

impl<T> Clone for TelemetryRef<T> {
    fn clone(&self) -> Self {
        Self {
            port: Arc::clone(&self.port),
        }
    }
}

impl<C, I, T> Clone for Address<C, I, T> {
    fn clone(&self) -> Self {
        Self {
            id: self.id,
            control: self.control.clone(),
            data: self.data.clone(),
            telemetry: self.telemetry.clone(),
        }
    }
}

impl<C> fmt::Debug for ControlRef<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlRef").finish_non_exhaustive()
    }
}

impl<I> fmt::Debug for DataRef<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataRef").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for TelemetryRef<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TelemetryRef").finish_non_exhaustive()
    }
}

impl<C, I, T> fmt::Debug for Address<C, I, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
