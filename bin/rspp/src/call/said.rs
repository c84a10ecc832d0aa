//! What the user says in a loopback call, in the order of the command line.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgMatches, Args, Command, FromArgMatches};
use rspp_transport_api::{audio::resample, loopback::USER_RATE, wav};

use crate::problem::Problem;

/// The user's turns, in the order in which files, `--say` and `--barge-in-at` were given; or why
/// they make no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said(Result<Vec<Turn>, String>);

/// One of the user's turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) source: Voice,
    /// Into the agent's reply to the turn before, this long after it began to sound.
    pub(crate) barge_in: Option<Duration>,
}

/// Where the user's voice comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Voice {
    /// A recording.
    File(PathBuf),
    /// To be synthesised.
    Text(String),
}

/// What clap reads; the order is restored from its indices.
#[derive(Debug, Args)]
struct Raw {
    /// Recordings of what the user says: WAV, any rate, mono or stereo, one turn each
    #[arg(value_name = "WAV")]
    wav: Vec<PathBuf>,

    /// A turn of the user's, synthesised by the local voice; may be repeated
    #[arg(long, value_name = "TEXT")]
    say: Vec<String>,

    /// A turn that interrupts the agent, this long after its reply began to sound: `1.2s`, `800ms`
    #[arg(long, num_args = 2, value_names = ["AFTER", "FILE|TEXT"])]
    barge_in_at: Vec<String>,
}

impl Args for Said {
    fn augment_args(command: Command) -> Command {
        Raw::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Raw::augment_args_for_update(command)
    }
}

impl FromArgMatches for Said {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let raw = Raw::from_arg_matches(matches)?;
        Ok(Self(raw.in_order(|name| {
            let indices = matches.indices_of(name);
            indices.map(Iterator::collect).unwrap_or_default()
        })))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Raw {
    /// The turns in the order of the command line, by the places of an argument's values in it.
    fn in_order(self, places: impl Fn(&str) -> Vec<usize>) -> Result<Vec<Turn>, String> {
        let files = self
            .wav
            .into_iter()
            .map(|path| Turn::new(Voice::File(path)));
        let texts = self
            .say
            .into_iter()
            .map(|text| Turn::new(Voice::Text(text)));
        let mut turns: Vec<(usize, Turn)> = places("wav").into_iter().zip(files).collect();
        turns.extend(places("say").into_iter().zip(texts));
        let pairs = self.barge_in_at.chunks_exact(2);
        for (place, pair) in places("barge_in_at").into_iter().step_by(2).zip(pairs) {
            let [after, what] = pair else {
                unreachable!("`num_args` is 2")
            };
            let barge_in = parse_duration(after)
                .map_err(|problem| format!("--barge-in-at {after}: {problem}"))?;
            let turn = Turn {
                source: Voice::guess(what),
                barge_in: Some(barge_in),
            };
            turns.push((place, turn));
        }
        turns.sort_by_key(|(place, _)| *place);
        let turns: Vec<Turn> = turns.into_iter().map(|(_, turn)| turn).collect();
        if turns.first().is_some_and(|turn| turn.barge_in.is_some()) {
            return Err(
                "--barge-in-at needs a reply to interrupt: put a WAV file or --say before it"
                    .to_owned(),
            );
        }
        Ok(turns)
    }
}

impl Said {
    /// The turns; a short demonstration if the user said nothing.
    pub(crate) fn turns(&self) -> Result<Vec<Turn>, Problem> {
        let turns = self.0.clone().map_err(Problem::input)?;
        if turns.is_empty() {
            return Ok(demo());
        }
        Ok(turns)
    }
}

/// Two turns that show that the agent remembers.
fn demo() -> Vec<Turn> {
    ["Hello! My name is Ada.", "Do you remember my name?"]
        .map(|text| Turn::new(Voice::Text(text.to_owned())))
        .into()
}

impl Turn {
    fn new(source: Voice) -> Self {
        Self {
            source,
            barge_in: None,
        }
    }
}

impl Voice {
    /// A file if it exists or is named like one, else text.
    fn guess(what: &str) -> Self {
        let path = Path::new(what);
        let named_like_audio = path.extension().is_some_and(|extension| {
            [
                "wav", "wave", "mp3", "ogg", "oga", "opus", "flac", "m4a", "aac", "webm", "aiff",
            ]
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
        });
        if named_like_audio || path.is_file() {
            Self::File(path.to_owned())
        } else {
            Self::Text(what.to_owned())
        }
    }
}

/// Reads a recording as the loopback transport wants it.
pub(crate) fn read_recording(path: &Path) -> Result<Vec<i16>, Problem> {
    let clip = wav::read(path).map_err(Problem::input)?;
    if clip
        .samples
        .iter()
        .all(|sample| sample.unsigned_abs() < QUIETEST)
    {
        return Err(Problem::input(format!(
            "{}: the recording is silent; check the microphone or its level",
            path.display()
        )));
    }
    resample(&clip.samples, clip.rate, USER_RATE).map_err(Problem::input)
}

/// 60 dB below full scale: nobody speaks below it.
const QUIETEST: u16 = 33;

/// A time as people write it: `1.2s`, `800ms`, `2`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "write a time such as 1.2s or 800ms";
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    let number: f64 = number.trim().parse().map_err(|_| FORM)?;
    let seconds = number * unit;
    if !(0.0..=600.0).contains(&seconds) {
        return Err("write a time between 0s and 600s");
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        said: Said,
    }

    fn parse(words: &[&str]) -> Result<Vec<Turn>, String> {
        let words = std::iter::once("rspp").chain(words.iter().copied());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.said.0
    }

    fn file(path: &str) -> Turn {
        Turn::new(Voice::File(path.into()))
    }

    fn text(text: &str) -> Turn {
        Turn::new(Voice::Text(text.into()))
    }

    fn at(ms: u64, turn: Turn) -> Turn {
        Turn {
            barge_in: Some(Duration::from_millis(ms)),
            ..turn
        }
    }

    #[test]
    fn turns_keep_the_order_of_the_command_line() {
        assert_eq!(
            parse(&[
                "--say",
                "one",
                "two.wav",
                "--barge-in-at",
                "1.2s",
                "Stop!",
                "--say",
                "four",
                "five.wav",
                "--barge-in-at",
                "800ms",
                "six.WAV",
                "seven.wav"
            ]),
            Ok(vec![
                text("one"),
                file("two.wav"),
                at(1_200, text("Stop!")),
                text("four"),
                file("five.wav"),
                at(800, file("six.WAV")),
                file("seven.wav"),
            ])
        );
        assert_eq!(parse(&[]), Ok(Vec::new()));
    }

    #[test]
    fn a_barge_in_needs_something_to_interrupt_and_a_time() {
        assert_eq!(
            parse(&["--barge-in-at", "1s", "Stop!"]).unwrap_err(),
            "--barge-in-at needs a reply to interrupt: put a WAV file or --say before it"
        );
        assert_eq!(
            parse(&["a.wav", "--barge-in-at", "soon", "Stop!"]).unwrap_err(),
            "--barge-in-at soon: write a time such as 1.2s or 800ms"
        );
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        #[track_caller]
        fn check(text: &str, ms: Option<u64>) {
            assert_eq!(
                parse_duration(text).ok(),
                ms.map(Duration::from_millis),
                "{text}"
            );
        }
        check("1.2s", Some(1_200));
        check("800ms", Some(800));
        check("2", Some(2_000));
        check("0s", Some(0));
        check("-1s", None);
        check("1e9s", None);
        check("NaN", None);
        check("inf", None);
        check("1m", None);
        check("", None);
    }
}
