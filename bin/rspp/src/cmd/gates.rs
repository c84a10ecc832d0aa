//! `rspp gates`: do these runs keep what a release promises?

use std::path::PathBuf;

use clap::Args;
use rspp_timeline::{Timeline, gates};

use crate::{problem::Problem, terminal};

/// Judge recorded calls by the seven quality gates.
///
/// Latencies, authority, evidence and endings of all turns in these timelines, against the limits of
/// the specification. A gate whose data is missing fails: record enough calls, with an interruption
/// among them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp gates calls/*.rspp                                      All calls together
  rspp gates calls/*.rspp --json > gates.json                  For programs
  rspp rehearse load.yaml --timelines calls && rspp gates calls/*.rspp

Exit code 1 if a gate fails.")]
pub(crate) struct Gates {
    /// Timelines
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Gates {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let mut gates = gates::Gates::default();
        for file in &self.files {
            let name = file.display();
            let mut timeline =
                Timeline::open(file).map_err(|error| Problem::input(format!("{name}: {error}")))?;
            let entries = timeline
                .entries()
                .map_err(|error| Problem::failure(format!("{name}: {error}")))?;
            for problem in timeline.report().problems() {
                terminal::note(format!("{name}: {problem}"));
            }
            gates.add(&entries);
        }
        let report = gates.report();
        if self.json {
            terminal::print_json(&report)?;
        } else {
            terminal::print(report.to_string())?;
        }
        if report.passed {
            Ok(())
        } else {
            Err(Problem::Reported)
        }
    }
}
