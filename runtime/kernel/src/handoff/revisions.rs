//! What the user has said so far, on its way to the model before all of it is known (turn-plan.md §7).
//!
//! A transcript is revised, not continued: each revision says all that the one before said, or better. So
//! one that is handed over takes the place of the one before, whose work was in vain. How often that may
//! happen in one utterance is bounded by the plan.

use rspp_proto::{Monotonic, spec::FlowMode};

use super::Window;
use crate::{edge::EdgeNotice, plan::Handoff};

/// The hand-over's name where it is spoken of like an edge.
pub const STT_TO_LLM: &str = "stt_to_llm";

/// What is done with a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RevisionAction {
    /// It is the first of its utterance.
    Forward,
    /// It takes the place of one that was handed over.
    Supersede,
    /// Others were folded into it while they had to wait.
    Coalesce,
}

/// A revision that is handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// The words so far.
    pub text: String,
    /// Counts the revisions of an utterance, from 1, those that were not handed over included.
    pub number: u32,
    /// What was done with it.
    pub action: RevisionAction,
    /// When the oldest words that it brings came.
    pub accepted: Monotonic,
    /// Revisions that were handed over in this utterance, this one included.
    pub pending: u64,
    /// Whether those are as many as there may be.
    pub is_full: bool,
}

/// The revisions of what the user says.
#[derive(Clone, Debug)]
pub struct Revisions {
    handoff: Handoff,
    window: Window,
    /// How many there were in this utterance.
    count: u32,
    /// The newest, if it has not been handed over.
    waiting: Option<Waiting>,
    /// The words that were handed over last.
    handed: Option<String>,
}

#[derive(Clone, Debug)]
struct Waiting {
    text: String,
    number: u32,
    since: Monotonic,
    folded: bool,
}

impl Revisions {
    /// Nothing was said yet; under the plan's hand-off, with the data lane's flow control.
    pub fn new(handoff: &Handoff, mode: FlowMode) -> Self {
        let bounds = Handoff {
            max_pending_segments: handoff.max_pending_revisions,
            ..handoff.clone()
        };
        Self {
            window: Window::new(&bounds, mode),
            handoff: handoff.clone(),
            count: 0,
            waiting: None,
            handed: None,
        }
    }

    /// The words so far are these; what is handed over of them now.
    pub fn heard(&mut self, now: Monotonic, words: &str) -> Option<Revision> {
        let text = words.trim();
        if !self.handoff.enabled || text.is_empty() {
            return None;
        }
        if self.handed.as_deref() == Some(text) {
            // It was taken back what had come since.
            self.waiting = None;
            return None;
        }
        if self.waiting.as_ref().is_some_and(|it| it.text == text) {
            return self.tick(now);
        }
        self.count = self.count.saturating_add(1);
        match &mut self.waiting {
            // What waits is not replaced: the words that it lacks come with the next revision.
            Some(_) if !self.handoff.coalesce_latest_only => {}
            Some(waiting) => {
                text.clone_into(&mut waiting.text);
                waiting.number = self.count;
                waiting.folded = true;
            }
            None => {
                self.waiting = Some(Waiting {
                    text: text.to_owned(),
                    number: self.count,
                    since: now,
                    folded: false,
                });
            }
        }
        self.tick(now)
    }

    /// Hands over what has waited for long enough.
    pub fn tick(&mut self, now: Monotonic) -> Option<Revision> {
        let waiting = self.waiting.as_ref()?;
        if !self.window.may_hand() || !self.is_ready(waiting, now) {
            return None;
        }
        let Waiting {
            text,
            number,
            since,
            folded,
        } = self.waiting.take()?;
        self.window.hand();
        let action = match (&self.handed, folded) {
            (_, true) => RevisionAction::Coalesce,
            (Some(_), false) => RevisionAction::Supersede,
            (None, false) => RevisionAction::Forward,
        };
        self.handed = Some(text.clone());
        Some(Revision {
            text,
            number,
            action,
            accepted: since,
            pending: self.window.pending(),
            is_full: self.window.is_pressed(),
        })
    }

    fn is_ready(&self, waiting: &Waiting, now: Monotonic) -> bool {
        let ends_sentence =
            self.handoff.trigger_on_punctuation && waiting.text.ends_with(['.', '!', '?', '…']);
        !self.window.is_degraded()
            && (waiting.text.chars().count() >= self.handoff.least_chars()
                || ends_sentence
                || self.due_at(waiting) <= now)
    }

    fn due_at(&self, waiting: &Waiting) -> Monotonic {
        waiting.since + self.handoff.patience()
    }

    /// When what waits is handed over although it is short.
    pub fn due(&self) -> Option<Monotonic> {
        let waiting = self.waiting.as_ref().filter(|_| self.window.may_hand())?;
        Some(self.due_at(waiting)).filter(|_| !self.window.is_degraded())
    }

    /// All words are known: what was handed over is answered, or was in vain.
    pub fn conclude(&mut self) {
        self.window.forgive();
        self.count = 0;
        self.waiting = None;
        self.handed = None;
    }

    /// What there is to say, in order. Fetch it after each change.
    pub fn take_notices(&mut self) -> impl Iterator<Item = EdgeNotice> {
        self.window.take_notices()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::profile;

    fn at(ms: u64) -> Monotonic {
        Monotonic::from_millis(ms)
    }

    fn revisions(change: impl FnOnce(&mut Handoff)) -> Revisions {
        let mut handoff = profile::streaming_handoff().stt_to_llm;
        handoff.enabled = true;
        handoff.max_pending_revisions = 2;
        change(&mut handoff);
        Revisions::new(&handoff, FlowMode::Signal)
    }

    fn told(revision: Option<Revision>) -> Option<(String, RevisionAction)> {
        revision.map(|it| (it.text, it.action))
    }

    fn handed(text: &str, action: RevisionAction) -> (String, RevisionAction) {
        (text.to_owned(), action)
    }

    /// turn-plan.md §7: long enough, or the end of a sentence, or old enough.
    #[test]
    fn what_is_worth_it_is_handed_over() {
        use RevisionAction::{Coalesce, Forward, Supersede};
        let mut words = revisions(|_| {});
        assert_eq!(words.heard(at(0), "what"), None);
        assert_eq!(words.due(), Some(at(2_000)));
        let found = told(words.heard(at(300), "what is the time"));
        assert_eq!(found, Some(handed("what is the time", Coalesce)));
        assert_eq!(told(words.heard(at(400), "what is the time")), None);
        let found = told(words.heard(at(500), "what is the time now"));
        assert_eq!(found, Some(handed("what is the time now", Supersede)));
        words.conclude();
        assert_eq!(
            told(words.heard(at(900), "Stop.")),
            Some(handed("Stop.", Forward))
        );
        words.conclude();
        assert_eq!(words.heard(at(1_000), "well"), None);
        assert_eq!(words.tick(at(2_999)), None);
        assert_eq!(told(words.tick(at(3_000))), Some(handed("well", Forward)));
    }

    /// turn-plan.md §7: no more revisions than the plan allows; what comes beyond them waits for the end.
    #[test]
    fn revisions_of_one_utterance_are_bounded() {
        let mut words = revisions(|handoff| handoff.min_partial_chars = 1);
        assert!(words.heard(at(0), "one").is_some());
        let last = words.heard(at(1), "one two").unwrap();
        assert_eq!((last.number, last.pending, last.is_full), (2, 2, true));
        let notices: Vec<_> = words.take_notices().collect();
        assert_eq!(notices.last(), Some(&EdgeNotice::FlowXoff));
        assert_eq!(words.heard(at(2), "one two three"), None);
        assert_eq!(words.due(), None);
        words.conclude();
        assert_eq!(words.take_notices().last(), Some(EdgeNotice::FlowXon));
        assert!(words.heard(at(9), "four").is_some());
    }

    #[test]
    fn what_is_off_hands_nothing_over() {
        let mut words = revisions(|handoff| handoff.enabled = false);
        assert_eq!(words.heard(at(0), "what is the time, please?"), None);
        assert_eq!(words.due(), None);
    }

    proptest! {
        /// turn-plan.md §7: whatever is said, an utterance has no more revisions handed over than allowed,
        /// their numbers rise, and none is handed over twice in a row.
        #[test]
        fn the_bound_always_holds(
            limit in 1_u64..5,
            coalesce: bool,
            said in proptest::collection::vec(("[a-c .]{0,20}", 0_u64..900), 0..40),
        ) {
            let mut words = revisions(|handoff| {
                handoff.max_pending_revisions = limit;
                handoff.coalesce_latest_only = coalesce;
            });
            let (mut now, mut handed, mut before) = (0, 0, None::<Revision>);
            for (text, later) in said {
                now += later;
                let next = words.heard(at(now), &text);
                if let Some(next) = next {
                    handed += 1;
                    prop_assert!(handed <= limit);
                    prop_assert!(next.accepted <= at(now));
                    if let Some(before) = before {
                        prop_assert!(before.number < next.number && before.text != next.text);
                    }
                    before = Some(next);
                }
            }
        }
    }
}
