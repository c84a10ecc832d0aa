//! Whether a program is alive, and apart from that whether it is to be given work: two answers over plain
//! HTTP, for whoever restarts and whoever balances (F-108).
//!
//! `GET /livez` is 200 as long as the program answers at all. `GET /readyz` is 200 or 503, with what is in
//! the way. `GET /status` is a JSON object of the program's own, `GET /metrics` what it counts.

use std::{io, sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// Connections at once; more wait.
const MOST_CONNECTIONS: usize = 32;
/// Longest request that is read, in bytes.
const MOST_BYTES: usize = 8 * 1024;
/// How long somebody may take to ask.
const PATIENCE: Duration = Duration::from_secs(5);

/// One thing that has to be so for the program to be given work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether it is.
    pub ok: bool,
    /// How it is, in a few words.
    pub detail: String,
}

impl Check {
    /// A check that went well, or not.
    pub fn new(name: &'static str, ok: bool, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { name, ok, detail }
    }
}

/// What a program says of itself.
pub trait Health: Send + Sync + 'static {
    /// What has to be so for it to be given work.
    fn checks(&self) -> Vec<Check>;

    /// What else there is to know.
    fn status(&self) -> Value {
        json!({})
    }

    /// What is measured, in the text format that metrics backends scrape.
    fn metrics(&self) -> String {
        String::new()
    }
}

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, health: Arc<dyn Health>) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let permit = Arc::clone(&room)
            .acquire_owned()
            .await
            .expect("it is never closed");
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            // Too many open files, a connection that was reset before it began: neither is the end.
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let health = Arc::clone(&health);
        tokio::spawn(async move {
            let _finished = tokio::time::timeout(PATIENCE, answer(stream, &*health)).await;
            drop(permit);
        });
    }
}

async fn answer(mut stream: TcpStream, health: &dyn Health) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() >= MOST_BYTES || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line = request
        .split(|byte| *byte == b'\r')
        .next()
        .unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let (status, kind, body) = respond(&line, health);
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\
         cache-control: no-store\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if !line.starts_with("HEAD ") {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// What is answered to a request line.
fn respond(line: &str, health: &dyn Health) -> (&'static str, &'static str, String) {
    const JSON: &str = "application/json";
    let mut words = line.split(' ');
    let (method, path) = (words.next(), words.next().unwrap_or_default());
    if !matches!(method, Some("GET" | "HEAD")) {
        return (
            "405 Method Not Allowed",
            JSON,
            r#"{"error":"only GET"}"#.to_owned(),
        );
    }
    let path = path.split('?').next().unwrap_or_default();
    match path {
        "/livez" => ("200 OK", JSON, r#"{"alive":true}"#.to_owned()),
        "/readyz" => {
            let checks = health.checks();
            let ready = checks.iter().all(|check| check.ok);
            let status = if ready {
                "200 OK"
            } else {
                "503 Service Unavailable"
            };
            (
                status,
                JSON,
                json!({"ready": ready, "checks": checks}).to_string(),
            )
        }
        "/status" => ("200 OK", JSON, health.status().to_string()),
        "/metrics" => (
            "200 OK",
            "text/plain; version=0.0.4; charset=utf-8",
            health.metrics(),
        ),
        _elsewhere => (
            "404 Not Found",
            JSON,
            r#"{"error":"there are /livez, /readyz, /status and /metrics"}"#.to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Switch(AtomicBool);

    impl Health for Switch {
        fn checks(&self) -> Vec<Check> {
            let ok = self.0.load(Ordering::Relaxed);
            vec![
                Check::new("always", true, "as ever"),
                Check::new("model", ok, "the model's server"),
            ]
        }
    }

    async fn ask(address: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// F-108: a dependency that is gone fails readiness, and readiness only.
    #[tokio::test]
    async fn a_program_may_be_alive_and_not_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let switch = Arc::new(Switch(AtomicBool::new(true)));
        let server = tokio::spawn(serve(listener, Arc::clone(&switch) as Arc<dyn Health>));
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        assert!(
            ask(address, &get("/readyz"))
                .await
                .starts_with("HTTP/1.1 200")
        );
        switch.0.store(false, Ordering::Relaxed);
        let ready = ask(address, &get("/readyz")).await;
        assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
        assert!(
            ready.contains(r#""name":"model","ok":false"#) || ready.contains("the model's server")
        );
        assert!(
            ask(address, &get("/livez?x=1"))
                .await
                .starts_with("HTTP/1.1 200")
        );
        assert!(
            ask(address, &get("/elsewhere"))
                .await
                .starts_with("HTTP/1.1 404")
        );
        let posted = ask(address, "POST /livez HTTP/1.1\r\n\r\n").await;
        assert!(posted.starts_with("HTTP/1.1 405"));
        let head = ask(address, "HEAD /livez HTTP/1.1\r\n\r\n").await;
        assert!(head.ends_with("\r\n\r\n"));
        server.abort();
    }
}
