//! What a runtime needs of a control plane.
//!
//! # The holder's half of the lease rule
//! A lease is counted by its holder's own monotonic clock from when the holder *sent* the older of two
//! requests: the one that granted it, and the last renewal (or registration) that was answered. For
//! granting a session does not renew the runtime: renewing does, for all its sessions at once. An answer is taken
//! once, and never if a later attempt for the same session has been made since. Who asks for a session
//! gives up at once what it held of it. A session that is revoked is not renewed: its time runs out
//! unless it is released before, and it is named with every renewal until then.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{future::BoxFuture, stream::BoxStream};
use rspp_proto::{
    Epoch, LeaseToken, PipelineVersion, Region, RuntimeId, SessionId, TenantId, WallClock,
    control::{
        Attempt, Binding, Description, Emptying, Endpoint, Holder, Kind, Load, Removal,
        SessionPhase, WhyRevoked,
    },
    reading::VersionCount,
    spec::OverLimit,
};

use crate::{ControlError, Stored, Version, Write};

/// What a control plane answers, some time. Dropping it gives up waiting, not what was asked for.
pub type Answer<T> = BoxFuture<'static, Result<T, ControlError>>;
/// Orders as they come. An error that is transient does not end it: it goes on by itself and tells
/// all that waits again.
pub type Orders = BoxStream<'static, Result<Order, ControlError>>;
/// Snapshots as they change; errors as with [`Orders`].
pub type Snapshots = BoxStream<'static, Result<SnapshotUpdate, ControlError>>;

/// A runtime has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Who it is from now on. Whatever its earlier lives held is not its own.
    pub holder: Holder,
    /// How long leases last without renewal.
    pub ttl: Duration,
    /// How often to say how busy it is.
    pub heartbeat: Duration,
    /// The control protocol that both speak.
    pub protocol: u32,
}

/// Whether a runtime takes sessions on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// It does.
    Serving,
    /// It is to be emptied.
    Draining,
}

/// What a session is to be bound to if nobody has held it before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whose session it is.
    pub tenant: TenantId,
    /// The version of its pipeline, as its token says it; `None`: what the only rollout gives, and then
    /// the rollouts give what else is not said.
    pub pipeline: Option<PipelineVersion>,
    /// The version of its policy; `None` beside a pipeline: none.
    pub policy: Option<String>,
    /// The version of its provider settings; `None` beside a pipeline: none.
    pub providers: Option<String>,
}

impl From<&Binding> for Wanted {
    fn from(binding: &Binding) -> Self {
        Self {
            tenant: binding.tenant.clone(),
            pipeline: Some(binding.pipeline.clone()),
            policy: binding.policy.clone(),
            providers: binding.providers.clone(),
        }
    }
}

/// Asks for a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquire {
    /// Who.
    pub by: Holder,
    /// Which of its requests, from 1; rises with each but for repetitions.
    pub attempt: Attempt,
    /// The session.
    pub session: SessionId,
    /// What it is bound to if it is new.
    pub wanted: Wanted,
}

/// A session was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The session.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: Epoch,
    /// What proves it to others.
    pub proof: LeaseToken,
    /// How long it lasts; from when, see the lease rule of this trait's module.
    pub ttl: Duration,
    /// Whether somebody else was to speak until now and did not let go by itself.
    pub taken_over: bool,
    /// Whether somebody held it before: there may be state to load.
    pub resumed: bool,
    /// Whether its tenant is beyond a limit and is served with less.
    pub degraded: bool,
    /// What it is bound to, over all its placements.
    pub binding: Binding,
}

/// A session that a runtime believes it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldSession {
    /// The session.
    pub session: SessionId,
    /// At which epoch.
    pub epoch: Epoch,
    /// Whether to prove it anew: a proof lasts shorter than a session may.
    pub prove: bool,
}

/// What a renewal led to. All that was named is renewed, but for what is here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    /// How long it lasts, from when the request was sent.
    pub ttl: Duration,
    /// To be let go; not renewed. Named again until it is released.
    pub revoked: Vec<Revocation>,
    /// Not held, whatever the runtime believes.
    pub lost: Vec<Lost>,
    /// As asked for.
    pub proofs: Vec<(SessionId, LeaseToken)>,
}

/// The order to let go of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The session.
    pub session: SessionId,
    /// At which epoch it is held.
    pub epoch: Epoch,
    /// Why.
    pub why: WhyRevoked,
    /// How long what was begun may take to end; never less than a lease.
    pub finish_within: Duration,
    /// Who is to have it next; `None`: anybody.
    pub to: Option<RuntimeId>,
}

/// A session that a runtime does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The session.
    pub session: SessionId,
    /// Its newest epoch, if there is one.
    pub newest: Option<Epoch>,
}

/// How a holder leaves a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Somebody else may go on with it.
    Release,
    /// It is over for good, and what it kept is forgotten.
    End {
        /// Why it is over.
        why: String,
    },
}

impl Leave {
    /// It is over for good.
    pub fn end(why: impl Into<String>) -> Self {
        Self::End { why: why.into() }
    }
}

/// Who writes what a session keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// Who.
    pub by: Holder,
    /// The session.
    pub session: SessionId,
    /// Under which epoch.
    pub epoch: Epoch,
}

/// How a session goes, by who holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusReport {
    /// The session.
    pub session: SessionId,
    /// Under which epoch.
    pub epoch: Epoch,
    /// How it goes.
    pub phase: SessionPhase,
    /// Why, if there is something to say.
    pub reason: Option<String>,
}

/// Tokens that language models read and wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageReport {
    /// For whom.
    pub tenant: TenantId,
    /// For sessions of which pipeline.
    pub pipeline: PipelineVersion,
    /// How many.
    pub tokens: u64,
    /// Names this count.
    pub report: String,
}

/// A tenant has used up what it may for now, over all runtimes (F-050).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// What is done about more.
    pub over: OverLimit,
    /// For how long, if nothing more is used.
    pub wait: Duration,
}

/// An order to a runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Take nothing new on, and get rid of what is there.
    Drain,
    /// Take new sessions on again.
    Serve,
    /// Let go of a session: fall silent, keep what it needs, release it.
    Revoke(Revocation),
    /// All that waited has been told; what follows is new.
    Settled,
}

/// What a snapshot is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SnapshotKind {
    /// Runtimes and regions.
    RoutingView,
    /// Which versions new sessions get.
    VersionResolution,
    /// Limits, residency and approvals.
    Governance,
    /// Public keys that tokens are checked with.
    Keyring,
}

/// What is decided by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Of what.
    pub kind: SnapshotKind,
    /// Its name, as plans and recordings cite it.
    pub name: String,
    /// Rises with every change; an older one is never taken after a newer one.
    pub revision: u64,
    /// JSON of the control plane's own type.
    pub document: Arc<str>,
}

/// News of snapshots, or a sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotUpdate {
    /// What is new.
    pub snapshot: Option<Snapshot>,
    /// How long ago the store was last heard to be as shown, when this was sent.
    pub age: Duration,
}

/// Asks where a session runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteAsk {
    /// Whose session.
    pub tenant: TenantId,
    /// Which.
    pub session: SessionId,
    /// How the client connects: `websocket`, `telephony`, `livekit`.
    pub transport: String,
    /// A line, or a version that is offered; `None` where there is one line only.
    pub pipeline: Option<String>,
    /// How long the client's packets take to each region, in milliseconds.
    pub latencies_ms: BTreeMap<Region, u32>,
    /// What the pipeline needs of a runtime.
    pub needs: BTreeMap<String, String>,
    /// Runtimes that it is not to go to.
    pub except: BTreeSet<RuntimeId>,
    /// How long the token is valid; `None`: as long as the control plane gives.
    pub token_ttl: Option<Duration>,
}

/// What a client shows to the runtime that it was routed to. Prints without the token.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionToken {
    /// The token itself, to be sent and never printed.
    pub token: String,
    /// Its own name.
    pub id: String,
    /// When it is over.
    pub expires: WallClock,
}

impl std::fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionToken")
            .field("id", &self.id)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Where a session runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// How the client gets there.
    pub endpoint: Endpoint,
    /// To whom.
    pub runtime: RuntimeId,
    /// In which region.
    pub region: Region,
    /// The version that it gets.
    pub pipeline: PipelineVersion,
    /// What the client shows there.
    pub token: SessionToken,
    /// The epoch at which it is held there, if it is already.
    pub epoch: Option<Epoch>,
    /// Names the view that it was chosen from.
    pub routing_view: String,
    /// Names the state of the rollout that gave the version.
    pub version_resolution: String,
    /// Names the limits that it was admitted by; empty if it was admitted before.
    pub admission_policy: String,
}

/// A published version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// Of what.
    pub kind: Kind,
    /// Its name.
    pub version: String,
    /// SHA-256 of what it means, in hex.
    pub hash: String,
    /// The text as it was published.
    pub source: String,
}

/// What a runtime asks of a control plane.
///
/// Every call may be repeated after an error that is [transient](ControlError::is_transient): it has
/// one effect.
pub trait ControlPlane: Send + Sync + 'static {
    /// Joins the fleet, in the runtime's next life.
    fn register(&self, runtime: RuntimeId, description: Description) -> Answer<Joined>;

    /// Says how busy a runtime is.
    fn heartbeat(&self, by: &Holder, load: Load) -> Answer<Duty>;

    /// Says that a runtime goes, what becomes of its sessions (`None`: an operator empties it, and has said that), and
    /// which it has: what becomes of each is accounted for (NF-016).
    fn begin_drain(
        &self,
        by: &Holder,
        how: Option<Emptying>,
        sessions: Vec<SessionId>,
    ) -> Answer<()>;

    /// Puts down in the audit trail what a runtime removes of its timelines because it is over (F-116). Repeating
    /// it may put it down twice.
    fn tell_removal(&self, by: &Holder, removal: Removal) -> Answer<()>;

    /// Asks for a session. Repeating an attempt gives the same lease.
    fn acquire(&self, ask: Acquire) -> Answer<Granted>;

    /// Renews all that a runtime holds, and itself.
    fn renew(&self, by: &Holder, held: Vec<HeldSession>) -> Answer<Renewed>;

    /// Gives a session up.
    fn release(&self, writer: Writer, leave: Leave) -> Answer<()>;

    /// Values that a session keeps; no keys: all.
    fn load_state(&self, reader: Writer, keys: Vec<String>) -> Answer<BTreeMap<String, Stored>>;

    /// Writes values, all or nothing, if the writer still holds the session. Versions in the order of
    /// the writes.
    fn commit_state(&self, writer: Writer, writes: Vec<Write>) -> Answer<Vec<Version>>;

    /// Says how sessions go. Answers which of them it does not hold.
    fn report_status(&self, by: &Holder, reports: Vec<StatusReport>) -> Answer<Vec<SessionId>>;

    /// Counts tokens that a tenant's language models read and wrote, and answers what stands against more.
    /// Repeating a report counts once.
    fn report_usage(&self, report: UsageReport) -> Answer<Option<Beyond>>;

    /// Counts what a runtime has seen of published versions. Repeating a report, by whom it was first sent, counts
    /// once.
    fn report_readings(&self, by: &Holder, number: u64, counts: Vec<VersionCount>) -> Answer<()>;

    /// Where a session runs: for a client that came to the wrong runtime.
    fn route(&self, ask: RouteAsk) -> Answer<Route>;

    /// A published version.
    fn artifact(&self, kind: Kind, version: String) -> Answer<Artifact>;

    /// Orders to a runtime: first all that wait.
    fn orders(&self, by: &Holder) -> Orders;

    /// Snapshots; of no kind: of all.
    fn snapshots(&self, kinds: Vec<SnapshotKind>) -> Snapshots;
}
