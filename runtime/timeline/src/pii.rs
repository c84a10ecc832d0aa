//! Finds what is personal in a text by its shape, and masks it: each letter and digit becomes an
//! asterisk, so that a masked text is as long as the text was (F-073).
//!
//! A text that is not whole may end in the middle of a number. Of such, every number and every word with
//! an `@` is masked, whatever they might have become.

use std::{collections::BTreeSet, ops::Range};

use rspp_proto::spec::{PiiPattern, RedactSpec};
use serde_json::Value;

/// What is looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Patterns {
    shapes: BTreeSet<PiiPattern>,
    /// Folded.
    terms: Vec<Vec<char>>,
}

/// Longest phone or card number: 19 digits, and at most two characters between each two.
const LONGEST_NUMBER: usize = 19 * 3;
/// Longest account number, in letters and digits.
const LONGEST_IBAN: usize = 34;
const SHORTEST_IBAN: usize = 15;

impl Patterns {
    pub(crate) fn of(spec: &RedactSpec) -> Self {
        Self {
            shapes: spec.patterns.clone(),
            terms: spec
                .terms
                .iter()
                .map(|term| term.trim().chars().map(fold).collect())
                .collect(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn has(&self, shape: PiiPattern) -> bool {
        self.shapes.contains(&shape)
    }

    /// Whether numbers are looked for, of whatever shape.
    fn numbers(&self) -> bool {
        self.shapes.iter().any(|shape| match shape {
            PiiPattern::Email => false,
            PiiPattern::Phone | PiiPattern::Card | PiiPattern::Iban | PiiPattern::Digits => true,
        })
    }

    /// The text without what was found in it; `None` if nothing was.
    pub(crate) fn mask(&self, text: &str, is_whole: bool) -> Option<String> {
        let chars: Vec<char> = text.chars().collect();
        let mut hidden = vec![false; chars.len()];
        if self.has(PiiPattern::Email) {
            emails(&chars, is_whole, &mut hidden);
        }
        if self.numbers() {
            self.mask_numbers(&chars, is_whole, &mut hidden);
        }
        if self.has(PiiPattern::Iban) {
            ibans(&chars, &mut hidden);
        }
        for term in &self.terms {
            occurrences(&chars, term, &mut hidden);
        }
        let masked = |(c, hidden): (&char, &bool)| match (*hidden, c.is_alphanumeric()) {
            (true, true) => '*',
            (true, false) | (false, _) => *c,
        };
        let changed = chars
            .iter()
            .zip(&hidden)
            .any(|(c, hidden)| *hidden && c.is_alphanumeric());
        changed.then(|| chars.iter().zip(&hidden).map(masked).collect())
    }

    /// Masks in place; whether anything was found.
    pub(crate) fn apply(&self, text: &mut String, is_whole: bool) -> bool {
        let masked = self.mask(text, is_whole);
        let found = masked.is_some();
        if let Some(masked) = masked {
            *text = masked;
        }
        found
    }

    /// Masks all texts of a value, names of fields excepted; whether anything was found.
    pub(crate) fn apply_to_json(&self, value: &mut Value) -> bool {
        match value {
            Value::String(text) => self.apply(text, true),
            Value::Array(items) => self.apply_to_each(items.iter_mut()),
            Value::Object(fields) => self.apply_to_each(fields.values_mut()),
            Value::Number(number) => match self.mask(&number.to_string(), true) {
                Some(masked) => {
                    *value = Value::String(masked);
                    true
                }
                None => false,
            },
            Value::Null | Value::Bool(_) => false,
        }
    }

    fn apply_to_each<'a>(&self, values: impl Iterator<Item = &'a mut Value>) -> bool {
        let mut found = false;
        for value in values {
            found |= self.apply_to_json(value);
        }
        found
    }

    fn mask_numbers(&self, chars: &[char], is_whole: bool, hidden: &mut [bool]) {
        let mut at = 0;
        while at < chars.len() {
            if !chars[at].is_ascii_digit() {
                at += 1;
                continue;
            }
            let end = number_end(chars, at);
            let count = chars[at..end].iter().filter(|c| c.is_ascii_digit()).count();
            let as_a_whole = if is_whole {
                self.has(PiiPattern::Digits) && count >= 4
            } else {
                count >= 2
            };
            if as_a_whole {
                hidden[at..end].fill(true);
            } else if is_whole {
                self.mask_groups(chars, at..end, hidden);
            }
            at = end;
        }
    }

    /// Phone and card numbers among groups of digits, which may stand beside a date or another number: from each
    /// group on the longest that is one.
    fn mask_groups(&self, chars: &[char], all: Range<usize>, hidden: &mut [bool]) {
        let is_digit = |at: usize| chars.get(at).is_some_and(char::is_ascii_digit);
        let begins = |at: &usize| is_digit(*at) && (*at == all.start || !is_digit(at - 1));
        let ends = |at: &usize| is_digit(at - 1) && !is_digit(*at);
        for start in all.clone().filter(begins) {
            let is_one = |end: &usize| {
                let digits = chars[start..*end].iter().filter_map(|c| c.to_digit(10));
                let digits: Vec<u32> = digits.collect();
                let count = digits.len();
                (self.has(PiiPattern::Phone) && (7..=15).contains(&count))
                    || (self.has(PiiPattern::Card)
                        && (13..=19).contains(&count)
                        && passes_luhn(&digits))
            };
            let most = all.end.min(start + LONGEST_NUMBER);
            let longest = (start + 1..=most).rev().filter(ends).find(is_one);
            if let Some(end) = longest {
                hidden[start..end].fill(true);
            }
        }
    }
}

/// One form for letters that differ in case alone.
fn fold(c: char) -> char {
    c.to_lowercase().next().unwrap_or(c)
}

/// Where the number that begins at `start` ends: digits in groups, with little between them.
fn number_end(chars: &[char], start: usize) -> usize {
    let mut end = start;
    let mut at = start;
    let mut between = 0;
    while at < chars.len() && between <= 2 {
        match chars[at] {
            c if c.is_ascii_digit() => {
                end = at + 1;
                between = 0;
            }
            ' ' | '-' | '.' | '/' | '(' | ')' => between += 1,
            _no_part => break,
        }
        at += 1;
    }
    end
}

fn passes_luhn(digits: &[u32]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(nth, digit)| match (nth % 2, *digit) {
            (0, digit) => digit,
            (_, digit) if digit > 4 => digit * 2 - 9,
            (_, digit) => digit * 2,
        })
        .sum();
    sum.is_multiple_of(10)
}

fn emails(chars: &[char], is_whole: bool, hidden: &mut [bool]) {
    let of_local = |c: &char| c.is_alphanumeric() || matches!(c, '.' | '_' | '%' | '+' | '-');
    let of_domain = |c: &char| c.is_alphanumeric() || matches!(c, '.' | '-');
    for at in (0..chars.len()).filter(|at| chars[*at] == '@') {
        let before = chars[..at].iter().rev().take_while(|c| of_local(c)).count();
        let after = chars[at + 1..].iter().take_while(|c| of_domain(c)).count();
        let domain = &chars[at + 1..at + 1 + after];
        let has_dot = domain
            .windows(2)
            .any(|pair| pair[0] == '.' && pair[1].is_alphanumeric());
        if !is_whole || (before > 0 && has_dot) {
            hidden[at - before..at + 1 + after].fill(true);
        }
    }
}

fn ibans(chars: &[char], hidden: &mut [bool]) {
    for start in 0..chars.len() {
        let begins_word = start == 0 || !chars[start - 1].is_alphanumeric();
        if !begins_word || !chars[start].is_ascii_alphabetic() {
            continue;
        }
        let mut letters: Vec<(usize, char)> = Vec::with_capacity(LONGEST_IBAN);
        let mut after_blank = false;
        for (at, c) in chars.iter().enumerate().skip(start) {
            match c {
                c if c.is_ascii_alphanumeric() && letters.len() < LONGEST_IBAN => {
                    letters.push((at, c.to_ascii_uppercase()));
                    after_blank = false;
                }
                ' ' if !after_blank => after_blank = true,
                _end => break,
            }
        }
        // The longest that is right and ends where a word does: what follows may be letters as well.
        let ends_word = |length: usize| {
            let after = chars.get(letters[length - 1].0 + 1);
            after.is_none_or(|c| !c.is_alphanumeric())
        };
        let right = (SHORTEST_IBAN..=letters.len())
            .rev()
            .find(|length| ends_word(*length) && is_iban(&letters[..*length]));
        if let Some(length) = right {
            hidden[start..=letters[length - 1].0].fill(true);
        }
    }
}

fn is_iban(letters: &[(usize, char)]) -> bool {
    let at = |nth: usize| letters[nth].1;
    let begins = at(0).is_ascii_alphabetic()
        && at(1).is_ascii_alphabetic()
        && at(2).is_ascii_digit()
        && at(3).is_ascii_digit();
    let rest = letters[4..].iter().chain(&letters[..4]);
    let remainder = rest.fold(0, |remainder, (_, c)| {
        let value = c.to_digit(36).unwrap_or(0);
        let shift = if value > 9 { 100 } else { 10 };
        (remainder * shift + value) % 97
    });
    begins && remainder == 1
}

fn occurrences(chars: &[char], term: &[char], hidden: &mut [bool]) {
    if term.is_empty() || term.len() > chars.len() {
        return;
    }
    let is_letter = |at: usize| chars.get(at).is_some_and(|c| c.is_alphanumeric());
    for start in 0..=chars.len() - term.len() {
        let end = start + term.len();
        let stands_alone = (start == 0 || !is_letter(start - 1)) && !is_letter(end);
        let same = || {
            let folded = chars[start..end].iter().map(|c| fold(*c));
            folded.eq(term.iter().copied())
        };
        if stands_alone && same() {
            hidden[start..end].fill(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn patterns(of: &[PiiPattern], terms: &[&str]) -> Patterns {
        Patterns::of(&RedactSpec {
            patterns: of.iter().copied().collect(),
            terms: terms
                .iter()
                .map(ToString::to_string)
                .collect::<BTreeSet<_>>(),
            ..RedactSpec::default()
        })
    }

    const ALL: [PiiPattern; 5] = [
        PiiPattern::Email,
        PiiPattern::Phone,
        PiiPattern::Card,
        PiiPattern::Iban,
        PiiPattern::Digits,
    ];

    /// F-073: each pattern finds its own and leaves the rest of the text as it was.
    #[test]
    fn each_pattern_finds_its_own() {
        #[track_caller]
        fn check(pattern: PiiPattern, text: &str, masked: &str) {
            let found = patterns(&[pattern], &[]).mask(text, true);
            assert_eq!(found.as_deref().unwrap_or(text), masked);
        }
        check(
            PiiPattern::Email,
            "write to j.doe+x@mail.example.com, please",
            "write to *.***+*@****.*******.***, please",
        );
        check(PiiPattern::Email, "meet @ noon", "meet @ noon");
        check(
            PiiPattern::Phone,
            "call +49 (30) 901-820 at 5.30",
            "call +** (**) ***-*** at 5.30",
        );
        check(
            PiiPattern::Card,
            "it is 4111 1111 1111 1111.",
            "it is **** **** **** ****.",
        );
        check(
            PiiPattern::Card,
            "it is 4111 1111 1111 1112.",
            "it is 4111 1111 1111 1112.",
        );
        for (said, kept) in [
            ("4111 1111 1111 1111 12/27", "**** **** **** **** 12/27"),
            ("4111 1111 1111 1111 123", "**** **** **** **** 123"),
            ("2 4111 1111 1111 1111", "2 **** **** **** ****"),
        ] {
            check(PiiPattern::Card, said, kept);
        }
        check(
            PiiPattern::Phone,
            "030 901 820 11 or 030/901 820 12 13 14 15 16 17",
            "*** *** *** ** or ***/*** *** ** ** ** ** ** **",
        );
        check(
            PiiPattern::Iban,
            "to DE89 3704 0044 0532 0130 00 today",
            "to **** **** **** **** **** ** today",
        );
        check(PiiPattern::Digits, "pin 1234, room 12", "pin ****, room 12");
    }

    #[test]
    fn terms_are_found_in_whatever_case_and_only_alone() {
        let terms = patterns(&[], &["Acme", "Blue Sky"]);
        assert_eq!(
            terms
                .mask("ACME and acmeism under a blue sky", true)
                .unwrap(),
            "**** and acmeism under a **** ***"
        );
    }

    /// F-073: half a number is no less secret, and is not known to be one.
    #[test]
    fn what_is_not_whole_says_no_number_at_all() {
        let card = patterns(&[PiiPattern::Card, PiiPattern::Email], &[]);
        assert_eq!(card.mask("my card is 4111 11", true), None);
        let masked = card.mask("my card is 4111 11", false).unwrap();
        assert_eq!(masked, "my card is **** **");
        assert_eq!(card.mask("j.doe@mai", false).unwrap(), "*.***@***");
    }

    #[test]
    fn values_are_masked_and_names_are_not() {
        let mut value = json!({ "4111111111111111": ["4111111111111111", 4_111_111_111_111_111_u64],
                                "note": "nothing" });
        assert!(patterns(&[PiiPattern::Card], &[]).apply_to_json(&mut value));
        let masked = "****************";
        assert_eq!(
            value,
            json!({ "4111111111111111": [masked, masked], "note": "nothing" })
        );
    }

    proptest! {
        /// F-073: whatever is said, a masked text is as long as the text, has its blanks where it had
        /// them, and its numbers are gone.
        #[test]
        fn masking_keeps_the_shape(text in "([a-z@. +-]|[0-9]|DE89|é){0,60}", is_whole: bool) {
            let all = patterns(&ALL, &["de"]);
            let masked = all.mask(&text, is_whole).unwrap_or_else(|| text.clone());
            prop_assert_eq!(masked.chars().count(), text.chars().count());
            for (before, after) in text.chars().zip(masked.chars()) {
                prop_assert!(before == after || (after == '*' && before.is_alphanumeric()));
            }
            let longest = masked.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
            prop_assert!(longest.unwrap_or(0) < 4);
        }
    }
}
