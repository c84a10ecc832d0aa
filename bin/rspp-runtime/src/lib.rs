//! A runtime as a program: holds conversations for clients, alone or in a fleet.

mod config;
mod outputs;
mod providers;
mod published;
mod serve;
mod sessions;
mod telemetry;
mod timelines;
mod tokens;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use rspp_service::{
    logs,
    settings::{self, Loaded},
};

use config::Config;
pub use tokens::Signed;

/// Holds conversations for clients, alone or in a fleet.
///
/// Settings come from the file, then the environment (RSPP_RUNTIME_ and the key, with two underscores
/// between its parts), then the command line; each over the one before.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  rspp-runtime                                            Alone, for this machine
  rspp-runtime --config runtime-1.yaml                    In a fleet
  rspp-runtime --config f.yaml --print-config             Which setting came from where
  rspp-runtime --set capacity=20 --set log.format=json
  RSPP_RUNTIME_NAME=a rspp-runtime --config f.yaml

Exit codes: 0 stopped in order, 1 failure, 2 bad settings or usage."
)]
struct Cli {
    /// The settings
    #[arg(long, value_name = "FILE", env = "RSPP_RUNTIME_CONFIG")]
    config: Option<PathBuf>,
    /// One setting, over file and environment; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print all settings and where each came from, and end
    #[arg(long)]
    print_config: bool,
}

/// Why the program ends, and with which code.
#[derive(Debug)]
enum Problem {
    /// The user gave something that cannot work: 2.
    Input(String),
    /// It could have worked and did not: 1.
    Failure(String),
}

impl Problem {
    fn input(message: impl std::fmt::Display) -> Self {
        Self::Input(message.to_string())
    }

    fn failure(message: impl std::fmt::Display) -> Self {
        Self::Failure(message.to_string())
    }
}

/// Runs the program by its command line; a library so that others can have it within their own.
pub fn main() -> ExitCode {
    let (code, message) = match run(&Cli::parse()) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Problem::Input(message)) => (2, message),
        Err(Problem::Failure(message)) => (1, message),
    };
    logs::fail(message);
    ExitCode::from(code)
}

fn run(cli: &Cli) -> Result<(), Problem> {
    let loaded: Loaded<Config> =
        settings::gather(cli.config.as_deref(), Vec::new(), &cli.set).map_err(Problem::input)?;
    if cli.print_config {
        print!("{}", loaded.print());
        return Ok(());
    }
    let config = loaded.settings;
    if config.capacity == 0 {
        return Err(Problem::input(
            "capacity: 0 takes no session at all: set how many it takes at once, e.g. capacity=100; \
             `rspp node drain` empties a runtime",
        ));
    }
    logs::init(&config.log).map_err(Problem::input)?;
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Problem::failure)?;
    tokio.block_on(serve::serve(config))
}
