//! A small server of the chat completions format, whose answers are scripts of bytes and pauses.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

/// One thing the server does in answer to a request.
#[derive(Clone)]
pub(crate) enum Step {
    /// Sends these bytes as they are.
    Send(Vec<u8>),
    /// Does nothing for a while.
    Pause(Duration),
    /// Does nothing until the client goes.
    Hold,
    /// Goes, in mid-air if the answer is not over.
    Close,
}

pub(crate) fn send(text: impl AsRef<[u8]>) -> Step {
    Step::Send(text.as_ref().to_vec())
}

/// The head of an event stream that ends with the connection.
pub(crate) fn stream_head() -> Step {
    send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
}

/// An event that says `text`.
pub(crate) fn says(text: &str) -> Step {
    send(event(&serde_json::json!({
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]
    })))
}

pub(crate) fn event(json: &serde_json::Value) -> String {
    format!("data: {json}\n\n")
}

/// The events that end an answer.
pub(crate) fn end() -> Step {
    send(
        "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
         data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\n\
         data: [DONE]\n\n",
    )
}

/// A whole response that is no stream.
pub(crate) fn response(status: &str, headers: &str, body: &str) -> Vec<Step> {
    let length = body.len();
    vec![send(format!(
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    ))]
}

/// An answer in chunked coding on a connection that lives on, as real servers send it.
pub(crate) fn chunked(events: &[Step], pace: Duration) -> Vec<Step> {
    let mut steps = vec![send(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
         transfer-encoding: chunked\r\n\r\n",
    )];
    for event in events {
        if let Step::Send(bytes) = event {
            steps.push(Step::Pause(pace));
            let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
            chunk.extend_from_slice(bytes);
            chunk.extend_from_slice(b"\r\n");
            steps.push(Step::Send(chunk));
        }
    }
    steps.push(send("0\r\n\r\n"));
    steps
}

/// The server; lives as long as the test's runtime.
pub(crate) struct Server {
    pub(crate) base_url: String,
    seen: Arc<Seen>,
}

struct Seen {
    requests: Mutex<Vec<String>>,
    connections: Semaphore,
    /// Clients that closed before the answer was over.
    gone: Semaphore,
}

impl Server {
    /// Answers every request by these steps.
    pub(crate) async fn start(steps: Vec<Step>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let seen = Arc::new(Seen {
            requests: Mutex::default(),
            connections: Semaphore::new(0),
            gone: Semaphore::new(0),
        });
        let kept = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                seen.connections.add_permits(1);
                tokio::spawn(serve(socket, steps.clone(), Arc::clone(&seen)));
            }
        });
        Self {
            base_url,
            seen: kept,
        }
    }

    /// The requests so far, heads and bodies.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.seen.requests.lock().unwrap().clone()
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.available_permits()
    }

    /// Waits until a client has closed its connection in the middle of an answer.
    pub(crate) async fn client_gone(&self) -> bool {
        let gone = self.seen.gone.acquire();
        timeout(Duration::from_secs(2), gone).await.is_ok()
    }
}

async fn serve(mut socket: TcpStream, steps: Vec<Step>, seen: Arc<Seen>) {
    while let Some(request) = read_request(&mut socket).await {
        seen.requests.lock().unwrap().push(request);
        let (mut incoming, mut outgoing) = socket.split();
        let answering = async {
            for step in &steps {
                match step {
                    Step::Send(bytes) => outgoing.write_all(bytes).await?,
                    Step::Pause(delay) => sleep(*delay).await,
                    Step::Hold => std::future::pending().await,
                    Step::Close => return Ok(false),
                }
            }
            let text = String::from_utf8_lossy(match &steps[0] {
                Step::Send(head) => head,
                Step::Pause(_) | Step::Hold | Step::Close => b"",
            });
            Ok::<bool, std::io::Error>(!text.contains("connection: close"))
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

async fn read_request(socket: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let is_length = name.eq_ignore_ascii_case("content-length");
                is_length.then(|| value.trim().parse::<usize>().ok())?
            });
            if body.len() >= length.unwrap_or(0) {
                return Some(text);
            }
        }
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}
