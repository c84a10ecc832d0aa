//! The rehearsals that come with the product.

use std::{fs, path::Path, process::Command, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

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

/// Ctrl-C leaves nothing of a rehearsal whose timelines nobody wants.
#[test]
fn ctrl_c_leaves_no_scratch_behind() {
    let folder = tempfile::tempdir().expect("a directory");
    let text = "schema: rspp.scenario.v1\ntitle: Long\nrealtime: true\n\
                calls: [{ says: [{ words: hello, at_ms: 60000 }], patience_ms: 90000 }]\n";
    fs::write(folder.path().join("long.yaml"), text).expect("written");
    let scratch = folder.path().join("scratch");
    fs::create_dir(&scratch).expect("a directory");
    let child = Command::new(env!("CARGO_BIN_EXE_rspp"))
        .args(["rehearse", "long.yaml"])
        .current_dir(folder.path())
        .env("TMPDIR", &scratch)
        .env("RSPP_LOG", "off")
        .spawn()
        .expect("the program starts");
    let timelines = || {
        let mut folders = fs::read_dir(&scratch).expect("readable");
        folders.any(|it| it.is_ok_and(|it| it.path().join("long.call.rspp").exists()))
    };
    for _ in 0..100 {
        if timelines() {
            break;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the rehearsal is another process, in real time"
        )]
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(timelines(), "the call has begun");
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(fs::read_dir(&scratch).expect("readable").count(), 0);
}

/// F-153, F-176: what a replay decides from outlasts other details under pressure; a recording that has no room even
/// for that says so where a replay of it differs.
#[test]
fn a_replay_of_a_recording_under_pressure_agrees_or_says_why_not() {
    let folder = tempfile::tempdir().expect("a directory");
    let replayed = |room: u32| {
        let text = format!(
            "schema: rspp.scenario.v1\ntitle: Little room\nrecording: {{ level: L2, queue_entries: {room} }}\n\
             calls: [{{ says: [{{ words: one, at_ms: 300 }}, {{ words: two, after_reply_ms: 500 }}] }}]\n"
        );
        fs::write(folder.path().join("room.yaml"), text).expect("written");
        let rehearsed = ["rehearse", "-q", "--timelines", ".", "room.yaml"];
        assert_eq!(rspp_in(folder.path(), &rehearsed).0, Some(0));
        let counted = rspp_in(
            folder.path(),
            &["timeline", "show", "--json", "room.call.rspp"],
        )
        .1;
        assert!(counted.contains("\"kind\":\"dropped\""), "nothing was lost");
        let (code, said, complaint) = rspp_in(folder.path(), &["replay", "room.call.rspp"]);
        (code, format!("{said}{complaint}"))
    };
    let (code, told) = replayed(450);
    assert_eq!(code, Some(0), "{told}");
    let (code, told) = replayed(390);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("details were dropped"), "{told}");
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

    // What is kept takes the place of nothing but an older timeline, and never of the recording itself.
    let bytes = |name: &str| fs::read(folder.path().join(name)).expect("a file");
    fs::write(folder.path().join("letter.txt"), "somebody's own").expect("written");
    let recorded = bytes(kept);
    for (mode, keep, why) in [
        (playback, kept, "is the recording itself"),
        (
            playback,
            "./played-back.call.rspp",
            "is the recording itself",
        ),
        (playback, "letter.txt", "exists and is no timeline"),
        ("replay_decisions", "other.rspp", "--mode re_simulate_nodes"),
    ] {
        let (code, _, complaint) = rspp(&["replay", kept, "--mode", mode, "--keep", keep]);
        assert_eq!(code, Some(2), "{keep}: {complaint}");
        assert!(complaint.contains(why), "{keep}: {complaint}");
    }
    assert!(bytes(kept) == recorded, "the recording is as it was");
    assert_eq!(bytes("letter.txt"), b"somebody's own");
}

/// F-075: a session is summed up for the tenant that is accounted for it, from its recording or from all that
/// an archive has; another tenant is refused.
#[test]
fn a_tenant_sums_up_its_sessions_and_no_other_does() {
    let folder = tempfile::tempdir().expect("a directory");
    let scenario =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios/two-tenants.yaml");
    let rspp = |arguments: &[&str]| rspp_in(folder.path(), arguments);
    let scenario = scenario.display().to_string();
    let (code, _, complaint) = rspp(&["rehearse", "-q", "--timelines", ".", &scenario]);
    assert_eq!(code, Some(0), "{complaint}");
    let (ours, theirs) = ("two-tenants.ours.rspp", "two-tenants.theirs.rspp");
    let prices =
        "{ llm: { million_tokens_written: 1000000 }, tts: { million_characters: 2000000 } }";
    fs::write(folder.path().join("prices.yaml"), prices).expect("written");
    let summary = |file: &str, more: &[&str]| {
        let ask = ["timeline", "summary", file, "--tenant", "acme", "--json"];
        rspp(&[&ask, more].concat())
    };
    let (code, told, complaint) = summary(ours, &["--prices", "prices.yaml"]);
    assert_eq!(code, Some(0), "{complaint}");
    let account: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(account["tenant_id"], "acme");
    assert_eq!(
        (&account["turns"], &account["committed"]),
        (&2.into(), &2.into())
    );
    let spent = &account["spending"];
    let number = |name: &str| spent[name].as_u64().expect("a number");
    assert!(
        number("audio_ms") >= 2_000 && number("tokens_written") > 0,
        "{told}"
    );
    let cost = number("tokens_written") as f64 + 2.0 * number("tts_characters") as f64;
    let estimated = account["estimated_cost"]
        .as_f64()
        .expect("there are prices");
    assert!((estimated - cost).abs() < 1e-6, "{estimated} and {cost}");
    assert_eq!(
        account["unpriced"][0], "stt",
        "an estimate says what it leaves out"
    );

    let (code, told, complaint) = summary(theirs, &[]);
    assert_eq!((code, told.as_str()), (Some(2), ""));
    assert!(complaint.contains("cross_tenant_denied"), "{complaint}");

    for file in [ours, theirs] {
        let (code, _, complaint) = rspp(&[
            "timeline", "export", file, "--to", "shelf", "--spool", "spool",
        ]);
        assert_eq!(code, Some(0), "{complaint}");
    }
    let all = ["timeline", "summary", "--archive", "shelf", "--tenant"];
    let (code, told, complaint) = rspp(&[&all[..], &["acme"]].concat());
    assert_eq!(code, Some(0), "{complaint}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(
        told.starts_with("acme  ours  2 turns, 2 committed"),
        "{told}"
    );
    let (_, told, _) = rspp(&[&all[..], &["nobody"]].concat());
    assert_eq!(told, "");
}

/// F-073: the same call with and without redaction: the two recordings differ in nothing that a run is
/// compared by, and in what can be read.
#[test]
fn a_redacted_recording_differs_in_payloads_alone() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios/redacted.yaml");
    let text = fs::read_to_string(&file).expect("it is there");
    let of_redaction = |line: &&str| {
        let words = ["redact", "hides:", "holds:"];
        words.iter().any(|word| line.contains(word))
    };
    let plain: Vec<&str> = text.lines().filter(|line| !of_redaction(line)).collect();
    let plain = plain.join("\n").replace("recording:\n", "");
    fs::write(folder.path().join("plain.yaml"), plain).expect("written");
    let rspp = |arguments: &[&str]| rspp_in(folder.path(), arguments);
    let redacted = file.display().to_string();
    let play = [
        "rehearse",
        "-q",
        "--timelines",
        ".",
        "plain.yaml",
        &redacted,
    ];
    let (code, said, complaint) = rspp(&play);
    assert_eq!(code, Some(0), "{said}{complaint}");
    let read = |name: &str| fs::read(folder.path().join(name)).expect("recorded");
    let secret = b"4111 1111";
    let holds = |bytes: Vec<u8>| bytes.windows(secret.len()).any(|it| it == secret);
    assert!(holds(read("plain.call.rspp")) && !holds(read("redacted.call.rspp")));
    let (_, said, complaint) = rspp(&["diff", "plain.call.rspp", "redacted.call.rspp", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let differs = |class: &str| said.contains(class);
    for class in ["PROVIDER_CHOICE", "ORDERING", "TIMING", "AUTHORITY"] {
        assert!(
            !differs(&format!("{class}_DIVERGENCE")),
            "{report:#}{complaint}"
        );
    }
    let shown = |name: &str| {
        let (_, lines, _) = rspp(&["timeline", "show", name, "--kind", "event"]);
        lines.lines().count()
    };
    assert_eq!(shown("plain.call.rspp"), shown("redacted.call.rspp"));
}

/// F-154: a file of settings says where timelines are exported to and how; what it gets wrong is told by its
/// path.
#[test]
fn exports_are_set_in_a_file() {
    let folder = tempfile::tempdir().expect("a directory");
    let rspp = |arguments: &[&str]| rspp_in(folder.path(), arguments);
    let write = |text: &str| fs::write(folder.path().join("export.yaml"), text).expect("written");
    let talk = [
        "loopback",
        "--no-pull",
        "--say",
        "Hello.",
        "--export-settings",
        "export.yaml",
    ];
    for (text, told) in [
        (
            "exports: { to: calls, policy: { uploads: 0 } }",
            "export.yaml",
        ),
        (
            "exports: { to: calls, policy: { timeout_ms: 0 } }",
            "exports.policy.timeout_ms",
        ),
        ("exports: { too: calls }", "too"),
        ("exports: { to: 'ftp://x/y' }", "exports.to"),
    ] {
        write(text);
        let (code, _, complaint) = rspp(&talk);
        assert_eq!(code, Some(2), "{complaint}");
        assert!(complaint.contains(told), "{complaint}");
    }
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

/// NF-024, NF-025, NF-026, NF-027, NF-028, NF-038: calls that were rehearsed are judged by their recordings: those
/// that keep all promises pass; those that are late fail by the gates that wait for them; and calls in which nobody
/// was interrupted fail for want of what gate 3 is taken from.
#[test]
fn recorded_calls_are_judged_by_the_gates() {
    const LATE: &str = "\
schema: rspp.scenario.v1
title: A slow model and a slow voice
providers:
  - { id: llm, modality: llm, then: { late_ms: 900 } }
  - { id: tts, modality: tts, then: { late_ms: 950 } }
calls:
  - says: [{ words: hello, at_ms: 300 }]
    expect: { turns: [{ ends: commit }] }
";
    let folder = tempfile::tempdir().expect("a directory");
    fs::write(folder.path().join("late.yaml"), LATE).expect("written");
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios");
    let scenario = |name: &str| scenarios.join(name).display().to_string();
    let rspp = |arguments: &[&str]| rspp_in(folder.path(), arguments);
    let (good, typed) = (scenario("interruption.yaml"), scenario("push-to-talk.yaml"));
    let play = [
        "rehearse",
        "-q",
        "--timelines",
        ".",
        &good,
        &typed,
        "late.yaml",
    ];
    let (code, said, complaint) = rspp(&play);
    assert_eq!(code, Some(0), "{said}{complaint}");
    let judged = |files: &[&str]| {
        let (code, said, complaint) = rspp(&[&["gates", "--json"], files].concat());
        let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(report["passed"], code == Some(0), "{complaint}");
        let measured = report["measured"].as_array().expect("a list");
        let failed = measured.iter().filter(|it| it["passed"] == false);
        let failed = failed.map(|it| it["metric"].as_str().expect("a name").to_owned());
        failed.collect::<Vec<_>>()
    };
    assert_eq!(judged(&["interruption.call.rspp"]), [] as [&str; 0]);
    assert_eq!(
        judged(&["interruption.call.rspp", "late.call.rspp"]),
        ["first_output_p95_ms", "end_to_end_p95_ms"]
    );
    assert_eq!(judged(&["push-to-talk.call.rspp"]), ["cancel_fence_p95_ms"]);
    let (code, said, _) = rspp(&["gates", "interruption.call.rspp"]);
    assert_eq!(code, Some(0));
    assert!(said.ends_with("all gates pass\n"), "{said}");
}

/// NF-003, NF-026: many calls at once that are interrupted again and again are judged by their recordings: at p95
/// and at p99 the user had silence in time, and who was slow to let go is named.
#[test]
fn slow_cancels_of_recorded_calls_are_attributed() {
    let folder = tempfile::tempdir().expect("a directory");
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios");
    let scenario = scenarios.join("many-interruptions.yaml");
    let scenario = scenario.display().to_string();
    let rspp = |arguments: &[&str]| rspp_in(folder.path(), arguments);
    let (code, said, complaint) = rspp(&["rehearse", "-q", "--timelines", ".", &scenario]);
    assert_eq!(code, Some(0), "{said}{complaint}");
    let files: Vec<_> = fs::read_dir(folder.path())
        .expect("a directory")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|it| it == "rspp"))
        .map(|path| path.display().to_string())
        .collect();
    assert_eq!(files.len(), 24);
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let (code, said, _) = rspp(&[&["gates", "--json"], &files[..]].concat());
    assert_eq!(code, Some(0), "{said}");
    let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(report["cancel_observed_turns"], 48);
    let p99 = report["cancel_fence_p99_ms"].as_f64().expect("measured");
    assert!(p99 <= 150.0, "{p99}");
    let slow = report["slow_cancels"].as_array().expect("a list");
    assert_eq!(slow.len(), 1, "{slow:?}");
    assert_eq!(slow[0]["node_id"], "deaf");
    assert_eq!(slow[0]["times"], 6);
    assert!(slow[0]["longest_ms"].as_u64() > Some(40), "{slow:?}");
    let (_, said, _) = rspp(&[&["gates"], &files[..]].concat());
    assert!(said.contains("cancel fence p99"), "{said}");
    assert!(
        said.contains("slow to let go: node deaf, 6 times"),
        "{said}"
    );
}

/// F-172, F-174: a scenario is held to the rules of what it writes down, and told what does nothing in it.
#[test]
fn what_means_nothing_is_refused() {
    let folder = tempfile::tempdir().expect("a directory");
    let refused = |more: &str| {
        let text = format!(
            "schema: rspp.scenario.v1\ntitle: Wrong\n{more}\ncalls:\n  - says: [{{ words: hello, at_ms: 300 }}]\n"
        );
        fs::write(folder.path().join("wrong.yaml"), text).expect("written");
        let (code, said, complaint) = rspp_in(folder.path(), &["rehearse", "wrong.yaml"]);
        assert_eq!(code, Some(2), "{said}{complaint}");
        complaint
    };
    let falls = refused("limits: { overload: { cpu_percent: { low: 90, high: 80, severe: 70 } } }");
    assert!(falls.contains("overload.cpu_percent"), "{falls}");
    let weightless = refused("limits: { tenants: { big: { weight: 0 } } }");
    assert!(weightless.contains("tenants.big.weight"), "{weightless}");
    let idle = refused("providers: [{ id: vad, modality: vad, then: { trouble: stall } }]");
    assert!(
        idle.contains("providers[0].then: does nothing in a provider of vad"),
        "{idle}"
    );
    let nobody = refused("hooks: { ghost: { init: 1 } }");
    assert!(nobody.contains("hooks.ghost"), "{nobody}");
    let unchosen = refused(
        "settings: { tenant: { providers: { choice: { language: { de: { llm: [] } } } } } }",
    );
    assert_eq!(
        unchosen,
        "error: wrong.yaml: settings.tenant.providers.choice.language.de.llm: needs at least 1 provider\n"
    );
}

/// F-001: what is wrong with a scenario, or with the pipeline and the limits within it, is told on one line, with the
/// file and the field, and with no place in a text that nobody wrote.
#[test]
fn what_is_wrong_is_told_with_its_file_and_field() {
    let folder = tempfile::tempdir().expect("a directory");
    for (text, told) in [
        (
            "pipeline: { providers: { failure: { voice_retry_ms: -1 } } }",
            "pipeline.providers.failure.voice_retry_ms: `-1` must be at least 1",
        ),
        (
            "limits: { node: { sessions: { limit: 2000000000 } } }",
            "limits.node.sessions.limit: `2000000000` must be at most 1000000000; from 0 to 1000000000",
        ),
        (
            "limits: { node: { sessions: { limit: -1 } } }",
            "line 3 column 38: needs a whole number from 0 to 18446744073709551615",
        ),
        (
            "policy: { schema: rspp.policy.bundle.v1 }",
            "policy: missing field `policy_resolution_snapshot` (and 1 more)",
        ),
    ] {
        let text = format!("schema: rspp.scenario.v1\ntitle: Wrong\n{text}\ncalls: [{{}}]\n");
        fs::write(folder.path().join("wrong.yaml"), text).expect("written");
        let (code, said, complaint) = rspp_in(folder.path(), &["rehearse", "wrong.yaml"]);
        assert_eq!(complaint, format!("error: wrong.yaml: {told}\n"), "{said}");
        assert_eq!(code, Some(2));
    }
}

/// Timelines that are kept have names of their own: no call goes out of the directory, and no scenario writes over
/// another's.
#[test]
fn kept_timelines_have_names_of_their_own() {
    let folder = tempfile::tempdir().expect("a directory");
    let scenario = |id: &str| {
        format!(
            "schema: rspp.scenario.v1\ntitle: Kept\ncalls: [{{ id: {id}, says: [{{ words: hello, at_ms: 300 }}] }}]\n"
        )
    };
    for name in ["one", "two"] {
        let place = folder.path().join(name);
        fs::create_dir(&place).expect("a directory");
        fs::write(place.join("same.yaml"), scenario("call")).expect("written");
    }
    let twice = [
        "rehearse",
        "--timelines",
        "kept",
        "one/same.yaml",
        "two/same.yaml",
    ];
    let (code, _, complaint) = rspp_in(folder.path(), &twice);
    assert_eq!(code, Some(2));
    assert!(complaint.contains("would have one name"), "{complaint}");
    let (code, _, complaint) = rspp_in(
        folder.path(),
        &["rehearse", "--timelines", "one/same.yaml", "one/same.yaml"],
    );
    assert_eq!(code, Some(2));
    assert_eq!(
        complaint,
        "error: one/same.yaml: is no directory; name one\n"
    );
    fs::write(folder.path().join("out.yaml"), scenario("../out")).expect("written");
    let (code, _, complaint) = rspp_in(
        folder.path(),
        &["rehearse", "--timelines", "kept", "out.yaml"],
    );
    assert_eq!(code, Some(2));
    assert!(complaint.contains("calls[0].id: `../out`"), "{complaint}");
}

/// F-034: a cancel says whom it is about, and nobody else: one of a node without the node is not one of
/// the whole turn.
#[test]
fn a_cancel_without_its_target_is_refused() {
    let folder = tempfile::tempdir().expect("a directory");
    let refused = |cancel: &str| {
        let text = format!(
            "schema: rspp.scenario.v1\ntitle: Wrong\ncalls:\n  - says: [{{ words: hello, at_ms: 300 }}]\n    \
             cues: [{{ at_ms: 900, happens: mutes }}, {{ at_ms: 1000, happens: {{ cancel: {{ {cancel} }} }} }}]\n"
        );
        fs::write(folder.path().join("wrong.yaml"), text).expect("written");
        let (code, said, complaint) = rspp_in(folder.path(), &["rehearse", "wrong.yaml"]);
        assert_eq!(code, Some(2), "{said}{complaint}");
        complaint
    };
    for (cancel, what) in [
        (
            "scope: node",
            "node: is missing; say which, e.g. `node: tts`",
        ),
        (
            "scope: provider_invocation",
            "invocation: is missing; say which",
        ),
        (
            "scope: turn, node: tts",
            "node: means nothing to a cancel of scope `turn`",
        ),
        (
            "scope: session, invocation: x",
            "invocation: means nothing to a cancel of scope `session`",
        ),
    ] {
        let complaint = refused(cancel);
        let place = format!("wrong.yaml: calls[0].cues[1].happens.cancel.{what}");
        assert!(complaint.contains(&place), "{complaint}");
    }
}

/// F-049: a call that the runtime does not take is found to be otherwise than expected, and the other calls go on;
/// whoever reads JSON learns why each session ended.
#[test]
fn a_call_that_is_not_taken_is_told_of() {
    const FULL: &str = "\
schema: rspp.scenario.v1
title: A second call, and room for one
limits: { node: { sessions: { limit: 1 } } }
calls:
  - id: taken
    says: [{ words: hello, at_ms: 300 }]
    expect: { turns: [{ ends: commit }] }
  - { id: not-taken, opens_at_ms: 100 }
";
    let folder = tempfile::tempdir().expect("a directory");
    fs::write(folder.path().join("full.yaml"), FULL).expect("written");
    let (code, said, _) = rspp_in(folder.path(), &["rehearse", "full.yaml", "--json"]);
    assert_eq!(code, Some(1), "{said}");
    let told: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let calls = &told[0]["calls"];
    assert_eq!(calls[0]["ended"], "the user hung up");
    assert_eq!(calls[0]["turns"][0]["outcome"], "commit");
    let signals = calls[0]["signals"].as_array().expect("a list");
    let named = |at: usize| signals[at]["signal"].as_str();
    assert_eq!(
        [named(0), named(1)],
        [Some("lease_issued"), Some("connected")]
    );
    let why = calls[1]["refused"].as_str().expect("it says why");
    assert!(why.contains("admission_capacity_reject"), "{why}");
    assert_eq!(calls[1]["findings"][0]["expected"], "the call is taken");
}
