//! The items of a conversation, as far back as a client may ask for them.

use std::collections::VecDeque;

use rspp_proto::TurnNumber;
use serde_json::{Value, json};

use super::{client::Author, settings::Dialect};

/// Items that are remembered; of older ones nothing is known any more.
const REMEMBERED: usize = 512;

/// One item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) id: String,
    pub(super) kind: Kind,
}

/// What an item is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Words that came as words.
    Written { author: Author, text: String },
    /// What the user said; its words once they are known.
    Spoken { transcript: Option<String> },
    /// What the agent said.
    Reply(Reply),
    /// A call of a tool that the client runs.
    Call {
        call: String,
        tool: String,
        /// JSON text.
        arguments: String,
        status: Status,
    },
    /// What came of one.
    Output { call: String, output: String },
}

/// What the agent said in a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) turn: TurnNumber,
    pub(super) status: Status,
    /// Whether it is heard; else it is read.
    pub(super) speaks: bool,
    /// Its words; none once it is known that they were not all heard.
    pub(super) transcript: Option<String>,
    /// Samples of it that went out.
    pub(super) samples: u64,
}

/// How far an item or a response has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    InProgress,
    Completed,
    Incomplete,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
        }
    }
}

impl Item {
    pub(super) fn shown(&self, dialect: Dialect) -> Value {
        let (role, status, content) = match &self.kind {
            Kind::Written { author, text } => {
                let role = match author {
                    Author::User => "user",
                    Author::System => "system",
                };
                let content = json!([{ "type": "input_text", "text": text }]);
                (role, Status::Completed, content)
            }
            Kind::Spoken { transcript } => {
                let content = json!([{ "type": "input_audio", "transcript": transcript }]);
                ("user", Status::Completed, content)
            }
            Kind::Reply(reply) => ("assistant", reply.status, reply.content(dialect)),
            Kind::Call {
                call,
                tool,
                arguments,
                status,
            } => {
                return json!({
                    "id": self.id,
                    "object": "realtime.item",
                    "type": "function_call",
                    "status": status.as_str(),
                    "call_id": call,
                    "name": tool,
                    "arguments": arguments,
                });
            }
            Kind::Output { call, output } => {
                return json!({
                    "id": self.id,
                    "object": "realtime.item",
                    "type": "function_call_output",
                    "status": Status::Completed.as_str(),
                    "call_id": call,
                    "output": output,
                });
            }
        };
        json!({
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": status.as_str(),
            "role": role,
            "content": content,
        })
    }
}

impl Reply {
    fn content(&self, dialect: Dialect) -> Value {
        let (kind, words) = match (dialect, self.speaks) {
            (Dialect::Current, true) => ("output_audio", "transcript"),
            (Dialect::Current, false) => ("output_text", "text"),
            (Dialect::Beta, true) => ("audio", "transcript"),
            (Dialect::Beta, false) => ("text", "text"),
        };
        match (&self.transcript, self.status) {
            // Its content begins with its first part.
            (Some(text), Status::InProgress) if text.is_empty() => json!([]),
            (transcript, Status::InProgress | Status::Completed | Status::Incomplete) => {
                json!([{ "type": kind, words: transcript }])
            }
        }
    }
}

/// The items, in order.
#[derive(Debug, Default)]
pub(super) struct Items(VecDeque<Item>);

impl Items {
    /// Adds one; the id of the one before it.
    pub(super) fn add(&mut self, item: Item) -> Option<String> {
        let before = self.0.back().map(|it| it.id.clone());
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(item);
        before
    }

    pub(super) fn last(&self) -> Option<&str> {
        self.0.back().map(|item| item.id.as_str())
    }

    pub(super) fn find(&self, id: &str) -> Option<&Item> {
        self.0.iter().rev().find(|item| item.id == id)
    }

    pub(super) fn find_mut(&mut self, id: &str) -> Option<&mut Item> {
        self.0.iter_mut().rev().find(|item| item.id == id)
    }

    pub(super) fn reply_mut(&mut self, id: &str) -> Option<&mut Reply> {
        match &mut self.find_mut(id)?.kind {
            Kind::Reply(reply) => Some(reply),
            Kind::Written { .. }
            | Kind::Spoken { .. }
            | Kind::Call { .. }
            | Kind::Output { .. } => None,
        }
    }

    /// Samples that went out of its turn before a reply: a turn that calls tools has several.
    pub(super) fn samples_before(&self, id: &str) -> u64 {
        let replies = self.0.iter().filter_map(|item| match &item.kind {
            Kind::Reply(reply) => Some((&item.id, reply)),
            Kind::Written { .. }
            | Kind::Spoken { .. }
            | Kind::Call { .. }
            | Kind::Output { .. } => None,
        });
        let Some((_, this)) = replies.clone().find(|(of, _)| *of == id) else {
            return 0;
        };
        let before = replies.take_while(|(of, _)| *of != id);
        let of_turn = before.filter(|(_, reply)| reply.turn == this.turn);
        of_turn.map(|(_, reply)| reply.samples).sum()
    }

    pub(super) fn remove(&mut self, id: &str) {
        self.0.retain(|item| item.id != id);
    }
}
