//! The sounds of General American, in ARPABET: what dictionary and rules produce and `ipa` writes.

/// How strongly a vowel is spoken. Consonants have `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stress {
    None,
    Primary,
    Secondary,
}

macro_rules! sounds {
    ($($variant:ident $name:literal $ipa:literal),* $(,)?) => {
        /// One sound, named as ARPABET does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Sound { $($variant),* }

        impl Sound {
            /// The sound of an ARPABET name without its stress digit.
            fn named(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// How the sound is written where its neighbours do not change it.
            pub(super) fn ipa(self) -> &'static str {
                match self {
                    $(Self::$variant => $ipa,)*
                }
            }
        }
    };
}

sounds! {
    Aa "AA" "ɑː", Ae "AE" "æ", Ah "AH" "ʌ", Ao "AO" "ɔː", Aw "AW" "aʊ", Ay "AY" "aɪ",
    Eh "EH" "ɛ", Er "ER" "ɜː", Ey "EY" "eɪ", Ih "IH" "ɪ", Iy "IY" "iː", Ow "OW" "oʊ",
    Oy "OY" "ɔɪ", Uh "UH" "ʊ", Uw "UW" "uː",
    B "B" "b", Ch "CH" "tʃ", D "D" "d", Dh "DH" "ð", F "F" "f", G "G" "ɡ", Hh "HH" "h",
    Jh "JH" "dʒ", K "K" "k", L "L" "l", M "M" "m", N "N" "n", Ng "NG" "ŋ", P "P" "p",
    R "R" "ɹ", S "S" "s", Sh "SH" "ʃ", T "T" "t", Th "TH" "θ", V "V" "v", W "W" "w",
    Y "Y" "j", Z "Z" "z", Zh "ZH" "ʒ",
}

impl Sound {
    /// Whether the sound makes a syllable.
    pub(super) fn is_vowel(self) -> bool {
        use Sound::{Aa, Ae, Ah, Ao, Aw, Ay, Eh, Er, Ey, Ih, Iy, Ow, Oy, Uh, Uw};
        matches!(
            self,
            Aa | Ae | Ah | Ao | Aw | Ay | Eh | Er | Ey | Ih | Iy | Ow | Oy | Uh | Uw
        )
    }

    /// Whether the vocal folds are at rest.
    pub(super) fn is_voiceless(self) -> bool {
        use Sound::{Ch, F, Hh, K, P, S, Sh, T, Th};
        matches!(self, Ch | F | Hh | K | P | S | Sh | T | Th)
    }

    /// Whether an added `s` needs a vowel of its own after it.
    pub(super) fn is_sibilant(self) -> bool {
        use Sound::{Ch, Jh, S, Sh, Z, Zh};
        matches!(self, Ch | Jh | S | Sh | Z | Zh)
    }

    /// Whether a vowel is long or a diphthong, so that its syllable is heavy.
    pub(super) fn is_long(self) -> bool {
        use Sound::{Ao, Aw, Ay, Er, Ey, Iy, Ow, Oy, Uw};
        matches!(self, Ao | Aw | Ay | Er | Ey | Iy | Ow | Oy | Uw)
    }
}

/// A sound in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Phone {
    pub(super) sound: Sound,
    pub(super) stress: Stress,
}

impl Phone {
    /// A consonant, or a vowel without stress.
    pub(super) const fn plain(sound: Sound) -> Self {
        Self {
            sound,
            stress: Stress::None,
        }
    }

    /// Reads `AH0`, `T`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let name = text.trim_end_matches(|c: char| c.is_ascii_digit());
        let stress = match &text[name.len()..] {
            "1" => Stress::Primary,
            "2" => Stress::Secondary,
            _ => Stress::None,
        };
        Some(Self {
            sound: Sound::named(name)?,
            stress,
        })
    }

    /// Reads phones separated by blanks; `None` if one of them is unknown.
    pub(super) fn parse_all(text: &str) -> Option<Vec<Self>> {
        text.split_ascii_whitespace().map(Self::parse).collect()
    }
}

/// Turns primary stress into secondary, for the weaker part of a compound.
pub(super) fn subdue(phones: &mut [Phone]) {
    for phone in phones {
        if phone.stress == Stress::Primary {
            phone.stress = Stress::Secondary;
        }
    }
}
