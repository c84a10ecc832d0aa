//! Everything with figures: money, times, dates, telephones, percentages, units, ranges.

use super::{
    Spoken, abbreviation,
    clean::{DEGREE, EURO, POUND},
    number, say,
};

/// Reads a telephone number at the start of `chunks`; says how many chunks it took.
pub(super) fn telephone(chunks: &[&str], out: &mut Vec<Spoken>) -> Option<usize> {
    const MOST_CHUNKS: usize = 6;
    const LEAST_FIGURES: usize = 7;
    let first = chunks.first()?;
    if !first.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '(')) {
        return None;
    }
    // The longest run of chunks that are figures with separators.
    let mut taken = 0;
    let mut groups: Vec<&str> = Vec::new();
    let mut tail = "";
    for chunk in chunks.iter().take(MOST_CHUNKS) {
        let body = chunk.trim_end_matches([',', '.', '?', '!', ';', ':']);
        let fits = body
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'(' | b')' | b'+'));
        let inner = taken == 0 || !body.starts_with(['+', '-']);
        if !fits || !inner || body.is_empty() {
            break;
        }
        groups.extend(
            body.split(['-', '.', '(', ')', '+'])
                .filter(|group| !group.is_empty()),
        );
        taken += 1;
        tail = &chunk[body.len()..];
        if !tail.is_empty() {
            break;
        }
    }
    let figures: usize = groups.iter().map(|group| group.len()).sum();
    let international = first.starts_with('+');
    let last_is_long = groups.last().is_some_and(|group| group.len() >= 3);
    let short_groups = groups.iter().all(|group| group.len() <= 4);
    let looks_right = if international {
        groups.len() >= 2 || figures >= 8
    } else {
        let opening = first.starts_with('(') || groups.first().is_some_and(|g| g.len() == 3);
        groups.len() >= 2 && opening && short_groups && groups.last().is_some_and(|g| g.len() == 4)
    };
    if !(looks_right && last_is_long && (LEAST_FIGURES..=15).contains(&figures)) {
        return None;
    }
    if international {
        say("plus", out);
    }
    for (index, group) in groups.iter().enumerate() {
        if index > 0 {
            say(",", out);
        }
        say(&number::digits(group), out);
    }
    out.extend(tail.chars().next().map(Spoken::Mark));
    Some(taken)
}

/// Reads a chunk with figures; says how many of the chunks after it went with it.
pub(super) fn read(body: &str, after: &[&str], out: &mut Vec<Spoken>) -> Option<usize> {
    let bare = |chunk: &&str| {
        chunk
            .trim_end_matches([',', '.', '?', '!', ';', ':', ')'])
            .to_ascii_lowercase()
    };
    let next = after.first().map(bare).unwrap_or_default();
    // What a mark follows ends here.
    let next = if after.first().is_some_and(|chunk| !chunk.is_empty()) {
        next
    } else {
        String::new()
    };

    if let Some(taken) = money(body, &next, out) {
        return Some(taken);
    }
    if let Some(taken) = clock(body, &next, out) {
        return Some(taken);
    }
    if date(body, out)
        || ordinal(body, out)
        || fraction(body, out)
        || decade(body, out)
        || range(body, out)
    {
        return Some(0);
    }
    if let Some(figures) = body.strip_prefix('#').filter(|rest| is_figures(rest)) {
        say("number", out);
        say(&number::integer(figures), out);
        return Some(0);
    }
    let (minus, figures) = match body.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, body.strip_prefix('+').unwrap_or(body)),
    };
    if body.starts_with('+') && figures.starts_with(|c: char| c.is_ascii_digit()) {
        say("plus", out);
    }
    let length = figures
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | ',')))
        .unwrap_or(figures.len());
    let (figures, unit) = figures.split_at(length);
    if figures.matches('.').count() > 1 && unit.is_empty() && figures.split('.').all(is_figures) {
        let parts: Vec<String> = figures.split('.').map(number::integer).collect();
        say(&parts.join(" point "), out);
        return Some(0);
    }
    let value = number::decimal(figures)?;
    if minus {
        say("minus", out);
    }
    if unit.is_empty() {
        if next == "\x01" || next.starts_with(DEGREE) {
            say(&value, out);
            say(unit_name(&next, figures == "1").unwrap_or("degrees"), out);
            return Some(1);
        }
        let after_month = last_word(out).and_then(abbreviation::month).is_some();
        let before_month = abbreviation::month(&next).is_some() && next != "may" && next != "mar";
        let is_day = figures.len() <= 2
            && figures
                .parse()
                .is_ok_and(|day: u64| (1..=31).contains(&day));
        match figures.parse::<u64>() {
            Ok(day) if is_day && (after_month || before_month) => say(&number::ordinal(day), out),
            Ok(year) if (1100..2100).contains(&year) && figures.len() == 4 && !minus => {
                say(&number::year(year), out);
            }
            _ => say(&value, out),
        }
        // A unit set apart from its number: "5 km", "12.5 %".
        if let Some(name) = unit_name(&next, figures == "1").filter(|_| !is_word_too(&next)) {
            say(name, out);
            return Some(1);
        }
        return Some(0);
    }
    if let Some(name) = unit_name(unit, figures == "1") {
        say(&value, out);
        say(name, out);
        return Some(0);
    }
    if let Some(other) = unit.strip_prefix(['x', 'X']).and_then(number::decimal) {
        say(&value, out);
        say("by", out);
        say(&other, out);
        return Some(0);
    }
    None
}

/// Reads letters and figures mixed, like "B2B", "x86" or "gpt4".
pub(super) fn mixed(part: &str, out: &mut Vec<Spoken>) {
    let mut rest = part.trim_matches('\'');
    while let Some(first) = rest.chars().next() {
        let figures = first.is_ascii_digit();
        let length = rest
            .find(|c: char| c.is_ascii_digit() != figures)
            .unwrap_or(rest.len());
        let (run, after) = rest.split_at(length);
        rest = after;
        if figures && run.len() <= 2 {
            say(&number::integer(run), out);
        } else if figures
            && run.len() == 4
            && run.parse().is_ok_and(|year| (1900..2100).contains(&year))
        {
            say(&number::year(run.parse().unwrap_or_default()), out);
        } else if figures {
            say(&number::digits(run), out);
        } else {
            let lower: String = run
                .chars()
                .filter(char::is_ascii_alphabetic)
                .collect::<String>()
                .to_ascii_lowercase();
            if lower.len() < 3
                || abbreviation::is_spelled(run) && run.bytes().all(|b| b.is_ascii_uppercase())
            {
                out.push(Spoken::Letters(lower));
            } else {
                out.push(Spoken::Word(lower));
            }
        }
    }
    out.retain(|spoken| !matches!(spoken, Spoken::Letters(letters) if letters.is_empty()));
}

/// "$12.50", "€3 million".
fn money(body: &str, next: &str, out: &mut Vec<Spoken>) -> Option<usize> {
    let (minus, body) = match body.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, body),
    };
    let (one, many, cent, cents, amount) = if let Some(amount) = body.strip_prefix('$') {
        ("dollar", "dollars", "cent", "cents", amount)
    } else if let Some(amount) = body.strip_prefix(EURO).or_else(|| body.strip_suffix(EURO)) {
        ("euro", "euros", "cent", "cents", amount)
    } else if let Some(amount) = body.strip_prefix(POUND) {
        ("pound", "pounds", "penny", "pence", amount)
    } else {
        return None;
    };
    let figures = amount.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &amount[figures.len()..] {
        "k" | "K" => Some("thousand"),
        "m" | "M" => Some("million"),
        "b" | "B" | "bn" => Some("billion"),
        "" => None,
        _ => return None,
    };
    let value = number::decimal(figures)?;
    if minus {
        say("minus", out);
    }
    let apart = matches!(next, "thousand" | "million" | "billion" | "trillion");
    if let Some(scale) = scale.or(apart.then_some(next)) {
        say(&format!("{value} {scale} {many}"), out);
        return Some(usize::from(apart));
    }
    if let Some((whole, fraction)) = figures.split_once('.').filter(|(_, f)| f.len() == 2) {
        let whole_value = number::decimal(whole).unwrap_or_else(|| "zero".to_owned());
        let part: u64 = fraction.parse().ok()?;
        if whole_value != "zero" {
            say(&whole_value, out);
            say(if whole_value == "one" { one } else { many }, out);
            if part > 0 {
                say("and", out);
            }
        }
        if part > 0 || whole_value == "zero" {
            say(&number::cardinal(part), out);
            say(if part == 1 { cent } else { cents }, out);
        }
        return Some(0);
    }
    say(&value, out);
    say(if value == "one" { one } else { many }, out);
    Some(0)
}

/// "3:30pm", "15:05", "5pm", "3 p.m.".
fn clock(body: &str, next: &str, out: &mut Vec<Spoken>) -> Option<usize> {
    let lower = body.to_ascii_lowercase();
    let half_of = |text: &str| match text {
        "am" | "a.m" => Some("AM"),
        "pm" | "p.m" => Some("PM"),
        _ => None,
    };
    let figures = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == '.');
    let attached = half_of(&lower[figures.len()..]);
    if attached.is_none() && figures.len() < lower.len() {
        return None;
    }
    let half = attached.or_else(|| half_of(next));
    let mut parts = figures.split(':');
    let hour = parts
        .next()
        .filter(|hour| is_figures(hour) && hour.len() <= 2)?;
    let minutes = parts.next();
    let seconds = parts.next();
    let sixty = |text: &str| text.len() == 2 && text.parse().is_ok_and(|n: u64| n < 60);
    let hour: u64 = hour.parse().ok().filter(|hour| *hour <= 24)?;
    if !minutes.is_none_or(sixty) || !seconds.is_none_or(sixty) || parts.next().is_some() {
        return None;
    }
    if minutes.is_none() && half.is_none() {
        return None;
    }
    say(&number::cardinal(hour), out);
    match minutes.map(|m| (m, m.parse::<u64>().unwrap_or_default())) {
        None => {}
        Some((_, 0)) if half.is_some() || seconds.is_some() => {}
        Some((_, 0)) if hour > 12 || hour == 0 => say("hundred", out),
        Some((_, 0)) => say("o'clock", out),
        Some((_, minutes)) if minutes < 10 => {
            say("oh", out);
            say(&number::cardinal(minutes), out);
        }
        Some((_, minutes)) => say(&number::cardinal(minutes), out),
    }
    if let Some(seconds) = seconds.and_then(|seconds| seconds.parse().ok()) {
        say("and", out);
        say(&number::cardinal(seconds), out);
        say("seconds", out);
    }
    if let Some(half) = half {
        say(half, out);
    }
    Some(usize::from(attached.is_none() && half.is_some()))
}

/// "2026-11-22", "11/22/2026".
fn date(body: &str, out: &mut Vec<Spoken>) -> bool {
    let separator = if body.contains('/') { '/' } else { '-' };
    let parts: Vec<&str> = body.split(separator).collect();
    let [a, b, c] = parts.as_slice() else {
        return false;
    };
    if ![a, b, c].iter().all(|part| is_figures(part)) {
        return false;
    }
    let (year, month, day) = match (a.len(), c.len()) {
        (4, 1..=2) => (*a, *b, *c),
        (1..=2, 4) => (*c, *a, *b),
        _ => return false,
    };
    let number = |text: &str| text.parse::<u64>().unwrap_or_default();
    let (year, month, day) = (number(year), number(month), number(day));
    // Day before month, where only that can be meant.
    let (month, day) = if month > 12 {
        (day, month)
    } else {
        (month, day)
    };
    let names = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    let name = usize::try_from(month)
        .ok()
        .and_then(|month| names.get(month.checked_sub(1)?))
        .and_then(|name| abbreviation::month(name));
    let Some(name) = name.filter(|_| (1..=31).contains(&day) && (1100..2100).contains(&year))
    else {
        return false;
    };
    say(name, out);
    say(&number::ordinal(day), out);
    say(&number::year(year), out);
    true
}

/// "23rd".
fn ordinal(body: &str, out: &mut Vec<Spoken>) -> bool {
    let figures = body.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let ending = body[figures.len()..].to_ascii_lowercase();
    if !matches!(ending.as_str(), "st" | "nd" | "rd" | "th") || figures.len() > 9 {
        return false;
    }
    let Some(number) = figures
        .replace(',', "")
        .parse()
        .ok()
        .filter(|_| is_figures(&figures.replace(',', "")))
    else {
        return false;
    };
    say(&number::ordinal(number), out);
    true
}

/// "1/2", "3/4", "24/7".
fn fraction(body: &str, out: &mut Vec<Spoken>) -> bool {
    let words = match body {
        "1/2" => "one half",
        "1/3" => "one third",
        "2/3" => "two thirds",
        "1/4" => "one quarter",
        "3/4" => "three quarters",
        _ => {
            let Some((a, b)) = body
                .split_once('/')
                .filter(|(a, b)| is_figures(a) && is_figures(b))
            else {
                return false;
            };
            say(&number::integer(a), out);
            if (a, b) != ("24", "7") {
                say("slash", out);
            }
            say(&number::integer(b), out);
            return true;
        }
    };
    say(words, out);
    true
}

/// "1990s", "'90s".
fn decade(body: &str, out: &mut Vec<Spoken>) -> bool {
    let Some(figures) = body
        .trim_start_matches('\'')
        .strip_suffix('s')
        .map(|f| f.trim_end_matches('\''))
    else {
        return false;
    };
    let Some(number) = figures.parse::<u64>().ok().filter(|_| is_figures(figures)) else {
        return false;
    };
    let fits = number % 10 == 0 && ((20..100).contains(&number) || (1100..2100).contains(&number));
    if fits {
        say(&number::decade(number), out);
    }
    fits
}

/// "5-7".
fn range(body: &str, out: &mut Vec<Spoken>) -> bool {
    let Some((a, b)) = body.split_once('-') else {
        return false;
    };
    if !is_figures(a) || !is_figures(b) || a.len() > 4 || b.len() > 4 {
        return false;
    }
    for (index, figures) in [a, b].into_iter().enumerate() {
        if index > 0 {
            say("to", out);
        }
        match figures.parse() {
            Ok(year) if figures.len() == 4 && (1100..2100).contains(&year) => {
                say(&number::year(year), out);
            }
            _ => say(&number::integer(figures), out),
        }
    }
    true
}

/// A unit's name.
fn unit_name(unit: &str, one: bool) -> Option<&'static str> {
    let (singular, plural) = match unit {
        "%" => ("percent", "percent"),
        "\x01" => ("degree", "degrees"),
        "\x01C" | "\x01c" => ("degree celsius", "degrees celsius"),
        "\x01F" | "\x01f" => ("degree fahrenheit", "degrees fahrenheit"),
        "km" => ("kilometer", "kilometers"),
        "m" => ("meter", "meters"),
        "cm" => ("centimeter", "centimeters"),
        "mm" => ("millimeter", "millimeters"),
        "kg" => ("kilogram", "kilograms"),
        "g" => ("gram", "grams"),
        "mg" => ("milligram", "milligrams"),
        "lb" | "lbs" => ("pound", "pounds"),
        "oz" => ("ounce", "ounces"),
        "ft" => ("foot", "feet"),
        "ml" => ("milliliter", "milliliters"),
        "l" | "L" => ("liter", "liters"),
        "ms" => ("millisecond", "milliseconds"),
        "s" | "sec" | "secs" => ("second", "seconds"),
        "min" | "mins" => ("minute", "minutes"),
        "h" | "hr" | "hrs" => ("hour", "hours"),
        "mph" => ("mile per hour", "miles per hour"),
        "km/h" | "kph" => ("kilometer per hour", "kilometers per hour"),
        "hz" | "Hz" => ("hertz", "hertz"),
        "khz" | "kHz" => ("kilohertz", "kilohertz"),
        "mhz" | "MHz" => ("megahertz", "megahertz"),
        "ghz" | "GHz" => ("gigahertz", "gigahertz"),
        "kb" | "KB" | "kB" => ("kilobyte", "kilobytes"),
        "mb" | "MB" => ("megabyte", "megabytes"),
        "gb" | "GB" => ("gigabyte", "gigabytes"),
        "tb" | "TB" => ("terabyte", "terabytes"),
        "kw" | "kW" => ("kilowatt", "kilowatts"),
        "kwh" | "kWh" => ("kilowatt hour", "kilowatt hours"),
        "k" | "K" => ("thousand", "thousand"),
        "M" => ("million", "million"),
        "bn" => ("billion", "billion"),
        "x" => ("times", "times"),
        _ => return None,
    };
    Some(if one { singular } else { plural })
}

/// Units that are words or letters of their own when they stand apart.
fn is_word_too(unit: &str) -> bool {
    matches!(
        unit,
        "m" | "s" | "h" | "g" | "l" | "k" | "x" | "min" | "sec"
    )
}

fn last_word(out: &[Spoken]) -> Option<&str> {
    match out.last() {
        Some(Spoken::Word(word)) => Some(word),
        Some(Spoken::Letters(_) | Spoken::Mark(_)) | None => None,
    }
}

fn is_figures(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}
