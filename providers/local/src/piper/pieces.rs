//! Cuts a clause's phonemes into pieces that are spoken one after another.

use std::collections::VecDeque;

/// Characters of IPA after which the first piece is cut if it can be: about three seconds of
/// speech, a third of a second of work.
const FIRST: usize = 50;
/// Characters of IPA that a later piece holds at most.
const LATER: usize = 150;
/// No piece is shorter, if it can be helped: one word alone sounds cut off.
const SHORTEST: usize = 14;

/// The pieces of a clause, in order; none if there is nothing to say.
pub(super) fn split(ipa: &str) -> VecDeque<String> {
    let mut pieces = VecDeque::new();
    let mut rest = ipa.trim();
    while rest.contains(char::is_alphabetic) {
        let limit = if pieces.is_empty() { FIRST } else { LATER };
        let (piece, after) = match cut(rest, limit) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let piece = piece.trim();
        let goes_on = !after.is_empty() && piece.ends_with(char::is_alphanumeric);
        // The voice falls at the end of a piece; a comma keeps it up where the sentence goes on.
        pieces.push_back(if goes_on {
            format!("{piece},")
        } else {
            piece.to_owned()
        });
        rest = after.trim_start();
    }
    pieces
}

/// Where to cut `ipa` so that about `limit` characters come before; `None` to keep it whole.
fn cut(ipa: &str, limit: usize) -> Option<usize> {
    let length = ipa.chars().count();
    if length <= limit + limit / 2 {
        return None;
    }
    let mut after_mark = None;
    let mut before_weak_word = None;
    let mut before_word = None;
    for (seen, (at, character)) in ipa.char_indices().enumerate() {
        if character != ' ' {
            continue;
        }
        let is_left_over = length - seen < SHORTEST;
        if is_left_over
            || seen > limit && (after_mark.or(before_weak_word).or(before_word)).is_some()
        {
            break;
        }
        if seen < SHORTEST {
            continue;
        }
        let word = ipa[at + 1..].split(' ').next().unwrap_or_default();
        if ipa[..at].ends_with([',', ';', ':', '.', '?', '!']) {
            after_mark = Some(at);
        } else if !word.contains('ˈ') {
            before_weak_word = Some(at);
        }
        before_word = Some(at);
    }
    // Words that are never followed by a blank are cut by force, so that work stays bounded.
    let by_force = || ipa.char_indices().nth(2 * limit).map(|(at, _)| at);
    after_mark
        .or(before_weak_word)
        .or(before_word)
        .or_else(by_force)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_short_clause_is_one_piece() {
        assert_eq!(split("həlˈoʊ, hˌaʊ ɑːɹ juː?"), ["həlˈoʊ, hˌaʊ ɑːɹ juː?"]);
        assert!(split("").is_empty());
        assert!(split(" , . ").is_empty());
    }

    #[test]
    fn a_long_clause_is_cut_first_at_a_mark_then_before_a_weak_word() {
        let word = "kˈætsən dˈɔɡz ";
        let with_mark = format!("{}hˈaʊs, {}", word.repeat(2), word.repeat(5));
        let pieces = split(&with_mark);
        assert!(pieces[0].ends_with("hˈaʊs,"), "{pieces:?}");
        let with_weak = format!("{}hˈaʊs ænd {}", word.repeat(2), word.repeat(5));
        let pieces = split(&with_weak);
        assert!(pieces[0].ends_with("hˈaʊs,"), "{pieces:?}");
        assert!(pieces[1].starts_with("ænd"), "{pieces:?}");
    }

    proptest! {
        /// Nothing is lost, nothing is said twice, and no piece is too long.
        #[test]
        fn pieces_hold_the_clause_and_are_bounded(ipa in "([a-dˈ]{1,12}[,.]? ){0,80}[a-d]{0,400}") {
            let pieces = split(&ipa);
            let letters = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
            let joined: String = pieces.iter().map(|piece| letters(piece)).collect();
            prop_assert_eq!(joined, letters(&ipa));
            for piece in &pieces {
                prop_assert!(piece.chars().count() <= 2 * LATER + 1);
            }
        }
    }
}
