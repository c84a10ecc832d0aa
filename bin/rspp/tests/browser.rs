//! The page in a real browser, with a recording as its microphone and the local models behind it.
//!
//! Needs the models and Chromium, so it is ignored unless asked for:
//! `cargo test -p rspp --test browser -- --ignored --nocapture`. Screenshots are left in the folder that
//! `RSPP_SCREENSHOTS` names.

#![expect(
    clippy::unwrap_used,
    reason = "a test whose ground gives way should fail"
)]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{SinkExt, StreamExt};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

const QUESTION: &str = "What are your opening hours?";
const STORY: &str = "Tell me a long story.";
const STOP: &str = "Stop, that is enough.";

/// Keeps what the page lets be heard.
const LISTEN_IN: &str = "
    window.heard = [];
    const connect = AudioNode.prototype.connect;
    AudioNode.prototype.connect = function (to, ...rest) {
      if (to instanceof AudioDestinationNode && !this.isTap) {
        const tap = this.context.createScriptProcessor(4096, 1, 1);
        tap.isTap = true;
        tap.onaudioprocess = ({ inputBuffer }) => window.heard.push(inputBuffer.getChannelData(0).slice());
        connect.call(this, tap);
        connect.call(tap, to);
        window.heardRate = this.context.sampleRate;
      }
      return connect.call(this, to, ...rest);
    };";

fn rspp(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rspp"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("RSPP_LOG")
        .kill_on_drop(true);
    command
}

struct Browser {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: String,
    calls: u64,
    _process: Child,
}

impl Browser {
    async fn start(folder: &Path, microphone: &Path) -> Self {
        let profile = folder.join("profile");
        let mut process = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
                "--autoplay-policy=no-user-gesture-required",
                "--remote-debugging-port=0",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(format!(
                "--use-file-for-fake-audio-capture={}%noloop",
                microphone.display()
            ))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("chromium is installed");
        let mut told = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = async {
            while let Some(line) = told.next_line().await.unwrap() {
                if let Some(address) = line.strip_prefix("DevTools listening on ") {
                    return address.to_owned();
                }
            }
            panic!("chromium does not start");
        };
        let address = timeout(Duration::from_mins(1), address).await.unwrap();
        tokio::spawn(async move { while let Ok(Some(_)) = told.next_line().await {} });
        let (socket, _) = connect_async(address).await.unwrap();
        let mut browser = Self {
            socket,
            session: String::new(),
            calls: 0,
            _process: process,
        };
        let page = browser
            .call("Target.createTarget", json!({ "url": "about:blank" }))
            .await;
        let target = page["targetId"].clone();
        let attached = json!({ "targetId": target, "flatten": true });
        let attached = browser.call("Target.attachToTarget", attached).await;
        attached["sessionId"]
            .as_str()
            .unwrap()
            .clone_into(&mut browser.session);
        browser.call("Page.enable", json!({})).await;
        browser
    }

    async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.calls += 1;
        let mut request = json!({ "id": self.calls, "method": method, "params": parameters });
        if !self.session.is_empty() {
            request["sessionId"] = self.session.clone().into();
        }
        let text = request.to_string();
        self.socket.send(Message::Text(text.into())).await.unwrap();
        let answer = async {
            loop {
                let Message::Text(text) = self.socket.next().await.unwrap().unwrap() else {
                    continue;
                };
                let answer: Value = serde_json::from_str(&text).unwrap();
                if answer["id"] == self.calls {
                    assert!(answer["error"].is_null(), "{method}: {answer}");
                    return answer["result"].clone();
                }
            }
        };
        timeout(Duration::from_mins(1), answer).await.unwrap()
    }

    async fn evaluate(&mut self, script: &str) -> Value {
        let parameters = json!({ "expression": script, "returnByValue": true, "awaitPromise": true, "userGesture": true });
        let answer = self.call("Runtime.evaluate", parameters).await;
        assert!(answer["exceptionDetails"].is_null(), "{script}: {answer}");
        answer["result"]["value"].clone()
    }

    async fn until(&mut self, what: &str, script: &str, patience: Duration) -> Value {
        let began = Instant::now();
        loop {
            let value = self.evaluate(script).await;
            let is_there = match &value {
                Value::Bool(is) => *is,
                Value::Null => false,
                Value::String(text) => !text.is_empty(),
                Value::Number(_) | Value::Array(_) | Value::Object(_) => true,
            };
            if is_there {
                println!(
                    "{what} after {:.1} s: {value}",
                    began.elapsed().as_secs_f64()
                );
                return value;
            }
            if began.elapsed() > patience {
                let page = self.evaluate("document.body.innerText").await;
                panic!("not {what}: {}", page.as_str().unwrap());
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn screenshot(&mut self, name: &str, width: u32, height: u32) {
        let Some(folder) = std::env::var_os("RSPP_SCREENSHOTS") else {
            return;
        };
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", size).await;
        sleep(Duration::from_millis(300)).await;
        let all = json!({ "captureBeyondViewport": true });
        let shot = self.call("Page.captureScreenshot", all).await;
        let picture = STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        let file = PathBuf::from(folder).join(format!("{name}.png"));
        std::fs::write(file, picture).unwrap();
        self.call("Emulation.clearDeviceMetricsOverride", json!({}))
            .await;
    }
}

/// The way to the server, which can be pulled out.
struct Cable {
    at: SocketAddr,
    connections: Arc<Mutex<JoinSet<()>>>,
}

impl Cable {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        let carried = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                carried.lock().unwrap().spawn(async move {
                    let mut far = TcpStream::connect(server).await.unwrap();
                    let _how_it_ended = copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self { at, connections }
    }

    /// Breaks all connections that there are; new ones go through.
    fn pull(&self) {
        self.connections.lock().unwrap().abort_all();
    }
}

/// A sentence as the local voice speaks it, at 24 kHz.
async fn spoken(folder: &Path, sentence: &str) -> Vec<i16> {
    let file = folder.join("spoken.wav");
    let name = file.to_str().unwrap();
    let status = rspp(&["loopback", "--say", sentence, "--out", name])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    // What the agent made of it does not matter here.
    let _spoken = status.await.unwrap();
    let mut reader = hound::WavReader::open(&file).unwrap();
    assert_eq!(reader.spec().sample_rate, 24_000);
    let samples: Vec<i16> = reader.samples().map(Result::unwrap).collect();
    // Left is the user.
    let user: Vec<i16> = samples.into_iter().step_by(2).collect();
    let is_loud = |sample: &i16| sample.unsigned_abs() > 300;
    let first = user.iter().position(is_loud).unwrap().saturating_sub(2_400);
    let last = user.iter().rposition(is_loud).unwrap() + 2_400;
    user[first..last.min(user.len())].to_vec()
}

fn write(file: &Path, rate: u32, samples: impl IntoIterator<Item = i16>) {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: rate,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(file, spec).unwrap();
    for sample in samples {
        writer.write_sample(sample).unwrap();
    }
    writer.finalize().unwrap();
}

/// What the recogniser makes of a recording.
async fn recognised(folder: &Path, file: &Path) -> String {
    let report = folder.join("heard.json");
    let (file, name) = (file.to_str().unwrap(), report.to_str().unwrap());
    let status = rspp(&["loopback", file, "--report", name])
        .stdout(Stdio::null())
        .status();
    let _recognised = status.await.unwrap();
    let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    let turns = report["turns"].as_array().unwrap();
    let words = turns.iter().filter_map(|turn| turn["user_text"].as_str());
    words.collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Issue 5: a sentence that is spoken appears as transcript, the reply is heard as the words on the page; the
/// cable is pulled, and the page comes back to its conversation; and speaking over a long reply silences the
/// page, which shows what was cut off.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs models and chromium"]
async fn a_person_talks_in_a_browser() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let silence = |seconds: f64| vec![0i16; (seconds * 24_000.0) as usize];
    let mut said = silence(1.0);
    said.extend(spoken(folder, QUESTION).await);
    said.extend(silence(20.0));
    said.extend(spoken(folder, STORY).await);
    said.extend(silence(15.0));
    said.extend(spoken(folder, STOP).await);
    said.extend(silence(5.0));
    let microphone = folder.join("microphone.wav");
    // Chromium wants 48 kHz; twice each sample is good enough for a recogniser.
    write(
        &microphone,
        48_000,
        said.into_iter().flat_map(|sample| [sample, sample]),
    );

    let mut up = rspp(&["up", "--port", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(up.stdout.take().unwrap()).lines();
    let address = timeout(Duration::from_mins(2), out.next_line()).await;
    let address = address.unwrap().unwrap().unwrap();
    let port = address.trim_end_matches('/').rsplit(':').next().unwrap();
    let cable = Cable::to(([127, 0, 0, 1], port.parse().unwrap()).into()).await;
    let mut browser = Browser::start(folder, &microphone).await;
    let listen_in = json!({ "source": LISTEN_IN });
    browser
        .call("Page.addScriptToEvaluateOnNewDocument", listen_in)
        .await;
    browser
        .call(
            "Page.navigate",
            json!({ "url": format!("http://localhost:{}/", cable.at.port()) }),
        )
        .await;
    let minute = Duration::from_mins(1);
    browser
        .until("loaded", "document.readyState === 'complete'", minute)
        .await;
    browser
        .evaluate("document.getElementById('call').click()")
        .await;
    browser
        .until(
            "connected",
            "document.getElementById('call').textContent === 'Hang up'",
            minute,
        )
        .await;

    let words =
        "document.querySelector('#said li:nth-child(1) .user span:not(.partial)')?.textContent";
    let words = browser.until("understood", words, minute).await;
    let words = words.as_str().unwrap().to_lowercase();
    assert!(words.contains("opening hours"), "{words}");
    let ended =
        "JSON.parse(document.body.dataset.played ?? '{}').ended && document.querySelector('.turn')";
    browser
        .until("answered", &format!("!!({ended})"), minute)
        .await;
    let reply = "document.querySelector('#said li:nth-child(1) .agent span').textContent";
    let reply = browser.evaluate(reply).await;
    let reply = reply.as_str().unwrap().to_lowercase();
    println!(
        "stages: {}",
        browser
            .evaluate("document.querySelector('.turn').innerText")
            .await
    );
    browser.screenshot("desktop", 1_280, 900).await;
    browser.screenshot("phone", 390, 844).await;

    cable.pull();
    let back = "document.getElementById('status').textContent.includes('back again')";
    browser.until("back", back, minute).await;

    let heard = browser
        .evaluate(
            "window.heard.map((part) => Array.from(part, (x) => Math.round(x * 32767))).flat()",
        )
        .await;
    let rate = browser.evaluate("window.heardRate").await.as_u64().unwrap();
    let heard = heard.as_array().unwrap().iter();
    let heard = heard.map(|sample| sample.as_i64().unwrap() as i16);
    let capture = folder.join("heard.wav");
    write(&capture, rate as u32, heard);
    let again = recognised(folder, &capture).await;
    println!("on the page: {reply}\nheard: {again}");
    let common = reply
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| word.len() > 3);
    let (known, all) = common.fold((0, 0), |(known, all), word| {
        (known + usize::from(again.contains(word)), all + 1)
    });
    assert!(
        known * 3 >= all * 2,
        "{known} of {all} words of {reply:?} in {again:?}"
    );

    browser
        .until(
            "cut off",
            "document.querySelector('#said s')?.textContent",
            minute,
        )
        .await;
    let silenced = browser
        .evaluate("JSON.parse(document.body.dataset.played)")
        .await;
    println!("the loudspeaker: {silenced}");
    browser.screenshot("interrupted", 1_280, 900).await;
    browser
        .evaluate("document.getElementById('call').click()")
        .await;
    browser
        .until(
            "hung up",
            "document.getElementById('call').textContent === 'Talk'",
            minute,
        )
        .await;
    drop(browser);
    let pid = up.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    kill_process(pid.unwrap(), Signal::INT).unwrap();
    let status = timeout(minute, up.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}

/// Speaks and listens in Opus, with the codec that the browser has.
const IN_OPUS: &str = "(async () => {
  const rate = 48000, frame = 960;
  const socket = new WebSocket(`ws://${location.host}/v1/talk`, 'rspp.v1.json');
  socket.binaryType = 'arraybuffer';
  const packets = [], words = [], faults = [];
  let ready, ended;
  const isReady = new Promise((ok) => (ready = ok)), isOver = new Promise((ok) => (ended = ok));
  socket.onmessage = ({ data }) => {
    if (typeof data !== 'string') { packets.push(data); return; }
    const message = JSON.parse(data);
    if (message.type === 'ready') ready();
    if (message.type === 'audio_end') ended();
    if (message.type === 'error') faults.push(message.message);
    if (message.type === 'text' && message.final) words.push(`${message.speaker}: ${message.text}`);
  };
  await new Promise((ok, no) => { socket.onopen = ok; socket.onerror = no; });
  const format = { rate, codec: 'opus' };
  socket.send(JSON.stringify({ type: 'hello', input: format, output: format }));
  await isReady;
  const encoder = new AudioEncoder({
    output: (chunk) => { const packet = new Uint8Array(chunk.byteLength); chunk.copyTo(packet); socket.send(packet); },
    error: (error) => faults.push(`encoder: ${error}`),
  });
  encoder.configure({ codec: 'opus', sampleRate: rate, numberOfChannels: 1, bitrate: 32000 });
  for (let n = 0; n < 150; n++) {
    const data = new Float32Array(frame);
    // A second of a tone, then silence.
    if (n < 50) for (let i = 0; i < frame; i++) data[i] = 0.3 * Math.sin(2 * Math.PI * 220 * (n * frame + i) / rate);
    const timestamp = n * 20000;
    encoder.encode(new AudioData({
      format: 'f32-planar', sampleRate: rate, numberOfFrames: frame, numberOfChannels: 1, timestamp, data,
    }));
  }
  await encoder.flush();
  await isOver;
  socket.close(1000);
  let samples = 0, power = 0;
  const decoder = new AudioDecoder({
    output: (data) => {
      const heard = new Float32Array(data.numberOfFrames);
      data.copyTo(heard, { planeIndex: 0, format: 'f32-planar' });
      samples += heard.length;
      for (const sample of heard) power += sample * sample;
    },
    error: (error) => faults.push(`decoder: ${error}`),
  });
  decoder.configure({ codec: 'opus', sampleRate: rate, numberOfChannels: 1 });
  packets.forEach((data, n) => decoder.decode(new EncodedAudioChunk({ type: 'key', timestamp: n * 20000, data })));
  await decoder.flush();
  return { packets: packets.length, samples, loudness: Math.sqrt(power / samples), words, faults };
})()";

/// F-031, F-090: the Opus that a browser writes is understood, and the browser's decoder hears what the agent says,
/// frame for frame.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_browsers_own_opus_goes_both_ways() {
    let place = tempfile::tempdir().unwrap();
    let mut up = rspp(&["up", "--scripted", "--port", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(up.stdout.take().unwrap()).lines();
    let address = timeout(Duration::from_mins(1), out.next_line()).await;
    let address = address.unwrap().unwrap().unwrap();
    let silence = place.path().join("silence.wav");
    write(&silence, 48_000, vec![0; 48_000]);
    let mut browser = Browser::start(place.path(), &silence).await;
    browser
        .call("Page.navigate", json!({ "url": address }))
        .await;
    let minute = Duration::from_mins(1);
    let loaded = "document.readyState === 'complete' && !!window.AudioEncoder";
    browser.until("loaded", loaded, minute).await;
    let heard = browser.evaluate(IN_OPUS).await;
    println!("{heard}");
    assert_eq!(heard["faults"], json!([]));
    let words = heard["words"].as_array().unwrap();
    let said_by = |who: &str| {
        let mut words = words.iter().filter_map(Value::as_str);
        words.any(|said| said.starts_with(who))
    };
    assert!(said_by("user: ") && said_by("agent: "), "{words:?}");
    let packets = heard["packets"].as_u64().unwrap();
    assert!(
        packets > 50,
        "a second of speech at least: {packets} packets"
    );
    let samples = heard["samples"].as_u64().unwrap();
    // Decoders may leave out what the encoder looked ahead.
    let most = packets * 960;
    assert!(
        (most - 960..=most).contains(&samples),
        "{samples} of {most}"
    );
    assert!(heard["loudness"].as_f64().unwrap() > 0.01, "{heard}");
}
