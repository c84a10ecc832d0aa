//! How recent the view of the fleet has to be where sessions move (F-159).
//!
//! A session is taken on, handed over, or its client sent elsewhere by what is known of the other runtimes.
//! What is known for longer than the bound is fetched anew first; only one fetch is under way at a time.

use std::{fmt, sync::MutexGuard, time::Duration};

use rspp_controlplane_api::{Snapshot, UsedView, millis};
use rspp_proto::Monotonic;
use thiserror::Error;
use tokio::sync::oneshot;

use super::{
    AwayMode,
    shared::{Request, Shared},
};

/// How long a step waits for a view that is fetched for it.
pub(super) const FETCH_WITHIN: Duration = Duration::from_millis(800);

/// What a node does by its view of the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Takes a session on, which may come from elsewhere.
    Accept,
    /// Lets sessions go on elsewhere.
    HandOver,
    /// Tells a client that came here where to go.
    Redirect,
}

impl Step {
    /// Its name, as logs write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::HandOver => "hand_over",
            Self::Redirect => "redirect",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The view of the fleet is too old, and no other was to be had.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("routing_view_stale: {}, {bound:?} is allowed, and it could not be refreshed: {why}", known(name.as_deref(), *age))]
pub struct StaleView {
    /// Which it is, if any was heard.
    pub name: Option<String>,
    /// How old it is.
    pub age: Option<Duration>,
    /// How old it may be.
    pub bound: Duration,
    /// What was in the way.
    pub why: String,
}

fn known(name: Option<&str>, age: Option<Duration>) -> String {
    match (name, age) {
        (Some(name), Some(age)) => format!("`{name}` is {age:?} old"),
        (Some(_) | None, _) => "nothing was heard of the fleet yet".to_owned(),
    }
}

/// What is known of the view's age.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// When the fleet was last known to be as shown.
    as_of: Option<Monotonic>,
    /// Whether the last fetch failed, since nothing was heard.
    failed: bool,
}

impl Shared {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().expect("no code panics while locked")
    }

    /// The fleet was known to be as shown at that moment.
    pub(super) fn view_heard(&self, as_of: Monotonic) {
        let mut heard = self.heard();
        heard.as_of = heard.as_of.max(Some(as_of));
        heard.failed = false;
    }

    fn routing(&self) -> Option<Snapshot> {
        self.status().borrow().routing.clone()
    }

    /// The view as it is.
    fn seen_view(&self) -> UsedView {
        let name = self.routing().map(|it| it.name);
        let as_of = self.heard().as_of;
        UsedView {
            age: as_of
                .filter(|_| name.is_some())
                .map(|as_of| self.now().since(as_of)),
            name,
            refreshed: false,
        }
    }

    fn is_recent(&self, view: &UsedView) -> bool {
        view.age.is_some_and(|age| age <= self.max_view_age)
    }

    /// See [`PlaneHandle::view`](super::PlaneHandle::view).
    pub(super) fn known_view(&self) -> Option<Snapshot> {
        let goes_on = match self.mode {
            AwayMode::Strict => false,
            AwayMode::Availability => self.heard().failed,
        };
        self.routing()
            .filter(|_| goes_on || self.is_recent(&self.seen_view()))
    }

    /// See [`PlaneHandle::fresh_view`](super::PlaneHandle::fresh_view).
    pub(super) async fn fresh_view(&self, step: Step) -> Result<UsedView, StaleView> {
        let before = self.seen_view();
        if self.is_recent(&before) {
            return Ok(before);
        }
        let (answer, told) = oneshot::channel();
        self.ask(Request::Refresh { answer });
        let fetched = tokio::time::timeout(FETCH_WITHIN, told).await;
        let fetched = fetched
            .map_err(|_| format!("nobody answered within {FETCH_WITHIN:?}"))
            .and_then(|told| told.map_err(|_| "the node is shutting down".to_owned()))
            .and_then(|told| told);
        let now = UsedView {
            refreshed: fetched.is_ok(),
            ..self.seen_view()
        };
        if self.is_recent(&now) {
            tracing::info!(
                %step,
                was = before.name,
                was_old_ms = before.age.map(millis),
                view = now.name,
                age_ms = now.age.map(millis),
                "the routing view was refreshed first"
            );
            return Ok(now);
        }
        self.heard().failed = true;
        let stale = StaleView {
            bound: self.max_view_age,
            why: match fetched {
                Ok(()) => "the control plane's own view is no newer".to_owned(),
                Err(why) => why,
            },
            name: now.name.clone(),
            age: now.age,
        };
        let mode = self.mode.as_str();
        match self.mode {
            AwayMode::Strict => {
                tracing::warn!(%step, mode, %stale, "refused");
                Err(stale)
            }
            AwayMode::Availability => {
                tracing::warn!(%step, mode, %stale, "done by what is known");
                Ok(now)
            }
        }
    }
}
