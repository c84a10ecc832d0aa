//! Cuts generated text into clauses that can be spoken: the first as soon as there is one.
//!
//! When it may do so the frozen plan says (`streaming_handoff.llm_to_tts`): not before the text is complete
//! if it is disabled; the first clause at a comma from `min_partial_chars` on; at the end of a sentence if
//! `trigger_on_punctuation`; and what has waited for `max_partial_age_ms` goes on at its last blank. No more
//! than `max_pending_segments` are ahead of the voice: the text beyond them waits here, and goes on as
//! one segment if `coalesce_latest_only`.

use std::time::Duration;

use rspp_kernel::{
    CancelReason,
    handoff::{LLM_TO_TTS, Window},
    plan::Handoff,
};
use rspp_proto::{Monotonic, Payload, SampleIndex, Speaker, TextChunk};
use rspp_timeline::HandoffAction;

use crate::{
    event::{Event, Port},
    node::{Node, NodeContext, NodeReport, Step, Taken},
};

/// Shortest later clause that is cut at a comma, in characters: longer ones sound better.
const MIN_CLAUSE: usize = 60;
/// Longest clause, in characters.
const MAX_CLAUSE: usize = 240;
/// Longest segment that clauses are folded into, in bytes: what one call of a voice can take.
const MAX_FOLDED: usize = 4 * MAX_CLAUSE;

/// Words that end in a full stop without ending a sentence, in lower case.
const ABBREVIATIONS: &[&str] = &[
    "mr.", "mrs.", "ms.", "dr.", "prof.", "st.", "e.g.", "i.e.", "etc.", "vs.", "no.", "a.m.",
    "p.m.", "inc.", "ltd.",
];

/// The node.
#[derive(Default)]
pub(super) struct Segmenter {
    pending: String,
    /// When the oldest words of what is pending came.
    since: Option<Monotonic>,
    segments: u32,
    /// How far the voice may be behind; `None` if nobody says what is taken.
    window: Option<Window>,
    /// What was heard of the voice last.
    heard: Option<Taken>,
    /// Whether something could be handed over and the voice takes no more.
    is_held: bool,
    /// When a voice that waits for text has lost what it was handed: then it is given more.
    lost_at: Option<Monotonic>,
    text_ended: bool,
}

/// How eager the cut is.
#[derive(Clone, Copy)]
pub(super) struct Eagerness {
    /// Shortest clause that is cut at a comma, in characters.
    shortest: usize,
    /// Whether a sentence is cut however short it is.
    at_sentences: bool,
}

impl Eagerness {
    pub(super) fn of(handoff: &Handoff, first: bool) -> Self {
        let least = handoff.least_chars();
        Self {
            shortest: if first { least } else { least.max(MIN_CLAUSE) },
            at_sentences: handoff.trigger_on_punctuation,
        }
    }
}

/// Where the first clause of `text` ends, in bytes; `None` if more text may still belong to it.
pub(super) fn clause_end(text: &str, eagerness: Eagerness) -> Option<usize> {
    let Eagerness {
        shortest,
        at_sentences,
    } = eagerness;
    let mut last_space = None;
    for (count, (at, c)) in text.char_indices().enumerate() {
        let end = at + c.len_utf8();
        let next = text[end..].chars().next();
        let breaks = next.is_some_and(char::is_whitespace);
        let is_long = count + 1 >= shortest;
        let may_end = at_sentences || is_long;
        match c {
            '\n' if !text[..at].trim().is_empty() => return Some(end),
            '!' | '?' | '…' if breaks && may_end => return Some(end),
            '.' if breaks && may_end && !is_abbreviation(&text[..end]) => return Some(end),
            ',' | ';' | ':' | '—' | '–' if breaks && is_long => return Some(end),
            c if c.is_whitespace() => last_space = Some(at),
            _no_boundary => {}
        }
        if count + 1 >= MAX_CLAUSE {
            return Some(last_space.filter(|at| *at > 0).unwrap_or(end));
        }
    }
    None
}

fn is_abbreviation(text: &str) -> bool {
    let word = text.rsplit(char::is_whitespace).next().unwrap_or_default();
    let word = word.to_lowercase();
    let initial = word.chars().count() == 2 && word.starts_with(char::is_alphabetic);
    ABBREVIATIONS.contains(&word.as_str()) || (initial && word != "i.")
}

impl Segmenter {
    fn take(&mut self, cx: &mut NodeContext, text: &str) {
        self.since.get_or_insert_with(|| cx.now());
        self.pending.push_str(text);
        self.hand_over(cx);
    }

    /// Hands over what may go.
    fn hand_over(&mut self, cx: &mut NodeContext) {
        self.hear(cx);
        if self.text_ended {
            self.finish(cx);
        } else if cx.settings().handoff.enabled && !self.is_staged() {
            self.cut(cx, HandoffAction::Forward);
        }
        self.arm(cx);
    }

    /// Whether the turn goes on stage by stage, since the voice could not keep up.
    fn is_staged(&self) -> bool {
        self.window.as_ref().is_some_and(Window::is_degraded)
    }

    fn may_hand(&self) -> bool {
        self.window.as_ref().is_none_or(Window::may_hand)
    }

    /// Takes in how far the voice has come.
    fn hear(&mut self, cx: &mut NodeContext) {
        let (Some(window), Some(handing)) = (&mut self.window, &cx.settings().handing) else {
            return;
        };
        let taken = handing.taking.look();
        if self.heard != Some(taken) {
            self.lost_at = None;
        }
        self.heard = Some(taken);
        match taken.begun {
            Some(begun) => window.take(begun),
            None => window.forgive(),
        }
        if self.lost_at.is_some_and(|at| at <= cx.now()) {
            window.forgive();
            self.lost_at = None;
        }
        self.tell(cx);
    }

    /// Says what the window has to say.
    fn tell(&mut self, cx: &mut NodeContext) {
        if let Some(window) = &mut self.window {
            cx.report_notices(LLM_TO_TTS, window.take_notices());
        }
    }

    fn cut(&mut self, cx: &mut NodeContext, action: HandoffAction) {
        while let Some((end, clauses)) = self.next_end(cx) {
            if !self.may_hand() {
                self.is_held = true;
                return;
            }
            let action = if clauses > 1 {
                HandoffAction::Coalesce
            } else {
                action
            };
            self.say_until(cx, end, action);
        }
        self.is_held = false;
    }

    /// Where the next segment ends, and how many clauses it has: several only if they had to wait.
    fn next_end(&self, cx: &NodeContext) -> Option<(usize, usize)> {
        let handoff = &cx.settings().handoff;
        let mut eagerness = Eagerness::of(handoff, self.segments == 0);
        let mut end = clause_end(&self.pending, eagerness)?;
        let mut clauses = 1;
        if self.is_held && handoff.coalesce_latest_only {
            eagerness = Eagerness::of(handoff, false);
            while let Some(more) = clause_end(&self.pending[end..], eagerness)
                && end + more <= MAX_FOLDED
            {
                end += more;
                clauses += 1;
            }
        }
        Some((end, clauses))
    }

    /// All of the text is there.
    fn finish(&mut self, cx: &mut NodeContext) {
        self.cut(cx, HandoffAction::FinalFallback);
        if self.is_held {
            return;
        }
        if !self.pending.trim().is_empty() && !self.may_hand() {
            self.is_held = true;
            return;
        }
        let action = if self.segments == 0 {
            HandoffAction::FinalFallback
        } else {
            HandoffAction::Forward
        };
        self.say_until(cx, self.pending.len(), action);
        self.text_ended = false;
        cx.emit(Payload::TextEnd);
    }

    /// Sees to it that the node is woken for what is due next.
    fn arm(&mut self, cx: &mut NodeContext) {
        let patience = cx.settings().handoff.patience();
        if !self.may_hand() {
            cx.forget_wake();
            let (Some(handing), Some(heard)) = (&cx.settings().handing, self.heard) else {
                return;
            };
            if !handing.taking.wait_for_more(heard) {
                cx.wake_in(Duration::ZERO);
            } else if heard.rests {
                // What a guard or an edge has kept from it will not be taken any more.
                let lost_at = *self.lost_at.get_or_insert(cx.now() + patience);
                cx.wake_in(lost_at.since(cx.now()));
            }
            return;
        }
        let ages = cx.settings().handoff.enabled && !self.is_staged() && !self.text_ended;
        match self.since.filter(|_| ages) {
            Some(since) => cx.wake_in((since + patience).since(cx.now())),
            None => cx.forget_wake(),
        }
    }

    fn say_until(&mut self, cx: &mut NodeContext, end: usize, action: HandoffAction) {
        let rest = self.pending.split_off(end);
        let clause = std::mem::replace(&mut self.pending, rest);
        let accepted = self.since.take().unwrap_or_else(|| cx.now());
        if !self.pending.trim().is_empty() {
            self.since = Some(cx.now());
        }
        self.say(cx, &clause, accepted, action);
    }

    fn say(
        &mut self,
        cx: &mut NodeContext,
        clause: &str,
        accepted: Monotonic,
        action: HandoffAction,
    ) {
        let clause = clause.trim();
        if !clause.chars().any(char::is_alphanumeric) {
            return; // Nothing that could be pronounced.
        }
        let segment = self.segments;
        self.segments += 1;
        let (mut pending, mut is_full) = (0, false);
        if let Some(window) = &mut self.window {
            window.hand();
            (pending, is_full) = (window.pending(), window.is_pressed());
        }
        cx.report(NodeReport::HandedOver {
            segment,
            action,
            accepted,
            pending,
            is_full,
        });
        self.tell(cx);
        let chunk = TextChunk::whole(Speaker::Agent, segment, clause);
        cx.emit_at(Payload::Text(Box::new(chunk)), SampleIndex(0), segment);
    }

    /// What has waited for more for too long goes on as far as its words are whole.
    fn say_old(&mut self, cx: &mut NodeContext) {
        let handoff = &cx.settings().handoff;
        let (patience, least) = (handoff.patience(), handoff.least_chars());
        if self.since.is_none_or(|since| since + patience > cx.now()) {
            return;
        }
        let whole = self.pending.rfind(char::is_whitespace);
        let long_enough = |end: &usize| self.pending[..*end].trim().chars().count() >= least;
        if let Some(end) = whole.filter(long_enough) {
            self.say_until(cx, end, HandoffAction::Forward);
            self.arm(cx);
        } else {
            cx.forget_wake(); // Nothing is to be done before there is more.
        }
    }

    fn forget(&mut self, cx: &mut NodeContext) {
        self.pending.clear();
        self.since = None;
        self.is_held = false;
        self.lost_at = None;
        self.text_ended = false;
        if let Some(window) = &mut self.window {
            window.forgive();
        }
        cx.forget_wake();
    }
}

impl Node for Segmenter {
    fn start<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        let settings = cx.settings();
        let handing = settings.handing.as_ref();
        self.window = handing.map(|handing| Window::new(&settings.handoff, handing.mode));
        self.tell(cx);
        Step::OK
    }

    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        match event.payload {
            Payload::Text(chunk) => self.take(cx, &chunk.text),
            Payload::TextEnd => {
                self.text_ended = true;
                self.hand_over(cx);
            }
            Payload::AudioChunk(_)
            | Payload::AudioEnd
            | Payload::Speech(_)
            | Payload::Metrics(_)
            | Payload::Debug(_)
            | Payload::Error(_)
            | Payload::Extension(_) => {}
        }
        Step::OK
    }

    fn on_wake<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        self.hand_over(cx);
        let streams = cx.settings().handoff.enabled && !self.is_staged();
        if streams && !self.text_ended && self.may_hand() {
            self.say_old(cx);
        }
        Step::OK
    }

    /// What was not handed over is not said.
    fn on_soft_cancel(&mut self, cx: &mut NodeContext, _reason: CancelReason) {
        let owes_end = self.text_ended;
        self.forget(cx);
        if owes_end {
            cx.emit(Payload::TextEnd);
        }
    }

    fn on_cancel<'a>(&'a mut self, cx: &'a mut NodeContext, _reason: CancelReason) -> Step<'a> {
        self.forget(cx);
        Step::OK
    }
}

#[cfg(test)]
mod tests {
    use rspp_proto::spec::NodeKind;

    use super::*;
    use crate::node::testing::{Harness, generated};

    fn clauses(text: &str) -> Vec<String> {
        let mut pending = text.to_owned();
        let mut found = Vec::new();
        let handoff = rspp_kernel::plan::profile::streaming_handoff().llm_to_tts;
        while let Some(end) = clause_end(&pending, Eagerness::of(&handoff, found.is_empty())) {
            let rest = pending.split_off(end);
            found.push(std::mem::replace(&mut pending, rest).trim().to_owned());
        }
        found.push(pending.trim().to_owned());
        found
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        assert_eq!(clauses(text), expected);
    }

    #[test]
    fn clauses_end_where_people_breathe() {
        check(
            "Hello there. How are you?",
            &["Hello there.", "How are you?"],
        );
        check(
            "Good morning Sam, what can I do?",
            &["Good morning Sam,", "what can I do?"],
        );
        check("Yes, of course.", &["Yes, of course."]);
        check(
            "It costs 3.50 euros, no more.",
            &["It costs 3.50 euros,", "no more."],
        );
        check(
            "Ask Dr. Brown at 5 p.m. today.",
            &["Ask Dr. Brown at 5 p.m. today."],
        );
        check("One\ntwo", &["One", "two"]);
    }

    #[test]
    fn a_clause_is_never_longer_than_its_limit() {
        for text in ["word ".repeat(200), "w".repeat(1_000)] {
            assert!(
                clauses(&text)
                    .iter()
                    .all(|c| c.chars().count() <= MAX_CLAUSE)
            );
        }
    }

    /// F-128: a clause goes on as soon as it is whole, the rest when the text ends.
    #[test]
    fn a_clause_goes_on_as_soon_as_it_is_whole() {
        let mut rig = Harness::of_kind(NodeKind::Segmenter).start().unwrap();
        for piece in ["Good day. ", "How ", "can I "] {
            rig.feed(generated(piece));
        }
        assert_eq!(rig.texts(), ["Good day."]);
        rig.feed(generated("help?"));
        assert!(rig.texts().is_empty(), "more may belong to it");
        rig.feed(Payload::TextEnd);
        assert_eq!(rig.texts(), ["How can I help?"]);
        assert_eq!(rig.emitted(), [Payload::TextEnd]);
        rig.stop();
    }

    /// F-128, turn-plan.md §7: what has waited for as long as the plan allows goes on at its last blank.
    #[test]
    fn what_has_waited_too_long_goes_on() {
        let handoff = rspp_kernel::plan::profile::streaming_handoff().llm_to_tts;
        let just_before = Duration::from_millis(handoff.max_partial_age_ms - 1);
        let mut rig = Harness::of_kind(NodeKind::Segmenter).start().unwrap();
        rig.feed(generated("Let me think about that for a mo"));
        rig.advance(just_before);
        assert!(rig.texts().is_empty());
        rig.advance(Duration::from_millis(1));
        assert_eq!(rig.texts(), ["Let me think about that for a"]);
        rig.stop();
    }

    /// F-038, F-128: nothing of a cancelled turn is said in the next.
    #[test]
    fn a_cancelled_clause_is_forgotten() {
        let mut rig = Harness::of_kind(NodeKind::Segmenter).start().unwrap();
        rig.feed(generated("Never said, "));
        rig.cancel_work(CancelReason::BargeIn);
        rig.feed(generated("Said."));
        rig.feed(Payload::TextEnd);
        assert_eq!(rig.texts(), ["Said."]);
        rig.stop();
    }
}
