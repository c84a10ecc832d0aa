//! The clients of twenty lines that the protocol's page points to, run as they are.

use std::{path::PathBuf, process::Stdio, time::Duration};

use rspp_tests::call::{Cast, REPLY, tone};
use tokio::process::Command;

use crate::line::Line;

fn example(name: &str) -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.join("../transports/websocket/examples").join(name)
}

/// Whether a program can do what an example needs; an example that cannot run here is not tested here.
async fn can(program: &str, arguments: &[&str]) -> bool {
    let tried = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    tried.await.is_ok_and(|status| status.success())
}

async fn said(mut command: Command) -> String {
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_mins(1), output);
    let output = output.await.expect("it ends").expect("it starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Issue 5: a recording goes in, the reply comes out as a recording.
#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_talks() {
    if !can("python3", &["-c", "import websockets"]).await {
        eprintln!("python3 or its websockets package is missing");
        return;
    }
    let line = Line::open(&Cast::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let (question, answer) = (folder.path().join("q.wav"), folder.path().join("a.wav"));
    mono(&question, &tone(Duration::from_secs(1)));
    let mut command = Command::new("python3");
    command
        .arg(example("client.py"))
        .arg(format!("ws://{}/v1/talk", line.address))
        .args([&question, &answer]);
    let said = said(command).await;
    assert!(said.contains("user: hello there"), "{said}");
    assert!(said.contains("agent: Good day to you."), "{said}");
    let reply = std::fs::metadata(&answer).unwrap().len();
    assert!(reply > 32_000, "{reply} bytes of WAV");
    line.close().await;
}

/// Issue 5: a question is typed, the reply is counted.
#[tokio::test(flavor = "multi_thread")]
async fn the_javascript_client_talks() {
    let has_socket = "process.exit(typeof WebSocket === 'undefined' ? 1 : 0)";
    let flag = "--experimental-websocket";
    if !can("node", &[flag, "-e", has_socket]).await {
        eprintln!("node or its WebSocket is missing");
        return;
    }
    let line = Line::open(&Cast::default()).await;
    let mut command = Command::new("node");
    command
        .arg(flag)
        .arg(example("client.mjs"))
        .arg(format!("ws://{}/v1/talk", line.address))
        .arg("good morning");
    let said = said(command).await;
    let mut lines = said.lines();
    let words: Vec<&str> = lines
        .by_ref()
        .filter_map(|it| it.strip_prefix("agent: "))
        .collect();
    assert_eq!(words.join(" "), REPLY, "{said}");
    assert!(
        said.contains("s of speech") && !said.contains("0.0 s"),
        "{said}"
    );
    line.close().await;
}

/// A mono WAV file at 16 kHz.
fn mono(path: &std::path::Path, pcm: &[i16]) {
    let bytes = rspp_transport_api::audio::to_bytes(pcm);
    let mut file = Vec::new();
    file.extend(b"RIFF");
    file.extend((36 + bytes.len() as u32).to_le_bytes());
    file.extend(b"WAVEfmt ");
    for part in [16u32.to_le_bytes(), 0x0001_0001u32.to_le_bytes()] {
        file.extend(part);
    }
    file.extend(16_000u32.to_le_bytes());
    file.extend(32_000u32.to_le_bytes());
    file.extend(0x0010_0002u32.to_le_bytes());
    file.extend(b"data");
    file.extend((bytes.len() as u32).to_le_bytes());
    file.extend(&bytes[..]);
    std::fs::write(path, file).unwrap();
}
