//! Dates and lengths of time, as files of keys write them.

use std::time::Duration;

use rspp_proto::{WallClock, parse_age};

/// `90d`, `12h`, `30m`, `45s`; not none at all.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let age = parse_age(text.trim()).filter(|age| !age.is_zero());
    age.ok_or_else(|| {
        format!("`{text}` is no length of time: write it as `90d`, `12h`, `30m` or `45s`")
    })
}

/// A length of time in its largest whole unit, for people.
pub(crate) fn days(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// `2026-11-01` or `2026-11-01T08:30:00Z`, which is how [`WallClock::to_utc`] writes it.
pub(crate) fn parse_date(text: &str) -> Result<WallClock, String> {
    let wrong =
        || format!("`{text}` is no date: write it as `2026-11-01` or `2026-11-01T08:30:00Z`");
    let text = text.trim();
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, time.strip_suffix('Z').ok_or_else(wrong)?),
        None => (text, "00:00:00"),
    };
    let [year, month, day] = numbers(date, '-').ok_or_else(wrong)?;
    let [hour, minute, second] = numbers(time, ':').ok_or_else(wrong)?;
    let is_one = (1970..=9_999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !is_one {
        return Err(wrong());
    }
    // Days since 1970-01-01 in the proleptic Gregorian calendar, years beginning in March.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let of_era = year % 400;
    let of_year = (153 * month + 2) / 5 + day - 1;
    let days = year / 400 * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let at = WallClock(((days * 24 + hour) * 60 + minute) * 60_000 + second * 1_000);
    // A day that its month does not have is another one's.
    let is_same = at.to_utc().starts_with(date);
    if is_same { Ok(at) } else { Err(wrong()) }
}

fn numbers(text: &str, between: char) -> Option<[u64; 3]> {
    let mut parts = text.split(between);
    let mut next = || {
        let part = parts.next()?;
        let is_plain = part.bytes().all(|byte| byte.is_ascii_digit());
        if is_plain { part.parse().ok() } else { None }
    };
    let found = [next()?, next()?, next()?];
    parts.next().is_none().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_as_they_are_written() {
        for at in [0, 951_827_696_000, 1_790_000_000_000, 4_102_444_800_000] {
            let text = WallClock(at).to_utc();
            let whole = text.trim_end_matches('Z').replace(' ', "T") + "Z";
            assert_eq!(parse_date(&whole), Ok(WallClock(at)), "{text}");
        }
        assert_eq!(parse_date("1970-01-02"), Ok(WallClock(86_400_000)));
        assert_eq!(parse_date("2024-02-29"), Ok(WallClock(1_709_164_800_000)));
        for bad in [
            "",
            "2026",
            "2026-02-30",
            "2026-13-01",
            "2026-1-1",
            "2026-11-01T08:30",
            "x",
        ] {
            assert!(parse_date(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lengths_of_time_are_told_in_their_unit() {
        assert_eq!(parse_time("90d"), Ok(Duration::from_hours(24 * 90)));
        assert_eq!(days(Duration::from_hours(24 * 90)), "90 days");
        assert_eq!(days(Duration::from_hours(25)), "25 h");
        for bad in ["", "d", "0d", "-1d", "1", "1w", "99999999999999999999d"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
