//! The three lanes of one actor as a plain value: ranks, bounds and answers, without locks or wake-ups.

use std::collections::VecDeque;

use thiserror::Error;

use crate::lane::{Buffer, LaneLimits, Offer};

/// What an actor takes from its lanes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<C, I, T> {
    /// From the control lane, which comes first.
    Control(C),
    /// From the data lane.
    Data(I),
    /// From the telemetry lane, when the others are empty.
    Telemetry(T),
}

/// Why a control message was not taken; it comes back inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ControlRefused<C> {
    /// The lane is full. Control is never shed: the sender has to fail what depended on this message.
    #[error(
        "the receiver's control lane is full: raise `LaneLimits::control`, or send less control to it"
    )]
    Overflow(C),
    /// The receiver has ended for good.
    #[error("the receiver has ended")]
    Closed(C),
}

impl<C> ControlRefused<C> {
    /// The message that was not taken.
    pub fn into_inner(self) -> C {
        match self {
            Self::Overflow(message) | Self::Closed(message) => message,
        }
    }
}

/// Who sends a control message decides which places it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Up to [`LaneLimits::control`].
    Ordinary,
    /// May use [`LaneLimits::control_reserve`] as well.
    Reserved,
}

/// Three queues, ranked.
pub(crate) struct Lanes<C, D: Buffer, T> {
    limits: LaneLimits,
    control: VecDeque<C>,
    pub(crate) data: D,
    telemetry: VecDeque<T>,
    /// While set, data waits and the other lanes are served.
    data_paused: bool,
    closed: bool,
    data_displaced: u64,
    telemetry_dropped: u64,
}

impl<C, D: Buffer, T> Lanes<C, D, T> {
    pub(crate) fn new(limits: LaneLimits, data: D) -> Self {
        Self {
            limits,
            control: VecDeque::new(),
            data,
            telemetry: VecDeque::new(),
            data_paused: false,
            closed: false,
            data_displaced: 0,
            telemetry_dropped: 0,
        }
    }

    pub(crate) fn send_control(
        &mut self,
        message: C,
        standing: Standing,
    ) -> Result<(), ControlRefused<C>> {
        if self.closed {
            return Err(ControlRefused::Closed(message));
        }
        let places = match standing {
            Standing::Ordinary => self.limits.control.get(),
            Standing::Reserved => self
                .limits
                .control
                .get()
                .saturating_add(self.limits.control_reserve.get()),
        };
        if self.control.len() >= places {
            return Err(ControlRefused::Overflow(message));
        }
        self.control.push_back(message);
        Ok(())
    }

    pub(crate) fn offer_data(&mut self, item: D::Item) -> Offer<D::Item> {
        if self.closed {
            return Offer::Closed(item);
        }
        let offer = self.data.offer(item);
        match &offer {
            Offer::Displaced(_) => self.data_displaced += 1,
            Offer::Queued | Offer::Full(_) | Offer::Closed(_) => {}
        }
        offer
    }

    pub(crate) fn offer_telemetry(&mut self, item: T) -> Offer<T> {
        if self.closed {
            return Offer::Closed(item);
        }
        let oldest = if self.telemetry.len() < self.limits.telemetry.get() {
            None
        } else {
            self.telemetry.pop_front()
        };
        self.telemetry.push_back(item);
        match oldest {
            None => Offer::Queued,
            Some(oldest) => {
                self.telemetry_dropped += 1;
                Offer::Displaced(oldest)
            }
        }
    }

    /// The next item: control before data before telemetry, each lane in its own order.
    pub(crate) fn take(&mut self) -> Option<Item<C, D::Item, T>> {
        if let Some(message) = self.control.pop_front() {
            return Some(Item::Control(message));
        }
        if !self.data_paused
            && let Some(item) = self.data.pop()
        {
            return Some(Item::Data(item));
        }
        self.telemetry.pop_front().map(Item::Telemetry)
    }

    pub(crate) fn take_control(&mut self) -> Option<C> {
        self.control.pop_front()
    }

    pub(crate) fn take_data(&mut self) -> Option<D::Item> {
        self.data.pop()
    }

    pub(crate) fn pause_data(&mut self, paused: bool) {
        self.data_paused = paused;
    }

    pub(crate) fn data_paused(&self) -> bool {
        self.data_paused
    }

    /// Refuses everything from now on and hands over what was waiting.
    pub(crate) fn close(&mut self) -> (VecDeque<C>, Vec<D::Item>, VecDeque<T>) {
        self.closed = true;
        let data = std::iter::from_fn(|| self.data.pop()).collect();
        (
            std::mem::take(&mut self.control),
            data,
            std::mem::take(&mut self.telemetry),
        )
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Waiting control messages, data items and telemetry items.
    pub(crate) fn depths(&self) -> (usize, usize, usize) {
        (self.control.len(), self.data.len(), self.telemetry.len())
    }

    /// Items that newer ones pushed out: of the data lane, of the telemetry lane.
    pub(crate) fn losses(&self) -> (u64, u64) {
        (self.data_displaced, self.telemetry_dropped)
    }
}
