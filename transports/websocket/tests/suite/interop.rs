//! Our Opus and the reference implementation's, each reading what the other wrote.

use std::{path::Path, process::Stdio, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use rspp_proto::{AudioChunk, TurnNumber};
use rspp_transport_api::{
    Ingress, Outgoing,
    audio::{samples, to_bytes},
};
use rspp_websocket::{
    protocol::{AudioCodec, AudioData, ClientMessage, Format, Hello, ServerMessage},
    testing::{Client, delay, voice},
};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::house::{House, local};

/// What the reference implementation makes of it.
async fn libopus(what: &str, rate: u32, input: Vec<u8>) -> Vec<u8> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/libopus.py");
    let mut process = Command::new("/usr/bin/python3")
        .arg(script)
        .args([what, &rate.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("python3 is installed");
    let mut to = process.stdin.take().unwrap();
    let write = tokio::spawn(async move { to.write_all(&input).await });
    let output = process.wait_with_output().await.unwrap();
    write.await.unwrap().unwrap();
    assert!(output.status.success(), "libopus: {}", output.status);
    output.stdout
}

fn assert_alike(way: &str, rate: u32, spoken: &[i16], heard: &[i16]) {
    assert_eq!(heard.len(), spoken.len(), "{way} at {rate}");
    let (delay, likeness) = delay(spoken, heard, rate as usize / 20);
    let ms = delay as f64 * 1e3 / f64::from(rate);
    println!(
        "{way:<22} {rate:>6} Hz: {delay:>4} samples ({ms:.1} ms) later, likeness {likeness:.4}"
    );
    assert!(likeness > 0.9, "{way} at {rate}: {likeness}");
    assert!(ms < 15.0, "{way} at {rate}: {ms} ms");
}

/// F-031, F-090: what libopus has written is heard by the runtime as it was spoken, and what the runtime writes
/// libopus reads; each a few milliseconds later, which is what either encoder looks ahead.
#[tokio::test]
#[ignore = "needs python3 and libopus"]
async fn libopus_and_we_understand_each_other() {
    for rate in [8_000, 12_000, 16_000, 24_000, 48_000] {
        let frame = rate as usize / 50;
        let spoken = voice(rate, 2);
        let mut house = House::open(local());
        let format = Format {
            rate,
            codec: AudioCodec::Opus,
        };
        let hello = Hello {
            input: format,
            output: format,
            ..Hello::default()
        };
        let mut client = Client::begin(house.address, hello).await;
        let mut session = house.session().await;

        let packets = libopus("encode", rate, to_bytes(&spoken).to_vec()).await;
        let mut rest = &packets[..];
        let mut heard = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let length = u32::from_le_bytes(*length) as usize;
            let data = Bytes::copy_from_slice(&after[..length]);
            client.say(ClientMessage::Audio(AudioData { data })).await;
            rest = &after[length..];
            let next = session.transport.source.next();
            let next = tokio::time::timeout(Duration::from_secs(10), next).await;
            match next.expect("something comes") {
                Some(Ingress::Audio(pcm)) => heard.extend(samples(&pcm)),
                other => panic!("{other:?}"),
            }
        }
        assert_alike("libopus to us", rate, &spoken, &heard);

        let sink = &mut session.transport.sink;
        let mut packets = Vec::new();
        for frame in spoken.chunks(frame) {
            let chunk = AudioChunk::pcm16(sink.sample_rate(), to_bytes(frame));
            sink.play(TurnNumber::FIRST, &chunk).unwrap();
            let came = client
                .until(|message| matches!(message, ServerMessage::Audio(_)))
                .await;
            let Some(ServerMessage::Audio(audio)) = came.last() else {
                panic!("no audio: {came:?}")
            };
            packets.extend((audio.data.len() as u32).to_le_bytes());
            packets.extend_from_slice(&audio.data);
        }
        sink.send(Outgoing::AudioEnd(TurnNumber::FIRST)).unwrap();
        let heard = libopus("decode", rate, packets).await;
        let heard: Vec<i16> = samples(&heard).collect();
        assert_alike("we to libopus", rate, &spoken, &heard);
    }
}
