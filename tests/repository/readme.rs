//! What the README says of the repository is so.

use std::fs;

use crate::tree;

/// The one test command: what a reader is told to run, and what CI and the chores run.
const TESTS: &str = "cargo test --workspace --locked";

fn read(name: &str) -> String {
    fs::read_to_string(tree::root().join(name)).expect("the file is there")
}

#[test]
fn everybody_runs_the_same_tests() {
    for file in [
        "README.md",
        ".github/CONTRIBUTING.md",
        ".ci/run",
        ".justfile",
    ] {
        assert!(read(file).contains(TESTS), "{file} runs `{TESTS}`");
    }
}

#[test]
fn the_house_map_shows_every_crate() {
    let readme = read("README.md");
    for package in tree::packages() {
        let dir = package
            .dir
            .strip_prefix(tree::root())
            .expect("ours lie below the root");
        let row = format!("\n| `{}` |", dir.display());
        assert!(
            readme.contains(&row),
            "the map in README.md lacks `{}`",
            dir.display()
        );
    }
}

#[test]
fn links_lead_somewhere() {
    for name in ["README.md", ".github/CONTRIBUTING.md"] {
        let text = read(name);
        let targets = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            let file = target.split('#').next().unwrap_or(target);
            assert!(
                tree::root().join(file).exists(),
                "{name}: {target} is not there"
            );
        }
    }
}
