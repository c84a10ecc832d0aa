//! Sending a request, over either protocol.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceResponse, trace_service_client::TraceServiceClient,
};
use prost::Message as _;
use reqwest::{Client, StatusCode, Url, header};
use rspp_provider_http::{Connections, SecretRef, SecretStore, is_loopback};
use rspp_timeline::trace::SpanBatch;
use tonic::{
    Code, Request,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use crate::{Config, OtlpError, Protocol, message};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// Longest answer that is read.
const MOST_ANSWER: usize = 64 * 1024;

/// Why spans were not taken. Says nothing of what was sent, nor what the collector says of it.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The same again may go well.
    Passing(String),
    /// It will not.
    Final(String),
}

/// Speaks to a collector.
pub(crate) struct Sender {
    resource: Vec<(&'static str, String)>,
    token: Option<SecretRef>,
    secrets: SecretStore,
    timeout: Duration,
    how: How,
}

enum How {
    Grpc(TraceServiceClient<Channel>),
    Http { client: Client, url: Url },
}

impl Sender {
    pub(crate) fn new(config: &Config, secrets: SecretStore) -> Result<Self, OtlpError> {
        check(config)?;
        let url = address(&config.url)?;
        let how = match config.protocol {
            Protocol::Grpc => {
                let endpoint =
                    Endpoint::from_shared(url.to_string()).map_err(|_| OtlpError::Url)?;
                let channel = endpoint.connect_timeout(CONNECT).connect_lazy();
                How::Grpc(TraceServiceClient::new(channel))
            }
            Protocol::Http => {
                let mut builder = rspp_provider_http::client(&Connections::default());
                builder = builder.connect_timeout(CONNECT).timeout(config.timeout);
                if url.scheme() == "http" {
                    // Needs no root certificates, which a small container may not have.
                    builder = builder.tls_certs_only([]);
                }
                if is_loopback(&url) {
                    builder = builder.no_proxy();
                }
                How::Http {
                    client: builder.build().map_err(OtlpError::Http)?,
                    url: url.join("/v1/traces").map_err(|_| OtlpError::Url)?,
                }
            }
        };
        Ok(Self {
            resource: config.resource.clone(),
            token: config.token.clone(),
            secrets,
            timeout: config.timeout,
            how,
        })
    }

    /// Sends spans; how many of them the collector refused.
    pub(crate) async fn send(&mut self, batches: &[SpanBatch]) -> Result<u64, Refusal> {
        let request = message::request(&self.resource, batches);
        // Looked up each time, so that another one is used as soon as it is there.
        let token = self.token.as_ref().map(|token| self.secrets.resolve(token));
        let token = token
            .transpose()
            .map_err(|error| Refusal::Passing(error.to_string()))?;
        let answer = match &mut self.how {
            How::Grpc(client) => {
                let mut request = Request::new(request);
                request.set_timeout(self.timeout);
                if let Some(token) = token {
                    let value = format!("Bearer {}", token.expose());
                    let value: Result<MetadataValue<Ascii>, _> = value.parse();
                    let mut value =
                        value.map_err(|_| Refusal::Final("the token is no text".to_owned()))?;
                    value.set_sensitive(true);
                    request.metadata_mut().insert("authorization", value);
                }
                let sent = tokio::time::timeout(self.timeout, client.export(request)).await;
                match sent {
                    Ok(Ok(answer)) => answer.into_inner(),
                    Ok(Err(status)) => return Err(of_status(status.code())),
                    Err(_) => return Err(Refusal::Passing("it does not answer".to_owned())),
                }
            }
            How::Http { client, url } => {
                let mut asked = client
                    .post(url.clone())
                    .header(header::CONTENT_TYPE, "application/x-protobuf")
                    .body(request.encode_to_vec());
                if let Some(token) = token {
                    asked = asked.bearer_auth(token.expose());
                }
                let answer = asked.send().await.map_err(|error| {
                    let what = if error.is_timeout() {
                        "it does not answer"
                    } else {
                        "it cannot be reached"
                    };
                    Refusal::Passing(what.to_owned())
                })?;
                let status = answer.status();
                if !status.is_success() {
                    return Err(of_http(status));
                }
                let read = answer.bytes().await;
                let read = read.map_err(|_| Refusal::Passing("its answer broke off".to_owned()))?;
                // Who answers with something else has taken them all the same.
                let read = read.slice(..read.len().min(MOST_ANSWER));
                ExportTraceServiceResponse::decode(read).unwrap_or_default()
            }
        };
        let partly = answer.partial_success.unwrap_or_default();
        Ok(u64::try_from(partly.rejected_spans).unwrap_or(0))
    }
}

/// Whether there can be a sender.
pub(crate) fn check(config: &Config) -> Result<(), OtlpError> {
    let url = address(&config.url)?;
    match config.protocol {
        Protocol::Grpc if url.scheme() == "https" => Err(OtlpError::Tls),
        Protocol::Grpc | Protocol::Http => Ok(()),
    }
}

/// The address of a collector; paths are the protocol's.
fn address(text: &str) -> Result<Url, OtlpError> {
    let url = Url::parse(text).map_err(|_| OtlpError::Url)?;
    let is_plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none();
    if is_plain {
        Ok(url)
    } else {
        Err(OtlpError::Url)
    }
}

/// Which answers may be others the next time (OTLP specification, failures).
fn of_status(code: Code) -> Refusal {
    let why = format!("it answers {code:?}");
    match code {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss
        | Code::ResourceExhausted => Refusal::Passing(why),
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Internal
        | Code::Unauthenticated => Refusal::Final(why),
    }
}

fn of_http(status: StatusCode) -> Refusal {
    let why = format!("it answers {}", status.as_u16());
    match status.as_u16() {
        429 | 502 | 503 | 504 => Refusal::Passing(why),
        _final => Refusal::Final(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_that_of_a_collector() {
        for good in ["http://127.0.0.1:4317", "https://collector.example/"] {
            assert!(address(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "127.0.0.1:4317",
            "ftp://a/",
            "http://user:canary@a/",
            "http://a/v1/traces",
            "http://a/?token=canary",
        ] {
            let error = address(bad).expect_err(bad);
            assert!(!error.to_string().contains("canary"), "{error}");
        }
    }

    #[test]
    fn what_may_pass_is_sent_again() {
        let passes = |refusal| matches!(refusal, Refusal::Passing(_));
        assert!(passes(of_http(StatusCode::SERVICE_UNAVAILABLE)));
        assert!(!passes(of_http(StatusCode::BAD_REQUEST)));
        assert!(passes(of_status(Code::Unavailable)));
        assert!(!passes(of_status(Code::Unauthenticated)));
    }
}
