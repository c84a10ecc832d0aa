//! One socket: carries a client's messages both ways until it is over.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::extract::ws::{Message, WebSocket, close_code};
use bytes::Bytes;
use futures::{Sink, Stream, StreamExt, stream::SplitStream};
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    fields::Problem,
    line::{Line, Next},
};
use crate::{
    rate::Bucket,
    server::{Held, NotBegun, Server},
    socket::{LAST_WORD, Unsent, close, is_too_long, pings, send},
};
use futures::SinkExt;
use rspp_transport_api::Admitted;

/// Messages of a client that streams audio: at once, and in each second.
const MESSAGES: (f64, f64) = (2_000.0, 500.0);

/// Why a socket is over.
enum Over {
    /// It broke, or the client closed it.
    Gone,
    /// The client is there but does not answer.
    Silent,
    /// Something is wrong that cannot go on: of which kind, what, and how the socket closes.
    Fault(&'static str, Problem, u16),
    /// The session is over.
    Ended(String),
}

impl From<Unsent> for Over {
    fn from(unsent: Unsent) -> Self {
        match unsent {
            Unsent::Gone => Self::Gone,
            Unsent::Silent => Self::Silent,
        }
    }
}

/// Serves a socket to its end.
pub(super) async fn serve(
    server: Arc<Server>,
    line: Arc<Line>,
    socket: WebSocket,
    admitted: Admitted,
) {
    let (mut to, mut from) = socket.split();
    let over = {
        let reading = pin!(read(&server, &line, &mut from));
        let writing = pin!(write(&server, &line, &mut to));
        let doing = pin!(work(&server, &line, admitted));
        tokio::select! {
            biased;
            over = reading => over,
            over = doing => over,
            over = writing => over,
        }
    };
    line.hang_up();
    let (code, reason) = match over {
        Over::Gone => (close_code::NORMAL, String::new()),
        Over::Silent => (
            close_code::POLICY,
            "nothing was heard for too long".to_owned(),
        ),
        Over::Fault(kind, problem, code) => {
            line.wrong(kind, &problem);
            (code, problem.message)
        }
        Over::Ended(reason) => (close_code::NORMAL, reason),
    };
    // What was said before is told before.
    let rest = async {
        while let Some(leaving) = line.next() {
            to.send(Message::Text(leaving.text.into())).await?;
            line.left(&leaving.what);
        }
        Ok::<(), axum::Error>(())
    };
    let _nobody_listens = timeout(LAST_WORD, rest).await;
    close(&mut to, &mut from, code, &reason).await;
}

/// Does what is to be done for the session: opens it, and hands on what the client says.
async fn work(server: &Arc<Server>, line: &Arc<Line>, admitted: Admitted) -> Over {
    let mut admitted = Some(admitted);
    loop {
        match line.to_do() {
            Next::Open => {
                let Some(admitted) = admitted.take() else {
                    continue; // It begins once.
                };
                // By itself: a client that leaves meanwhile must not leave half a session.
                let begun = tokio::spawn(begin(Arc::clone(server), Arc::clone(line), admitted));
                match begun.await {
                    Ok(Ok(())) => server.count_opened(),
                    Err(_panicked) => return Over::Ended("the session failed".to_owned()),
                    Ok(Err(refused)) => {
                        server.count_refused();
                        return refusal(&refused);
                    }
                }
            }
            Next::Tell(to, ingress) => {
                // A runtime that is gone has ended the session, which the writer says.
                if to.send(ingress).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            Next::Wait(None) => line.to_do.notified().await,
            Next::Wait(Some(due)) => {
                tokio::select! {
                    () = line.to_do.notified() => {}
                    () = sleep_until(due) => {}
                }
            }
        }
    }
}

async fn begin(server: Arc<Server>, line: Arc<Line>, admitted: Admitted) -> Result<(), NotBegun> {
    let begun = server.begin(admitted, line.wishes(), |_id| {
        let transport = line.begin();
        (Held::Realtime(Arc::clone(&line)), transport)
    });
    begun.await
}

fn refusal(refused: &NotBegun) -> Over {
    let (kind, code, close) = match refused {
        NotBegun::Unauthorized(why) => ("invalid_request_error", why.as_str(), close_code::POLICY),
        NotBegun::Stopping => ("server_error", "server_stopping", close_code::AGAIN),
        NotBegun::There(_) => (
            "invalid_request_error",
            "session_exists",
            close_code::POLICY,
        ),
        NotBegun::Refused(why) => {
            let close = match why {
                rspp_transport_api::Refusal::Busy(_)
                | rspp_transport_api::Refusal::Elsewhere(_) => close_code::AGAIN,
                rspp_transport_api::Refusal::NotHere(_)
                | rspp_transport_api::Refusal::Failed(_) => close_code::ERROR,
            };
            ("server_error", why.as_str(), close)
        }
    };
    Over::Fault(kind, Problem::new(code, refused.to_string()), close)
}

async fn write(
    server: &Server,
    line: &Line,
    to: &mut (impl Sink<Message, Error = axum::Error> + Unpin),
) -> Over {
    let limits = &server.config.limits;
    let mut ping = pings(limits.ping);
    loop {
        while let Some(leaving) = line.next() {
            let message = Message::Text(leaving.text.into());
            if let Err(unsent) = send(to, message, limits.dead).await {
                return unsent.into();
            }
            line.left(&leaving.what);
        }
        if let Some(reason) = line.over() {
            return Over::Ended(reason);
        }
        tokio::select! {
            () = line.to_send.notified() => {}
            now = ping.tick() => {
                if server.is_draining() && !line.has_begun() {
                    return Over::Ended("the server is about to stop".to_owned());
                }
                line.pinged(now, limits.stalled);
                if let Err(unsent) = send(to, Message::Ping(Bytes::new()), limits.dead).await {
                    return unsent.into();
                }
            }
        }
    }
}

async fn read(server: &Server, line: &Line, from: &mut SplitStream<WebSocket>) -> Over {
    let limits = &server.config.limits;
    let began = Instant::now();
    let mut messages = Bucket::full(MESSAGES.0, MESSAGES.1);
    let mut errors = 0;
    loop {
        let text = match message(from, limits.dead).await {
            Ok(Message::Text(text)) => text,
            Ok(Message::Pong(_)) => {
                line.answered();
                continue;
            }
            Ok(Message::Ping(_)) => continue, // Answered by the library.
            Ok(Message::Close(_)) => return Over::Gone,
            Ok(Message::Binary(_)) => {
                let says =
                    "messages are JSON in text; audio is base64 in input_audio_buffer.append";
                let problem = Problem::new("invalid_json", says);
                return fault(problem, close_code::UNSUPPORTED);
            }
            Err(over) => return over,
        };
        if !messages.take(began.elapsed(), 1.0) {
            let says = "more messages came than a stream of audio has";
            return fault(
                Problem::new("rate_limit_exceeded", says),
                close_code::POLICY,
            );
        }
        if !line.client(&text) {
            server.count_error();
            errors += 1;
            if errors > limits.errors {
                let says = "too many messages were wrong";
                return fault(Problem::new("too_many_errors", says), close_code::POLICY);
            }
        }
        if line.is_flooded() {
            return Over::Silent;
        }
    }
}

fn fault(problem: Problem, code: u16) -> Over {
    Over::Fault("invalid_request_error", problem, code)
}

async fn message(
    from: &mut (impl Stream<Item = Result<Message, axum::Error>> + Unpin),
    dead: Duration,
) -> Result<Message, Over> {
    match timeout(dead, from.next()).await {
        Ok(Some(Ok(message))) => Ok(message),
        Ok(Some(Err(error))) => {
            if is_too_long(&*error.into_inner()) {
                let says = "the message is longer than is taken";
                let problem = Problem::new("message_too_long", says);
                Err(fault(problem, close_code::SIZE))
            } else {
                Err(Over::Gone)
            }
        }
        Ok(None) => Err(Over::Gone),
        Err(_nothing_came) => Err(Over::Silent),
    }
}
