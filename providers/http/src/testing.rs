//! A small web server for tests: it reads requests whole, and answers by steps, as badly as these like.

use std::{
    collections::BTreeMap,
    io,
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
pub struct Request {
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// Its headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Its body.
    pub body: String,
    /// Head and body as they came.
    pub text: String,
    /// How many came before it.
    pub nth: usize,
}

/// One thing that the server does in answer to a request.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends these bytes as they are.
    Send(Vec<u8>),
    /// Does nothing for a while.
    Pause(Duration),
    /// Does nothing until the client goes.
    Hold,
    /// Goes, in mid-air if the answer is not over.
    Close,
}

type Answering = dyn Fn(&Request) -> Vec<Step> + Send + Sync;

/// The server; lives as long as the test's runtime.
pub struct Server {
    /// Where it is, e.g. `http://127.0.0.1:4711`.
    pub origin: String,
    seen: Arc<Seen>,
}

struct Seen {
    requests: Mutex<Vec<Request>>,
    connections: Semaphore,
    /// Clients that closed before the answer was over.
    gone: Semaphore,
}

impl Server {
    /// Answers each request by the steps that `answer` says. The connection stays unless one of them is
    /// `Close`, or the head says `connection: close`.
    pub async fn start(answer: impl Fn(&Request) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let answer: Arc<Answering> = Arc::new(answer);
        let seen = Arc::new(Seen {
            requests: Mutex::default(),
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
        Self {
            origin: format!("http://{address}"),
            seen: kept,
        }
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.seen.requests().clone()
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

impl Seen {
    fn requests(&self) -> std::sync::MutexGuard<'_, Vec<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(mut socket: TcpStream, answer: Arc<Answering>, seen: Arc<Seen>) {
    while let Some(mut request) = read(&mut socket).await {
        {
            let mut all = seen.requests();
            request.nth = all.len();
            all.push(request.clone());
        }
        let steps = answer(&request);
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
            let head = match steps.first() {
                Some(Step::Send(head)) => String::from_utf8_lossy(head),
                Some(Step::Pause(_) | Step::Hold | Step::Close) | None => "".into(),
            };
            Ok::<bool, io::Error>(!head.contains("connection: close"))
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

async fn read(socket: &mut TcpStream) -> Option<Request> {
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
            let length = headers.get("content-length");
            let length = length.map_or(Some(0), |length| length.parse::<usize>().ok())?;
            if body.len() >= length {
                return Some(Request {
                    method: first.next()?.to_owned(),
                    path: first.next()?.to_owned(),
                    headers,
                    body: body.to_owned(),
                    text,
                    nth: 0,
                });
            }
        }
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}
