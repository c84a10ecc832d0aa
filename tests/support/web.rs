//! A small web server for what is reached over HTTP: it answers by a function, as badly as that likes.

use std::time::Duration;

use rspp_provider_http::testing::{Server, Step};

pub use rspp_provider_http::testing::Request as Asked;

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

impl From<Reply> for Vec<Step> {
    fn from(reply: Reply) -> Self {
        let (status, length) = (reply.status, reply.body.len());
        let headers = reply.headers.iter();
        let headers = headers.map(|(name, value)| format!("{name}: {value}\r\n"));
        let headers = headers.collect::<Vec<_>>().concat();
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n");
        let begin = [Step::Pause(reply.after), Step::Send(head.into_bytes())];
        match reply.how {
            How::Whole => begin.into_iter().chain([Step::Send(reply.body)]).collect(),
            How::Half => {
                let half = reply.body[..length / 2].to_vec();
                let rest = [Step::Send(half), Step::Close];
                begin.into_iter().chain(rest).collect()
            }
            How::Silent => vec![Step::Hold],
        }
    }
}

/// The server; lives as long as the test's runtime.
pub struct Web {
    /// Where it is, e.g. `http://127.0.0.1:4711`.
    pub url: String,
    server: Server,
}

impl Web {
    /// Answers each request as `answer` says.
    pub async fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let server = Server::start(move |asked| answer(asked).into()).await;
        Self {
            url: server.origin.clone(),
            server,
        }
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.server.requests()
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.server.connections()
    }

    /// Waits until a client has gone while it was being answered.
    pub async fn client_gone(&self) -> bool {
        self.server.client_gone().await
    }
}
