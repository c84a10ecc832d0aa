//! What a package of a node says of itself (F-011, F-121).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SandboxPolicy, parse::Check};
use crate::{canonical, external::PROTOCOL};

/// What the file of a package is called, in the package's own folder.
pub const PACKAGE_FILE: &str = "package.yaml";

/// A kind of node that others wrote: a program, apart from all pipelines, under a version that never
/// changes. A pipeline names it as `kind: { custom: name@version }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PackageSpec {
    /// `rspp.package.v1`.
    pub schema: String,
    /// The kind's name: lower-case letters, digits, `-` and `_`.
    pub name: String,
    /// Numbers with dots between, such as `1.2.0`.
    pub version: String,
    /// The protocol that it speaks: `rspp.external.v1`.
    pub protocol: String,
    /// The file that is run, by its path in the folder.
    pub program: String,
    /// What runs the file if it does not run by itself, such as `/usr/bin/python3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpreter: Option<String>,
    /// What the program is given when it starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
    /// SHA-256 of all that belongs to it, by paths in the folder; `rspp package pack` writes them.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// What it may take.
    #[serde(default)]
    pub limits: PackageLimits,
    /// What it may touch. It is always kept from files that are not its own.
    #[serde(default)]
    pub sandbox: SandboxPolicy,
    /// For people; never alters what it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// What the processes of a package may take (F-107, turn-plan.md §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PackageLimits {
    /// From its start to its first answer, in milliseconds.
    #[schemars(range(min = 1))]
    pub start_timeout_ms: u64,
    /// From an event to the first that it has to say to it, and from each to the next, in milliseconds.
    #[schemars(range(min = 1))]
    pub event_timeout_ms: u64,
    /// Address space of one process, in MiB.
    #[schemars(range(min = 1))]
    pub memory_mib: u64,
    /// Processes at once, over all sessions.
    #[schemars(range(min = 1))]
    pub processes: u32,
    /// Processor time of one process, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub cpu_seconds: Option<u32>,
}

impl Default for PackageLimits {
    fn default() -> Self {
        Self {
            start_timeout_ms: 2_000,
            event_timeout_ms: 500,
            memory_mib: 256,
            processes: 64,
            cpu_seconds: None,
        }
    }
}

impl PackageSpec {
    /// What pipelines name: `name@version`.
    pub fn kind(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// SHA-256 over all that decides what it does, the digests of its files included.
    ///
    /// # Panics
    /// Never: a package is made of texts and numbers.
    pub fn digest(&self) -> String {
        let what_acts = Self {
            description: None,
            ..self.clone()
        };
        canonical::hash(&what_acts).expect("texts and numbers become JSON")
    }
}

/// The rules of packages.
pub(super) fn rules(spec: &PackageSpec, check: &mut Check<'_, '_>) {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    if spec.name.is_empty() || spec.name.len() > 64 || !spec.name.chars().all(is_name) {
        let hint = "e.g. `name: shout`".to_owned();
        let message = "must be of lower-case letters, digits, `-` and `_`, 64 at most";
        check.error("invalid_value", "name", message, hint);
    }
    let mut numbers = spec.version.split('.');
    if spec.version.len() > 64 || !numbers.all(|it| it.parse::<u32>().is_ok()) {
        let hint = "e.g. `version: 1.0.0`".to_owned();
        check.error(
            "invalid_value",
            "version",
            "must be numbers with dots between",
            hint,
        );
    }
    if spec.protocol != PROTOCOL {
        let found = &spec.protocol;
        check.error(
            "unknown_protocol",
            "protocol",
            format!("`{found}` is not spoken here"),
            format!("write `protocol: {PROTOCOL}`, and speak it"),
        );
    }
    for (path, digest) in &spec.files {
        let place = format!("files.{path}");
        if !stays_inside(path) {
            check.error(
                "invalid_path",
                &place,
                format!("`{path}` leads out of the package's folder"),
                "name files by their path in it".to_owned(),
            );
        }
        let is_digest = |it: &str| it.len() == 64 && it.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_digest(digest) || digest.bytes().any(|b| b.is_ascii_uppercase()) {
            let hint = "run `rspp package pack`".to_owned();
            check.error("invalid_value", &place, "is no SHA-256", hint);
        }
    }
    if !stays_inside(&spec.program) {
        check.error(
            "invalid_path",
            "program",
            "leads out of the package's folder",
            "what runs it is its `interpreter`".to_owned(),
        );
    }
    if let Some(interpreter) = &spec.interpreter
        && !interpreter.starts_with('/')
    {
        check.error(
            "invalid_path",
            "interpreter",
            "must be a whole path: nothing is searched for",
            "e.g. `interpreter: /usr/bin/python3`".to_owned(),
        );
    }
}

/// Whether a path names something below the folder it is seen from.
fn stays_inside(path: &str) -> bool {
    let is_part = |part: &str| !part.is_empty() && part != "." && part != "..";
    !path.contains('\\') && path.split('/').all(is_part)
}
