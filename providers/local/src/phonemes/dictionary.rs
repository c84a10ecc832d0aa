//! A pronouncing dictionary in CMUdict's format: `word P R O1 N ...` a line, `word(2)` for variants.

use super::phone::Phone;

/// Words and how they are said. Holds the file's text and an index of its lines.
#[derive(Clone, Debug, Default)]
pub struct Dictionary {
    text: Box<str>,
    /// Where each entry begins, in the order of the words.
    entries: Vec<u32>,
}

/// No word of English is longer; what is, is not looked up.
const LONGEST_WORD: usize = 64;

impl Dictionary {
    /// Reads the text of a dictionary. Lines that are not entries are passed over, as are all but
    /// the first pronunciation of a word.
    pub fn parse(text: impl Into<Box<str>>) -> Self {
        let text = text.into();
        let mut entries = Vec::with_capacity(text.len() / 28);
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let word = key(line);
            let is_entry = !word.is_empty() && !word.ends_with(')') && !word.starts_with(';');
            if is_entry && let Ok(offset) = u32::try_from(start) {
                entries.push(offset);
            }
            start += line.len();
        }
        entries.sort_by_key(|&offset| key(&text[offset as usize..]));
        Self { text, entries }
    }

    /// How many words it knows.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How a word, in lower case, is said.
    pub(super) fn lookup(&self, word: &str) -> Option<Vec<Phone>> {
        if word.len() > LONGEST_WORD {
            return None;
        }
        let found = self
            .entries
            .binary_search_by_key(&word, |&offset| key(&self.text[offset as usize..]))
            .ok()?;
        let line = self.text[self.entries[found] as usize..].lines().next()?;
        let (_, phones) = line.split_once(' ')?;
        let phones = phones.split('#').next().unwrap_or_default();
        Phone::parse_all(phones).filter(|phones| !phones.is_empty())
    }
}

/// The word that a line begins with.
fn key(line: &str) -> &str {
    line.split([' ', '\n', '\r']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::phone::{Sound, Stress};
    use super::*;

    #[test]
    fn words_are_found_whatever_their_order_and_variants_are_not() {
        let dictionary = Dictionary::parse(
            ";;; comment\nzoo Z UW1\na AH0\na(2) EY1\nd'etat D EY2 T AA1 # foreign french\n",
        );
        assert_eq!(dictionary.len(), 3);
        let zoo = dictionary.lookup("zoo").unwrap();
        assert_eq!((zoo[1].sound, zoo[1].stress), (Sound::Uw, Stress::Primary));
        assert_eq!(dictionary.lookup("a").unwrap().len(), 1);
        assert_eq!(dictionary.lookup("d'etat").unwrap().len(), 4);
        assert_eq!(dictionary.lookup("zo"), None);
        assert_eq!(dictionary.lookup(""), None);
    }

    #[test]
    fn a_line_with_an_unknown_sound_is_no_pronunciation() {
        let dictionary = Dictionary::parse("bad B QQ1 D\nempty \nlone");
        for word in ["bad", "empty", "lone"] {
            assert_eq!(dictionary.lookup(word), None, "{word}");
        }
    }
}
