//! Audio that is written smaller than samples.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use opus_pure::{Application, OpusDecoder, OpusEncoder};
use rspp_proto::{AudioChunk, TurnNumber};
use rspp_transport_api::{
    Ingress, Outgoing,
    audio::{samples, to_bytes},
    g711,
};
use rspp_websocket::{
    protocol::{AudioCodec, AudioData, ClientMessage, ErrorCode, Format, Hello, ServerMessage},
    testing::{Client, coded, voice},
};

use crate::house::{House, Session, local};

const RATE: u32 = 24_000;
const FRAME: usize = 480;

fn hello(codec: AudioCodec, rate: u32) -> Hello {
    let format = Format { rate, codec };
    Hello {
        input: format,
        output: format,
        ..Hello::default()
    }
}

async fn connect(house: &mut House, protocol: &str, hello: Hello) -> (Client, Session) {
    let client = Client::connect(house.address, &[protocol], &[]).await;
    let mut client = client.unwrap();
    let ready = client.hello(hello.clone()).await;
    assert_eq!((ready.input, ready.output), (hello.input, hello.output));
    (client, house.session().await)
}

fn tone(frames: usize) -> Vec<i16> {
    let wave = |n: usize| (n as f64 * 300.0 * std::f64::consts::TAU / f64::from(RATE)).sin();
    (0..FRAME * frames)
        .map(|n| (wave(n) * 8_000.0) as i16)
        .collect()
}

fn power(samples: &[i16]) -> f64 {
    let sum: f64 = samples.iter().map(|it| f64::from(*it).powi(2)).sum();
    sum / samples.len() as f64
}

async fn say(client: &mut Client, packet: &[u8]) {
    let data = Bytes::copy_from_slice(packet);
    client.say(ClientMessage::Audio(AudioData { data })).await;
}

async fn hear(session: &mut Session) -> Vec<i16> {
    let came = tokio::time::timeout(Duration::from_secs(10), session.transport.source.next());
    match came.await.expect("something comes") {
        Some(Ingress::Audio(pcm)) => samples(&pcm).collect(),
        other => panic!("{other:?}"),
    }
}

/// F-031, F-023, F-090: in both encodings Opus goes both ways: behind the transport there is PCM, as of any client, and
/// the server says what coding has saved and cost.
#[tokio::test]
async fn opus_goes_both_ways_and_nodes_see_samples() {
    for protocol in ["rspp.v1.json", "rspp.v1.msgpack"] {
        let mut house = House::open(local());
        let hello = hello(AudioCodec::Opus, RATE);
        let (mut client, mut session) = connect(&mut house, protocol, hello).await;
        let mut encoder = OpusEncoder::new(RATE.cast_signed(), 1, Application::Voip).unwrap();
        let spoken = tone(25);
        let mut packet = vec![0; 4_000];
        let mut heard = Vec::new();
        for frame in spoken.chunks(FRAME) {
            let length = encoder.encode_s16(frame, FRAME, &mut packet).unwrap();
            say(&mut client, &packet[..length]).await;
            heard.extend(hear(&mut session).await);
        }
        assert_eq!(heard.len(), spoken.len());
        let off = power(&heard[FRAME * 10..]) / power(&spoken);
        assert!((0.8..1.25).contains(&off), "{off}");

        let sink = &mut session.transport.sink;
        for frame in spoken.chunks(FRAME) {
            let chunk = AudioChunk::pcm16(sink.sample_rate(), to_bytes(frame));
            sink.play(TurnNumber::FIRST, &chunk).unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sink.send(Outgoing::AudioEnd(TurnNumber::FIRST)).unwrap();
        let came = client
            .until(|message| matches!(message, ServerMessage::AudioEnd(_)))
            .await;
        let mut decoder = OpusDecoder::new(RATE.cast_signed(), 1).unwrap();
        let (mut heard, mut bytes) = (Vec::new(), 0);
        for message in &came {
            if let ServerMessage::Audio(audio) = message {
                let mut pcm = vec![0; FRAME];
                let made = decoder.decode_s16(&audio.data, FRAME, &mut pcm).unwrap();
                assert_eq!(made, FRAME);
                bytes += audio.data.len();
                heard.extend(pcm);
            }
        }
        assert_eq!(heard.len(), spoken.len());
        let off = power(&heard[FRAME * 10..]) / power(&spoken);
        assert!((0.8..1.25).contains(&off), "{off}");
        assert!(bytes * 8 < spoken.len() * 2, "{bytes} bytes are not small");

        let tally = house.server.tally().codec;
        assert_eq!(tally.pcm_bytes, spoken.len() as u64 * 4);
        assert!(
            tally.wire_bytes * 8 < tally.pcm_bytes && tally.cpu_us > 0,
            "{tally:?}"
        );
    }
}

/// F-031, F-090: a telephone's codec too.
#[tokio::test]
async fn mu_law_goes_both_ways() {
    let mut house = House::open(local());
    let hello = hello(AudioCodec::Pcmu, 8_000);
    let (mut client, mut session) = connect(&mut house, "rspp.v1.json", hello).await;
    let spoken: Vec<i16> = tone(1)[..160].to_vec();
    let written: Vec<u8> = spoken.iter().map(|sample| g711::to_ulaw(*sample)).collect();
    say(&mut client, &written).await;
    let heard: Vec<i16> = written.iter().map(|byte| g711::from_ulaw(*byte)).collect();
    assert_eq!(hear(&mut session).await, heard);
    let sink = &mut session.transport.sink;
    let chunk = AudioChunk::pcm16(sink.sample_rate(), to_bytes(&spoken));
    sink.play(TurnNumber::FIRST, &chunk).unwrap();
    let came = client
        .until(|message| matches!(message, ServerMessage::Audio(_)))
        .await;
    let data = Bytes::from(written);
    assert_eq!(came.last(), Some(&ServerMessage::Audio(AudioData { data })));
}

/// NF-013: a packet that is none is told with what is wrong, and changes nothing; a rate that Opus does not
/// have is refused with those that it has.
#[tokio::test]
async fn what_is_no_opus_is_told() {
    let mut house = House::open(local());
    let opus = hello(AudioCodec::Opus, RATE);
    let (mut client, mut session) = connect(&mut house, "rspp.v1.json", opus).await;
    for packet in [
        &[0x0b, 0x00][..],
        &[0x09, 1, 2, 3, 4, 5][..],
        &[0x0b, 0x3f, 1][..],
    ] {
        say(&mut client, packet).await;
        let Some(ServerMessage::Error(trouble)) = client.next().await else {
            panic!("no error")
        };
        assert_eq!((trouble.code, trouble.fatal), (ErrorCode::BadAudio, false));
        assert!(
            trouble.message.contains("no Opus packet: "),
            "{}",
            trouble.message
        );
    }
    let mut encoder = OpusEncoder::new(RATE.cast_signed(), 1, Application::Voip).unwrap();
    let mut packet = vec![0; 4_000];
    let length = encoder.encode_s16(&tone(1), FRAME, &mut packet).unwrap();
    say(&mut client, &packet[..length]).await;
    assert_eq!(hear(&mut session).await.len(), FRAME);
    assert_eq!(house.server.tally().errors, 3);

    let mut client = Client::connect(house.address, &[], &[]).await.unwrap();
    client
        .say(ClientMessage::Hello(hello(AudioCodec::Opus, 44_100)))
        .await;
    let Some(ServerMessage::Error(trouble)) = client.next().await else {
        panic!("no error")
    };
    assert_eq!(trouble.code, ErrorCode::BadFormat);
    let says = "44100 Hz is not served; for Opus 8000, 12000, 16000, 24000 and 48000 Hz are";
    assert!(trouble.message.contains(says), "{}", trouble.message);
}

/// F-090, F-031: at each of its rates a codec delays what is said by a few milliseconds, the same for every frame,
/// and keeps it recognisable; frames come out as they went in, one for one.
#[test]
fn transcoding_delays_by_a_few_samples() {
    for (codec, rate, most) in [
        (AudioCodec::Pcmu, 8_000, 0),
        (AudioCodec::Opus, 8_000, 96),
        (AudioCodec::Opus, 12_000, 144),
        (AudioCodec::Opus, 16_000, 192),
        (AudioCodec::Opus, 24_000, 288),
        (AudioCodec::Opus, 48_000, 576),
    ] {
        let spoken = voice(rate, 3);
        let coded = coded(Format { rate, codec }, &spoken);
        println!("{codec:?} at {rate}: {} samples", coded.delay);
        assert_eq!(coded.written.len(), 150);
        assert!(coded.delay <= most, "{codec:?} {rate}: {}", coded.delay);
        let looks_ahead = codec == AudioCodec::Opus;
        assert_eq!(coded.delay > 0, looks_ahead, "{codec:?} {rate}");
    }
}
