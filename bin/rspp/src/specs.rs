//! Pipelines and policies from files, and the plan that follows from them.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use rspp_kernel::{
    graph::Graph,
    plan::{
        LayeredSettings, PlanInputs, ProviderInputs, ResolvedTurnPlan, SnapshotProvenance, resolve,
        with_insertions,
    },
};
use rspp_proto::{
    Epoch, ProviderId, TurnNumber,
    spec::{Diagnostic, Diagnostics, Modality, Mode, Parsed, PipelineSpec, PolicyBundle, Severity},
};

use crate::{problem::Problem, terminal};

/// Longest spec that is read.
const MOST_BYTES: u64 = 1 << 20;

/// A spec file that cannot be used.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It cannot be read at all.
    Unreadable(String),
    /// It says something wrong; in the order of the file.
    Wrong(Vec<Diagnostic>),
}

impl Refused {
    /// One message, for commands that are about something else.
    pub(crate) fn into_problem(self, check_with: &str) -> Problem {
        match self {
            Self::Unreadable(message) => Problem::input(message),
            Self::Wrong(diagnostics) => {
                let errors: Vec<&Diagnostic> = diagnostics
                    .iter()
                    .filter(|it| it.severity == Severity::Error)
                    .collect();
                let more = match errors.len() {
                    0 | 1 => String::new(),
                    n => format!(" (and {} more: {check_with})", n - 1),
                };
                let first = errors.first().map(ToString::to_string).unwrap_or_default();
                Problem::input(format!("{first}{more}"))
            }
        }
    }
}

/// The first of what is wrong with a part that stands within a file of another kind: the places that a diagnostic
/// names are those of a text that nobody wrote.
pub(crate) fn wrong_within(part: &str, Diagnostics(found): &Diagnostics) -> String {
    let mut errors = found.iter().filter(|it| it.severity == Severity::Error);
    let Some(first) = errors.next() else {
        return format!("{part}: is wrong");
    };
    let mut told = part.to_owned();
    if !first.path.is_empty() {
        told = format!("{told}.{}", first.path);
    }
    told = format!("{told}: {}", first.message);
    if let Some(hint) = &first.hint {
        told = format!("{told}; {hint}");
    }
    match errors.count() {
        0 => told,
        n => format!("{told} (and {n} more)"),
    }
}

/// Reads a pipeline, and compiles its graph.
pub(crate) fn pipeline(path: &Path, mode: Mode) -> Result<(Parsed<PipelineSpec>, Graph), Refused> {
    pipeline_of(path, &read(path)?, mode)
}

/// The same, of a text that has been read already.
pub(crate) fn pipeline_of(
    path: &Path,
    text: &str,
    mode: Mode,
) -> Result<(Parsed<PipelineSpec>, Graph), Refused> {
    let file = path.display().to_string();
    let parsed = PipelineSpec::parse(&file, text, mode)
        .map_err(|Diagnostics(found)| Refused::Wrong(found))?;
    let graph = Graph::compile(&parsed.spec).map_err(|errors| {
        let diagnostic = |error: rspp_kernel::graph::GraphError| Diagnostic {
            severity: Severity::Error,
            code: "graph",
            file: file.clone(),
            line: 1,
            column: 1,
            path: String::new(),
            message: error.to_string(),
            hint: None,
        };
        Refused::Wrong(errors.into_iter().map(diagnostic).collect())
    })?;
    Ok((parsed, graph))
}

/// Reads a policy bundle.
pub(crate) fn policy(path: &Path, mode: Mode) -> Result<Parsed<PolicyBundle>, Refused> {
    PolicyBundle::parse(&path.display().to_string(), &read(path)?, mode)
        .map_err(|Diagnostics(found)| Refused::Wrong(found))
}

pub(crate) fn read(path: &Path) -> Result<String, Refused> {
    let refuse = |what: &str| Refused::Unreadable(format!("{}: {what}", path.display()));
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin()
            .take(MOST_BYTES + 1)
            .read_to_string(&mut text)
    } else {
        fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text))
    };
    match read {
        Ok(bytes) if bytes as u64 > MOST_BYTES => Err(refuse("is longer than 1 MiB")),
        Ok(0) => Err(refuse("the file is empty")),
        Ok(_) => Ok(text),
        Err(error) => Err(refuse(&match error.kind() {
            std::io::ErrorKind::NotFound => "no such file".to_owned(),
            std::io::ErrorKind::InvalidData => "is not UTF-8 text".to_owned(),
            std::io::ErrorKind::IsADirectory => "is a directory, not a spec".to_owned(),
            _ => format!("cannot be read: {error}"),
        })),
    }
}

/// A pipeline as its author wrote it.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    path: PathBuf,
    /// The whole file.
    pub(crate) text: String,
}

/// Reads a pipeline's file, once: it may be the standard input.
pub(crate) fn source(path: &Path) -> Result<Source, Problem> {
    let text = read(path).map_err(|refused| refused.into_problem(&checked_with(path)))?;
    Ok(Source {
        path: path.to_owned(),
        text,
    })
}

fn checked_with(path: &Path) -> String {
    format!("rspp validate spec {}", path.display())
}

/// What a conversation runs: pipeline, policy and settings.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// The pipeline as it was given.
    pub(crate) authored: PipelineSpec,
    /// The same with what the policy inserts.
    pub(crate) spec: PipelineSpec,
    pub(crate) graph: Graph,
    pub(crate) policy: Option<PolicyBundle>,
    pub(crate) settings: LayeredSettings,
}

impl Setup {
    /// The pipeline and policy in these files; the built-in pipeline and no policy without.
    pub(crate) fn load(
        pipeline_file: Option<&Path>,
        policy_file: Option<&Path>,
        settings: LayeredSettings,
    ) -> Result<Self, Problem> {
        let source = pipeline_file.map(source).transpose()?;
        Self::of_source(source.as_ref(), policy_file, settings)
    }

    /// The same with a pipeline that has been read already.
    pub(crate) fn of_source(
        source: Option<&Source>,
        policy_file: Option<&Path>,
        settings: LayeredSettings,
    ) -> Result<Self, Problem> {
        let spec = if let Some(Source { path, text }) = source {
            let check_with = checked_with(path);
            let (parsed, _) = pipeline_of(path, text, Mode::Strict)
                .map_err(|refused| refused.into_problem(&check_with))?;
            warn(&parsed.warnings);
            parsed.spec
        } else {
            PipelineSpec::simple()
        };
        let policy = if let Some(path) = policy_file {
            let check_with = format!("rspp validate policy {}", path.display());
            let parsed =
                policy(path, Mode::Strict).map_err(|refused| refused.into_problem(&check_with))?;
            warn(&parsed.warnings);
            Some(parsed.spec)
        } else {
            None
        };
        Self::of(spec, policy, settings)
    }

    /// What is in memory already, with the nodes that the policy inserts.
    pub(crate) fn of(
        spec: PipelineSpec,
        policy: Option<PolicyBundle>,
        settings: LayeredSettings,
    ) -> Result<Self, Problem> {
        settings.check().map_err(Problem::input)?;
        let authored = spec;
        let spec = with_insertions(&authored, policy.as_ref()).map_err(Problem::input)?;
        let graph = Graph::compile(&spec).map_err(|errors| {
            let told: Vec<_> = errors.iter().map(ToString::to_string).collect();
            Problem::input(told.join("; "))
        })?;
        Ok(Self {
            authored,
            spec,
            graph,
            policy,
            settings,
        })
    }

    /// The plan that a first turn would run.
    pub(crate) fn plan(&self) -> Result<ResolvedTurnPlan, Problem> {
        let mut snapshots = SnapshotProvenance::local();
        if let Some(policy) = &self.policy {
            snapshots
                .policy_resolution_snapshot
                .clone_from(&policy.policy_resolution_snapshot);
        }
        let inputs = PlanInputs {
            spec: &self.spec,
            graph: &self.graph,
            graph_fingerprint: self.graph.fingerprint(),
            profile: self.spec.profile.as_str(),
            settings: &self.settings,
            policy: self.policy.as_ref(),
            snapshots: &snapshots,
            snapshots_fresh: true,
            providers: ProviderInputs::unknown(),
            degraded: false,
        };
        resolve(&inputs, &TurnNumber::FIRST.id(), Epoch::FIRST).map_err(Problem::input)
    }

    /// Every provider that some node may call, with what it is called for.
    pub(crate) fn providers(&self) -> Result<BTreeSet<(Modality, ProviderId)>, Problem> {
        let plan = self.plan()?;
        let mut used = BTreeSet::new();
        for node in &self.spec.nodes {
            let Some(modality) = Modality::of(&node.kind) else {
                continue;
            };
            for id in plan.node_bindings.get(&node.id).into_iter().flatten() {
                used.insert((modality, id.clone()));
            }
        }
        Ok(used)
    }
}

fn warn(warnings: &[Diagnostic]) {
    for warning in warnings {
        terminal::note(warning.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_pipeline_compiles() {
        let setup = Setup::load(None, None, LayeredSettings::default()).unwrap();
        assert_eq!(setup.spec.nodes.len(), 6);
    }
}
