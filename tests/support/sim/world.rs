//! Plays a scenario: real actors on one thread and a paused clock, looked at after every step.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use rspp_controlplane_api::{Leases, LocalLeases};
use rspp_host::{
    CancelTarget, Config, Notice, OpenError, Pools, Runtime, SessionHandle, SessionRequest,
    report::SessionReport,
};
use rspp_kernel::{CancelReason, SessionState, invariant, plan::ResolvedTurnPlan};
use rspp_proto::{
    Epoch, EventId, InvocationId, Monotonic, NodeId, SessionId, TenantId, WallClock,
    abi::Signal,
    spec::{PipelineSpec, Quota, RecordingLevel},
};
use rspp_timeline::{
    Capacity, CloseError, Entry, FileHeader, MemoryRecording, Options, Recorder, Recording, Report,
    Room, Timeline,
    verify::{Rule, Verifier, Violation},
};
use tokio::{
    sync::broadcast,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Broken, DiskFault, Invariant, LineFault, Order, Piece, Scenario, Tally,
    disk::Platter,
    line::{self, Script},
    pipeline::{self, Stage},
    providers::{self, Cast, Watches},
    watch::{Trace, Watch, number},
};

/// Between two looks at everything.
const STEP: Duration = Duration::from_millis(20);
/// The longest that an order may wait for its answer.
const ANSWERED_WITHIN: Duration = Duration::from_millis(100);
/// The longest that a session may live on after its user has hung up.
const OVER_WITHIN: Duration = Duration::from_secs(2);

/// A bug that is planted between the runtime and those who look on, to see that they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// A sink plays a frame of a turn that was cleared.
    FrameAfterFence,
    /// A frame is played twice.
    FrameTwice,
    /// A provider's stream is kept alive.
    StreamLeft,
    /// The recording forgets how the last turn ended.
    TerminalForgotten,
    /// The recording loses the evidence of a turn.
    EvidenceForgotten,
    /// More is said to have been heard than was said.
    HeardTooMuch,
    /// An order is never answered.
    OrderUnanswered,
    /// A turn ends twice.
    EndsTwice,
    /// A recorded plan is changed.
    PlanChanged,
    /// A session's end is not told.
    EndUntold,
}

/// How a scenario went.
#[derive(Clone, Debug)]
pub struct Played {
    /// Over everything that was said, played, recorded and reported.
    pub hash: u64,
    /// What did not hold.
    pub broken: Vec<Broken>,
    /// What was covered.
    pub tally: Tally,
    /// What happened, line by line, if that was asked for.
    pub lines: Vec<String>,
}

/// Plays a scenario to its end.
pub fn play(scenario: &Scenario, plant: Option<Plant>, keep_lines: bool) -> Played {
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a thread can have a runtime");
    let trace = tokio.block_on(async {
        let trace = Trace::new(keep_lines);
        Box::pin(World::play(scenario, plant, &trace)).await;
        trace
    });
    drop(tokio);
    let mut state = trace.lock();
    let (hash, lines) = state.finish();
    Played {
        hash,
        broken: std::mem::take(&mut state.broken),
        tally: std::mem::take(&mut state.tally),
        lines,
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn plain() -> &'static PipelineSpec {
    static PLAIN: OnceLock<PipelineSpec> = OnceLock::new();
    PLAIN.get_or_init(PipelineSpec::simple)
}

/// What happens next.
enum Action {
    Opens { caller: u8, script: Script },
    Order { caller: u8, order: Order },
}

/// Where a session's timeline goes.
enum Record {
    Memory(MemoryRecording),
    Disk(Recording, Platter),
}

/// What there is of a timeline after it was closed.
enum Kept {
    Entries(Vec<Entry>),
    Bytes(Platter, Result<(), CloseError>),
}

/// A session that was opened.
struct Guest {
    caller: u8,
    id: SessionId,
    handle: SessionHandle,
    watch: Arc<Mutex<Watch>>,
    record: Record,
    fault: Option<DiskFault>,
    recorder: Recorder,
    /// When it has to be over.
    until: Instant,
    /// A subscriber who never listens.
    deaf: Option<broadcast::Receiver<Notice>>,
    late: bool,
}

struct World<'a> {
    scenario: &'a Scenario,
    plant: Option<Plant>,
    trace: &'a Trace,
    began: Instant,
    leases: Arc<LocalLeases>,
    cast: Cast,
    watches: Watches,
    spec: PipelineSpec,
    settings: rspp_kernel::plan::LayeredSettings,
    runtime: Runtime,
    guests: Vec<Guest>,
    shut_down: bool,
}

impl<'a> World<'a> {
    async fn play(scenario: &'a Scenario, plant: Option<Plant>, trace: &'a Trace) {
        let leases = Arc::new(LocalLeases::default());
        let watches = Watches::default();
        let cast = Cast::of(scenario, &watches, plant);
        let Stage {
            spec,
            settings,
            probes,
        } = pipeline::stage(scenario, plain(), trace);
        let mut config = Config::new(cast.registry.clone(), Pools::simulated(2, ms(1)));
        config.leases = leases.clone();
        config.seed = Some(scenario.seed);
        probes.install()(&mut config);
        for piece in &scenario.pieces {
            if let Piece::Limits { sessions, turns } = piece {
                config.limits.node.sessions = Some(Quota::at(*sessions as u64));
                config.limits.node.turns = Some(Quota::at(*turns as u64));
            }
        }
        let runtime = Runtime::start(config).await.expect("the runtime starts");
        let mut world = Self {
            scenario,
            plant,
            trace,
            began: Instant::now(),
            leases,
            cast,
            watches,
            spec,
            settings,
            runtime,
            guests: Vec::new(),
            shut_down: false,
        };
        world.run().await;
        world.clean_up().await;
    }

    fn actions(&self) -> Vec<(Duration, Action)> {
        let mut actions = Vec::new();
        for piece in &self.scenario.pieces {
            match piece {
                Piece::Caller {
                    caller,
                    opens_ms,
                    hangs_up_ms,
                    packet_ms,
                } => {
                    let caller = *caller;
                    let script = Script::of(self.scenario, caller, *hangs_up_ms, *packet_ms);
                    actions.push((ms(*opens_ms), Action::Opens { caller, script }));
                }
                Piece::Operator {
                    caller,
                    at_ms,
                    orders,
                } => actions.push((
                    ms(*at_ms),
                    Action::Order {
                        caller: *caller,
                        order: *orders,
                    },
                )),
                _of_somebody_else => {}
            }
        }
        // Last first.
        actions.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        actions
    }

    async fn run(&mut self) {
        let mut actions = self.actions();
        let mut next_look = self.began + STEP;
        loop {
            let due = actions.last().map(|(at, _)| self.began + *at);
            let next = due.map_or(next_look, |due| due.min(next_look));
            sleep_until(next).await;
            next_look = next_look.max(Instant::now() + STEP);
            self.look();
            while let Some((_, action)) =
                actions.pop_if(|(at, _)| self.began + *at <= Instant::now())
            {
                self.act(action).await;
                self.look();
            }
            if actions.is_empty() && self.guests.iter().all(Guest::is_over) {
                return;
            }
        }
    }

    fn look(&mut self) {
        let plant = self.plant;
        for guest in &mut self.guests {
            let mut watch = guest.watch.lock().unwrap_or_else(PoisonError::into_inner);
            watch.look();
            let told = watch.ended && plant != Some(Plant::EndUntold);
            if !told && !guest.late && Instant::now() > guest.until {
                guest.late = true;
                watch.broken(Invariant::TeardownIsBounded, "the session is not over");
            }
        }
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Opens { caller, script } => self.open(caller, script).await,
            Action::Order {
                order: Order::ShutDown,
                ..
            } => {
                self.note(None, "shut down");
                self.trace.lock().tally.act("shut down");
                self.shut_down().await;
            }
            Action::Order { caller, order } => self.order(caller, order).await,
        }
    }

    fn note(&self, caller: Option<u8>, what: &str) {
        self.trace.lock().note(caller, format_args!("{what}"));
    }

    async fn open(&mut self, caller: u8, script: Script) {
        let id = SessionId::new(format!("call-{caller}")).expect("not blank");
        let mut fault = None;
        let mut deaf = false;
        for piece in &self.scenario.pieces {
            match piece {
                Piece::Disk {
                    caller: of,
                    fault: is,
                } if *of == caller => fault = Some(*is),
                Piece::DeafSubscriber { caller: of } if *of == caller => deaf = true,
                _of_others => {}
            }
        }
        let Some((recorder, record)) = self.record(&id, fault).await else {
            return; // Not even the header fits: nobody is let in without a timeline.
        };
        let watch = Arc::new(Mutex::new(Watch::new(
            caller,
            self.trace.clone(),
            self.plant,
        )));
        let kept = recorder.clone();
        lock(&watch).refused_evidence = Box::new(move || {
            let stats = kept.stats();
            stats.map_or(0, |stats| stats.evidence_refused)
        });
        let hangs_up = script.hangs_up();
        self.watches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.clone(), Arc::clone(&watch));
        let transport = line::transport(script, Arc::clone(&watch), self.trace.clone(), self.plant);
        let opened = self
            .runtime
            .open(SessionRequest {
                tenant: TenantId::new("tenant").expect("not blank"),
                session: id.clone(),
                pipeline: self.spec.clone(),
                policy: None,
                settings: self.settings.clone(),
                attributes: BTreeMap::from([("tier".to_owned(), "gold".into())]),
                transport,
                recorder: recorder.clone(),
            })
            .await;
        match opened {
            Ok(handle) => {
                lock(&watch).follow(handle.subscribe());
                self.trace.lock().tally.sessions += 1;
                self.note(Some(caller), "opens");
                self.guests.push(Guest {
                    caller,
                    id,
                    watch,
                    record,
                    fault,
                    recorder,
                    until: Instant::now() + hangs_up + OVER_WITHIN,
                    deaf: deaf.then(|| handle.subscribe()),
                    handle,
                    late: false,
                });
            }
            Err(error) => {
                let outcome = match error {
                    OpenError::Refused(_) => "session refused: full",
                    OpenError::Closed => "session refused: shut down",
                    OpenError::Graph(_)
                    | OpenError::UnknownNode { .. }
                    | OpenError::UnknownTool { .. }
                    | OpenError::Plan(_)
                    | OpenError::Provider { .. }
                    | OpenError::UnknownRecording { .. }
                    | OpenError::Lease(_)
                    | OpenError::Start(_)
                    | OpenError::Busy => panic!("{error}\n{}", self.scenario),
                };
                self.note(Some(caller), outcome);
                self.trace.lock().tally.outcome(outcome);
                if let Record::Disk(recording, _) = record {
                    let _whole_or_not = recording.close().await;
                }
            }
        }
    }

    async fn record(&self, id: &SessionId, fault: Option<DiskFault>) -> Option<(Recorder, Record)> {
        let mut options = Options::default();
        let caller = format!("call-{}", id.as_str().trim_start_matches("call-"));
        for piece in &self.scenario.pieces {
            if let Piece::Tight {
                caller: of,
                entries,
            } = piece
                && format!("call-{of}") == caller
            {
                let reserve = |entries| Room {
                    entries,
                    bytes: 1 << 20,
                };
                options.capacity = Capacity {
                    total: Room {
                        entries: *entries,
                        bytes: 8 << 20,
                    },
                    baseline_reserve: reserve(entries / 4),
                    terminal_reserve: reserve(entries / 3),
                };
            }
        }
        let Some(fault) = fault else {
            let (recorder, recording) = Recorder::in_memory(options);
            return Some((recorder, Record::Memory(recording)));
        };
        let header = FileHeader::new(
            id.clone(),
            self.spec.version.clone(),
            "simulation",
            RecordingLevel::L0,
            Monotonic::ZERO,
            WallClock(0),
        );
        let platter = Platter::default();
        let begun = Recording::begin(platter.disk(fault), header, options).await;
        let (recorder, recording) = begun.ok()?;
        Some((recorder, Record::Disk(recording, platter)))
    }

    async fn order(&mut self, caller: u8, order: Order) {
        let Some(guest) = self.guests.iter().find(|guest| guest.caller == caller) else {
            return;
        };
        if lock(&guest.watch).ended {
            return;
        }
        self.note(Some(caller), &format!("ordered: {order:?}"));
        self.trace.lock().tally.act(kind(order));
        match order {
            Order::CancelTurn => self.cancel(guest, CancelTarget::Turn).await,
            Order::CancelSession => self.cancel(guest, CancelTarget::Session).await,
            Order::CancelNode(node) => {
                let node = NodeId::new(node).expect("not blank");
                self.cancel(guest, CancelTarget::Node(node)).await;
            }
            Order::CancelCall(node, number) => {
                let turn = lock(&guest.watch).open_turn().filter(|_| node != "stt");
                let event = EventId::new(format!("{node}-{number}")).expect("not blank");
                let turn = turn.map(rspp_proto::TurnNumber::id);
                let call = InvocationId::canonical(&guest.id, turn.as_ref(), &event, node);
                self.cancel(guest, CancelTarget::Invocation(call)).await;
            }
            Order::Rotate => {
                let newer = self.leases.acquire(&guest.id).expect("local leases are");
                guest.handle.rotate(newer.epoch);
            }
            Order::RotateBack => guest.handle.rotate(Epoch::FIRST),
            Order::Steal => {
                let _of_another = self.leases.acquire(&guest.id);
            }
            Order::Revoke => guest.handle.revoke(),
            Order::Drain => guest.handle.drain(),
            Order::ShutDown => {}
        }
    }

    async fn cancel(&self, guest: &Guest, target: CancelTarget) {
        let order = guest.handle.cancel_part(target, CancelReason::UserCancel);
        let unanswered = self.plant == Some(Plant::OrderUnanswered);
        let answer = timeout(ANSWERED_WITHIN, async {
            let answer = order.await;
            if unanswered {
                std::future::pending::<()>().await;
            }
            answer
        });
        match answer.await {
            Ok(Some(receipt)) => {
                let mut watch = lock(&guest.watch);
                watch.look();
                watch.note(format_args!("cancelled: {:?}", receipt.turn));
            }
            // It is over: there is nobody to answer.
            Ok(None) => {}
            Err(_) => lock(&guest.watch).broken(
                Invariant::ControlIsNotStarved,
                format!("no answer within {ANSWERED_WITHIN:?}"),
            ),
        }
    }

    async fn shut_down(&mut self) {
        if std::mem::replace(&mut self.shut_down, true) {
            return;
        }
        if !self.runtime.shut_down(Duration::from_secs(5)).await {
            let tree = format!("something was killed: {:?}", self.runtime.tree());
            let mut state = self.trace.lock();
            state.broken(Invariant::TeardownIsBounded, None, tree);
        }
    }

    // --- after it ----------------------------------------------------------------------------

    async fn clean_up(mut self) {
        // The lines hang up, the last notices arrive.
        sleep(Duration::from_secs(1)).await;
        self.look();
        if !self.shut_down {
            let kinds: Vec<_> = self.runtime.tree().iter().map(|actor| actor.kind).collect();
            if kinds != ["node", "sessions", "listener"] {
                self.left(format!("actors: {kinds:?}"));
            }
        }
        if self.runtime.sessions() != 0 {
            self.left(format!("{} places", self.runtime.sessions()));
        }
        let working = self.cast.at_work();
        if !working.is_empty() {
            self.left(format!("provider streams: {working:?}"));
        }
        self.shut_down().await;
        for guest in std::mem::take(&mut self.guests) {
            self.conclude(guest).await;
        }
        drop(self.runtime);
        // Tasks that were told to end get the turn that they need for it.
        tokio::task::yield_now().await;
        let tasks = tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks();
        let mut state = self.trace.lock();
        if tasks > 0 {
            let detail = format!("{tasks} tasks");
            state.broken(Invariant::NothingIsLeft, None, detail);
        }
        state.tally.scenarios += 1;
        for piece in &self.scenario.pieces {
            match piece {
                Piece::Provider {
                    part,
                    call,
                    conduct,
                } if self.cast.calls(*part) > u64::from(*call) => {
                    state.tally.fault(providers::kind(*part, conduct));
                }
                Piece::Line { fault, .. } => match fault {
                    LineFault::Jitter { .. } => state.tally.fault("line: jitter"),
                    LineFault::Stalls { .. } => state.tally.fault("line: stalls"),
                    LineFault::Dies { .. } => state.tally.fault("line: dies"),
                    // Counted where they happen.
                    LineFault::Full { .. } | LineFault::Closes { .. } => {}
                },
                Piece::Tight { .. } => state.tally.fault("disk: tight"),
                Piece::DeafeningNoise { .. } => state.tally.fault("vad: panics"),
                Piece::DeafSubscriber { .. } => state.tally.fault("subscriber: deaf"),
                Piece::User { does, .. } => state.tally.act(match does {
                    super::UserAct::Speaks { for_ms } if *for_ms < 200 => "user coughs",
                    super::UserAct::Speaks { .. } => "user speaks",
                    super::UserAct::Types(_) => "user types",
                    super::UserAct::EndsUtterance => "user ends utterance",
                    super::UserAct::Cancels => "user cancels",
                }),
                _counted_elsewhere => {}
            }
        }
    }

    fn left(&self, detail: String) {
        let mut state = self.trace.lock();
        state.broken(Invariant::NothingIsLeft, None, detail);
    }

    async fn conclude(&self, guest: Guest) {
        let Guest {
            caller,
            handle,
            watch,
            record,
            fault,
            recorder,
            deaf,
            ..
        } = guest;
        let report = timeout(Duration::from_secs(5), handle.wait()).await;
        let stats = recorder.stats();
        let drops = stats.map_or(0, |stats| stats.details_dropped);
        let refused = stats.map_or(0, |stats| stats.evidence_refused);
        // The session is gone, and its recorder with it.
        drop(recorder);
        let kept = match record {
            Record::Memory(recording) => Kept::Entries(recording.entries()),
            Record::Disk(recording, platter) => {
                let closed = recording.close().await.map(|_| ());
                Kept::Bytes(platter, closed)
            }
        };
        let mut watch = lock(&watch);
        watch.look();
        let Ok(Some(mut report)) = report else {
            watch.broken(Invariant::ReportIsLeft, "no report");
            return;
        };
        if self.plant == Some(Plant::HeardTooMuch) {
            for turn in &mut report.turns {
                turn.agent_text_played.push('!');
            }
        }
        agree(&watch, &report);
        self.is_answered(&watch, caller, &report);
        if let Some(mut deaf) = deaf {
            // Whoever does not listen misses the oldest and is told; nothing waits for them.
            let first = deaf
                .try_recv()
                .map(|_| ())
                .map_err(|error| error.to_string());
            watch.note(format_args!("deaf subscriber: {first:?}"));
        }
        let (mut entries, whole) = match kept {
            Kept::Entries(entries) => (entries, true),
            Kept::Bytes(platter, closed) => self.read_back(&watch, &closed, &platter, fault),
        };
        self.plant_into(&mut entries);
        recorded(&watch, &entries, whole, drops == 0, refused == 0);
    }

    /// What a user may expect where nothing, or nothing that matters, fails.
    fn is_answered(&self, watch: &Watch, caller: u8, report: &SessionReport) {
        let users = ["commit", "cancelled", "transport_disconnect_or_stall"];
        let expected = if self.scenario.is_plain() {
            Some(Invariant::NothingFailsByItself)
        } else if self.scenario.is_stood_in_for() {
            Some(Invariant::StandbysAnswer)
        } else {
            None
        };
        if let Some(rule) = expected {
            for (turn, ending) in &watch.endings {
                if !users.contains(&ending.as_str()) {
                    watch.broken(rule, format!("{turn} ended with {ending}"));
                }
            }
        }
        for (at, text) in self.scenario.typed(caller) {
            let heard = report
                .turns
                .iter()
                .any(|turn| turn.user_text.contains(text));
            if !heard {
                let detail = format!("{text:?}, typed at {at:?}, is in no turn");
                watch.broken(Invariant::WordsAreAnswered, detail);
            }
        }
    }

    fn read_back(
        &self,
        watch: &Watch,
        closed: &Result<(), CloseError>,
        platter: &Platter,
        fault: Option<DiskFault>,
    ) -> (Vec<Entry>, bool) {
        let failed = platter.has_failed();
        let happened = match fault {
            Some(DiskFault::Slow { .. }) => Some("disk: slow"),
            Some(DiskFault::Full { .. }) if failed => Some("disk: full"),
            Some(DiskFault::Fails { .. }) if failed => Some("disk: fails"),
            Some(DiskFault::None | DiskFault::Full { .. } | DiskFault::Fails { .. }) | None => None,
        };
        if let Some(kind) = happened {
            self.trace.lock().tally.fault(kind);
        }
        if closed.is_ok() == failed {
            let detail = format!("closing says {closed:?}, the disk failed: {failed}");
            watch.broken(Invariant::RecordingReadsBack, detail);
        }
        match read(&platter.bytes()) {
            Ok((entries, report)) => {
                if !failed && !report.is_whole() || !report.damages.is_empty() {
                    watch.broken(Invariant::RecordingReadsBack, format!("{report:?}"));
                }
                (entries, !failed)
            }
            Err(error) => {
                watch.broken(Invariant::RecordingReadsBack, error);
                (Vec::new(), false)
            }
        }
    }

    fn plant_into(&self, entries: &mut Vec<Entry>) {
        let last = match self.plant {
            Some(Plant::TerminalForgotten) => entries
                .iter()
                .rposition(|e| matches!(e.signal(), Some(Signal::Commit | Signal::Abort))),
            Some(Plant::EvidenceForgotten) => {
                entries.iter().rposition(|e| matches!(e, Entry::Turn(_)))
            }
            Some(_) | None => None,
        };
        if let Some(last) = last {
            entries.remove(last);
        }
        if self.plant == Some(Plant::PlanChanged) {
            for entry in entries {
                if let Entry::Plan(plan) = entry {
                    let budgets = plan.plan.get_mut("budgets").expect("a plan has budgets");
                    budgets["turn_budget_ms"] = 1.into();
                }
            }
        }
    }
}

impl Guest {
    fn is_over(&self) -> bool {
        self.late || lock(&self.watch).ended
    }
}

fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(bytes: &[u8]) -> Result<(Vec<Entry>, Report), String> {
    let mut timeline = Timeline::read(io::Cursor::new(bytes)).map_err(|error| error.to_string())?;
    let entries = timeline.entries().map_err(|error| error.to_string())?;
    Ok((entries, timeline.report().clone()))
}

fn kind(order: Order) -> &'static str {
    match order {
        Order::CancelTurn => "cancel turn",
        Order::CancelSession => "cancel session",
        Order::CancelNode(_) => "cancel node",
        Order::CancelCall(..) => "cancel call",
        Order::Rotate => "rotate",
        Order::RotateBack => "rotate back",
        Order::Steal => "steal lease",
        Order::Revoke => "revoke",
        Order::Drain => "drain",
        Order::ShutDown => "shut down",
    }
}

/// The report says what was said.
fn agree(watch: &Watch, report: &SessionReport) {
    let reported: Vec<_> = report
        .turns
        .iter()
        .map(|turn| {
            let ending = turn.reason.clone().unwrap_or_else(|| turn.outcome.clone());
            (number(&turn.turn_id), ending)
        })
        .collect();
    watch.note(format_args!(
        "report {} {:?} {:?} {reported:?} refused {} failures {} underruns {} dropped {:?}",
        report.epoch,
        report.state,
        report.ended,
        report.refused,
        report.node_failures,
        report.underruns,
        report
            .turns
            .iter()
            .map(|turn| &turn.dropped)
            .collect::<Vec<_>>(),
    ));
    let disagree = |detail: String| watch.broken(Invariant::ReportAgrees, detail);
    if reported != watch.endings {
        disagree(format!("{reported:?}, said: {:?}", watch.endings));
    }
    if report.refused != watch.refused {
        disagree(format!(
            "{} refused, said: {}",
            report.refused, watch.refused
        ));
    }
    if report.state != SessionState::Ended {
        disagree(format!("{:?}", report.state));
    }
    if watch.epoch() > Some(report.epoch) {
        disagree(format!("{}, said: {:?}", report.epoch, watch.epoch()));
    }
    for turn in &report.turns {
        if !turn.agent_text.starts_with(&turn.agent_text_played) {
            let detail = format!("{:?} of {:?}", turn.agent_text_played, turn.agent_text);
            watch.broken(
                Invariant::Kernel(invariant::Invariant::HeardIsPrefix),
                detail,
            );
        }
        if !turn.agent_text_played.is_empty() && !watch.was_played(number(&turn.turn_id)) {
            disagree(format!("{} was heard, and never played", turn.turn_id));
        }
    }
}

/// The recording holds what it must, and what was said.
fn recorded(
    watch: &Watch,
    entries: &[Entry],
    reaches_its_end: bool,
    nothing_dropped: bool,
    nothing_refused: bool,
) {
    let whole = reaches_its_end && nothing_refused;
    let mut verifier = Verifier::default();
    let mut plans = BTreeMap::new();
    let mut terminals = BTreeMap::new();
    let mut signals = Vec::new();
    for entry in entries {
        verifier.observe(entry);
        match entry {
            Entry::Plan(plan) => {
                if let Some(before) = plans.insert(plan.turn_id.clone(), plan.plan_hash.clone()) {
                    let detail = format!("{} has a second plan after {before}", plan.turn_id);
                    watch.broken(Invariant::PlanIsFrozen, detail);
                }
                let read = serde_json::from_value::<ResolvedTurnPlan>(plan.plan.to_value());
                match read.map(|read| read.verify()) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => watch.broken(Invariant::PlanIsFrozen, error.to_string()),
                    Err(error) => watch.broken(Invariant::PlanIsFrozen, error.to_string()),
                }
            }
            Entry::Turn(turn) => {
                terminals.insert(turn.turn_id.clone(), turn.plan_hash.clone());
                let claimed = match (&turn.terminal_outcome, &turn.terminal_reason) {
                    (_, Some(reason)) => reason.as_str(),
                    (Some(outcome), None) => outcome.as_str(),
                    (None, None) => "nothing",
                };
                let number = number(&turn.turn_id);
                let mut said = watch.endings.iter();
                if let Some((_, said)) = said.find(|(of, _)| *of == number)
                    && said != claimed
                {
                    let detail = format!("{number} ended with {said}, its evidence says {claimed}");
                    watch.broken(Invariant::Recorded(Rule::EvidenceAgrees), detail);
                }
            }
            Entry::Signal(signal) => signals.push(signal.envelope.event_id.clone()),
            _judged_by_the_verifier => {}
        }
    }
    watch.note(format_args!(
        "recorded {} entries, {} signals, {} plans, {} turns",
        entries.len(),
        signals.len(),
        plans.len(),
        terminals.len()
    ));
    for (turn, hash) in &terminals {
        if plans.get(turn).is_some_and(|planned| planned != hash) {
            let detail = format!("{turn} was planned as {:?} and ran {hash}", plans.get(turn));
            watch.broken(Invariant::PlanIsFrozen, detail);
        }
    }
    // A recording that breaks off cannot hold how things ended.
    let violations = if whole {
        verifier.finish()
    } else {
        verifier.violations().to_vec()
    };
    // What was refused was said to be lost by how its turn ended; that it is missing is no news.
    let is_news = |violation: &Violation| match violation.rule {
        Rule::PlanRecorded
        | Rule::EndWithoutOpen
        | Rule::TransitionLegal
        | Rule::EvidenceAgrees
        | Rule::EvidenceComplete => nothing_refused,
        _must_hold_whatever_is_missing => true,
    };
    for violation in violations.into_iter().filter(is_news) {
        watch.broken(Invariant::Recorded(violation.rule), violation.to_string());
    }
    if whole && nothing_dropped {
        let said = watch.signals_said();
        let missing: Vec<_> = said.iter().filter(|id| !signals.contains(id)).collect();
        if !missing.is_empty() {
            watch.broken(
                Invariant::RecordingReadsBack,
                format!("signals that were said and not kept: {missing:?}"),
            );
        }
        if terminals.len() != watch.endings.len() {
            watch.broken(
                Invariant::EvidenceOrAbort,
                format!(
                    "{} turns ended, {} left evidence",
                    watch.endings.len(),
                    terminals.len()
                ),
            );
        }
    }
}
