//! A small server of the chat completions format, whose answers are scripts of bytes and pauses.

use std::time::Duration;

use rspp_provider_http::testing;
pub(crate) use rspp_provider_http::testing::Step;

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
    server: testing::Server,
}

impl Server {
    /// Answers every request by these steps.
    pub(crate) async fn start(steps: Vec<Step>) -> Self {
        let server = testing::Server::start(move |_| steps.clone()).await;
        Self {
            base_url: format!("{}/v1", server.origin),
            server,
        }
    }

    /// The requests so far, heads and bodies.
    pub(crate) fn requests(&self) -> Vec<String> {
        let requests = self.server.requests().into_iter();
        requests.map(|request| request.text).collect()
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.server.connections()
    }

    /// Waits until a client has closed its connection in the middle of an answer.
    pub(crate) async fn client_gone(&self) -> bool {
        self.server.client_gone().await
    }
}
