//! Logs: to standard error, for people or for programs.

use std::{
    fmt::Display,
    io::IsTerminal,
    panic,
    sync::atomic::{AtomicBool, Ordering},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::Level;
use tracing_subscriber::{
    EnvFilter,
    filter::{FilterFn, ParseError, filter_fn},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::lines::JsonLines;

/// Who reads the logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// People.
    #[default]
    Human,
    /// Programs: a JSON object a line, see [`JsonLines`].
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

/// Whether standard error is read by a program, which is told of everything in JSON.
static FOR_PROGRAMS: AtomicBool = AtomicBool::new(false);

/// Libraries that log all that is said over their lines, keys and words among it, below this level: whoever
/// asks for everything gets everything but that (F-117).
const TALKATIVE: [(&str, Level); 1] = [("tungstenite", Level::DEBUG)];

/// Keeps what is said over lines out of logs, whatever else lets it through.
pub fn discreet() -> FilterFn {
    filter_fn(|about| {
        let limit = TALKATIVE
            .iter()
            .find(|(target, _)| about.target().starts_with(target));
        limit.is_none_or(|(_, most)| about.level() <= most)
    })
}

/// Logs from here on.
pub fn init(logs: &Logs) -> Result<(), LogsError> {
    let filter = EnvFilter::try_new(&logs.filter).map_err(|source| LogsError {
        filter: logs.filter.clone(),
        source,
    })?;
    match logs.format {
        Format::Human => tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .finish()
            .with(discreet())
            .init(),
        Format::Json => {
            tracing_subscriber::registry()
                .with(filter)
                .with(discreet())
                .with(JsonLines::new(std::io::stderr))
                .init();
            FOR_PROGRAMS.store(true, Ordering::Relaxed);
            // A panic is a line like the others, not several that are none.
            panic::set_hook(Box::new(|panic| {
                let place = panic.location().map(ToString::to_string);
                let message = panic.payload_as_str().unwrap_or("no message");
                tracing::error!(place, panic = message, "a panic");
            }));
        }
    }
    Ok(())
}

/// Says why the program ends, in whatever form its logs have.
pub fn fail(message: impl Display) {
    if FOR_PROGRAMS.load(Ordering::Relaxed) {
        tracing::error!(%message, "ended");
    } else {
        eprintln!("error: {message}");
    }
}
