//! Between messages and our own types. What comes in is checked field by field and refused, never
//! repaired.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use rspp_proto::{
    Epoch, LeaseToken, RuntimeId, SessionId, WallClock,
    control::{
        Attempt, Binding, Description, Emptying, Endpoint, Holder, Incarnation, Kind, Load,
        MAX_OUTAGES, MAX_REMOVED, Outage, ProtocolWindow, Removal, RemovalStep, SessionPhase,
        WhyRevoked,
    },
    reading::VersionCount,
    spec::{Modality, OverLimit},
};
use thiserror::Error;

use crate::{
    Acquire, Artifact, Beyond, Granted, HeldSession, Joined, Lost, Order, Renewed, Revocation,
    Route, RouteAsk, SessionToken, Snapshot, SnapshotKind, SnapshotUpdate, StatusReport, Stored,
    Version, Wanted, Write, Writer, wire,
};

/// Longest name of a recording, in bytes.
const MAX_RECORDING: usize = 512;
/// Longest reason why one is not removed, in bytes.
const MAX_WHY: usize = 1_024;

/// A field that is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{field}` {problem}")]
pub struct WireError {
    /// Which.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl WireError {
    /// A field, and what is wrong with it.
    pub fn new(field: &'static str, problem: impl fmt::Display) -> Self {
        Self {
            field,
            problem: problem.to_string(),
        }
    }

    fn missing(field: &'static str) -> Self {
        Self::new(field, "is missing")
    }
}

/// An id, a name, a hash: whatever is read from text.
pub fn text<T: FromStr<Err: ToString>>(field: &'static str, text: &str) -> Result<T, WireError> {
    text.parse()
        .map_err(|error: T::Err| WireError::new(field, format!("is wrong: {}", error.to_string())))
}

/// The same, where no text is nothing.
pub fn optional<T: FromStr<Err: ToString>>(
    field: &'static str,
    value: &str,
) -> Result<Option<T>, WireError> {
    if value.is_empty() {
        Ok(None)
    } else {
        text(field, value).map(Some)
    }
}

fn some(value: String) -> Option<String> {
    (!value.is_empty()).then_some(value)
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or_else(|| WireError::missing(field))
}

fn epoch(field: &'static str, number: u64) -> Result<Epoch, WireError> {
    Epoch::new(number).ok_or_else(|| WireError::new(field, "is 0, which is no epoch"))
}

fn proof(token: String) -> Result<LeaseToken, WireError> {
    LeaseToken::new(token).map_err(|error| WireError::new("proof", error))
}

/// A length of time as messages have it.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn all<A, B: TryFrom<A, Error = WireError>>(values: Vec<A>) -> Result<Vec<B>, WireError> {
    values.into_iter().map(B::try_from).collect()
}

impl From<&Holder> for wire::Holder {
    fn from(holder: &Holder) -> Self {
        Self {
            runtime: holder.runtime.to_string(),
            incarnation: holder.incarnation.get(),
        }
    }
}

impl TryFrom<wire::Holder> for Holder {
    type Error = WireError;

    fn try_from(holder: wire::Holder) -> Result<Self, WireError> {
        Ok(Self {
            runtime: text("runtime", &holder.runtime)?,
            incarnation: Incarnation::new(holder.incarnation)
                .ok_or_else(|| WireError::new("incarnation", "is 0, which is none"))?,
        })
    }
}

impl wire::Holder {
    /// The holder that must be named.
    pub fn required(by: Option<Self>) -> Result<Holder, WireError> {
        required("by", by)?.try_into()
    }
}

impl From<Endpoint> for wire::Endpoint {
    fn from(endpoint: Endpoint) -> Self {
        Self {
            transport: endpoint.transport,
            url: endpoint.url,
        }
    }
}

impl From<wire::Endpoint> for Endpoint {
    fn from(endpoint: wire::Endpoint) -> Self {
        Self {
            transport: endpoint.transport,
            url: endpoint.url,
        }
    }
}

impl From<VersionCount> for wire::VersionCount {
    fn from(count: VersionCount) -> Self {
        Self {
            kind: wire::Kind::from(count.kind).into(),
            version: count.version,
            sessions: count.sessions,
            failed: count.failed,
            first_audio: count.first_audio,
        }
    }
}

impl TryFrom<wire::VersionCount> for VersionCount {
    type Error = WireError;

    fn try_from(count: wire::VersionCount) -> Result<Self, WireError> {
        Ok(Self {
            kind: count.kind().try_into()?,
            version: count.version,
            sessions: count.sessions,
            failed: count.failed,
            first_audio: count.first_audio,
        })
    }
}

impl From<Beyond> for wire::BeyondTokens {
    fn from(beyond: Beyond) -> Self {
        Self {
            over: beyond.over.as_str().to_owned(),
            for_ms: millis(beyond.wait),
        }
    }
}

impl TryFrom<wire::BeyondTokens> for Beyond {
    type Error = WireError;

    fn try_from(beyond: wire::BeyondTokens) -> Result<Self, WireError> {
        let named = |it: &OverLimit| it.as_str() == beyond.over;
        let over = OverLimit::ALL.into_iter().find(named).ok_or_else(|| {
            let nothing = format!("`{}` is nothing that is done", beyond.over);
            WireError::new("over", nothing)
        })?;
        Ok(Self {
            over,
            wait: Duration::from_millis(beyond.for_ms),
        })
    }
}

impl From<Kind> for wire::Kind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Pipeline => Self::Pipeline,
            Kind::Policy => Self::Policy,
            Kind::Providers => Self::Providers,
            Kind::Limits => Self::Limits,
        }
    }
}

impl TryFrom<wire::Kind> for Kind {
    type Error = WireError;

    fn try_from(kind: wire::Kind) -> Result<Self, WireError> {
        match kind {
            wire::Kind::Unspecified => Err(WireError::missing("kind")),
            wire::Kind::Pipeline => Ok(Self::Pipeline),
            wire::Kind::Policy => Ok(Self::Policy),
            wire::Kind::Providers => Ok(Self::Providers),
            wire::Kind::Limits => Ok(Self::Limits),
        }
    }
}

impl From<WhyRevoked> for wire::WhyRevoked {
    fn from(why: WhyRevoked) -> Self {
        match why {
            WhyRevoked::Transfer => Self::Transfer,
            WhyRevoked::Drain => Self::Drain,
            WhyRevoked::Region => Self::Region,
            WhyRevoked::Operator => Self::Operator,
        }
    }
}

impl TryFrom<wire::WhyRevoked> for WhyRevoked {
    type Error = WireError;

    fn try_from(why: wire::WhyRevoked) -> Result<Self, WireError> {
        match why {
            wire::WhyRevoked::Unspecified => Err(WireError::missing("why")),
            wire::WhyRevoked::Transfer => Ok(Self::Transfer),
            wire::WhyRevoked::Drain => Ok(Self::Drain),
            wire::WhyRevoked::Region => Ok(Self::Region),
            wire::WhyRevoked::Operator => Ok(Self::Operator),
        }
    }
}

impl From<SessionPhase> for wire::SessionPhase {
    fn from(phase: SessionPhase) -> Self {
        match phase {
            SessionPhase::Connected => Self::Connected,
            SessionPhase::Running => Self::Running,
            SessionPhase::Degraded => Self::Degraded,
            SessionPhase::Waiting => Self::Waiting,
            SessionPhase::Ended => Self::Ended,
        }
    }
}

impl TryFrom<wire::SessionPhase> for SessionPhase {
    type Error = WireError;

    fn try_from(phase: wire::SessionPhase) -> Result<Self, WireError> {
        match phase {
            wire::SessionPhase::Unspecified => Err(WireError::missing("phase")),
            wire::SessionPhase::Connected => Ok(Self::Connected),
            wire::SessionPhase::Running => Ok(Self::Running),
            wire::SessionPhase::Degraded => Ok(Self::Degraded),
            wire::SessionPhase::Waiting => Ok(Self::Waiting),
            wire::SessionPhase::Ended => Ok(Self::Ended),
        }
    }
}

impl From<SnapshotKind> for wire::SnapshotKind {
    fn from(kind: SnapshotKind) -> Self {
        match kind {
            SnapshotKind::RoutingView => Self::RoutingView,
            SnapshotKind::VersionResolution => Self::VersionResolution,
            SnapshotKind::Governance => Self::Governance,
            SnapshotKind::Keyring => Self::Keyring,
        }
    }
}

impl TryFrom<wire::SnapshotKind> for SnapshotKind {
    type Error = WireError;

    fn try_from(kind: wire::SnapshotKind) -> Result<Self, WireError> {
        match kind {
            wire::SnapshotKind::Unspecified => Err(WireError::missing("kind")),
            wire::SnapshotKind::RoutingView => Ok(Self::RoutingView),
            wire::SnapshotKind::VersionResolution => Ok(Self::VersionResolution),
            wire::SnapshotKind::Governance => Ok(Self::Governance),
            wire::SnapshotKind::Keyring => Ok(Self::Keyring),
        }
    }
}

impl From<Description> for wire::Description {
    fn from(description: Description) -> Self {
        Self {
            region: description.region.to_string(),
            endpoints: description.endpoints.into_iter().map(Into::into).collect(),
            capacity: description.capacity,
            build: description.build,
            oldest_protocol: description.protocol.oldest,
            newest_protocol: description.protocol.newest,
            events: description.events,
            labels: description.labels,
        }
    }
}

impl TryFrom<wire::Description> for Description {
    type Error = WireError;

    fn try_from(description: wire::Description) -> Result<Self, WireError> {
        Ok(Self {
            region: text("region", &description.region)?,
            endpoints: description.endpoints.into_iter().map(Into::into).collect(),
            capacity: description.capacity,
            build: description.build,
            protocol: ProtocolWindow {
                oldest: description.oldest_protocol,
                newest: description.newest_protocol,
            },
            events: description.events,
            labels: description.labels,
        })
    }
}

impl From<Outage> for wire::Outage {
    fn from(outage: Outage) -> Self {
        Self {
            modality: outage.modality.as_str().to_owned(),
            provider: outage.provider.to_string(),
            alternate: outage
                .alternate
                .map_or_else(String::new, |it| it.to_string()),
        }
    }
}

impl TryFrom<wire::Outage> for Outage {
    type Error = WireError;

    fn try_from(outage: wire::Outage) -> Result<Self, WireError> {
        let modality = Modality::from_name(&outage.modality);
        Ok(Self {
            modality: modality.ok_or_else(|| WireError::new("modality", "is unknown"))?,
            provider: text("provider", &outage.provider)?,
            alternate: optional("alternate", &outage.alternate)?,
        })
    }
}

impl From<Emptying> for wire::DrainHow {
    fn from(how: Emptying) -> Self {
        match how {
            Emptying::Move => Self::Move,
            Emptying::Finish => Self::Finish,
            Emptying::Wait => Self::Wait,
        }
    }
}

impl TryFrom<wire::DrainHow> for Emptying {
    type Error = WireError;

    fn try_from(how: wire::DrainHow) -> Result<Self, WireError> {
        match how {
            wire::DrainHow::Unspecified => Err(WireError::missing("how")),
            wire::DrainHow::Move => Ok(Self::Move),
            wire::DrainHow::Finish => Ok(Self::Finish),
            wire::DrainHow::Wait => Ok(Self::Wait),
        }
    }
}

impl From<RemovalStep> for wire::RemovalStep {
    fn from(step: RemovalStep) -> Self {
        match step {
            RemovalStep::Planned => Self::Planned,
            RemovalStep::Done => Self::Done,
            RemovalStep::Failed => Self::Failed,
        }
    }
}

impl TryFrom<wire::RemovalStep> for RemovalStep {
    type Error = WireError;

    fn try_from(step: wire::RemovalStep) -> Result<Self, WireError> {
        match step {
            wire::RemovalStep::Unspecified => Err(WireError::missing("step")),
            wire::RemovalStep::Planned => Ok(Self::Planned),
            wire::RemovalStep::Done => Ok(Self::Done),
            wire::RemovalStep::Failed => Ok(Self::Failed),
        }
    }
}

impl TryFrom<wire::NoteRemovalRequest> for Removal {
    type Error = WireError;

    fn try_from(message: wire::NoteRemovalRequest) -> Result<Self, WireError> {
        let step = message.step().try_into()?;
        let count = message.recordings.len();
        if count == 0 || count > MAX_REMOVED {
            let problem = format!("are {count}: 1 to {MAX_REMOVED} are taken");
            return Err(WireError::new("recordings", problem));
        }
        if let Some(name) = message.recordings.iter().find(|it| !is_recording(it)) {
            let name: String = name.chars().take(64).collect();
            return Err(WireError::new(
                "recordings",
                format!("has {name:?}, which is not `tenant/session/…`"),
            ));
        }
        if message.why.len() > MAX_WHY {
            return Err(WireError::new("why", "is too long"));
        }
        Ok(Self {
            step,
            recordings: message.recordings,
            why: message.why,
        })
    }
}

/// Whether something can be the name of a recording.
fn is_recording(name: &str) -> bool {
    let mut parts = name.split('/');
    let (tenant, session) = (parts.next(), parts.next());
    let is_some = |part: Option<&str>| part.is_some_and(|it| !it.is_empty());
    name.len() <= MAX_RECORDING && is_some(tenant) && is_some(session)
}

impl From<Load> for wire::Load {
    fn from(load: Load) -> Self {
        Self {
            sessions: load.sessions,
            cpu_percent: u32::from(load.cpu_percent),
            ready: load.ready,
            overloaded: load.overloaded,
            outages: load.outages.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::Load> for Load {
    type Error = WireError;

    fn try_from(load: wire::Load) -> Result<Self, WireError> {
        let cpu_percent = u8::try_from(load.cpu_percent)
            .ok()
            .filter(|percent| *percent <= 100)
            .ok_or_else(|| WireError::new("cpu_percent", "is more than all"))?;
        if load.outages.len() > MAX_OUTAGES {
            return Err(WireError::new("outages", "are too many"));
        }
        let outages = load.outages.into_iter().map(Outage::try_from);
        Ok(Self {
            sessions: load.sessions,
            cpu_percent,
            ready: load.ready,
            overloaded: load.overloaded,
            outages: outages.collect::<Result<_, _>>()?,
        })
    }
}

impl From<Binding> for wire::Binding {
    fn from(binding: Binding) -> Self {
        Self {
            tenant: binding.tenant.to_string(),
            pipeline: binding.pipeline.to_string(),
            policy: binding.policy.unwrap_or_default(),
            providers: binding.providers.unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::Binding> for Binding {
    type Error = WireError;

    fn try_from(binding: wire::Binding) -> Result<Self, WireError> {
        Ok(Self {
            tenant: text("tenant", &binding.tenant)?,
            pipeline: text("pipeline", &binding.pipeline)?,
            policy: some(binding.policy),
            providers: some(binding.providers),
        })
    }
}

impl From<Wanted> for wire::Binding {
    fn from(wanted: Wanted) -> Self {
        Self {
            tenant: wanted.tenant.to_string(),
            pipeline: wanted
                .pipeline
                .map_or_else(String::new, |it| it.to_string()),
            policy: wanted.policy.unwrap_or_default(),
            providers: wanted.providers.unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::Binding> for Wanted {
    type Error = WireError;

    fn try_from(binding: wire::Binding) -> Result<Self, WireError> {
        Ok(Self {
            tenant: text("tenant", &binding.tenant)?,
            pipeline: optional("pipeline", &binding.pipeline)?,
            policy: some(binding.policy),
            providers: some(binding.providers),
        })
    }
}

impl From<Joined> for wire::RegisterResponse {
    fn from(joined: Joined) -> Self {
        Self {
            holder: Some((&joined.holder).into()),
            ttl_ms: millis(joined.ttl),
            heartbeat_ms: millis(joined.heartbeat),
            protocol: joined.protocol,
        }
    }
}

impl TryFrom<wire::RegisterResponse> for Joined {
    type Error = WireError;

    fn try_from(answer: wire::RegisterResponse) -> Result<Self, WireError> {
        Ok(Self {
            holder: required("holder", answer.holder)?.try_into()?,
            ttl: Duration::from_millis(answer.ttl_ms),
            heartbeat: Duration::from_millis(answer.heartbeat_ms),
            protocol: answer.protocol,
        })
    }
}

impl From<Acquire> for wire::AcquireRequest {
    fn from(ask: Acquire) -> Self {
        Self {
            by: Some((&ask.by).into()),
            attempt: ask.attempt.0,
            session: ask.session.to_string(),
            binding: Some(ask.wanted.into()),
        }
    }
}

impl TryFrom<wire::AcquireRequest> for Acquire {
    type Error = WireError;

    fn try_from(request: wire::AcquireRequest) -> Result<Self, WireError> {
        if request.attempt == 0 {
            return Err(WireError::missing("attempt"));
        }
        Ok(Self {
            by: required("by", request.by)?.try_into()?,
            attempt: Attempt(request.attempt),
            session: text("session", &request.session)?,
            wanted: required("binding", request.binding)?.try_into()?,
        })
    }
}

impl From<Granted> for wire::Lease {
    fn from(granted: Granted) -> Self {
        Self {
            session: granted.session.to_string(),
            epoch: granted.epoch.get(),
            proof: granted.proof.expose().to_owned(),
            ttl_ms: millis(granted.ttl),
            taken_over: granted.taken_over,
            binding: Some(granted.binding.into()),
            degraded: granted.degraded,
            resumed: granted.resumed,
        }
    }
}

impl TryFrom<wire::Lease> for Granted {
    type Error = WireError;

    fn try_from(lease: wire::Lease) -> Result<Self, WireError> {
        Ok(Self {
            session: text("session", &lease.session)?,
            epoch: epoch("epoch", lease.epoch)?,
            proof: proof(lease.proof)?,
            ttl: Duration::from_millis(lease.ttl_ms),
            taken_over: lease.taken_over,
            resumed: lease.resumed,
            degraded: lease.degraded,
            binding: required("binding", lease.binding)?.try_into()?,
        })
    }
}

impl From<HeldSession> for wire::HeldSession {
    fn from(held: HeldSession) -> Self {
        Self {
            session: held.session.to_string(),
            epoch: held.epoch.get(),
            prove: held.prove,
        }
    }
}

impl TryFrom<wire::HeldSession> for HeldSession {
    type Error = WireError;

    fn try_from(held: wire::HeldSession) -> Result<Self, WireError> {
        Ok(Self {
            session: text("session", &held.session)?,
            epoch: epoch("epoch", held.epoch)?,
            prove: held.prove,
        })
    }
}

impl From<Revocation> for wire::Revocation {
    fn from(revocation: Revocation) -> Self {
        Self {
            session: revocation.session.to_string(),
            epoch: revocation.epoch.get(),
            why: wire::WhyRevoked::from(revocation.why).into(),
            finish_within_ms: millis(revocation.finish_within),
            to: revocation.to.map_or_else(String::new, |to| to.to_string()),
        }
    }
}

impl TryFrom<wire::Revocation> for Revocation {
    type Error = WireError;

    fn try_from(revocation: wire::Revocation) -> Result<Self, WireError> {
        let why = revocation.why();
        Ok(Self {
            session: text("session", &revocation.session)?,
            epoch: epoch("epoch", revocation.epoch)?,
            why: why.try_into()?,
            finish_within: Duration::from_millis(revocation.finish_within_ms),
            to: optional("to", &revocation.to)?,
        })
    }
}

impl From<Lost> for wire::LostSession {
    fn from(lost: Lost) -> Self {
        Self {
            session: lost.session.to_string(),
            newest: lost.newest.map_or(0, Epoch::get),
        }
    }
}

impl TryFrom<wire::LostSession> for Lost {
    type Error = WireError;

    fn try_from(lost: wire::LostSession) -> Result<Self, WireError> {
        Ok(Self {
            session: text("session", &lost.session)?,
            newest: Epoch::new(lost.newest),
        })
    }
}

impl From<Renewed> for wire::RenewResponse {
    fn from(renewed: Renewed) -> Self {
        let proofs = renewed.proofs.into_iter();
        Self {
            ttl_ms: millis(renewed.ttl),
            revoked: renewed.revoked.into_iter().map(Into::into).collect(),
            lost: renewed.lost.into_iter().map(Into::into).collect(),
            proofs: proofs
                .map(|(session, proof)| wire::Proof {
                    session: session.to_string(),
                    proof: proof.expose().to_owned(),
                })
                .collect(),
        }
    }
}

impl TryFrom<wire::RenewResponse> for Renewed {
    type Error = WireError;

    fn try_from(answer: wire::RenewResponse) -> Result<Self, WireError> {
        let prove = |it: wire::Proof| Ok((text("session", &it.session)?, proof(it.proof)?));
        Ok(Self {
            ttl: Duration::from_millis(answer.ttl_ms),
            revoked: all(answer.revoked)?,
            lost: all(answer.lost)?,
            proofs: answer
                .proofs
                .into_iter()
                .map(prove)
                .collect::<Result<_, WireError>>()?,
        })
    }
}

impl Writer {
    /// Who writes, as several requests name it.
    pub fn from_wire(
        by: Option<wire::Holder>,
        session: &str,
        number: u64,
    ) -> Result<Self, WireError> {
        Ok(Self {
            by: required("by", by)?.try_into()?,
            session: text("session", session)?,
            epoch: epoch("epoch", number)?,
        })
    }
}

impl From<Write> for wire::StateWrite {
    fn from(write: Write) -> Self {
        Self {
            key: write.key,
            value: write.value.to_string(),
            expected: write.expected.map(|version| version.0),
        }
    }
}

impl From<wire::StateWrite> for Write {
    fn from(write: wire::StateWrite) -> Self {
        Self {
            key: write.key,
            value: write.value.into(),
            expected: write.expected.map(Version),
        }
    }
}

impl wire::StateValue {
    /// A value as it is stored.
    pub fn of(key: String, stored: &Stored) -> Self {
        Self {
            key,
            value: stored.value.to_string(),
            version: stored.version.0,
            epoch: stored.epoch.get(),
        }
    }
}

/// Values by their keys.
pub(crate) fn values(values: Vec<wire::StateValue>) -> Result<BTreeMap<String, Stored>, WireError> {
    let stored = |it: wire::StateValue| {
        let stored = Stored {
            value: it.value.into(),
            version: Version(it.version),
            epoch: epoch("epoch", it.epoch)?,
        };
        Ok((it.key, stored))
    };
    values.into_iter().map(stored).collect()
}

impl From<StatusReport> for wire::StatusReport {
    fn from(report: StatusReport) -> Self {
        Self {
            session: report.session.to_string(),
            epoch: report.epoch.get(),
            phase: wire::SessionPhase::from(report.phase).into(),
            reason: report.reason.unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::StatusReport> for StatusReport {
    type Error = WireError;

    fn try_from(report: wire::StatusReport) -> Result<Self, WireError> {
        let phase = report.phase();
        Ok(Self {
            session: text("session", &report.session)?,
            epoch: epoch("epoch", report.epoch)?,
            phase: phase.try_into()?,
            reason: some(report.reason),
        })
    }
}

impl From<Order> for wire::Order {
    fn from(order: Order) -> Self {
        use wire::order::Order as It;
        let order = match order {
            Order::Drain => It::Drain(wire::Drain {}),
            Order::Serve => It::Serve(wire::Serve {}),
            Order::Revoke(revocation) => It::Revoke(revocation.into()),
            Order::Settled => It::Settled(wire::Settled {}),
        };
        Self { order: Some(order) }
    }
}

impl TryFrom<wire::Order> for Order {
    type Error = WireError;

    fn try_from(order: wire::Order) -> Result<Self, WireError> {
        use wire::order::Order as It;
        Ok(match required("order", order.order)? {
            It::Drain(wire::Drain {}) => Self::Drain,
            It::Serve(wire::Serve {}) => Self::Serve,
            It::Revoke(revocation) => Self::Revoke(revocation.try_into()?),
            It::Settled(wire::Settled {}) => Self::Settled,
        })
    }
}

impl From<SnapshotUpdate> for wire::SnapshotUpdate {
    fn from(update: SnapshotUpdate) -> Self {
        Self {
            snapshot: update.snapshot.map(|it| wire::Snapshot {
                kind: wire::SnapshotKind::from(it.kind).into(),
                name: it.name,
                revision: it.revision,
                document: it.document.to_string(),
            }),
            age_ms: millis(update.age),
        }
    }
}

impl TryFrom<wire::SnapshotUpdate> for SnapshotUpdate {
    type Error = WireError;

    fn try_from(update: wire::SnapshotUpdate) -> Result<Self, WireError> {
        let snapshot = |it: wire::Snapshot| {
            let kind = it.kind();
            Ok(Snapshot {
                kind: kind.try_into()?,
                name: it.name,
                revision: it.revision,
                document: it.document.into(),
            })
        };
        Ok(Self {
            snapshot: update.snapshot.map(snapshot).transpose()?,
            age: Duration::from_millis(update.age_ms),
        })
    }
}

impl From<RouteAsk> for wire::RouteRequest {
    fn from(ask: RouteAsk) -> Self {
        let latencies = ask.latencies_ms.into_iter();
        let seconds = ask.token_ttl.map_or(0, |ttl| ttl.as_secs());
        Self {
            tenant: ask.tenant.to_string(),
            session: ask.session.to_string(),
            transport: ask.transport,
            pipeline: ask.pipeline.unwrap_or_default(),
            latencies_ms: latencies.map(|(at, ms)| (at.to_string(), ms)).collect(),
            needs: ask.needs,
            except: ask.except.iter().map(ToString::to_string).collect(),
            token_ttl_seconds: u32::try_from(seconds).unwrap_or(u32::MAX),
        }
    }
}

impl TryFrom<wire::RouteRequest> for RouteAsk {
    type Error = WireError;

    fn try_from(request: wire::RouteRequest) -> Result<Self, WireError> {
        let latency = |(at, ms): (String, u32)| Ok((text("latencies_ms", &at)?, ms));
        let latencies = request.latencies_ms.into_iter().map(latency);
        let except = request.except.iter().map(|it| text("except", it));
        if request.transport.is_empty() {
            return Err(WireError::missing("transport"));
        }
        Ok(Self {
            tenant: text("tenant", &request.tenant)?,
            session: text("session", &request.session)?,
            transport: request.transport,
            pipeline: some(request.pipeline),
            latencies_ms: latencies.collect::<Result<_, WireError>>()?,
            needs: request.needs,
            except: except.collect::<Result<_, WireError>>()?,
            token_ttl: (request.token_ttl_seconds > 0)
                .then(|| Duration::from_secs(u64::from(request.token_ttl_seconds))),
        })
    }
}

impl TryFrom<wire::Route> for Route {
    type Error = WireError;

    fn try_from(route: wire::Route) -> Result<Self, WireError> {
        let token = required("token", route.token)?;
        Ok(Self {
            endpoint: required("endpoint", route.endpoint)?.into(),
            runtime: text::<RuntimeId>("runtime", &route.runtime)?,
            region: text("region", &route.region)?,
            pipeline: text("pipeline", &route.pipeline)?,
            token: SessionToken {
                token: token.token,
                id: token.id,
                expires: WallClock(token.expires_at_ms),
            },
            epoch: Epoch::new(route.epoch),
            routing_view: route.routing_view_snapshot,
            version_resolution: route.version_resolution_snapshot,
            admission_policy: route.decision.map_or_else(String::new, |it| it.snapshot),
        })
    }
}

impl TryFrom<wire::Artifact> for Artifact {
    type Error = WireError;

    fn try_from(artifact: wire::Artifact) -> Result<Self, WireError> {
        let kind = artifact.kind();
        Ok(Self {
            kind: kind.try_into()?,
            version: artifact.version,
            hash: artifact.hash,
            source: artifact.source,
        })
    }
}

/// Sessions by their ids.
pub(crate) fn sessions(ids: &[String]) -> Result<Vec<SessionId>, WireError> {
    ids.iter().map(|id| text("session", id)).collect()
}
