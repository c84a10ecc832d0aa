//! How much text may be ahead of the voice: what was handed over against what was taken
//! (turn-plan.md §7).
//!
//! The stage that cuts text hands its segments over; the voice says which of them it has begun with.
//! What is between the two is pending, and there is never more of it than the frozen plan allows. An
//! edge's buffer cannot see to that: the voice takes text off its edge at once.

mod revisions;

use std::collections::VecDeque;

use rspp_proto::spec::{FlowMode, PressureAction};

use crate::{
    edge::{Credit, EdgeNotice, Mark},
    plan::Handoff,
};

pub use revisions::{Revision, RevisionAction, Revisions, STT_TO_LLM};

/// The hand-over's name where it is spoken of like an edge (turn-plan.md §7).
pub const LLM_TO_TTS: &str = "llm_to_tts";

/// What one stage may hand to the next.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "two of the plan's switches, and two facts that hold independently of them"
)]
pub struct Window {
    limit: u64,
    mode: FlowMode,
    /// What this side was told by its own notices.
    sender: Credit,
    /// Whether the stages tell each other to stop and go.
    signals: bool,
    /// Whether a full window makes the runtime go stage by stage.
    degrades: bool,
    handed: u64,
    taken: u64,
    pressed: bool,
    degraded: bool,
    notices: VecDeque<EdgeNotice>,
}

impl Window {
    /// An empty window under the plan's hand-off, with the data lane's flow control.
    pub fn new(handoff: &Handoff, mode: FlowMode) -> Self {
        let mut window = Self {
            limit: handoff.max_pending_segments.max(1),
            mode,
            sender: Credit::new(mode),
            signals: handoff.emit_flow_control_signals,
            degrades: handoff.degrade_on_threshold_breach,
            handed: 0,
            taken: 0,
            pressed: false,
            degraded: false,
            notices: VecDeque::new(),
        };
        if window.grants() {
            window.say(EdgeNotice::Credit {
                amount: window.limit,
            });
        }
        window
    }

    /// Whether one more segment may be handed over.
    pub fn may_hand(&self) -> bool {
        let told = !self.signals || self.sender.may_send().is_ok();
        told && self.pending() < self.limit
    }

    /// A segment was handed over.
    pub fn hand(&mut self) {
        self.handed += 1;
        if self.signals && self.grants() {
            // Whoever hands over without the right to has not asked; the bound is the window's own.
            let _asked_before = self.sender.spend();
        }
        if self.pressed || self.pending() < self.limit {
            return;
        }
        self.pressed = true;
        if self.signals {
            let level = self.pending();
            self.say(EdgeNotice::Watermark {
                mark: Mark::Items,
                level,
            });
            match self.mode {
                FlowMode::Signal | FlowMode::Hybrid => self.say(EdgeNotice::FlowXoff),
                FlowMode::Credit => {}
            }
        }
        if self.degrades && !self.degraded {
            self.degraded = true;
            self.say(EdgeNotice::Act(PressureAction::Degrade));
        }
    }

    /// The next stage has taken this many segments since the beginning, or more were lost on the way.
    /// What was not handed over cannot be taken, and what was taken stays so.
    pub fn take(&mut self, in_all: u64) {
        let taken = in_all.min(self.handed);
        let Some(more) = taken.checked_sub(self.taken).filter(|more| *more > 0) else {
            return;
        };
        self.taken = taken;
        if self.grants() {
            self.say(EdgeNotice::Credit { amount: more });
        }
        if self.pressed && self.pending() <= self.limit / 2 {
            self.pressed = false;
            match self.mode {
                FlowMode::Signal | FlowMode::Hybrid if self.signals => {
                    self.say(EdgeNotice::FlowXon);
                }
                FlowMode::Signal | FlowMode::Hybrid | FlowMode::Credit => {}
            }
        }
    }

    /// Nobody waits for what was handed over any more.
    pub fn forgive(&mut self) {
        self.take(self.handed);
    }

    /// Segments that were handed over and not taken.
    pub fn pending(&self) -> u64 {
        self.handed - self.taken
    }

    /// Whether it was full, and has not emptied by half since.
    pub fn is_pressed(&self) -> bool {
        self.pressed
    }

    /// Whether text is handed over only when all of it is there, since the voice could not keep up.
    pub fn is_degraded(&self) -> bool {
        self.degraded
    }

    /// What there is to say, in order. Fetch it after each change.
    pub fn take_notices(&mut self) -> impl Iterator<Item = EdgeNotice> {
        self.notices.drain(..)
    }

    fn grants(&self) -> bool {
        match self.mode {
            FlowMode::Signal => false,
            FlowMode::Credit | FlowMode::Hybrid => self.signals,
        }
    }

    fn say(&mut self, notice: EdgeNotice) {
        self.sender.note(&notice);
        self.notices.push_back(notice);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::profile;

    fn window(mode: FlowMode, change: impl FnOnce(&mut Handoff)) -> Window {
        let mut handoff = profile::streaming_handoff().llm_to_tts;
        handoff.max_pending_segments = 4;
        change(&mut handoff);
        Window::new(&handoff, mode)
    }

    fn told(window: &mut Window) -> Vec<EdgeNotice> {
        window.take_notices().collect()
    }

    fn fill(window: &mut Window) -> u64 {
        let mut handed = 0;
        while window.may_hand() {
            window.hand();
            handed += 1;
        }
        handed
    }

    const FULL: EdgeNotice = EdgeNotice::Watermark {
        mark: Mark::Items,
        level: 4,
    };

    /// F-145, turn-plan.md §7: under `signal` a full window stops, and goes on when it has emptied by half.
    #[test]
    fn a_full_window_stops_and_goes_on_at_its_half() {
        let mut window = window(FlowMode::Signal, |_| {});
        assert_eq!(fill(&mut window), 4);
        assert_eq!(told(&mut window), [FULL, EdgeNotice::FlowXoff]);
        window.take(1);
        assert!(!window.may_hand() && told(&mut window).is_empty());
        window.take(2);
        assert_eq!(told(&mut window), [EdgeNotice::FlowXon]);
        assert_eq!(fill(&mut window), 2);
    }

    /// F-145: under `credit` each segment that is taken grants the next; nobody is told to stop.
    #[test]
    fn what_is_taken_grants_the_next() {
        let mut window = window(FlowMode::Credit, |_| {});
        assert_eq!(told(&mut window), [EdgeNotice::Credit { amount: 4 }]);
        assert_eq!(fill(&mut window), 4);
        assert_eq!(told(&mut window), [FULL]);
        window.take(1);
        assert_eq!(told(&mut window), [EdgeNotice::Credit { amount: 1 }]);
        assert_eq!(fill(&mut window), 1);
    }

    /// F-145: `hybrid` says both.
    #[test]
    fn hybrid_stops_and_grants() {
        let mut window = window(FlowMode::Hybrid, |_| {});
        assert_eq!(fill(&mut window), 4);
        let grant = |amount| EdgeNotice::Credit { amount };
        assert_eq!(told(&mut window), [grant(4), FULL, EdgeNotice::FlowXoff]);
        window.take(2);
        assert_eq!(told(&mut window), [grant(2), EdgeNotice::FlowXon]);
    }

    /// turn-plan.md §7: without flow signals the bound is kept in silence, in every mode.
    #[test]
    fn without_signals_the_bound_is_kept_in_silence() {
        for mode in [FlowMode::Signal, FlowMode::Credit, FlowMode::Hybrid] {
            let mut window = window(mode, |handoff| handoff.emit_flow_control_signals = false);
            assert_eq!(fill(&mut window), 4);
            window.take(1);
            assert_eq!(fill(&mut window), 1);
            assert_eq!(told(&mut window), []);
        }
    }

    /// F-048: turn-plan.md §7: a window that was full once goes stage by stage, where the plan says so.
    #[test]
    fn a_full_window_degrades_once() {
        let mut window = window(FlowMode::Signal, |handoff| {
            handoff.degrade_on_threshold_breach = true;
        });
        fill(&mut window);
        let degrade = EdgeNotice::Act(PressureAction::Degrade);
        assert_eq!(told(&mut window), [FULL, EdgeNotice::FlowXoff, degrade]);
        window.forgive();
        fill(&mut window);
        let xon_off = [EdgeNotice::FlowXon, FULL, EdgeNotice::FlowXoff];
        assert_eq!(told(&mut window), xon_off);
        assert!(window.is_degraded());
    }

    proptest! {
        /// F-145: turn-plan.md §7: whatever the order, no more is pending than allowed, an empty window may
        /// hand, and stops and goes alternate.
        #[test]
        fn the_bound_always_holds(
            limit in 0_u64..9,
            mode in prop_oneof![Just(FlowMode::Signal), Just(FlowMode::Credit), Just(FlowMode::Hybrid)],
            signals: bool,
            steps in proptest::collection::vec((any::<bool>(), 0_u64..40), 1..200),
        ) {
            let mut window = window(mode, |handoff| {
                handoff.max_pending_segments = limit;
                handoff.emit_flow_control_signals = signals;
            });
            let mut stopped = false;
            for (hands, taken) in steps {
                if !hands {
                    window.take(taken);
                } else if window.may_hand() {
                    window.hand();
                }
                prop_assert!(window.pending() <= limit.max(1));
                prop_assert!(window.pending() > 0 || window.may_hand());
                for notice in told(&mut window) {
                    match notice {
                        EdgeNotice::FlowXoff => prop_assert!(!std::mem::replace(&mut stopped, true)),
                        EdgeNotice::FlowXon => prop_assert!(std::mem::replace(&mut stopped, false)),
                        _other => {}
                    }
                }
            }
        }
    }
}
