//! What must not be said where.

use crate::tree;

/// Model vendors, by the words in which their names occur.
const VENDORS: [&str; 11] = [
    "openai",
    "anthropic",
    "deepgram",
    "elevenlabs",
    "cartesia",
    "assemblyai",
    "moonshine",
    "piper",
    "silero",
    "smart-turn",
    "smart_turn",
];

/// Where no vendor is named: the runtime and its contracts.
const NEUTRAL: [&str; 6] = [
    "proto/",
    "actors/",
    "runtime/",
    "controlplane/",
    "providers/api/",
    "transports/api/",
];

#[test]
fn vendors_are_named_at_the_edge_only() {
    let mut found = Vec::new();
    for (path, text) in tree::tracked() {
        let is_neutral = NEUTRAL.iter().any(|dir| path.starts_with(dir));
        if is_neutral {
            found.extend(lines_with(&path, &text, &VENDORS));
        }
    }
    assert!(
        found.is_empty(),
        "vendors in the runtime:\n{}",
        found.join("\n")
    );
}

/// Names of package registries do not belong here: what is fetched is fetched by the user's own
/// tools, from wherever they are told to. The words are put together, so as not to occur.
#[test]
fn no_registry_is_named() {
    let hosts = [
        ["crates", "io"],
        ["pypi", "org"],
        ["pythonhosted", "org"],
        ["npmjs", "com"],
        ["npmjs", "org"],
        ["huggingface", "co"],
        ["proxy.golang", "org"],
    ];
    let hosts = hosts.map(|[name, end]| format!("{name}.{end}"));
    let hosts: Vec<_> = hosts.iter().map(String::as_str).collect();
    let mut found = Vec::new();
    for (path, text) in tree::tracked() {
        // Cargo writes its own source into its own file.
        if path != "Cargo.lock" {
            found.extend(lines_with(&path, &text, &hosts));
        }
    }
    assert!(
        found.is_empty(),
        "registries by name:\n{}",
        found.join("\n")
    );
}

/// A path of the machine on which somebody happened to write it.
#[test]
fn no_private_path_is_named() {
    let paths = [
        ["/wo", "rk/"],
        ["/tm", "p/"],
        ["/ro", "ot/"],
        ["/Us", "ers/"],
    ];
    let paths = paths.map(|halves| halves.concat());
    let paths: Vec<_> = paths.iter().map(String::as_str).collect();
    let mut found = Vec::new();
    for (path, text) in tree::tracked() {
        found.extend(lines_with(&path, &text, &paths));
    }
    assert!(
        found.is_empty(),
        "paths of one machine:\n{}",
        found.join("\n")
    );
}

#[test]
fn a_word_is_found_whatever_its_case_and_with_its_line() {
    let text = "one\nthe OpenAI way\nthree";
    assert_eq!(
        lines_with("a.rs", text, &VENDORS),
        ["a.rs:2: the OpenAI way"]
    );
    assert_eq!(lines_with("a.rs", "pipe\npipeline", &VENDORS), [""; 0]);
}

fn lines_with(path: &str, text: &str, words: &[&str]) -> Vec<String> {
    let numbered = text.lines().enumerate();
    let said = numbered.filter(|(_, line)| {
        let line = line.to_lowercase();
        words.iter().any(|word| line.contains(&word.to_lowercase()))
    });
    said.map(|(index, line)| format!("{path}:{}: {}", index + 1, line.trim()))
        .collect()
}
