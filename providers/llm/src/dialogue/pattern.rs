//! What a rule listens for.
//!
//! A pattern is words that must come one after the other, anywhere in an utterance. `{x}` stands
//! for any one word and `{x...}` for one or more, both remembered as `x`; `^` and `$` stand for the
//! utterance's begin and end. Case and punctuation do not matter.

use std::collections::BTreeMap;

/// What was remembered, by name.
pub(super) type Captures = BTreeMap<String, String>;

/// A pattern, ready to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    tokens: Vec<Token>,
    from_begin: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    One(String),
    Some(String),
    End,
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Self {
        let (from_begin, text) = match text.trim().strip_prefix('^') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let tokens = text.split_whitespace().flat_map(|part| {
            let name = part
                .strip_prefix('{')
                .and_then(|part| part.strip_suffix('}'));
            match (part, name) {
                ("$", _) => vec![Token::End],
                (_, Some(name)) => vec![match name.strip_suffix("...") {
                    Some(name) => Token::Some(name.to_owned()),
                    None => Token::One(name.to_owned()),
                }],
                (words, None) => Utterance::new(words)
                    .plain
                    .into_iter()
                    .map(Token::Word)
                    .collect(),
            }
        });
        Self {
            tokens: tokens.collect(),
            from_begin,
        }
    }

    /// The names it remembers words by.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().filter_map(|token| match token {
            Token::One(name) | Token::Some(name) => Some(name.as_str()),
            Token::Word(_) | Token::End => None,
        })
    }

    /// What it remembers of an utterance, if it matches.
    pub(super) fn matches(&self, utterance: &Utterance) -> Option<Captures> {
        let last_begin = if self.from_begin {
            0
        } else {
            utterance.plain.len()
        };
        (0..=last_begin).find_map(|at| {
            let mut captures = Captures::new();
            matches_at(&self.tokens, utterance, at, &mut captures).then_some(captures)
        })
    }
}

fn matches_at(tokens: &[Token], utterance: &Utterance, at: usize, captures: &mut Captures) -> bool {
    let Some((token, rest)) = tokens.split_first() else {
        return true;
    };
    let left = utterance.plain.len() - at;
    let most = match token {
        Token::End => return left == 0 && matches_at(rest, utterance, at, captures),
        Token::Word(word) => {
            return utterance.plain.get(at) == Some(word)
                && matches_at(rest, utterance, at + 1, captures);
        }
        Token::One(_) => left.min(1),
        Token::Some(_) => left,
    };
    let (Token::One(name) | Token::Some(name)) = token else {
        return false;
    };
    // As few words as will do, unless nothing follows: then all there are.
    let least = if rest.is_empty() { most.max(1) } else { 1 };
    (least..=most).any(|taken| {
        let end = at + taken;
        captures.insert(name.clone(), utterance.spoken[at..end].join(" "));
        matches_at(rest, utterance, end, captures)
    })
}

/// Words as they were spoken, and without case and punctuation, one for one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Utterance {
    spoken: Vec<String>,
    plain: Vec<String>,
}

impl Utterance {
    pub(super) fn new(text: &str) -> Self {
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '\'' | '’' | ':');
        let mut utterance = Self::default();
        for word in text.split(|c: char| !is_part(c)) {
            let spoken = word.trim_matches(['\'', '’', ':']);
            if !spoken.is_empty() {
                let plain = spoken.replace(['\'', '’'], "").to_lowercase();
                utterance.spoken.push(spoken.to_owned());
                utterance.plain.push(plain);
            }
        }
        utterance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_words_wherever_they_are() {
        #[track_caller]
        fn check(pattern: &str, said: &str, expected: Option<&[(&str, &str)]>) {
            let captures = Pattern::parse(pattern).matches(&Utterance::new(said));
            let expected = expected.map(|pairs| {
                let owned = pairs
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
                owned.collect::<Captures>()
            });
            assert_eq!(captures, expected, "`{pattern}` in `{said}`");
        }
        check("what's up", "Well, WHATS up?", Some(&[]));
        check("hi", "this is history", None);
        check("^ hi $", "hi!", Some(&[]));
        check("^ hi $", "hi there", None);
        check("^ $", " … ", Some(&[]));
        check("^ $", "a", None);
        check(
            "name is {x}",
            "My name is O'Neil.",
            Some(&[("x", "O'Neil")]),
        );
        check("name is {x}", "my name is", None);
        check(
            "for {n} at {t...}",
            "for four at half past 7",
            Some(&[("n", "four"), ("t", "half past 7")]),
        );
        check(
            "for {n...} at {t}",
            "for my two cats at 7:30",
            Some(&[("n", "my two cats"), ("t", "7:30")]),
        );
        check("{x} $", "one two", Some(&[("x", "two")]));
        check("{a...} $", "one two", Some(&[("a", "one two")]));
    }
}
