//! The repository as files and packages.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// The directory that holds everything.
pub(crate) fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ lies in the root").to_owned()
}

/// A package of ours.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) dir: PathBuf,
    /// The file that begins with the package's sentence.
    pub(crate) front: PathBuf,
    /// What it is built from; what only its tests use is left out.
    pub(crate) builds_on: Vec<String>,
    /// The same with what its tests use.
    pub(crate) names: Vec<String>,
}

/// All packages of ours, by name.
pub(crate) fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo metadata: {error}");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("metadata is JSON");
    let mut packages: Vec<_> = list(&metadata["packages"]).iter().map(package).collect();
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    packages
}

fn package(value: &Value) -> Package {
    let dependencies = list(&value["dependencies"]);
    let named = |dependency: &Value| text(&dependency["name"]);
    let is_built_in = |dependency: &&Value| dependency["kind"] != "dev";
    let front = |target: &&Value| {
        let kinds = list(&target["kind"]);
        kinds.iter().any(|kind| kind == "lib" || kind == "bin")
    };
    let manifest = PathBuf::from(text(&value["manifest_path"]));
    Package {
        name: text(&value["name"]),
        description: value["description"].as_str().unwrap_or_default().to_owned(),
        dir: manifest
            .parent()
            .expect("a manifest lies in a directory")
            .to_owned(),
        front: list(&value["targets"])
            .iter()
            .find(front)
            .map(|target| PathBuf::from(text(&target["src_path"])))
            .expect("a package is a library or a program"),
        builds_on: dependencies.iter().filter(is_built_in).map(named).collect(),
        names: dependencies.iter().map(named).collect(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// What the repository consists of: path from the root, and text. What is not text is left out.
pub(crate) fn tracked() -> Vec<(String, String)> {
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root())
        .output()
        .expect("git runs: these rules are about what is committed");
    assert!(output.status.success(), "git ls-files: this is no clone");
    let names = String::from_utf8(output.stdout).expect("our file names are UTF-8");
    let read = |name: &str| {
        let text = std::fs::read_to_string(root().join(name)).ok()?;
        Some((name.to_owned(), text))
    };
    names.split_terminator('\0').filter_map(read).collect()
}
