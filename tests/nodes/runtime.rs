//! A runtime as a process of its own, for the tests of fleets.

use std::process::ExitCode;

fn main() -> ExitCode {
    rspp_runtime::main()
}
