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

/// What the program says in a folder: its exit code, and the texts of both its outputs.
fn rspp_in(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_rspp"))
        .args(arguments)
        .current_dir(folder)
        .env("RSPP_LOG", "off")
        .output()
        .expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// F-151: both modes that run nodes, chosen on the command line: what they print and what they keep says
/// which one it was. A recording that holds too little, or does not allow it, is refused with what to do.
#[test]
fn a_kept_call_is_replayed_by_nodes_from_the_command_line() {
    let folder = tempfile::tempdir().expect("a directory");
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios");
    let rspp = |arguments: &[&str]| rspp_in(folder.path(), arguments);
    let scenario = |name: &str| scenarios.join(name).display().to_string();
    let played = scenario("played-back.yaml");
    let plain = scenario("interruption.yaml");
    let (code, _, complaint) = rspp(&["rehearse", "-q", "--timelines", ".", &played, &plain]);
    assert_eq!(code, Some(0), "{complaint}");
    let kept = "played-back.call.rspp";
    for (mode, more) in [
        ("playback_recorded_provider_outputs", &[][..]),
        ("re_simulate_nodes", &["--scenario", &played]),
    ] {
        let arguments = ["replay", kept, "--mode", mode, "--keep", "again.rspp"];
        let (code, said, complaint) = rspp(&[&arguments, more].concat());
        assert_eq!(
            said,
            format!("{kept}: {mode}, 3 turns, nothing differs\n"),
            "{complaint}"
        );
        assert_eq!(code, Some(0));
        let (_, lines, _) = rspp(&["timeline", "show", "again.rspp", "--json"]);
        let named = format!("\"replay_mode\":\"{mode}\"");
        assert!(
            lines
                .lines()
                .next()
                .is_some_and(|line| line.contains(&named)),
            "{lines}"
        );
        let (code, said, _) = rspp(&["diff", kept, "again.rspp"]);
        assert_eq!(code, Some(0), "{said}");
    }
    let playback = "playback_recorded_provider_outputs";
    let (code, _, complaint) = rspp(&["replay", "interruption.call.rspp", "--mode", playback]);
    assert_eq!(code, Some(2));
    assert!(
        complaint.contains("allowed_replay_modes of turn-0001's plan"),
        "{complaint}"
    );
    let wrong = ["replay", kept, "--mode", playback, "--scenario", &played];
    assert_eq!(rspp(&wrong).0, Some(2));
}

/// F-081: what a session ran is shown from its timeline, bound to its id: the node that the policy
/// inserted, the chosen providers, the defaults. F-078: the profile's defaults are the recorded ones.
#[test]
fn a_sessions_resolved_pipeline_is_read_off_its_timeline() {
    let folder = tempfile::tempdir().expect("a directory");
    let scenario =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios/guard-by-policy.yaml");
    let rspp = |arguments: &[&str]| rspp_in(folder.path(), arguments);
    let scenario = scenario.display().to_string();
    let (code, _, complaint) = rspp(&["rehearse", "-q", "--timelines", ".", &scenario]);
    assert_eq!(code, Some(0), "{complaint}");
    let file = "guard-by-policy.call.rspp";
    let (_, told, complaint) = rspp(&["plan", "--session", file]);
    assert!(
        told.starts_with("session   call (turn-0001)\n"),
        "{told}{complaint}"
    );
    assert!(told.contains("execution_profile/simple/v1"), "{told}");
    let (_, graph, _) = rspp(&["plan", "--session", file, "--graph"]);
    assert!(graph.contains("guard"), "{graph}");
    let (_, json, _) = rspp(&["plan", "--session", file, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["session_id"], "call");
    assert_eq!(json["plan"]["node_bindings"]["llm"][0], "llm");
    let nodes = json["pipeline"]["nodes"].as_array().expect("nodes");
    assert!(nodes.iter().any(|node| node["id"] == "guard"), "{nodes:?}");
    let (code, _, complaint) = rspp(&["plan", "--session", file, "--turn", "9"]);
    assert_eq!(code, Some(2));
    assert!(
        complaint.contains("has no plan of turn-0009"),
        "{complaint}"
    );
}
