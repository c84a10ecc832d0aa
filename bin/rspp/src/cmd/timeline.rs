//! `rspp timeline`: what happened in a recorded conversation.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Cursor, Read, Seek, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand, builder::PossibleValuesParser, builder::TypedValueParser};
use rspp_archive::Place;
use rspp_proto::{EventType, Lane, Monotonic, NodeId, TurnId, TurnNumber, WallClock, abi::Signal};
use rspp_timeline::{
    Entry, EntryKind, Filter, ReadError, Timeline as Recording,
    export::{Fetched, exported},
    show, trace, verify,
};
use serde::Serialize;

use super::{
    archive::{Export, Fetch, List, fetched},
    seals::Keys,
};
use crate::{
    call::{export::KeyOptions, said::parse_duration},
    problem::Problem,
    terminal,
};

/// Look at the timeline of a recorded conversation.
#[derive(Debug, Args)]
pub(crate) struct Timeline {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Show(Show),
    Summary(super::summary::Summary),
    List(List),
    Fetch(Fetch),
    Export(Export),
    Keys(Keys),
    Trace(Trace),
}

/// Print a timeline as traces, one for each turn, in OpenTelemetry's JSON.
///
/// The ids are those that servers were told while the call went on, so that what they say of it joins.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp timeline trace call.rspp > call.json
  rspp timeline trace call.rspp | curl -H 'content-type: application/json' -d @- localhost:4318/v1/traces")]
struct Trace {
    /// The recording
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Show a timeline's events, one line each.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp timeline show call.rspp                         Everything
  rspp timeline show call.rspp --turn 2 --kind signal  The control signals of turn 2
  rspp timeline show call.rspp --signal barge_in       Every interruption
  rspp timeline show call.rspp --waterfall             Where each turn's time went
  rspp timeline show call.rspp --check                 Does it keep the invariants?
  rspp timeline show call.rspp --json | jq .kind       For programs, one object a line
  rspp timeline show acme/call-7/1790000000000-1 --from s3://acme-calls/eu --archive-keys keys.yaml

Several filters must all hold; several values of one filter are alternatives.")]
struct Show {
    /// The recording; with --from its name in the archive
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Out of this archive: a directory, `s3://bucket/prefix` or `http://host/bucket/prefix`
    #[arg(long, value_name = "PLACE")]
    from: Option<Place>,
    #[command(flatten)]
    keys: KeyOptions,
    /// Only these turns: `2` or `turn-0002`
    #[arg(long = "turn", value_name = "TURN", value_parser = parse_turn)]
    turns: Vec<TurnId>,
    /// Only these kinds of entries
    #[arg(long = "kind", value_name = "KIND", value_parser = kind_parser())]
    kinds: Vec<EntryKind>,
    /// Only events of these types
    #[arg(long = "type", value_name = "TYPE", value_parser = type_parser())]
    event_types: Vec<EventType>,
    /// Only these control signals
    #[arg(long = "signal", value_name = "SIGNAL", value_parser = signal_parser(), hide_possible_values = true)]
    signals: Vec<Signal>,
    /// Only what these graph nodes did
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<NodeId>,
    /// Only these lanes
    #[arg(long = "lane", value_name = "LANE", value_parser = lane_parser())]
    lanes: Vec<Lane>,
    /// Not before this time since the recording began: `1.5s`, `800ms`
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    since: Option<Duration>,
    /// Not at or after this time since the recording began
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    until: Option<Duration>,
    /// Show where each turn's time went, instead of the events
    #[arg(long, conflicts_with_all = ["check", "json"])]
    waterfall: bool,
    /// Check the recording's invariants instead; exit code 1 if one is broken
    #[arg(long)]
    check: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

impl Timeline {
    pub(crate) fn run(self) -> Result<(), Problem> {
        match self.action {
            Action::Show(show) => show.run(),
            Action::Summary(summary) => summary.run(),
            Action::List(list) => list.run(),
            Action::Fetch(fetch) => fetch.run(),
            Action::Export(export) => export.run(),
            Action::Keys(keys) => keys.run(),
            Action::Trace(trace) => trace.run(),
        }
    }
}

/// What a timeline is read from.
trait Source: Read + Seek {}

impl<T: Read + Seek> Source for T {}

fn open(file: &Path) -> Result<Recording<Box<dyn Source>>, Problem> {
    let name = file.display();
    let opened = File::open(file).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Problem::input(format!("{name}: no such file")),
        _another => Problem::input(format!("{name}: cannot be read: {error}")),
    })?;
    let source: Box<dyn Source> = Box::new(BufReader::new(opened));
    Recording::read(source).map_err(|error| match error {
        ReadError::Io(error) => Problem::input(format!("{name}: cannot be read: {error}")),
        ReadError::Preamble(error) => Problem::input(format!("{name}: {error}")),
    })
}

impl Trace {
    fn run(self) -> Result<(), Problem> {
        let mut recording = open(&self.file)?;
        let tied = recording
            .header()
            .map_or((Monotonic::ZERO, WallClock(0)), |header| {
                (header.started_at, header.started_wall)
            });
        let entries = recording.entries().map_err(Problem::failure)?;
        terminal::print_json(&trace::otlp(&trace::spans(&entries), tied))
    }
}

impl Show {
    fn run(self) -> Result<(), Problem> {
        let name = self.file.display();
        let mut recording = self.open()?;
        let filter = self.filter(&recording);
        if self.check {
            return self.check(recording);
        }
        let mut out = Counted {
            out: BufWriter::new(io::stdout().lock()),
            bytes: 0,
        };
        if self.waterfall {
            waterfalls(&mut recording, &filter, &mut out)?;
        } else if self.json {
            show::json_lines(&mut recording, &filter, &mut out)?;
        } else {
            show::text(&mut recording, &filter, &mut out)?;
        }
        out.flush()?;
        if out.bytes == 0 {
            terminal::note(format!("{name}: nothing found"));
        }
        if let Ok(Some(behind)) = exported(&self.file)
            && !behind.is_complete
        {
            let bytes = behind.bytes;
            terminal::note(format!(
                "{name}: the archive is behind: it has the first {bytes} bytes"
            ));
        }
        for problem in recording.report().problems() {
            terminal::note(format!("{name}: {problem}"));
        }
        Ok(())
    }

    fn open(&self) -> Result<Recording<Box<dyn Source>>, Problem> {
        let Some(place) = &self.from else {
            return open(&self.file);
        };
        let name = self.file.to_string_lossy();
        let Fetched { bytes, is_complete } = fetched(place, &name, &self.keys)?;
        if !is_complete {
            terminal::note(format!(
                "{name}: the archive is behind; this is the beginning of the recording"
            ));
        }
        let source: Box<dyn Source> = Box::new(Cursor::new(bytes));
        Recording::read(source).map_err(|error| Problem::input(format!("{name}: {error}")))
    }

    fn filter<R: Read + Seek>(&self, recording: &Recording<R>) -> Filter {
        let began = recording
            .header()
            .map_or(Monotonic::ZERO, |header| header.started_at);
        Filter {
            kinds: self.kinds.clone(),
            event_types: self.event_types.clone(),
            signals: self.signals.clone(),
            nodes: self.nodes.clone(),
            turns: self.turns.clone(),
            lanes: self.lanes.clone(),
            since: self.since.map(|since| began + since),
            until: self.until.map(|until| began + until),
        }
    }

    fn check<R: Read + Seek>(&self, mut recording: Recording<R>) -> Result<(), Problem> {
        let mut verifier = verify::Verifier::default();
        let mut entries = 0;
        for item in &mut recording {
            let entry = item.map_err(Problem::failure)?.entry;
            verifier.observe(&entry);
            // As the recording itself counts.
            let frames_it = matches!(entry, Entry::Header(_) | Entry::Footer(_));
            entries += u64::from(!frames_it);
        }
        let violations = verifier.finish();
        let problems = recording.report().problems();
        let holds = violations.is_empty() && problems.is_empty();
        if self.json {
            terminal::print_json(&Checked {
                holds,
                entries,
                violations: &violations,
                problems: &problems,
            })?;
        } else {
            let name = self.file.display();
            for problem in &problems {
                terminal::print(format!("{name}: {problem}"))?;
            }
            for violation in &violations {
                terminal::print(format!("{name}: {violation}"))?;
            }
            let verdict = if holds {
                "all invariants hold".to_owned()
            } else {
                format!(
                    "{} violations, {} problems",
                    violations.len(),
                    problems.len()
                )
            };
            terminal::print(format!("{name}: {entries} entries, {verdict}"))?;
        }
        if holds {
            Ok(())
        } else {
            Err(Problem::Reported)
        }
    }
}

/// Counts what goes out.
struct Counted<W> {
    out: W,
    bytes: usize,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What `--check --json` prints.
#[derive(Serialize)]
struct Checked<'a> {
    holds: bool,
    entries: u64,
    violations: &'a [verify::Violation],
    problems: &'a [String],
}

fn waterfalls<R: Read + Seek>(
    recording: &mut Recording<R>,
    filter: &Filter,
    out: &mut impl Write,
) -> Result<(), Problem> {
    for item in recording {
        let Entry::Turn(turn) = item.map_err(Problem::failure)?.entry else {
            continue;
        };
        if !filter.turns.is_empty() && !filter.turns.contains(&turn.turn_id) {
            continue;
        }
        let outcome = turn
            .terminal_outcome
            .map_or("no end", |outcome| outcome.as_str());
        writeln!(
            out,
            "{} ({outcome})\n{}",
            turn.turn_id,
            turn.anchors.waterfall()
        )?;
    }
    Ok(())
}

fn parse_turn(text: &str) -> Result<TurnId, String> {
    match text.parse() {
        Ok(number) => Ok(TurnNumber(number).id()),
        Err(_) => text
            .parse()
            .map_err(|error: rspp_proto::IdError| error.to_string()),
    }
}

fn kind_parser() -> impl TypedValueParser<Value = EntryKind> {
    one_of(EntryKind::ALL.iter().map(|kind| (kind.as_str(), *kind)))
}

fn signal_parser() -> impl TypedValueParser<Value = Signal> {
    one_of(Signal::ALL.iter().map(|signal| (signal.as_str(), *signal)))
}

fn lane_parser() -> impl TypedValueParser<Value = Lane> {
    one_of([
        ("control", Lane::Control),
        ("data", Lane::Data),
        ("telemetry", Lane::Telemetry),
    ])
}

fn type_parser() -> impl TypedValueParser<Value = EventType> {
    one_of([
        ("audio", EventType::Audio),
        ("text", EventType::Text),
        ("control", EventType::Control),
        ("metrics", EventType::Metrics),
        ("debug", EventType::Debug),
        ("error", EventType::Error),
    ])
}

/// Reads one of a closed list of names.
fn one_of<T: Copy + Send + Sync + 'static>(
    names: impl IntoIterator<Item = (&'static str, T)>,
) -> impl TypedValueParser<Value = T> {
    let names: Vec<(&'static str, T)> = names.into_iter().collect();
    PossibleValuesParser::new(names.iter().map(|(name, _)| *name)).map(move |text: String| {
        names
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, value)| *value)
            .expect("only known names are possible")
    })
}
