//! A client of OpenAI-compatible chat completions, near or far.

mod answer;
mod failure;
mod sse;
mod wire;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use reqwest::{Client, Response, Url, header};
use rspp_proto::{IdError, ProviderId, TraceParent};
use rspp_provider_api::{
    Call, ChunkStream, Description, Fault, LanguageModel, LlmChunk, LlmRequest,
};
use rspp_provider_http::{ConnectionCounts, Connections, Secret, is_loopback};
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

pub use rspp_provider_http::{SecretError, SecretRef, SecretStore};

use answer::Answer;
use sse::{SseError, SseParser};

/// Longest line and event of an answer, in bytes.
const MOST_EVENT: usize = 256 * 1024;
/// As much as is read of an error's body, in bytes.
const MOST_ERROR_BODY: usize = 4 * 1024;
/// How long the rest of a finished answer is awaited, so that its connection can be used again.
const TRAILER: Duration = Duration::from_millis(20);

/// Where a model is and how it is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct OpenAiConfig {
    /// Its id in the registry.
    pub id: String,
    /// The server, with its version path, e.g. `http://127.0.0.1:8080/v1`.
    pub base_url: String,
    /// The model to ask for.
    pub model: String,
    /// Where the key is, e.g. `env://LLM_API_KEY`; `None` sends none.
    pub api_key: Option<String>,
    /// How long a connection may take, within the call's own deadline.
    pub connect_timeout: Duration,
}

impl OpenAiConfig {
    /// A model without a key, 5 s to connect.
    pub fn new(
        id: impl Into<String>,
        base_url: impl Into<String>,
        model: impl Into<String>,
    ) -> Self {
        Self {
            id: id.into(),
            base_url: base_url.into(),
            model: model.into(),
            api_key: None,
            connect_timeout: Duration::from_secs(5),
        }
    }
}

impl fmt::Debug for OpenAiConfig {
    /// Leaves the key out: until it is read it may be the secret itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAiConfig")
            .field("id", &self.id)
            .field("base_url", &self.base_url)
            .field("model", &self.model)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

/// Why a client cannot be made.
#[derive(Debug, Error)]
pub enum OpenAiError {
    /// The provider's id is none.
    #[error("the provider's id is unusable")]
    Id(#[from] IdError),
    /// The model's name is blank.
    #[error("the model is blank; name the model that the server should run")]
    NoModel,
    /// The base URL is none, or not one of HTTP.
    #[error("the base URL must be like `http://127.0.0.1:8080/v1` or `https://…`")]
    BaseUrl,
    /// The base URL holds a user, a password, a query or a fragment.
    #[error("the base URL must hold no credentials, query or fragment; use `api_key`")]
    BaseUrlParts,
    /// The key is given as such, or by an unknown kind of reference.
    #[error("the API key is unusable")]
    ApiKey(#[from] SecretError),
    /// The HTTP client could not be set up, e.g. for want of root certificates.
    #[error("could not set up HTTP")]
    Http(#[source] reqwest::Error),
}

/// A language model behind an OpenAI-compatible server.
///
/// One HTTP/1.1 connection a call, kept for the next one if the answer came to its end. Redirects
/// are not followed, so that the key stays with the server it is for; proxies (`HTTPS_PROXY` and
/// the like) are used except for the loopback.
#[derive(Clone, Debug)]
pub struct OpenAi {
    description: Description,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    id: ProviderId,
    client: Client,
    endpoint: Url,
    model: String,
    api_key: Option<SecretRef>,
    secrets: SecretStore,
    connections: Connections,
}

impl OpenAi {
    /// A client that looks its key up in the environment, at each call.
    pub fn new(config: OpenAiConfig) -> Result<Self, OpenAiError> {
        Self::with_secrets(config, SecretStore::environment())
    }

    /// A client that looks its key up in `secrets`, at each call.
    pub fn with_secrets(config: OpenAiConfig, secrets: SecretStore) -> Result<Self, OpenAiError> {
        if config.model.trim().is_empty() {
            return Err(OpenAiError::NoModel);
        }
        let endpoint = endpoint(&config.base_url)?;
        let api_key = config
            .api_key
            .as_deref()
            .map(SecretRef::parse)
            .transpose()?;
        let connections = Connections::default();
        let mut builder =
            rspp_provider_http::client(&connections).connect_timeout(config.connect_timeout);
        if endpoint.scheme() == "http" {
            // Needs no root certificates, which a small container may not have.
            builder = builder.tls_certs_only([]);
        }
        if is_loopback(&endpoint) {
            builder = builder.no_proxy();
        }
        let id = ProviderId::new(config.id)?;
        Ok(Self {
            description: Description {
                id: id.clone(),
                model: config.model.clone(),
                streaming: true,
                networked: true,
            },
            shared: Arc::new(Shared {
                id,
                client: builder.build().map_err(OpenAiError::Http)?,
                endpoint,
                model: config.model,
                api_key,
                secrets,
                connections,
            }),
        })
    }
}

impl OpenAi {
    /// How often it opened a connection, and how often one that was there would do (F-105).
    pub fn connections(&self) -> ConnectionCounts {
        self.shared.connections.counts()
    }
}

impl LanguageModel for OpenAi {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn generate(&self, call: Call, request: LlmRequest) -> ChunkStream<LlmChunk> {
        let call = Arc::new(call);
        let start = Some(Phase::Asking(Arc::clone(&self.shared), request));
        Box::pin(stream::unfold(start, move |phase| {
            let call = Arc::clone(&call);
            async move { next_item(phase?, &call).await }
        }))
    }
}

/// How far a call has come.
enum Phase {
    Asking(Arc<Shared>, LlmRequest),
    Reading(Box<Reading>),
}

/// The next chunk and the phase after it; whatever ends the stream drops the connection with it.
async fn next_item(phase: Phase, call: &Call) -> Option<(Result<LlmChunk, Fault>, Option<Phase>)> {
    let next = async {
        let mut reading = match phase {
            Phase::Asking(shared, request) => Box::new(shared.ask(call, &request).await?),
            Phase::Reading(reading) => reading,
        };
        let chunk = reading.next_chunk(call).await?;
        Ok((chunk, reading))
    };
    let next = tokio::select! {
        biased;
        () = call.cancel.cancelled() => Err(Fault::cancelled()),
        next = next => next,
    };
    match next {
        Ok((Some(chunk), reading)) => Some((Ok(chunk), Some(Phase::Reading(reading)))),
        Ok((None, _)) => None,
        Err(fault) => Some((Err(fault), None)),
    }
}

impl Shared {
    /// Sends the request and waits for the answer to begin.
    async fn ask(&self, call: &Call, request: &LlmRequest) -> Result<Reading, Fault> {
        if request.messages.is_empty() {
            return Err(Fault::blocked(
                "provider_client_error",
                "there is nothing to answer: the request has no messages",
            ));
        }
        let deadline = deadline(call.deadlines.first_byte);
        let key = match &self.api_key {
            Some(reference) => Some(self.secrets.resolve(reference).map_err(|error| {
                Fault::blocked("provider_auth_or_policy_block", error.to_string())
            })?),
            None => None,
        };
        let private = private_texts(request, key.as_ref());
        let mut ask = self
            .client
            .post(self.endpoint.clone())
            .header(header::ACCEPT, "text/event-stream")
            .header("Idempotency-Key", &call.idempotency_key)
            .header(TraceParent::HEADER, call.traceparent(&self.id).to_string())
            .json(&wire::Body::new(&self.model, request));
        if let Some(key) = &key {
            ask = ask.bearer_auth(key.expose());
        }
        let sent = timeout_at(deadline, self.connections.count(ask.send())).await;
        let (response, reused) = sent.map_err(|_| no_answer(call))?;
        let response = response.map_err(|error| self.transport_fault(&error))?;
        let connection = if reused {
            "connections_reused"
        } else {
            "connections_opened"
        };
        call.extras.add(connection, 1.0);
        if !response.status().is_success() {
            return Err(refusal(response, deadline, &private).await);
        }
        if !is_event_stream(&response) {
            return Err(Fault::stream(
                "the server did not answer with an event stream; does it support `stream`?",
            ));
        }
        Ok(Reading {
            body: Box::pin(response.bytes_stream()),
            events: SseParser::new(MOST_EVENT),
            answer: Answer::default(),
            private,
            deadline,
            begun: false,
        })
    }

    /// Names the server, never the path or what was sent.
    fn transport_fault(&self, error: &reqwest::Error) -> Fault {
        let origin = self.endpoint.origin().ascii_serialization();
        if error.is_timeout() {
            Fault::timeout(format!("no connection to {origin} in time"))
        } else if error.is_builder() {
            Fault::blocked(
                "provider_client_error",
                "the request or its key holds characters that HTTP does not allow",
            )
        } else if error.is_connect() {
            Fault::transport(format!(
                "could not connect to {origin}; is the server running?"
            ))
        } else {
            Fault::transport(format!("lost the connection to {origin}"))
        }
    }
}

type Body = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

/// An answer being read.
struct Reading {
    body: Body,
    events: SseParser,
    answer: Answer,
    /// What an error's text must not repeat.
    private: Vec<String>,
    deadline: Instant,
    begun: bool,
}

impl Reading {
    async fn next_chunk(&mut self, call: &Call) -> Result<Option<LlmChunk>, Fault> {
        loop {
            if self.answer.only_end_left() {
                self.read_trailer().await;
            }
            if let Some(cached) = self.answer.take_cached_tokens() {
                call.extras.add("cached_prompt_tokens", cached as f64);
            }
            if let Some(chunk) = self.answer.next_chunk() {
                return Ok(Some(chunk));
            }
            if self.answer.is_finished() {
                return Ok(None);
            }
            if let Some(data) = self.events.next_event().map_err(unreadable)? {
                let private: Vec<&str> = self.private.iter().map(String::as_str).collect();
                self.answer.take(&data, &private)?;
                // Comments keep a connection alive, but only events show that the model is.
                self.begun = true;
                self.deadline = deadline(call.deadlines.inter_chunk);
                continue;
            }
            let read = timeout_at(self.deadline, self.body.next()).await;
            let read = read.map_err(|_| self.silence(call))?;
            match read {
                Some(Ok(bytes)) => self.events.push(&bytes),
                Some(Err(_)) => return Err(Fault::stream("the connection broke off")),
                None => self.read_end()?,
            }
        }
    }

    fn read_end(&mut self) -> Result<(), Fault> {
        self.events.finish();
        let private: Vec<&str> = self.private.iter().map(String::as_str).collect();
        while let Some(data) = self.events.next_event().map_err(unreadable)? {
            self.answer.take(&data, &private)?;
        }
        self.answer.end()
    }

    /// Reads what follows the answer, so that the connection is left clean for the next call.
    async fn read_trailer(&mut self) {
        let end = async { while let Some(Ok(_)) = self.body.next().await {} };
        // A server that keeps the stream open loses the connection, nothing more.
        let _ = timeout_at(deadline(TRAILER), end).await;
    }

    fn silence(&self, call: &Call) -> Fault {
        if self.begun {
            let limit = call.deadlines.inter_chunk;
            Fault::timeout(format!("the answer stopped for {limit:?}"))
        } else {
            no_answer(call)
        }
    }
}

fn no_answer(call: &Call) -> Fault {
    let limit = call.deadlines.first_byte;
    Fault::timeout(format!("no answer within {limit:?}"))
}

fn unreadable(error: SseError) -> Fault {
    Fault::stream(format!("the answer holds {error}"))
}

/// An error status with as much of its body as comes in time and is worth reading.
async fn refusal(response: Response, deadline: Instant, private: &[String]) -> Fault {
    let status = response.status().as_u16();
    let retry_after = failure::retry_after(response.headers(), SystemTime::now());
    let mut body = Vec::new();
    let mut stream = response.bytes_stream();
    let reading = async {
        while let Some(Ok(bytes)) = stream.next().await {
            let room = MOST_ERROR_BODY - body.len();
            body.extend_from_slice(&bytes[..bytes.len().min(room)]);
            if body.len() == MOST_ERROR_BODY {
                break;
            }
        }
    };
    // The status has been told already: a body that does not come changes nothing.
    let _ = timeout_at(deadline, reading).await;
    let private: Vec<&str> = private.iter().map(String::as_str).collect();
    failure::from_response(status, retry_after, &body, &private)
}

fn is_event_stream(response: &Response) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE);
    // A server that names no type is given the benefit of the doubt.
    kind.is_none_or(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

fn private_texts(request: &LlmRequest, key: Option<&Secret>) -> Vec<String> {
    let said = request.messages.iter().map(|m| m.content.clone());
    let key = key.map(|key| key.expose().to_owned());
    key.into_iter().chain(said).collect()
}

fn deadline(within: Duration) -> Instant {
    let now = Instant::now();
    // A limit too long to add is none; a day is as good.
    now.checked_add(within)
        .unwrap_or(now + Duration::from_hours(24))
}

fn endpoint(base_url: &str) -> Result<Url, OpenAiError> {
    let base = Url::parse(base_url).map_err(|_| OpenAiError::BaseUrl)?;
    if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
        return Err(OpenAiError::BaseUrl);
    }
    let has_credentials = !base.username().is_empty() || base.password().is_some();
    if has_credentials || base.query().is_some() || base.fragment().is_some() {
        return Err(OpenAiError::BaseUrlParts);
    }
    let path = format!("{}/chat/completions", base.path().trim_end_matches('/'));
    let mut endpoint = base;
    endpoint.set_path(&path);
    Ok(endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_below_the_base_url() {
        let endpoint = |base| endpoint(base).map(String::from);
        for base in ["http://localhost:1/v1", "http://localhost:1/v1/"] {
            let expected = "http://localhost:1/v1/chat/completions";
            assert_eq!(endpoint(base).unwrap(), expected);
        }
        for bad in ["localhost:80", "ftp://a/", "", "file:///v1"] {
            assert!(matches!(endpoint(bad), Err(OpenAiError::BaseUrl)), "{bad}");
        }
        for bad in ["http://u:p@a/", "http://a/?key=1", "http://a/#x"] {
            assert!(
                matches!(endpoint(bad), Err(OpenAiError::BaseUrlParts)),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_client_is_refused_what_cannot_work() {
        let config = OpenAiConfig::new("llm", "http://localhost/v1", "m");
        assert!(OpenAi::new(config.clone()).is_ok());
        let secure = OpenAiConfig {
            base_url: "https://localhost/v1".to_owned(),
            ..config.clone()
        };
        assert!(OpenAi::new(secure).is_ok(), "TLS is built in");
        let pasted = OpenAiConfig {
            api_key: Some("sk-canary".to_owned()),
            ..config.clone()
        };
        let error = OpenAi::new(pasted).unwrap_err();
        assert!(matches!(error, OpenAiError::ApiKey(_)));
        assert!(!format!("{error:?} {error}").contains("canary"));
        let nameless = OpenAiConfig {
            model: " ".to_owned(),
            ..config
        };
        assert!(matches!(OpenAi::new(nameless), Err(OpenAiError::NoModel)));
    }
}
