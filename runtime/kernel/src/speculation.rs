//! Answers begun on a guess: whether one may be begun, and what became of it (P9, P10).
//!
//! Knows nothing of what a guess runs. Its number is a turn's, so that one fence serves both; it is no
//! turn until it is promoted, and its number is never used again if it is not.

use std::{collections::VecDeque, time::Duration};

use rspp_proto::{Monotonic, TurnNumber, spec::SpeculationPolicy};
use serde::{Deserialize, Serialize};

/// The span that both budgets are counted over.
const WINDOW: Duration = Duration::from_mins(1);

/// What became of a session's guesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpeculationStats {
    /// Guesses begun.
    pub begun: u64,
    /// Those that became turns.
    pub promoted: u64,
    /// Those that came to nothing.
    pub discarded: u64,
    /// Guesses that a budget did not allow.
    pub withheld: u64,
    /// Tokens that models had streamed for guesses that came to nothing.
    pub wasted_tokens: u64,
    /// Characters that had been given to synthesis for them.
    pub wasted_characters: u64,
    /// How much earlier promoted turns were begun, in milliseconds, all together.
    pub head_start_ms: u64,
}

/// Why a guess came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Discarded {
    /// The user went on speaking.
    UserWentOn,
    /// The final words are others.
    WordsDiffer,
    /// The conversation that it was begun with is another by now.
    ContextChanged,
    /// Its turn runs by another plan: one with less, or with other providers.
    PlanDiffers,
    /// It could not be begun, or failed.
    Failed,
    /// Nobody has said for too long whether it is right.
    TooLate,
    /// Its turn was not admitted.
    Refused,
    /// The session ends, or speaks under another epoch.
    SessionOver,
}

impl Discarded {
    /// The reason as notes write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UserWentOn => "user_went_on",
            Self::WordsDiffer => "words_differ",
            Self::ContextChanged => "context_changed",
            Self::PlanDiffers => "plan_differs",
            Self::Failed => "failed",
            Self::TooLate => "too_late",
            Self::Refused => "refused",
            Self::SessionOver => "session_over",
        }
    }
}

/// A guess in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guess {
    /// Its provisional number.
    pub number: TurnNumber,
    /// The user's words that it answers.
    pub text: String,
    /// When it was begun.
    pub since: Monotonic,
}

/// A session's guesses: one at a time, within a budget.
#[derive(Debug)]
pub struct Speculation {
    policy: SpeculationPolicy,
    /// Longest that it may take to learn whether a guess is right.
    patience: Duration,
    guess: Option<Guess>,
    begun: VecDeque<Monotonic>,
    wasted: VecDeque<(Monotonic, u64)>,
    stats: SpeculationStats,
}

impl Speculation {
    /// No guess yet; one that nobody has confirmed after `patience` is given up.
    pub fn new(policy: SpeculationPolicy, patience: Duration) -> Self {
        Self {
            policy,
            patience,
            guess: None,
            begun: VecDeque::new(),
            wasted: VecDeque::new(),
            stats: SpeculationStats::default(),
        }
    }

    /// What became of the guesses so far.
    pub fn stats(&self) -> SpeculationStats {
        self.stats
    }

    /// The guess in progress.
    pub fn guess(&self) -> Option<&Guess> {
        self.guess.as_ref()
    }

    /// Whether the words of a pause are worth a guess.
    pub fn is_worth(&self, text: &str) -> bool {
        self.policy.enabled && text.chars().count() >= self.policy.min_characters
    }

    /// Whether one more guess is within the budgets.
    pub fn affords(&mut self, now: Monotonic) -> bool {
        let is_old = |at: Monotonic| now.since(at) >= WINDOW;
        while self.begun.front().is_some_and(|at| is_old(*at)) {
            self.begun.pop_front();
        }
        while self.wasted.front().is_some_and(|(at, _)| is_old(*at)) {
            self.wasted.pop_front();
        }
        let wasted: u64 = self.wasted.iter().map(|(_, tokens)| tokens).sum();
        let allowed = self.begun.len() < self.policy.max_per_minute as usize
            && wasted < self.policy.max_wasted_tokens_per_minute;
        self.stats.withheld += u64::from(!allowed);
        allowed
    }

    /// Begins a guess.
    pub fn begin(&mut self, now: Monotonic, number: TurnNumber, text: String) {
        debug_assert!(self.guess.is_none(), "one guess at a time");
        self.begun.push_back(now);
        self.stats.begun += 1;
        self.guess = Some(Guess {
            number,
            text,
            since: now,
        });
    }

    /// The guess was right.
    pub fn promote(&mut self, now: Monotonic) -> Option<Guess> {
        let guess = self.guess.take()?;
        self.stats.promoted += 1;
        self.stats.head_start_ms += now.since(guess.since).as_millis() as u64;
        Some(guess)
    }

    /// The guess was wrong.
    pub fn discard(&mut self) -> Option<Guess> {
        let guess = self.guess.take()?;
        self.stats.discarded += 1;
        Some(guess)
    }

    /// A guess that had been promoted came to nothing after all: its turn was not admitted.
    pub fn take_back(&mut self) {
        self.stats.promoted = self.stats.promoted.saturating_sub(1);
        self.stats.discarded += 1;
    }

    /// What a guess that came to nothing has cost.
    pub fn spent(&mut self, now: Monotonic, tokens: u64, characters: u64) {
        self.stats.wasted_tokens += tokens;
        self.stats.wasted_characters += characters;
        if tokens > 0 {
            match self.wasted.back_mut() {
                Some((at, spent)) if *at == now => *spent += tokens,
                // As many entries as there are guesses in a window, and their calls.
                Some(_) | None => self.wasted.push_back((now, tokens)),
            }
        }
    }

    /// When the guess is given up.
    pub fn deadline(&self) -> Option<Monotonic> {
        self.guess.as_ref().map(|guess| guess.since + self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic::from_millis(ms)
    }

    fn with(change: impl FnOnce(&mut SpeculationPolicy)) -> Speculation {
        let mut policy = SpeculationPolicy {
            enabled: true,
            ..SpeculationPolicy::default()
        };
        change(&mut policy);
        Speculation::new(policy, Duration::from_secs(5))
    }

    #[test]
    fn there_is_none_unless_it_is_asked_for() {
        let mut off = Speculation::new(SpeculationPolicy::default(), Duration::from_secs(5));
        assert!(!off.is_worth("hello there") && off.affords(at(0)));
        assert_eq!(off.stats(), SpeculationStats::default());
        assert!(!with(|_| {}).is_worth("hm") && with(|_| {}).is_worth("hello"));
    }

    /// P10: the count of a minute bounds guesses, and what is withheld is counted.
    #[test]
    fn guesses_are_bounded_by_the_minute() {
        let mut guesses = with(|policy| policy.max_per_minute = 2);
        for nth in 0..2 {
            assert!(guesses.affords(at(nth * 10)));
            guesses.begin(at(nth * 10), TurnNumber(1), "hello there".into());
            assert!(guesses.discard().is_some());
        }
        assert!(!guesses.affords(at(59_999)));
        assert!(guesses.affords(at(60_000)));
        let stats = guesses.stats();
        assert_eq!((stats.begun, stats.discarded, stats.withheld), (2, 2, 1));
    }

    /// P10: so do the tokens that were wasted.
    #[test]
    fn waste_is_bounded_by_the_minute() {
        let mut guesses = with(|policy| policy.max_wasted_tokens_per_minute = 100);
        guesses.spent(at(0), 99, 7);
        assert!(guesses.affords(at(0)));
        guesses.spent(at(1_000), 1, 0);
        assert!(!guesses.affords(at(1_000)));
        assert!(guesses.affords(at(60_000)));
        assert_eq!(guesses.stats().wasted_tokens, 100);
        assert_eq!(guesses.stats().wasted_characters, 7);
    }

    #[test]
    fn a_guess_is_promoted_or_discarded_once() {
        let mut guesses = with(|_| {});
        guesses.begin(at(100), TurnNumber(3), "hello there".into());
        assert_eq!(guesses.deadline(), Some(at(5_100)));
        let guess = guesses.promote(at(1_600)).unwrap();
        assert_eq!(guess.number, TurnNumber(3));
        assert_eq!(guesses.stats().head_start_ms, 1_500);
        assert_eq!(guesses.promote(at(1_700)), None);
        assert_eq!(guesses.discard(), None);
        assert_eq!(guesses.deadline(), None);
    }
}
