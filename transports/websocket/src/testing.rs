//! A client for tests: says what it is told to, and counts what comes as the protocol asks.

use std::{f64::consts::TAU, net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use rspp_proto::TurnNumber;
use rspp_transport_api::audio::{FRAME, samples, to_bytes};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{self, ClientRequestBuilder, Message},
};

use crate::{
    PATH,
    codec::{CodecCounts, Decoder, Encoder, real_time},
    outbox::Item,
    protocol::{
        AudioData, ClientMessage, Format, Hello, Nothing, Ready, Resume, ServerMessage, Typed,
    },
};

/// Something that is typed.
pub fn typed(text: impl Into<String>) -> ClientMessage {
    let text = text.into();
    ClientMessage::Text(Typed { text, key: None })
}

/// How long a test waits for what is to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client.
pub struct Client {
    /// The socket, for tests that misbehave.
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// What `ready` said.
    pub ready: Option<Ready>,
    /// Messages since then.
    pub received: u64,
    /// How the server closed: code and reason.
    pub closed: Option<(u16, String)>,
    is_json: bool,
}

/// A handshake that was refused: status and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub u16, pub String);

impl Client {
    /// Connects with these subprotocols and headers.
    pub async fn connect(
        to: SocketAddr,
        protocols: &[&str],
        headers: &[(&str, &str)],
    ) -> Result<Self, Refused> {
        let uri = format!("ws://{to}{PATH}").parse().expect("an address");
        let mut request = ClientRequestBuilder::new(uri);
        for protocol in protocols {
            request = request.with_sub_protocol(*protocol);
        }
        for (name, value) in headers {
            request = request.with_header(*name, *value);
        }
        // Without Nagle's algorithm, as browsers do: a short message waits for nobody's acknowledgement.
        match connect_async_with_config(request, None, true).await {
            Ok((socket, response)) => {
                let chosen = response.headers().get("sec-websocket-protocol");
                let is_json = chosen.is_none_or(|chosen| chosen == "rspp.v1.json");
                Ok(Self {
                    socket,
                    ready: None,
                    received: 0,
                    closed: None,
                    is_json,
                })
            }
            Err(tungstenite::Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                let body = String::from_utf8_lossy(&body).into_owned();
                Err(Refused(response.status().as_u16(), body))
            }
            Err(error) => Err(Refused(0, error.to_string())),
        }
    }

    /// Connects in JSON and says `hello`.
    pub async fn begin(to: SocketAddr, hello: Hello) -> Self {
        let mut client = Self::connect(to, &["rspp.v1.json"], &[])
            .await
            .expect("the handshake succeeds");
        client.hello(hello).await;
        client
    }

    /// Says `hello` and waits for `ready`.
    pub async fn hello(&mut self, hello: Hello) -> Ready {
        self.say(ClientMessage::Hello(hello)).await;
        match self.next().await {
            Some(ServerMessage::Ready(ready)) => {
                self.received = 0;
                self.ready = Some((*ready).clone());
                *ready
            }
            other => panic!("no `ready`: {other:?}, {:?}", self.closed),
        }
    }

    /// What a new socket says to take this one's place.
    pub fn resume(&self) -> Resume {
        let ready = self.ready.as_ref().expect("`ready` came");
        Resume {
            session: ready.session.clone(),
            key: ready.key.clone(),
            connection: ready.connection,
            received: self.received,
        }
    }

    /// Sends a message.
    pub async fn say(&mut self, message: ClientMessage) {
        let message = match (self.is_json, message) {
            (true, ClientMessage::Audio(audio)) => Message::Binary(audio.data),
            (true, message) => {
                let text = serde_json::to_string(&message).expect("plain data");
                Message::Text(text.into())
            }
            (false, message) => {
                let bytes = rmp_serde::to_vec_named(&message).expect("plain data");
                Message::Binary(bytes.into())
            }
        };
        self.raw(message).await;
    }

    /// Sends a text as it is.
    pub async fn raw_text(&mut self, text: &str) {
        self.raw(Message::Text(text.into())).await;
    }

    /// Sends bytes as they are.
    pub async fn raw_bytes(&mut self, bytes: impl Into<Bytes>) {
        self.raw(Message::Binary(bytes.into())).await;
    }

    async fn raw(&mut self, message: Message) {
        if let Err(error) = self.socket.send(message).await {
            assert!(self.closed.is_some(), "the socket is broken: {error}");
        }
    }

    /// Sends audio at once.
    pub async fn speak(&mut self, pcm: &[i16]) {
        let data = to_bytes(pcm);
        self.say(ClientMessage::Audio(AudioData { data })).await;
    }

    /// Sends audio at 16 kHz at the pace of speech.
    pub async fn speak_slowly(&mut self, pcm: &[i16]) {
        let mut pace = tokio::time::interval(FRAME);
        for frame in pcm.chunks(320) {
            pace.tick().await;
            self.speak(frame).await;
        }
    }

    /// Hangs up.
    pub async fn bye(&mut self) {
        self.say(ClientMessage::Bye(Nothing {})).await;
    }

    /// The next message; `None` once the socket is closed.
    ///
    /// # Panics
    /// When nothing comes.
    pub async fn next(&mut self) -> Option<ServerMessage> {
        timeout(PATIENCE, self.take())
            .await
            .expect("something comes")
    }

    async fn take(&mut self) -> Option<ServerMessage> {
        loop {
            let message = match self.socket.next().await? {
                Ok(Message::Text(text)) => serde_json::from_str(&text).expect("one of ours"),
                Ok(Message::Binary(data)) if self.is_json => {
                    ServerMessage::Audio(AudioData { data })
                }
                Ok(Message::Binary(bytes)) => rmp_serde::from_slice(&bytes).expect("one of ours"),
                Ok(Message::Close(frame)) => {
                    self.closed = frame.map(|it| (it.code.into(), it.reason.to_string()));
                    return None;
                }
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
                Err(_broken) => return None,
            };
            self.received += 1;
            return Some(message);
        }
    }

    /// All that comes until `last`, which is among it, or the end of the socket.
    pub async fn until(
        &mut self,
        mut last: impl FnMut(&ServerMessage) -> bool,
    ) -> Vec<ServerMessage> {
        let mut came = Vec::new();
        while let Some(message) = self.next().await {
            let is_last = last(&message);
            came.push(message);
            if is_last {
                break;
            }
        }
        came
    }
}

/// The samples among messages.
pub fn sound(messages: &[ServerMessage]) -> Vec<i16> {
    let audio = messages.iter().filter_map(|message| match message {
        ServerMessage::Audio(audio) => Some(&audio.data),
        _another_message => None,
    });
    audio.flat_map(|data| samples(data)).collect()
}

/// How audio fared that was written smaller and read again.
#[derive(Debug)]
pub struct Coded {
    /// How long each frame of 20 ms took to be written.
    pub written: Vec<Duration>,
    /// And to be read.
    pub read: Vec<Duration>,
    /// Bytes of all of it on the wire.
    pub wire_bytes: u64,
    /// How much later it is heard, in samples.
    pub delay: usize,
}

/// Has a socket's own encoder and decoder write and read audio.
///
/// # Panics
/// When the format is not served.
pub fn coded(format: Format, spoken: &[i16]) -> Coded {
    let rate = format.checked().expect("a format that is served");
    let counts = CodecCounts::default();
    let (mut encoder, mut decoder) = (Encoder::new(format, rate), Decoder::new(format, rate));
    let mut coded = Coded {
        written: Vec::new(),
        read: Vec::new(),
        wire_bytes: 0,
        delay: 0,
    };
    let mut heard = Vec::new();
    for frame in spoken.chunks_exact(rate.samples_in(FRAME) as usize) {
        let frame = Item::Frame {
            turn: TurnNumber::FIRST,
            pcm: to_bytes(frame),
        };
        let began = real_time();
        let Item::Frame { pcm: packet, .. } = encoder.encode(frame, &counts) else {
            panic!("a frame stays one");
        };
        coded.written.push(began.elapsed());
        coded.wire_bytes += packet.len() as u64;
        let began = real_time();
        let pcm = decoder
            .decode(packet, &counts)
            .expect("it was written here");
        coded.read.push(began.elapsed());
        heard.extend(samples(&pcm));
    }
    let second = rate.hertz() as usize;
    let (spoken, heard) = (&spoken[..2 * second], &heard[..2 * second]);
    coded.delay = delay(spoken, heard, second / 20).0;
    coded
}

/// A voice of sorts: a gliding tone with overtones that swells and falls, which is like itself at no other time.
pub fn voice(rate: u32, seconds: usize) -> Vec<i16> {
    let mut phase = 0.0;
    let sample = |n: usize| {
        let at = n as f64 / f64::from(rate);
        let pitch = 150.0 + 60.0 * (at * 2.3).sin() + 25.0 * (at * 0.7).sin();
        phase += pitch / f64::from(rate);
        let overtone = |k: u32| (phase * f64::from(k) * TAU).sin() / f64::from(k);
        let loud = 0.55 + 0.45 * (at * 9.0).sin();
        ((1..=8).map(overtone).sum::<f64>() * loud * 6_000.0) as i16
    };
    (0..rate as usize * seconds).map(sample).collect()
}

/// How much later `heard` is than `spoken`, in samples, less than `most`; and how like it then: 1 is the same.
///
/// # Panics
/// When there is too little of either.
pub fn delay(spoken: &[i16], heard: &[i16], most: usize) -> (usize, f64) {
    // From when the codec has begun; enough to tell, and no more.
    let from = spoken.len() / 4;
    let said = &spoken[from..from + spoken.len() / 4];
    let likeness = |delay: usize| {
        let heard = &heard[from + delay..from + delay + said.len()];
        let (mut product, mut one, mut other) = (0.0, 0.0, 0.0);
        for (a, b) in said.iter().zip(heard) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            product += a * b;
            one += a * a;
            other += b * b;
        }
        product / (one * other).sqrt()
    };
    let delays = (0..most).map(|delay| (delay, likeness(delay)));
    delays
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .expect("some delay")
}
