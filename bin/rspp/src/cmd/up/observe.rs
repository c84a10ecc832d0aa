//! What runs at the moment: for the page, for operators, and for what collects measurements.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, RawQuery, Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::stream;
use rspp_actors::ActorInfo;
use rspp_host::{Capture, CaptureBounds, CaptureEnd, Notice, Runtime, SessionView};
use rspp_proto::SessionId;
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
    session_ids: Vec<SessionId>,
    server: Tally,
    actors: Vec<ActorInfo>,
}

/// Actors and sessions that are shown at most: a page is no place for thousands of sessions.
const MOST: usize = 400;

pub(super) fn router(runtime: Arc<Runtime>, server: Arc<Server>) -> Router {
    let observed = Observed { runtime, server };
    Router::new()
        .route("/v1/observe", get(observe))
        .route("/v1/observe/sessions/{id}/pipeline", get(pipeline))
        .route("/v1/observe/sessions/{id}/capture", post(capture))
        .route("/metrics", get(scrape))
        .layer(middleware::from_fn_with_state(observed.clone(), guard))
        .with_state(observed)
}

/// Lets nobody look who may not talk either.
async fn guard(
    State(Observed { server, .. }): State<Observed>,
    RawQuery(query): RawQuery,
    request: Request,
    next: Next,
) -> Response {
    match server.check(request.headers(), query.as_deref()) {
        Ok(()) => next.run(request).await,
        Err(refused) => *refused,
    }
}

async fn observe(State(Observed { runtime, server }): State<Observed>) -> Json<Now> {
    let mut actors = runtime.tree();
    actors.truncate(MOST);
    Json(Now {
        sessions: runtime.sessions(),
        session_ids: runtime.session_ids(MOST),
        server: server.tally(),
        actors,
    })
}

async fn scrape(State(Observed { runtime, .. }): State<Observed>) -> impl IntoResponse {
    let text = rspp_host::scrape::text(&runtime.latencies());
    ([(CONTENT_TYPE, rspp_host::scrape::CONTENT_TYPE)], text)
}

fn find(runtime: &Runtime, id: &str) -> Result<Arc<SessionView>, (StatusCode, String)> {
    let found = SessionId::new(id).ok().and_then(|id| runtime.session(&id));
    found.ok_or_else(|| {
        (
            StatusCode::NOT_FOUND,
            format!("no session `{id}` is open\n"),
        )
    })
}

/// The pipeline that a session really runs (F-081).
async fn pipeline(
    State(Observed { runtime, .. }): State<Observed>,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, (StatusCode, String)> {
    Ok(Json(find(&runtime, &id)?.effective()))
}

/// Longest capture that may be asked for.
const LONGEST: Duration = Duration::from_mins(10);

/// How far a capture is to go: `for_ms`, `events`, `bytes`, each as usual where it is not said.
fn bounds(query: &str) -> Result<CaptureBounds, String> {
    let mut bounds = CaptureBounds::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let number = || {
            let number = value.parse::<u64>();
            number.map_err(|_| format!("{name}: `{value}` is no number\n"))
        };
        match name {
            "for_ms" => bounds.length = Duration::from_millis(number()?).min(LONGEST),
            "events" => bounds.events = u32::try_from(number()?).unwrap_or(u32::MAX),
            "bytes" => bounds.bytes = number()?,
            // The guard has looked at it.
            "token" => {}
            _unknown => {
                return Err(format!(
                    "`{name}` is not known; there are for_ms, events and bytes\n"
                ));
            }
        }
    }
    Ok(bounds)
}

/// The last line of a capture.
#[derive(Serialize)]
struct Last {
    ended: Option<CaptureEnd>,
    events: u64,
    missed: u64,
}

/// Debug events of one session, a line each, until a bound is met (F-076). Whoever hangs up ends it.
async fn capture(
    State(Observed { runtime, .. }): State<Observed>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<impl IntoResponse, (StatusCode, String)> {
    let bounds = bounds(query.as_deref().unwrap_or_default());
    let bounds = bounds.map_err(|wrong| (StatusCode::BAD_REQUEST, wrong))?;
    let capture = find(&runtime, &id)?.capture(bounds);
    let lines = stream::unfold(Some((capture, 0)), |state| async move {
        let (capture, events) = state?;
        let (line, next) = line(capture, events).await;
        Some((line, next))
    });
    let body = Body::from_stream(lines);
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body))
}

async fn line(
    mut capture: Capture,
    events: u64,
) -> (Result<String, serde_json::Error>, Option<(Capture, u64)>) {
    let line = match capture.next().await {
        Some(Notice::Event(event)) => serde_json::to_string(&event),
        // Debug events alone were asked for; what was passed through as it came is one, and has no words.
        Some(Notice::Foreign(foreign)) => serde_json::to_string(&foreign.audit),
        Some(Notice::Signal(_) | Notice::State(_) | Notice::Turn(_)) => Ok(String::new()),
        None => {
            let last = Last {
                ended: capture.ended(),
                events,
                missed: capture.missed(),
            };
            return (json_line(serde_json::to_string(&last)), None);
        }
    };
    (json_line(line), Some((capture, events + 1)))
}

fn json_line(line: Result<String, serde_json::Error>) -> Result<String, serde_json::Error> {
    line.map(|line| line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-076: what is not said is bounded as usual, nothing is asked for without end, and what is not
    /// understood is not passed over.
    #[test]
    fn a_capture_is_always_bounded() {
        let usual = CaptureBounds::default();
        assert_eq!(bounds(""), Ok(usual));
        let asked = bounds("for_ms=99999999&events=7&token=x").unwrap();
        assert_eq!(
            (asked.length, asked.events, asked.bytes),
            (LONGEST, 7, usual.bytes)
        );
        assert!(
            bounds("event=7")
                .unwrap_err()
                .contains("`event` is not known")
        );
        assert!(
            bounds("bytes=many")
                .unwrap_err()
                .contains("`many` is no number")
        );
    }
}
