//! The suite that every transport passes, in the OpenAI Realtime protocol; and who comes in.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use rspp_proto::TenantId;
use rspp_transport_api::{
    Farewell, Guard, Transport, TurnEnd,
    audio::FRAME,
    conformance::{Peer, Rig},
    transport_tests,
};
use rspp_websocket::{
    Config,
    realtime::{Realtime, testing::Client},
};
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use crate::house::{House, Loudspeaker, local};

struct Sockets;

/// A client that plays what comes at the pace of speech, and what is new instead of what is old.
struct Player {
    /// By item.
    playing: Loudspeaker<Value>,
    hang_up: Option<oneshot::Sender<()>>,
    frozen: watch::Sender<bool>,
    _house: House,
    _end: oneshot::Sender<Farewell>,
}

impl Rig for Sockets {
    type Peer = Player;

    async fn connect(&self, mut says: Vec<i16>) -> (Transport, Player) {
        let mut house = House::open(local());
        let mut client = Client::begin(house.address).await;
        if says.is_empty() {
            // The conversation begins with the first audio.
            says.push(0);
        }
        client.speak(&says).await;
        let session = house.session().await;
        let playing = Loudspeaker::default();
        let (hang_up, mut hung_up) = oneshot::channel();
        let (frozen, mut freezes) = watch::channel(false);
        let player = Player {
            playing: playing.clone(),
            hang_up: Some(hang_up),
            frozen,
            _house: house,
            _end: session.end,
        };
        tokio::spawn(async move {
            loop {
                if freezes.wait_for(|frozen| !frozen).await.is_err() {
                    return; // The test is over.
                }
                tokio::select! {
                    _asked = &mut hung_up => return client.close().await,
                    Ok(()) = freezes.changed() => {}
                    event = client.next() => {
                        let Some(event) = event else { return };
                        take(&playing, &event);
                    }
                }
            }
        });
        (session.transport, player)
    }
}

fn take(playing: &Loudspeaker<Value>, event: &Value) {
    if event["type"] != "response.output_audio.delta" {
        return;
    }
    let item = event["item_id"].clone();
    playing.take_back(|other| *other == item);
    let bytes = STANDARD.decode(event["delta"].as_str().unwrap()).unwrap();
    playing.play(item, &bytes);
}

impl Peer for Player {
    async fn heard(&mut self) -> Vec<i16> {
        self.playing.heard()
    }

    async fn hang_up(&mut self) {
        let hang_up = self.hang_up.take().expect("it hangs up once");
        hang_up.send(()).unwrap();
    }

    async fn freeze(&mut self) {
        self.frozen.send(true).unwrap();
        // What is on its way into the client's task comes before.
        tokio::time::sleep(FRAME).await;
    }

    async fn thaw(&mut self) {
        self.frozen.send(false).unwrap();
    }
}

transport_tests! {
    #[tokio::test]
    mod openai_realtime = Sockets;
}

/// F-088: who is not known does not come in, and is told so in the protocol's own form.
#[tokio::test]
async fn only_good_tokens_open_a_socket() {
    let house = House::open(Config {
        guard: Guard::Local {
            tenant: TenantId::new("local").unwrap(),
            password: Some("sesame".to_owned()),
        },
        ..Config::default()
    });
    let refused = Client::connect(house.address, &[], &[])
        .await
        .err()
        .unwrap();
    assert_eq!(refused.0, 401);
    let body: Value = serde_json::from_str(&refused.1).unwrap();
    assert_eq!(body["error"]["code"], "token_missing");
    let wrong = [("Authorization", "Bearer open")];
    let refused = Client::connect(house.address, &[], &wrong)
        .await
        .err()
        .unwrap();
    assert!(refused.1.contains("token_wrong"), "{}", refused.1);

    let bearer = [("Authorization", "Bearer sesame")];
    assert!(Client::connect(house.address, &[], &bearer).await.is_ok());
    let offers = ["realtime", "openai-insecure-api-key.sesame"];
    assert!(Client::connect(house.address, &offers, &[]).await.is_ok());
    let foreign = [("Origin", "https://evil.example")];
    let refused = Client::connect(house.address, &offers, &foreign).await;
    assert!(refused.err().unwrap().1.contains("origin_refused"));
}

/// Issue 5: the session is opened with the first audio, as it was set up by then, and no sooner.
#[tokio::test]
async fn a_session_is_opened_as_it_was_set_up() {
    let mut house = House::open(local());
    let mut client = Client::begin(house.address).await;
    let format = json!({ "format": { "type": "audio/pcmu" }, "turn_detection": null });
    let audio = json!({ "input": format, "output": { "voice": "marin" } });
    client
        .update(json!({ "type": "realtime", "audio": audio }))
        .await;
    assert_eq!(house.server.tally().calls, 0);
    client.speak(&[1]).await;
    let session = house.session().await;
    assert_eq!(session.transport.source_rate.hertz(), 8_000);
    assert_eq!(session.transport.sink.sample_rate().hertz(), 24_000);
    assert_eq!(session.wishes.turn_end, TurnEnd::Client);
    assert_eq!(
        session.wishes.voice, None,
        "a name of the API's is any voice"
    );
    session
        .end
        .send(Farewell::because("the session was drained"))
        .unwrap();
    client.until(|_| false).await;
    let closed = client.closed.clone().unwrap();
    assert_eq!(closed, (1_000, "the session was drained".to_owned()));
}

/// NF-013: a message that is too long, or no text, ends the socket with its fault; so does a flood.
#[tokio::test]
async fn what_is_no_message_closes_the_socket() {
    let house = House::open(Config {
        realtime: Realtime {
            message_bytes: 10_000,
            ..Realtime::default()
        },
        ..local()
    });
    let mut client = Client::begin(house.address).await;
    client.raw(&"a".repeat(20_000)).await;
    let came = client.until(|_| false).await;
    assert_eq!(came.last().unwrap()["error"]["code"], "message_too_long");
    assert_eq!(client.closed.as_ref().unwrap().0, 1_009);

    let mut client = Client::begin(house.address).await;
    let bytes = tokio_tungstenite::tungstenite::Message::Binary(vec![1, 2].into());
    futures::SinkExt::send(&mut client.socket, bytes)
        .await
        .unwrap();
    let came = client.until(|_| false).await;
    assert_eq!(came.last().unwrap()["error"]["code"], "invalid_json");
    assert_eq!(client.closed.as_ref().unwrap().0, 1_003);
}

/// F-106: whoever has not begun is told when the server stops, and nobody comes in any more.
#[tokio::test]
async fn a_server_that_stops_lets_go_of_those_who_wait() {
    let house = House::open(local());
    let mut client = Client::begin(house.address).await;
    house.server.drain(Duration::from_secs(2)).await;
    let refused = Client::connect(house.address, &[], &[])
        .await
        .err()
        .unwrap();
    assert_eq!(refused.0, 503);
    client.until(|_| false).await;
    assert_eq!(client.closed.as_ref().unwrap().0, 1_000);
}
