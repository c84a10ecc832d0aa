//! What runs at the moment, for the page.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{RawQuery, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
    routing::get,
};
use rspp_actors::ActorInfo;
use rspp_host::Runtime;
use rspp_websocket::{Server, Tally};
use serde::Serialize;

#[derive(Clone)]
struct Observed {
    runtime: Arc<Runtime>,
    server: Arc<Server>,
}

#[derive(Serialize)]
struct Now {
    sessions: usize,
    server: Tally,
    actors: Vec<ActorInfo>,
}

/// Actors that are shown at most: a page is no place for thousands of sessions.
const MOST: usize = 400;

pub(super) fn router(runtime: Arc<Runtime>, server: Arc<Server>) -> Router {
    Router::new()
        .route("/v1/observe", get(observe))
        .with_state(Observed { runtime, server })
}

async fn observe(
    State(Observed { runtime, server }): State<Observed>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    if let Err(refused) = server.check(&headers, query.as_deref()) {
        return *refused;
    }
    let mut actors = runtime.tree();
    actors.truncate(MOST);
    Json(Now {
        sessions: runtime.sessions(),
        server: server.tally(),
        actors,
    })
    .into_response()
}
