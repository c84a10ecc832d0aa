//! Which moves a session refuses, where it and its turns stand.

use std::collections::VecDeque;

use rspp_proto::{
    TurnNumber,
    abi::{CancelScope, TurnState, TurnTrigger},
};

use super::{Running, Session};
use crate::{
    effect::{Effect, SessionState},
    input::Input,
    refused::RefusedMove,
};

/// Numbers that are known to have never been a turn's; of older ones it is only known that they are
/// over.
const REMEMBERED: usize = 32;

/// The newest numbers that never became a turn's.
#[derive(Debug, Default)]
pub(super) struct NeverOpened(VecDeque<TurnNumber>);

impl NeverOpened {
    pub(super) fn note(&mut self, turn: TurnNumber) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(turn);
    }
}

/// A move that an input asks for.
enum Asked {
    Session(SessionState),
    /// The turn, without one the running one; what is to move it; where it has to stand for that.
    Turn(Option<TurnNumber>, TurnTrigger, &'static [TurnState]),
}

impl Session {
    /// Refuses a move that cannot be made from here, and says so. Whether it did.
    pub(super) fn refuses(&mut self, input: &Input) -> bool {
        let Some(refused) = asked(input).and_then(|asked| self.judge_move(&asked)) else {
            return false;
        };
        self.effects.push_back(Effect::RefuseMove(refused));
        if let RefusedMove::Turn { turn, from, .. } = refused
            && from == TurnState::Closed
            && self.state != SessionState::Ended
        {
            self.late(turn);
        }
        true
    }

    /// Whether a turn of that number was under way, and is over.
    pub fn has_closed(&self, turn: TurnNumber) -> bool {
        let is_new = turn >= self.next_turn || self.current_turn() == Some(turn);
        !(is_new || self.never_opened.0.contains(&turn))
    }

    fn judge_move(&self, asked: &Asked) -> Option<RefusedMove> {
        use SessionState as S;
        match *asked {
            Asked::Session(to) => {
                let from = self.state;
                let may = match (from, to) {
                    (S::Connecting | S::Active, S::Active | S::Draining | S::Ended)
                    // The link may come back, and more than a drain may end what drains.
                    | (S::Draining, S::Active | S::Ended) => true,
                    (S::Draining, S::Draining)
                    | (S::Ended, S::Active | S::Draining | S::Ended)
                    | (S::Connecting | S::Active | S::Draining | S::Ended, S::Connecting) => false,
                };
                (!may).then_some(RefusedMove::Session { from, to })
            }
            Asked::Turn(turn, trigger, wanted) => {
                let turn = turn.or(self.current_turn()).unwrap_or(self.next_turn);
                let running = self.running.as_ref().filter(|it| it.number == turn);
                let may = running.is_some_and(|running| wanted.contains(&running.stands()));
                let from = match running {
                    Some(running) => running.stands(),
                    None if self.has_closed(turn) => TurnState::Closed,
                    None => TurnState::Idle,
                };
                (!may).then_some(RefusedMove::Turn {
                    turn,
                    from,
                    trigger,
                })
            }
        }
    }
}

impl Running {
    /// Where the turn stands. Once its evidence is being sealed it has ended, whatever comes.
    fn stands(&self) -> TurnState {
        if self.turn.is_sealing() {
            TurnState::Terminal
        } else {
            self.turn.state()
        }
    }
}

/// What an input asks to be moved, if anything.
fn asked(input: &Input) -> Option<Asked> {
    use TurnState as S;
    use TurnTrigger as T;
    const OPEN: &[TurnState] = &[TurnState::Active];
    match input {
        Input::Connected => Some(Asked::Session(SessionState::Active)),
        Input::Drain | Input::Leaving => Some(Asked::Session(SessionState::Draining)),
        Input::HandedOver
        | Input::Revoked
        | Input::Cancel {
            scope: CancelScope::Session,
            ..
        } => Some(Asked::Session(SessionState::Ended)),
        // What was begun as a guess is proposed when it is judged.
        Input::Gates { turn, .. } => Some(Asked::Turn(
            Some(*turn),
            T::TurnOpen,
            &[S::Idle, S::Opening],
        )),
        Input::Plan { turn, .. } => Some(Asked::Turn(Some(*turn), T::TurnOpen, &[S::Opening])),
        Input::PlaybackFinished { turn } => Some(Asked::Turn(Some(*turn), T::Commit, OPEN)),
        Input::TurnFailed { turn, .. } => Some(Asked::Turn(Some(*turn), T::Abort, OPEN)),
        Input::Stop
        | Input::Cancel {
            scope: CancelScope::Turn | CancelScope::Node | CancelScope::ProviderInvocation,
            ..
        }
        | Input::CancelPart { silences: true, .. } => Some(Asked::Turn(None, T::Abort, OPEN)),
        Input::Sealed { turn, .. } => Some(Asked::Turn(Some(*turn), T::Close, &[S::Terminal])),
        Input::Disconnected
        | Input::Reconnecting
        | Input::ConnectionLost
        | Input::LineSilent
        | Input::LineStalled
        | Input::LineFlowing
        | Input::SpeechStarted { .. }
        | Input::SpeechStopped { .. }
        | Input::SpeechResumed { .. }
        | Input::Recognised { .. }
        | Input::UserTurn { .. }
        | Input::Spoken { .. }
        | Input::Unrecognised { .. }
        | Input::UserPaused { .. }
        | Input::WordsHanded { .. }
        | Input::GuessFailed { .. }
        | Input::GuessSpent { .. }
        | Input::CancelPart {
            silences: false, ..
        }
        | Input::Placed(_)
        | Input::Leased { .. }
        | Input::Resumed(_)
        | Input::Inherited(_)
        | Input::Renewed { .. }
        | Input::Rotated { .. }
        | Input::Fenced { .. }
        | Input::Heard { .. }
        | Input::Progress { .. }
        | Input::ClauseBegun { .. }
        | Input::FramesMade { .. }
        | Input::ClauseMade { .. }
        | Input::ClauseOver { .. }
        | Input::Pulse { .. }
        | Input::ClauseShown { .. }
        | Input::VoiceLost { .. }
        | Input::TookOver { .. }
        | Input::PlaybackStarted { .. }
        | Input::ToolsCalled { .. }
        | Input::ToolBegan { .. }
        | Input::ToolEnded { .. }
        | Input::ToolInterrupted { .. }
        | Input::ToolsGivenUp
        | Input::Tick => None,
    }
}
