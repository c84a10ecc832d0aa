//! Keeps words from being said: masks them, or replaces the clause that they stand in (F-062, F-118).

use rspp_proto::{Payload, TextChunk};

use crate::{
    event::{Event, Port},
    node::{Node, NodeContext, NodeError, NodeReport, NodeSettings, Step},
};

/// What is said instead of a masked word, unless the node says otherwise.
const MASK: &str = "beep";
/// Most terms of one guard.
const MAX_TERMS: usize = 1_024;

/// The node. Takes whole clauses, so it stands after a segmenter.
#[derive(Default)]
pub(super) struct Guard {
    terms: Vec<String>,
    blocks: bool,
    instead: String,
}

impl Guard {
    /// `text` without what must not be said, and how many times that was; `None` if there was nothing.
    fn judge(&self, text: &str) -> Option<(String, u32)> {
        let mut kept = String::with_capacity(text.len());
        let mut found = 0;
        let mut rest = text;
        while let Some((at, length)) = self.first_term(rest) {
            found += 1;
            kept.push_str(&rest[..at]);
            kept.push_str(&self.instead);
            rest = &rest[at + length..];
        }
        if found == 0 {
            return None;
        }
        if self.blocks {
            return Some((self.instead.clone(), found));
        }
        kept.push_str(rest);
        Some((kept, found))
    }

    /// The first term in `text` that stands as words of its own: where, and how long it is there.
    fn first_term(&self, text: &str) -> Option<(usize, usize)> {
        let starts = text.char_indices().map(|(at, _)| at);
        for at in starts {
            let follows_word = text[..at]
                .chars()
                .next_back()
                .is_some_and(char::is_alphanumeric);
            if follows_word {
                continue;
            }
            for term in &self.terms {
                if let Some(length) = matched(&text[at..], term) {
                    return Some((at, length));
                }
            }
        }
        None
    }
}

/// The length of `term` at the beginning of `text`, whatever its case, if no word goes on after it.
fn matched(text: &str, term: &str) -> Option<usize> {
    let mut wanted = term.chars();
    let mut length = 0;
    for c in text.chars() {
        let Some(next) = wanted.next() else { break };
        if !c.to_lowercase().eq(next.to_lowercase()) {
            return None;
        }
        length += c.len_utf8();
    }
    let whole = wanted.next().is_none();
    let goes_on = text[length..]
        .chars()
        .next()
        .is_some_and(char::is_alphanumeric);
    (whole && !goes_on && length > 0).then_some(length)
}

impl Guard {
    fn set_up(&mut self, settings: &NodeSettings) -> Result<(), NodeError> {
        let terms = settings.spec.config.get("terms");
        let terms = terms.and_then(serde_json::Value::as_array);
        let Some(terms) = terms.filter(|terms| !terms.is_empty() && terms.len() <= MAX_TERMS)
        else {
            return Err(NodeError::new(format!(
                "guard `{}` needs `terms`: 1 to {MAX_TERMS} words or phrases",
                settings.spec.id
            )));
        };
        let terms = terms.iter().filter_map(serde_json::Value::as_str);
        self.terms = terms.map(|term| term.trim().to_owned()).collect();
        self.terms.retain(|term| !term.is_empty());
        self.blocks = settings.text("action") == Some("block");
        let mask = if self.blocks { "" } else { MASK };
        settings
            .text("instead")
            .unwrap_or(mask)
            .clone_into(&mut self.instead);
        Ok(())
    }
}

impl Node for Guard {
    fn init<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        Step::Done(self.set_up(cx.settings()))
    }

    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        let Payload::Text(chunk) = &event.payload else {
            cx.forward(event);
            return Step::OK;
        };
        let Some((text, found)) = self.judge(&chunk.text) else {
            cx.forward(event);
            return Step::OK;
        };
        cx.report(NodeReport::Guarded {
            segment: chunk.segment,
            found,
            blocked: self.blocks,
        });
        if !text.trim().is_empty() {
            let chunk = TextChunk {
                text: text.as_str().into(),
                ..TextChunk::clone(chunk)
            };
            cx.forward(Event {
                payload: Payload::Text(Box::new(chunk)),
                ..event
            });
        }
        Step::OK
    }
}

#[cfg(test)]
mod tests {
    use rspp_proto::spec::NodeKind;

    use super::*;
    use crate::node::testing::{Harness, clause};

    fn guard(blocks: bool) -> Guard {
        Guard {
            terms: vec!["acme".to_owned(), "top secret".to_owned()],
            blocks,
            instead: if blocks {
                "No comment.".to_owned()
            } else {
                "beep".to_owned()
            },
        }
    }

    /// F-118: words are found whole, whatever their case, and nothing else is touched.
    #[test]
    fn what_must_not_be_said_is_masked() {
        #[track_caller]
        fn check(text: &str, masked: Option<&str>) {
            let found = guard(false).judge(text).map(|(text, _)| text);
            assert_eq!(found.as_deref(), masked);
        }
        check("Buy it from ACME, now.", Some("Buy it from beep, now."));
        check("That is top secret, Acme!", Some("That is beep, beep!"));
        check("An acmeist is a poet.", None);
        check("Pacme", None);
        check("", None);
        check("Ça, c'est Acme.", Some("Ça, c'est beep."));
    }

    #[test]
    fn a_blocking_guard_replaces_the_clause() {
        let (said, found) = guard(true).judge("Acme is top secret.").unwrap();
        assert_eq!((said.as_str(), found), ("No comment.", 2));
    }

    fn harness() -> Harness {
        let terms = serde_json::json!(["acme", "top secret"]);
        Harness::of_kind(NodeKind::Guard).config("terms", terms)
    }

    /// F-118, F-128: clauses keep their order and their end; each that was changed is told of.
    #[test]
    fn clauses_pass_in_their_order_and_what_was_changed_is_told() {
        let mut rig = harness().start().unwrap();
        for said in ["Good day.", "Buy it from Acme.", "Goodbye."] {
            rig.feed(clause(said));
        }
        rig.feed(Payload::TextEnd);
        assert_eq!(rig.texts(), ["Good day.", "Buy it from beep.", "Goodbye."]);
        assert_eq!(rig.emitted(), [Payload::TextEnd]);
        let guarded = NodeReport::Guarded {
            segment: 0,
            found: 1,
            blocked: false,
        };
        assert_eq!(rig.reports(), [guarded]);
        rig.stop();
    }

    /// F-118, F-128: a guard that blocks says what it was told to say instead, or nothing at all.
    #[test]
    fn a_blocked_clause_is_replaced_or_left_out() {
        for (instead, said) in [("No comment.", vec!["No comment."]), ("", vec![])] {
            let blocks = harness()
                .config("action", "block")
                .config("instead", instead);
            let mut rig = blocks.start().unwrap();
            rig.feed(clause("Acme is top secret."));
            assert_eq!(rig.texts(), said);
            rig.stop();
        }
    }

    /// F-128: a guard without terms would guard nothing, and is refused.
    #[test]
    fn a_guard_without_terms_is_refused() {
        for terms in [serde_json::json!([]), serde_json::json!("acme")] {
            let refused = Harness::of_kind(NodeKind::Guard).config("terms", terms);
            let refused = refused.start().expect_err("it is refused").to_string();
            assert!(refused.contains("needs `terms`"), "{refused}");
        }
    }
}
