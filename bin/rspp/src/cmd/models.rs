//! `rspp models`: the models that the local providers run.

use std::path::PathBuf;

use clap::{Args, Subcommand, builder::PossibleValuesParser, builder::TypedValueParser};
use rspp_local::models::{ModelId, ModelState, Store};
use serde::Serialize;

use crate::{
    problem::Problem,
    terminal::{self, PullDisplay, size},
};

/// List, fetch and check the local models.
///
/// Models are fetched once by your own `pip`, checked against pinned checksums, and kept in a cache
/// directory.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp models list                 What is there and what is not
  rspp models pull                 Fetch all that is missing
  rspp models pull piper-joe       Fetch one
  rspp models verify --json        Compare every file with its checksum")]
pub(crate) struct Models {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show each model's state, size, licence and use
    List(Options),
    /// Fetch models that are not there, and replace broken ones
    Pull(Selection),
    /// Read all files of the models that are there and compare their checksums
    Verify(Selection),
}

/// Where the models are.
#[derive(Debug, Args)]
pub(crate) struct StoreOptions {
    /// Directory of the models [default: ~/.cache/rspp/models]
    #[arg(
        long,
        help_heading = "Models",
        value_name = "DIR",
        env = "RSPP_MODEL_DIR",
        hide_env_values = true
    )]
    models: Option<PathBuf>,
}

impl StoreOptions {
    pub(crate) fn open(&self) -> Result<Store, Problem> {
        Store::open(self.models.as_deref()).map_err(Problem::input)
    }
}

#[derive(Debug, Args)]
struct Options {
    #[command(flatten)]
    store: StoreOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Selection {
    /// Which models; all if none is named
    #[arg(value_name = "MODEL", value_parser = model_parser())]
    models_named: Vec<ModelId>,
    #[command(flatten)]
    options: Options,
}

fn model_parser() -> impl TypedValueParser<Value = ModelId> {
    PossibleValuesParser::new(ModelId::ALL.map(ModelId::as_str))
        .map(|name| name.parse().expect("only known names are possible"))
}

impl Selection {
    fn ids(&self) -> Vec<ModelId> {
        if self.models_named.is_empty() {
            ModelId::ALL.into()
        } else {
            self.models_named.clone()
        }
    }
}

impl Models {
    pub(crate) fn run(self) -> Result<(), Problem> {
        match self.action {
            Action::List(options) => list(&options),
            Action::Pull(selection) => pull(&selection),
            Action::Verify(selection) => verify(&selection),
        }
    }
}

/// One model, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Row {
    model: &'static str,
    state: &'static str,
    /// What it takes on disk, or would.
    bytes: u64,
    download_bytes: u64,
    licence: &'static str,
    purpose: &'static str,
    package: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Row {
    fn new(id: ModelId, state: ModelState) -> Self {
        let model = id.model();
        let (state, bytes, problem) = match state {
            ModelState::Ready { bytes } => ("ready", bytes, None),
            ModelState::Missing => ("missing", model.stored_bytes(), None),
            ModelState::Broken { problem } => ("broken", model.stored_bytes(), Some(problem)),
        };
        Self {
            model: id.as_str(),
            state,
            bytes,
            download_bytes: model.download_bytes(),
            licence: model.licence,
            purpose: model.purpose,
            package: model.package.requirement(),
            problem,
        }
    }

    fn is_ready(&self) -> bool {
        self.state == "ready"
    }
}

fn list(options: &Options) -> Result<(), Problem> {
    let store = options.store.open()?;
    let rows: Vec<Row> = store
        .status()
        .into_iter()
        .map(|status| Row::new(status.id, status.state))
        .collect();
    if options.json {
        return terminal::print_json(&rows);
    }
    terminal::print(format!(
        "Models in {}\n\n{}",
        store.root().display(),
        table(&rows)
    ))?;
    let to_fetch: u64 = rows
        .iter()
        .filter(|row| !row.is_ready())
        .map(|row| row.download_bytes)
        .sum();
    if to_fetch > 0 {
        terminal::note(format!(
            "\n`rspp models pull` fetches what is not ready ({})",
            size(to_fetch)
        ));
    }
    Ok(())
}

fn pull(selection: &Selection) -> Result<(), Problem> {
    let store = selection.options.store.open()?;
    let ids = selection.ids();
    let mut display = PullDisplay::new();
    store
        .pull(&ids, &mut |progress| display.show(progress))
        .map_err(Problem::failure)?;
    drop(display);
    if selection.options.json {
        let rows: Vec<Row> = ids
            .iter()
            .map(|&id| Row::new(id, store.state(id)))
            .collect();
        terminal::print_json(&rows)?;
    }
    Ok(())
}

fn verify(selection: &Selection) -> Result<(), Problem> {
    let store = selection.options.store.open()?;
    let rows: Vec<Row> = selection
        .ids()
        .into_iter()
        .map(|id| {
            let state = match store.state(id) {
                ModelState::Missing => ModelState::Missing,
                ModelState::Ready { .. } | ModelState::Broken { .. } => match store.verify(id) {
                    Ok(bytes) => ModelState::Ready { bytes },
                    Err(error) => ModelState::Broken {
                        problem: error.to_string(),
                    },
                },
            };
            Row::new(id, state)
        })
        .collect();
    if selection.options.json {
        terminal::print_json(&rows)?;
    } else {
        terminal::print(table(&rows))?;
    }
    // What was never fetched is no fault unless it was asked for by name.
    let good =
        |row: &Row| row.is_ready() || (row.state == "missing" && selection.models_named.is_empty());
    if rows.iter().all(good) {
        Ok(())
    } else {
        Err(Problem::Reported)
    }
}

fn table(rows: &[Row]) -> String {
    let name = rows.iter().map(|row| row.model.len()).max().unwrap_or(0);
    let purpose = rows.iter().map(|row| row.purpose.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for row in rows {
        lines.push(format!(
            "{:name$}  {:7}  {:>9}  {:purpose$}  {}",
            row.model,
            row.state,
            size(row.bytes),
            row.purpose,
            row.licence,
        ));
        if let Some(problem) = &row.problem {
            lines.push(format!("{:name$}  {problem}", ""));
        }
    }
    terminal::of_lines(&lines)
}
