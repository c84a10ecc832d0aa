//! Talk to a voice agent from the command line, and look inside it.

mod call;
mod cli;
mod cmd;
mod control;
mod outputs;
mod problem;
mod python;
mod rehearsal;
mod report;
mod specs;
mod terminal;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let (cli, reader) = match cli::parse() {
        Ok(parsed) => parsed,
        Err(code) => return code,
    };
    cli::init_tracing(cli.verbose);
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => problem.report(reader),
    }
}
