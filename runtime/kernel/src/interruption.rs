//! Whether speech over the agent interrupts it (P11, P12).
//!
//! Under `speech` it does once it has lasted long enough. Under `words` it holds the agent's playout
//! at once, but only words end the turn: without them the agent goes on where it was held. Nothing is
//! destroyed on a suspicion.

use std::time::Duration;

use rspp_proto::{
    Monotonic, SampleIndex,
    spec::{BargeInConfirm, TurnPolicy},
};

/// What follows from what was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Nothing,
    /// Playout is to be held.
    Hold,
    /// It was no interruption: playout goes on.
    Release,
    /// It is an interruption.
    Interrupt,
}

/// What is known about speech over the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Suspicion {
    /// Nobody speaks over the agent.
    #[default]
    None,
    /// Somebody does, and interrupts if it lasts until then.
    Lasting { sure_at: Monotonic },
    /// Somebody does or did, and playout is held until words come or time is up.
    Held {
        since: Monotonic,
        /// Where in the user's audio it began.
        from: SampleIndex,
        speaking: bool,
        release_at: Monotonic,
    },
    /// It held playout in vain. Words that come of it yet still count.
    Dismissed { from: SampleIndex },
}

/// Judges speech over one turn after another.
#[derive(Debug)]
pub struct Interruption {
    confirm: BargeInConfirm,
    min_speech: Duration,
    min_words: u32,
    patience: Duration,
    longest: Duration,
    suspicion: Suspicion,
}

impl Interruption {
    /// A judge that goes by `policy`.
    pub fn new(policy: &TurnPolicy) -> Self {
        Self {
            confirm: policy.barge_in_confirm,
            min_speech: Duration::from_millis(policy.barge_in_min_speech_ms),
            min_words: policy.barge_in_min_words,
            patience: Duration::from_millis(policy.false_interruption_ms),
            longest: Duration::from_millis(policy.max_hold_ms),
            suspicion: Suspicion::None,
        }
    }

    /// Since when playout is held.
    pub fn held_since(&self) -> Option<Monotonic> {
        match self.suspicion {
            Suspicion::Held { since, .. } => Some(since),
            Suspicion::None | Suspicion::Lasting { .. } | Suspicion::Dismissed { .. } => None,
        }
    }

    /// When to call [`Self::tick`] at the latest.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        match self.suspicion {
            Suspicion::Lasting { sure_at } => Some(sure_at),
            Suspicion::Held { release_at, .. } => Some(release_at),
            Suspicion::None | Suspicion::Dismissed { .. } => None,
        }
    }

    /// Somebody speaks over the agent.
    pub fn started(&mut self, now: Monotonic, at: SampleIndex) -> Verdict {
        match self.suspicion {
            Suspicion::Lasting { .. } => Verdict::Nothing,
            Suspicion::Held { since, from, .. } => {
                self.hold(since, from);
                Verdict::Nothing
            }
            Suspicion::None | Suspicion::Dismissed { .. } => match self.confirm {
                BargeInConfirm::Speech => {
                    let sure_at = now + self.min_speech;
                    self.suspicion = Suspicion::Lasting { sure_at };
                    Verdict::Nothing
                }
                BargeInConfirm::Words => {
                    self.hold(now, at);
                    Verdict::Hold
                }
            },
        }
    }

    /// Goes on after a silence that was too short to be an end.
    pub fn resumed(&mut self, now: Monotonic, at: SampleIndex) -> Verdict {
        match (self.confirm, self.suspicion) {
            // What was dismissed does not begin anew with every breath.
            (BargeInConfirm::Words, Suspicion::None | Suspicion::Dismissed { .. }) => {
                Verdict::Nothing
            }
            (BargeInConfirm::Speech, Suspicion::None | Suspicion::Dismissed { .. })
            | (
                BargeInConfirm::Speech | BargeInConfirm::Words,
                Suspicion::Lasting { .. } | Suspicion::Held { .. },
            ) => self.started(now, at),
        }
    }

    fn hold(&mut self, since: Monotonic, from: SampleIndex) {
        self.suspicion = Suspicion::Held {
            since,
            from,
            speaking: true,
            release_at: since + self.longest,
        };
    }

    /// Whoever spoke is silent. A recogniser may give its words only now, so they get their time.
    pub fn stopped(&mut self, now: Monotonic) {
        match &mut self.suspicion {
            Suspicion::None | Suspicion::Dismissed { .. } => {}
            Suspicion::Lasting { .. } => self.suspicion = Suspicion::None,
            Suspicion::Held {
                speaking,
                release_at,
                ..
            } => {
                // Told twice, a pause and then the stop: the first is when it fell silent.
                if *speaking {
                    *speaking = false;
                    *release_at = now + self.patience;
                }
            }
        }
    }

    /// Words of speech that began at `at` in the user's audio were recognised. Words of what was said
    /// before the interruption prove nothing.
    pub fn recognised(&mut self, at: SampleIndex, text: &str, is_final: bool) -> Verdict {
        let (from, held, speaking) = match self.suspicion {
            Suspicion::None | Suspicion::Lasting { .. } => return Verdict::Nothing,
            Suspicion::Held { from, speaking, .. } => (from, true, speaking),
            Suspicion::Dismissed { from } => (from, false, false),
        };
        if at < from {
            return Verdict::Nothing;
        }
        if self.are_enough(text) {
            return Verdict::Interrupt;
        }
        // The last word is spoken, and it was too few.
        if is_final && held && !speaking {
            self.dismiss(from);
            return Verdict::Release;
        }
        Verdict::Nothing
    }

    /// Whether these words, said over the agent, interrupt it.
    pub fn are_enough(&self, text: &str) -> bool {
        match self.confirm {
            BargeInConfirm::Speech => true,
            BargeInConfirm::Words => {
                let wanted = self.min_words.max(1) as usize;
                text.split_whitespace().take(wanted).count() == wanted
            }
        }
    }

    /// It was no interruption after all.
    pub fn dismissed(&mut self) -> Verdict {
        match self.suspicion {
            Suspicion::Held { from, .. } => {
                self.dismiss(from);
                Verdict::Release
            }
            Suspicion::None | Suspicion::Lasting { .. } | Suspicion::Dismissed { .. } => {
                Verdict::Nothing
            }
        }
    }

    fn dismiss(&mut self, from: SampleIndex) {
        self.suspicion = Suspicion::Dismissed { from };
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Monotonic) -> Verdict {
        match self.suspicion {
            Suspicion::Lasting { sure_at } if sure_at <= now => Verdict::Interrupt,
            Suspicion::Held { release_at, .. } if release_at <= now => self.dismissed(),
            Suspicion::None
            | Suspicion::Lasting { .. }
            | Suspicion::Held { .. }
            | Suspicion::Dismissed { .. } => Verdict::Nothing,
        }
    }

    /// The turn that was spoken over is over, or cancelled: nothing is held any more.
    pub fn forget(&mut self) {
        self.suspicion = Suspicion::None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Monotonic {
        Monotonic::from_millis(ms)
    }

    const HERE: SampleIndex = SampleIndex(1_000);

    fn by_words(min_words: u32) -> Interruption {
        Interruption::new(&TurnPolicy {
            barge_in_confirm: BargeInConfirm::Words,
            barge_in_min_words: min_words,
            ..TurnPolicy::default()
        })
    }

    /// P11: a suspicion holds, its time runs from the end of the sound, and it is over then.
    #[test]
    fn a_cough_holds_and_releases() {
        let mut judge = by_words(1);
        assert_eq!(judge.started(ms(0), HERE), Verdict::Hold);
        assert_eq!(judge.next_deadline(), Some(ms(5_000)));
        judge.stopped(ms(300));
        judge.stopped(ms(540));
        assert_eq!(judge.next_deadline(), Some(ms(1_800)));
        assert_eq!(judge.tick(ms(1_799)), Verdict::Nothing);
        assert_eq!(judge.held_since(), Some(ms(0)));
        assert_eq!(judge.tick(ms(1_800)), Verdict::Release);
        assert_eq!((judge.held_since(), judge.next_deadline()), (None, None));
    }

    /// P11: a recogniser that is done and found nothing need not be waited for.
    #[test]
    fn a_blank_transcript_releases_at_once() {
        let mut judge = by_words(1);
        judge.started(ms(0), HERE);
        assert_eq!(
            judge.recognised(HERE, "", true),
            Verdict::Nothing,
            "speaks on"
        );
        judge.stopped(ms(300));
        assert_eq!(judge.recognised(HERE, "", false), Verdict::Nothing);
        assert_eq!(judge.recognised(HERE, " ", true), Verdict::Release);
    }

    /// P12: words interrupt, also those that come late; words of before do not.
    #[test]
    fn words_interrupt() {
        let mut judge = by_words(2);
        judge.started(ms(0), HERE);
        assert_eq!(
            judge.recognised(SampleIndex(999), "said long before", true),
            Verdict::Nothing
        );
        assert_eq!(judge.recognised(HERE, "wait", false), Verdict::Nothing);
        assert_eq!(judge.recognised(HERE, "wait a", false), Verdict::Interrupt);
        judge.stopped(ms(300));
        assert_eq!(judge.tick(ms(1_800)), Verdict::Release);
        assert_eq!(judge.recognised(HERE, "wait a", true), Verdict::Interrupt);
    }

    /// Noise without a word does not hold the agent for ever, and does not hold it again by
    /// breathing.
    #[test]
    fn endless_noise_is_dismissed() {
        let mut judge = by_words(1);
        judge.started(ms(0), HERE);
        for at in (500..4_500).step_by(500) {
            judge.stopped(ms(at));
            assert_eq!(judge.resumed(ms(at + 100), HERE), Verdict::Nothing);
        }
        assert_eq!(judge.tick(ms(5_000)), Verdict::Release);
        judge.stopped(ms(5_200));
        assert_eq!(judge.resumed(ms(5_300), HERE), Verdict::Nothing);
        assert_eq!(judge.held_since(), None);
        assert_eq!(judge.started(ms(9_000), HERE), Verdict::Hold, "a new sound");
    }

    /// P28: under `speech` a sound has to last, and never holds anything.
    #[test]
    fn speech_has_to_last() {
        let mut judge = Interruption::new(&TurnPolicy::default());
        assert_eq!(judge.started(ms(0), HERE), Verdict::Nothing);
        judge.stopped(ms(120));
        assert_eq!(judge.tick(ms(500)), Verdict::Nothing);
        judge.started(ms(600), HERE);
        assert_eq!(judge.resumed(ms(700), HERE), Verdict::Nothing);
        assert_eq!(judge.tick(ms(799)), Verdict::Nothing);
        assert_eq!(judge.tick(ms(800)), Verdict::Interrupt);
        assert_eq!(judge.held_since(), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Start,
        Resume,
        Stop,
        Words(bool),
        Blank(bool),
        Tick,
    }

    fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
        let step = prop_oneof![
            Just(Step::Start),
            Just(Step::Resume),
            Just(Step::Stop),
            any::<bool>().prop_map(Step::Words),
            any::<bool>().prop_map(Step::Blank),
            Just(Step::Tick),
        ];
        prop::collection::vec((0u64..900, step), 1..60)
    }

    proptest! {
        /// P11, P12: holds and releases alternate, each hold has a deadline within its bounds, and
        /// time alone always ends it.
        #[test]
        fn every_hold_is_released_or_confirmed(steps in steps()) {
            let mut judge = by_words(1);
            let (mut now, mut held) = (0, None);
            for (wait, step) in steps {
                now += wait;
                let verdict = match step {
                    Step::Start => judge.started(ms(now), HERE),
                    Step::Resume => judge.resumed(ms(now), HERE),
                    Step::Stop => { judge.stopped(ms(now)); Verdict::Nothing }
                    Step::Words(is_final) => judge.recognised(HERE, "yes", is_final),
                    Step::Blank(is_final) => judge.recognised(HERE, "", is_final),
                    Step::Tick => judge.tick(ms(now)),
                };
                match verdict {
                    Verdict::Hold => {
                        prop_assert!(held.is_none());
                        held = Some(now);
                    }
                    Verdict::Release => prop_assert!(held.take().is_some()),
                    Verdict::Interrupt => {
                        held = None;
                        judge.forget();
                    }
                    Verdict::Nothing => {}
                }
                prop_assert_eq!(judge.held_since(), held.map(ms));
                prop_assert_eq!(judge.next_deadline().is_some(), held.is_some());
                if let (Some(since), Some(due)) = (held, judge.next_deadline()) {
                    prop_assert!(due <= ms(since.max(now) + 5_000 + 1_500));
                    prop_assert!(due <= ms(since + 5_000).max(ms(now + 1_500)));
                }
            }
            if let Some(due) = judge.next_deadline() {
                prop_assert_eq!(judge.tick(due), Verdict::Release);
            }
        }
    }
}
