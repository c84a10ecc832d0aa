use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

fn rules() -> Phonemizer {
    Phonemizer::new(Dictionary::default())
}

fn with_words(words: &str) -> Phonemizer {
    Phonemizer::new(Dictionary::parse(words))
}

/// Words that no dictionary is asked for: what spelling alone gives, where it is right.
#[test]
fn words_are_read_by_their_spelling() {
    let phonemizer = rules();
    let table = "
        account ɐkˈaʊnt, after ˈæftɚ, animal ˈænɪməl, around ɚɹˈaʊnd, assistant ɐsˈɪstənt,
        available ɐvˈeɪləbəl, balance bˈæləns, banana bɐnˈænə, before bᵻfˈoːɹ, believe bᵻlˈiːv,
        better bˈɛɾɚ, biggest bˈɪɡɪst, button bˈʌʔn̩, cloth klˈɔθ, computer kəmpjˈuːɾɚ,
        confirm kənfˈɜːm, customer kˈʌstəmɚ, daughter dˈɔːɾɚ, decide dᵻsˈaɪd, example ɛɡzˈæmpəl,
        family fˈæmɪli, force fˈoːɹs, happily hˈæpɪli, horse hˈɔːɹs, hospital hˈɑːspɪɾəl,
        hurry hˈɜːɹi, international ˌɪntɚnˈæʃənəl, knight nˈaɪt, learning lˈɜːnɪŋ, little lˈɪɾəl,
        measure mˈɛʒɚ, million mˈɪliən, musician mjuːzˈɪʃən, needed nˈiːdᵻd, party pˈɑːɹɾi,
        photographer fətˈɑːɡɹəfɚ, pleasure plˈɛʒɚ, report ɹᵻpˈoːɹt, security sᵻkjˈʊɹɹᵻɾi,
        service sˈɜːvɪs, tired tˈaɪɚd, vision vˈɪʒən, walked wˈɔːkt, watches wˈɑːtʃᵻz,
        accident ˈæksɪdənt, achieve ɐtʃˈiːv, actual ˈæktʃuːəl, apartment ɐpˈɑːɹtmənt,
        attention ɐtˈɛnʃən, bottle bˈɑːɾəl, bread bɹˈɛd, bridge bɹˈɪdʒ, building bˈɪldɪŋ,
        capital kˈæpɪɾəl, career kɚɹˈɪɹ, champion tʃˈæmpiən, circle sˈɜːkəl, citizen sˈɪɾɪzən,
        community kəmjˈuːnᵻɾi, condition kəndˈɪʃən, culture kˈʌltʃɚ, damage dˈæmɪdʒ,
        danger dˈeɪndʒɚ, dictionary dˈɪkʃənˌɛɹi, exchange ɛkstʃˈeɪndʒ, feature fˈiːtʃɚ,
        female fˈiːmeɪl, field fˈiːld, flight flˈaɪt, furniture fˈɜːnɪtʃɚ, gentle dʒˈɛntəl,
        giant dʒˈaɪənt, human hjˈuːmən, intelligent ɪntˈɛlɪdʒənt, judge dʒˈʌdʒ, knife nˈaɪf,
        leather lˈɛðɚ, legal lˈiːɡəl, local lˈoʊkəl, material mətˈɪɹiəl, monitor mˈɑːnɪɾɚ,
        nature nˈeɪtʃɚ, neighbor nˈeɪbɚ, occasion əkˈeɪʒən, palace pˈælɪs, patient pˈeɪʃənt,
        personal pˈɜːsənəl, pharmacy fˈɑːɹməsi, pollution pəlˈuːʃən, pressure pɹˈɛʃɚ,
        professional pɹəfˈɛʃənəl, pronounce pɹənˈaʊns, quick kwˈɪk, register ɹˈɛdʒɪstɚ,
        responsible ɹᵻspˈɑːnsᵻbəl, royal ɹˈɔɪəl, scene sˈiːn, solution səlˈuːʃən,
        strength stɹˈɛŋθ, symbol sˈɪmbəl, teacher tˈiːtʃɚ, tradition tɹɐdˈɪʃən, union jˈuːniən,
        unique juːnˈiːk, violence vˈaɪələns, window wˈɪndoʊ, writer ɹˈaɪɾɚ, yellow jˈɛloʊ";
    let mut wrong = String::new();
    let mut rows = 0;
    for row in table.split(',') {
        let (word, expected) = row.trim().split_once(' ').unwrap();
        let said = phonemizer.phonemize(word);
        rows += 1;
        if said != expected {
            writeln!(wrong, "{word}: {said}, not {expected}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(rows >= 100, "{rows}");
}

#[test]
fn the_dictionary_comes_before_the_rules_and_the_lexicon_before_both() {
    let phonemizer = with_words("zyx Z IH1 K S\nsalmon S AE1 M AH0 N\none OW1 N\n");
    assert_eq!(phonemizer.phonemize("zyx salmon one"), "zˈɪks sˈæmən wˈʌn");
}

#[test]
fn parts_of_a_word_are_known_words() {
    #[track_caller]
    fn check(phonemizer: &Phonemizer, word: &str, expected: &str) {
        assert_eq!(phonemizer.phonemize(word), expected, "{word}");
    }
    let phonemizer = with_words(
        "quokka K W AA1 K AH0\nbake B EY1 K\nstop S T AA1 P\ncarry K EH1 R IY0\nbox B AA1 K S\n\
         hope HH OW1 P\nbutter B AH1 T ER0\nfly F L AY1\n",
    );
    check(&phonemizer, "quokkas", "kwˈɑːkəz");
    check(&phonemizer, "quokka's", "kwˈɑːkəz");
    check(&phonemizer, "quokka'll", "kwˈɑːkəəl");
    check(&phonemizer, "boxes", "bˈɑːksᵻz");
    check(&phonemizer, "bakes", "bˈeɪks");
    check(&phonemizer, "baked", "bˈeɪkt");
    check(&phonemizer, "baking", "bˈeɪkɪŋ");
    check(&phonemizer, "stopped", "stˈɑːpt");
    check(&phonemizer, "carried", "kˈæɹid");
    check(&phonemizer, "hopeless", "hˈoʊpləs");
    check(&phonemizer, "unstoppable", "ʌnstˈɑːpəbəl");
    check(&phonemizer, "butterfly", "bˈʌɾɚflˌaɪ");
}

#[test]
fn function_words_are_weak_in_a_phrase_and_whole_alone() {
    #[track_caller]
    fn check(clause: &str, expected: &str) {
        assert_eq!(rules().phonemize(clause), expected, "{clause}");
    }
    check("the cat", "ðə kˈæt");
    check("the apple", "ðɪ ˈæpəl");
    check("to go to Anna", "tə ɡˌoʊ tʊ ˈænə");
    check("in the house", "ɪnðə hˈaʊs");
    check("at the end of the evening", "æt ðɪ ˈɛnd ʌvðɪ ˈiːvnɪŋ");
    check("for an hour", "fɚɹən ˈaʊɚ");
    check("What is this?", "wˌʌt ɪz ðˈɪs?");
    check("You?", "jˈuː?");
    check("better ask", "bˈɛɾɚɹ ˈæsk");
    check("Hello, how can I help?", "həlˈoʊ, hˌaʊ kæn aɪ hˈɛlp?");
    check("Stop! Wait; listen: now.", "stˈɑːp! wˈeɪt; lˈɪsən: nˈaʊ.");
}

#[test]
fn letters_are_named() {
    assert_eq!(rules().phonemize("the LLM"), "ðɪ ˌɛlɛlˈɛm");
    assert_eq!(rules().phonemize("two GPUs"), "tˈuː dʒˌiːpiːjˈuːz");
    assert_eq!(rules().phonemize("brr"), "bˈiːɑːɹˌɑːɹ");
}

#[test]
fn what_cannot_be_said_is_nothing() {
    for text in [
        "",
        " ",
        "...",
        "?!",
        "👋",
        "漢字",
        "\u{0}\u{1}",
        "-",
        "\u{200d}",
    ] {
        assert_eq!(rules().phonemize(text), "", "{text:?}");
    }
}

#[test]
fn endless_text_gives_bounded_speech() {
    for text in [
        "9", "a", "W", "é", "x9", "$1", "1/", "@", ".a", "'", "-1,", "(5",
    ] {
        let long = text.repeat(100_000 / text.len());
        let said = rules().phonemize(&long);
        // The longest way to say one character is a digit or a letter's name.
        assert!(
            said.len() < 40 * text::LONGEST_CLAUSE,
            "{text}: {}",
            said.len()
        );
    }
}

/// The symbols that an English Piper voice has numbers for.
const VOICE: &str = " ,.?!;:ˈˌː̩abdefhijklmnoprstuvwzæðŋɐɑɔəɚɛɜɡɪɹɾʃʊʌʒʔθᵻ";

fn check_invariants(text: &str) -> Result<(), TestCaseError> {
    let said = rules().phonemize(text);
    if let Some(unknown) = said.chars().find(|c| !VOICE.contains(*c)) {
        return Err(TestCaseError::fail(format!("{unknown:?} in {said:?}")));
    }
    prop_assert!(
        said.len() < 40 * (text.len() + 4),
        "{} from {}",
        said.len(),
        text.len()
    );
    prop_assert_eq!(said.trim(), said.as_str());
    prop_assert!(!said.contains("  "));
    prop_assert!(said.is_empty() || said.starts_with(|c: char| !",.?!;:".contains(c)));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any Unicode: no panic, only what the voice knows, in proportion to the text.
    #[test]
    fn any_text_gives_only_phonemes_that_the_voice_knows(text in any::<String>()) {
        check_invariants(&text)?;
    }

    /// The same for what looks like numbers, addresses and abbreviations.
    #[test]
    fn any_figures_and_symbols_give_only_phonemes_that_the_voice_knows(
        text in "([0-9]{1,5}|[$€£#@%&+=/:.,'()°-]|[a-zA-Z]{1,4}|st|am|\\.com|https://| ){0,40}"
    ) {
        check_invariants(&text)?;
    }
}
