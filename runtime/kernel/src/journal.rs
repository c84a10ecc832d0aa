//! What a session machine was told and what it decided, so that a replay can tell it again (F-140, F-152).
//!
//! Off unless asked for. The lines hold no word that anybody said unless the recording may hold them:
//! a machine decides by how long texts are and where their words end, not by what they say.

use std::collections::VecDeque;

use rspp_proto::{
    Epoch, Monotonic, TurnNumber,
    abi::TurnTransition,
    spec::{ConnectionPolicy, TurnPolicy},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Effect, Emission, Input, SessionState, refused::RefusedMove, turn::Refusal};

/// Lines that may wait to be taken; more than a host leaves between two looks.
const MAX_WAITING: usize = 4_096;

/// One line of a journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The machine was made.
    Opened {
        /// Its policy.
        policy: Box<TurnPolicy>,
        /// How it treats its connection.
        #[serde(default)]
        connection: Box<ConnectionPolicy>,
        /// The epoch that it began under.
        epoch: Epoch,
    },
    /// It took an input in.
    Input(Box<Input>),
    /// An arbitration point ended.
    Settled,
    /// It decided something.
    Decided(Decision),
    /// Lines were lost before this one: what follows cannot be replayed.
    Lost,
}

/// Something that a machine decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// To give a signal.
    Signal {
        /// Its name.
        signal: String,
        /// Who gives it.
        emitter: String,
        /// Of which turn.
        turn: Option<TurnNumber>,
        /// Why.
        reason: Option<String>,
        /// How far it reaches.
        scope: Option<rspp_proto::abi::CancelScope>,
    },
    /// That a turn moves.
    Transition {
        /// The turn.
        turn: TurnNumber,
        /// From where to where, and why.
        step: TurnTransition,
    },
    /// That an intent does not become a turn.
    Refused {
        /// The turn that did not open.
        turn: TurnNumber,
        /// Why.
        refusal: Refusal,
    },
    /// That the session moves.
    Session(SessionState),
    /// That somebody asked for a move that is not made.
    MoveRefused(RefusedMove),
}

impl Decision {
    /// The decision in an effect; what only carries one out is none.
    pub fn of(effect: &Effect) -> Option<Self> {
        if let Effect::Signal(emission) = effect {
            return Some(Self::said(emission));
        }
        if let Effect::Transition { turn, step } = effect {
            let (turn, step) = (*turn, *step);
            return Some(Self::Transition { turn, step });
        }
        if let Effect::Refused { turn, refusal, .. } = effect {
            let (turn, refusal) = (*turn, *refusal);
            return Some(Self::Refused { turn, refusal });
        }
        if let Effect::Session(state) = effect {
            return Some(Self::Session(*state));
        }
        if let Effect::RefuseMove(refused) = effect {
            return Some(Self::MoveRefused(*refused));
        }
        None
    }

    fn said(emission: &Emission) -> Self {
        Self::Signal {
            signal: emission.signal.as_str().to_owned(),
            emitter: emission.emitter.as_str().to_owned(),
            turn: emission.turn,
            reason: emission.reason.map(ToOwned::to_owned),
            scope: emission.scope,
        }
    }

    /// The turn that it is about.
    pub fn turn(&self) -> Option<TurnNumber> {
        match self {
            Self::Signal { turn, .. } => *turn,
            Self::Transition { turn, .. } | Self::Refused { turn, .. } => Some(*turn),
            Self::MoveRefused(refused) => refused.turn(),
            Self::Session(_) => None,
        }
    }
}

/// The lines that were not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    lines: VecDeque<(Monotonic, Line)>,
    latest: Monotonic,
}

impl Journal {
    pub(crate) fn note(&mut self, at: Option<Monotonic>, line: Line) {
        self.latest = at.unwrap_or(self.latest);
        if self.lines.len() < MAX_WAITING {
            self.lines.push_back((self.latest, line));
        } else if let Some(last) = self.lines.back_mut() {
            last.1 = Line::Lost;
        }
    }

    pub(crate) fn take(&mut self) -> Option<(Monotonic, Line)> {
        self.lines.pop_front()
    }
}

impl Line {
    /// The line without the words that were said: letters and digits are gone, blanks and marks are there.
    #[must_use]
    pub fn without_words(mut self) -> Self {
        if let Self::Input(input) = &mut self {
            input.blur();
        }
        self
    }
}

/// `text` with every letter and digit replaced by one as long.
pub(crate) fn blurred(text: &str) -> String {
    let blur = |c: char| match c.len_utf8() {
        _ if !c.is_alphanumeric() => c,
        1 => 'x',
        2 => 'ö',
        3 => 'あ',
        _ => '𐐀',
    };
    text.chars().map(blur).collect()
}

/// JSON text with the letters and digits of its strings replaced; it stays JSON, since a machine looks
/// at its form. What is none is blurred as a whole.
pub(crate) fn blurred_json(text: &str) -> String {
    fn blur(value: &mut Value) {
        match value {
            Value::String(text) => *text = blurred(text),
            Value::Array(values) => values.iter_mut().for_each(blur),
            Value::Object(fields) => fields.values_mut().for_each(blur),
            Value::Number(number) => *number = 0.into(),
            Value::Null | Value::Bool(_) => {}
        }
    }
    match serde_json::from_str::<Value>(text) {
        Ok(mut value) => {
            blur(&mut value);
            value.to_string()
        }
        Err(_) => blurred(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-153: what is kept of a text says how long it was and where its words end, and nothing else.
    #[test]
    fn words_are_gone_and_their_lengths_are_there() {
        assert_eq!(blurred("Call me at 5, Zoë!"), "xxxx xx xx x, xxö!");
        for text in ["", "Ça va 👍", "日本語です", "mixed Ω text"] {
            assert_eq!(blurred(text).len(), text.len());
        }
    }
}
