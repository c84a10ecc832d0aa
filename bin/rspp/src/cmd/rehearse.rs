//! `rspp rehearse`: what happens if …

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use clap::Args;
use rspp_proto::Monotonic;
use serde::Serialize;

use crate::{
    problem::Problem,
    rehearsal::{Finding, Performance, Scenario, perform, wording},
    terminal,
};

/// Rehearse calls in which things go wrong, and see what the runtime does about it.
///
/// A scenario says what runs, how scripted providers behave, what users and operators do at which
/// moment, and what is expected. The runtime is the real one; time is virtual, so a call of minutes
/// takes moments and goes the same way every time.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp rehearse tests/scenarios/silent-model.yaml             Signals, turns, and whether it went as expected
  rspp rehearse tests/scenarios/*.yaml --quiet                A line a scenario
  rspp rehearse outage.yaml --timelines calls                 Keep the timelines; see `rspp timeline show`
  rspp rehearse outage.yaml --json | jq '.[].calls[].turns'   For programs

Exit code 1 if something is not as expected.")]
pub(crate) struct Rehearse {
    /// Scenarios, `rspp.scenario.v1`
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Only say whether each scenario goes as expected
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Keep the calls' timelines in this directory, as SCENARIO.CALL.rspp
    #[arg(long, value_name = "DIR")]
    timelines: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints of a scenario.
#[derive(Serialize)]
struct Told<'a> {
    scenario: String,
    title: &'a str,
    shows: &'a [String],
    holds: bool,
    calls: Vec<ToldCall<'a>>,
    findings: &'a [Finding],
}

#[derive(Serialize)]
struct ToldCall<'a> {
    id: &'a str,
    turns: &'a [rspp_host::report::TurnReport],
    signals: Vec<serde_json::Value>,
    /// The newest of what it has measured of itself.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    measures: &'a [rspp_proto::MetricSample],
    /// Why its session ended.
    ended: Option<&'a str>,
    /// Why it was not taken, if it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<&'a str>,
    findings: &'a [Finding],
}

impl Rehearse {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let scenarios = self
            .files
            .iter()
            .map(|file| Scenario::load(file).map(|scenario| (file, scenario)))
            .collect::<Result<Vec<_>, _>>()?;
        if self.timelines.is_some() {
            self.check_stems()?;
        }
        let scratch = Scratch::new(self.timelines.as_ref())?;
        let mut all_hold = true;
        let mut told = Vec::new();
        for (file, scenario) in scenarios {
            let (title, shows) = (scenario.title.clone(), scenario.shows.clone());
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            let performance = perform(&scenario, |call| {
                scratch.path.join(format!("{stem}.{call}.rspp"))
            })
            .map_err(|problem| problem.of(file.display()))?;
            let holds = performance.findings().all(Finding::holds);
            all_hold &= holds;
            if self.json {
                told.push(json(file, &title, &shows, holds, &performance)?);
            } else {
                let ids = if shows.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", shows.join(", "))
                };
                let verdict = if holds { "ok    " } else { "FAILED" };
                terminal::print(format!("{verdict}  {}  {title}{ids}", file.display()))?;
                if !self.quiet {
                    terminal::print(calls(&performance))?;
                }
                if !self.quiet || !holds {
                    terminal::print(findings(&performance, self.quiet))?;
                }
            }
        }
        if self.json {
            terminal::print_json(&told)?;
        }
        if all_hold {
            Ok(())
        } else {
            Err(Problem::Reported)
        }
    }

    /// Timelines that are kept bear the names of their scenarios.
    fn check_stems(&self) -> Result<(), Problem> {
        let mut taken: BTreeMap<&OsStr, &Path> = BTreeMap::new();
        for file in &self.files {
            let stem = file.file_stem().unwrap_or_default();
            if let Some(other) = taken.insert(stem, file) {
                return Err(Problem::input(format!(
                    "{} and {}: their timelines would have one name; rehearse them one after the other, each with \
                     a directory of its own",
                    other.display(),
                    file.display()
                )));
            }
        }
        Ok(())
    }
}

/// Where timelines go: kept if somebody asked for them.
struct Scratch {
    path: PathBuf,
    kept: bool,
}

impl Scratch {
    fn new(wanted: Option<&PathBuf>) -> Result<Self, Problem> {
        let path = match wanted {
            Some(path) => path.clone(),
            None => std::env::temp_dir().join(format!("rspp-rehearsal-{}", std::process::id())),
        };
        fs::create_dir_all(&path).map_err(|error| {
            let name = path.display();
            Problem::input(match error.kind() {
                io::ErrorKind::AlreadyExists => format!("{name}: is no directory; name one"),
                _ => format!("{name}: {error}"),
            })
        })?;
        if wanted.is_none() {
            clear_on_ctrl_c(path.clone())?;
        }
        Ok(Self {
            path,
            kept: wanted.is_some(),
        })
    }
}

/// Ctrl-C ends the rehearsal in the middle, and nothing of it is left.
fn clear_on_ctrl_c(path: PathBuf) -> Result<(), Problem> {
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Problem::failure)?;
    let wait = move || {
        if tokio.block_on(tokio::signal::ctrl_c()).is_ok() {
            let _left_for_the_system = fs::remove_dir_all(path);
            std::process::exit(130);
        }
    };
    let thread = thread::Builder::new().name("ctrl-c".to_owned()).spawn(wait);
    thread.map_err(Problem::failure)?;
    Ok(())
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.kept {
            let _left_for_the_system = fs::remove_dir_all(&self.path);
        }
    }
}

fn calls(performance: &Performance) -> String {
    let mut lines = Vec::new();
    let first = performance.calls.iter().map(|call| call.placed_at).min();
    for call in &performance.calls {
        // A call's times are its own.
        let later = call.placed_at.since(first.unwrap_or(call.placed_at));
        let placed = match later {
            Duration::ZERO => String::new(),
            later => format!(", placed {:.3} s after the first", later.as_secs_f64()),
        };
        lines.push(format!("\ncall `{}`{placed}", call.id));
        lines.extend(call.signals.iter().map(|signal| {
            let envelope = &signal.envelope;
            let at = Monotonic::from_millis(envelope.runtime_timestamp_ms).since(call.placed_at);
            let line = format!(
                "  {:>8.3} s  {:<9}  {:<5}  {} {}",
                at.as_secs_f64(),
                envelope.turn_id.as_ref().map_or("", |turn| turn.as_str()),
                signal.emitted_by.as_str(),
                signal.signal,
                wording(signal),
            );
            line.trim_end().to_owned()
        }));
        lines.extend(call.refused.iter().map(|why| format!("  refused: {why}")));
        let Some(report) = &call.report else { continue };
        lines.extend(report.turns.iter().map(|turn| {
            let ending = turn.reason.as_deref().unwrap_or(&turn.outcome);
            format!(
                "  {} {ending}: user `{}`, heard `{}`",
                turn.turn_id, turn.user_text, turn.agent_text_played
            )
        }));
        lines.push(format!("  ended: {}", report.ended));
    }
    terminal::of_lines(&lines)
}

fn findings(performance: &Performance, only_bad: bool) -> String {
    let findings = performance.findings();
    let lines: Vec<String> = findings
        .filter(|finding| !only_bad || !finding.holds())
        .map(|finding| match &finding.found {
            None => format!("  ok      {}", finding.expected),
            Some(found) => format!("  FAILED  {}: {found}", finding.expected),
        })
        .collect();
    terminal::of_lines(&lines)
}

fn json(
    file: &std::path::Path,
    title: &str,
    shows: &[String],
    holds: bool,
    performance: &Performance,
) -> Result<serde_json::Value, Problem> {
    let calls = performance.calls.iter().map(|call| {
        let signals = call.signals.iter().map(serde_json::to_value);
        Ok(ToldCall {
            id: call.id.as_str(),
            turns: call.report.as_ref().map_or(&[], |report| &report.turns),
            signals: signals.collect::<Result<_, _>>()?,
            measures: &call.measures,
            ended: call.report.as_ref().map(|report| report.ended.as_str()),
            refused: call.refused.as_deref(),
            findings: &call.findings,
        })
    });
    let calls: Result<Vec<_>, serde_json::Error> = calls.collect();
    serde_json::to_value(Told {
        scenario: file.display().to_string(),
        title,
        shows,
        holds,
        calls: calls.map_err(Problem::failure)?,
        findings: &performance.findings,
    })
    .map_err(Problem::failure)
}
