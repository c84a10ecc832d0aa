//! The suite that every transport passes, in both encodings.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_proto::TurnNumber;
use rspp_transport_api::{
    Transport,
    audio::{FRAME, samples},
    conformance::{Peer, Rig},
    transport_tests,
};
use rspp_websocket::{
    protocol::{ClientMessage, Hello, Nothing, ServerMessage},
    testing::Client,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::house::{House, local};

struct Sockets(&'static str);

/// A client that plays what comes at the pace of speech, and stops when it is told to.
struct Player {
    playing: Arc<Mutex<Vec<Piece>>>,
    says: mpsc::UnboundedSender<ClientMessage>,
    frozen: watch::Sender<bool>,
    _house: House,
    _end: tokio::sync::oneshot::Sender<rspp_transport_api::Farewell>,
}

struct Piece {
    turn: TurnNumber,
    pcm: Vec<i16>,
    due: Instant,
}

impl Rig for Sockets {
    type Peer = Player;

    async fn connect(&self, says: Vec<i16>) -> (Transport, Player) {
        let mut house = House::open(local());
        let mut client = Client::connect(house.address, &[self.0], &[])
            .await
            .unwrap();
        client.hello(Hello::default()).await;
        let session = house.session().await;
        let playing = Arc::<Mutex<Vec<Piece>>>::default();
        let (to_say, mut from_test) = mpsc::unbounded_channel();
        let (frozen, mut freezes) = watch::channel(false);
        let player = Player {
            playing: Arc::clone(&playing),
            says: to_say,
            frozen,
            _house: house,
            _end: session.end,
        };
        tokio::spawn(async move {
            for frame in says.chunks(320) {
                client.speak(frame).await;
            }
            let mut turn = TurnNumber::FIRST;
            loop {
                if freezes.wait_for(|frozen| !frozen).await.is_err() {
                    return; // The test is over.
                }
                tokio::select! {
                    Some(message) = from_test.recv() => client.say(message).await,
                    Ok(()) = freezes.changed() => {}
                    message = client.next() => {
                        let Some(message) = message else { return };
                        take(&mut playing.lock().unwrap(), &mut turn, message);
                    }
                }
            }
        });
        (session.transport, player)
    }
}

fn take(playing: &mut Vec<Piece>, current: &mut TurnNumber, message: ServerMessage) {
    let now = Instant::now();
    match message {
        ServerMessage::AudioStart(of) => *current = of.turn,
        ServerMessage::Audio(audio) => {
            let after = playing.last().map(|last| last.due + FRAME);
            playing.push(Piece {
                turn: *current,
                pcm: samples(&audio.data).collect(),
                due: after.map_or(now, |after| after.max(now)),
            });
        }
        ServerMessage::Clear(of) => {
            playing.retain(|piece| piece.turn > of.turn || piece.due <= now);
        }
        _nothing_to_play => {}
    }
}

impl Peer for Player {
    async fn heard(&mut self) -> Vec<i16> {
        let now = Instant::now();
        let playing = self.playing.lock().unwrap();
        let heard = playing.iter().filter(|piece| piece.due <= now);
        heard.flat_map(|piece| piece.pcm.clone()).collect()
    }

    async fn hang_up(&mut self) {
        self.says.send(ClientMessage::Bye(Nothing {})).unwrap();
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
    /// F-086, P4, P5, P23
    #[tokio::test]
    mod json = Sockets("rspp.v1.json");
}

transport_tests! {
    /// F-086, P4, P5, P23
    #[tokio::test]
    mod msgpack = Sockets("rspp.v1.msgpack");
}

/// The lead is what waits here at most, whatever waits in the machine's own buffers.
#[tokio::test]
async fn the_lead_is_short() {
    let (transport, _player) = Sockets("rspp.v1.json").connect(Vec::new()).await;
    assert_eq!(transport.sink.lead(), Duration::from_millis(200));
}
