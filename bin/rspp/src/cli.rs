//! The command line: subcommands, and what they share.

use std::{io::IsTerminal, process::ExitCode};

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{
    cmd,
    problem::{Problem, Reader, Told, USAGE},
};

/// Talk to a voice agent from the command line, and look inside it.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Log to standard error: -v what happens, -vv details; RSPP_LOG filters
    #[arg(short, long, global = true, action = clap::ArgAction::Count, display_order = 900)]
    pub(crate) verbose: u8,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  rspp doctor                                   Is everything there?
  rspp up                                       Talk to the agent in a browser
  rspp loopback --say 'Hello, who are you?'     Talk to the agent, offline
  rspp loopback question.wav --out reply.wav    The same with a recording
  rspp validate spec pipeline.yaml              Check a pipeline
  rspp rehearse tests/scenarios/*.yaml          What happens if …
  rspp timeline show call.rspp --turn 1         What happened, event by event
  rspp pipeline publish pipeline.yaml           Publish a version
  rspp rollout set greeter-2 --percent 10       Give it to a tenth of all new sessions

Exit codes: 0 success, 1 failure, 2 bad input or usage.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Up(Box<cmd::up::Up>),
    Loopback(Box<cmd::loopback::Loopback>),
    #[command(alias = "lint")]
    Validate(cmd::validate::Validate),
    Schema(cmd::schema::Schema),
    Plan(cmd::plan::Plan),
    Rehearse(cmd::rehearse::Rehearse),
    Timeline(cmd::timeline::Timeline),
    Gates(cmd::gates::Gates),
    Replay(cmd::replay::ReplayCommand),
    Diff(cmd::replay::Diff),
    Tree(cmd::tree::Tree),
    Doctor(cmd::doctor::Doctor),
    Models(cmd::models::Models),
    Package(cmd::package::Package),
    Pipeline(cmd::pipeline::Pipeline),
    Policy(cmd::policy::Policy),
    Rollout(cmd::rollout::Rollout),
    Session(cmd::session::Session),
    Node(cmd::node::Node),
    Region(cmd::region::Region),
    Rules(cmd::rules::Rules),
    Key(cmd::key::Key),
    Credential(cmd::credential::Credential),
    Audit(cmd::audit::Audit),
    Backup(cmd::backup::Backup),
    Restore(cmd::backup::Restore),
}

impl Command {
    /// Runs the subcommand to its end.
    pub(crate) fn run(self) -> Result<(), Problem> {
        match self {
            Self::Up(command) => command.run(),
            Self::Loopback(command) => command.run(),
            Self::Validate(command) => command.run(),
            Self::Schema(command) => command.run(),
            Self::Plan(command) => command.run(),
            Self::Rehearse(command) => command.run(),
            Self::Timeline(command) => command.run(),
            Self::Gates(command) => command.run(),
            Self::Replay(command) => command.run(),
            Self::Diff(command) => command.run(),
            Self::Tree(command) => command.run(),
            Self::Doctor(command) => command.run(),
            Self::Models(command) => command.run(),
            Self::Package(command) => command.run(),
            Self::Pipeline(command) => command.run(),
            Self::Policy(command) => command.run(),
            Self::Rollout(command) => command.run(),
            Self::Session(command) => command.run(),
            Self::Node(command) => command.run(),
            Self::Region(command) => command.run(),
            Self::Rules(command) => command.run(),
            Self::Key(command) => command.run(),
            Self::Credential(command) => command.run(),
            Self::Audit(command) => command.run(),
            Self::Backup(command) => command.run(),
            Self::Restore(command) => command.run(),
        }
    }
}

/// The command line of this process, and who reads what is said if it fails; `Err` is how the process ends
/// when that has been said already.
pub(crate) fn parse() -> Result<(Cli, Reader), ExitCode> {
    let mut command = Cli::command();
    let parsed = command.try_get_matches_from_mut(std::env::args_os());
    let parsed = parsed.and_then(|matches| {
        let reader = reader(&matches);
        let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        Ok((cli, reader))
    });
    parsed.map_err(unusable)
}

/// Programs read what is said of commands that print JSON.
fn reader(matches: &ArgMatches) -> Reader {
    match matches.try_get_one::<bool>("json") {
        Ok(Some(true)) => Reader::Program,
        Ok(Some(false) | None) | Err(_) => matches
            .subcommand()
            .map_or(Reader::Person, |(_, below)| reader(below)),
    }
}

/// Says what is wrong with the command line; help is no error.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the form that `map_err` takes"
)]
fn unusable(error: clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|it| it == "--json") {
        let text = error.render().to_string();
        // What is wrong comes first; hints and usage follow, each after a blank line.
        let parts: Vec<_> = text
            .split("\n\n")
            .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let message = parts.first().map_or("", String::as_str);
        let message = message.strip_prefix("error: ").unwrap_or(message);
        let fix = parts.get(1..).unwrap_or_default().join("; ");
        Told::new(USAGE, message)
            .with_fix(Some(fix))
            .print(Reader::Program);
    } else {
        // Nobody to tell is no reason to do anything else.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Logs go to standard error, so that standard output holds results only.
pub(crate) fn init_tracing(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("RSPP_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(verbose > 1)
        .without_time()
        .finish()
        .with(rspp_service::logs::discreet())
        .init();
}
