//! `rspp replay` and `rspp diff`: does a recorded call go the same way again, and where do two differ?

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use rspp_host::Pools;
use rspp_proto::spec::ReplayMode;
use rspp_provider_api::Providers;
use rspp_replay::{Cursor, Divergence, Expected, Replay, Stage, Step, Tolerance, compare, judge};
use rspp_timeline::{Entry, Timeline};
use serde::Serialize;

use super::models::StoreOptions;
use crate::{
    call::{providers::ProviderOptions, rerun, said::parse_duration, transcript::counted},
    outputs::is_same_file,
    problem::Problem,
    rehearsal, terminal,
};

/// Play a recorded call again, and say where it differs.
///
/// By decisions: the session machine of this build is told what the recorded one was told, at the same
/// times, and has to decide the same; no node, model or audio runs. By nodes: the whole session runs again
/// in virtual time, with the providers' recorded answers or with providers; that takes a recording at L2
/// with full capture, whose plans allow the mode. The mode is never guessed, and all output names it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp replay call.rspp                                   Decide again, and compare
  rspp replay call.rspp --mode replay_decisions --steps   The decisions as they were recorded
  rspp replay call.rspp --until 40 --save-cursor here     Stop after 40 lines …
  rspp replay call.rspp --cursor here                     … and go on from there
  rspp replay call.rspp --json                            For programs
  rspp replay call.rspp --mode playback_recorded_provider_outputs
                                                          The session again, by the recorded answers
  rspp replay call.rspp --mode re_simulate_nodes --scenario outage.yaml --keep again.rspp
                                                          The session again, with a scenario's providers

Exit code 1 if something differs.")]
pub(crate) struct ReplayCommand {
    /// The recording
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How to replay
    #[arg(long, value_enum, default_value_t = Mode::RecomputeDecisions)]
    mode: Mode,
    /// Whose scripted providers to ask in re_simulate_nodes; those of this machine without
    #[arg(long, value_name = "FILE", help_heading = "By nodes")]
    scenario: Option<PathBuf>,
    /// Keep the timeline of the replay; for modes that run nodes
    #[arg(long, value_name = "FILE", help_heading = "By nodes")]
    keep: Option<PathBuf>,
    /// How far apart times may be, for modes that run nodes
    #[arg(long, value_name = "TIME", default_value = "15ms", value_parser = parse_duration, help_heading = "By nodes")]
    tolerance: std::time::Duration,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    providers: ProviderOptions,
    /// Print every line, not only what differs
    #[arg(long)]
    steps: bool,
    /// Stop before this line of the journal
    #[arg(long, value_name = "LINE")]
    until: Option<u64>,
    /// Go on from where this file says
    #[arg(long, value_name = "FILE", conflicts_with = "mode")]
    cursor: Option<PathBuf>,
    /// Keep where the replay stopped
    #[arg(long, value_name = "FILE")]
    save_cursor: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Mode {
    /// What was decided, as recorded
    ReplayDecisions,
    /// Decide again from recorded inputs, and compare
    RecomputeDecisions,
    /// Run nodes and host again, with providers
    ReSimulateNodes,
    /// Run nodes and host again, with the providers' recorded answers
    PlaybackRecordedProviderOutputs,
}

impl From<Mode> for ReplayMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::ReplayDecisions => Self::ReplayDecisions,
            Mode::RecomputeDecisions => Self::RecomputeDecisions,
            Mode::ReSimulateNodes => Self::ReSimulateNodes,
            Mode::PlaybackRecordedProviderOutputs => Self::PlaybackRecordedProviderOutputs,
        }
    }
}

/// What `--json` prints of a replay.
#[derive(Serialize)]
struct Replayed {
    mode: ReplayMode,
    lines: usize,
    cursor: Cursor,
    steps: Vec<Step>,
    divergences: Vec<Divergence>,
}

/// What `--json` prints of a replay that ran nodes.
#[derive(Serialize)]
struct Rerun<'a> {
    mode: ReplayMode,
    turns: usize,
    divergences: &'a [Divergence],
}

impl ReplayCommand {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let entries = read(&self.file)?;
        match self.mode {
            Mode::ReplayDecisions | Mode::RecomputeDecisions => self.by_decisions(&entries),
            Mode::ReSimulateNodes | Mode::PlaybackRecordedProviderOutputs => {
                self.by_nodes(&entries)
            }
        }
    }

    fn by_nodes(&self, entries: &[Entry]) -> Result<(), Problem> {
        let name = self.file.display();
        if self.cursor.is_some() || self.save_cursor.is_some() || self.until.is_some() {
            return Err(Problem::input(
                "--cursor, --save-cursor and --until are for the modes of decisions",
            ));
        }
        if let Some(keep) = &self.keep
            && is_same_file(keep, &self.file)
        {
            return Err(Problem::input(format!(
                "--keep {}: is the recording itself; choose another name",
                keep.display()
            )));
        }
        let mode = ReplayMode::from(self.mode);
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .map_err(Problem::failure)?;
        let tolerance = Tolerance {
            timing_ms: self.tolerance.as_secs_f64() * 1e3,
            ..Tolerance::default()
        };
        let kept = self.keep.clone();
        let file = kept.unwrap_or_else(|| {
            std::env::temp_dir().join(format!("rspp-replay-{}.rspp", std::process::id()))
        });
        let played = tokio.block_on(async {
            let stage = Stage {
                providers: self.cast(mode).await?,
                ..Stage::default()
            };
            Box::pin(rerun::again(entries, mode, stage, &file, tolerance)).await
        });
        if self.keep.is_none() {
            let _left_for_the_system = fs::remove_file(&file);
        }
        let (rerun, divergences) = played?;
        let turns = rerun.report.as_ref().map_or(0, |report| report.turns.len());
        if self.json {
            terminal::print_json(&Rerun {
                mode,
                turns,
                divergences: &divergences,
            })?;
        } else {
            let mut lines: Vec<String> = divergences.iter().map(ToString::to_string).collect();
            let verdict = if divergences.is_empty() {
                "nothing differs"
            } else {
                "DIFFERS"
            };
            let turns = counted(turns as u64, "turn", "turns");
            lines.push(format!("{name}: {}, {turns}, {verdict}", mode.as_str()));
            terminal::print(terminal::of_lines(&lines))?;
        }
        if divergences.is_empty() {
            Ok(())
        } else {
            Err(Problem::Reported)
        }
    }

    /// Who is asked: a scenario's cast, this machine's providers, or nobody.
    async fn cast(&self, mode: ReplayMode) -> Result<Providers, Problem> {
        match (mode, &self.scenario) {
            (ReplayMode::ReSimulateNodes, Some(scenario)) => {
                rehearsal::providers(&rehearsal::Scenario::load(scenario)?)
            }
            (ReplayMode::ReSimulateNodes, None) => {
                let pools = Pools::in_virtual_time(1);
                let (providers, registered) =
                    self.providers.register(&self.store.open()?, &pools.work)?;
                let warm = registered.warm_up().await;
                warm.map_err(|fault| Problem::failure(fault.message))?;
                Ok(providers)
            }
            (_nobody_is_asked, None) => Ok(Providers::new()),
            (_nobody_is_asked, Some(_)) => Err(Problem::input(
                "--scenario is for --mode re_simulate_nodes: in the others no provider is asked",
            )),
        }
    }

    fn by_decisions(self, entries: &[Entry]) -> Result<(), Problem> {
        if self.keep.is_some() || self.scenario.is_some() {
            return Err(Problem::input(
                "--keep and --scenario are for modes that run nodes: add --mode re_simulate_nodes",
            ));
        }
        let name = self.file.display();
        let session = entries.iter().find_map(|entry| match entry {
            Entry::Header(header) => Some(header.session_id.clone()),
            _not_the_first => None,
        });
        let session = session.ok_or_else(|| Problem::input(format!("{name}: has no header")))?;
        let cursor = self.cursor.as_deref().map(read_cursor).transpose()?;
        let mode = cursor
            .as_ref()
            .map_or(self.mode.into(), |cursor| cursor.mode);
        let wrong = |error: rspp_replay::ReplayError| Problem::input(format!("{name}: {error}"));
        let mut replay = Replay::new(session, entries, mode).map_err(wrong)?;
        if let Some(cursor) = &cursor {
            replay.go_to(cursor).map_err(wrong)?;
        }
        let (mut steps, mut divergences) = (Vec::new(), Vec::new());
        while self.until.is_none_or(|until| replay.cursor().line < until) {
            let Some(step) = replay.step().map_err(wrong)? else {
                break;
            };
            divergences.extend(step.divergence.clone());
            if self.steps || self.json {
                steps.push(step);
            }
        }
        divergences.extend(replay.surplus());
        if let Some(path) = &self.save_cursor {
            let text = serde_json::to_string_pretty(&replay.cursor()).map_err(Problem::failure)?;
            fs::write(path, text + "\n")
                .map_err(|error| Problem::input(format!("{}: {error}", path.display())))?;
        }
        let differs = !divergences.is_empty();
        if differs {
            let dropped = entries.iter().map(|entry| match entry {
                Entry::Dropped(note) => note.details,
                _another => 0,
            });
            let dropped: u64 = dropped.sum();
            if dropped > 0 {
                terminal::note(format!(
                    "{name}: {dropped} details were dropped while it was recorded; if lines of the journal are among \
                     them, what differs is the recording"
                ));
            }
        }
        if self.json {
            terminal::print_json(&Replayed {
                mode,
                lines: replay.len(),
                cursor: replay.cursor(),
                steps,
                divergences,
            })?;
        } else {
            let mut lines: Vec<String> = steps
                .iter()
                .map(|step| {
                    let told = serde_json::to_string(&step.told).unwrap_or_default();
                    format!(
                        "{:>5}  {:>9.3} s  {told}",
                        step.line,
                        step.at.as_millis_f64() / 1e3
                    )
                })
                .collect();
            lines.extend(divergences.iter().map(ToString::to_string));
            let mode = mode.as_str();
            let verdict = if differs {
                "DIFFERS"
            } else {
                "no decision differs"
            };
            let cursor = replay.cursor();
            lines.push(format!(
                "{name}: {mode}, {} of {} lines, {verdict}",
                cursor.line,
                replay.len()
            ));
            terminal::print(terminal::of_lines(&lines))?;
        }
        if differs {
            Err(Problem::Reported)
        } else {
            Ok(())
        }
    }
}

/// Set two recorded calls against each other.
///
/// Plans, outcomes, providers, order, times and authority, turn by turn. Differences that are known are
/// excused by a file; an excuse that nothing needs any more is a difference too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp diff before.rspp after.rspp                          What is different
  rspp diff before.rspp after.rspp --tolerance 50ms         Times may be that far apart
  rspp diff before.rspp after.rspp --expect known.json      [{\"class\": \"PLAN_DIVERGENCE\", \"scope\": \"turn:turn-0001\"}]
  rspp diff before.rspp after.rspp --total-invocation 800ms --calls tts
                                                            No call of a voice takes longer
  rspp diff before.rspp after.rspp --json                   For programs

Exit code 1 if something differs that nobody expects.")]
pub(crate) struct Diff {
    /// The recording to compare with
    #[arg(value_name = "BASELINE")]
    baseline: PathBuf,
    /// The recording to judge
    #[arg(value_name = "CANDIDATE")]
    candidate: PathBuf,
    /// How far apart times may be
    #[arg(long, value_name = "TIME", default_value = "15ms", value_parser = parse_duration)]
    tolerance: std::time::Duration,
    /// Longest last attempt of a provider call of the candidate; never excused
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    final_attempt: Option<std::time::Duration>,
    /// Longest provider call of the candidate, over all its attempts; never excused
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    total_invocation: Option<std::time::Duration>,
    /// Whose calls these two are for: a modality, a provider or a call; all without. May be repeated
    #[arg(long, value_name = "SCOPE")]
    calls: Vec<String>,
    /// Differences that are known: a JSON list of class, scope and approved
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Diff {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let expected: Vec<Expected> = match &self.expect {
            Some(path) => read_json(path)?,
            None => Vec::new(),
        };
        let tolerance = Tolerance {
            timing_ms: self.tolerance.as_secs_f64() * 1e3,
            final_attempt_latency_ms: self.final_attempt.map(millis),
            total_invocation_latency_ms: self.total_invocation.map(millis),
            latency_scopes: self.calls.into_iter().collect(),
        };
        let found = compare(&read(&self.baseline)?, &read(&self.candidate)?, &tolerance);
        let verdict = judge(found, &expected);
        if self.json {
            terminal::print_json(&verdict)?;
        } else {
            let mut lines: Vec<String> = verdict
                .unexplained
                .iter()
                .map(ToString::to_string)
                .collect();
            lines.extend(verdict.explained.iter().map(|it| format!("expected: {it}")));
            lines.extend(verdict.missing.iter().map(|it| {
                format!(
                    "expected and not there: {}  {}",
                    it.class.as_str(),
                    it.scope
                )
            }));
            let verdict = if verdict.passed() {
                "no difference to explain"
            } else {
                "they differ"
            };
            lines.push(format!(
                "{} and {}: {verdict}",
                self.baseline.display(),
                self.candidate.display()
            ));
            terminal::print(terminal::of_lines(&lines))?;
        }
        if verdict.passed() {
            Ok(())
        } else {
            Err(Problem::Reported)
        }
    }
}

fn millis(time: std::time::Duration) -> u64 {
    time.as_millis() as u64
}

fn read(file: &Path) -> Result<Vec<Entry>, Problem> {
    let name = file.display();
    let mut timeline =
        Timeline::open(file).map_err(|error| Problem::input(format!("{name}: {error}")))?;
    let entries = timeline
        .entries()
        .map_err(|error| Problem::failure(format!("{name}: {error}")))?;
    for problem in timeline.report().problems() {
        terminal::note(format!("{name}: {problem}"));
    }
    Ok(entries)
}

fn read_cursor(path: &Path) -> Result<Cursor, Problem> {
    read_json(path)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Problem> {
    let name = path.display();
    let text =
        fs::read_to_string(path).map_err(|error| Problem::input(format!("{name}: {error}")))?;
    serde_json::from_str(&text).map_err(|error| Problem::input(format!("{name}: {error}")))
}
