//! The rehearsals that come with the product.

use std::{fs, path::Path, process::Command};

/// Every scenario goes as it says that it does, by the command that people run.
#[test]
fn every_scenario_goes_as_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios");
    let mut files: Vec<_> = fs::read_dir(&folder)
        .expect("there are scenarios")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|it| it == "yaml"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no scenario in {}", folder.display());
    let output = Command::new(env!("CARGO_BIN_EXE_rspp"))
        .arg("rehearse")
        .args(&files)
        .arg("--quiet")
        .env("RSPP_LOG", "off")
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complaint}");
    assert_eq!(said.lines().count(), files.len(), "{said}");
}

/// A scenario that goes otherwise says what is different, and the program fails.
#[test]
fn what_is_not_as_expected_is_told() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("wrong.yaml");
    let text = "schema: rspp.scenario.v1\ntitle: Wrong\ncalls:\n  - says: [{ words: hello, at_ms: 300 }]\n    \
                expect: { turns: [{ ends: cancelled }], never: [commit] }\n";
    fs::write(&file, text).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_rspp"))
        .args(["rehearse", "--quiet"])
        .arg(&file)
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("turn-0001 ends by `cancelled`: `commit`"),
        "{said}"
    );
    assert!(said.contains("no `commit`: `commit`"), "{said}");
}
