//! `rspp pipeline`: published versions of pipelines.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use rspp_controlplane_api::wire::Kind;
use rspp_proto::spec::Mode;

use crate::{
    control::{
        Remote,
        artifacts::{self, Draft},
    },
    problem::Problem,
    specs,
};

/// Publish pipelines, and look at what is published.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp pipeline publish greeter.yaml --label team=desk   A version is published once and never changes
  rspp pipeline publish greeter.yaml --dry-run           Would it be taken?
  rspp pipeline list --line greeter                      All versions of greeter
  rspp pipeline get greeter-1 > greeter.yaml             The text as it was published
  rspp pipeline diff greeter-1 greeter-2                 What changed

Published is not rolled out: `rspp rollout set` decides who gets it.")]
pub(crate) struct Pipeline {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Publish the version that a file says it is
    Publish {
        /// YAML or JSON
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// For people and searches; alters nothing
        #[arg(long, value_name = "KEY=VALUE", value_parser = artifacts::label)]
        label: Vec<(String, String)>,
        /// Only check, against what is published too
        #[arg(long)]
        dry_run: bool,
    },
    /// List versions
    List {
        /// Only of this line, e.g. `greeter` of `greeter-2`
        #[arg(long, default_value = "", hide_default_value = true)]
        line: String,
        /// Only with this label, or with this in its own `metadata`
        #[arg(long, value_name = "KEY=VALUE", value_parser = artifacts::label)]
        label: Vec<(String, String)>,
    },
    /// Print a version as it was published
    Get {
        /// Its name
        version: String,
    },
    /// Print what changed between two versions
    Diff {
        /// The earlier one
        old: String,
        /// The later one
        new: String,
    },
}

impl Pipeline {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let remote = self.remote;
        match self.what {
            What::Publish {
                file,
                label,
                dry_run,
            } => {
                // Wrong files are told of with the place of each fault, before anybody is asked.
                let check_with = format!("rspp validate spec {}", file.display());
                let wrong = |refused: specs::Refused| refused.into_problem(&check_with);
                let source = specs::read(&file).map_err(wrong)?;
                let (parsed, _) =
                    specs::pipeline_of(&file, &source, Mode::Strict).map_err(wrong)?;
                let draft = Draft {
                    kind: Kind::Pipeline,
                    version: parsed.spec.version.to_string(),
                    source,
                    labels: label,
                    dry_run,
                };
                remote.run(|client| artifacts::publish(&remote, client, draft))
            }
            What::List { line, label } => {
                let labels = label.into_iter().collect();
                remote.run(|client| artifacts::list(&remote, client, Kind::Pipeline, &line, labels))
            }
            What::Get { version } => {
                remote.run(|client| artifacts::get(&remote, client, Kind::Pipeline, &version))
            }
            What::Diff { old, new } => {
                remote.run(|client| artifacts::diff(&remote, client, Kind::Pipeline, &old, &new))
            }
        }
    }
}
