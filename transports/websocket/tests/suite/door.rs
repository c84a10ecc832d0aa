//! Who comes in, and who does not.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::StreamExt;
use rspp_proto::{PipelineVersion, SessionId, TenantId, WallClock, control::Versions};
use rspp_transport_api::{
    Admitted, Elsewhere, Farewell, Grant, Guard, Ingress, TokenValidator, TransportKind,
    Unauthorized,
};
use rspp_websocket::{
    Config,
    protocol::{ErrorCode, Format, Hello, ServerMessage},
    testing::{Client, Refused},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::house::{House, local};

const THERE: &str = "ws://other:7410/v1/talk";

/// Tokens are session names with an honest sign before them, of either of two tenants, or are for another runtime.
struct Signs;

impl TokenValidator for Signs {
    fn validate(
        &self,
        token: &str,
        kind: TransportKind,
        _now: WallClock,
    ) -> Result<Grant, Unauthorized> {
        assert_eq!(kind, TransportKind::Websocket);
        if token.starts_with("there.") {
            return Err(Unauthorized::Elsewhere(Elsewhere {
                url: THERE.to_owned(),
                token: None,
            }));
        }
        let (sign, session) = token.split_once('.').unwrap_or_default();
        let tenant = match sign {
            "good" | "again" => "tenant",
            "foreign" => "another",
            _no_sign_of_ours => return Err(Unauthorized::Refused("token_bad_signature")),
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Ok(Grant {
            token_id: token.to_owned(),
            tenant: TenantId::new(tenant).unwrap(),
            session: SessionId::new(session).unwrap(),
            pipeline: PipelineVersion::new("simple-1").ok(),
            versions: Versions::default(),
            epoch: None,
            expires_at: WallClock(since.as_millis() as u64 + 60_000),
        })
    }
}

fn guarded() -> Config {
    Config {
        guard: Guard::Tokens(Arc::new(Signs)),
        ..Config::default()
    }
}

async fn refused(house: &House, protocols: &[&str], headers: &[(&str, &str)]) -> Refused {
    match Client::connect(house.address, protocols, headers).await {
        Ok(_let_in) => panic!("it was let in"),
        Err(refused) => refused,
    }
}

/// What a client is told whose `hello` is refused: the error, and how the socket closes.
async fn turned_away(mut client: Client, hello: Hello) -> (ErrorCode, String, Option<u16>) {
    let message = rspp_websocket::protocol::ClientMessage::Hello(hello);
    client.say(message).await;
    let Some(ServerMessage::Error(trouble)) = client.next().await else {
        panic!("no error");
    };
    assert!(trouble.fatal);
    assert_eq!(client.next().await, None);
    let code = client.closed.map(|(code, _)| code);
    (trouble.code, trouble.message, code)
}

/// F-088: a token is looked at before the socket opens; without somebody who knows tokens, nobody comes in.
#[tokio::test]
async fn only_those_with_a_good_token_come_in() {
    let closed = House::open(Config::default());
    let Refused(status, body) = refused(&closed, &["rspp.v1.json"], &[]).await;
    assert_eq!(status, 401);
    assert!(body.contains("no_validator"), "{body}");

    let mut house = House::open(guarded());
    for (protocols, code) in [
        (&["rspp.v1.json"][..], "token_missing"),
        (
            &["rspp.v1.json", "rspp.token.bad.a"][..],
            "token_bad_signature",
        ),
        (&["rspp.v1.json", "rspp.resume.0"][..], "cannot_resume"),
    ] {
        let Refused(status, body) = refused(&house, protocols, &[]).await;
        assert_eq!(status, 401, "{body}");
        assert!(body.contains(code), "{body}");
    }
    let bearer = [("authorization", "Bearer good.a")];
    let client = Client::connect(house.address, &["rspp.v1.msgpack"], &bearer).await;
    let ready = client.unwrap().hello(Hello::default()).await;
    assert_eq!(ready.session.as_str(), "a");
    let Admitted::Granted(grant) = house.session().await.admitted else {
        panic!("by its token");
    };
    assert_eq!(grant.tenant.as_str(), "tenant");
    assert_eq!(house.server.tally().refused, 3);
}

/// F-119, NF-013: a token that was used is worth nothing, but its session can be come back to with the
/// key; one that opened nothing may be used again.
#[tokio::test]
async fn a_token_lets_one_session_in_once() {
    let mut house = House::open(guarded());
    let with = ["rspp.v1.json", "rspp.token.good.a"];
    let connect = || Client::connect(house.address, &with, &[]);
    let mut first = connect().await.unwrap();
    first.hello(Hello::default()).await;
    let (code, message, closed) = turned_away(connect().await.unwrap(), Hello::default()).await;
    assert_eq!((code, closed), (ErrorCode::Unauthorized, Some(1008)));
    assert_eq!(message, "the token was used before");

    let resume = first.resume();
    let key = format!("rspp.resume.{}", resume.key);
    let again = Client::connect(house.address, &["rspp.v1.json", &key], &[]).await;
    let hello = Hello {
        resume: Some(resume),
        ..Hello::default()
    };
    let ready = again.unwrap().hello(hello).await;
    assert_eq!((ready.session.as_str(), ready.connection), ("a", 2));
    let _session = house.session().await;

    for _ in 0..2 {
        let crowded = ["rspp.v1.json", "rspp.token.good.crowded"];
        let client = Client::connect(house.address, &crowded, &[]).await.unwrap();
        let (code, message, closed) = turned_away(client, Hello::default()).await;
        assert_eq!((code, closed), (ErrorCode::Busy, Some(1013)));
        assert_eq!(message, "no room");
    }
}

/// F-119, P25: whoever lost the key of a session, and is given a new token for it, goes on with it, and hears what is
/// said from then on; the socket that held it is sent away. Another tenant's token opens nothing of it.
#[tokio::test]
async fn a_new_token_takes_its_session_over() {
    let mut house = House::open(guarded());
    let first = ["rspp.v1.json", "rspp.token.good.a"];
    let mut before = Client::connect(house.address, &first, &[]).await.unwrap();
    before.hello(Hello::default()).await;
    let session = house.session().await;
    let again = ["rspp.v1.json", "rspp.token.again.a"];
    let other = Hello {
        output: Format {
            rate: 8_000,
            ..Format::default()
        },
        ..Hello::default()
    };
    let foreign = ["rspp.v1.json", "rspp.token.foreign.a"];
    for (with, hello, code) in [
        (again, other, ErrorCode::BadFormat),
        (foreign, Hello::default(), ErrorCode::NotOpened),
    ] {
        let client = Client::connect(house.address, &with, &[]).await.unwrap();
        assert_eq!(turned_away(client, hello).await.0, code);
    }

    let mut after = Client::connect(house.address, &again, &[]).await.unwrap();
    let ready = after.hello(Hello::default()).await;
    assert_eq!((ready.session.as_str(), ready.connection), ("a", 2));
    after.speak(&[1_000; 320]).await;
    let mut source = session.transport.source;
    while !matches!(source.next().await, Some(Ingress::Audio(_))) {}
    before.until(|_| false).await;
    let client = Client::connect(house.address, &again, &[]).await.unwrap();
    assert_eq!(
        turned_away(client, Hello::default()).await.0,
        ErrorCode::Unauthorized
    );
}

/// F-099, issue 4, 5: a client whose token is for another runtime, or whose session another runtime has, is
/// told where to go, in a message, as a page sees nothing of a handshake that is refused; and so is one
/// whose session moves while it talks. What is to be shown there is in no debug output.
#[tokio::test]
async fn a_client_at_the_wrong_runtime_is_told_where_to_go() {
    let mut house = House::open(guarded());
    for (token, shows) in [
        ("rspp.token.there.a", None),
        ("rspp.token.good.moved", Some("for-there")),
    ] {
        let with = ["rspp.v1.json", token];
        let mut client = Client::connect(house.address, &with, &[]).await.unwrap();
        let hello = rspp_websocket::protocol::ClientMessage::Hello(Hello::default());
        client.say(hello).await;
        let Some(ServerMessage::Error(trouble)) = client.next().await else {
            panic!("no error");
        };
        assert_eq!((trouble.code, trouble.fatal), (ErrorCode::Elsewhere, true));
        assert!(trouble.message.contains(THERE), "{}", trouble.message);
        assert!(!format!("{trouble:?}").contains("for-there"));
        let to = trouble.elsewhere.expect("it says where");
        assert_eq!((to.url.as_str(), to.token.as_deref()), (THERE, shows));
        assert_eq!(client.next().await, None);
        assert_eq!(client.closed.map(|(code, _)| code), Some(1013));
    }
    assert_eq!(house.server.tally().refused, 2);

    let with = ["rspp.v1.json", "rspp.token.good.a"];
    let mut client = Client::connect(house.address, &with, &[]).await.unwrap();
    client.hello(Hello::default()).await;
    let session = house.session().await;
    let to = Elsewhere {
        url: THERE.to_owned(),
        token: Some("for-there".to_owned()),
    };
    let farewell = Farewell {
        reason: "moved".to_owned(),
        elsewhere: Some(to.clone()),
    };
    session.end.send(farewell).unwrap();
    let Some(ServerMessage::End(ended)) = client.next().await else {
        panic!("no end");
    };
    assert_eq!(
        (ended.reason.as_str(), ended.elsewhere),
        ("moved", Some(to))
    );
}

/// The answer to a page that found this machine under somebody else's name.
async fn asked_as(house: &House, host: &str) -> String {
    let mut socket = TcpStream::connect(house.address).await.unwrap();
    let request = format!(
        "GET /v1/talk HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nConnection: close\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn pages_from_elsewhere_and_unknown_protocols_are_refused() {
    let house = House::open(local());
    let json = ["rspp.v1.json"];
    let evil = [("origin", "https://evil.example")];
    let Refused(status, body) = refused(&house, &json, &evil).await;
    assert_eq!(status, 403);
    assert!(body.contains("origin_refused"), "{body}");
    let answer = asked_as(&house, "evil.example").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(answer.contains("host_refused"), "{answer}");
    let Refused(status, body) = refused(&house, &["chat"], &[]).await;
    assert_eq!(status, 400);
    assert!(body.contains("rspp.v1.json, rspp.v1.msgpack"), "{body}");
}

/// NF-013: a rate that is not served, and a `hello` that is none, are told apart.
#[tokio::test]
async fn a_hello_that_makes_no_sense_is_refused() {
    let house = House::open(local());
    let connect = || Client::connect(house.address, &["rspp.v1.json"], &[]);
    let mut hello = Hello::default();
    hello.input.rate = 7_999;
    let (code, message, closed) = turned_away(connect().await.unwrap(), hello).await;
    assert_eq!((code, closed), (ErrorCode::BadFormat, Some(1008)));
    assert!(message.contains("input.rate: 7999 Hz"), "{message}");

    for (text, code) in [
        (r#"{"type":"bye"}"#, ErrorCode::HelloExpected),
        (r#"{"type":"hello","mood":1}"#, ErrorCode::BadMessage),
        (
            r#"{"type":"hello","input":{"codec":"mp3"}}"#,
            ErrorCode::BadMessage,
        ),
        ("hello", ErrorCode::BadMessage),
    ] {
        let mut client = connect().await.unwrap();
        client.raw_text(text).await;
        let Some(ServerMessage::Error(trouble)) = client.next().await else {
            panic!("no error for {text}");
        };
        assert_eq!(trouble.code, code, "{text}: {}", trouble.message);
        assert_eq!(client.next().await, None);
    }
}

#[tokio::test]
async fn a_client_that_says_nothing_is_not_waited_for() {
    let mut config = local();
    config.limits.hello = Duration::from_millis(100);
    config.limits.sockets = 1;
    let house = House::open(config);
    let connect = || Client::connect(house.address, &[], &[]);
    let mut mute = connect().await.unwrap();
    let Refused(status, body) = refused(&house, &[], &[]).await;
    assert_eq!(status, 503);
    assert!(body.contains("too many sockets"), "{body}");
    let Some(ServerMessage::Error(trouble)) = mute.next().await else {
        panic!("no error");
    };
    assert_eq!(trouble.code, ErrorCode::HelloExpected);
    assert_eq!(mute.next().await, None);
    drop(mute);
    // Its place is free again.
    for _ in 0..100 {
        if house.server.tally().sockets == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(connect().await.is_ok());
}

/// P30: a client says in a header where in a trace it is, or a page in the address; what is none is as good as
/// none.
#[tokio::test]
async fn a_client_says_where_in_a_trace_it_is() {
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut house = House::open(local());
    for (headers, caller) in [
        (&[][..], None),
        (&[("traceparent", PARENT)][..], PARENT.parse().ok()),
        (&[("traceparent", "00-zz")][..], None),
    ] {
        let client = Client::connect(house.address, &["rspp.v1.json"], headers).await;
        client.unwrap().hello(Hello::default()).await;
        assert_eq!(
            house.session().await.transport.caller,
            caller,
            "{headers:?}"
        );
    }
}

/// F-023: each client has the rates that it asked for.
#[tokio::test]
async fn rates_are_the_clients_choice() {
    let mut house = House::open(local());
    let mut hello = Hello::default();
    hello.input.rate = 48_000;
    hello.output.rate = 24_000;
    let mut client = Client::begin(house.address, hello.clone()).await;
    let ready = client.ready.clone().unwrap();
    assert_eq!((ready.input, ready.output), (hello.input, hello.output));
    let mut session = house.session().await;
    assert_eq!(session.transport.source_rate.hertz(), 48_000);
    assert_eq!(session.transport.sink.sample_rate().hertz(), 24_000);
    client.speak(&[1, 2, 3]).await;
    let came = session.transport.source.next().await;
    let pcm = bytes::Bytes::from_static(&[1, 0, 2, 0, 3, 0]);
    assert_eq!(came, Some(Ingress::Audio(pcm)));
    assert_eq!(Format::default().rate, 16_000);
}
