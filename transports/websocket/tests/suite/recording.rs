//! Calls as they crossed the wire.

use std::time::Duration;

use rspp_proto::{AudioChunk, TurnNumber};
use rspp_transport_api::{Farewell, audio::to_bytes};
use rspp_websocket::{
    protocol::{Hello, ServerMessage},
    realtime::testing as realtime,
    testing::Client,
};
use tokio::time::sleep;

use crate::house::{House, local};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// P29: what is recorded is what left, when it left: a pause in the middle of what a turn says is a gap in the
/// file, as long as whoever plays what comes would hear it, and is told by the transport; what was taken back is not
/// there.
#[tokio::test]
async fn a_call_is_recorded_at_the_wire_with_its_gaps() {
    let folder = std::env::temp_dir().join(format!("rspp-wire-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut config = local();
    config.recordings = Some(folder.clone());
    let mut house = House::open(config);
    let mut client = Client::begin(house.address, Hello::default()).await;
    let name = client.ready.clone().unwrap().session;
    let mut session = house.session().await;
    let sink = &mut session.transport.sink;
    let rate = sink.sample_rate();
    let frame = AudioChunk::pcm16(rate, to_bytes(&[9_000; 320]));
    let mut play = async |turn, frames| {
        for _ in 0..frames {
            sink.play(turn, &frame).unwrap();
            sleep(ms(20)).await;
        }
    };
    client.speak(&[5_000; 1_600]).await;
    play(TurnNumber(1), 15).await;
    sleep(ms(400)).await;
    play(TurnNumber(1), 15).await;
    let wire = sink.wire().expect("it watches its wire");
    // A busy machine adds gaps of its own, which are in the file as well.
    assert!(wire.frames == 30 && wire.gaps >= 1, "{wire:?}");
    assert!((300..=2_000).contains(&wire.longest_gap_ms), "{wire:?}");
    for _ in 0..8 {
        sink.play(TurnNumber(2), &frame).unwrap();
    }
    sleep(ms(20)).await;
    sink.clear(TurnNumber(2));
    client
        .until(|message| matches!(message, ServerMessage::Clear(_)))
        .await;
    session.end.send(Farewell::because("it is over")).unwrap();
    client.until(|_| false).await;
    assert!(house.server.drain(Duration::from_secs(10)).await);

    let file = folder.join(format!("{name}.wav"));
    let mut reader = hound::WavReader::open(&file).unwrap();
    assert_eq!(
        (reader.spec().channels, reader.spec().sample_rate),
        (2, 16_000)
    );
    let samples: Vec<i16> = reader.samples().map(Result::unwrap).collect();
    let side = |nth: usize| -> Vec<i16> { samples.iter().skip(nth).step_by(2).copied().collect() };
    let sounds = side(0).iter().filter(|sample| **sample == 5_000).count();
    assert_eq!(sounds, 1_600, "what the user said");
    let agent = side(1);
    let runs = agent.chunk_by(|a, b| (*a == 0) == (*b == 0));
    let runs: Vec<(bool, usize)> = runs.map(|run| (run[0] != 0, run.len() / 16)).collect();
    let sound: Vec<usize> = runs.iter().filter(|run| run.0).map(|run| run.1).collect();
    let total: usize = sound.iter().sum();
    assert!(
        (590..=720).contains(&total),
        "two halves, and no more of what was taken back: {runs:?}"
    );
    let longest = runs[1..runs.len() - 1]
        .iter()
        .filter(|run| !run.0)
        .map(|run| run.1)
        .max();
    let longest = longest.unwrap() as u64;
    assert!(
        longest.abs_diff(wire.longest_gap_ms) <= 2,
        "{runs:?} and {wire:?}"
    );
    std::fs::remove_dir_all(folder).unwrap();
}

/// P29: a call in the other protocol is recorded in the same way: what left, when it left, gaps and all, and what
/// was taken back is not there.
#[tokio::test]
async fn a_call_of_the_second_protocol_is_recorded_too() {
    let folder = std::env::temp_dir().join(format!("rspp-realtime-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut config = local();
    config.recordings = Some(folder.clone());
    let mut house = House::open(config);
    let mut client = realtime::Client::begin(house.address).await;
    // 24 kHz both ways.
    client.speak(&[5_000; 2_400]).await;
    let mut session = house.session().await;
    let sink = &mut session.transport.sink;
    let frame = AudioChunk::pcm16(sink.sample_rate(), to_bytes(&[9_000; 480]));
    let mut play = async |turn, frames| {
        for _ in 0..frames {
            sink.play(turn, &frame).unwrap();
            sleep(ms(20)).await;
        }
    };
    play(TurnNumber(1), 15).await;
    sleep(ms(400)).await;
    play(TurnNumber(1), 15).await;
    let wire = sink.wire().expect("it watches its wire");
    assert!(wire.frames == 30 && wire.gaps >= 1, "{wire:?}");
    assert!((300..=2_000).contains(&wire.longest_gap_ms), "{wire:?}");
    for _ in 0..8 {
        sink.play(TurnNumber(2), &frame).unwrap();
    }
    sleep(ms(20)).await;
    sink.clear(TurnNumber(2));
    session.end.send(Farewell::because("it is over")).unwrap();
    client.until(|_| false).await;
    assert!(house.server.drain(Duration::from_secs(10)).await);

    let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap();
    let mut reader = hound::WavReader::open(file.path()).unwrap();
    let spec = reader.spec();
    assert_eq!((spec.channels, spec.sample_rate), (2, 24_000));
    let samples: Vec<i16> = reader.samples().map(Result::unwrap).collect();
    let side = |nth: usize| samples.iter().skip(nth).step_by(2).copied();
    assert_eq!(side(0).filter(|sample| *sample == 5_000).count(), 2_400);
    let agent: Vec<i16> = side(1).collect();
    let runs = agent.chunk_by(|a, b| (*a == 0) == (*b == 0));
    let runs: Vec<(bool, usize)> = runs.map(|run| (run[0] != 0, run.len() / 24)).collect();
    let sound: usize = runs.iter().filter(|run| run.0).map(|run| run.1).sum();
    assert!((590..=720).contains(&sound), "{runs:?}");
    let gaps = runs[1..runs.len() - 1].iter().filter(|run| !run.0);
    let longest = gaps.map(|run| run.1).max().unwrap() as u64;
    assert!(
        longest.abs_diff(wire.longest_gap_ms) <= 2,
        "{runs:?}, {wire:?}"
    );
    std::fs::remove_dir_all(folder).unwrap();
}
