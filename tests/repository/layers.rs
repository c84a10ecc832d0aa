//! Who may know whom. An arrow goes down only; what a crate keeps out is why it exists.

use std::{collections::BTreeSet, fs};

use crate::tree;

/// Each crate of ours, what of ours it may be built from, and nothing else. Programs may use all of it,
/// the tests the programs too; nothing else may use those.
const MAY_USE: &[(&str, &[&str])] = &[
    ("rspp-proto", &[]),
    ("rspp-actors", &[]),
    ("rspp-service", &[]),
    ("rspp-kernel", &["rspp-proto"]),
    ("rspp-timeline", &["rspp-proto"]),
    ("rspp-provider-api", &["rspp-proto"]),
    ("rspp-transport-api", &["rspp-proto"]),
    ("rspp-websocket", &["rspp-proto", "rspp-transport-api"]),
    ("rspp-controlplane-api", &["rspp-proto"]),
    ("rspp-controlplane", &["rspp-proto"]),
    (
        "rspp-controlplane-storage",
        &["rspp-proto", "rspp-controlplane"],
    ),
    (
        "rspp-controlplane-server",
        &[
            "rspp-proto",
            "rspp-timeline",
            "rspp-controlplane",
            "rspp-controlplane-api",
            "rspp-controlplane-storage",
        ],
    ),
    (
        "rspp-host",
        &[
            "rspp-proto",
            "rspp-actors",
            "rspp-kernel",
            "rspp-timeline",
            "rspp-provider-api",
            "rspp-transport-api",
            "rspp-controlplane-api",
        ],
    ),
    (
        "rspp-replay",
        &[
            "rspp-proto",
            "rspp-actors",
            "rspp-kernel",
            "rspp-timeline",
            "rspp-provider-api",
            "rspp-transport-api",
            "rspp-controlplane-api",
            "rspp-host",
        ],
    ),
    ("rspp-local", &["rspp-proto", "rspp-provider-api"]),
    ("rspp-provider-http", &[]),
    (
        "rspp-archive",
        &["rspp-proto", "rspp-timeline", "rspp-provider-http"],
    ),
    (
        "rspp-otlp",
        &["rspp-proto", "rspp-timeline", "rspp-provider-http"],
    ),
    (
        "rspp-llm",
        &["rspp-proto", "rspp-provider-api", "rspp-provider-http"],
    ),
    (
        "rspp-tools",
        &["rspp-proto", "rspp-provider-api", "rspp-provider-http"],
    ),
];
/// What stands above all of them.
const ON_TOP: [&str; 4] = ["rspp", "rspp-control-plane", "rspp-runtime", TESTS];
/// They run the programs too.
const TESTS: &str = "rspp-tests";

/// What a crate of ours must never name, not even for its tests.
const KEPT_OUT: [(&str, &[&str]); 4] = [
    (
        "rspp-controlplane",
        &[
            "tokio",
            "tokio-util",
            "tokio-stream",
            "rand",
            "tonic",
            "tracing",
        ],
    ),
    (
        "rspp-kernel",
        &[
            "tokio",
            "tokio-util",
            "tokio-stream",
            "futures",
            "rand",
            "tracing",
        ],
    ),
    (
        "rspp-proto",
        &["tokio", "tokio-util", "tokio-stream", "futures", "ractor"],
    ),
    ("rspp-provider-api", &["reqwest", "hyper", "ort"]),
];

#[test]
fn arrows_go_down_only() {
    let packages = tree::packages();
    let ours: BTreeSet<_> = packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    let placed: BTreeSet<_> = MAY_USE
        .iter()
        .map(|(name, _)| *name)
        .chain(ON_TOP)
        .collect();
    assert_eq!(ours, placed, "every crate has a place in the house");

    for package in &packages {
        let uses = package.builds_on.iter().map(String::as_str);
        let uses: BTreeSet<_> = uses.filter(|name| ours.contains(name)).collect();
        let allowed: BTreeSet<_> = match MAY_USE.iter().find(|(name, _)| *name == package.name) {
            Some((_, allowed)) => allowed.iter().copied().collect(),
            None => ours
                .iter()
                .copied()
                .filter(|name| package.name == TESTS || !ON_TOP.contains(name))
                .collect(),
        };
        let too_much: Vec<_> = uses.difference(&allowed).collect();
        assert!(
            too_much.is_empty(),
            "{} must not know {too_much:?}",
            package.name
        );
    }
}

#[test]
fn what_a_crate_keeps_out_stays_out() {
    let packages = tree::packages();
    for (name, kept_out) in KEPT_OUT {
        let package = packages.iter().find(|package| package.name == name);
        let package = package.expect("the rule is about a crate that exists");
        let named = package
            .names
            .iter()
            .find(|name| kept_out.contains(&name.as_str()));
        assert_eq!(named, None, "{name} keeps it out");
    }
    let may_name = [
        ("ractor", BTreeSet::from(["rspp-actors", "rspp-host"])),
        (
            "tonic",
            BTreeSet::from([
                "rspp-controlplane-api",
                "rspp-controlplane-server",
                "rspp-controlplane-storage",
                "rspp-otlp",
                TESTS,
            ]),
        ),
    ];
    for (what, allowed) in may_name {
        let namers = packages
            .iter()
            .filter(|package| package.names.iter().any(|name| name == what));
        let namers: BTreeSet<_> = namers.map(|package| package.name.as_str()).collect();
        assert!(
            namers.is_subset(&allowed),
            "only {allowed:?} may name {what}: {namers:?}"
        );
    }
}

#[test]
fn a_crate_says_the_same_of_itself_in_both_places() {
    for package in tree::packages() {
        let source = fs::read_to_string(&package.front).expect("the crate's first file");
        let first = source.lines().next().unwrap_or_default();
        assert_eq!(
            first.strip_prefix("//! "),
            Some(package.description.as_str()),
            "{}: the first line of {} is the description in Cargo.toml",
            package.name,
            package.front.display()
        );
    }
}

#[test]
fn manifests_inherit_what_the_workspace_decides() {
    for package in tree::packages() {
        let manifest = package.dir.join("Cargo.toml");
        let text = fs::read_to_string(&manifest).expect("the manifest");
        assert!(
            text.contains("[lints]\nworkspace = true"),
            "{}: lints come from the workspace",
            package.name
        );
        for line in text.lines() {
            let is_versioned = line.contains("version = \"") || line.contains("= \"=");
            assert!(
                !is_versioned,
                "{}: `{line}` belongs into the root",
                package.name
            );
        }
    }
}
