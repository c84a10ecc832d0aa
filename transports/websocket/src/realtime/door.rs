//! What is looked at before a socket opens.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{RawQuery, State, WebSocketUpgrade, ws::rejection::WebSocketUpgradeRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header::SEC_WEBSOCKET_PROTOCOL},
    response::{IntoResponse, Response},
    routing::any,
};
use rspp_proto::TraceParent;
use serde_json::json;

use super::{line::Line, machine::Beginning, settings::Dialect, socket};
use crate::{
    call::frames_in,
    handshake::{Refused, bearer, caller, in_query, offers},
    server::Server,
};

/// Where clients of this protocol connect.
pub const PATH: &str = "/v1/realtime";
/// The subprotocol, of clients that name one.
const SUBPROTOCOL: &str = "realtime";
/// A browser cannot set headers, so it offers its token as a subprotocol with this before it.
const TOKEN_PREFIX: &str = "openai-insecure-api-key.";
/// Offered, or in a header, by clients that want the names before general availability.
const BETA_SUBPROTOCOL: &str = "openai-beta.realtime-v1";
const BETA_HEADER: &str = "openai-beta";
const BETA: &str = "realtime=v1";
/// Longest name of a model that is said back.
const MODEL: usize = 128;

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    token: Option<String>,
    dialect: Dialect,
    model: String,
    names_subprotocol: bool,
    caller: Option<TraceParent>,
}

fn asked(headers: &HeaderMap, query: Option<&str>) -> Result<Asked, Refused> {
    let offers = offers(headers);
    if !offers.is_empty() && !offers.contains(&SUBPROTOCOL) {
        return Err(Refused::new(
            StatusCode::BAD_REQUEST,
            "unknown_subprotocol",
            "none of the offered subprotocols is served; served is realtime",
        ));
    }
    let offered = offers.iter().find_map(|it| it.strip_prefix(TOKEN_PREFIX));
    let token = bearer(headers).or(offered).or(in_query(query, "token"));
    let beta = headers.get(BETA_HEADER).and_then(|it| it.to_str().ok());
    let is_beta = beta.is_some_and(|it| it.split(',').any(|it| it.trim() == BETA))
        || offers.contains(&BETA_SUBPROTOCOL);
    let model = in_query(query, "model").filter(|model| model.len() <= MODEL);
    // Names are written plainly; what is not is left out rather than said back.
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._:/".contains(c);
    let model = model.filter(|model| model.chars().all(is_name));
    Ok(Asked {
        token: token.map(str::to_owned),
        dialect: if is_beta {
            Dialect::Beta
        } else {
            Dialect::Current
        },
        model: model.unwrap_or("realtime").to_owned(),
        names_subprotocol: !offers.is_empty(),
        caller: caller(headers, query),
    })
}

/// The route that clients connect to.
pub(crate) fn router(server: &Arc<Server>) -> Router {
    Router::new()
        .route(PATH, any(connect))
        .with_state(Arc::clone(server))
}

async fn connect(
    State(server): State<Arc<Server>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let asked = asked(&headers, query.as_deref());
    if let Ok(asked) = &asked {
        server.freshen(asked.token.as_deref()).await;
    }
    let looked_at = asked.and_then(|asked| {
        let admitted = server.admit_new(asked.token.as_deref(), &headers)??;
        Ok((asked, admitted, server.seat()?))
    });
    let (asked, admitted, seat) = match looked_at {
        Ok(looked_at) => looked_at,
        Err(refused) => {
            server.count_refused();
            return refusal(&refused);
        }
    };
    let mut upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => return rejection.into_response(),
    };
    if asked.names_subprotocol && headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
        upgrade.set_selected_protocol(HeaderValue::from_static(SUBPROTOCOL));
    }
    let (limits, own) = (&server.config.limits, &server.config.realtime);
    let beginning = Beginning {
        stamp: format!("{:012x}", rand::random::<u64>() >> 16),
        dialect: asked.dialect,
        model: asked.model,
        allowed: own.allowed.clone(),
        text_bytes: limits.text_bytes,
        room: frames_in(limits.lead),
    };
    let records = server.config.recordings.is_some();
    let line = Line::new(beginning, own.backlog, limits.lead, records, asked.caller);
    let most = own.message_bytes;
    upgrade
        .max_message_size(most)
        .max_frame_size(most)
        .on_upgrade(move |socket| async move {
            socket::serve(server, line, socket, admitted).await;
            drop(seat);
        })
}

/// A refusal in the protocol's own form.
fn refusal(refused: &Refused) -> Response {
    let error = json!({
        "type": "invalid_request_error",
        "code": refused.code,
        "message": refused.message,
        "param": null,
    });
    (refused.status, Json(json!({ "error": error }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::tests::headers;

    #[test]
    fn a_token_comes_in_a_header_or_as_browsers_of_this_api_send_it() {
        let query = Some("model=gpt-realtime");
        let by_header = headers(&[("authorization", "Bearer a.b.c")]);
        let it = asked(&by_header, query).unwrap();
        assert_eq!(it.token.as_deref(), Some("a.b.c"));
        assert_eq!(
            (it.model.as_str(), it.dialect),
            ("gpt-realtime", Dialect::Current)
        );
        assert!(!it.names_subprotocol);
        let offered = "realtime, openai-insecure-api-key.a.b.c, openai-beta.realtime-v1";
        let it = asked(&headers(&[("sec-websocket-protocol", offered)]), None).unwrap();
        assert_eq!(it.token.as_deref(), Some("a.b.c"));
        assert_eq!(it.dialect, Dialect::Beta);
        assert!(it.names_subprotocol);
    }

    #[test]
    fn old_names_are_for_those_who_ask_for_them() {
        let old = headers(&[("openai-beta", "assistants=v2, realtime=v1")]);
        assert_eq!(asked(&old, None).unwrap().dialect, Dialect::Beta);
        let other = headers(&[("openai-beta", "assistants=v2")]);
        assert_eq!(asked(&other, None).unwrap().dialect, Dialect::Current);
    }

    #[test]
    fn another_subprotocol_is_refused_and_an_odd_model_is_not_said_back() {
        let other = headers(&[("sec-websocket-protocol", "rspp.v1.json")]);
        assert_eq!(asked(&other, None).unwrap_err().code, "unknown_subprotocol");
        let odd = asked(&HeaderMap::new(), Some("model=%22%3Cb%3E")).unwrap();
        assert_eq!(odd.model, "realtime");
    }
}
