//! The tools that come with the runtime; they need no network.

use std::sync::Arc;

use rspp_proto::{WallClock, spec::SessionAction};
use rspp_provider_api::{Tool, ToolOutput, function};

/// Says what time it is.
pub(super) fn clock() -> Arc<dyn Tool> {
    function(|run| async move { Ok(ToolOutput::new(utc(run.wall))) })
}

/// Hangs up once the reply that asks for it has been heard (P1).
pub(super) fn end_call() -> Arc<dyn Tool> {
    function(|_run| async {
        Ok(ToolOutput {
            content: "the call ends when your reply has been heard; say goodbye".to_owned(),
            action: Some(SessionAction::EndCall),
        })
    })
}

/// Date and time in UTC, e.g. `2026-11-01T08:30:00Z`.
fn utc(wall: WallClock) -> String {
    let seconds = wall.0 / 1_000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01 in the proleptic Gregorian calendar: leap days come last in its years.
    let since = days + 719_468;
    let era = since / 146_097;
    let of_era = since % 146_097;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 {
        (month + 3, era * 400 + year)
    } else {
        (month - 9, era * 400 + year + 1)
    };
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_the_calendar_has_them() {
        #[track_caller]
        fn check(seconds: u64, expected: &str) {
            assert_eq!(utc(WallClock(seconds * 1_000 + 999)), expected);
        }
        check(0, "1970-01-01T00:00:00Z");
        check(951_782_399, "2000-02-28T23:59:59Z");
        check(951_782_400, "2000-02-29T00:00:00Z");
        check(4_107_542_400, "2100-03-01T00:00:00Z");
        check(1_793_523_600, "2026-11-01T09:00:00Z");
    }
}
