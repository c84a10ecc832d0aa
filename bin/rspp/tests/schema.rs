//! `rspp schema` and `rspp package`, as people and generators use them.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose ground gives way should fail"
)]

use std::{fs, path::Path, process::Command};

use rspp_timeline::{Entry, Options, Recording, Timeline};
use serde_json::Value;

/// Runs `rspp`: exit code, standard output and standard error.
fn rspp(arguments: &[&str]) -> (i32, String, String) {
    let ran = Command::new(env!("CARGO_BIN_EXE_rspp"))
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        ran.status.code().unwrap(),
        text(ran.stdout),
        text(ran.stderr),
    )
}

fn good(arguments: &[&str]) -> String {
    let (code, out, err) = rspp(arguments);
    assert_eq!(code, 0, "{arguments:?}: {out} {err}");
    out
}

/// A timeline of a call that was held by this build.
fn recording(folder: &Path) -> String {
    let file = folder.join("call.rspp").display().to_string();
    let scenario = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/scenarios/interruption.yaml"
    );
    let folder = folder.display().to_string();
    good(&["rehearse", scenario, "--timelines", &folder]);
    let written = fs::read_dir(&folder).unwrap();
    let written = written.map(|it| it.unwrap().path());
    let mut timelines = written.filter(|it| it.extension().is_some_and(|it| it == "rspp"));
    fs::rename(timelines.next().expect("a call was recorded"), &file).unwrap();
    file
}

/// F-032: a version is fetched from the command line, a recording is held to it offline, and digests are compared; a
/// recording that does not keep to its version is refused with the place.
#[test]
fn a_recording_is_held_to_the_version_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let listed: Value = serde_json::from_str(&good(&["schema", "list", "--json"])).unwrap();
    assert_eq!(listed[0]["schema_version"], "v1.0");
    let digest = listed[0]["digest"].as_str().unwrap();
    assert_eq!(good(&["schema", "digest"]).trim(), digest);

    // Fetched, and compared with what is served.
    let bundle = good(&["schema", "show", "v1.0", "--json"]);
    let fetched = folder.path().join("v1.json");
    fs::write(&fetched, &bundle).unwrap();
    let fetched = fetched.display().to_string();
    assert!(good(&["schema", "digest", &fetched, "v1.0"]).ends_with("the same\n"));
    let mut changed: Value = serde_json::from_str(&bundle).unwrap();
    changed["definitions"]["event"]["required"] = Value::Array(Vec::new());
    let other = folder.path().join("other.json");
    fs::write(&other, changed.to_string()).unwrap();
    let other = other.display().to_string();
    let (code, _out, err) = rspp(&["schema", "digest", &other, "v1.0"]);
    assert_eq!((code, err.contains("they differ")), (2, true), "{err}");

    // People see fields with types and what they mean.
    let shown = good(&["schema", "show", "v1.0", "event"]);
    for words in [
        "session_id",
        "SessionId",
        "The conversation.",
        digest_of(&listed, "event"),
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let (code, _out, err) = rspp(&["schema", "show", "v7.0"]);
    assert_eq!((code, err.contains("v1.0")), (2, true), "{err}");

    // A recording, and what its header says.
    let call = recording(folder.path());
    let said = good(&["schema", "validate", &call]);
    assert!(
        said.contains("valid v1.0") && said.contains("control_signal"),
        "{said}"
    );
    assert!(good(&["schema", "digest", &call, "v1.0"]).ends_with("the same\n"));
    let verdict: Value =
        serde_json::from_str(&good(&["schema", "validate", &call, "--json"])).unwrap();
    assert_eq!(verdict["recorded_digest"], digest);
    assert!(
        verdict["records"]["event"].as_u64().unwrap() > 0,
        "{verdict}"
    );

    // One whose signal lacks what its row demands.
    let broken = folder.path().join("broken.rspp");
    break_a_signal(Path::new(&call), &broken);
    let broken = broken.display().to_string();
    let (code, _out, err) = rspp(&["schema", "validate", &broken]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("control_signal"), "{err}");
}

fn digest_of<'a>(listed: &'a Value, name: &str) -> &'a str {
    listed[0]["definitions"][name].as_str().unwrap()
}

/// Writes the same timeline with a signal that lost its reason.
fn break_a_signal(from: &Path, to: &Path) {
    let timeline = Timeline::open(from).unwrap();
    let mut entries: Vec<Entry> = timeline.map(|item| item.unwrap().entry).collect();
    let broken = entries.iter_mut().find_map(|entry| match entry {
        Entry::Signal(signal) if signal.reason.is_some() && signal.validate().is_ok() => {
            let mut without = signal.clone();
            without.reason = None;
            without.validate().is_err().then(|| *signal = without)
        }
        _another_entry => None,
    });
    broken.expect("some signal needs its reason");
    let Entry::Header(header) = entries.remove(0) else {
        panic!("no header")
    };
    let written = async {
        let recording = Recording::create(to, *header, Options::default()).await;
        let (recorder, recording) = recording.unwrap();
        for entry in entries {
            if !matches!(entry, Entry::Footer(_)) {
                recorder.append(entry).unwrap();
            }
        }
        recording.close().await.unwrap();
    };
    tokio::runtime::Runtime::new().unwrap().block_on(written);
}

/// F-032: the definitions make types for Python that Python takes, with a type for each definition and what its
/// fields mean.
#[test]
fn definitions_make_types_for_python() {
    let folder = tempfile::tempdir().unwrap();
    let types = good(&["schema", "show", "v1.0", "--python"]);
    assert!(types.contains("# The conversation."), "{types}");
    fs::write(folder.path().join("rspp_types.py"), &types).unwrap();
    let script = "import rspp_types as t, typing\n\
        hints = typing.get_type_hints(t.EventRecord, vars(t))\n\
        assert t.EventRecord.__required_keys__ >= {'session_id', 'lane', 'event_id'}\n\
        assert hints['session_id'] is str, hints['session_id']\n\
        assert hints['runtime_sequence'] is int\n";
    let ran = Command::new("python3")
        .args(["-c", script])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

/// F-011, F-121: a folder becomes a package by one command, is listed by what pipelines name it, and one whose file was
/// changed afterwards is refused with both digests.
#[test]
fn a_folder_becomes_a_package() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("shout");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("shout.py"), "print()\n").unwrap();
    let says = "# Shouts.\nschema: rspp.package.v1\nname: shout\nversion: 1.0.0\nprotocol: rspp.external.v1\n\
                program: shout.py\ninterpreter: /usr/bin/python3\ndescription: Says it louder.\n";
    fs::write(own.join("package.yaml"), says).unwrap();
    let (all, one) = (
        folder.path().display().to_string(),
        own.display().to_string(),
    );
    let (code, _out, err) = rspp(&["package", "check", &one]);
    assert_eq!(
        (code, err.contains("rspp package pack")),
        (2, true),
        "{err}"
    );
    let packed = good(&["package", "pack", &one]);
    assert!(packed.starts_with("shout@1.0.0 sha256 "), "{packed}");
    assert_eq!(
        good(&["package", "pack", &one]),
        packed,
        "packed twice is packed once"
    );
    let written = fs::read_to_string(own.join("package.yaml")).unwrap();
    assert!(
        written.starts_with("# Shouts.\n"),
        "its author's words stay: {written}"
    );
    assert_eq!(good(&["package", "check", &one]), packed);
    let listed = good(&["package", "list", &all]);
    assert!(
        listed.contains("shout@1.0.0") && listed.contains("Says it louder."),
        "{listed}"
    );
    fs::write(own.join("shout.py"), "print(1)\n").unwrap();
    for arguments in [["package", "check", &*one], ["package", "list", &*all]] {
        let (code, _out, err) = rspp(&arguments);
        assert_eq!(
            (code, err.contains("is not what was packed")),
            (2, true),
            "{err}"
        );
    }
}
