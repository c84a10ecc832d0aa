//! Three times that must not be mixed: runtime, wall and media.

use std::{
    fmt,
    num::NonZeroU32,
    ops,
    time::{Duration, SystemTime},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Time since the node's clock began; serializable, so that recordings can hold it.
///
/// Nanosecond resolution, up to 584 years: half of what a `Duration` takes up in every event that waits. On the wire and
/// in files it is written in whole microseconds.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monotonic(u64);

impl Monotonic {
    /// The clock's beginning.
    pub const ZERO: Self = Self(0);

    /// A time `since` the clock's beginning.
    pub const fn from_duration(since: Duration) -> Self {
        Self(nanos(since))
    }

    /// A time in whole milliseconds since the clock's beginning.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms.saturating_mul(1_000_000))
    }

    /// Time since the clock's beginning.
    pub const fn as_duration(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// Whole milliseconds since the clock's beginning, as the Event ABI writes it.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// Milliseconds since the clock's beginning, with fraction.
    pub fn as_millis_f64(self) -> f64 {
        self.as_duration().as_secs_f64() * 1e3
    }

    /// Time elapsed since `earlier`; zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

const fn nanos(duration: Duration) -> u64 {
    let nanos = duration.as_nanos();
    if nanos > u64::MAX as u128 {
        u64::MAX
    } else {
        nanos as u64
    }
}

impl fmt::Debug for Monotonic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Monotonic")
            .field(&self.as_duration())
            .finish()
    }
}

impl ops::Add<Duration> for Monotonic {
    type Output = Self;
    fn add(self, after: Duration) -> Self {
        Self(self.0.saturating_add(nanos(after)))
    }
}

impl Serialize for Monotonic {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0 / 1_000)
    }
}

impl<'de> Deserialize<'de> for Monotonic {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(|us| Self(us.saturating_mul(1_000)))
    }
}

impl JsonSchema for Monotonic {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Monotonic".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "integer", "minimum": 0,
            "description": "microseconds since the node's clock began"
        })
    }
}

/// Milliseconds since the Unix epoch, as people and other machines read time.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct WallClock(pub u64);

/// A time before the epoch is its beginning.
impl From<SystemTime> for WallClock {
    fn from(at: SystemTime) -> Self {
        let since = at.duration_since(SystemTime::UNIX_EPOCH);
        let since = since.map_or(0, |since| since.as_millis());
        Self(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

/// A length of time in days, hours, minutes or seconds: `90d`, `12h`, `30m`, `45s`. `None` for what is none.
pub fn parse_age(text: &str) -> Option<Duration> {
    let seconds = match text.chars().next_back()? {
        'd' => 86_400,
        'h' => 3_600,
        'm' => 60,
        's' => 1,
        _unknown => return None,
    };
    let number = &text[..text.len() - 1];
    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| is_plain)?;
    number.checked_mul(seconds).map(Duration::from_secs)
}

impl WallClock {
    /// Date and time in UTC, e.g. `2026-11-01T08:30:00Z`.
    pub fn to_utc(self) -> String {
        let seconds = self.0 / 1_000;
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
}

/// Samples per second; never zero.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct SampleRate(NonZeroU32);

impl SampleRate {
    /// 8 kHz: telephony.
    pub const HZ_8000: Self = Self(NonZeroU32::new(8_000).expect("not zero"));
    /// 16 kHz: what speech recognition runs on, and the runtime's own rate for user audio.
    pub const HZ_16000: Self = Self(NonZeroU32::new(16_000).expect("not zero"));
    /// 22.05 kHz: many synthesised voices.
    pub const HZ_22050: Self = Self(NonZeroU32::new(22_050).expect("not zero"));
    /// 24 kHz: web clients and most vendor voices.
    pub const HZ_24000: Self = Self(NonZeroU32::new(24_000).expect("not zero"));
    /// 48 kHz: Opus and browsers.
    pub const HZ_48000: Self = Self(NonZeroU32::new(48_000).expect("not zero"));

    /// A rate in hertz; `None` for zero.
    pub fn new(hertz: u32) -> Option<Self> {
        NonZeroU32::new(hertz).map(Self)
    }

    /// The rate in hertz.
    pub const fn hertz(self) -> u32 {
        self.0.get()
    }

    /// How many samples last `duration`, rounded down.
    pub fn samples_in(self, duration: Duration) -> u64 {
        (duration.as_nanos() * u128::from(self.hertz()) / 1_000_000_000) as u64
    }

    /// How long `samples` last.
    pub fn duration_of(self, samples: u64) -> Duration {
        // Asked several times for each frame, whose samples fit the short way.
        let nanos = match samples.checked_mul(1_000_000_000) {
            Some(scaled) => scaled / u64::from(self.hertz()),
            None => (u128::from(samples) * 1_000_000_000 / u128::from(self.hertz())) as u64,
        };
        Duration::from_nanos(nanos)
    }
}

impl fmt::Display for SampleRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Hz", self.hertz())
    }
}

/// A position in a media stream, counted in its own samples (the canonical audio timeline).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct SampleIndex(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_and_durations_convert_both_ways() {
        let frame = Duration::from_millis(20);
        assert_eq!(SampleRate::HZ_16000.samples_in(frame), 320);
        assert_eq!(SampleRate::HZ_22050.samples_in(frame), 441);
        assert_eq!(SampleRate::HZ_16000.duration_of(320), frame);
    }

    #[test]
    fn monotonic_time_is_written_in_microseconds() {
        let at = Monotonic::from_millis(1500);
        assert_eq!(serde_json::to_string(&at).unwrap(), "1500000");
        assert_eq!(serde_json::from_str::<Monotonic>("1500000").unwrap(), at);
    }

    #[test]
    fn a_length_of_time_is_read_in_its_unit() {
        assert_eq!(parse_age("90d"), Some(Duration::from_hours(24 * 90)));
        assert_eq!(parse_age("12h"), Some(Duration::from_hours(12)));
        assert_eq!(parse_age("90s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_age("0s"), Some(Duration::ZERO));
        for bad in [
            "",
            "d",
            "30",
            "1w",
            "-1d",
            "+1d",
            "1.5h",
            "1 d",
            "1ö",
            "99999999999999999999d",
        ] {
            assert_eq!(parse_age(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_wall_clock_begins_with_the_epoch() {
        let epoch = SystemTime::UNIX_EPOCH;
        let later = epoch + Duration::from_micros(1_500);
        assert_eq!(WallClock::from(later), WallClock(1));
        assert_eq!(
            WallClock::from(epoch - Duration::from_secs(1)),
            WallClock(0)
        );
    }

    #[test]
    fn times_are_told_as_the_calendar_has_them() {
        #[track_caller]
        fn check(seconds: u64, expected: &str) {
            assert_eq!(WallClock(seconds * 1_000 + 999).to_utc(), expected);
        }
        check(0, "1970-01-01T00:00:00Z");
        check(951_782_399, "2000-02-28T23:59:59Z");
        check(951_782_400, "2000-02-29T00:00:00Z");
        check(1_709_210_096, "2024-02-29T12:34:56Z");
        check(1_793_523_600, "2026-11-01T09:00:00Z");
        check(1_798_761_599, "2026-12-31T23:59:59Z");
        check(4_107_542_400, "2100-03-01T00:00:00Z");
    }
}
