//! Sockets that break, and clients that come back (F-091, F-158).

use std::time::Duration;

use futures::StreamExt;
use rspp_proto::{AudioChunk, SampleRate, TurnNumber};
use rspp_transport_api::{
    Farewell, Ingress, Link, Outgoing,
    audio::{FRAME, samples, to_bytes},
};
use rspp_websocket::{
    protocol::{ErrorCode, Hello, Resume, ServerMessage},
    testing::{Client, sound},
};
use tokio::time::sleep;

use crate::house::{House, local};

const T1: TurnNumber = TurnNumber(1);

fn frame(n: i16) -> AudioChunk {
    AudioChunk::pcm16(SampleRate::HZ_16000, to_bytes(&[n; 320]))
}

fn back(resume: Resume) -> Hello {
    Hello {
        resume: Some(resume),
        ..Hello::default()
    }
}

/// Frames by their number, once each.
fn frames(messages: &[ServerMessage]) -> Vec<i16> {
    sound(messages).chunks(320).map(|frame| frame[0]).collect()
}

/// F-158, F-091: the socket breaks in the middle of a reply, with frames under way that the client never gets: it hears
/// every frame once, and the runtime every piece of the user's once.
#[tokio::test]
async fn nothing_is_lost_and_nothing_comes_twice() {
    let mut house = House::open(local());
    let mut client = Client::begin(house.address, Hello::default()).await;
    let mut session = house.session().await;
    let (sink, source) = (&mut session.transport.sink, &mut session.transport.source);
    client.speak(&[1; 320]).await;
    client.speak(&[2; 320]).await;
    for n in 1..=6 {
        sink.play(T1, &frame(n)).unwrap();
        sleep(FRAME / 4).await;
    }
    let mut heard = Vec::new();
    while frames(&heard).len() < 3 {
        heard.push(client.next().await.unwrap());
    }
    // Three frames are under way and are never read.
    let resume = client.resume();
    let sent = 2;
    drop(client);
    let first = source.next().await;
    assert_eq!(first, Some(Ingress::Audio(to_bytes(&[1; 320]))));
    assert_eq!(
        source.next().await,
        Some(Ingress::Audio(to_bytes(&[2; 320])))
    );
    assert_eq!(source.next().await, Some(Ingress::Link(Link::Lost)));

    let mut client = Client::connect(house.address, &["rspp.v1.msgpack"], &[])
        .await
        .unwrap();
    let ready = client.hello(back(resume.clone())).await;
    assert_eq!((ready.connection, ready.received, ready.lost), (2, sent, 0));
    assert_eq!(source.next().await, Some(Ingress::Link(Link::Back)));
    for n in 7..=8 {
        sink.play(T1, &frame(n)).unwrap();
    }
    sink.send(Outgoing::AudioEnd(T1)).unwrap();
    let last = |message: &ServerMessage| matches!(message, ServerMessage::AudioEnd(_));
    heard.extend(client.until(last).await);
    assert_eq!(frames(&heard), [1, 2, 3, 4, 5, 6, 7, 8]);

    client.speak(&[3; 320]).await;
    let Some(Ingress::Audio(third)) = source.next().await else {
        panic!("no audio");
    };
    assert_eq!(samples(&third).next(), Some(3));
    assert_eq!(house.server.tally().resumed, 1);
}

/// A client that comes back before its old socket is known to be dead takes its place.
#[tokio::test]
async fn the_newer_socket_takes_the_call_over() {
    let mut house = House::open(local());
    let mut old = Client::begin(house.address, Hello::default()).await;
    let mut session = house.session().await;
    let resume = old.resume();
    let mut new = Client::connect(house.address, &[], &[]).await.unwrap();
    new.hello(back(resume.clone())).await;
    let Some(ServerMessage::Error(replaced)) = old.next().await else {
        panic!("it was not told");
    };
    assert_eq!((replaced.code, replaced.fatal), (ErrorCode::Replaced, true));
    assert_eq!(old.next().await, None);
    // Of a `ready` that a client never saw it does not have to know.
    let mut third = Client::connect(house.address, &[], &[]).await.unwrap();
    let ready = third.hello(back(resume)).await;
    assert_eq!(ready.connection, 3);
    session.transport.sink.play(T1, &frame(9)).unwrap();
    let is_audio = |message: &ServerMessage| matches!(message, ServerMessage::Audio(_));
    assert_eq!(frames(&third.until(is_audio).await), [9]);
    third.bye().await;
    while let Some(ingress) = session.transport.source.next().await {
        assert_eq!(ingress, Ingress::Link(Link::Back));
    }
}

/// P5: what was taken back while nobody was there is not heard by whoever comes back.
#[tokio::test]
async fn a_turn_that_was_cleared_meanwhile_is_not_heard() {
    let mut house = House::open(local());
    let client = Client::begin(house.address, Hello::default()).await;
    let mut session = house.session().await;
    for n in 1..=3 {
        session.transport.sink.play(T1, &frame(n)).unwrap();
    }
    sleep(Duration::from_millis(100)).await;
    let resume = client.resume();
    drop(client);
    while session.transport.source.next().await != Some(Ingress::Link(Link::Lost)) {}
    session.transport.sink.clear(T1);
    let mut client = Client::connect(house.address, &[], &[]).await.unwrap();
    client.hello(back(resume)).await;
    session
        .transport
        .sink
        .play(TurnNumber(2), &frame(7))
        .unwrap();
    let is_audio = |message: &ServerMessage| matches!(message, ServerMessage::Audio(_));
    let came = client.until(is_audio).await;
    assert_eq!(frames(&came), [7]);
    let cleared =
        |message: &ServerMessage| matches!(message, ServerMessage::Clear(it) if it.turn == T1);
    assert!(came.iter().any(cleared), "{came:?}");
}

#[tokio::test]
async fn who_does_not_know_the_key_cannot_come_back() {
    let mut house = House::open(local());
    let client = Client::begin(house.address, Hello::default()).await;
    let session = house.session().await;
    let good = client.resume();
    let mut wrong_key = good.clone();
    wrong_key.key = "0".repeat(32);
    let mut other_socket = good.clone();
    other_socket.connection = 9;
    let mut too_much = good.clone();
    too_much.received = 99;
    for (resume, says) in [
        (wrong_key, "the key does not belong to the session"),
        (other_socket, "`connection` is not the one that broke"),
        (too_much, "`received` is more than was sent"),
    ] {
        let mut client = Client::connect(house.address, &[], &[]).await.unwrap();
        let hello = rspp_websocket::protocol::ClientMessage::Hello(back(resume));
        client.say(hello).await;
        let Some(ServerMessage::Error(trouble)) = client.next().await else {
            panic!("no error");
        };
        assert_eq!(trouble.code, ErrorCode::CannotResume);
        assert_eq!(trouble.message, says);
    }
    session.end.send(Farewell::because("over")).unwrap();
    sleep(Duration::from_millis(50)).await;
    let mut late = Client::connect(house.address, &[], &[]).await.unwrap();
    late.say(rspp_websocket::protocol::ClientMessage::Hello(back(good)))
        .await;
    let Some(ServerMessage::Error(trouble)) = late.next().await else {
        panic!("no error");
    };
    assert!(
        trouble.message.contains("there is no session"),
        "{}",
        trouble.message
    );
}
