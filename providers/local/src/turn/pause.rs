//! End of turn by rule: a pause ends the turn unless the words say that more is to come.

use rspp_proto::SampleRate;
use rspp_provider_api::{Cost, Description, EndOfTurn, EndOfTurnModel, Fault};

use crate::describe::describe;

/// A finished sentence.
const FINISHED: f32 = 0.95;
/// Nothing speaks against it.
const PAUSED: f32 = 0.6;
/// A list or a clause goes on.
const OPEN: f32 = 0.25;
/// Nobody stops there.
const HANGING: f32 = 0.1;

/// English words that something follows.
const LEADING: [&str; 33] = [
    "a", "an", "and", "at", "because", "but", "by", "for", "from", "hmm", "if", "in", "is", "like",
    "my", "of", "on", "or", "our", "so", "than", "that's", "the", "their", "to", "uh", "um",
    "until", "well", "when", "which", "with", "your",
];

/// Judges by the transcript's last words; without a transcript, by the pause alone.
#[derive(Debug)]
pub struct Pause {
    description: Description,
}

impl Pause {
    /// The rule.
    pub fn new() -> Self {
        Self {
            description: describe("pause", "punctuation rule"),
        }
    }
}

impl Default for Pause {
    fn default() -> Self {
        Self::new()
    }
}

impl EndOfTurn for Pause {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn model(&self) -> Result<Box<dyn EndOfTurnModel>, Fault> {
        Ok(Box::new(Rule))
    }
}

struct Rule;

impl EndOfTurnModel for Rule {
    fn sample_rate(&self) -> SampleRate {
        SampleRate::HZ_16000
    }

    /// It does not listen; one sample is the least that may be asked for.
    fn window(&self) -> usize {
        1
    }

    fn cost(&self) -> Cost {
        Cost::Inline
    }

    fn complete(&mut self, _audio: &[i16], transcript: Option<&str>) -> f32 {
        judge(transcript.unwrap_or_default())
    }
}

fn judge(transcript: &str) -> f32 {
    let closing = |c: char| c.is_whitespace() || "\"')]}»”’".contains(c);
    let text = transcript.trim_end_matches(closing);
    let (words, mark) = match text.char_indices().next_back() {
        Some((at, mark)) if !mark.is_alphanumeric() => (&text[..at], Some(mark)),
        Some(_) | None => (text, None),
    };
    match mark {
        Some('.') if words.ends_with('.') => HANGING,
        Some('…' | '-' | '–' | '—') => HANGING,
        // Recognisers put a full stop after everything; the last word knows better.
        Some('.') | None if ends_in_leading_word(words) => HANGING,
        Some('.' | '!' | '?' | '。' | '！' | '？' | '؟' | '।') => FINISHED,
        Some(',' | ';' | ':' | '、' | '，' | '；' | '：' | '،') => OPEN,
        Some(_) | None => PAUSED,
    }
}

fn ends_in_leading_word(words: &str) -> bool {
    let last = words.split_whitespace().next_back().unwrap_or_default();
    LEADING.contains(&last.to_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-017
    #[test]
    fn the_last_words_decide() {
        #[track_caller]
        fn check(transcript: &str, expected: f32) {
            assert!(
                (judge(transcript) - expected).abs() < f32::EPSILON,
                "{transcript}"
            );
        }
        check("", PAUSED);
        check("what is the weather", PAUSED);
        check("What is the weather?", FINISHED);
        check("He said \"yes.\"", FINISHED);
        check("好的。", FINISHED);
        check("I would like eggs,", OPEN);
        check("I would like eggs and", HANGING);
        check("I would like eggs and.", HANGING);
        check("And?", FINISHED);
        check("Well...", HANGING);
        check("I think—", HANGING);
        check("   ", PAUSED);
    }
}
