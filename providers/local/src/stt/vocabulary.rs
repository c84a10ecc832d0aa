//! The words of a recogniser's tokens.

/// The bytes of each token.
#[derive(Debug)]
pub(super) struct Vocabulary {
    tokens: Vec<Box<[u8]>>,
}

impl Vocabulary {
    /// Reads a vocabulary: for each token its length, in one byte or in two with the low seven
    /// bits first, then its bytes.
    pub(super) fn parse(file: &[u8]) -> Option<Self> {
        let mut rest = file.iter().as_slice();
        let mut tokens = Vec::new();
        while let Some((&low, after)) = rest.split_first() {
            rest = after;
            let mut len = usize::from(low);
            if len >= 128 {
                let (&high, after) = rest.split_first()?;
                rest = after;
                len = usize::from(high) * 128 + len - 128;
            }
            let (token, after) = rest.split_at_checked(len)?;
            rest = after;
            tokens.push(token.into());
        }
        Some(Self { tokens })
    }

    /// The text of some tokens. A character may be spread over several of them.
    pub(super) fn text(&self, tokens: &[i64]) -> String {
        let known = tokens
            .iter()
            .filter_map(|token| self.tokens.get(usize::try_from(*token).ok()?));
        let bytes = known
            .flat_map(|bytes| bytes.iter().copied())
            .collect::<Vec<u8>>();
        // The mark that stands for a space, U+2581.
        let text = String::from_utf8_lossy(&bytes).replace('\u{2581}', " ");
        text.trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_with_short_and_long_lengths() {
        let long = "x".repeat(300);
        let mut file = vec![6];
        file.extend("\u{2581}no".bytes().chain([0x2c]));
        file.extend([128 + 44, 2]);
        file.extend(long.bytes());
        let vocabulary = Vocabulary::parse(&file).unwrap();
        assert_eq!(vocabulary.tokens.len(), 2);
        assert_eq!(vocabulary.text(&[0, 0]), "no, no,");
        assert_eq!(vocabulary.text(&[1, 99]), long);
    }

    #[test]
    fn a_cut_vocabulary_is_refused() {
        assert!(Vocabulary::parse(&[3, b'a']).is_none());
        assert!(Vocabulary::parse(&[200]).is_none());
    }
}
