//! Whole conversations with the local models, as a user would hold them.
//!
//! Needs the models (`rspp models pull`), so all of it is ignored unless asked for:
//! `cargo test -p rspp --test conversation -- --ignored`.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose ground gives way should fail"
)]

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rspp"));
        command
            .args(arguments)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .env_remove("RSPP_LOG");
        command
    }

    /// Runs to a success and gives standard output.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let (out, err) = (output.stdout, output.stderr);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&err));
        String::from_utf8(out).unwrap()
    }

    #[track_caller]
    fn report(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    /// Both channels of a recording, by seconds.
    fn channels(&self, name: &str) -> Channels {
        let mut reader = hound::WavReader::open(self.path(name)).unwrap();
        assert_eq!(reader.spec().channels, 2);
        let rate = reader.spec().sample_rate as usize;
        let samples: Vec<i16> = reader.samples().map(Result::unwrap).collect();
        let channel = |n: usize| samples.iter().skip(n).step_by(2).copied().collect();
        Channels {
            rate,
            user: channel(0),
            agent: channel(1),
        }
    }
}

struct Channels {
    rate: usize,
    user: Vec<i16>,
    agent: Vec<i16>,
}

impl Channels {
    fn seconds(&self) -> f64 {
        self.user.len() as f64 / self.rate as f64
    }

    /// Whether a channel sounds somewhere between two times.
    fn sounds(&self, channel: &[i16], from: f64, to: f64) -> bool {
        let at = |seconds: f64| ((seconds * self.rate as f64) as usize).min(channel.len());
        channel[at(from)..at(to)]
            .iter()
            .any(|sample| sample.unsigned_abs() > 500)
    }
}

fn ms(turn: &Value, anchor: &str) -> f64 {
    turn["anchors_ms"][anchor]
        .as_f64()
        .unwrap_or_else(|| panic!("no {anchor} in {turn}"))
}

/// The main job: words go in by voice and come out by voice, and the agent remembers.
#[test]
#[ignore = "needs models: rspp models pull"]
fn a_conversation_is_understood_answered_and_kept() {
    let place = Place::new();
    let shown = place.run(&[
        "loopback",
        "--out",
        "reply.wav",
        "--timeline",
        "call.rspp",
        "--report",
        "call.json",
    ]);
    assert!(shown.contains("turn-0002  commit"), "{shown}");
    assert!(
        shown.contains("playback started"),
        "the waterfall is shown: {shown}"
    );

    let report = place.report("call.json");
    assert_eq!(report["schema"], "rspp.report.v1");
    let turns = report["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 2);
    for turn in turns {
        assert_eq!(turn["outcome"], "commit");
        assert_eq!(
            turn["agent_text"], turn["agent_text_played"],
            "all was heard"
        );
        assert_eq!(turn["plan_hash"].as_str().unwrap().len(), 64);
        let first_audio = turn["first_audio_ms"].as_f64().unwrap();
        assert!(
            first_audio > 100.0 && first_audio < 3_000.0,
            "{first_audio} ms"
        );
    }
    assert_eq!(turns[0]["user_text"], "Hello, my name is Ada.");
    let recalled = turns[1]["agent_text"].as_str().unwrap();
    assert!(recalled.contains("Ada"), "{recalled}");
    assert_eq!(report["session"]["frames_after_clear"], 0);
    assert!(report["kernel_overhead_us"]["p99"].as_f64().unwrap() > 0.0);

    // Who spoke when, by ear: each side only in its own channel and time.
    let heard = place.channels("reply.wav");
    let lasted = report["session"]["duration_ms"].as_f64().unwrap() / 1e3;
    assert!(
        (heard.seconds() - lasted).abs() < 0.2,
        "{} s of {lasted} s",
        heard.seconds()
    );
    let began = ms(&turns[0], "assistant_audio_playback_started_ts") / 1e3;
    let ended = ms(&turns[0], "playback_completed_ts") / 1e3;
    assert!(heard.sounds(&heard.user, 0.3, began));
    assert!(!heard.sounds(&heard.agent, 0.0, began));
    assert!(heard.sounds(&heard.agent, began, ended));
    assert!(!heard.sounds(&heard.user, began, ended));

    let checked = place.run(&["timeline", "show", "call.rspp", "--check"]);
    assert!(checked.contains("all invariants hold"), "{checked}");
    let falls = place.run(&["timeline", "show", "call.rspp", "--waterfall"]);
    assert!(falls.contains("turn-0002 (commit)"), "{falls}");
}

/// P1 to P5: an interruption silences the agent, and what was not heard was not said.
#[test]
#[ignore = "needs models: rspp models pull"]
fn an_interruption_cuts_the_agent_and_its_memory() {
    let place = Place::new();
    place.run(&[
        "loopback",
        "--say",
        "Tell me a long story.",
        "--barge-in-at",
        "2s",
        "Please stop it now.",
        "--out",
        "cut.wav",
        "--timeline",
        "cut.rspp",
        "--report",
        "cut.json",
    ]);
    let report = place.report("cut.json");
    let turns = report["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 2, "{report}");
    let cut = &turns[0];
    assert_eq!(cut["outcome"], "abort");
    assert_eq!(cut["reason"], "cancelled");
    let (said, played) = (
        cut["agent_text"].as_str().unwrap(),
        cut["agent_text_played"].as_str().unwrap(),
    );
    assert!(
        !played.is_empty() && played.len() < said.len(),
        "{played:?} of {said:?}"
    );
    assert!(
        cut["cancel_fence_us"].as_f64().unwrap() < 150_000.0,
        "gate 3"
    );
    assert_eq!(report["session"]["frames_after_clear"], 0, "nothing leaked");

    // By ear: after the fence the agent is silent until its next reply.
    let heard = place.channels("cut.wav");
    let fence = ms(cut, "cancel_fence_applied_ts") / 1e3;
    let next = ms(&turns[1], "assistant_audio_playback_started_ts") / 1e3;
    assert!(heard.sounds(&heard.agent, fence - 0.5, fence));
    assert!(
        !heard.sounds(&heard.agent, fence + 0.05, next),
        "the agent spoke after the fence"
    );

    let checked = place.run(&["timeline", "show", "cut.rspp", "--check"]);
    assert!(checked.contains("all invariants hold"), "{checked}");
}

/// F-130: a recording at another rate, in stereo, through the zero-file detectors; JSON only.
#[test]
#[ignore = "needs models: rspp models pull"]
fn a_recording_of_any_rate_is_understood() {
    let place = Place::new();
    // The agent's own voice is as good a user as any.
    place.run(&[
        "loopback",
        "--say",
        "What are your opening hours?",
        "--out",
        "first.wav",
    ]);
    let heard = place.channels("first.wav");
    let spec = hound::WavSpec {
        channels: 2,
        sample_rate: heard.rate as u32,
        bits_per_sample: 32,
        sample_format: hound::SampleFormat::Float,
    };
    let mut writer = hound::WavWriter::create(place.path("question.wav"), spec).unwrap();
    for sample in heard.user.iter().take(heard.rate * 5 / 2) {
        for _ in 0..2 {
            writer.write_sample(f32::from(*sample) / 32_768.0).unwrap();
        }
    }
    writer.finalize().unwrap();

    let out = place.run(&[
        "loopback",
        "question.wav",
        "--vad",
        "earshot",
        "--end-of-turn",
        "pause",
        "--json",
    ]);
    let report: Value = serde_json::from_str(&out).expect("standard output is JSON only");
    let understood = report["turns"][0]["user_text"]
        .as_str()
        .unwrap()
        .to_lowercase();
    assert!(understood.contains("opening hours"), "{understood}");
    let vad = report["session"]["providers"]["vad"].as_str().unwrap();
    assert!(vad.starts_with("earshot"), "{vad}");
}

/// Ctrl-C in the middle of a reply: everything so far is kept and whole.
#[test]
#[ignore = "needs models: rspp models pull"]
#[cfg(unix)]
fn ctrl_c_keeps_what_was_produced() {
    let place = Place::new();
    let child = place
        .command(&[
            "loopback",
            "--realtime",
            "--say",
            "Tell me a long story.",
            "--out",
            "part.wav",
            "--timeline",
            "part.rspp",
            "--report",
            "part.json",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The recording grows while the call lasts: wait until some seconds of it are there.
    let enough = 44 + 24_000 * 4 * 3;
    for waited in 0.. {
        let there = fs::metadata(place.path("part.wav")).map_or(0, |it| it.len());
        if there >= enough {
            break;
        }
        assert!(waited < 600, "no recording after a minute");
        #[expect(
            clippy::disallowed_methods,
            reason = "the call is another process, in real time"
        )]
        std::thread::sleep(Duration::from_millis(100));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{err}");

    assert!(place.channels("part.wav").seconds() >= 3.0);
    assert_eq!(place.report("part.json")["session"]["interrupted"], true);
    let checked = place.run(&["timeline", "show", "part.rspp", "--check"]);
    assert!(checked.contains("all invariants hold"), "{checked}");
}

/// F-154: settings of exports come by the standard input too, which is read once, and are followed.
#[test]
#[ignore = "needs models: rspp models pull"]
fn settings_of_exports_come_by_the_standard_input() {
    let place = Place::new();
    let arguments = ["loopback", "--say", "Hello.", "--export-settings", "-"];
    let mut process = place
        .command(&arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let settings = b"exports: { to: calls, spool: waiting }";
    let mut to = process.stdin.take().unwrap();
    to.write_all(settings).unwrap();
    drop(to);
    assert!(process.wait().unwrap().success());
    let listed = place.run(&["timeline", "list", "calls"]);
    assert!(listed.contains("loopback-"), "{listed}");
    assert!(place.path("waiting").is_dir());
}
