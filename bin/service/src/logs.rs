//! Logs: to standard error, for people or for programs.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing_subscriber::{EnvFilter, filter::ParseError};

/// Who reads the logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// People.
    #[default]
    Human,
    /// Programs: a JSON object a line.
    Json,
}

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logs {
    /// Who reads them.
    pub format: Format,
    /// What is logged: a level, or levels by part, such as `info,rspp_host=debug`.
    pub filter: String,
}

impl Default for Logs {
    fn default() -> Self {
        Self {
            format: Format::default(),
            filter: "info".to_owned(),
        }
    }
}

/// A filter that is none.
#[derive(Debug, Error)]
#[error("log.filter: `{filter}` is no filter: write a level, or `part=level` with commas between")]
pub struct LogsError {
    filter: String,
    source: ParseError,
}

/// Logs from here on.
pub fn init(logs: &Logs) -> Result<(), LogsError> {
    let filter = EnvFilter::try_new(&logs.filter).map_err(|source| LogsError {
        filter: logs.filter.clone(),
        source,
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match logs.format {
        Format::Human => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        Format::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
