//! The control plane as a program: routes, leases, rollouts and audit over gRPC, on a file or on etcd.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    rspp_control_plane::main()
}
