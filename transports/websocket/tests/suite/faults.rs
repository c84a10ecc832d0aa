//! Whatever a client sends: a precise error, and the session is stable or over (NF-013).

use std::time::Duration;

use futures::StreamExt;
use rspp_proto::{AudioChunk, IdempotencyKey, SampleRate, TurnNumber};
use rspp_transport_api::{Farewell, Ingress, Link, Outgoing, Receipt, SinkError};
use rspp_websocket::{
    protocol::{
        ClientMessage, Dtmf, ErrorCode, Hello, Keyed, Ping, Played, ServerMessage, Trouble, Typed,
    },
    testing::Client,
};
use tokio::time::sleep;

use crate::house::{House, Session, local};

async fn call(house: &mut House) -> (Client, Session) {
    let client = Client::begin(house.address, Hello::default()).await;
    let session = house.session().await;
    (client, session)
}

async fn error(client: &mut Client) -> Trouble {
    match client.next().await {
        Some(ServerMessage::Error(trouble)) => trouble,
        other => panic!("no error: {other:?}"),
    }
}

fn frame() -> AudioChunk {
    AudioChunk::pcm16(SampleRate::HZ_16000, vec![1; 640].into())
}

/// NF-013.
#[tokio::test]
async fn every_message_that_is_wrong_is_told_and_changes_nothing() {
    let mut house = House::open(local());
    let (mut client, mut session) = call(&mut house).await;
    let long = format!(r#"{{"type":"text","text":"{}"}}"#, "a".repeat(9_000));
    let wrong: [(&str, ErrorCode, &str); 9] = [
        ("{", ErrorCode::BadMessage, "EOF"),
        ("[1]", ErrorCode::BadMessage, ""),
        (r#"{"type":"sing"}"#, ErrorCode::BadMessage, "`sing`"),
        (
            r#"{"type":"text","text":" "}"#,
            ErrorCode::BadValue,
            "blank",
        ),
        (
            r#"{"type":"dtmf","digit":"x"}"#,
            ErrorCode::BadValue,
            "digit",
        ),
        (
            r#"{"type":"extension","name":"plain"}"#,
            ErrorCode::BadValue,
            "namespace",
        ),
        (
            r#"{"type":"played","turn":-1,"ms":3}"#,
            ErrorCode::BadMessage,
            "-1",
        ),
        (r#"{"type":"hello"}"#, ErrorCode::HelloExpected, "once"),
        (&long, ErrorCode::TooLarge, "8192"),
    ];
    for (text, code, says) in wrong {
        client.raw_text(text).await;
        let trouble = error(&mut client).await;
        assert_eq!((trouble.code, trouble.fatal), (code, false), "{text}");
        assert!(trouble.message.contains(says), "{}", trouble.message);
    }
    client.raw_bytes(vec![1, 2, 3]).await;
    assert_eq!(error(&mut client).await.code, ErrorCode::OddLength);
    client.raw_bytes(Vec::new()).await;
    client.raw_text(r#"{"type":"text","text":"hello"}"#).await;
    // The first thing that reached the runtime is the first that made sense.
    let first = session.transport.source.next().await;
    assert_eq!(first, Some(Ingress::Text("hello".to_owned())));
    assert_eq!(house.server.tally().errors, 10);
}

/// NF-013.
#[tokio::test]
async fn noise_in_messagepack_is_refused() {
    let mut house = House::open(local());
    let client = Client::connect(house.address, &["rspp.v1.msgpack"], &[]).await;
    let mut client = client.unwrap();
    client.hello(Hello::default()).await;
    let _session = house.session().await;
    for noise in [&[0xc1][..], &[0x81, 0xa4], &[0xff; 300], &[]] {
        client.raw_bytes(noise.to_vec()).await;
        assert_eq!(error(&mut client).await.code, ErrorCode::BadMessage);
    }
    client.raw_text("{}").await;
    assert_eq!(error(&mut client).await.code, ErrorCode::BadMessage);
}

/// NF-013.
#[tokio::test]
async fn too_many_wrong_messages_end_the_session() {
    let mut house = House::open(local());
    let (mut client, mut session) = call(&mut house).await;
    for _ in 0..21 {
        client.raw_text("?").await;
    }
    let came = client.until(|_| false).await;
    assert_eq!(came.len(), 21);
    let Some(ServerMessage::Error(last)) = came.last() else {
        panic!("{came:?}");
    };
    assert_eq!((last.code, last.fatal), (ErrorCode::TooManyErrors, true));
    assert_eq!(client.closed.unwrap().0, 1008);
    assert_eq!(session.transport.source.next().await, None, "it hung up");
}

/// NF-013.
#[tokio::test]
async fn giant_messages_and_floods_end_the_session() {
    let mut house = House::open(local());
    let (mut client, mut session) = call(&mut house).await;
    client.raw_bytes(vec![0; (64 << 10) + 2]).await;
    let trouble = error(&mut client).await;
    assert_eq!((trouble.code, trouble.fatal), (ErrorCode::TooLarge, true));
    assert_eq!(session.transport.source.next().await, None);

    let (mut client, mut session) = call(&mut house).await;
    tokio::spawn(async move { while session.transport.source.next().await.is_some() {} });
    for _ in 0..300 {
        client.say(ClientMessage::Cancel(Keyed::default())).await;
    }
    let came = client.until(|_| false).await;
    let Some(ServerMessage::Error(last)) = came.last() else {
        panic!("{came:?}");
    };
    assert_eq!(last.code, ErrorCode::TooManyMessages);
}

/// More audio than time is not heard, and not queued either.
#[tokio::test]
async fn audio_that_outruns_time_is_dropped() {
    let mut house = House::open(local());
    let (mut client, mut session) = call(&mut house).await;
    for _ in 0..12 {
        client.speak(&vec![1; 16_000]).await;
    }
    assert_eq!(error(&mut client).await.code, ErrorCode::TooMuchAudio);
    client.bye().await;
    let mut seconds = 0;
    while let Some(ingress) = session.transport.source.next().await {
        seconds += usize::from(matches!(ingress, Ingress::Audio(_)));
    }
    assert!((10..12).contains(&seconds), "{seconds}");
}

/// P23: a client that does not read gets `Full` within its lead, is gone after a while, and its session
/// waits for it.
#[tokio::test]
async fn a_client_that_does_not_read_holds_nothing_up() {
    let mut config = local();
    config.limits.ping = Duration::from_millis(50);
    config.limits.stalled = Duration::from_millis(100);
    config.limits.dead = Duration::from_millis(600);
    let mut house = House::open(config);
    let (client, mut session) = call(&mut house).await;
    // Its socket is open, and nobody answers.
    let half_open = client;
    let mut taken = 0;
    let mut last = Ok(());
    for _ in 0..20 {
        last = session.transport.sink.play(TurnNumber::FIRST, &frame());
        taken += usize::from(last.is_ok());
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(last, Err(SinkError::Full));
    assert!(
        taken <= 15,
        "{taken} frames for somebody who does not answer"
    );
    let lost = session.transport.source.next().await;
    assert_eq!(lost, Some(Ingress::Link(Link::Lost)));
    let played = session.transport.sink.play(TurnNumber::FIRST, &frame());
    assert_eq!(played, Err(SinkError::Lost));
    drop(half_open);
}

/// F-042, F-089, F-158: what a client may say reaches the runtime as what it is.
#[tokio::test]
async fn controls_reach_the_runtime() {
    let mut house = House::open(local());
    let (mut client, mut session) = call(&mut house).await;
    let key = IdempotencyKey::new("k").ok();
    let turn = TurnNumber::FIRST;
    for message in [
        ClientMessage::EndOfUtterance(Keyed::default()),
        ClientMessage::Cancel(Keyed { key: key.clone() }),
        ClientMessage::Text(Typed {
            text: "hello".to_owned(),
            key: None,
        }),
        ClientMessage::Dtmf(Dtmf {
            digit: '#',
            key: None,
        }),
        ClientMessage::Played(Played { turn, ms: 140 }),
        ClientMessage::Ping(Ping { id: 7 }),
    ] {
        client.say(message).await;
    }
    let source = &mut session.transport.source;
    assert_eq!(source.next().await, Some(Ingress::EndOfUtterance));
    let Some(Ingress::Stamped(cancel)) = source.next().await else {
        panic!("no key");
    };
    assert_eq!((cancel.key, cancel.event), (key, Ingress::Cancel));
    assert_eq!(source.next().await, Some(Ingress::Text("hello".to_owned())));
    let Some(Ingress::Extension(pressed)) = source.next().await else {
        panic!("no key was pressed");
    };
    assert_eq!(pressed.name, "telephony.dtmf");
    assert_eq!(pressed.fields["digit"], "#");
    let played = Duration::from_millis(140);
    let receipt = Receipt { turn, played };
    assert_eq!(source.next().await, Some(Ingress::Played(receipt)));
    let pong = client.next().await;
    assert_eq!(pong, Some(ServerMessage::Pong(Ping { id: 7 })));
}

/// F-084: the end of a session is told, and its socket closed in order; a server that stops says so.
#[tokio::test]
async fn the_end_is_told() {
    let mut house = House::open(local());
    let (mut client, mut session) = call(&mut house).await;
    let sink = &mut session.transport.sink;
    assert_eq!(sink.send(Outgoing::Voice { available: false }), Ok(()));
    let server = house.server.clone();
    let stopping = tokio::spawn(async move { server.drain(Duration::from_secs(5)).await });
    let until_told = |message: &ServerMessage| matches!(message, ServerMessage::Draining(_));
    assert_eq!(client.until(until_told).await.len(), 2);
    let late = Client::connect(house.address, &[], &[]).await;
    assert_eq!(late.err().map(|refused| refused.0), Some(503));
    session
        .end
        .send(Farewell::because("the user hung up"))
        .unwrap();
    let Some(ServerMessage::End(end)) = client.next().await else {
        panic!("no end");
    };
    assert_eq!(end.reason, "the user hung up");
    assert_eq!(client.next().await, None);
    assert_eq!(client.closed, Some((1000, String::new())));
    assert!(stopping.await.unwrap(), "in time");
    assert_eq!(house.server.tally().calls, 0);
}
