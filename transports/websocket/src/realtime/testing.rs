//! A client of the OpenAI Realtime protocol, for tests.

use std::{net::SocketAddr, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{SinkExt, StreamExt};
use rspp_transport_api::audio::{samples, to_bytes};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{self, ClientRequestBuilder, Message},
};

use super::PATH;
use crate::testing::Refused;

/// How long a test waits for what is to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client.
pub struct Client {
    /// The socket, for tests that misbehave.
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// How the server closed: code and reason.
    pub closed: Option<(u16, String)>,
}

impl Client {
    /// Connects with these subprotocols and headers.
    pub async fn connect(
        to: SocketAddr,
        protocols: &[&str],
        headers: &[(&str, &str)],
    ) -> Result<Self, Refused> {
        let uri = format!("ws://{to}{PATH}?model=gpt-realtime");
        let mut request = ClientRequestBuilder::new(uri.parse().expect("an address"));
        for protocol in protocols {
            request = request.with_sub_protocol(*protocol);
        }
        for (name, value) in headers {
            request = request.with_header(*name, *value);
        }
        // Without Nagle's algorithm, as browsers do: a short message waits for nobody's acknowledgement.
        match connect_async_with_config(request, None, true).await {
            Ok((socket, _response)) => Ok(Self {
                socket,
                closed: None,
            }),
            Err(tungstenite::Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                let body = String::from_utf8_lossy(&body).into_owned();
                Err(Refused(response.status().as_u16(), body))
            }
            Err(error) => Err(Refused(0, error.to_string())),
        }
    }

    /// Connects, and waits for `session.created`.
    pub async fn begin(to: SocketAddr) -> Self {
        let client = Self::connect(to, &[], &[]).await;
        let mut client = client.expect("the handshake succeeds");
        client.wait_for("session.created").await;
        client
    }

    /// Sends an event.
    pub async fn say(&mut self, event: Value) {
        self.raw(&event.to_string()).await;
    }

    /// Sends a text as it is.
    pub async fn raw(&mut self, text: &str) {
        let sent = self.socket.send(Message::Text(text.into())).await;
        if let Err(error) = sent {
            assert!(self.closed.is_some(), "the socket is broken: {error}");
        }
    }

    /// Sets the session up, and waits until it is.
    pub async fn update(&mut self, session: Value) -> Value {
        self.say(json!({ "type": "session.update", "session": session }))
            .await;
        let updated = self.wait_for("session.updated").await;
        updated.last().expect("it came")["session"].clone()
    }

    /// Sends 16-bit audio at once, in pieces of 100 ms at 24 kHz.
    pub async fn speak(&mut self, pcm: &[i16]) {
        for piece in pcm.chunks(2_400) {
            let audio = STANDARD.encode(to_bytes(piece));
            self.say(json!({ "type": "input_audio_buffer.append", "audio": audio }))
                .await;
        }
    }

    /// Adds a text of the user's, and asks for an answer.
    pub async fn ask(&mut self, text: &str) {
        self.write(text).await;
        self.say(json!({ "type": "response.create" })).await;
    }

    /// Adds a text of the user's.
    pub async fn write(&mut self, text: &str) {
        let content = json!([{ "type": "input_text", "text": text }]);
        let item = json!({ "type": "message", "role": "user", "content": content });
        self.say(json!({ "type": "conversation.item.create", "item": item }))
            .await;
    }

    /// The next event; `None` once the socket is closed.
    ///
    /// # Panics
    /// When nothing comes.
    pub async fn next(&mut self) -> Option<Value> {
        let take = async {
            loop {
                match self.socket.next().await? {
                    Ok(Message::Text(text)) => {
                        return Some(serde_json::from_str(&text).expect("JSON"));
                    }
                    Ok(Message::Close(frame)) => {
                        self.closed = frame.map(|it| (it.code.into(), it.reason.to_string()));
                        return None;
                    }
                    Ok(_of_the_socket) => {}
                    Err(_broken) => return None,
                }
            }
        };
        timeout(PATIENCE, take).await.expect("something comes")
    }

    /// All that comes until an event of this type, which is among it, or the end of the socket.
    pub async fn wait_for(&mut self, kind: &str) -> Vec<Value> {
        self.until(|event| event["type"] == kind).await
    }

    /// All that comes until `last`, which is among it, or the end of the socket.
    pub async fn until(&mut self, mut last: impl FnMut(&Value) -> bool) -> Vec<Value> {
        let mut came = Vec::new();
        while let Some(event) = self.next().await {
            let is_last = last(&event);
            came.push(event);
            if is_last {
                break;
            }
        }
        came
    }

    /// Closes the socket.
    pub async fn close(mut self) {
        let _gone_already = self.socket.close(None).await;
    }
}

/// The types of events, in order.
pub fn kinds(events: &[Value]) -> Vec<&str> {
    let kinds = events.iter().filter_map(|event| event["type"].as_str());
    kinds.collect()
}

/// The events of one type.
pub fn of<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events
        .iter()
        .filter(|event| event["type"] == kind)
        .collect()
}

/// What the deltas of one type add up to.
pub fn joined(events: &[Value], kind: &str) -> String {
    let deltas = of(events, kind).into_iter();
    deltas.filter_map(|event| event["delta"].as_str()).collect()
}

/// The bytes of the agent's audio.
///
/// # Panics
/// When it is not base64.
pub fn sound(events: &[Value]) -> Vec<u8> {
    let deltas = of(events, "response.output_audio.delta").into_iter();
    let deltas = deltas.filter_map(|event| event["delta"].as_str());
    deltas
        .flat_map(|delta| STANDARD.decode(delta).expect("base64"))
        .collect()
}

/// The samples of the agent's audio, of a client that asked for PCM.
pub fn pcm(events: &[Value]) -> Vec<i16> {
    samples(&sound(events)).collect()
}
