//! What is looked at before a socket opens: where the page comes from, who asks, and in which words.

use std::net::IpAddr;

use axum::{
    Json,
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use rspp_proto::TraceParent;
use rspp_transport_api::Unauthorized;
use serde_json::json;

use crate::{config::Origins, encoding::Encoding};

/// Where clients connect.
pub const PATH: &str = "/v1/talk";
/// A browser cannot set headers, so a token may be offered as a subprotocol with this before it.
pub const TOKEN_PREFIX: &str = "rspp.token.";
/// The same for the key of a session that a client comes back to, when its token has expired.
pub const RESUME_PREFIX: &str = "rspp.resume.";

/// A handshake that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Refused {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }
}

impl From<Unauthorized> for Refused {
    fn from(unauthorized: Unauthorized) -> Self {
        let message = unauthorized.to_string();
        Self::new(StatusCode::UNAUTHORIZED, unauthorized.as_str(), message)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = json!({ "code": self.code, "message": self.message });
        (self.status, Json(body)).into_response()
    }
}

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) encoding: Encoding,
    pub(crate) token: Option<String>,
    pub(crate) resume: Option<String>,
    pub(crate) caller: Option<TraceParent>,
}

/// Reads what a client asks for.
pub(crate) fn asked(headers: &HeaderMap, query: Option<&str>) -> Result<Asked, Refused> {
    let offers = offers(headers);
    let secret = |prefix: &str| offers.iter().find_map(|offer| offer.strip_prefix(prefix));
    let protocols = offers
        .iter()
        .filter(|offer| !offer.starts_with(TOKEN_PREFIX) && !offer.starts_with(RESUME_PREFIX));
    let Some(encoding) = Encoding::negotiate(protocols.copied()) else {
        let known = Encoding::ALL.map(Encoding::as_str).join(", ");
        return Err(Refused::new(
            StatusCode::BAD_REQUEST,
            "unknown_subprotocol",
            format!("none of the offered subprotocols is served; served are {known}"),
        ));
    };
    let token = bearer(headers).or(secret(TOKEN_PREFIX));
    let token = token.or(in_query(query, "token"));
    let resume = secret(RESUME_PREFIX).or(in_query(query, "resume"));
    Ok(Asked {
        encoding,
        token: token.map(str::to_owned),
        resume: resume.map(str::to_owned),
        caller: caller(headers, query),
    })
}

/// Where in a trace a client is. What is none is as good as none (W3C Trace Context §3.2.3).
pub(crate) fn caller(headers: &HeaderMap, query: Option<&str>) -> Option<TraceParent> {
    let told = text(headers, &HeaderName::from_static(TraceParent::HEADER));
    let told = told.or(in_query(query, TraceParent::HEADER));
    told.and_then(|value| value.parse().ok())
}

/// The subprotocols that a client offers.
pub(crate) fn offers(headers: &HeaderMap) -> Vec<&str> {
    let offers = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    offers
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect()
}

/// The token in a client's headers.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = text(headers, &header::AUTHORIZATION)?;
    value.strip_prefix("Bearer ").map(str::trim)
}

/// What an address says of `name`, as it is written there.
pub(crate) fn in_query<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    let mut pairs = query.unwrap_or_default().split('&');
    pairs.find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// Whether the page that connects may; `at_home` if only this machine's own pages are trusted.
pub(crate) fn check_origin(
    headers: &HeaderMap,
    origins: &Origins,
    at_home: bool,
) -> Result<(), Refused> {
    let refuse = |code, message: String| Err(Refused::new(StatusCode::FORBIDDEN, code, message));
    let host = text(headers, &header::HOST).unwrap_or_default();
    // A name that was made to lead here belongs to somebody else's page.
    if at_home && !is_loopback(host) {
        return refuse(
            "host_refused",
            format!("`{host}` is not this machine's own name; use localhost, or set a password"),
        );
    }
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let origin = origin.to_str().unwrap_or_default();
    let is_own = || {
        let of = origin.split_once("://").map(|(_, authority)| authority);
        of.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
    };
    let is_allowed = match origins {
        Origins::Any => true,
        Origins::Own => is_own(),
        Origins::Also(others) => is_own() || others.iter().any(|other| other == origin),
    };
    if is_allowed {
        Ok(())
    } else {
        refuse(
            "origin_refused",
            format!("pages of `{origin}` may not connect"),
        )
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let address = name.parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|it| it.is_loopback())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        pairs.collect()
    }

    #[test]
    fn a_token_comes_in_a_header_a_subprotocol_or_the_address() {
        let token = |pairs: &[_], query| asked(&headers(pairs), query).unwrap().token;
        let some = Some("a.b.c".to_owned());
        assert_eq!(token(&[("authorization", "Bearer a.b.c")], None), some);
        let protocols = "rspp.v1.msgpack, rspp.token.a.b.c";
        let offered = [("sec-websocket-protocol", protocols)];
        assert_eq!(token(&offered, None), some);
        assert_eq!(token(&[], Some("x=1&token=a.b.c")), some);
        assert_eq!(token(&[("authorization", "Basic eDp5")], None), None);
        let asked = asked(&headers(&offered), Some("resume=key")).unwrap();
        assert_eq!(asked.encoding, Encoding::Msgpack);
        assert_eq!(asked.resume.as_deref(), Some("key"));
    }

    #[test]
    fn an_unknown_subprotocol_is_refused_with_those_that_are_known() {
        let refused = asked(&headers(&[("sec-websocket-protocol", "chat")]), None).unwrap_err();
        assert_eq!(refused.code, "unknown_subprotocol");
        assert!(refused.message.contains("rspp.v1.json, rspp.v1.msgpack"));
    }

    #[test]
    fn only_pages_that_may_connect_do() {
        let own = Origins::Own;
        let also = Origins::Also(vec!["https://app.example.com".to_owned()]);
        let check = |host, origin: Option<&'static str>, origins: &Origins, at_home| {
            let mut pairs = vec![("host", host)];
            pairs.extend(origin.map(|origin| ("origin", origin)));
            let checked = check_origin(&headers(&pairs), origins, at_home);
            checked.map_err(|refused| refused.code)
        };
        let here = "localhost:7777";
        for host in [here, "127.0.0.1:7777", "[::1]:7777", "LOCALHOST"] {
            assert_eq!(check(host, None, &own, true), Ok(()), "{host}");
        }
        let page = Some("http://localhost:7777");
        assert_eq!(check(here, page, &own, true), Ok(()));
        let foreign = Some("https://evil.example");
        let refused = Err("origin_refused");
        assert_eq!(check(here, foreign, &own, true), refused);
        assert_eq!(check(here, foreign, &also, false), refused);
        assert_eq!(check(here, Some("null"), &own, false), refused);
        assert_eq!(check(here, foreign, &Origins::Any, true), Ok(()));
        let app = Some("https://app.example.com");
        assert_eq!(check("api.example.com", app, &also, false), Ok(()));
        // A foreign name that leads to this machine is a foreign page's trick.
        let rebound = Some("http://evil.example:7777");
        let trick = check("evil.example:7777", rebound, &own, true);
        assert_eq!(trick, Err("host_refused"));
    }
}
