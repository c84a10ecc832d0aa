//! What a session does when it, or one of its nodes, takes more than it may.

use std::time::Duration;

use rspp_kernel::{CancelReason, Input, SessionState, turn::Ending};
use rspp_proto::{
    ErrorCode, Monotonic, NodeId, TurnNumber,
    abi::{Emitter, Signal},
};

use super::Session;
use crate::memory::Mark;

impl Session {
    /// Over the soft mark it sheds what it can do without, and says so; over the cap it ends (P19).
    pub(super) fn came_to(&mut self, now: Monotonic, mark: Mark, held: u64) {
        if self.kernel.state() == SessionState::Ended {
            return; // What still comes in is let go with the session.
        }
        let turn = self.kernel.current_turn();
        match mark {
            Mark::Soft => self.degrade("session_memory_soft_mark", turn, None, now),
            Mark::Cap => {
                let reason = "session_memory_cap";
                self.degrade(reason, turn, None, now);
                let emitter = Emitter::LocalAdmission;
                self.publisher
                    .signal(Signal::Shed, emitter, turn, Some(reason), now);
                let cap = self.setup.memory.read().cap;
                self.give_up(
                    now,
                    format!("{reason}: {held} bytes are held, {cap} may be"),
                );
            }
        }
    }

    /// A node blocks its thread, where nothing of this process can reach it (P16, P18): a turn ends
    /// without it, a session that needs it to listen is given up when there is no hope left.
    pub(super) fn blocked(
        &mut self,
        now: Monotonic,
        turn: Option<TurnNumber>,
        node: &NodeId,
        for_at_least: Duration,
        is_lost: bool,
    ) {
        let blocked = for_at_least.as_millis();
        if is_lost {
            if turn.is_none() {
                let message = format!(
                    "node `{node}` has blocked its thread for {blocked} ms and listens no more"
                );
                self.give_up(now, message);
            }
            return;
        }
        self.node_failures += 1;
        let message = format!("blocks its thread, for {blocked} ms so far");
        let code = ErrorCode::RuntimeInternalError;
        self.publisher.error(turn, node, code, &message, now);
        self.degrade("node_blocks_its_thread", turn, Some(node), now);
        if let Some(turn) = turn {
            self.give_up_acknowledgement(turn);
            let ending = Ending::NodeFailed;
            self.kernel.handle(now, Input::TurnFailed { turn, ending });
        }
    }

    /// Ends the session in order, with what it is busy with.
    fn give_up(&mut self, now: Monotonic, why: String) {
        self.ends_because(why);
        if let Some(turn) = self.kernel.current_turn() {
            let ending = Ending::BudgetTerminated;
            self.kernel.handle(now, Input::TurnFailed { turn, ending });
            self.stop_work(now, turn, CancelReason::Timeout);
        }
        self.kernel.handle(now, Input::Drain);
    }
}
