//! Numbers in words.

const ONES: [&str; 20] = [
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
const TENS: [&str; 10] = [
    "", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
];
const SCALES: [(u64, &str); 5] = [
    (1_000_000_000_000_000, "quadrillion"),
    (1_000_000_000_000, "trillion"),
    (1_000_000_000, "billion"),
    (1_000_000, "million"),
    (1_000, "thousand"),
];

/// "two hundred five".
pub(super) fn cardinal(number: u64) -> String {
    if number < 20 {
        return ONES[number as usize].to_owned();
    }
    if number < 100 {
        let tens = TENS[(number / 10) as usize];
        return joined(tens, number % 10);
    }
    if number < 1000 {
        return joined(&format!("{} hundred", cardinal(number / 100)), number % 100);
    }
    for (scale, name) in SCALES {
        if number >= scale {
            return joined(
                &format!("{} {name}", cardinal(number / scale)),
                number % scale,
            );
        }
    }
    String::new()
}

fn joined(head: &str, rest: u64) -> String {
    if rest == 0 {
        head.to_owned()
    } else {
        format!("{head} {}", cardinal(rest))
    }
}

/// "twenty third".
pub(super) fn ordinal(number: u64) -> String {
    let words = cardinal(number);
    let (head, last) = match words.rsplit_once(' ') {
        Some((head, last)) => (format!("{head} "), last),
        None => (String::new(), words.as_str()),
    };
    let last = match last {
        "one" => "first".to_owned(),
        "two" => "second".to_owned(),
        "three" => "third".to_owned(),
        "five" => "fifth".to_owned(),
        "eight" => "eighth".to_owned(),
        "nine" => "ninth".to_owned(),
        "twelve" => "twelfth".to_owned(),
        last => match last.strip_suffix('y') {
            Some(stem) => format!("{stem}ieth"),
            None => format!("{last}th"),
        },
    };
    head + &last
}

/// "nineteen oh five", for 1100 to 2099.
pub(super) fn year(year: u64) -> String {
    let (century, rest) = (year / 100, year % 100);
    match (century, rest) {
        (20, 0..=9) => cardinal(year),
        (_, 0) => format!("{} hundred", cardinal(century)),
        (_, 1..=9) => format!("{} oh {}", cardinal(century), cardinal(rest)),
        _ => format!("{} {}", cardinal(century), cardinal(rest)),
    }
}

/// "nineteen nineties".
pub(super) fn decade(number: u64) -> String {
    let words = if number < 100 {
        cardinal(number)
    } else {
        year(number)
    };
    match words.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{words}s"),
    }
}

/// "four one five".
pub(super) fn digits(figures: &str) -> String {
    let names: Vec<&str> = figures
        .bytes()
        .filter(u8::is_ascii_digit)
        .map(|digit| ONES[usize::from(digit - b'0')])
        .collect();
    names.join(" ")
}

/// Figures without separators: as one number while people would, else digit by digit.
pub(super) fn integer(figures: &str) -> String {
    const MOST_FIGURES: usize = 9;
    let coded = figures.len() > 1 && figures.starts_with('0');
    match figures.parse() {
        Ok(number) if !coded && figures.len() <= MOST_FIGURES => cardinal(number),
        _ => digits(figures),
    }
}

/// Figures, perhaps with thousands and decimals: "1,234.5". `None` if that is not what it is.
pub(super) fn decimal(figures: &str) -> Option<String> {
    let (whole, fraction) = match figures.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (figures, None),
    };
    let is_figures = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let grouped = whole.contains(',');
    let groups_fit = || {
        let mut groups = whole.split(',');
        let first = groups.next().unwrap_or_default();
        (1..=3).contains(&first.len()) && groups.all(|group| group.len() == 3)
    };
    let plain = whole.replace(',', "");
    if !(is_figures(&plain) || plain.is_empty() && fraction.is_some()) || grouped && !groups_fit() {
        return None;
    }
    let whole = match plain.parse::<u64>() {
        Ok(number) if grouped && plain.len() <= 18 => cardinal(number),
        _ if plain.is_empty() => "zero".to_owned(),
        _ => integer(&plain),
    };
    match fraction {
        None => Some(whole),
        Some(fraction) if is_figures(fraction) => {
            Some(format!("{whole} point {}", digits(fraction)))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_words_up_to_the_largest() {
        assert_eq!(cardinal(1_000_001), "one million one");
        assert_eq!(ordinal(112), "one hundred twelfth");
        assert_eq!(ordinal(20), "twentieth");
        assert_eq!(year(2000), "two thousand");
        assert!(
            cardinal(u64::MAX).starts_with("eighteen thousand four hundred forty six quadrillion")
        );
        assert_eq!(decimal("1,23"), None);
        assert_eq!(decimal(".5").as_deref(), Some("zero point five"));
        assert_eq!(decimal("."), None);
    }
}
