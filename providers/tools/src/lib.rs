//! Tools that servers run: a model's arguments posted over HTTP, once and in time.
//!
//! [`HttpTools`] makes a tool of every address that a pipeline declares. What the runtime promises of
//! tools holds of these too: the last thing before a request leaves is the look whether its turn still
//! lives and its epoch holds (P1), all attempts carry one key by which a server can tell that it has
//! done the work already (F-158), and a call that is given up breaks its request off.

use std::sync::{Arc, OnceLock};

use futures::StreamExt;
use reqwest::{Client, Response, StatusCode, Url, header};
use rspp_proto::spec::HttpExecutor;
use rspp_provider_api::{Tool, ToolFault, ToolFuture, ToolOutput, ToolRun};
use rspp_provider_http::is_loopback;

/// As much as is read of an answer, in bytes: the most that any tool may show its model.
const MOST_ANSWER: usize = 1_048_576;
/// As much of a refusal as its model is told, in characters.
const MOST_REFUSAL: usize = 500;

/// Makes tools of servers' addresses. They share connections, which are kept for the next call.
#[derive(Clone, Debug, Default)]
pub struct HttpTools {
    near: Arc<OnceLock<Client>>,
    far: Arc<OnceLock<Client>>,
}

impl HttpTools {
    /// The tool that posts to `server`, or why there can be none.
    pub fn tool(&self, server: &HttpExecutor) -> Result<Arc<dyn Tool>, String> {
        let url = Url::parse(&server.url).map_err(|error| format!("its URL is none: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("its URL must be one of `http://` or `https://`".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("its URL must hold no credentials: it is printed and recorded".to_owned());
        }
        let client = self.client(&url)?;
        Ok(Arc::new(HttpTool { client, url }))
    }

    /// Proxies (`HTTPS_PROXY` and the like) are used except for this machine.
    fn client(&self, url: &Url) -> Result<Client, String> {
        let near = is_loopback(url) && url.scheme() == "http";
        let kept = if near { &self.near } else { &self.far };
        if let Some(client) = kept.get() {
            return Ok(client.clone());
        }
        let mut builder = rspp_provider_http::client();
        if near {
            // Needs no root certificates, which a small container may not have.
            builder = builder.no_proxy().tls_certs_only([]);
        }
        let client = builder
            .build()
            .map_err(|error| format!("HTTP could not be set up: {error}"))?;
        Ok(kept.get_or_init(|| client).clone())
    }
}

/// A tool behind an address.
struct HttpTool {
    client: Client,
    url: Url,
}

impl Tool for HttpTool {
    fn commits_itself(&self) -> bool {
        true
    }

    fn run(&self, run: ToolRun) -> ToolFuture {
        let (client, url) = (self.client.clone(), self.url.clone());
        Box::pin(async move {
            let cancelled = run.cancel.clone();
            tokio::select! {
                biased;
                () = cancelled.cancelled() => Err(ToolFault::new("it was given up")),
                answer = post(&client, url, &run) => answer,
            }
        })
    }
}

async fn post(client: &Client, url: Url, run: &ToolRun) -> Result<ToolOutput, ToolFault> {
    let request = client
        .post(url)
        .header(header::ACCEPT, "application/json, text/plain")
        .header("Idempotency-Key", run.key.as_str())
        .header("X-Session-Id", run.session.as_str())
        .header("X-Turn-Id", run.turn.as_str())
        .header("X-Authority-Epoch", run.epoch.get())
        .json(&run.arguments)
        .build()
        .map_err(|_| ToolFault::new("the request cannot be made"))?;
    // Here the effect begins.
    run.commit()?;
    let answer = client.execute(request).await.map_err(|error| {
        let what = if error.is_connect() {
            "the server cannot be reached"
        } else {
            "the connection to the server was lost"
        };
        ToolFault::passing(what)
    })?;
    let status = answer.status();
    let text = read(answer).await?;
    if status.is_success() {
        return Ok(ToolOutput::new(text));
    }
    let words: String = text.chars().take(MOST_REFUSAL).collect();
    let message = format!(
        "the server refused with status {}: {words}",
        status.as_u16()
    );
    Err(if may_pass(status) {
        ToolFault::passing(message)
    } else {
        ToolFault::new(message)
    })
}

/// The answer as text, as far as it is read.
async fn read(answer: Response) -> Result<String, ToolFault> {
    let mut bytes = Vec::new();
    let mut pieces = answer.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| ToolFault::passing("the server's answer broke off"))?;
        let room = MOST_ANSWER - bytes.len();
        bytes.extend_from_slice(&piece[..piece.len().min(room)]);
        if bytes.len() == MOST_ANSWER {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether the same again may go well.
fn may_pass(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::REQUEST_TIMEOUT
        || status == StatusCode::TOO_MANY_REQUESTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_one_is_refused() {
        let tools = HttpTools::default();
        let tool = |url: &str| {
            tools.tool(&HttpExecutor {
                url: url.to_owned(),
            })
        };
        for bad in ["", "order", "ftp://a/", "http://user:canary@a/"] {
            let why = tool(bad).err().expect(bad);
            assert!(!why.contains("canary"), "{why}");
        }
        assert!(tool("http://127.0.0.1:1/order").is_ok());
        assert!(tool("https://localhost/order").is_ok());
    }

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        for (status, passes) in [(500, true), (503, true), (429, true), (408, true)] {
            assert_eq!(may_pass(StatusCode::from_u16(status).unwrap()), passes);
        }
        for status in [301, 400, 401, 404, 409, 422] {
            assert!(!may_pass(StatusCode::from_u16(status).unwrap()), "{status}");
        }
    }
}
