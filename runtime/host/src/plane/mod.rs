//! A node's side of the control plane: what it may speak for, what it decides by, and what it is told.
//!
//! What is decided about rights is [`rspp_kernel::keeper`]'s; here its requests are carried, its
//! verdicts handed to the sessions, and snapshots kept. The control plane is never on the path of a
//! frame: while it is away, sessions go on until the lease that the node has is over.

mod actor;
mod carry;
mod leases;
mod news;
mod roster;
mod shared;
mod store;
mod telling;
mod tried;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use rspp_controlplane_api::{
    Answer, Artifact, ControlPlane, Proofs, Route, RouteAsk, Snapshot, UsedView,
};
use rspp_kernel::keeper::KeeperPolicy;
use rspp_proto::{
    Epoch, RuntimeId, SessionId, TenantId,
    control::{Description, Emptying, Holder, Kind, Outage, Removal},
};
use tokio::sync::watch;

pub(crate) use actor::{ControlPlaneLink, Surroundings};
pub(crate) use leases::PlaneLeases;
pub(crate) use roster::{Placed, Roster};
pub(crate) use shared::Shared;
pub(crate) use store::PlaneStore;
pub(crate) use tried::Tried;
pub use view::{StaleView, Step};

/// What becomes of new sessions while the control plane is away. Running ones go on either way until
/// their leases end.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum AwayMode {
    /// They are refused.
    #[default]
    Strict,
    /// Those whose names this node gives are taken on: nobody else can ever be given one, so that they
    /// need no lease. They live as long as this process, and are not moved.
    Availability,
}

impl AwayMode {
    /// Its name, as settings and records write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Availability => "availability",
        }
    }
}

/// How long the control plane may take to say where a client goes, or to put something down.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How long the control plane is left alone between two questions about one client.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// How a node belongs to a fleet.
#[derive(Clone)]
pub struct PlaneConfig {
    /// Its name there.
    pub runtime: RuntimeId,
    /// What it is.
    pub description: Description,
    /// Whom to ask.
    pub plane: Arc<dyn ControlPlane>,
    /// Which leases are believed.
    pub proofs: Arc<dyn Proofs>,
    /// What becomes of new sessions while nobody answers.
    pub mode: AwayMode,
    /// How long snapshots are decided by after they were last heard to be as they are.
    pub max_staleness: Duration,
    /// How old the view of the fleet may be where sessions move; an older one is fetched anew first (F-159).
    pub max_view_age: Duration,
    /// How patient it is.
    pub keeper: KeeperPolicy,
}

impl PlaneConfig {
    /// A node of a fleet, strict and with usual patience.
    pub fn new(
        runtime: RuntimeId,
        description: Description,
        plane: Arc<dyn ControlPlane>,
        proofs: Arc<dyn Proofs>,
    ) -> Self {
        // Told apart by name, so that a fleet does not ask all at once.
        let spread = runtime
            .as_str()
            .bytes()
            .fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
        Self {
            runtime,
            description,
            plane,
            proofs,
            mode: AwayMode::default(),
            max_staleness: Duration::from_secs(30),
            max_view_age: Duration::from_secs(5),
            keeper: KeeperPolicy {
                spread,
                ..KeeperPolicy::default()
            },
        }
    }
}

impl fmt::Debug for PlaneConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlaneConfig")
            .field("runtime", &self.runtime)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// How the node stands with the control plane.
#[derive(Clone, Debug, Default)]
pub struct PlaneStatus {
    /// Who it is there; `None` while it is away or has not joined.
    pub holder: Option<Holder>,
    /// Why it is nobody there.
    pub away: Option<String>,
    /// Whether it is to take no new sessions.
    pub draining: bool,
    /// Whether its snapshots are recent enough to open turns by.
    pub fresh: bool,
    /// The newest of each kind that was heard.
    pub routing: Option<Snapshot>,
    /// Keys that tokens are checked with.
    pub keyring: Option<Snapshot>,
    /// Which versions new sessions get.
    pub versions: Option<Snapshot>,
    /// Limits, residency and approvals.
    pub governance: Option<Snapshot>,
}

impl PlaneStatus {
    /// Whether new sessions may be sent here.
    pub fn is_ready(&self) -> bool {
        self.holder.is_some() && self.fresh && !self.draining
    }
}

/// What a process asks of its node's link.
#[derive(Clone)]
pub struct PlaneHandle {
    shared: Arc<Shared>,
    plane: Arc<dyn ControlPlane>,
}

impl PlaneHandle {
    pub(crate) fn new(shared: Arc<Shared>, plane: Arc<dyn ControlPlane>) -> Self {
        Self { shared, plane }
    }

    /// How the node stands with the control plane, now and from now on.
    pub fn status(&self) -> watch::Receiver<PlaneStatus> {
        self.shared.status()
    }

    /// Whether all that the node needs besides the control plane can be reached; told with each heartbeat
    /// (F-108).
    pub fn set_ready(&self, ready: bool) {
        self.shared.set_ready(ready);
    }

    /// Which providers the node would ask first and leaves alone because they fail; told with each heartbeat
    /// (F-112).
    pub fn set_outages(&self, outages: Vec<Outage>) {
        self.shared.set_outages(outages);
    }

    /// Says that the node goes, and what it has, before it lets go of anything: what becomes of each session is
    /// accounted for (NF-016). Why that could not be said is the error.
    pub async fn begin_drain(&self, how: Emptying) -> Result<(), String> {
        let sessions = self.shared.held();
        self.tell(|plane, holder| plane.begin_drain(holder, Some(how), sessions))
            .await
    }

    /// Puts down in the fleet's audit trail what this node removes of its timelines because it is over (F-116).
    /// Why that could not be said is the error.
    pub async fn tell_removal(&self, removal: Removal) -> Result<(), String> {
        self.tell(|plane, holder| plane.tell_removal(holder, removal))
            .await
    }

    /// Says something as who the node is in the fleet.
    async fn tell(
        &self,
        what: impl FnOnce(&dyn ControlPlane, &Holder) -> Answer<()>,
    ) -> Result<(), String> {
        let holder = self.shared.status().borrow().holder.clone();
        let Some(holder) = holder else {
            return Err("the control plane is away".to_owned());
        };
        let told = what(&*self.plane, &holder);
        match tokio::time::timeout(ANSWER_WITHIN, told).await {
            Ok(told) => told.map_err(|error| error.to_string()),
            Err(_) => Err(format!("nobody answered within {ANSWER_WITHIN:?}")),
        }
    }

    /// A name for a session that nobody else can have given.
    pub fn name_session(&self) -> SessionId {
        self.shared.name_session()
    }

    /// A name of the node's own for a session that nobody can be asked for now, if the node goes on taking new ones
    /// then. `granted` is the epoch that its client's token knows of: who has talked before is somewhere, and is not
    /// begun anew here.
    pub fn stands_in(&self, granted: Option<Epoch>) -> Option<SessionId> {
        let is_away = self.shared.status().borrow().holder.is_none();
        match self.shared.mode() {
            AwayMode::Availability if is_away && granted.is_none() => Some(self.name_session()),
            AwayMode::Availability | AwayMode::Strict => None,
        }
    }

    /// Who else holds a session, for a client that came to the wrong node; `None` if nobody does. One that is
    /// only about to be somebody's is not to be had there either, and clients must not be sent in circles.
    pub async fn held_elsewhere(
        &self,
        tenant: TenantId,
        session: SessionId,
        transport: &str,
    ) -> Option<Route> {
        let asking = async {
            self.shared.fresh_view(Step::Redirect).await.ok()?;
            let ask = self.except_here(tenant, session, transport);
            Some(self.plane.route(ask).await)
        };
        let route = tokio::time::timeout(ANSWER_WITHIN, asking).await.ok()??;
        let own = self.shared.runtime();
        route
            .ok()
            .filter(|it| it.epoch.is_some() && it.runtime != *own)
    }

    /// Where a session that leaves this node, or finds no room here, can go on; `None` if nobody says so in
    /// time. One that has not been let go of yet is asked about until it has.
    pub async fn next_home(
        &self,
        tenant: TenantId,
        session: SessionId,
        transport: &str,
    ) -> Option<Route> {
        let ask = self.except_here(tenant, session, transport);
        let asking = async {
            self.shared.fresh_view(Step::HandOver).await.ok()?;
            loop {
                match self.plane.route(ask.clone()).await {
                    Ok(route) if route.runtime != *self.shared.runtime() => return Some(route),
                    Ok(_still_here) => {}
                    Err(error) if error.is_transient() => {}
                    Err(error) => {
                        tracing::debug!(session_id = %ask.session, %error, "it can go on nowhere else");
                        return None;
                    }
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        };
        let asked = tokio::time::timeout(ANSWER_WITHIN, asking).await;
        asked.ok().flatten()
    }

    fn except_here(&self, tenant: TenantId, session: SessionId, transport: &str) -> RouteAsk {
        RouteAsk {
            tenant,
            session,
            transport: transport.to_owned(),
            pipeline: None,
            latencies_ms: BTreeMap::new(),
            needs: BTreeMap::new(),
            except: BTreeSet::from([self.shared.runtime().clone()]),
            token_ttl: None,
        }
    }

    /// What is known of the fleet, if that is recent enough to move somebody by it, or if the node goes on with
    /// what it knows while nobody answers.
    pub fn view(&self) -> Option<Snapshot> {
        self.shared.known_view()
    }

    /// Has the view of the fleet be recent enough for a step that moves sessions: fetches it anew if it is too
    /// old (F-159). What cannot be fetched refuses the step, or lets it go by what is known, as the node's
    /// [`AwayMode`] says.
    pub async fn fresh_view(&self, step: Step) -> Result<UsedView, StaleView> {
        self.shared.fresh_view(step).await
    }

    /// A published version.
    pub fn artifact(&self, kind: Kind, version: String) -> Answer<Artifact> {
        self.plane.artifact(kind, version)
    }
}

impl fmt::Debug for PlaneHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlaneHandle").finish_non_exhaustive()
    }
}
