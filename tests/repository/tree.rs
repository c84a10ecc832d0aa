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
///
/// Asks git; where there is none, as in an unpacked archive, everything but what is built counts.
pub(crate) fn tracked() -> Vec<(String, String)> {
    let root = root();
    let output = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z"])
        .current_dir(&root)
        .output();
    let names = match output {
        Ok(output) if output.status.success() => {
            let names = String::from_utf8(output.stdout).expect("our file names are UTF-8");
            names.split_terminator('\0').map(str::to_owned).collect()
        }
        Ok(_) | Err(_) => below(&root, &root),
    };
    assert!(names.len() > 100, "this is not the repository: {names:?}");
    let read = |name: String| {
        let text = std::fs::read_to_string(root.join(&name)).ok()?;
        Some((name, text))
    };
    names.into_iter().filter_map(read).collect()
}

/// All files below `dir`, by their paths from `root`, without git's own and what is built.
fn below(root: &Path, dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a directory of ours") {
        let path = entry.expect("an entry of it").path();
        let inside = path.strip_prefix(root).expect("it lies below");
        if path.is_dir() {
            if !inside.ends_with(".git") && !inside.ends_with("target") {
                found.extend(below(root, &path));
            }
        } else {
            found.push(inside.to_string_lossy().replace('\\', "/"));
        }
    }
    found
}

#[test]
fn without_git_the_same_files_are_found() {
    let root = root();
    let found = below(&root, &root);
    for (name, _) in tracked() {
        assert!(found.contains(&name), "{name}");
    }
    assert!(
        !found
            .iter()
            .any(|name| name.starts_with("target/") || name.starts_with(".git/"))
    );
}
