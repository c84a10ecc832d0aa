//! One socket: carries a call's messages both ways until it breaks.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use futures::{
    Sink, SinkExt, Stream, StreamExt,
    stream::{SplitSink, SplitStream},
};
use rspp_proto::{Extension, IdempotencyKey};
use rspp_transport_api::{ClientResult, Farewell, Ingress, Link, Receipt, Stamped};
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval_at, timeout},
};
use tokio_tungstenite::tungstenite;

use crate::{
    call::{Attached, Call},
    codec::{Decoder, Encoder, Unheard},
    encoding::{Encoding, Incoming, Wire},
    protocol::{ClientMessage, Ended, ErrorCode, Ready, ServerMessage, Trouble, VERSION},
    rate::Bucket,
    server::{Entrance, Server, trouble},
};

/// Longest reason that a close frame may have, in bytes.
const REASON: usize = 123;
/// How long a last word may take.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(1);

/// Why a socket is over.
enum Over {
    /// It broke, or the client does not answer: it may come back.
    Gone,
    /// The client is there but does not answer.
    Silent,
    /// The user hung up.
    HungUp,
    /// The client does what it may not.
    Fault(Trouble),
    /// The session is over.
    Ended(Farewell),
    /// Another socket has come.
    Replaced,
}

/// Serves a socket to its end.
pub(crate) async fn serve(
    server: Arc<Server>,
    mut socket: WebSocket,
    encoding: Encoding,
    entrance: Entrance,
) {
    let entered = match hello(&server, &mut socket, encoding).await {
        Ok(hello) => server.enter(entrance, &hello).await,
        Err(fault) => Err(fault),
    };
    let (call, attached) = match entered {
        Ok(entered) => entered,
        Err(fault) => {
            let (mut to, mut from) = socket.split();
            return refuse(&mut to, &mut from, encoding, fault).await;
        }
    };
    let returns = attached.connection > 1;
    let ready = ServerMessage::Ready(Box::new(Ready {
        protocol: VERSION.to_owned(),
        session: call.id.clone(),
        key: call.key.clone(),
        connection: attached.connection,
        received: attached.received,
        lost: attached.lost,
        input: call.input.0,
        output: call.output.0,
        max_message_bytes: server.config.limits.message_bytes,
    }));
    let (mut to, mut from) = socket.split();
    let mut voice = Encoder::new(call.output.0, call.output.1);
    let over = if to.send(encoding.message(&ready)).await.is_err() {
        Over::Gone
    } else {
        if returns && attached.to.send(Ingress::Link(Link::Back)).await.is_err() {
            tracing::debug!(session_id = %call.id, "its runtime is gone");
        }
        carry(
            &server, &call, &attached, encoding, &mut voice, &mut to, &mut from,
        )
        .await
    };
    let lost = call.detach(attached.connection) && over.may_come_back();
    // Said before the last words, which may take a while to nobody.
    if lost && attached.to.send(Ingress::Link(Link::Lost)).await.is_err() {
        tracing::trace!(session_id = %call.id, "its runtime is gone");
    }
    drop(attached);
    match over {
        Over::Gone => {}
        Over::Silent => {
            let fault = trouble(ErrorCode::Unresponsive, "nothing was heard for too long");
            refuse(&mut to, &mut from, encoding, fault).await;
        }
        Over::HungUp => {
            call.hang_up();
            close(&mut to, &mut from, close_code::NORMAL, "").await;
        }
        Over::Fault(fault) => {
            call.hang_up();
            // What was answered before is said before.
            let rest = async {
                while let Some(item) = call.next() {
                    let item = voice.encode(item, server.codec());
                    to.send(encoding.encode(&item)).await?;
                }
                Ok::<(), axum::Error>(())
            };
            let _nobody_listens = timeout(LAST_WORD, rest).await;
            refuse(&mut to, &mut from, encoding, fault).await;
        }
        Over::Ended(Farewell { reason, elsewhere }) => {
            let end = ServerMessage::End(Ended { reason, elsewhere });
            let end = encoding.message(&end);
            let _nobody_listens = timeout(LAST_WORD, to.send(end)).await;
            close(&mut to, &mut from, close_code::NORMAL, "").await;
        }
        Over::Replaced => {
            let fault = trouble(ErrorCode::Replaced, "another socket came for the session");
            refuse(&mut to, &mut from, encoding, fault).await;
        }
    }
}

impl Over {
    /// Whoever hung up is gone; whoever only lost the link is waited for.
    fn may_come_back(&self) -> bool {
        match self {
            Self::Gone | Self::Silent => true,
            Self::HungUp | Self::Fault(_) | Self::Ended(_) | Self::Replaced => false,
        }
    }
}

/// The client's first message.
async fn hello(
    server: &Server,
    socket: &mut WebSocket,
    encoding: Encoding,
) -> Result<crate::protocol::Hello, Trouble> {
    let limits = &server.config.limits;
    let first = async {
        loop {
            match socket.recv().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(message)) => return message_of(message).ok_or(Over::Gone),
                Some(Err(error)) => return Err(broken(error, limits.message_bytes)),
                None => return Err(Over::Gone),
            }
        }
    };
    let expected = |what: &str| trouble(ErrorCode::HelloExpected, what);
    let first = timeout(limits.hello, first)
        .await
        .map_err(|_| expected("`hello` did not come in time"))?;
    let first = first.map_err(|over| match over {
        Over::Fault(fault) => fault,
        Over::Gone | Over::Silent | Over::HungUp | Over::Ended(_) | Over::Replaced => {
            expected("the socket closed before `hello`")
        }
    })?;
    match encoding.decode(first) {
        Ok(Incoming::Message(message)) => match *message {
            ClientMessage::Hello(hello) => Ok(hello),
            ClientMessage::Audio(_)
            | ClientMessage::Text(_)
            | ClientMessage::EndOfUtterance(_)
            | ClientMessage::Cancel(_)
            | ClientMessage::Dtmf(_)
            | ClientMessage::Extension(_)
            | ClientMessage::Played(_)
            | ClientMessage::ToolResult(_)
            | ClientMessage::Ping(_)
            | ClientMessage::Bye(_) => Err(expected("the first message is `hello`")),
        },
        Ok(Incoming::Audio(_)) => Err(expected("the first message is `hello`, not audio")),
        Err(error) => {
            server.count_error();
            Err(trouble(ErrorCode::BadMessage, error))
        }
    }
}

async fn carry(
    server: &Server,
    call: &Call,
    attached: &Attached,
    encoding: Encoding,
    voice: &mut Encoder,
    to: &mut SplitSink<WebSocket, Message>,
    from: &mut SplitStream<WebSocket>,
) -> Over {
    let reading = pin!(read(server, call, attached.to.clone(), encoding, from));
    let writing = pin!(write(server, call, encoding, voice, to));
    tokio::select! {
        biased;
        () = attached.evicted.cancelled() => Over::Replaced,
        over = reading => over,
        over = writing => over,
    }
}

// --- out -------------------------------------------------------------------------------------

async fn write(
    server: &Server,
    call: &Call,
    encoding: Encoding,
    voice: &mut Encoder,
    to: &mut (impl Sink<Message, Error = axum::Error> + Unpin),
) -> Over {
    let limits = &server.config.limits;
    let mut ping = pings(limits.ping);
    loop {
        while let Some(item) = call.next() {
            let coded = voice.encode(item.clone(), server.codec());
            match send(to, encoding.encode(&coded), limits.dead).await {
                Ok(()) => call.left(&item),
                Err(unsent) => return unsent.into(),
            }
        }
        if let Some(reason) = call.over() {
            return Over::Ended(reason);
        }
        tokio::select! {
            () = call.changed() => {}
            now = ping.tick() => {
                call.pinged(now, limits.stalled);
                if let Err(unsent) = send(to, Message::Ping(Bytes::new()), limits.dead).await {
                    return unsent.into();
                }
            }
        }
    }
}

/// Why a message did not leave.
pub(crate) enum Unsent {
    /// The socket broke.
    Gone,
    /// The client does not read.
    Silent,
}

impl From<Unsent> for Over {
    fn from(unsent: Unsent) -> Self {
        match unsent {
            Unsent::Gone => Self::Gone,
            Unsent::Silent => Self::Silent,
        }
    }
}

pub(crate) async fn send(
    to: &mut (impl Sink<Message, Error = axum::Error> + Unpin),
    message: Message,
    within: Duration,
) -> Result<(), Unsent> {
    match timeout(within, to.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_broken)) => Err(Unsent::Gone),
        Err(_it_does_not_read) => Err(Unsent::Silent),
    }
}

/// When to ask a client whether it is there, the first time after `every`.
pub(crate) fn pings(every: Duration) -> Interval {
    let mut ping = interval_at(Instant::now() + every, every);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ping
}

/// Whether a message was longer than is taken.
pub(crate) fn is_too_long(error: &(dyn std::error::Error + 'static)) -> bool {
    let protocol = error.downcast_ref::<tungstenite::Error>();
    matches!(protocol, Some(tungstenite::Error::Capacity(_)))
}

async fn refuse(
    to: &mut (impl Sink<Message, Error = axum::Error> + Unpin),
    from: &mut SplitStream<WebSocket>,
    encoding: Encoding,
    fault: Trouble,
) {
    let code = match fault.code {
        ErrorCode::BadMessage | ErrorCode::OddLength | ErrorCode::BadAudio => close_code::INVALID,
        ErrorCode::TooLarge => close_code::SIZE,
        ErrorCode::Busy | ErrorCode::Elsewhere => close_code::AGAIN,
        ErrorCode::NotOpened => close_code::ERROR,
        ErrorCode::BadFormat
        | ErrorCode::BadValue
        | ErrorCode::HelloExpected
        | ErrorCode::CannotResume
        | ErrorCode::TooManyMessages
        | ErrorCode::TooMuchAudio
        | ErrorCode::TooManyErrors
        | ErrorCode::Unauthorized
        | ErrorCode::Unresponsive
        | ErrorCode::Replaced => close_code::POLICY,
    };
    let reason = fault.message.clone();
    let told = encoding.message(&ServerMessage::Error(fault));
    let _nobody_listens = timeout(LAST_WORD, to.send(told)).await;
    close(to, from, code, &reason).await;
}

/// Says why, and reads on until the client has closed as well: a socket that is closed with something unread
/// takes back what was said last.
pub(crate) async fn close(
    to: &mut (impl Sink<Message, Error = axum::Error> + Unpin),
    from: &mut SplitStream<WebSocket>,
    code: u16,
    reason: &str,
) {
    let frame = CloseFrame {
        code,
        reason: reason[..reason.floor_char_boundary(REASON)].into(),
    };
    let closing = async {
        let _nobody_listens = to.send(Message::Close(Some(frame))).await;
        let _closed = to.close().await;
        while let Some(Ok(_too_late)) = from.next().await {}
    };
    let _in_time = timeout(LAST_WORD, closing).await;
}

// --- in --------------------------------------------------------------------------------------

/// What a client sends, and may send.
struct Reader<'a> {
    server: &'a Server,
    call: &'a Call,
    to: mpsc::Sender<Ingress>,
    began: Instant,
    messages: Bucket,
    audio: Bucket,
    voice: Decoder,
    errors: u32,
}

async fn read(
    server: &Server,
    call: &Call,
    to: mpsc::Sender<Ingress>,
    encoding: Encoding,
    mut from: impl Stream<Item = Result<Message, axum::Error>> + Unpin,
) -> Over {
    let limits = &server.config.limits;
    let mut reader = Reader {
        server,
        call,
        to,
        began: Instant::now(),
        messages: Bucket::full(limits.messages.0.into(), limits.messages.1.into()),
        audio: Bucket::full(limits.audio.0.into(), limits.audio.1.into()),
        voice: Decoder::new(call.input.0, call.input.1),
        errors: 0,
    };
    loop {
        let message = match timeout(limits.dead, from.next()).await {
            Ok(Some(Ok(message))) => message,
            Ok(Some(Err(error))) => return broken(error, limits.message_bytes),
            Ok(None) => return Over::Gone,
            Err(_nothing_came) => return Over::Silent,
        };
        let wire = match message {
            Message::Pong(_) => {
                call.answered();
                continue;
            }
            Message::Ping(_) => continue, // Answered by the library.
            Message::Close(Some(frame)) if frame.code == close_code::NORMAL => {
                return Over::HungUp;
            }
            Message::Close(_) => return Over::Gone,
            Message::Text(text) => Wire::Text(text),
            Message::Binary(bytes) => Wire::Binary(bytes),
        };
        call.count();
        let taken = match encoding.decode(wire) {
            Ok(Incoming::Audio(pcm)) => reader.hear(pcm).await,
            Ok(Incoming::Message(message)) => reader.take(*message).await,
            Err(error) => reader.wrong(ErrorCode::BadMessage, error),
        };
        if let Err(over) = taken {
            return over;
        }
    }
}

impl Reader<'_> {
    async fn hear(&mut self, piece: Bytes) -> Result<(), Over> {
        if piece.is_empty() {
            return Ok(());
        }
        let lasts = match self.voice.lasts(&piece) {
            Ok(lasts) => lasts,
            Err(Unheard(code, says)) => return self.wrong(code, says),
        };
        if !self.audio.take(self.began.elapsed(), lasts.as_secs_f64()) {
            let says = "more audio comes than time passes; some was not heard";
            return self.wrong(ErrorCode::TooMuchAudio, says);
        }
        match self.voice.decode(piece, self.server.codec()) {
            Ok(pcm) => {
                self.call.came(&pcm);
                self.hand_on(Ingress::Audio(pcm)).await;
                Ok(())
            }
            Err(Unheard(code, says)) => self.wrong(code, says),
        }
    }

    async fn take(&mut self, message: ClientMessage) -> Result<(), Over> {
        if !self.messages.take(self.began.elapsed(), 1.0) {
            return Err(Over::Fault(trouble(
                ErrorCode::TooManyMessages,
                "more messages came than a person makes",
            )));
        }
        let ingress = match message {
            ClientMessage::Audio(audio) => return self.hear(audio.data).await,
            ClientMessage::Hello(_) => {
                return self.wrong(ErrorCode::HelloExpected, "`hello` comes once");
            }
            ClientMessage::Text(typed) => {
                let most = self.server.config.limits.text_bytes;
                if typed.text.trim().is_empty() {
                    return self.wrong(ErrorCode::BadValue, "text: must not be blank");
                }
                if typed.text.len() > most {
                    let says = format!("text: is longer than {most} bytes");
                    return self.wrong(ErrorCode::TooLarge, says);
                }
                keyed(typed.key, Ingress::Text(typed.text))
            }
            ClientMessage::EndOfUtterance(it) => keyed(it.key, Ingress::EndOfUtterance),
            ClientMessage::Cancel(it) => keyed(it.key, Ingress::Cancel),
            ClientMessage::Dtmf(dtmf) => {
                if !matches!(dtmf.digit, '0'..='9' | '*' | '#' | 'A'..='D') {
                    let says = "digit: is one of 0 to 9, *, #, A to D";
                    return self.wrong(ErrorCode::BadValue, says);
                }
                let extension = Extension {
                    name: "telephony.dtmf".to_owned(),
                    fields: serde_json::json!({ "digit": dtmf.digit }),
                };
                keyed(dtmf.key, Ingress::Extension(Box::new(extension)))
            }
            ClientMessage::Extension(data) => {
                let extension = Extension {
                    name: data.name,
                    fields: data.fields.into_iter().collect(),
                };
                if !extension.is_namespaced() {
                    let says = "name: needs a namespace, as `telephony.dtmf` has";
                    return self.wrong(ErrorCode::BadValue, says);
                }
                keyed(data.key, Ingress::Extension(Box::new(extension)))
            }
            ClientMessage::Played(played) => Ingress::Played(Receipt {
                turn: played.turn,
                played: Duration::from_millis(played.ms),
            }),
            ClientMessage::ToolResult(result) => {
                let (key, turn, call) = (result.key, result.turn, result.call.into());
                let outcome = if result.failed {
                    Err(result.content)
                } else {
                    Ok(result.content)
                };
                let result = ClientResult {
                    turn,
                    call,
                    outcome,
                };
                keyed(key, Ingress::ToolResult(Box::new(result)))
            }
            ClientMessage::Ping(ping) => {
                self.say(ServerMessage::Pong(ping));
                return Ok(());
            }
            ClientMessage::Bye(_) => return Err(Over::HungUp),
        };
        self.hand_on(ingress).await;
        Ok(())
    }

    async fn hand_on(&self, ingress: Ingress) {
        // A runtime that is gone has ended the call, which the writer says.
        if self.to.send(ingress).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Tells the client what was wrong; too much of it is the end.
    fn wrong(&mut self, code: ErrorCode, says: impl Into<String>) -> Result<(), Over> {
        self.server.count_error();
        self.errors += 1;
        if self.errors > self.server.config.limits.errors {
            let says = "too many messages were wrong";
            return Err(Over::Fault(trouble(ErrorCode::TooManyErrors, says)));
        }
        self.say(ServerMessage::Error(Trouble {
            code,
            message: says.into(),
            fatal: false,
            elsewhere: None,
        }));
        Ok(())
    }

    fn say(&self, message: ServerMessage) {
        if self.call.say(message).is_err() {
            tracing::debug!(session_id = %self.call.id, "the client is too slow to be answered");
        }
    }
}

fn keyed(key: Option<IdempotencyKey>, event: Ingress) -> Ingress {
    match key {
        None => event,
        key @ Some(_) => Ingress::Stamped(Box::new(Stamped {
            epoch: None,
            key,
            event,
        })),
    }
}

fn message_of(message: Message) -> Option<Wire> {
    match message {
        Message::Text(text) => Some(Wire::Text(text)),
        Message::Binary(bytes) => Some(Wire::Binary(bytes)),
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) => None,
    }
}

/// What a fault of the socket means.
fn broken(error: axum::Error, most: usize) -> Over {
    let inner = error.into_inner();
    let protocol = inner.downcast_ref::<tungstenite::Error>();
    if is_too_long(&*inner) {
        let says = format!("the message is longer than {most} bytes");
        return Over::Fault(trouble(ErrorCode::TooLarge, says));
    }
    if let Some(tungstenite::Error::Utf8(_) | tungstenite::Error::Protocol(_)) = protocol {
        tracing::debug!(error = %inner, "not a WebSocket");
    }
    Over::Gone
}
