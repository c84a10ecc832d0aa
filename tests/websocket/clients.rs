//! The clients of twenty lines that the protocol's page points to, run as they are; ignored, as what they need
//! is not everywhere. `RSPP_PYTHON` names another python3.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rspp_provider_api::{
    Role, ToolCall,
    scripted::{Answer, ScriptedLlm},
};
use rspp_tests::call::{Cast, REPLY, tone};
use tokio::process::Command;

use crate::line::Line;

fn example(name: &str) -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.join("../transports/websocket/examples").join(name)
}

async fn said(mut command: Command) -> String {
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_mins(1), output);
    let output = output.await.expect("it ends").expect("it starts");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Issue 5: a recording goes in, the reply comes out as a recording.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs python3 with websockets"]
async fn the_python_client_talks() {
    let line = Line::open(&Cast::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let (question, answer) = (folder.path().join("q.wav"), folder.path().join("a.wav"));
    mono(&question, &tone(Duration::from_secs(1)));
    let mut command =
        Command::new(std::env::var_os("RSPP_PYTHON").unwrap_or_else(|| "python3".into()));
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
#[ignore = "needs node 20.10 or newer"]
async fn the_javascript_client_talks() {
    let line = Line::open(&Cast::default()).await;
    let mut command = Command::new("node");
    command
        .arg("--experimental-websocket")
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

/// Issue 5: the package that the API's own vendor publishes, as its peer: spoken to, by hand, cancelled, wrong.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs python3 with openai[realtime]"]
async fn the_official_realtime_client_talks() {
    // Only a client with tools makes it call one.
    let llm = ScriptedLlm::new("llm").answer_with(|request| {
        let last = request.messages.last().filter(|it| it.role == Role::Tool);
        match (last, request.tools.first()) {
            (Some(result), _) => format!("It is {}.", result.content).as_str().into(),
            (None, Some(tool)) => Answer {
                text: String::new(),
                tool_calls: vec![ToolCall {
                    id: "call_0".to_owned(),
                    name: tool.name.clone(),
                    arguments: serde_json::json!({ "place": "Rome" }).to_string(),
                }],
            },
            (None, None) => REPLY.into(),
        }
    });
    let line = Line::open(&Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    })
    .await;
    let python = std::env::var_os("RSPP_OPENAI_PYTHON").unwrap_or_else(|| "python3".into());
    let mut command = Command::new(python);
    command
        .arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("websocket/realtime_client.py"))
        .arg(format!("http://{}/v1", line.address));
    let said = said(command).await;
    assert!(said.ends_with("all is well\n"), "{said}");
    line.close().await;
}

/// A mono WAV file at 16 kHz.
fn mono(path: &std::path::Path, pcm: &[i16]) {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 16_000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut file = hound::WavWriter::create(path, spec).unwrap();
    for sample in pcm {
        file.write_sample(*sample).unwrap();
    }
    file.finalize().unwrap();
}
