//! `rspp validate`: is this pipeline or policy good, and if not, where and why?

use std::path::PathBuf;

use clap::{Args, Subcommand};
use rspp_proto::spec::{Diagnostic, Mode, Severity};
use serde::Serialize;

use crate::{
    problem::Problem,
    specs::{self, Refused},
    terminal,
};

/// Check a pipeline or policy file, with the place of everything that is wrong.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp validate spec pipeline.yaml               Exact schema version, no unknown fields
  rspp validate spec pipeline.yaml --relaxed     Unknown fields are only warned about
  rspp validate policy policy.yaml --json        For programs
  rspp validate spec -                           From standard input
  rspp lint policy policy.yaml                   The same by another name

Exit code 2 if the file is wrong.")]
pub(crate) struct Validate {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Check a pipeline: fields, names, and the graph's ports, cycles and scopes
    Spec(Target),
    /// Check a policy bundle
    Policy(Target),
}

#[derive(Debug, Args)]
struct Target {
    /// YAML or JSON; `-` reads standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Accept other versions of the schema, and warn about unknown fields only
    #[arg(long)]
    relaxed: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Target {
    fn mode(&self) -> Mode {
        if self.relaxed {
            Mode::Relaxed
        } else {
            Mode::Strict
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Verdict<'a> {
    file: String,
    valid: bool,
    diagnostics: &'a [Diagnostic],
}

impl Validate {
    pub(crate) fn run(self) -> Result<(), Problem> {
        match self.what {
            What::Spec(target) => {
                let checked = specs::pipeline(&target.file, target.mode()).map(|(parsed, _)| {
                    let spec = parsed.spec;
                    let good = format!(
                        "valid pipeline {}: {} nodes, {} edges",
                        spec.version,
                        spec.nodes.len(),
                        spec.edges.len()
                    );
                    (good, parsed.warnings)
                });
                tell(&target, checked)
            }
            What::Policy(target) => {
                let checked = specs::policy(&target.file, target.mode()).map(|parsed| {
                    let good = format!("valid policy {}", parsed.spec.policy_resolution_snapshot);
                    (good, parsed.warnings)
                });
                tell(&target, checked)
            }
        }
    }
}

fn tell(
    target: &Target,
    checked: Result<(String, Vec<Diagnostic>), Refused>,
) -> Result<(), Problem> {
    let name = target.file.display().to_string();
    let (good, diagnostics) = match checked {
        Ok((good, warnings)) => (Some(good), warnings),
        Err(Refused::Wrong(diagnostics)) => (None, diagnostics),
        Err(unreadable @ Refused::Unreadable(_)) => return Err(unreadable.into_problem("")),
    };
    if target.json {
        terminal::print_json(&Verdict {
            file: name,
            valid: good.is_some(),
            diagnostics: &diagnostics,
        })?;
        return match good {
            Some(_) => Ok(()),
            None => Err(Problem::InputReported),
        };
    }
    for diagnostic in &diagnostics {
        let kind = match diagnostic.severity {
            Severity::Error => "error: ",
            // It says so itself.
            Severity::Warning => "",
        };
        terminal::note(format!("{kind}{diagnostic}"));
    }
    match good {
        Some(good) => terminal::print(format!("{name}: {good}")),
        None => Err(Problem::InputReported),
    }
}
