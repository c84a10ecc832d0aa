//! What a rule says: text with `{name}` for what was remembered, `{letters:name}` for its
//! spelling and `{numbers:name}` for counting up to it.

use super::pattern::Captures;

/// As far as is ever counted.
const COUNT_LIMIT: usize = 100;

const SMALL: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 8] = [
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
];

/// A text with gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(String),
    Letters(String),
    Numbers(String),
}

impl Template {
    /// Reads a template; the offending piece if it is malformed.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (gap, after) = after.split_once('}').ok_or_else(|| format!("{{{after}"))?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(match gap.split_once(':') {
                None => Part::Value(gap.to_owned()),
                Some(("letters", name)) => Part::Letters(name.to_owned()),
                Some(("numbers", name)) => Part::Numbers(name.to_owned()),
                Some(_) => return Err(format!("{{{gap}}}")),
            });
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }

    /// The names it needs.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Value(name) | Part::Letters(name) | Part::Numbers(name) => Some(name.as_str()),
        })
    }

    /// The text with its gaps filled; `None` if something is not known.
    pub(super) fn render(&self, known: &Captures) -> Option<String> {
        let part = |part: &Part| match part {
            Part::Text(text) => Some(text.clone()),
            Part::Value(name) => known.get(name).cloned(),
            Part::Letters(name) => known.get(name).map(|word| letters(word)),
            Part::Numbers(name) => numbers(known.get(name)?),
        };
        self.0.iter().map(part).collect()
    }
}

fn letters(word: &str) -> String {
    let letters = word.chars().filter(|c| c.is_alphanumeric());
    let letters: Vec<String> = letters.map(|c| c.to_uppercase().to_string()).collect();
    letters.join(", ")
}

fn numbers(limit: &str) -> Option<String> {
    let limit = limit.to_lowercase();
    let limit = limit.parse().ok().or_else(|| {
        let named = (0..=COUNT_LIMIT).find(|number| in_words(*number) == limit);
        named.or_else(|| (limit == "hundred").then_some(COUNT_LIMIT))
    })?;
    let counted: Vec<String> = (1..=COUNT_LIMIT.min(limit)).map(in_words).collect();
    (!counted.is_empty()).then(|| counted.join(", "))
}

fn in_words(number: usize) -> String {
    match (number / 10, number % 10) {
        (0 | 1, _) => SMALL[number].to_owned(),
        (tens @ 2..=9, 0) => TENS[tens - 2].to_owned(),
        (tens @ 2..=9, ones) => format!("{}-{}", TENS[tens - 2], SMALL[ones]),
        (_, _) => "one hundred".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_filled_or_the_text_is_not_said() {
        let known = Captures::from([
            ("a".to_owned(), "Al".to_owned()),
            ("n".to_owned(), "Three".to_owned()),
        ]);
        let render = |text: &str| Template::parse(text).unwrap().render(&known);
        assert_eq!(render("Hi {a}!").as_deref(), Some("Hi Al!"));
        assert_eq!(render("{letters:a}").as_deref(), Some("A, L"));
        assert_eq!(render("{numbers:n}.").as_deref(), Some("one, two, three."));
        assert_eq!(render("{b}"), None);
        assert_eq!(render("{numbers:a}"), None);
        assert!(Template::parse("{open").is_err());
        assert!(Template::parse("{shout:a}").is_err());
    }

    #[test]
    fn counting_is_bounded_and_knows_its_words() {
        let last = |limit: &str| {
            let counted = numbers(limit).unwrap();
            counted.rsplit(", ").next().unwrap().to_owned()
        };
        assert_eq!(last("42"), "forty-two");
        assert_eq!(last("twenty"), "twenty");
        assert_eq!(last("hundred"), "one hundred");
        assert_eq!(last("1000000"), "one hundred");
        assert_eq!(numbers("0"), None);
        assert_eq!(numbers("cats"), None);
    }
}
