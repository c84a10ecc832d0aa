//! A small web server for what is reached over HTTP: it answers by a function, as badly as that likes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

/// A request that came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// Its headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Its body.
    pub body: String,
    /// How many came before it.
    pub nth: usize,
}

/// What the server does about it.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    after: Duration,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Whole,
    /// Closes the connection after half of the body.
    Half,
    /// Says nothing until the client goes.
    Silent,
}

impl Reply {
    /// An answer with that status and body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            after: Duration::ZERO,
            how: How::Whole,
        }
    }

    /// An event stream of these texts, as a language model sends them, with what it says of its usage.
    pub fn completion(texts: &[&str]) -> Self {
        let events = texts.iter().map(|text| {
            let event = serde_json::json!({
                "choices": [{ "index": 0, "delta": { "content": text } }]
            });
            format!("data: {event}\n\n")
        });
        let mut body = events.collect::<Vec<_>>().concat();
        body += "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
        body += "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\
                 \"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\ndata: [DONE]\n\n";
        Self::new(200, body).header("content-type", "text/event-stream")
    }

    /// Nothing, for as long as the client waits.
    pub fn silence() -> Self {
        Self {
            how: How::Silent,
            ..Self::new(200, "")
        }
    }

    /// The same with a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The same, so much later.
    #[must_use]
    pub fn late(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }

    /// The same, broken off in the middle of its body.
    #[must_use]
    pub fn cut(mut self) -> Self {
        self.how = How::Half;
        self
    }
}

type Answering = dyn Fn(&Asked) -> Reply + Send + Sync;

/// The server; lives as long as the test's runtime.
pub struct Web {
    /// Where it is, e.g. `http://127.0.0.1:4711`.
    pub url: String,
    seen: Arc<Seen>,
}

struct Seen {
    asked: Mutex<Vec<Asked>>,
    connections: Semaphore,
    gone: Semaphore,
}

impl Web {
    /// Answers each request as `answer` says.
    pub async fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let answer: Arc<Answering> = Arc::new(answer);
        let seen = Arc::new(Seen {
            asked: Mutex::default(),
            connections: Semaphore::new(0),
            gone: Semaphore::new(0),
        });
        let kept = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                seen.connections.add_permits(1);
                tokio::spawn(serve(socket, Arc::clone(&answer), Arc::clone(&seen)));
            }
        });
        Self { url, seen: kept }
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        let asked = self.seen.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.seen.connections.available_permits()
    }

    /// Waits until a client has gone while it was being answered.
    pub async fn client_gone(&self) -> bool {
        let gone = self.seen.gone.acquire();
        timeout(Duration::from_secs(5), gone).await.is_ok()
    }
}

async fn serve(mut socket: TcpStream, answer: Arc<Answering>, seen: Arc<Seen>) {
    while let Some(mut asked) = read(&mut socket).await {
        {
            let mut all = seen.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.nth = all.len();
            all.push(asked.clone());
        }
        let reply = answer(&asked);
        let (mut incoming, mut outgoing) = socket.split();
        let answering = async {
            sleep(reply.after).await;
            if reply.how == How::Silent {
                std::future::pending::<()>().await;
            }
            let (status, length) = (reply.status, reply.body.len());
            let headers = reply.headers.iter();
            let headers = headers.map(|(name, value)| format!("{name}: {value}\r\n"));
            let headers = headers.collect::<Vec<_>>().concat();
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n");
            outgoing.write_all(head.as_bytes()).await?;
            let body = match reply.how {
                How::Half => &reply.body[..reply.body.len() / 2],
                How::Whole | How::Silent => &reply.body[..],
            };
            outgoing.write_all(body).await?;
            Ok::<bool, std::io::Error>(reply.how == How::Whole)
        };
        let mut byte = [0];
        let stays = tokio::select! {
            stays = answering => stays.unwrap_or(false),
            _ = incoming.read(&mut byte) => {
                seen.gone.add_permits(1);
                false
            }
        };
        if !stays {
            return;
        }
    }
}

async fn read(socket: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let mut lines = head.lines();
            let mut first = lines.next()?.split(' ');
            let headers: BTreeMap<_, _> = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            let length = headers.get("content-length")?.parse::<usize>().ok()?;
            if body.len() >= length {
                return Some(Asked {
                    method: first.next()?.to_owned(),
                    path: first.next()?.to_owned(),
                    headers,
                    body: body.to_owned(),
                    nth: 0,
                });
            }
        }
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}
