//! `rspp plan`: what a turn would run with, and who decided each value.

use std::path::PathBuf;

use clap::Args;
use rspp_kernel::plan::{Layer, Origin, ResolvedTurnPlan, inserted};
use serde_json::Value;

use crate::{call::providers::ProviderOptions, problem::Problem, specs::Setup, terminal};

/// Show the plan that a turn would run with, and where each value came from.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp plan                                      The built-in pipeline
  rspp plan --pipeline p.yaml --policy q.yaml    Yours
  rspp plan --llm openai budgets                 Only what begins with `budgets`
  rspp plan --policy q.yaml --graph              The nodes and edges, a policy's included
  rspp plan --mermaid                            The same as a Mermaid flowchart
  rspp plan --json                               The whole plan, for programs")]
pub(crate) struct Plan {
    /// Show only values whose path begins with this, such as `budgets` or `edge_buffer_policies`
    #[arg(value_name = "PATH")]
    only: Option<String>,
    /// The pipeline; the built-in one without
    #[arg(long, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    /// A policy bundle that overrides it
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Show the graph that would run, instead of the plan
    #[arg(long)]
    graph: bool,
    /// Show that graph as a Mermaid flowchart
    #[arg(long, conflicts_with = "json")]
    mermaid: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    providers: ProviderOptions,
}

impl Plan {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let settings = self.providers.settings()?;
        let setup = Setup::load(self.pipeline.as_deref(), self.policy.as_deref(), settings)?;
        if self.graph || self.mermaid {
            let view = setup.graph.view(inserted(setup.policy.as_ref()));
            return match (self.json, self.mermaid) {
                (true, _) => terminal::print_json(&view),
                (false, true) => terminal::print(view.mermaid()),
                (false, false) => terminal::print(view.to_string()),
            };
        }
        let plan = setup.plan()?;
        if self.json {
            return terminal::print_json(&plan);
        }
        terminal::print(text(&plan, self.only.as_deref())?)
    }
}

fn text(plan: &ResolvedTurnPlan, only: Option<&str>) -> Result<String, Problem> {
    let values = serde_json::to_value(plan).map_err(Problem::failure)?;
    let rows: Vec<(String, String, String)> = plan
        .resolved_values()
        .into_iter()
        .filter(|path| only.is_none_or(|only| path.starts_with(only)))
        .map(|path| {
            let value = values
                .pointer(&format!("/{path}"))
                .map_or_else(String::new, short);
            let origin = plan.origin(&path).map_or_else(|| "unknown".into(), origin);
            (path, value, origin)
        })
        .collect();
    if rows.is_empty() {
        let only = only.unwrap_or_default();
        let sections = plan.resolved_values();
        let mut sections: Vec<&str> = sections
            .iter()
            .filter_map(|path| path.split('/').next())
            .collect();
        sections.dedup();
        return Err(Problem::input(format!(
            "nothing in the plan begins with `{only}`; there are: {}",
            sections.join(", ")
        )));
    }
    let path_width = rows
        .iter()
        .map(|row| row.0.chars().count())
        .max()
        .unwrap_or(0);
    let value_width = rows
        .iter()
        .map(|row| row.1.chars().count())
        .max()
        .unwrap_or(0);
    let mut lines = Vec::new();
    if only.is_none() {
        lines.extend([
            format!("plan      {}", plan.plan_hash),
            format!("policy    {}", plan.policy_hash),
            format!(
                "pipeline  {} ({})",
                plan.pipeline_version,
                plan.execution_profile.as_str()
            ),
            format!("graph     {}", plan.graph_definition_ref),
            String::new(),
        ]);
    }
    lines.extend(rows.into_iter().map(|(path, value, origin)| {
        format!("{path:path_width$}  {value:value_width$}  {origin}")
    }));
    Ok(terminal::of_lines(&lines))
}

fn short(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    }
}

/// The layer's own name, which for most layers says which layer it is.
fn origin(origin: &Origin) -> String {
    let layer = match origin.layer {
        Layer::ExecutionProfile => return origin.source.clone(),
        Layer::Defaults => "defaults",
        Layer::Pipeline => "pipeline",
        Layer::Environment => "environment",
        Layer::Tenant => "tenant",
        Layer::Session => "session",
        Layer::PolicyBundle => "policy",
        Layer::Posture => "degrade",
    };
    if origin.source.starts_with(layer) {
        origin.source.clone()
    } else {
        format!("{layer}: {}", origin.source)
    }
}
