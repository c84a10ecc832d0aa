//! A runtime as a program: holds conversations for clients, alone or in a fleet.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    rspp_runtime::main()
}
