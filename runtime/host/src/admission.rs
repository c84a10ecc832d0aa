//! The door of a node: who is let in, who waits, who is sent away, and what is left behind of it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rspp_actors::Clock;
use rspp_kernel::{
    Gates,
    admission::{
        Admission, AdmissionReport, Ask, Beyond, Cause, Decision, FleetUsage, Limit, Load, Verdict,
        Whose, sheds,
    },
};
use rspp_proto::{
    Epoch, Monotonic, PipelineVersion, Reason, SessionId, TenantId, TurnNumber, WallClock,
    abi::{
        ControlSignal, DecisionOutcome, Emitter, OutcomeKind, OutcomePhase, OutcomeScope, Signal,
        Stamp,
    },
    spec::{LimitsSpec, Priority, QuotasSpec},
};
use rspp_provider_api::fair::{FairQueue, Pushed, Share};
use rspp_timeline::Recorder;
use tokio::sync::{broadcast, oneshot};

use crate::{
    capacity::{CapacityEvent, CapacityKind, OutputLateness},
    schedule::NodeGates,
};

/// Capacity events that are kept, and that a slow subscriber may be behind.
const EVENTS: usize = 256;

/// The door, and what everybody inside shares.
#[derive(Debug)]
pub(crate) struct Gatekeeper {
    clock: Clock,
    admission: Mutex<Admission>,
    /// What the fleet has to count, and says of tenants.
    fleet: Mutex<FleetUsage>,
    /// Newcomers that are kept waiting.
    waiting: Mutex<FairQueue<oneshot::Sender<()>>>,
    load: AtomicU8,
    /// Slots of nodes whose concurrency is limited.
    pub(crate) gates: NodeGates,
    /// How late frames leave.
    pub(crate) output: OutputLateness,
    calls: AtomicUsize,
    /// How often the runtime's own cost was above its budget.
    pub(crate) overhead_alerts: AtomicU64,
    events: Mutex<VecDeque<CapacityEvent>>,
    news: broadcast::Sender<CapacityEvent>,
    /// What was found when turns were to open, of a session that is run again.
    decided: BTreeMap<TurnNumber, Gates>,
}

/// Who wants a session.
#[derive(Clone, Debug)]
pub(crate) struct Newcomer {
    pub(crate) tenant: TenantId,
    pub(crate) session: SessionId,
    pub(crate) version: PipelineVersion,
    pub(crate) priority: Priority,
    pub(crate) can_degrade: bool,
}

/// A session's place; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    gatekeeper: Arc<Gatekeeper>,
    tenant: TenantId,
    version: PipelineVersion,
    priority: Priority,
    can_degrade: bool,
    /// How it was let in.
    pub(crate) decision: Decision,
}

/// A turn's place; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct TurnPlace {
    gatekeeper: Arc<Gatekeeper>,
    tenant: TenantId,
}

/// Why a session was not let in, as evidence and for whoever asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRefused {
    /// The decision.
    pub outcome: DecisionOutcome,
    /// The limit that was reached, and whose it is.
    pub cause: Option<Cause>,
    /// When it makes sense to ask again.
    pub retry_after: Option<Duration>,
}

impl std::fmt::Display for SessionRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            outcome,
            cause,
            retry_after,
        } = self;
        write!(f, "{}: {}", outcome.outcome_kind, outcome.reason)?;
        if let Some(cause) = cause {
            write!(
                f,
                " ({} of the {})",
                cause.limit.as_str(),
                cause.whose.as_str()
            )?;
        }
        if let Some(after) = retry_after {
            write!(f, "; ask again in {} ms", after.as_millis())?;
        }
        Ok(())
    }
}

impl Gatekeeper {
    pub(crate) fn new(
        limits: LimitsSpec,
        clock: Clock,
        decided: BTreeMap<TurnNumber, Gates>,
    ) -> Self {
        let now = Monotonic::from_duration(clock.now());
        Self {
            clock,
            waiting: Mutex::new(FairQueue::new(limits.max_waiting as usize)),
            admission: Mutex::new(Admission::new(limits, now)),
            fleet: Mutex::default(),
            load: AtomicU8::new(Load::Normal as u8),
            gates: NodeGates::default(),
            output: OutputLateness::default(),
            calls: AtomicUsize::new(0),
            overhead_alerts: AtomicU64::new(0),
            events: Mutex::default(),
            news: broadcast::channel(EVENTS).0,
            decided,
        }
    }

    pub(crate) fn now(&self) -> Monotonic {
        Monotonic::from_duration(self.clock.now())
    }

    fn admission(&self) -> MutexGuard<'_, Admission> {
        self.admission.lock().expect("no code panics while locked")
    }

    /// What the fleet has to count, and says of tenants.
    pub(crate) fn fleet(&self) -> MutexGuard<'_, FleetUsage> {
        self.fleet.lock().expect("no code panics while locked")
    }

    // --- sessions ----------------------------------------------------------------------------

    /// Lets a session in, now or once there is room, or says why not.
    pub(crate) async fn enter(self: &Arc<Self>, who: &Newcomer) -> Result<Entry, Decision> {
        let since = self.now();
        loop {
            let decision = self.ask(who, since);
            let Verdict::Throttle { retry_after } = decision.verdict else {
                if !decision.verdict.is_admitted() {
                    return Err(decision);
                }
                return Ok(Entry {
                    gatekeeper: Arc::clone(self),
                    tenant: who.tenant.clone(),
                    version: who.version.clone(),
                    priority: who.priority,
                    can_degrade: who.can_degrade,
                    decision,
                });
            };
            let turned_away = Decision {
                verdict: Verdict::Defer { retry_after },
                ..decision
            };
            let Some(freed) = self.queue(who) else {
                return Err(turned_away);
            };
            let wait = self.wait(decision, retry_after, since);
            tokio::select! {
                biased;
                woken = freed => if woken.is_err() {
                    return Err(turned_away); // Others have waited for less than their share.
                },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn ask(&self, who: &Newcomer, since: Monotonic) -> Decision {
        let now = self.now();
        let ask = Ask {
            tenant: &who.tenant,
            priority: who.priority,
            waited: now.since(since),
            can_degrade: who.can_degrade,
            beyond: None,
        };
        self.admission().open_session(now, ask)
    }

    /// A place in the queue; `None` if there is none.
    fn queue(&self, who: &Newcomer) -> Option<oneshot::Receiver<()>> {
        let share = self.share_of(&who.tenant, who.priority, who.session.as_str());
        let (waiting, freed) = oneshot::channel();
        let mut queue = self.waiting.lock().expect("no code panics while locked");
        queue.retain(|waiting| !waiting.is_closed());
        match queue.push(&share, waiting) {
            // Whoever is displaced learns of it by its channel.
            Pushed::Queued | Pushed::Displaced(_) => Some(freed),
            Pushed::Refused(_) => None,
        }
    }

    /// A place that somebody leaves is announced; what fills up by time is looked at again.
    fn wait(&self, decision: Decision, retry_after: Duration, since: Monotonic) -> Duration {
        let announced = decision.cause.is_some_and(|cause| match cause.limit {
            Limit::Sessions => true,
            Limit::SessionsPerMinute
            | Limit::Turns
            | Limit::TurnsPerMinute
            | Limit::TokensPerMinute
            | Limit::Load => false,
        });
        if !announced {
            return retry_after;
        }
        let max_wait = Duration::from_millis(self.admission().limits().max_wait_ms);
        let left = max_wait.saturating_sub(self.now().since(since));
        left.max(retry_after)
    }

    /// Everybody who waits looks again, in fair order.
    fn announce(&self) {
        let mut queue = self.waiting.lock().expect("no code panics while locked");
        while let Some((grant, waiting)) = queue.pop() {
            queue.give_back(grant);
            let _gone_meanwhile = waiting.send(());
        }
    }

    /// What stays of a session that was not let in: a signal and an outcome in its own recording.
    pub(crate) fn refuse(
        &self,
        who: &Newcomer,
        decision: Decision,
        recorder: &Recorder,
    ) -> SessionRefused {
        let (kind, signal, reason) = match decision.verdict {
            Verdict::Reject => (
                OutcomeKind::Reject,
                Signal::Reject,
                "admission_capacity_reject",
            ),
            Verdict::Admit
            | Verdict::Degrade
            | Verdict::Throttle { .. }
            | Verdict::Defer { .. } => (
                OutcomeKind::Defer,
                Signal::Defer,
                "admission_capacity_defer",
            ),
        };
        let reason = Reason::from_static(reason);
        let at = self.now();
        let mut ordinal = 0;
        let mut stamp = || {
            ordinal += 1;
            Stamp {
                session_id: who.session.clone(),
                turn_id: None,
                pipeline_version: who.version.clone(),
                authority_epoch: Epoch::FIRST,
                ordinal,
                runtime_sequence: ordinal,
                transport_sequence: None,
                at,
                wall: wall(),
            }
        };
        let emitter = Emitter::LocalAdmission;
        let signal = ControlSignal::new(signal, emitter, stamp()).because(reason.clone());
        let scope = scope_of(decision);
        let outcome =
            DecisionOutcome::new(kind, OutcomePhase::PreTurn, scope, emitter, reason, stamp());
        for kept in [recorder.append(signal), recorder.append(outcome.clone())] {
            if let Err(error) = kept {
                tracing::warn!(session_id = %who.session, %error, "evidence was not kept");
            }
        }
        SessionRefused {
            outcome,
            cause: decision.cause,
            retry_after: decision.verdict.retry_after(),
        }
    }

    // --- what happens inside -----------------------------------------------------------------

    /// Tokens that a language model has read and written for a tenant.
    pub(crate) fn spend_tokens(&self, tenant: &TenantId, version: &PipelineVersion, tokens: u64) {
        let now = self.now();
        self.admission().spend_tokens(now, tenant, tokens);
        self.fleet().spend(now, tenant, version, tokens);
    }

    /// Work of a tenant was shed.
    pub(crate) fn count_shed(&self, tenant: &TenantId) {
        self.admission().count_shed(tenant);
    }

    /// A provider call that is under way until the guard is dropped.
    pub(crate) fn call(self: &Arc<Self>) -> CallUnderWay {
        self.calls.fetch_add(1, Ordering::Relaxed);
        CallUnderWay(Arc::clone(self))
    }

    /// Provider calls under way.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// Sessions that are open.
    pub(crate) fn sessions(&self) -> usize {
        self.admission().sessions() as usize
    }

    /// What was decided so far.
    pub(crate) fn report(&self) -> AdmissionReport {
        self.admission().report()
    }

    /// The limits in force.
    pub(crate) fn limits(&self) -> LimitsSpec {
        self.admission().limits().clone()
    }

    /// How a tenant shares what many want.
    pub(crate) fn share_of(&self, tenant: &TenantId, priority: Priority, member: &str) -> Share {
        let admission = self.admission();
        let QuotasSpec { weight, slots, .. } = *admission.quotas(tenant);
        let some = |number: Option<u32>| number.and_then(std::num::NonZeroU32::new);
        Share {
            priority,
            weight: some(weight).unwrap_or(std::num::NonZeroU32::MIN),
            slots: some(slots),
            ..Share::new(tenant.as_str(), member)
        }
    }

    // --- load --------------------------------------------------------------------------------

    /// How loaded the node is; one atomic load.
    pub(crate) fn load(&self) -> Load {
        match self.load.load(Ordering::Relaxed) {
            0 => Load::Normal,
            1 => Load::High,
            _ => Load::Severe,
        }
    }

    /// Whether work of that class is to be shed where it is scheduled.
    pub(crate) fn sheds(&self, priority: Priority) -> bool {
        priority == Priority::Background && sheds(self.load(), priority)
    }

    pub(crate) fn set_load(&self, load: Load) {
        self.load.store(load as u8, Ordering::Relaxed);
        self.admission().set_load(load);
        if load == Load::Normal {
            self.announce();
        }
    }

    /// Says what has become of the node's capacity.
    pub(crate) fn say(&self, kind: CapacityKind) {
        let event = CapacityEvent {
            at: self.now(),
            kind,
        };
        match kind {
            CapacityKind::Load(change) => tracing::warn!(
                from = change.from.as_str(),
                to = change.to.as_str(),
                resource = change.resource.as_str(),
                value = change.value,
                "the load became another"
            ),
            CapacityKind::OverheadAboveBudget { p99_us, budget_us } => {
                tracing::warn!(
                    p99_us,
                    budget_us,
                    "the runtime's own cost is above its budget"
                );
            }
            CapacityKind::OverheadWithinBudget { p99_us } => {
                tracing::warn!(p99_us, "the runtime's own cost is within its budget again");
            }
        }
        let mut events = self.events.lock().expect("no code panics while locked");
        if events.len() == EVENTS {
            events.pop_front();
        }
        events.push_back(event);
        let _nobody_listens = self.news.send(event);
    }

    /// The newest capacity events, oldest first.
    pub(crate) fn events(&self) -> Vec<CapacityEvent> {
        let events = self.events.lock().expect("no code panics while locked");
        events.iter().copied().collect()
    }

    /// Capacity events from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<CapacityEvent> {
        self.news.subscribe()
    }
}

/// Whom a decision is about: the tenant whose quota it is, or the session that asked.
pub(crate) fn scope_of(decision: Decision) -> OutcomeScope {
    match decision.cause.map(|cause| cause.whose) {
        Some(Whose::Tenant) => OutcomeScope::Tenant,
        Some(Whose::Node) | None => OutcomeScope::Session,
    }
}

pub(crate) fn wall() -> WallClock {
    std::time::SystemTime::now().into()
}

impl Entry {
    pub(crate) fn gatekeeper(&self) -> &Arc<Gatekeeper> {
        &self.gatekeeper
    }

    pub(crate) fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// It was let in with less, by others.
    pub(crate) fn degrade(&mut self) {
        if self.can_degrade {
            self.decision.verdict = Verdict::Degrade;
        }
    }

    pub(crate) fn priority(&self) -> Priority {
        self.priority
    }

    pub(crate) fn version(&self) -> &PipelineVersion {
        &self.version
    }

    /// What the fleet says stands against more turns.
    fn beyond(&self, now: Monotonic) -> Option<Beyond> {
        let fleet = self.gatekeeper.fleet();
        fleet.beyond(now, &self.tenant, &self.version)
    }

    /// Whether one more turn would be let in with everything; nothing is taken or counted for asking.
    pub(crate) fn has_room(&self, now: Monotonic) -> bool {
        let ask = Ask {
            tenant: &self.tenant,
            priority: self.priority,
            waited: Duration::ZERO,
            can_degrade: self.can_degrade,
            beyond: self.beyond(now),
        };
        self.decision.verdict == Verdict::Admit && self.gatekeeper.admission().has_room(now, ask)
    }

    /// What was found when the turn was to open before, in a session that is run again.
    pub(crate) fn before(&self, turn: TurnNumber) -> Option<Gates> {
        self.gatekeeper.decided.get(&turn).copied()
    }

    /// Decides about one more turn of the session; with a place for it if it is let in.
    pub(crate) fn turn(
        &self,
        turn: TurnNumber,
        now: Monotonic,
        waited: Duration,
    ) -> (Decision, Option<TurnPlace>) {
        let ask = Ask {
            tenant: &self.tenant,
            priority: self.priority,
            waited,
            can_degrade: self.can_degrade,
            beyond: self.beyond(now),
        };
        let mut decision = self.gatekeeper.admission().open_turn(now, ask);
        // Who was let in with less is served with less for as long as it stays.
        if decision.verdict == Verdict::Admit && self.decision.verdict == Verdict::Degrade {
            decision = self.decision;
        }
        // Who was there beside it, and took what it went without, is there no more.
        if let Some(Gates { admission, .. }) = self.before(turn)
            && decision.verdict.is_admitted()
        {
            if !admission.verdict.is_admitted() {
                self.gatekeeper.admission().close_turn(&self.tenant);
            }
            decision = admission;
        }
        let place = decision.verdict.is_admitted().then(|| TurnPlace {
            gatekeeper: Arc::clone(&self.gatekeeper),
            tenant: self.tenant.clone(),
        });
        (decision, place)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.gatekeeper.admission().close_session(&self.tenant);
        self.gatekeeper.announce();
    }
}

impl Drop for TurnPlace {
    fn drop(&mut self) {
        self.gatekeeper.admission().close_turn(&self.tenant);
    }
}

/// A provider call under way.
#[derive(Debug)]
pub(crate) struct CallUnderWay(Arc<Gatekeeper>);

impl Drop for CallUnderWay {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}
