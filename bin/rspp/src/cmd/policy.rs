//! `rspp policy`: published versions of policies and provider configurations.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use rspp_controlplane_api::wire::Kind;

use crate::{
    control::{
        Remote,
        artifacts::{self, Draft},
    },
    problem::Problem,
};

/// Publish policies and provider configurations, and look at what is published.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp policy publish careful.yaml --version greeter-3              A policy for the line `greeter`
  rspp policy publish models.yaml --version greeter-4 --providers   How its providers are called
  rspp policy list                                                  All policies
  rspp policy get greeter-3                                         The text as it was published
  rspp policy diff greeter-2 greeter-3                              What changed

A policy rolls forward and back by itself: `rspp rollout set --policy`.")]
pub(crate) struct Policy {
    #[command(flatten)]
    remote: Remote,
    /// Provider configurations instead of policies
    #[arg(long, global = true)]
    providers: bool,
    #[command(subcommand)]
    what: What,
}

/// What files may say.
const SAMPLES: &str = "\
A policy, beside whichever of the five surfaces it overrides (deploy/policies/light.yaml has all):

  schema: rspp.policy.bundle.v1
  policy_resolution_snapshot: policy/careful-1
  allowed_adaptive_actions: [retry, provider_switch, fallback]
  node_execution_policies: {llm: {concurrency_limit: 2}}

A provider configuration (--providers), which says nothing but `providers`:

  schema: rspp.policy.bundle.v1
  policy_resolution_snapshot: providers/models-1
  allowed_adaptive_actions: []
  providers: {caps: {turn: {tts_characters: 2000}, action: refuse}}";

#[derive(Debug, Subcommand)]
enum What {
    /// Publish a policy bundle
    #[command(after_help = SAMPLES)]
    Publish {
        /// YAML or JSON
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// What to call it, e.g. `greeter-3`
        #[arg(long, value_name = "NAME")]
        version: String,
        /// For people and searches; alters nothing
        #[arg(long, value_name = "KEY=VALUE", value_parser = artifacts::label)]
        label: Vec<(String, String)>,
        /// Only check
        #[arg(long)]
        dry_run: bool,
    },
    /// List versions
    List {
        /// Only of this line
        #[arg(long, default_value = "", hide_default_value = true)]
        line: String,
        /// Only with this label
        #[arg(long, value_name = "KEY=VALUE", value_parser = artifacts::label)]
        label: Vec<(String, String)>,
    },
    /// Print a version as it was published
    Get {
        /// Its name
        version: String,
    },
    /// Show what changed between two versions
    Diff {
        /// The older one
        old: String,
        /// The newer one
        new: String,
    },
}

impl Policy {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let remote = self.remote;
        let kind = if self.providers {
            Kind::Providers
        } else {
            Kind::Policy
        };
        match self.what {
            What::Publish {
                file,
                version,
                label,
                dry_run,
            } => {
                let draft = Draft {
                    kind,
                    version,
                    source: artifacts::read(&file)?,
                    labels: label,
                    dry_run,
                };
                remote.run(|client| artifacts::publish(&remote, client, draft))
            }
            What::List { line, label } => {
                let labels = label.into_iter().collect();
                remote.run(|client| artifacts::list(&remote, client, kind, &line, labels))
            }
            What::Get { version } => {
                remote.run(|client| artifacts::get(&remote, client, kind, &version))
            }
            What::Diff { old, new } => {
                remote.run(|client| artifacts::diff(&remote, client, kind, &old, &new))
            }
        }
    }
}
