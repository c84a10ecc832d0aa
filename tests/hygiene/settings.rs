//! Mistakes in settings (NF-015): each is told before anything begins, in one line, with what to do.

use std::fs;

use crate::process::Program::{self, CommandLine, ControlPlane, Runtime};

/// A program is given something that cannot be: it ends with 2, begins nothing, and says all of `advice`.
#[track_caller]
fn check(program: Program, arguments: &[&str], advice: &[&str]) {
    check_with(program, arguments, &[], advice);
}

#[track_caller]
fn check_with(program: Program, arguments: &[&str], environment: &[(&str, &str)], advice: &[&str]) {
    let said = program.run(arguments, environment);
    let told = format!("{program:?} {arguments:?}: {said:?}");
    assert_eq!(said.status.code(), Some(2), "{told}");
    assert!(said.out.is_empty(), "{told}");
    for words in advice {
        assert!(said.err.contains(words), "no `{words}`: {told}");
    }
    for started in ["serves", "serving", "panicked"] {
        assert!(!said.err.contains(started), "{told}");
    }
    let errors = said.err.lines().filter(|line| line.starts_with("error"));
    assert!(errors.count() <= 1, "it is told once: {told}");
}

/// What `--set` is followed by in each row below.
const SCRIPTED: [&str; 6] = [
    "--set",
    "providers.scripted=true",
    "--set",
    "listen.calls=127.0.0.1:0",
    "--set",
    "listen.health=127.0.0.1:0",
];

/// The same for a runtime that would start but for these settings.
#[track_caller]
fn runtime(settings: &[&str], advice: &[&str]) {
    let set = settings.iter().flat_map(|setting| ["--set", setting]);
    let arguments: Vec<&str> = SCRIPTED.into_iter().chain(set).collect();
    check(Runtime, &arguments, advice);
}

/// NF-015: a runtime with a wrong provider, pipeline, address, credential or limit does not begin, and says where
/// the mistake is and what would be right.
#[test]
fn a_runtime_says_what_is_wrong_with_its_settings() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    // Keys and values.
    runtime(&["capasity=7"], &["did you mean `capacity`"]);
    runtime(&["capacity=many"], &["--set capacity", "`capacity`"]);
    runtime(&["capacity"], &["write it as KEY=VALUE"]);
    runtime(
        &["drain.deadline=soon"],
        &["drain.deadline", "`250ms`, `4s`"],
    );
    runtime(&["drain.how=run"], &["drain.how", "move", "finish", "wait"]);
    runtime(&["listen.calls=here"], &["listen.calls"]);
    runtime(&["log.filter=a=b=c"], &["log.filter", "part=level"]);
    runtime(&["log.format=xml"], &["log.format", "json"]);
    runtime(&["name="], &["name"]);
    // Providers.
    runtime(
        &["providers.llm=gpt"],
        &["providers.llm", "known: dialogue"],
    );
    runtime(&["providers.stt=nobody"], &["providers.stt", "scripted"]);
    runtime(
        &["providers.llm=openai", "providers.openai.url=http://a/v1"],
        &["providers.openai", "url and model belong together"],
    );
    let served = "providers.openai.model=m";
    runtime(
        &[served, "providers.openai.url=a.example"],
        &["providers.openai", "http://127.0.0.1:8080/v1"],
    );
    runtime(
        &[
            served,
            "providers.openai.url=http://a/v1",
            "providers.openai.api_key=sk-1234",
        ],
        &["providers.openai.api_key", "env://NAME"],
    );
    // Pipelines.
    let unknown = file("unknown.yaml", "schema: rspp.pipeline.v1\ncolour: blue\n");
    let unknown = format!("pipeline={unknown}");
    runtime(&[&unknown], &["unknown.yaml:2", "colour"]);
    runtime(
        &["pipeline=/nowhere.yaml"],
        &["pipeline", "/nowhere.yaml", "No such file"],
    );
    // Who may come in.
    runtime(
        &["listen.calls=0.0.0.0:0"],
        &["set control_plane.addresses", "listen on 127.0.0.1"],
    );
    let plane = "control_plane.addresses=[https://localhost:1]";
    runtime(
        &[plane, "control_plane.key=k"],
        &["control_plane", "belong together"],
    );
    runtime(
        &["control_plane.addresses=[localhost]"],
        &["control_plane", "http"],
    );
    let plane = "control_plane.addresses=[http://127.0.0.1:1]";
    runtime(&[plane, "region="], &["region"]);
    // Files.
    check(
        Runtime,
        &["--config", "/nowhere.yaml"],
        &["no such file; name another with --config"],
    );
    let list = file("list.yaml", "- a\n");
    check(Runtime, &["--config", &list], &["map of keys to values"]);
    let torn = file("torn.yaml", "listen: {calls: 127.0.0.1:0\n");
    check(Runtime, &["--config", &torn], &["torn.yaml"]);
    let nested = file("nested.yaml", "listen:\n  colls: 127.0.0.1:0\n");
    check(
        Runtime,
        &["--config", &nested],
        &["nested.yaml", "did you mean `listen.calls`"],
    );
    check_with(
        Runtime,
        &[],
        &[("RSPP_RUNTIME_LISTEN__CALS", "127.0.0.1:0")],
        &["$RSPP_RUNTIME_LISTEN__CALS", "did you mean `listen.calls`"],
    );
    check(Runtime, &["--sett", "a=b"], &["--set"]);
}

/// NF-015: a control plane without keys, with half of a credential, or open to a network in the clear does not
/// begin, and says what would be right.
#[test]
fn a_control_plane_says_what_is_wrong_with_its_settings() {
    let dir = tempfile::tempdir().unwrap();
    let seed = dir.path().join("k1.seed");
    fs::write(&seed, "00".repeat(32)).unwrap();
    let good = format!("keys=[{{id: k1, file: {}}}]", seed.display());
    let plane = |settings: &[&str], advice: &[&str]| {
        let set = settings.iter().flat_map(|setting| ["--set", setting]);
        let arguments: Vec<&str> = ["--set", &good].into_iter().chain(set).collect();
        check(ControlPlane, &arguments, advice);
    };
    check(
        ControlPlane,
        &[],
        &["keys", "no default secret exists", "--dev"],
    );
    plane(
        &["keys=[{id: k1, file: /nowhere}]"],
        &["keys.file", "/nowhere"],
    );
    let short = dir.path().join("short.seed");
    fs::write(&short, "canary").unwrap();
    let short = format!("keys=[{{id: k1, file: {}}}]", short.display());
    plane(&[&short], &["keys.file", "64 hexadecimal digits"]);
    plane(&["keys=[{id: k1}]"], &["keys", "file"]);
    plane(&["listen.grcp=a"], &["did you mean `listen.grpc`"]);
    plane(&["listen.grpc=localhost"], &["write it as 127.0.0.1:7400"]);
    plane(&["listen.health=7401"], &["listen.health", "write it as"]);
    plane(&["listen.grpc=0.0.0.0:0"], &["listen.grpc", "set `tls`"]);
    plane(&["lease=1ms"], &["lease"]);
    plane(&["lease=for ever"], &["lease", "`4s`"]);
    plane(&["retention.ended=1s"], &["retention"]);
    plane(
        &["store.etcd={endpoints: [http://127.0.0.1:1], user: a}"],
        &["`user` goes with `password_file`"],
    );
    plane(
        &["store.etcd={endpoints: [http://127.0.0.1:1], key: a}"],
        &["a certificate goes with its key"],
    );
    plane(&["store.etcd={endpoint: a}"], &["store.etcd", "endpoints"]);
    plane(&["tls={authorities: a}"], &["tls", "certificate"]);
    check(
        ControlPlane,
        &["--config", "/nowhere.yaml"],
        &["no such file"],
    );
}

/// NF-015: the command line refuses a wrong pipeline, provider, reference or address before it starts anything.
#[test]
fn the_command_line_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.yaml");
    fs::write(&bad, "schema: rspp.pipeline.v1\nversion: a-1\nnodez: []\n").unwrap();
    let bad = bad.display().to_string();
    let all = format!("rspp validate spec {bad}");
    check(
        CommandLine,
        &["up", "--pipeline", &bad],
        &["bad.yaml:1", &all],
    );
    // It tells all that is wrong, a line each.
    let all = CommandLine.run(&["validate", "spec", &bad], &[]);
    let told = "bad.yaml:3:1: nodez: unknown field `nodez`; did you mean `nodes`?";
    assert!(all.err.contains(told), "{all:?}");
    assert_eq!(all.status.code(), Some(2));
    check(
        CommandLine,
        &["loopback", "--llm", "openai", "--say", "hello"],
        &["--llm-url URL --llm-model MODEL"],
    );
    check(
        CommandLine,
        &["loopback", "--stt", "nobody", "--say", "hello"],
        &["unknown stt provider `nobody`", "known"],
    );
    let server = ["--llm-url", "http://127.0.0.1:1/v1", "--llm-model", "m"];
    let with_key = ["loopback", "--say", "hello", "--llm-api-key", "sk-1234"];
    let arguments: Vec<&str> = with_key.into_iter().chain(server).collect();
    check(CommandLine, &arguments, &["env://NAME"]);
    check(
        CommandLine,
        &["pipeline", "list", "--control-plane", "nowhere"],
        &["http"],
    );
    check(
        CommandLine,
        &["pipeline", "list", "--token-file", "/nowhere"],
        &["/nowhere"],
    );
    check(CommandLine, &["up", "--nodes", "0"], &["--nodes"]);
    check(CommandLine, &["lopback"], &["loopback"]);
}
