//! `rspp plan`: what a turn would run with, and who decided each value.

use std::path::{Path, PathBuf};

use clap::Args;
use rspp_kernel::{
    graph::GraphView,
    plan::{Layer, Origin, ResolvedTurnPlan, inserted},
};
use rspp_proto::{Epoch, SessionId, TenantId, TurnId, TurnNumber, spec::PipelineSpec};
use rspp_timeline::{Entry, Timeline};
use serde::{Deserialize, Serialize};
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
  rspp plan --session call.rspp                  What a recorded session ran, by its newest turn
  rspp plan --session call.rspp --graph          Its nodes and edges, a policy's included
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
    /// The timeline of a session: show what it ran, with the policy's nodes and the chosen providers
    #[arg(long, value_name = "FILE", conflicts_with_all = ["pipeline", "policy"])]
    session: Option<PathBuf>,
    /// The session's turn; the newest without
    #[arg(long, value_name = "N", requires = "session")]
    turn: Option<u32>,
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
        if let Some(file) = &self.session {
            return self.of_session(file);
        }
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

/// What `--json` prints of a session: the effective pipeline, bound to the session that ran it (F-081).
#[derive(Serialize)]
struct Resolved<'a> {
    session_id: &'a SessionId,
    tenant_id: &'a TenantId,
    authority_epoch: Epoch,
    turn_id: &'a TurnId,
    /// With the nodes that the policy inserted.
    pipeline: &'a PipelineSpec,
    graph: GraphView,
    plan: &'a ResolvedTurnPlan,
}

impl Plan {
    fn of_session(&self, file: &Path) -> Result<(), Problem> {
        let name = file.display();
        let wrong = |what: String| Problem::input(format!("{name}: {what}"));
        let entries = Timeline::open(file)
            .map_err(|error| wrong(error.to_string()))?
            .entries()
            .map_err(|error| Problem::failure(format!("{name}: {error}")))?;
        let opening = entries.iter().find_map(|entry| match entry {
            Entry::Opening(opening) => Some(opening),
            _something_else => None,
        });
        let opening = opening.ok_or_else(|| {
            wrong("does not hold what the session was opened with; record it anew".to_owned())
        })?;
        let unreadable = |error: serde_json::Error| wrong(error.to_string());
        let policy = opening.policy.as_deref().map(Deserialize::deserialize);
        let setup = Setup::of(
            Deserialize::deserialize(&*opening.pipeline).map_err(unreadable)?,
            policy.transpose().map_err(unreadable)?,
            Deserialize::deserialize(&*opening.settings).map_err(unreadable)?,
        )?;
        let view = setup.graph.view(inserted(setup.policy.as_ref()));
        let wanted = self.turn.map(|turn| TurnNumber(turn).id());
        let mut plans = entries.iter().filter_map(|entry| match entry {
            Entry::Plan(plan) => Some(plan),
            _no_plan => None,
        });
        let newest = plans.rfind(|plan| wanted.as_ref().is_none_or(|turn| plan.turn_id == *turn));
        let found = newest.ok_or_else(|| match &wanted {
            Some(turn) => wrong(format!("has no plan of {turn}")),
            None => wrong("no turn was opened, so that no plan was resolved".to_owned()),
        });
        if (self.graph || self.mermaid) && !self.json {
            return terminal::print(if self.mermaid {
                view.mermaid()
            } else {
                view.to_string()
            });
        }
        let found = found?;
        let plan: ResolvedTurnPlan =
            serde_json::from_value(found.plan.to_value()).map_err(unreadable)?;
        if self.json {
            return terminal::print_json(&Resolved {
                session_id: &opening.session_id,
                tenant_id: &opening.tenant_id,
                authority_epoch: plan.authority_epoch,
                turn_id: &found.turn_id,
                pipeline: &setup.spec,
                graph: view,
                plan: &plan,
            });
        }
        let table = text(&plan, self.only.as_deref())?;
        let of = format!("session   {} ({})\n", opening.session_id, found.turn_id);
        terminal::print(of + &table)
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
        Layer::ProviderSettings => "providers",
        Layer::Posture => "degrade",
    };
    if origin.source.starts_with(layer) {
        origin.source.clone()
    } else {
        format!("{layer}: {}", origin.source)
    }
}
