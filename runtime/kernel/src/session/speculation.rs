//! Guesses of a session: begun in a pause, promoted by the words that come, or discarded.

use rspp_proto::{Monotonic, SampleIndex, TurnNumber};

use super::{Manner, Session};
use crate::{
    effect::{Effect, SessionState},
    recovery::Task,
    speculation::{Discarded, SpeculationStats},
    turn::TurnState,
};

impl Session {
    /// What became of the session's guesses.
    pub fn speculation(&self) -> SpeculationStats {
        self.speculation.stats()
    }

    /// The user pauses, and may have finished with these words.
    pub(super) fn user_paused(&mut self, now: Monotonic, text: String) {
        let is_worth_it = self.speculation.is_worth(&text);
        self.guess_with(now, text, is_worth_it);
    }

    /// The plan has these words handed to the model while the user still speaks. What a hand-over is worth
    /// the plan has decided; what all guesses may cost together is the same.
    pub(super) fn words_handed(&mut self, now: Monotonic, text: String) {
        self.guess_with(now, text, true);
    }

    fn guess_with(&mut self, now: Monotonic, text: String, is_worth_it: bool) {
        let is_idle = self.running.is_none() && self.waiting.is_none();
        if self.state != SessionState::Active || !is_idle || self.voice.is_mute(now) {
            return;
        }
        if let Some(guess) = self.speculation.guess() {
            if guess.text == text {
                return;
            }
            self.discard(Discarded::WordsDiffer);
        }
        if !is_worth_it || !self.speculation.affords(now) {
            return;
        }
        let turn = self.number_turn();
        self.speculation.begin(now, turn, text.clone());
        let epoch = self.epoch;
        self.effects.push_back(Effect::Speculate {
            turn,
            epoch,
            user_text: text,
        });
    }

    /// The user's final words open a turn: the one that was begun with them, or a new one.
    pub(super) fn open_with(&mut self, now: Monotonic, text: String, until: Option<SampleIndex>) {
        let is_right = self
            .speculation
            .guess()
            .is_some_and(|guess| guess.text == text.trim());
        // A guess is made to be spoken: without the voice the turn begins anew, in text (F-137).
        let is_right = is_right && !self.voice.is_mute(now);
        if is_right && let Some(guess) = self.speculation.promote(now) {
            let task = Task::Answer { user_text: text };
            self.propose_as(guess.number, task, until, Manner::Guessed);
        } else {
            self.discard(Discarded::WordsDiffer);
            self.propose(text, until);
        }
    }

    /// The turn that is judged, if it is the one being opened. One that was begun as a guess, or has waited
    /// for room, is proposed now; if the guess does not hold any more it begins anew, under a number that nothing
    /// has been done under.
    pub(super) fn confirm(&mut self, turn: TurnNumber, holds: bool) -> Option<TurnNumber> {
        let running = self.running.as_mut().filter(|it| it.number == turn)?;
        match running.turn.state() {
            TurnState::Opening => return Some(turn),
            TurnState::Idle => {}
            TurnState::Active | TurnState::Terminal | TurnState::Closed => return None,
        }
        let mut number = turn;
        if !holds && running.promoted {
            running.promoted = false;
            number = self.number_turn();
            if let Some(running) = &mut self.running {
                running.number = number;
            }
            self.speculation.take_back();
            self.never_opened.note(turn);
            let reason = Discarded::PlanDiffers;
            self.effects.push_back(Effect::Discard { turn, reason });
        }
        self.proposed();
        Some(number)
    }

    /// The guess in progress, if there is one, comes to nothing.
    pub(super) fn discard(&mut self, reason: Discarded) {
        if let Some(guess) = self.speculation.discard() {
            let turn = guess.number;
            self.never_opened.note(turn);
            self.effects.push_back(Effect::Discard { turn, reason });
        }
    }

    pub(super) fn guess_is_due(&mut self, now: Monotonic) {
        if self.speculation.deadline().is_some_and(|at| at <= now) {
            self.discard(Discarded::TooLate);
        }
    }
}
