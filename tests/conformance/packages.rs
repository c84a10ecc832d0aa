//! Packages of nodes: apart from pipelines, under versions that never change (F-011, F-121).

use std::{fs, path::Path, sync::Arc, time::Duration};

use rspp_host::{NodeRegistry, node::Package};
use rspp_proto::{
    abi::Signal,
    spec::{NodeSpec, PACKAGE_FILE},
};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Cast, Ended},
    nodes::{insert, node},
};
use rspp_timeline::Entry;
use rspp_transport_api::Ingress;
use serde_json::json;

/// The sample in Python, which answers in capitals.
const SHOUT: &str = include_str!("../nodes/echo.py");

/// Packs a version of the sample in a folder of its own.
fn pack(folder: &Path, version: &str, program: &str) {
    let own = folder.join(format!("shout-{version}"));
    fs::create_dir(&own).unwrap();
    fs::write(own.join("shout.py"), program).unwrap();
    let digest = rspp_host::node::digest_of(&own.join("shout.py")).unwrap();
    let says = json!({
        "schema": "rspp.package.v1",
        "name": "shout",
        "version": version,
        "protocol": "rspp.external.v1",
        "program": "shout.py",
        "interpreter": "/usr/bin/python3",
        // A busy machine is no fault of the node's.
        "limits": { "start_timeout_ms": 20_000, "event_timeout_ms": 20_000 },
        "files": { "shout.py": digest },
    });
    fs::write(own.join(PACKAGE_FILE), says.to_string()).unwrap();
}

fn registry(folder: &Path) -> NodeRegistry {
    let mut registry = NodeRegistry::default();
    for package in Package::load_all(folder).unwrap() {
        registry.register_package(package);
    }
    registry
}

fn pinned(kind: &str, digest: Option<&str>) -> NodeSpec {
    let mut written = json!({ "id": "shout", "kind": { "custom": kind } });
    if let Some(digest) = digest {
        written["digest"] = digest.into();
    }
    node(written)
}

/// A call whose model's words go through a package.
fn through(registry: &NodeRegistry, node: NodeSpec) -> Builder {
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers(["Good day."])),
        ..Cast::default()
    };
    let registry = registry.clone();
    let mut builder = Builder::new(&cast, vec![])
        .pipeline(|spec| {
            insert(spec, "llm", node, "segmenter");
            spec.budgets.turn_budget_ms = Some(60_000);
        })
        .configure(|config| config.nodes = Arc::new(registry));
    builder.script.reply_timeout = Duration::from_mins(1);
    builder.script.hang_up_after = Duration::from_mins(1);
    builder
}

async fn one_turn(registry: &NodeRegistry, kind: &str) -> Ended {
    let mut builder = through(registry, pinned(kind, None));
    let user = builder.client();
    let call = builder.start().await;
    user.send(Ingress::Text("hello".to_owned())).unwrap();
    call.log.until(Signal::Close, 1).await;
    call.line.hang_up();
    call.end().await
}

/// What a run came to: the words that were to be said, the plan's hash, and the package that it names.
fn came_to(ended: &Ended) -> (String, String, Option<String>) {
    let opening = ended.entries.iter().find_map(|entry| match entry {
        Entry::Opening(opening) => Some(opening),
        _another_entry => None,
    });
    let nodes = opening.expect("it is recorded").pipeline["nodes"].clone();
    let shout = nodes
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["id"] == "shout");
    let digest = shout.unwrap()["digest"].as_str().map(str::to_owned);
    let turn = ended.turn(1);
    assert_eq!(turn.outcome, "commit", "{:?}", ended.report);
    // What was made: how much of it a busy machine plays in time is no matter of the package.
    let said = turn.agent_text.trim().to_owned();
    (said, turn.plan_hash.clone(), digest)
}

/// F-121, F-011: two versions of a package; a pipeline that names one runs the same program, with the same plan, to
/// the hash, before and after the other is there; and the plan's hash says which.
#[tokio::test]
async fn a_pinned_version_stays_what_it_was() {
    let folder = tempfile::tempdir().unwrap();
    pack(folder.path(), "1.0.0", SHOUT);
    let alone = registry(folder.path());
    let first = came_to(&one_turn(&alone, "shout@1.0.0").await);
    pack(
        folder.path(),
        "2.0.0",
        &SHOUT.replace(".upper()", ".lower()"),
    );
    let both = registry(folder.path());
    let again = came_to(&one_turn(&both, "shout@1.0.0").await);
    let second = came_to(&one_turn(&both, "shout@2.0.0").await);
    assert_eq!(first.0, "GOOD DAY.");
    assert_eq!(again, first, "pinned runs stay equal");
    assert_eq!(second.0, "good day.");
    assert_ne!(second.1, first.1, "another package is another plan");
    let digests = Package::load_all(folder.path()).unwrap();
    let digests: Vec<_> = digests
        .iter()
        .map(|it| Some(it.digest().to_owned()))
        .collect();
    assert_eq!([first.2, second.2], *digests);
}

/// F-121: a program that was changed under its version is not loaded, and no session opens that would run it; nor
/// does one that names another digest, or a version that nobody has.
#[tokio::test]
async fn what_is_not_as_it_was_packed_does_not_run() {
    let folder = tempfile::tempdir().unwrap();
    pack(folder.path(), "1.0.0", SHOUT);
    let registry = registry(folder.path());
    let opens = async |node: NodeSpec| {
        let mut builder = through(&registry, node);
        let runtime = builder.runtime().await;
        match builder.open(&runtime).await {
            Ok(placed) => {
                drop(placed);
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    };
    let digest = Package::load_all(folder.path()).unwrap()[0]
        .digest()
        .to_owned();
    opens(pinned("shout@1.0.0", Some(&digest))).await.unwrap();
    let other = "0".repeat(64);
    let refused = opens(pinned("shout@1.0.0", Some(&other)))
        .await
        .unwrap_err();
    assert!(
        refused.contains(&digest) && refused.contains(&other),
        "{refused}"
    );
    let refused = opens(pinned("shout@3.0.0", None)).await.unwrap_err();
    assert!(refused.contains("known: shout@1.0.0"), "{refused}");

    let program = folder.path().join("shout-1.0.0/shout.py");
    fs::write(&program, SHOUT.replace(".upper()", ".title()")).unwrap();
    let refused = opens(pinned("shout@1.0.0", None)).await.unwrap_err();
    assert!(refused.contains("is not what was packed"), "{refused}");
    let refused = Package::load_all(folder.path()).unwrap_err().to_string();
    assert!(refused.contains("is not what was packed"), "{refused}");
    // As it was, it runs again.
    fs::write(&program, SHOUT).unwrap();
    opens(pinned("shout@1.0.0", None)).await.unwrap();
}

/// F-011: what a package says of itself is checked like any spec, with the place of each mistake.
#[test]
fn a_package_that_makes_no_sense_is_refused_with_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |says: &str| {
        fs::write(folder.path().join(PACKAGE_FILE), says).unwrap();
        Package::load(folder.path()).unwrap_err().to_string()
    };
    let good = "schema: rspp.package.v1\nname: a\nversion: '1.0'\nprotocol: rspp.external.v1\nprogram: a.py\n";
    for (wrong, right, told) in [
        ("name: a\n", "name: A b\n", "package.yaml:2"),
        ("version: '1.0'\n", "version: one\n", "numbers with dots"),
        (
            "rspp.external.v1",
            "rspp.external.v9",
            "write `protocol: rspp.external.v1`",
        ),
        ("a.py", "../a.py", "leads out of the package's folder"),
        ("program", "programme", "program"),
        (
            "rspp.package.v1",
            "rspp.package.v2",
            "write `schema: rspp.package.v1`",
        ),
    ] {
        let refused = refused(&good.replace(wrong, right));
        assert!(refused.contains(told), "{told}: {refused}");
    }
    assert!(refused(good).contains("run `rspp package pack`"));
}
