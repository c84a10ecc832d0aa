//! The suite that every transport passes, in both encodings.

use std::time::Duration;

use rspp_proto::TurnNumber;
use rspp_transport_api::{
    Transport,
    audio::FRAME,
    conformance::{Peer, Rig},
    transport_tests,
};
use rspp_websocket::{
    protocol::{ClientMessage, Hello, Nothing, ServerMessage},
    testing::Client,
};
use tokio::sync::{mpsc, watch};

use crate::house::{House, Loudspeaker, local};

struct Sockets(&'static str);

/// A client that plays what comes at the pace of speech, and stops when it is told to.
struct Player {
    playing: Loudspeaker<TurnNumber>,
    says: mpsc::UnboundedSender<ClientMessage>,
    frozen: watch::Sender<bool>,
    _house: House,
    _end: tokio::sync::oneshot::Sender<rspp_transport_api::Farewell>,
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
        let playing = Loudspeaker::default();
        let (to_say, mut from_test) = mpsc::unbounded_channel();
        let (frozen, mut freezes) = watch::channel(false);
        let player = Player {
            playing: playing.clone(),
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
                        take(&playing, &mut turn, message);
                    }
                }
            }
        });
        (session.transport, player)
    }
}

fn take(playing: &Loudspeaker<TurnNumber>, current: &mut TurnNumber, message: ServerMessage) {
    match message {
        ServerMessage::AudioStart(of) => *current = of.turn,
        ServerMessage::Audio(audio) => playing.play(*current, &audio.data),
        ServerMessage::Clear(of) => playing.take_back(|turn| *turn > of.turn),
        _nothing_to_play => {}
    }
}

impl Peer for Player {
    async fn heard(&mut self) -> Vec<i16> {
        self.playing.heard()
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
