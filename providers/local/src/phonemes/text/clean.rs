//! Folds Unicode to the ASCII that the reader knows.

/// Marks for symbols that ASCII lacks; control characters of the input never get here.
pub(super) const DEGREE: char = '\x01';
pub(super) const EURO: char = '\x02';
pub(super) const POUND: char = '\x03';

/// The text in ASCII: letters without their accents, quotes and dashes plain, the rest blank.
pub(super) fn to_ascii(text: impl Iterator<Item = char>) -> String {
    let mut out = String::new();
    for c in text {
        match c {
            ' '..='~' => out.push(c),
            '\u{2018}' | '\u{2019}' | '\u{201b}' | '\u{2bc}' | '´' => out.push('\''),
            '\u{201c}' | '\u{201d}' | '«' | '»' => out.push('"'),
            // A hyphen that must not break is a hyphen; a dash is a pause.
            '\u{2010}' | '\u{2011}' | '\u{2212}' => out.push('-'),
            '\u{2013}' if out.ends_with(|c: char| c.is_ascii_digit()) => out.push('-'),
            '\u{2013}' | '\u{2014}' | '\u{2015}' => out.push_str(", "),
            '…' => out.push_str(". "),
            '°' => out.push(DEGREE),
            '€' => out.push(EURO),
            '£' => out.push(POUND),
            '×' => out.push('x'),
            '½' => out.push_str(" 1/2 "),
            '¼' => out.push_str(" 1/4 "),
            '¾' => out.push_str(" 3/4 "),
            // Joiners, accents that combine, variation selectors: nothing, not even a blank.
            '\u{ad}'
            | '\u{200b}'..='\u{200d}'
            | '\u{300}'..='\u{36f}'
            | '\u{fe00}'..='\u{fe0f}' => {}
            '\u{ff01}'..='\u{ff5e}' => {
                // Full-width forms lie at a fixed distance from ASCII.
                out.extend(char::from_u32(c as u32 - 0xfee0));
            }
            _ => out.push_str(without_accent(c)),
        }
    }
    out
}

fn without_accent(c: char) -> &'static str {
    match c {
        'à' | 'á' | 'â' | 'ã' | 'å' | 'ā' | 'ă' | 'ą' => "a",
        'À' | 'Á' | 'Â' | 'Ã' | 'Å' | 'Ā' | 'Ă' | 'Ą' => "A",
        'ä' | 'æ' => "ae",
        'Ä' | 'Æ' => "Ae",
        'ç' | 'ć' | 'č' => "c",
        'Ç' | 'Ć' | 'Č' => "C",
        'ď' | 'đ' | 'ð' => "d",
        'Đ' | 'Ð' => "D",
        'è' | 'é' | 'ê' | 'ë' | 'ē' | 'ę' | 'ě' => "e",
        'È' | 'É' | 'Ê' | 'Ë' | 'Ē' | 'Ę' | 'Ě' => "E",
        'ğ' => "g",
        'ì' | 'í' | 'î' | 'ï' | 'ī' | 'ı' => "i",
        'Ì' | 'Í' | 'Î' | 'Ï' | 'İ' => "I",
        'ł' => "l",
        'Ł' => "L",
        'ñ' | 'ń' | 'ň' => "n",
        'Ñ' | 'Ń' => "N",
        'ò' | 'ó' | 'ô' | 'õ' | 'ø' | 'ō' | 'ő' => "o",
        'Ò' | 'Ó' | 'Ô' | 'Õ' | 'Ø' | 'Ō' | 'Ő' => "O",
        'ö' | 'œ' => "oe",
        'Ö' | 'Œ' => "Oe",
        'ř' => "r",
        'Ř' => "R",
        'ś' | 'š' | 'ş' | 'ș' => "s",
        'Ś' | 'Š' | 'Ş' | 'Ș' => "S",
        'ß' => "ss",
        'ť' | 'ț' | 'ţ' => "t",
        'þ' => "th",
        'Þ' => "Th",
        'ù' | 'ú' | 'û' | 'ū' | 'ů' | 'ű' => "u",
        'Ù' | 'Ú' | 'Û' | 'Ū' => "U",
        'ü' => "ue",
        'Ü' => "Ue",
        'ý' | 'ÿ' => "y",
        'Ý' => "Y",
        'ź' | 'ż' | 'ž' => "z",
        'Ź' | 'Ż' | 'Ž' => "Z",
        _ => " ",
    }
}
