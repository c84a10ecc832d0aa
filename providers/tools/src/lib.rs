//! Tools that servers run: a model's arguments posted over HTTP, once and in time.
//!
//! [`HttpTools`] makes a tool of every address that a pipeline declares. What the runtime promises of
//! tools holds of these too: the last thing before a request leaves is the look whether its turn still
//! lives and its epoch holds (P1), all attempts carry one key by which a server can tell that it has
//! done the work already (F-158), and a call that is given up breaks its request off.

use std::sync::{Arc, OnceLock};

use futures::StreamExt;
use reqwest::{Client, Response, StatusCode, Url, header};
use rspp_proto::{TraceParent, spec::HttpExecutor};
use rspp_provider_api::{Tool, ToolFault, ToolFuture, ToolOutput, ToolRun};
use rspp_provider_http::{
    ConnectionCounts, Connections, REDACTED, Secret, SecretRef, SecretStore, is_loopback,
};

/// As much as is read of an answer, in bytes: the most that any tool may show its model.
const MOST_ANSWER: usize = 1_048_576;
/// As much of a refusal as its model is told, in characters.
const MOST_REFUSAL: usize = 500;

/// Makes tools of servers' addresses. They share connections, which are kept for the next call.
#[derive(Clone, Debug)]
pub struct HttpTools {
    near: Arc<OnceLock<Client>>,
    far: Arc<OnceLock<Client>>,
    secrets: SecretStore,
    connections: Connections,
}

impl Default for HttpTools {
    /// Tools whose secrets are in the environment.
    fn default() -> Self {
        Self::with_secrets(SecretStore::environment())
    }
}

impl HttpTools {
    /// Tools whose secrets are in `secrets`; looked up at each call (F-061).
    pub fn with_secrets(secrets: SecretStore) -> Self {
        Self {
            near: Arc::default(),
            far: Arc::default(),
            secrets,
            connections: Connections::default(),
        }
    }

    /// How often a connection was opened, and how often one that was there would do (F-105).
    pub fn connections(&self) -> ConnectionCounts {
        self.connections.counts()
    }

    /// The same as a function, for a registry of tools.
    pub fn into_factory(
        self,
    ) -> impl Fn(&HttpExecutor) -> Result<Arc<dyn Tool>, String> + Send + Sync + use<> {
        move |server| self.tool(server)
    }

    /// The tool that posts to `server`, or why there can be none.
    pub fn tool(&self, server: &HttpExecutor) -> Result<Arc<dyn Tool>, String> {
        let url = Url::parse(&server.url).map_err(|error| format!("its URL is none: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("its URL must be one of `http://` or `https://`".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("its URL must hold no credentials: it is printed and recorded".to_owned());
        }
        if !server.has_good_credential() {
            return Err("its credential names no secret of a tool".to_owned());
        }
        let credential = server.credential.as_deref().map(SecretRef::parse);
        Ok(Arc::new(HttpTool {
            client: self.client(&url)?,
            url,
            credential: credential.transpose().map_err(|error| error.to_string())?,
            secrets: self.secrets.clone(),
            connections: self.connections.clone(),
        }))
    }

    /// Proxies (`HTTPS_PROXY` and the like) are used except for this machine.
    fn client(&self, url: &Url) -> Result<Client, String> {
        let near = is_loopback(url) && url.scheme() == "http";
        let kept = if near { &self.near } else { &self.far };
        if let Some(client) = kept.get() {
            return Ok(client.clone());
        }
        let mut builder = rspp_provider_http::client(&self.connections);
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
#[derive(Clone)]
struct HttpTool {
    client: Client,
    url: Url,
    credential: Option<SecretRef>,
    secrets: SecretStore,
    connections: Connections,
}

impl Tool for HttpTool {
    fn commits_itself(&self) -> bool {
        true
    }

    fn run(&self, run: ToolRun) -> ToolFuture {
        let tool = self.clone();
        Box::pin(async move {
            let cancelled = run.cancel.clone();
            tokio::select! {
                biased;
                () = cancelled.cancelled() => Err(ToolFault::new("it was given up")),
                answer = tool.post(&run) => answer,
            }
        })
    }
}

impl HttpTool {
    async fn post(&self, run: &ToolRun) -> Result<ToolOutput, ToolFault> {
        let credential = self.credential.as_ref();
        let secret = credential.map(|reference| self.secrets.resolve(reference));
        // Names the reference, never the secret.
        let secret = secret
            .transpose()
            .map_err(|error| ToolFault::new(error.to_string()))?;
        let answered = self.ask(run, secret.as_ref()).await;
        let Some(secret) = secret else {
            return answered;
        };
        // A server may tell it back, to be read by a model and kept in a timeline.
        let hide = |text: &str| text.replace(secret.expose(), REDACTED);
        match answered {
            Ok(output) => Ok(ToolOutput {
                content: hide(&output.content),
                ..output
            }),
            Err(fault) => Err(ToolFault {
                message: hide(&fault.message),
                ..fault
            }),
        }
    }

    async fn ask(&self, run: &ToolRun, secret: Option<&Secret>) -> Result<ToolOutput, ToolFault> {
        let mut request = self
            .client
            .post(self.url.clone())
            .header(header::ACCEPT, "application/json, text/plain")
            .header("Idempotency-Key", run.key.as_str())
            .header(TraceParent::HEADER, run.traceparent().to_string())
            .header("X-Session-Id", run.session.as_str())
            .header("X-Turn-Id", run.turn.as_str())
            .header("X-Authority-Epoch", run.epoch.get())
            .json(&run.arguments);
        if let Some(secret) = secret {
            request = request.bearer_auth(secret.expose());
        }
        let request = request
            .build()
            .map_err(|_| ToolFault::new("the request cannot be made"))?;
        // Here the effect begins.
        run.commit()?;
        let executed = self.connections.count(self.client.execute(request));
        let (answer, _reused) = executed.await;
        let answer = answer.map_err(|error| {
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
                credential: None,
            })
        };
        for bad in ["", "order", "ftp://a/", "http://user:canary@a/"] {
            let why = tool(bad).err().expect(bad);
            assert!(!why.contains("canary"), "{why}");
        }
        assert!(tool("http://127.0.0.1:1/order").is_ok());
        assert!(tool("https://localhost/order").is_ok());
        for (credential, good) in [
            ("env://TOOL_KEY", true),
            ("file://TOOL_KEY", true),
            ("env://LLM_KEY", false),
            ("TOOL_canary", false),
            ("file://../TOOL_KEY", false),
        ] {
            let server = HttpExecutor {
                url: "http://127.0.0.1:1/order".to_owned(),
                credential: Some(credential.to_owned()),
            };
            let made = tools.tool(&server);
            assert_eq!(made.is_ok(), good, "{credential}");
            let told = made.err().unwrap_or_default();
            assert!(!told.contains("canary"), "{told}");
        }
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
