//! `rspp schema`: the definitions of events, signals and specs, by version (F-032).

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use jsonschema::Validator;
use rspp_proto::{
    abi::SchemaVersion,
    canonical,
    schema::{self, Registry},
};
use rspp_timeline::{Entry, Timeline};
use serde_json::{Value, json};

use crate::{control::table, problem::Problem, python, terminal};

/// See what events, signals and specs consist of, and hold recordings to it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp schema list                       Versions, their definitions and digests
  rspp schema show v1.0                  What a version consists of
  rspp schema show v1.0 event            Fields with types and meaning
  rspp schema show v1.0 --json           JSON Schemas in one document, for generators
  rspp schema show v1.0 --python         Types for Python
  rspp schema validate call.rspp         Does a recording keep to its version? No network, no server
  rspp schema digest                     Of what this build writes
  rspp schema digest call.rspp v1.0      Are two the same?

Exit code 2 if a recording does not keep to its version, or digests differ.")]
pub(crate) struct Schema {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List versions and what each consists of
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a version, or one of its definitions
    Show {
        /// The version, such as v1.0
        #[arg(value_name = "VERSION")]
        version: SchemaVersion,
        /// One definition
        #[arg(value_name = "NAME")]
        name: Option<String>,
        /// As JSON Schema
        #[arg(long, conflicts_with = "python")]
        json: bool,
        /// As types for Python
        #[arg(long, conflicts_with = "name")]
        python: bool,
    },
    /// Hold every record of a timeline to the version that it says it is of
    Validate {
        /// A timeline
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a digest, or compare two
    Digest {
        /// A version, a timeline, or a file of what `show VERSION --json` prints; this build's without
        #[arg(value_name = "OF", num_args = 0..=2)]
        of: Vec<String>,
    },
}

/// Mistakes that are told one by one.
const MOST_TOLD: usize = 20;

impl Schema {
    pub(crate) fn run(self) -> Result<(), Problem> {
        match self.what {
            What::List { json } => list(json),
            What::Show {
                version,
                name,
                json,
                python,
            } => show(&registry(version)?, name.as_deref(), json, python),
            What::Validate { file, json } => validate(&file, json),
            What::Digest { of } => digest(&of),
        }
    }
}

fn registry(version: SchemaVersion) -> Result<Registry, Problem> {
    Registry::of(version).map_err(Problem::input)
}

fn list(as_json: bool) -> Result<(), Problem> {
    let versions = Registry::versions().into_iter();
    let served: Vec<Registry> = versions.map(registry).collect::<Result<_, _>>()?;
    if as_json {
        let told = served.iter().map(|it| {
            let each = it.definitions.iter();
            let each: BTreeMap<_, _> = each.map(|it| (it.name, it.digest())).collect();
            json!({ "schema_version": it.version, "digest": it.digest(), "definitions": each })
        });
        return terminal::print_json(&told.collect::<Vec<_>>());
    }
    let mut rows = Vec::new();
    for registry in &served {
        let version = registry.version.to_string();
        let all = short(&registry.digest());
        rows.push([version.clone(), "(all)".to_owned(), all, String::new()]);
        rows.extend(registry.definitions.iter().map(|it| {
            let about = it.about().lines().next().unwrap_or_default().to_owned();
            let digest = short(&it.digest());
            [version.clone(), it.name.to_owned(), digest, about]
        }));
    }
    terminal::print(table(["VERSION", "NAME", "SHA-256", "ABOUT"], &rows))
}

fn short(digest: &str) -> String {
    digest[..16].to_owned()
}

fn show(
    registry: &Registry,
    name: Option<&str>,
    as_json: bool,
    as_python: bool,
) -> Result<(), Problem> {
    let version = registry.version;
    let chosen = match name {
        None => None,
        Some(name) => Some(registry.find(name).ok_or_else(|| {
            let known: Vec<_> = registry.definitions.iter().map(|it| it.name).collect();
            let known = known.join(", ");
            Problem::input(format!(
                "`{name}` is no definition of {version}; there are {known}"
            ))
        })?),
    };
    if as_python {
        return terminal::print(python::types(registry));
    }
    if as_json {
        return match chosen {
            Some(one) => terminal::print_json(&one.schema),
            None => terminal::print_json(&registry.bundle()),
        };
    }
    let mut text = String::new();
    for definition in &registry.definitions {
        if chosen.is_some_and(|it| it.name != definition.name) {
            continue;
        }
        let (name, digest, about) = (definition.name, definition.digest(), definition.about());
        writeln!(text, "{name} {version}  sha256 {digest}\n{about}\n")
            .expect("a string takes what is written");
        let fields = definition.fields().into_iter().map(|field| {
            let needed = if field.is_required { "yes" } else { "" };
            let about = field.about.replace('\n', " ");
            [field.name, field.holds, needed.to_owned(), about]
        });
        let rows: Vec<_> = fields.collect();
        text += &table(["FIELD", "TYPE", "REQUIRED", "MEANING"], &rows);
        text.push('\n');
    }
    terminal::print(text.trim_end())
}

/// What a record of a timeline is, where a version defines it.
fn record(entry: &Entry) -> Option<(&'static str, Result<Value, serde_json::Error>)> {
    match entry {
        Entry::Signal(signal) => Some(("control_signal", serde_json::to_value(signal))),
        Entry::Event(event) => Some(("event", serde_json::to_value(&event.record))),
        Entry::Outcome(outcome) => Some(("decision_outcome", serde_json::to_value(outcome))),
        Entry::Transition(step) => Some(("turn_transition", serde_json::to_value(step.step))),
        Entry::Opening(opening) => Some(("pipeline", Ok(Value::clone(&opening.pipeline)))),
        Entry::Header(_)
        | Entry::Plan(_)
        | Entry::Attempt(_)
        | Entry::Invocation(_)
        | Entry::Handoff(_)
        | Entry::Playout(_)
        | Entry::Level(_)
        | Entry::Dropped(_)
        | Entry::Turn(_)
        | Entry::Journal(_)
        | Entry::Tool(_)
        | Entry::Capture(_)
        | Entry::Footer(_) => None,
    }
}

fn validate(file: &Path, as_json: bool) -> Result<(), Problem> {
    let name = file.display().to_string();
    let wrong = |error: &dyn std::fmt::Display| Problem::input(format!("{name}: {error}"));
    let mut timeline = Timeline::open(file).map_err(|error| wrong(&error))?;
    let header = timeline.header().cloned();
    let version = header
        .as_ref()
        .map_or(SchemaVersion::CURRENT, |it| it.event_abi);
    let registry = Registry::of(version).map_err(|error| wrong(&error))?;
    let mut validators = BTreeMap::<&str, Validator>::new();
    for definition in &registry.definitions {
        let validator = jsonschema::validator_for(&definition.schema)
            .map_err(|error| Problem::failure(format!("{}: {error}", definition.name)))?;
        validators.insert(definition.name, validator);
    }
    let mut counts = BTreeMap::<&str, u64>::new();
    let mut mistakes = Vec::new();
    for item in timeline.by_ref() {
        let item = item.map_err(|error| wrong(&error))?;
        let Some((kind, value)) = record(&item.entry) else {
            continue;
        };
        let value = value.map_err(|error| wrong(&error))?;
        *counts.entry(kind).or_default() += 1;
        for error in validators[kind].iter_errors(&value) {
            let (index, place) = (item.index, error.instance_path());
            mistakes.push(format!("{name}: entry {index}, {kind}{place}: {error}"));
        }
    }
    // What cannot even be read keeps to nothing.
    for (offset, why) in &timeline.report().unreadable {
        mistakes.push(format!("{name}: byte {offset}: {why}"));
    }
    let digest = registry.digest();
    let recorded = header.and_then(|it| it.schema_digest);
    let is_same = recorded.as_ref().is_none_or(|it| *it == digest);
    if as_json {
        terminal::print_json(&json!({
            "file": name,
            "schema_version": version,
            "digest": digest,
            "recorded_digest": recorded,
            "records": counts,
            "valid": mistakes.is_empty(),
            "mistakes": mistakes,
        }))?;
    } else {
        for mistake in mistakes.iter().take(MOST_TOLD) {
            terminal::note(mistake);
        }
        if mistakes.len() > MOST_TOLD {
            terminal::note(format!("and {} more", mistakes.len() - MOST_TOLD));
        }
        if !is_same {
            terminal::note(format!(
                "{name}: was recorded under other definitions of {version} than this build has"
            ));
        }
        if mistakes.is_empty() {
            let counts: Vec<_> = counts
                .iter()
                .map(|(kind, n)| format!("{n} {kind}"))
                .collect();
            terminal::print(format!("{name}: valid {version}: {}", counts.join(", ")))?;
        }
    }
    if mistakes.is_empty() {
        Ok(())
    } else {
        Err(Problem::InputReported)
    }
}

/// The digest of a version, of what a recording was written under, or of a document of definitions.
fn digest_of(text: &str) -> Result<String, Problem> {
    if let Ok(version) = text.parse::<SchemaVersion>() {
        return Ok(registry(version)?.digest());
    }
    let path = Path::new(text);
    let wrong = |error: &dyn std::fmt::Display| Problem::input(format!("{text}: {error}"));
    if path.extension().is_some_and(|it| it == "json") {
        let read = fs::read_to_string(path).map_err(|error| wrong(&error))?;
        let bundle: Value = serde_json::from_str(&read).map_err(|error| wrong(&error))?;
        let Some(definitions) = bundle["definitions"].as_object() else {
            return Err(wrong(
                &"has no definitions; `rspp schema show VERSION --json` prints some",
            ));
        };
        let mut each = serde_json::Map::new();
        for (name, schema) in definitions {
            // The digest that it claims does not count.
            let digest = canonical::hash(schema).map_err(|error| wrong(&error))?;
            each.insert(name.clone(), digest.into());
        }
        return canonical::hash(&each).map_err(|error| wrong(&error));
    }
    let timeline = Timeline::open(path).map_err(|error| wrong(&error))?;
    let recorded = timeline.header().and_then(|it| it.schema_digest.clone());
    recorded.ok_or_else(|| wrong(&"was recorded by a build that wrote no digest"))
}

fn digest(of: &[String]) -> Result<(), Problem> {
    match of {
        [] => terminal::print(schema::DIGEST),
        [one] => terminal::print(digest_of(one)?),
        several => {
            let digests = several.iter().map(|it| digest_of(it));
            let digests: Vec<_> = digests.collect::<Result<_, _>>()?;
            let lines = digests.iter().zip(several);
            let lines: Vec<_> = lines
                .map(|(digest, of)| format!("{digest}  {of}"))
                .collect();
            terminal::print(lines.join("\n"))?;
            if digests.iter().all(|it| *it == digests[0]) {
                terminal::print("the same")
            } else {
                Err(Problem::input("they differ"))
            }
        }
    }
}
