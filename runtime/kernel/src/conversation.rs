//! What was said: by the user as understood, by the agent as heard (P2, P3).
//!
//! Only what was played may enter the conversation. The agent's words are kept by clause with the
//! number of output frames that each fills, so that a cut after n frames tells which words were heard.

use std::{collections::VecDeque, sync::Arc};

use rspp_proto::TurnNumber;
use serde::{Deserialize, Serialize};

use crate::tool::{ToolEnd, ToolExchange};

/// One clause of the agent's reply, and the frames it fills.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Clause {
    segment: u32,
    text: String,
    frames: u32,
    complete: bool,
    /// It was sent as text, so that no playback tells how much of it arrived.
    shown: bool,
}

/// The agent's reply of one turn, as it was generated and as it was heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    clauses: Vec<Clause>,
}

/// A rough rate of speech, for a clause whose synthesis was cut short: 15 characters a second are
/// 0.3 characters in a frame of 20 ms.
const CHARACTERS_PER_FRAME: f64 = 0.3;

impl Reply {
    /// A clause is about to be spoken. Clauses are spoken in the order of this call.
    pub fn begin(&mut self, segment: u32, text: impl Into<String>) {
        self.clauses.push(Clause {
            segment,
            text: text.into(),
            frames: 0,
            complete: false,
            shown: false,
        });
    }

    /// `frames` more frames of audio were made for a clause.
    pub fn add_frames(&mut self, segment: u32, frames: u32) {
        if let Some(clause) = self.clause(segment) {
            clause.frames = clause.frames.saturating_add(frames);
        }
    }

    /// All of a clause's audio has been made.
    pub fn complete(&mut self, segment: u32) {
        if let Some(clause) = self.clause(segment) {
            clause.complete = true;
        }
    }

    /// Whoever goes on begins with another clause: of one that was broken off, what was made of it is all
    /// that there is to hear (P14).
    pub fn break_off(&mut self) {
        let broken = self.clauses.iter_mut();
        for clause in broken.filter(|clause| !(clause.complete || clause.shown)) {
            clause.text = words_heard(clause, clause.frames).to_owned();
            clause.complete = true;
        }
    }

    /// A clause was sent as text, instead of its audio or in place of the rest of it.
    pub fn show(&mut self, segment: u32, text: impl Into<String>) {
        if self.clause(segment).is_none() {
            self.begin(segment, text);
        }
        if let Some(clause) = self.clause(segment) {
            clause.shown = true;
        }
    }

    fn clause(&mut self, segment: u32) -> Option<&mut Clause> {
        self.clauses.iter_mut().rev().find(|c| c.segment == segment)
    }

    /// Everything that was to be said.
    pub fn text(&self) -> String {
        join(self.clauses.iter().map(|clause| clause.text.as_str()))
    }

    /// What was heard if `frames` output frames were played: whole clauses, then whole words.
    pub fn heard(&self, frames: u32) -> String {
        let mut left = frames;
        let mut heard = Vec::new();
        for clause in &self.clauses {
            if clause.shown {
                left = left.saturating_sub(clause.frames);
                heard.push(clause.text.as_str());
                continue;
            }
            if left == 0 {
                break;
            }
            if clause.complete && left >= clause.frames {
                left -= clause.frames;
                heard.push(clause.text.as_str());
                continue;
            }
            heard.push(words_heard(clause, left));
            break;
        }
        join(heard.into_iter())
    }
}

/// The whole words of a clause that fit into `played` frames, by their share of its characters.
fn words_heard(clause: &Clause, played: u32) -> &str {
    let total = if clause.complete {
        f64::from(clause.frames.max(1))
    } else {
        f64::from(clause.frames.max(1))
            .max(clause.text.chars().count() as f64 / CHARACTERS_PER_FRAME)
    };
    let share = (f64::from(played) / total).min(1.0);
    let characters = (clause.text.chars().count() as f64 * share).floor() as usize;
    let cut = clause
        .text
        .char_indices()
        .nth(characters)
        .map_or(clause.text.len(), |(at, _)| at);
    if cut == clause.text.len() {
        return clause.text.as_str();
    }
    // Only words that were over by then: a word cut in the middle was not understood.
    let ends_a_word = clause.text[cut..].starts_with(char::is_whitespace);
    let head = &clause.text[..cut];
    if ends_a_word {
        head.trim_end()
    } else {
        head.rfind(char::is_whitespace)
            .map_or("", |at| head[..at].trim_end())
    }
}

fn join<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(part);
    }
    text
}

/// One side's contribution to the conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "who", rename_all = "snake_case")]
pub enum Said {
    /// The user, as understood.
    User {
        /// The words.
        text: String,
    },
    /// The agent, as heard.
    Agent {
        /// The words that were heard.
        text: String,
        /// The reply was cut off after them.
        interrupted: bool,
    },
    /// What the agent had done, before the words around it.
    Tool(Box<ToolExchange>),
}

/// The conversation so far, bounded; the oldest words are forgotten first.
#[derive(Clone, Debug)]
pub struct Conversation {
    said: VecDeque<Said>,
    capacity: usize,
}

impl Conversation {
    /// How many bytes of text it holds.
    pub fn bytes(&self) -> usize {
        self.iter()
            .map(|said| match said {
                Said::User { text } | Said::Agent { text, .. } => text.len(),
                Said::Tool(exchange) => exchange.arguments.len() + exchange.result.len(),
            })
            .sum()
    }

    /// An empty conversation that keeps the newest `capacity` contributions, at least 2.
    pub fn new(capacity: usize) -> Self {
        Self {
            said: VecDeque::new(),
            capacity: capacity.max(2),
        }
    }

    /// The user said this.
    pub fn user_said(&mut self, text: impl Into<String>) {
        self.push(Said::User { text: text.into() });
    }

    /// This much of the agent's reply was heard; nothing is kept of a reply that was not heard at all.
    pub fn agent_was_heard(&mut self, text: impl Into<String>, interrupted: bool) {
        let text = text.into();
        if !text.is_empty() {
            self.push(Said::Agent { text, interrupted });
        }
    }

    /// It turned out that less was heard of the newest reply than was held to be.
    pub fn agent_was_heard_less(&mut self, before: &str, heard: &str) {
        let is_agents = |said: &Said| match said {
            Said::Agent { .. } => true,
            Said::User { .. } | Said::Tool(_) => false,
        };
        let Some(at) = self.said.iter().rposition(is_agents) else {
            return;
        };
        if let Said::Agent { text, interrupted } = &mut self.said[at]
            && text == before
        {
            heard.clone_into(text);
            *interrupted = true;
            if heard.is_empty() {
                self.said.remove(at);
            }
        }
    }

    /// The agent called a tool.
    pub fn tool_was_called(&mut self, exchange: ToolExchange) {
        self.push(Said::Tool(Box::new(exchange)));
    }

    /// A call that went on without its turn has ended.
    pub fn tool_ended(&mut self, turn: TurnNumber, call: &str, end: ToolEnd, result: Arc<str>) {
        if let Some(exchange) = self.exchange(turn, call) {
            exchange.end = Some(end);
            exchange.result = result;
        }
    }

    /// A call that had been given up has come back after all: its end stands, but the next turn is told
    /// the result. `None` if nothing is known of it.
    pub fn tool_came_late(
        &mut self,
        turn: TurnNumber,
        call: &str,
        result: Arc<str>,
    ) -> Option<&ToolExchange> {
        let exchange = self.exchange(turn, call)?;
        exchange.result = result;
        exchange.is_known = false;
        Some(exchange)
    }

    fn exchange(&mut self, turn: TurnNumber, call: &str) -> Option<&mut ToolExchange> {
        self.exchanges()
            .find(|exchange| exchange.turn == turn && &*exchange.call == call)
    }

    /// A turn opens: from now on the model knows of all calls that have ended.
    pub fn tools_are_known(&mut self) {
        for exchange in self.exchanges() {
            exchange.is_known = exchange.end.is_some();
        }
    }

    /// Whether the call is part of the conversation.
    pub fn has_call(&self, turn: TurnNumber, call: &str) -> bool {
        self.said.iter().any(|said| match said {
            Said::Tool(exchange) => exchange.turn == turn && &*exchange.call == call,
            Said::User { .. } | Said::Agent { .. } => false,
        })
    }

    /// The newest call that fits and whose end no model has been shown.
    pub fn unknown_call(&self, fits: impl Fn(&ToolExchange) -> bool) -> Option<&ToolExchange> {
        self.said.iter().rev().find_map(|said| match said {
            Said::Tool(exchange) if !exchange.is_known && fits(exchange) => Some(&**exchange),
            Said::Tool(_) | Said::User { .. } | Said::Agent { .. } => None,
        })
    }

    fn exchanges(&mut self) -> impl Iterator<Item = &mut ToolExchange> {
        self.said.iter_mut().filter_map(|said| match said {
            Said::Tool(exchange) => Some(&mut **exchange),
            Said::User { .. } | Said::Agent { .. } => None,
        })
    }

    /// What was said before, elsewhere.
    pub fn go_on(&mut self, said: impl IntoIterator<Item = Said>) {
        for said in said {
            self.push(said);
        }
    }

    fn push(&mut self, said: Said) {
        if self.said.len() == self.capacity {
            self.said.pop_front();
        }
        self.said.push_back(said);
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Said> {
        self.said.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> Reply {
        let mut reply = Reply::default();
        reply.begin(0, "Good morning, this is Joe.");
        reply.add_frames(0, 100);
        reply.complete(0);
        reply.begin(1, "How can I help you today?");
        reply.add_frames(1, 100);
        reply.complete(1);
        reply
    }

    /// P2, P3, F-039: the cut decides what was said.
    #[test]
    fn only_what_was_played_was_said() {
        #[track_caller]
        fn check(frames: u32, heard: &str) {
            assert_eq!(reply().heard(frames), heard);
        }
        check(0, "");
        check(1, "");
        check(20, "Good");
        check(60, "Good morning,");
        check(100, "Good morning, this is Joe.");
        check(130, "Good morning, this is Joe. How can");
        check(200, "Good morning, this is Joe. How can I help you today?");
        check(999, "Good morning, this is Joe. How can I help you today?");
        assert_eq!(reply().text(), reply().heard(200));
    }

    #[test]
    fn a_clause_still_being_made_is_not_taken_for_whole() {
        let mut reply = Reply::default();
        reply.begin(0, "One two three four five six seven eight nine ten");
        reply.add_frames(0, 10);
        assert_eq!(reply.heard(10), "One");
        reply.add_frames(0, 20);
        assert_eq!(reply.heard(30), "One two");
    }

    /// P14, P2: what a voice has broken off is not said again: of its clause what was made of it was heard.
    #[test]
    fn a_clause_that_is_broken_off_is_as_long_as_was_made_of_it() {
        let mut reply = Reply::default();
        reply.begin(0, "One two three four five six seven eight nine ten");
        reply.add_frames(0, 30);
        reply.break_off();
        reply.begin(1, "Eleven.");
        reply.add_frames(1, 20);
        reply.complete(1);
        assert_eq!(reply.text(), "One two Eleven.");
        assert_eq!(reply.heard(30), "One two");
        assert_eq!(reply.heard(50), reply.text());
        // One that nothing was heard of is begun anew.
        let mut reply = Reply::default();
        reply.begin(0, "One.");
        reply.break_off();
        reply.begin(0, "One.");
        assert_eq!(reply.text(), "One.");
    }

    #[test]
    fn any_cut_of_any_text_is_a_prefix_of_it() {
        let mut reply = Reply::default();
        reply.begin(0, "Ça va très bien 👍 merci");
        reply.add_frames(0, 37);
        reply.complete(0);
        for frames in 0..50 {
            let heard = reply.heard(frames);
            assert!(reply.text().starts_with(&heard), "{heard}");
        }
    }

    #[test]
    fn a_conversation_is_bounded_and_forgets_the_oldest() {
        let mut conversation = Conversation::new(2);
        conversation.user_said("one");
        conversation.agent_was_heard("", true);
        conversation.agent_was_heard("two", false);
        conversation.user_said("three");
        let said: Vec<_> = conversation.iter().cloned().collect();
        assert_eq!(
            said,
            [
                Said::Agent {
                    text: "two".into(),
                    interrupted: false
                },
                Said::User {
                    text: "three".into()
                }
            ]
        );
    }
}
