//! What another placement needs to go on with a conversation: written whenever a turn ends, read when a
//! session is taken over (lifecycle.md §7).

use rspp_proto::TurnNumber;
use serde::{Deserialize, Serialize};

use crate::{conversation::Said, tool::ToolExchange};

/// A conversation up to its last turn, as it was heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continuation {
    /// The number of the turn that comes next.
    pub next_turn: TurnNumber,
    /// What was said and done, oldest first.
    pub said: Vec<Said>,
    /// What the user said while the session left, which opens the next turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<String>,
}

impl Continuation {
    /// Forgets the oldest until what was said takes no more than so many bytes.
    pub fn fit(&mut self, bytes: usize) {
        let size = |said: &Said| match said {
            Said::User { text } | Said::Agent { text, .. } => text.len(),
            Said::Tool(exchange) => exchange.arguments.len() + exchange.result.len(),
        };
        let unanswered = self.unanswered.as_ref().map_or(0, String::len);
        let mut left = bytes.saturating_sub(unanswered);
        let kept = self.said.iter().rev().take_while(|said| {
            let fits = size(said) <= left;
            left = left.saturating_sub(size(said));
            fits
        });
        let forgotten = self.said.len() - kept.count();
        self.said.drain(..forgotten);
    }

    /// Takes out the words that were said; see [`crate::journal`].
    pub(crate) fn blur(&mut self) {
        use crate::journal::{blurred, blurred_json};
        if let Some(text) = &mut self.unanswered {
            *text = blurred(text);
        }
        for said in &mut self.said {
            match said {
                Said::User { text } | Said::Agent { text, .. } => *text = blurred(text),
                Said::Tool(exchange) => {
                    let ToolExchange {
                        arguments, result, ..
                    } = &mut **exchange;
                    *arguments = blurred_json(arguments).into();
                    *result = blurred(result).into();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> Said {
        Said::User {
            text: text.to_owned(),
        }
    }

    #[test]
    fn the_oldest_words_are_forgotten_first() {
        #[track_caller]
        fn check(bytes: usize, left: &[&str]) {
            let mut kept = Continuation {
                next_turn: TurnNumber(4),
                said: vec![user("one"), user("three"), user("five!")],
                unanswered: None,
            };
            kept.fit(bytes);
            let left: Vec<_> = left.iter().map(|text| user(text)).collect();
            assert_eq!(kept.said, left);
        }
        check(100, &["one", "three", "five!"]);
        check(12, &["three", "five!"]);
        check(5, &["five!"]);
        check(4, &[]);
    }
}
