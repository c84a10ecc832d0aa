//! The program as its users meet it: its own process, its output, its exit code.
//!
//! Nothing here needs models or a network; whole conversations are in `conversation.rs`.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose ground gives way should fail"
)]

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use insta::assert_snapshot;
use serde_json::Value;

/// A place of its own: a working directory, and an empty model store.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        fs::write(self.path(name), content).unwrap();
        self
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rspp"));
        command
            .args(arguments)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .env("COLUMNS", "100")
            .env("HOME", self.0.path())
            .env("RSPP_MODEL_DIR", self.path("models"))
            // The index of a machine without a network.
            .env("PIP_CONFIG_FILE", "/dev/null")
            .env("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
            .env("PIP_RETRIES", "1")
            .env("PIP_TIMEOUT", "1")
            .env_remove("RSPP_LOG")
            .env_remove("ORT_DYLIB_PATH");
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }
}

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// Standard output of a success.
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!(
            (self.code, self.err.as_str()),
            (Some(0), ""),
            "{}",
            self.out
        );
        self.out
    }

    /// The one line that tells what is wrong with the input.
    #[track_caller]
    fn refusal(self) -> String {
        assert_eq!(self.code, Some(2), "{}{}", self.out, self.err);
        assert_eq!(self.out, "", "nothing is printed as a result");
        assert_eq!(
            self.err.lines().count(),
            1,
            "more than one line:\n{}",
            self.err
        );
        self.err.trim_end().to_owned()
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

/// A WAV file of one channel.
fn wav(path: &Path, rate: u32, samples: &[i16]) {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: rate,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(path, spec).unwrap();
    for sample in samples {
        writer.write_sample(*sample).unwrap();
    }
    writer.finalize().unwrap();
}

/// A timeline that the recorder's own tests keep.
const TIMELINE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../runtime/timeline/tests/data/v1.0.rspp"
);

// --- help ------------------------------------------------------------------------------------------

#[test]
fn help_shows_what_there_is_with_examples() {
    assert_snapshot!(Place::new().run(&["--help"]).ok(), @r#"
    Talk to a voice agent from the command line, and look inside it

    Usage: rspp [OPTIONS] <COMMAND>

    Commands:
      up          Talk to the agent in a browser: runtime, local models and a page, in one process
      loopback    Talk to the agent on this machine: WAV files or text go in, its spoken reply comes out
      validate    Check a pipeline or policy file, with the place of everything that is wrong
      schema      See what events, signals and specs consist of, and hold recordings to it
      plan        Show the plan that a turn would run with, and where each value came from
      rehearse    Rehearse calls in which things go wrong, and see what the runtime does about it
      timeline    Look at the timeline of a recorded conversation
      gates       Judge recorded calls by the seven quality gates
      replay      Play a recorded call again, and say where it differs
      diff        Set two recorded calls against each other
      tree        Show the supervision tree of a conversation, caught while the agent speaks
      doctor      Check what a conversation on this machine needs, each with its fix
      models      List, fetch and check the local models
      package     Pack nodes of your own as programs with a version, and see what a folder of packages
                  has
      pipeline    Publish pipelines, and look at what is published
      policy      Publish policies and provider configurations, and look at what is published
      rollout     Decide which version new sessions get; running ones keep theirs
      session     See where sessions run and how they go; let clients in; move sessions
      node        See the runtimes of the fleet, and empty them
      region      See how regions fare, and leave them
      rules       See and set the rules for everybody: limits, approvals, regions, error budget
      key         See the keys that tokens are signed with, and let them take turns
      credential  Issue a certificate that says who asks a control plane, and as what
      audit       See who did what, and prove that nobody altered it
      backup      Write everything that a control plane keeps into a file
      restore     Put a backup into a control plane on an empty store

    Options:
      -v, --verbose...  Log to standard error: -v what happens, -vv details; RSPP_LOG filters
      -h, --help        Print help
      -V, --version     Print version

    Examples:
      rspp doctor                                   Is everything there?
      rspp up                                       Talk to the agent in a browser
      rspp loopback --say 'Hello, who are you?'     Talk to the agent, offline
      rspp loopback question.wav --out reply.wav    The same with a recording
      rspp validate spec pipeline.yaml              Check a pipeline
      rspp rehearse tests/scenarios/*.yaml          What happens if …
      rspp timeline show call.rspp --turn 1         What happened, event by event
      rspp pipeline publish pipeline.yaml           Publish a version
      rspp rollout set greeter-2 --percent 10       Give it to a tenth of all new sessions

    Exit codes: 0 success, 1 failure, 2 bad input or usage.
    "#);
}

#[test]
fn help_of_loopback_shows_every_option() {
    assert_snapshot!(Place::new().run(&["loopback", "-h"]).ok(), @r#"
    Talk to the agent on this machine: WAV files or text go in, its spoken reply comes out

    Usage: rspp loopback [OPTIONS] [WAV]...

    Arguments:
      [WAV]...  Recordings of what the user says: WAV, any rate, mono or stereo, one turn each

    Options:
          --say <TEXT>
              A turn of the user's, synthesised by the local voice; may be repeated
          --barge-in-at <AFTER> <FILE|TEXT>
              A turn that interrupts the agent, this long after its reply began to sound: `1.2s`,
              `800ms`
          --realtime
              Run in real time, as a call would
          --pipeline <FILE>
              The pipeline; the built-in one without
          --policy <FILE>
              A policy bundle that overrides it
      -v, --verbose...
              Log to standard error: -v what happens, -vv details; RSPP_LOG filters
      -h, --help
              Print help (see more with '--help')

    Line:
          --phone          Over a telephone line: 8 kHz both ways, and what G.711 leaves of a voice
          --jitter <TIME>  How late frames may come, both ways, such as 120ms: what comes too late is a
                           gap in what is heard

    Providers:
          --stt <ID>           Speech to text [default: moonshine]
          --llm <ID>           Language model: `dialogue` (offline, by rules) or `openai` [default:
                               dialogue]
          --tts <ID>           Text to speech [default: piper]
          --vad <ID>           Voice activity: `silero`, `earshot` or `energy` [default: silero]
          --end-of-turn <ID>   End of turn: `smart-turn` or `pause` [default: smart-turn]
          --llm-url <URL>      An OpenAI-compatible server for `--llm openai`, such as
                               http://127.0.0.1:8080/v1
          --llm-model <MODEL>  The model to ask it for
          --llm-api-key <REF>  Where its key is, never the key itself: env://NAME

    Output:
          --out <FILE>              Keep the conversation as a stereo WAV file: left the user, right the
                                    agent
          --timeline <FILE>         Keep the timeline; see `rspp timeline show`
          --report <FILE>           Keep the report as JSON
          --tree                    Show the supervision tree, caught while the agent speaks
          --json                    Print the report as JSON instead of the conversation
          --export <PLACE>          Export the timeline while it is written: to a directory,
                                    `s3://bucket/prefix`, or `http://host/bucket/prefix`
          --spool <DIR>             Where timelines wait for the archive [default:
                                    ~/.local/state/rspp/spool]
          --archive-keys <FILE>     Keys that archives are sealed and opened with, by reference: see
                                    `rspp timeline keys --help`
          --export-settings <FILE>  Settings of exports: a file with `exports: { to: …, spool: …, keys:
                                    …, policy: { … } }`; flags win

    Models:
          --models <DIR>  Directory of the models [default: ~/.cache/rspp/models] [env: RSPP_MODEL_DIR]
          --no-pull       Do not fetch missing models

    Examples:
      rspp loopback                                       A built-in conversation of two turns
      rspp loopback --say 'What are your opening hours?'  Speak as text
      rspp loopback question.wav --out reply.wav          Speak as a recording, keep both sides
      rspp loopback --say 'Tell me a long story.' --barge-in-at 1.5s 'Stop, thank you.'
      rspp loopback --phone --jitter 120ms --out heard.wav   Hear what a caller on a bad line hears
      rspp loopback a.wav --timeline call.rspp --report call.json
      rspp loopback a.wav --export s3://acme-calls/eu     Timeline to a bucket, see `rspp timeline list`
      rspp loopback --llm-url http://127.0.0.1:8080/v1 --llm-model qwen --say 'Hello!'

    Turns are spoken in the order given, each when the reply before is over.
    "#);
}

#[test]
fn help_of_the_timeline_shows_every_filter() {
    assert_snapshot!(Place::new().run(&["timeline", "show", "-h"]).ok(), @r#"
    Show a timeline's events, one line each

    Usage: rspp timeline show [OPTIONS] <FILE>

    Arguments:
      <FILE>  The recording; with --from its name in the archive

    Options:
          --from <PLACE>     Out of this archive: a directory, `s3://bucket/prefix` or
                             `http://host/bucket/prefix`
          --turn <TURN>      Only these turns: `2` or `turn-0002`
          --kind <KIND>      Only these kinds of entries [possible values: header, plan, signal, event,
                             outcome, transition, attempt, invocation, handoff, playout, level, dropped,
                             turn, footer, journal, tool, opening, capture]
          --type <TYPE>      Only events of these types [possible values: audio, text, control, metrics,
                             debug, error]
          --signal <SIGNAL>  Only these control signals
          --node <NODE>      Only what these graph nodes did
          --lane <LANE>      Only these lanes [possible values: control, data, telemetry]
          --since <TIME>     Not before this time since the recording began: `1.5s`, `800ms`
          --until <TIME>     Not at or after this time since the recording began
          --waterfall        Show where each turn's time went, instead of the events
          --check            Check the recording's invariants instead; exit code 1 if one is broken
          --json             Print JSON, one object a line
      -v, --verbose...       Log to standard error: -v what happens, -vv details; RSPP_LOG filters
      -h, --help             Print help

    Output:
          --archive-keys <FILE>  Keys that archives are sealed and opened with, by reference: see `rspp
                                 timeline keys --help`

    Examples:
      rspp timeline show call.rspp                         Everything
      rspp timeline show call.rspp --turn 2 --kind signal  The control signals of turn 2
      rspp timeline show call.rspp --signal barge_in       Every interruption
      rspp timeline show call.rspp --waterfall             Where each turn's time went
      rspp timeline show call.rspp --check                 Does it keep the invariants?
      rspp timeline show call.rspp --json | jq .kind       For programs, one object a line
      rspp timeline show acme/call-7/1790000000000-1 --from s3://acme-calls/eu --archive-keys keys.yaml

    Several filters must all hold; several values of one filter are alternatives.
    "#);
}

// --- bad input: one line with the fix, exit code 2 -------------------------------------------------

#[test]
fn a_missing_file_is_named() {
    let refusal = Place::new().run(&["loopback", "gone.wav"]).refusal();
    assert_snapshot!(refusal, @"error: gone.wav: no such file");
}

#[test]
fn an_empty_file_is_told_from_one_without_samples() {
    let place = Place::new();
    place.file("empty.wav", "");
    wav(&place.path("none.wav"), 16_000, &[]);
    let empty = place.run(&["loopback", "empty.wav"]).refusal();
    assert_snapshot!(empty, @"error: empty.wav: the file is empty (0 bytes); record or export it again");
    let none = place.run(&["loopback", "none.wav"]).refusal();
    assert_snapshot!(none, @"error: none.wav: the WAV file holds no audio (0 samples); record or export it again");
}

#[test]
fn a_recording_of_silence_is_told() {
    let place = Place::new();
    wav(&place.path("quiet.wav"), 16_000, &vec![3; 16_000]);
    let refusal = place.run(&["loopback", "quiet.wav"]).refusal();
    assert_snapshot!(refusal, @"error: quiet.wav: the recording is silent; check the microphone or its level");
}

#[test]
fn an_mp3_that_is_named_wav_is_recognised() {
    let place = Place::new();
    place.file("song.wav", b"ID3\x04\0\0\0\0\0\0more");
    let refusal = place.run(&["loopback", "song.wav"]).refusal();
    assert_snapshot!(refusal, @"error: song.wav: is an MP3 file, not WAV; convert it: ffmpeg -i song.wav -ar 16000 song.16k.wav");
}

#[test]
fn text_with_the_name_of_a_wav_is_refused() {
    let place = Place::new();
    place.file("note.wav", "hello, world");
    let refusal = place.run(&["loopback", "note.wav"]).refusal();
    assert_snapshot!(refusal, @"error: note.wav: is not a WAV file (it does not start with RIFF/WAVE)");
}

#[test]
fn a_missing_barge_in_file_is_not_taken_for_words() {
    let refusal = Place::new()
        .run(&[
            "loopback",
            "--say",
            "Hi.",
            "--barge-in-at",
            "1s",
            "stop.wav",
        ])
        .refusal();
    assert_snapshot!(refusal, @"error: stop.wav: no such file");
}

#[test]
fn a_barge_in_has_to_make_sense() {
    let place = Place::new();
    let soon = place
        .run(&["loopback", "--say", "Hi.", "--barge-in-at", "soon", "Stop."])
        .refusal();
    assert_snapshot!(soon, @"error: --barge-in-at soon: write a time such as 1.2s or 800ms");
    let first = place
        .run(&["loopback", "--barge-in-at", "1s", "Stop."])
        .refusal();
    assert_snapshot!(first, @"error: --barge-in-at needs a reply to interrupt: put a WAV file or --say before it");
    let blank = place.run(&["loopback", "--say", " "]).refusal();
    assert_snapshot!(blank, @"error: --say needs words to say");
}

#[test]
fn an_unknown_provider_is_refused_with_those_there_are() {
    let place = Place::new();
    let stt = place.run(&["loopback", "--stt", "parrot"]).refusal();
    assert_snapshot!(stt, @"error: unknown stt provider `parrot`; known: moonshine");
    let vad = place.run(&["loopback", "--vad", "parrot"]).refusal();
    assert_snapshot!(vad, @"error: unknown vad provider `parrot`; known: earshot, energy, silero");
    let llm = place.run(&["loopback", "--llm", "openai"]).refusal();
    assert_snapshot!(llm, @"error: --llm openai needs a server: add --llm-url URL --llm-model MODEL");
}

#[test]
fn a_key_on_the_command_line_is_refused_without_being_repeated() {
    let refusal = Place::new()
        .run(&[
            "loopback",
            "--llm-url",
            "http://127.0.0.1:9/v1",
            "--llm-model",
            "m",
            "--llm-api-key",
            "sk-secret",
        ])
        .refusal();
    assert!(refusal.contains("env://"), "{refusal}");
    assert!(!refusal.contains("sk-secret"), "{refusal}");
}

#[test]
fn a_pipeline_may_name_a_provider_that_does_not_exist() {
    let place = Place::new();
    let spec = rspp_proto::spec::PipelineSpec::simple_template();
    place.file(
        "p.yaml",
        spec.replace("kind: tts\n", "kind: tts\n    provider: parrot\n"),
    );
    let refusal = place.run(&["loopback", "--pipeline", "p.yaml"]).refusal();
    assert_snapshot!(refusal, @"error: unknown tts provider `parrot`; known: piper, piper-steady");
}

#[test]
fn a_broken_pipeline_is_refused_with_its_place() {
    let place = Place::new();
    let spec = rspp_proto::spec::PipelineSpec::simple_template();
    place.file("p.yaml", spec.replace("kind: stt", "kindd: stt"));
    let refusal = place.run(&["loopback", "--pipeline", "p.yaml"]).refusal();
    assert_snapshot!(refusal, @"error: p.yaml:28:5: nodes[2]: missing field `kind` (and 1 more: rspp validate spec p.yaml)");
    let gone = place
        .run(&["loopback", "--pipeline", "gone.yaml"])
        .refusal();
    assert_snapshot!(gone, @"error: gone.yaml: no such file");
    place.file("bytes.yaml", [0xff, 0xfe, 0x00]);
    let bytes = place.run(&["loopback", "--policy", "bytes.yaml"]).refusal();
    assert_snapshot!(bytes, @"error: bytes.yaml: is not UTF-8 text");
}

#[test]
fn missing_models_name_the_command_that_fetches_them() {
    let place = Place::new();
    let refusal = place.run(&["loopback", "--no-pull"]).refusal();
    let refusal = refusal.replace(&place.0.path().display().to_string(), "");
    assert_snapshot!(refusal, @"error: models are missing from /models: run `rspp models pull onnxruntime silero-vad smart-turn moonshine-base-en piper-joe`, or leave out --no-pull");
}

#[test]
fn no_models_and_no_network_is_told_once() {
    let ran = Place::new().run(&["loopback"]);
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    let errors: Vec<&str> = ran
        .err
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    let [error] = errors[..] else {
        panic!("not one error:\n{}", ran.err);
    };
    assert_eq!(
        ran.err.lines().last(),
        Some(error),
        "the error is the last word"
    );
    let fixes = [
        "check the network",
        "check the index",
        "apt-get install python3-pip",
    ];
    assert!(fixes.iter().any(|fix| error.contains(fix)), "{error}");
}

#[test]
fn a_place_that_cannot_be_written_is_told_before_the_call() {
    let place = Place::new();
    let out = place
        .run(&["loopback", "--out", "no/such/reply.wav"])
        .refusal();
    assert_snapshot!(out, @"error: no/such/reply.wav: there is no directory no/such; create it first");
    let directory = place.run(&["loopback", "--report", "."]).refusal();
    assert_snapshot!(directory, @"error: .: is a directory; name a file");
    wav(&place.path("a.wav"), 16_000, &[9_000; 1_600]);
    let input = place
        .run(&["loopback", "a.wav", "--out", "./a.wav"])
        .refusal();
    assert_snapshot!(input, @"error: ./a.wav: is named twice; give every input and output a file of its own");
    let twice = place
        .run(&["loopback", "--timeline", "x", "--report", "x"])
        .refusal();
    assert_snapshot!(twice, @"error: x: is named twice; give every input and output a file of its own");
}

#[test]
fn an_unknown_model_is_refused() {
    let ran = Place::new().run(&["models", "pull", "gpt"]);
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.err.contains("possible values: onnxruntime, silero-vad"),
        "{}",
        ran.err
    );
}

// --- validate --------------------------------------------------------------------------------------

/// F-001, F-126: a valid file passes in both modes, without a word of warning.
#[test]
fn a_good_pipeline_passes_strict_and_relaxed() {
    let place = Place::new();
    place.file("p.yaml", rspp_proto::spec::PipelineSpec::simple_template());
    let strict = place.run(&["validate", "spec", "p.yaml"]).ok();
    assert_snapshot!(strict, @"p.yaml: valid pipeline simple-1: 6 nodes, 12 edges");
    let relaxed = place.run(&["validate", "spec", "p.yaml", "--relaxed"]).ok();
    assert_eq!(relaxed, strict);
    place.file("q.yaml", POLICY);
    assert_snapshot!(place.run(&["validate", "policy", "q.yaml"]).ok(), @"q.yaml: valid policy policy/2026-11-01");
}

const POLICY: &str = "\
schema: rspp.policy.bundle.v1
policy_resolution_snapshot: policy/2026-11-01
allowed_adaptive_actions: [retry]
";

/// F-001, F-126: everything that is wrong, each with its file, line and field.
#[test]
fn a_bad_pipeline_is_told_field_by_field() {
    let place = Place::new();
    let spec = rspp_proto::spec::PipelineSpec::simple_template();
    let spec = spec
        .replace("kind: stt", "kindd: stt")
        .replace("profile: simple/v1", "profile: fancy");
    place.file("p.yaml", spec);
    let ran = place.run(&["validate", "spec", "p.yaml"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert_snapshot!(ran.err, @r#"
    error: p.yaml:11:10: profile: unknown profile `fancy`; only `simple/v1` exists
    error: p.yaml:28:5: nodes[2]: missing field `kind`
    error: p.yaml:29:5: nodes[2].kindd: unknown field `kindd`; did you mean `kind`?
    "#);

    let ran = place.run(&["validate", "spec", "p.yaml", "--json"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(2), ""));
    let verdict = ran.json();
    assert_eq!(verdict["valid"], false);
    assert_eq!(verdict["diagnostics"].as_array().map(Vec::len), Some(3));
    assert_eq!(verdict["diagnostics"][0]["severity"], "error");
}

/// F-126: policies too, in both modes and by both names: a field that nobody knows is an error to the
/// strict and a warning to the relaxed, what makes no sense is an error to both.
#[test]
fn a_bad_policy_is_told_field_by_field() {
    let place = Place::new();
    place.file("odd.yaml", format!("{POLICY}colour: blue\n"));
    place.file("bad.yaml", POLICY.replace("[retry]", "[hope]"));
    for name in ["validate", "lint"] {
        let strict = place.run(&[name, "policy", "odd.yaml"]);
        assert_eq!((strict.code, strict.out.as_str()), (Some(2), ""));
        assert!(
            strict.err.contains("odd.yaml:4:1: colour: unknown field"),
            "{}",
            strict.err
        );
        let relaxed = place.run(&[name, "policy", "odd.yaml", "--relaxed"]);
        assert_eq!(relaxed.code, Some(0), "{}", relaxed.err);
        assert!(relaxed.err.contains("colour"), "{}", relaxed.err);
        for mode in [&["--json"][..], &["--json", "--relaxed"]] {
            let ran = place.run(&[&[name, "policy", "bad.yaml"][..], mode].concat());
            assert_eq!(ran.code, Some(2));
            let verdict = ran.json();
            assert_eq!(verdict["valid"], false);
            let path = verdict["diagnostics"][0]["path"].as_str();
            assert!(
                path.is_some_and(|path| path.starts_with("allowed_adaptive_actions")),
                "{verdict}"
            );
        }
    }
}

/// F-003: what only the graph can tell is told as well.
#[test]
fn a_pipeline_that_runs_in_circles_is_refused() {
    let place = Place::new();
    let spec = rspp_proto::spec::PipelineSpec::simple_template();
    let circle = "edges:\n  - { from: segmenter, to: llm, carries: text }\n";
    place.file("p.yaml", spec.replace("edges:\n", circle));
    let ran = place.run(&["validate", "spec", "p.yaml"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert_snapshot!(ran.err, @"error: p.yaml:56:5: edges[9]: events would go round: llm -> segmenter -> llm; remove one of these edges");
}

#[test]
fn unknown_fields_are_warnings_in_relaxed_mode() {
    let place = Place::new();
    place.file("q.yaml", format!("{POLICY}colour: blue\n"));
    assert_eq!(place.run(&["validate", "policy", "q.yaml"]).code, Some(2));
    let ran = place.run(&["validate", "policy", "q.yaml", "--relaxed"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.err.contains("warning: colour: unknown field"),
        "{}",
        ran.err
    );
}

// --- plan ------------------------------------------------------------------------------------------

/// F-078, F-080: each value with the layer that decided it.
#[test]
fn a_plan_tells_who_decided_each_value() {
    let place = Place::new();
    assert_snapshot!(place.run(&["plan", "budgets"]).ok(), @r#"
    budgets/cancel_grace_ms          75     execution_profile/simple/v1
    budgets/edge_budget_ms_default   250    execution_profile/simple/v1
    budgets/hook_timeout_ms          250    execution_profile/simple/v1
    budgets/max_silence_ms           4000   execution_profile/simple/v1
    budgets/max_turn_duration_ms     60000  execution_profile/simple/v1
    budgets/node_budget_ms_default   800    execution_profile/simple/v1
    budgets/output_gap_ms            1500   execution_profile/simple/v1
    budgets/path_budget_ms_default   1800   execution_profile/simple/v1
    budgets/provider_first_byte_ms   1000   execution_profile/simple/v1
    budgets/provider_inter_chunk_ms  700    execution_profile/simple/v1
    budgets/turn_budget_ms           2000   execution_profile/simple/v1
    "#);
    let chosen = place
        .run(&["plan", "node_bindings", "--vad", "earshot"])
        .ok();
    assert_snapshot!(chosen, @r#"
    node_bindings/llm   ["dialogue"]    defaults
    node_bindings/stt   ["moonshine"]   defaults
    node_bindings/tts   ["piper"]       defaults
    node_bindings/turn  ["smart-turn"]  defaults
    node_bindings/vad   ["earshot"]     session
    "#);
}

#[test]
fn the_same_input_gives_the_same_plan_and_another_input_another() {
    let place = Place::new();
    place.file("q.yaml", POLICY);
    let hash = |arguments: &[&str]| {
        let ran = place.run(arguments);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        ran.json()["plan_hash"].as_str().unwrap().to_owned()
    };
    let plain = hash(&["plan", "--json"]);
    assert_eq!(plain.len(), 64);
    assert_eq!(hash(&["plan", "--json"]), plain);
    assert_ne!(hash(&["plan", "--json", "--vad", "earshot"]), plain);
    assert_ne!(hash(&["plan", "--json", "--policy", "q.yaml"]), plain);
}

#[test]
fn a_part_of_the_plan_that_does_not_exist_is_refused() {
    let refusal = Place::new().run(&["plan", "nothing"]).refusal();
    assert_snapshot!(refusal, @"error: nothing in the plan begins with `nothing`; there are: budgets, provider_bindings, node_bindings, provider_policy, edge_buffer_policies, flow_control, allowed_adaptive_actions, recording_policy, streaming_handoff, cancel_mode, turns, state, priority, extent");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut child = Place::new()
        .command(&["plan"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""));
}

// --- timeline --------------------------------------------------------------------------------------

/// F-074: filters pick events.
#[test]
fn a_timeline_is_shown_by_turn_and_kind() {
    let shown = Place::new()
        .run(&[
            "timeline", "show", TIMELINE, "--turn", "2", "--kind", "signal",
        ])
        .ok();
    assert_snapshot!(shown, @r#"
        2.003  turn-0002  control    RK-03           turn_open
        2.300  turn-0002  control    RK-16           cancel of turn
        2.302  turn-0002  control    RK-03           abort: cancelled
        2.302  turn-0002  control    RK-03           close
    "#);
}

/// What no entry passes is said, where programs do not look for entries.
#[test]
fn a_filter_that_nothing_passes_says_so() {
    let place = Place::new();
    for more in [
        &["--turn", "9"][..],
        &["--node", "no-such", "--json"],
        &["--turn", "9", "--waterfall"],
    ] {
        let ran = place.run(&[&["timeline", "show", TIMELINE], more].concat());
        assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{more:?}");
        assert!(
            ran.err.ends_with(": nothing found\n"),
            "{more:?}: {}",
            ran.err
        );
    }
}

#[test]
fn a_timeline_is_shown_as_an_object_a_line() {
    let ran = Place::new().run(&[
        "timeline",
        "show",
        TIMELINE,
        "--signal",
        "turn_open",
        "--json",
    ]);
    let lines: Vec<Value> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2, "{}", ran.out);
    assert!(
        lines
            .iter()
            .all(|line| line["entry"]["signal"] == "turn_open")
    );
}

#[test]
fn times_in_filters_count_from_the_beginning_of_the_recording() {
    let place = Place::new();
    let all = place.run(&["timeline", "show", TIMELINE]).ok();
    let early = place
        .run(&["timeline", "show", TIMELINE, "--until", "1s"])
        .ok();
    let late = place
        .run(&["timeline", "show", TIMELINE, "--since", "1s"])
        .ok();
    assert!(!early.is_empty() && !late.is_empty());
    assert_eq!(format!("{early}{late}"), all);
}

#[test]
fn a_cut_timeline_opens_and_fails_its_check() {
    let place = Place::new();
    let whole = fs::read(TIMELINE).unwrap();
    let checked = place.run(&["timeline", "show", TIMELINE, "--check"]);
    assert_eq!(checked.code, Some(0), "{}{}", checked.out, checked.err);
    assert!(
        checked.out.contains("all invariants hold"),
        "{}",
        checked.out
    );

    place.file("cut.rspp", &whole[..whole.len() / 2]);
    let shown = place.run(&["timeline", "show", "cut.rspp"]);
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    assert!(shown.err.contains("cut.rspp: cut: "), "{}", shown.err);
    let checked = place.run(&["timeline", "show", "cut.rspp", "--check"]);
    assert_eq!(checked.code, Some(1), "{}", checked.out);
}

/// F-154: a timeline goes to an archive and comes back as it was.
#[test]
fn a_timeline_is_exported_listed_and_fetched() {
    let place = Place::new();
    place.file("call.rspp", fs::read(TIMELINE).unwrap());
    let bytes = fs::metadata(TIMELINE).unwrap().len();
    let exported = place
        .run(&["timeline", "export", "call.rspp", "--to", "archive"])
        .ok();
    assert_eq!(
        exported,
        format!("archive  1 timeline exported, {bytes} bytes\n")
    );
    let again = place
        .run(&["timeline", "export", "call.rspp", "--to", "archive"])
        .ok();
    assert_eq!(again, "archive  0 timelines exported, 0 bytes\n");
    let listed = place.run(&["timeline", "list", "archive", "--json"]);
    let listed = listed.json();
    assert_eq!(listed[0]["is_complete"], true);
    let name = listed[0]["recording"].as_str().unwrap();
    let line = place.run(&["timeline", "list", "archive"]).ok();
    assert_eq!(line, format!("{name}  {bytes} bytes in 1 segment\n"));
    let fetch = ["timeline", "fetch", "archive", name, "--out", "back.rspp"];
    assert_eq!(
        place.run(&fetch).ok(),
        format!("back.rspp  {bytes} bytes\n")
    );
    assert!(fs::read(place.path("back.rspp")).unwrap() == fs::read(TIMELINE).unwrap());
    let refusal = place.run(&fetch).refusal();
    assert!(
        refusal.contains("back.rspp: cannot be written"),
        "{refusal}"
    );
    let unknown = [
        "timeline",
        "fetch",
        "archive",
        "acme/call",
        "--out",
        "x.rspp",
    ];
    assert_eq!(
        place.run(&unknown).refusal(),
        "error: archive: there is no recording `acme/call`"
    );
}

/// F-169, NF-035: an archive is sealed under keys that are named and never said; it is fetched and shown with
/// them, refused by name without, and what is sealed with which is told.
#[test]
fn an_archive_is_sealed_and_opened_by_reference() {
    let place = Place::new();
    place.file("call.rspp", fs::read(TIMELINE).unwrap());
    let (one, two) = ("1a".repeat(32), "2b".repeat(32));
    place.file("CALLS_K1", &one).file("CALLS_K2", &two);
    let key = |number: u8, from: &str| {
        format!("  - {{ id: k{number}, secret: file://CALLS_K{number}, from: {from} }}\n")
    };
    let first = format!("keys:\n{}", key(1, "2026-01-01"));
    place.file("keys.yaml", &first);
    let with = ["--archive-keys", "keys.yaml"];
    let export = ["timeline", "export", "call.rspp", "--to", "archive"];
    let exported = place.run(&[&export[..], &with].concat()).ok();
    assert!(
        exported.starts_with("archive  1 timeline exported"),
        "{exported}"
    );
    let listed = place.run(&["timeline", "list", "archive", "--json"]);
    let name = listed.json()[0]["recording"].as_str().unwrap().to_owned();
    let fetch = ["timeline", "fetch", "archive", &name, "--out", "back.rspp"];
    let refused = place.run(&fetch);
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(
        refused
            .err
            .contains("sealed under key `k1`: name the file of keys"),
        "{}",
        refused.err
    );
    // The next key is put down beside the one that has sealed.
    let both = format!("max_age: 36500d\n{first}{}", key(2, "2026-02-01"));
    place.file("keys.yaml", &both);
    place.run(&[&fetch[..], &with].concat()).ok();
    assert!(fs::read(place.path("back.rspp")).unwrap() == fs::read(TIMELINE).unwrap());
    let show = |file: &str, more: &[&str]| {
        place
            .run(&[&["timeline", "show", file, "--turn", "1"], more].concat())
            .ok()
    };
    let from = [&["--from", "archive"], &with[..]].concat();
    assert_eq!(show(&name, &from), show("call.rspp", &[]));
    let second = ["timeline", "export", "back.rspp", "--to", "other"];
    place.run(&[&second[..], &with].concat()).ok();
    let keys = |archive: &str| {
        let ran = place.run(&["timeline", "keys", "keys.yaml", archive, "--json"]);
        let rows = ran.json();
        let rows = rows.as_array().unwrap().iter();
        let rows = rows.map(|row| format!("{} {} {}", row["key"], row["state"], row["objects"]));
        (ran.code, rows.collect::<Vec<_>>())
    };
    let rows = |one: u8, two: u8| {
        vec![
            format!(r#""k1" "opens" {one}"#),
            format!(r#""k2" "seals" {two}"#),
        ]
    };
    assert_eq!(keys("archive"), (Some(0), rows(2, 0)));
    assert_eq!(keys("other"), (Some(0), rows(0, 2)));
    place.file("keys.yaml", format!("keys:\n{}", key(2, "2026-02-01")));
    let (code, found) = keys("archive");
    assert_eq!(code, Some(1), "k1 is missing");
    assert_eq!(found[1], r#""k1" null 2"#);
    let shown = place.run(&["timeline", "keys", "keys.yaml", "archive"]);
    assert!(shown.out.contains("missing"), "{}", shown.out);
    for entry in fs::read_dir(place.path("archive").join(&name)).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        assert!(bytes.starts_with(b"RSPPSEAL"));
        assert!(!bytes.windows(64).any(|it| it == one.as_bytes()));
    }
}

/// F-154: an archive that is not there costs nothing but time.
#[test]
fn a_timeline_waits_for_an_archive_that_is_not_there() {
    let place = Place::new();
    place.file("call.rspp", fs::read(TIMELINE).unwrap());
    let to = "http://127.0.0.1:9/calls";
    let ran = place.run(&["timeline", "export", "call.rspp", "--to", to]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(
        ran.err
            .contains("1 timeline waits for http://127.0.0.1:9/calls"),
        "{}",
        ran.err
    );
    assert!(place.path("call.rspp").exists());
    let shown = place.run(&["timeline", "show", "call.rspp", "--turn", "1"]);
    assert!(
        shown
            .err
            .contains("the archive is behind: it has the first 0 bytes"),
        "{}",
        shown.err
    );
    let exported = place
        .run(&["timeline", "export", "call.rspp", "--to", "archive"])
        .ok();
    assert!(exported.starts_with("archive  1 timeline exported"));
}

#[test]
fn places_of_archives_are_checked() {
    let place = Place::new();
    let refusal = place.run(&["timeline", "list", "gone"]).refusal();
    assert_eq!(refusal, "error: gone: no such directory");
    let ran = place.run(&["loopback", "--export", "ftp://host/calls"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("`ftp://` is not supported"), "{}", ran.err);
}

#[test]
fn what_is_no_timeline_is_refused() {
    let place = Place::new();
    place.file("x.rspp", "hello, this is not a timeline");
    let refusal = place.run(&["timeline", "show", "x.rspp"]).refusal();
    assert!(
        refusal.starts_with("error: x.rspp: not a timeline: byte 0 is"),
        "{refusal}"
    );
    let gone = place.run(&["timeline", "show", "gone.rspp"]).refusal();
    assert_snapshot!(gone, @"error: gone.rspp: no such file");
}

// --- tree, doctor, models --------------------------------------------------------------------------

/// Design §2: who supervises whom, caught in the middle of a reply.
#[test]
fn the_tree_shows_every_actor_of_a_conversation() {
    let tree = Place::new().run(&["tree"]).ok();
    // What waits and what was handled differs from run to run.
    let columns = tree.lines().map(|line| {
        line.chars()
            .take(44)
            .collect::<String>()
            .trim_end()
            .to_owned()
    });
    assert_snapshot!(columns.collect::<Vec<_>>().join("\n"), @r#"
    actor                  kind
    node                   node
    ├─ sessions            sessions
    │  └─ tree             session
    │     ├─ turn          node-host
    │     ├─ stt           node-host
    │     ├─ vad           node-host
    │     └─ turn-0001     turn
    │        ├─ tts        node-host
    │        ├─ segmenter  node-host
    │        └─ llm        node-host
    │           └─ llm-1   provider-invocation
    └─ listener            listener
       └─ tree             connection
    "#);
}

#[test]
fn the_doctor_names_a_fix_for_everything_that_is_missing() {
    let ran = Place::new().run(&["doctor", "--json"]);
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    let findings = ran.json();
    let findings = findings.as_array().unwrap();
    let of = |check: &str| {
        let found = findings.iter().find(|finding| finding["check"] == check);
        found.unwrap_or_else(|| panic!("{check} is not checked"))
    };
    assert_eq!(of("moonshine-base-en")["verdict"], "missing");
    assert!(
        of("moonshine-base-en")["fix"]
            .as_str()
            .unwrap()
            .starts_with("rspp models pull moonshine-base-en"),
    );
    assert_eq!(of("disk")["verdict"], "ok");
    // Without models the zero-file detector is measured.
    assert!(
        of("voice activity")["found"]
            .as_str()
            .unwrap()
            .starts_with("earshot: ")
    );
    for finding in findings {
        assert_eq!(
            finding["verdict"] == "ok",
            finding["fix"].is_null(),
            "{finding}"
        );
    }
}

#[test]
fn models_are_listed_and_verified() {
    let place = Place::new();
    let ran = place.run(&["models", "list", "--json"]);
    assert_eq!(ran.code, Some(0));
    let rows = ran.json();
    assert!(
        rows.as_array()
            .unwrap()
            .iter()
            .all(|row| row["state"] == "missing")
    );

    // What nobody fetched is no fault unless it is asked for by name.
    assert_eq!(place.run(&["models", "verify"]).code, Some(0));
    assert_eq!(place.run(&["models", "verify", "silero-vad"]).code, Some(1));

    fs::create_dir_all(place.path("models/silero-vad")).unwrap();
    place.file("models/silero-vad/silero_vad_16k_op15.onnx", "cut");
    let ran = place.run(&["models", "verify"]);
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert!(
        ran.out.contains("rspp models pull silero-vad"),
        "{}",
        ran.out
    );
}
