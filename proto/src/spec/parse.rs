//! Reads specs from text: shape first, then meaning, everything that is wrong at once.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::{
    LimitsSpec, PackageSpec, PipelineSpec, PolicyBundle,
    diagnostic::{Diagnostic, Diagnostics, Severity},
    package,
    report::Report,
    rules,
    shape::Shape,
    source::{self, Node},
};
use crate::schema;

/// The schema that pipelines are written against.
pub const PIPELINE_SCHEMA: &str = "rspp.pipeline.v1";
/// The schema that policy bundles are written against.
pub const POLICY_SCHEMA: &str = "rspp.policy.bundle.v1";

/// The schema that limits are written against; a part of settings, so that they do not name it.
pub const LIMITS_SCHEMA: &str = "rspp.limits.v1";

/// The schema that packages of nodes are written against.
pub const PACKAGE_SCHEMA: &str = "rspp.package.v1";

/// The built-in pipeline.
const SIMPLE: &str = include_str!("templates/simple.yaml");

/// How closely a spec has to keep to its schema (gates.md §4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The exact schema version; unknown fields are errors.
    #[default]
    Strict,
    /// Any version of the schema; unknown fields are dropped with a warning.
    Relaxed,
}

/// A spec that may be used, and what someone should look at.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed<T> {
    /// The spec.
    pub spec: T,
    /// What is odd about it; empty for a good spec.
    pub warnings: Vec<Diagnostic>,
}

impl PipelineSpec {
    /// Reads and checks a pipeline from YAML or JSON; `file` is what diagnostics call it.
    pub fn parse(file: &str, text: &str, mode: Mode) -> Result<Parsed<Self>, Diagnostics> {
        parse(file, text, mode, PIPELINE_SCHEMA, |spec: &Self, check| {
            check.schema(&spec.schema);
            rules::pipeline(spec, check);
        })
    }

    /// The built-in pipeline: one user, one agent, turn by turn, with barge-in (F-079).
    ///
    /// Names no provider; those are the policy's choice.
    ///
    /// # Panics
    /// Never: a test holds the template to strict mode.
    pub fn simple() -> Self {
        Self::parse("simple.yaml", SIMPLE, Mode::Strict)
            .expect("the template is valid, a test sees to it")
            .spec
    }

    /// The built-in pipeline as text, for people to start from.
    pub const fn simple_template() -> &'static str {
        SIMPLE
    }
}

impl PolicyBundle {
    /// Reads and checks a policy bundle from YAML or JSON; `file` is what diagnostics call it.
    pub fn parse(file: &str, text: &str, mode: Mode) -> Result<Parsed<Self>, Diagnostics> {
        parse(file, text, mode, POLICY_SCHEMA, |spec: &Self, check| {
            check.schema(&spec.schema);
            rules::policy(spec, check);
        })
    }
}

impl PackageSpec {
    /// Reads and checks what a package says of itself, from YAML or JSON; `file` is what diagnostics call it.
    pub fn parse(file: &str, text: &str, mode: Mode) -> Result<Parsed<Self>, Diagnostics> {
        parse(file, text, mode, PACKAGE_SCHEMA, |spec: &Self, check| {
            check.schema(&spec.schema);
            package::rules(spec, check);
        })
    }
}

impl LimitsSpec {
    /// Reads and checks what a node takes on, from YAML or JSON; `file` is what diagnostics call it.
    pub fn parse(file: &str, text: &str, mode: Mode) -> Result<Parsed<Self>, Diagnostics> {
        parse(file, text, mode, LIMITS_SCHEMA, rules::limits)
    }
}

fn parse<T: DeserializeOwned + JsonSchema>(
    file: &str,
    text: &str,
    mode: Mode,
    family: &'static str,
    rules: impl FnOnce(&T, &mut Check<'_, '_>),
) -> Result<Parsed<T>, Diagnostics> {
    let mut report = Report::new(file);
    let mut tree = match source::read(text) {
        Ok(tree) => tree,
        Err(error) => {
            let hint = error.hint.map(str::to_owned);
            report.error("unreadable", error.at, "", error.message, hint);
            return Err(report.into_errors());
        }
    };
    let shape = Shape {
        root: &schema::authored::<T>(),
        unknown_fields: match mode {
            Mode::Strict => Severity::Error,
            Mode::Relaxed => Severity::Warning,
        },
    };
    shape.check(&mut tree, &mut report);
    let spec = match serde_path_to_error::deserialize::<_, T>(tree.to_json()) {
        Ok(spec) => spec,
        Err(error) => {
            // What the schema can say has been said, in better words.
            if !report.has_errors() {
                let path = error.path().to_string();
                let path = if path == "." { String::new() } else { path };
                let at = tree.locate(&path);
                let message = error.into_inner().to_string();
                report.error("invalid_value", at, &path, message, None);
            }
            return Err(report.into_errors());
        }
    };
    let mut check = Check {
        tree: &tree,
        report: &mut report,
        schema: family,
        mode,
    };
    rules(&spec, &mut check);
    report.finish().map(|warnings| Parsed { spec, warnings })
}

/// What the rules of meaning report through: paths become places.
pub(super) struct Check<'a, 'f> {
    tree: &'a Node,
    report: &'a mut Report<'f>,
    schema: &'static str,
    mode: Mode,
}

impl Check<'_, '_> {
    pub(super) fn error(
        &mut self,
        code: &'static str,
        path: &str,
        message: impl Into<String>,
        hint: impl Into<Option<String>>,
    ) {
        let at = self.tree.locate(path);
        self.report
            .error(code, at, path, message.into(), hint.into());
    }

    pub(super) fn warn(&mut self, code: &'static str, path: &str, message: impl Into<String>) {
        let at = self.tree.locate(path);
        self.report
            .add(Severity::Warning, code, at, path, message.into(), None);
    }

    /// The line that a field stands on.
    pub(super) fn line(&self, path: &str) -> usize {
        self.tree.locate(path).line
    }

    fn schema(&mut self, found: &str) {
        let family = self.schema.trim_end_matches(|c: char| c.is_ascii_digit());
        let fits = match self.mode {
            Mode::Strict => found == self.schema,
            Mode::Relaxed => found.starts_with(family),
        };
        if !fits {
            let hint = format!("write `schema: {}`", self.schema);
            self.error(
                "unknown_schema",
                "schema",
                format!("schema `{found}` is not read here"),
                hint,
            );
        }
    }
}
