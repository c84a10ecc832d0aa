//! The three lanes of one actor as a plain value: ranks, bounds and answers, without locks or wake-ups.

use std::collections::VecDeque;
use std::fmt;

use thiserror::Error;

use crate::lane::{Buffer, LaneLimits, Offer};

/// What an actor takes from its lanes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<C, I, T> {
    /// From the control lane, which comes first.
    Control(C),
    /// The data lane has something to say, see [`Buffer::has_news`].
    News,
    /// From the data lane.
    Data(I),
    /// From the telemetry lane, when the others are empty.
    Telemetry(T),
}

/// Why a control message was not taken; it comes back inside.
#[derive(Clone, Copy, PartialEq, Eq, Error)]
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

// A derive would ask that the message be `Debug`, and then `?` and `expect` would too.
impl<C> fmt::Debug for ControlRefused<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overflow(_) => "Overflow(..)",
            Self::Closed(_) => "Closed(..)",
        })
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

    /// The next item: control before data before telemetry, each lane in its own order. News of the data lane come
    /// before its items.
    pub(crate) fn take(&mut self) -> Option<Item<C, D::Item, T>> {
        if let Some(message) = self.control.pop_front() {
            return Some(Item::Control(message));
        }
        if self.data.take_news() {
            return Some(Item::News);
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

    pub(crate) fn has_control(&self) -> bool {
        !self.control.is_empty()
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

#[cfg(all(test, not(loom)))]
mod tests {
    use std::num::NonZeroUsize;

    use proptest::prelude::*;

    use super::*;
    use crate::lane::{Bounded, Overflow};

    const CONTROL: usize = 3;
    const RESERVE: usize = 2;
    const DATA: usize = 4;
    const TELEMETRY: usize = 3;

    #[derive(Clone, Debug)]
    enum Op {
        Control,
        ControlReserved,
        Data,
        Telemetry,
        Take,
        TakeControl,
        Pause(bool),
        Close,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => Just(Op::Control),
            2 => Just(Op::ControlReserved),
            6 => Just(Op::Data),
            4 => Just(Op::Telemetry),
            8 => Just(Op::Take),
            1 => Just(Op::TakeControl),
            2 => any::<bool>().prop_map(Op::Pause),
            1 => Just(Op::Close),
        ]
    }

    /// The lanes as one would explain them: three lists.
    #[derive(Default)]
    struct Model {
        control: Vec<u32>,
        data: Vec<u32>,
        telemetry: Vec<u32>,
        paused: bool,
        closed: bool,
        lost: (u64, u64),
    }

    impl Model {
        fn take(&mut self) -> Option<Item<u32, u32, u32>> {
            if !self.control.is_empty() {
                Some(Item::Control(self.control.remove(0)))
            } else if !self.paused && !self.data.is_empty() {
                Some(Item::Data(self.data.remove(0)))
            } else if !self.telemetry.is_empty() {
                Some(Item::Telemetry(self.telemetry.remove(0)))
            } else {
                None
            }
        }

        fn control(&mut self, n: u32, places: usize) -> Result<(), ControlRefused<u32>> {
            if self.closed {
                Err(ControlRefused::Closed(n))
            } else if self.control.len() >= places {
                Err(ControlRefused::Overflow(n))
            } else {
                self.control.push(n);
                Ok(())
            }
        }

        fn data(&mut self, n: u32, overflow: Overflow) -> Offer<u32> {
            if self.closed {
                return Offer::Closed(n);
            }
            if self.data.len() < DATA {
                self.data.push(n);
                return Offer::Queued;
            }
            match overflow {
                Overflow::Refuse => Offer::Full(n),
                Overflow::DropOldest => {
                    self.data.push(n);
                    self.lost.0 += 1;
                    Offer::Displaced(self.data.remove(0))
                }
            }
        }

        fn telemetry(&mut self, n: u32) -> Offer<u32> {
            if self.closed {
                return Offer::Closed(n);
            }
            self.telemetry.push(n);
            if self.telemetry.len() <= TELEMETRY {
                return Offer::Queued;
            }
            self.lost.1 += 1;
            Offer::Displaced(self.telemetry.remove(0))
        }
    }

    fn at_most(count: usize) -> NonZeroUsize {
        NonZeroUsize::new(count).expect("not zero")
    }

    proptest! {
        #[test]
        fn the_lanes_do_what_three_lists_would(
            ops in proptest::collection::vec(op(), 0..200),
            drops in any::<bool>(),
        ) {
            let overflow = if drops { Overflow::DropOldest } else { Overflow::Refuse };
            let limits = LaneLimits {
                control: at_most(CONTROL),
                control_reserve: at_most(RESERVE),
                telemetry: at_most(TELEMETRY),
            };
            let mut lanes = Lanes::new(limits, Bounded::new(at_most(DATA), overflow));
            let mut model = Model::default();
            for (n, op) in (0..).zip(ops) {
                match op {
                    Op::Control => prop_assert_eq!(
                        lanes.send_control(n, Standing::Ordinary),
                        model.control(n, CONTROL)
                    ),
                    Op::ControlReserved => prop_assert_eq!(
                        lanes.send_control(n, Standing::Reserved),
                        model.control(n, CONTROL + RESERVE)
                    ),
                    Op::Data => prop_assert_eq!(lanes.offer_data(n), model.data(n, overflow)),
                    Op::Telemetry => prop_assert_eq!(lanes.offer_telemetry(n), model.telemetry(n)),
                    Op::Take => prop_assert_eq!(lanes.take(), model.take()),
                    Op::TakeControl => {
                        let first = (!model.control.is_empty()).then(|| model.control.remove(0));
                        prop_assert_eq!(lanes.take_control(), first);
                    }
                    Op::Pause(paused) => {
                        lanes.pause_data(paused);
                        model.paused = paused;
                    }
                    Op::Close => {
                        let (control, data, telemetry) = lanes.close();
                        model.closed = true;
                        prop_assert_eq!(control, std::mem::take(&mut model.control));
                        prop_assert_eq!(data, std::mem::take(&mut model.data));
                        prop_assert_eq!(telemetry, std::mem::take(&mut model.telemetry));
                    }
                }
                prop_assert_eq!(
                    lanes.depths(),
                    (model.control.len(), model.data.len(), model.telemetry.len())
                );
                prop_assert_eq!(lanes.losses(), model.lost);
            }
        }
    }
}
