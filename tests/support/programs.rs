//! The programs of this workspace, as they lie beside the tests.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

/// All that a fleet is made of; each finds the others beside it.
const PROGRAMS: [&str; 3] = ["rspp", "rspp-runtime", "rspp-control-plane"];

/// The program `rspp`, with those that it starts beside it. `cargo test --workspace` has built them; they are
/// built here if they are not there, and left as they are if they are.
///
/// # Panics
/// If they cannot be built.
pub fn rspp() -> PathBuf {
    let tests = std::env::current_exe().expect("a test is a program");
    let folder = tests.ancestors().nth(2).expect("it lies in …/deps");
    let are_there = || PROGRAMS.iter().all(|name| folder.join(name).is_file());
    if !are_there() {
        let mut build = Command::new(env!("CARGO"));
        build.arg("build").stdin(Stdio::null());
        for name in PROGRAMS {
            build.args(["--package", name]);
        }
        let built = build.status().expect("cargo is there, as it built this");
        assert!(built.success() && are_there(), "{PROGRAMS:?}: {built}");
    }
    folder.join(PROGRAMS[0])
}
