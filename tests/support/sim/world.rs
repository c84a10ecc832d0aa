//! Plays a scenario: real actors on one thread and a paused clock, looked at after every step.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use rspp_controlplane_api::MemoryStore;
use rspp_host::{
    CancelTarget, Config, CpuProbe, Notice, OpenError, Pools, Runtime, SessionHandle,
    SessionRefused, SessionRequest, report::SessionReport,
};
use rspp_kernel::{CancelReason, SessionState, invariant, plan::ResolvedTurnPlan};
use rspp_proto::{
    Epoch, EventId, InvocationId, Lane, Monotonic, NodeId, SessionId, TenantId, WallClock,
    abi::Signal,
    control::Versions,
    spec::{LimitsSpec, OverloadSpec, PipelineSpec, Priority, Quota, RecordingLevel, Threshold},
};
use rspp_timeline::{
    Capacity, CloseError, Entry, FileHeader, MemoryRecording, Options, Recorder, Recording, Report,
    Room, TURN_ROOM, Timeline,
    verify::{Rule, Verifier, Violation},
};
use tokio::{
    sync::broadcast,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Broken, Counted, Departure, DiskFault, Invariant, LineFault, Order, Piece, Scenario, Tally,
    disk::Platter,
    leases::SimLeases,
    line::{self, Script},
    pipeline::{self, Stage},
    providers::{self, Cast, Watches},
    tools,
    watch::{Trace, Watch, number},
};

/// Places for how turns end in a recording that has little room for anything else.
const ENDINGS: usize = 64;

/// Between two looks at everything.
const STEP: Duration = Duration::from_millis(20);
/// The longest that an order may wait for its answer.
const ANSWERED_WITHIN: Duration = Duration::from_millis(100);
/// The longest that a session may live on after its user has hung up.
const OVER_WITHIN: Duration = Duration::from_secs(2);
/// From when a session is told that another has it until that one comes.
const HANDED_OVER_WITHIN: Duration = Duration::from_millis(5);
/// What a session may hold beyond its cap while it ends, in bytes.
const MEMORY_SLACK: u64 = 256 * 1024;

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
    /// Less is said to have been heard than was.
    HeardTooLittle,
    /// An order is never answered.
    OrderUnanswered,
    /// A turn ends twice.
    EndsTwice,
    /// A recorded plan is changed.
    PlanChanged,
    /// A session's end is not told.
    EndUntold,
    /// A tool has its effect twice.
    EffectTwice,
    /// A tool has its effect although it was refused.
    EffectOfTheDead,
    /// A sink plays something of a guess.
    GuessHeard,
    /// A session is given to another placement while its own goes on.
    TwoWriters,
    /// Somebody inside is cut off when somebody is refused.
    RefusalCosts,
    /// What a session holds is much more than it says.
    MemoryLeaks,
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

/// Plays a scenario to its end. If somebody is refused in it, it is played once more without them, to
/// see that all others fare the same.
pub fn play(scenario: &Scenario, plant: Option<Plant>, keep_lines: bool) -> Played {
    let Once {
        mut played,
        of_callers,
        refused,
    } = play_once(scenario, plant, keep_lines);
    if refused.is_empty() || !played.broken.is_empty() {
        return played;
    }
    let refused: Vec<_> = refused.into_iter().collect();
    let without = play_once(&scenario.without(&refused), None, keep_lines);
    for (caller, went) in without.of_callers {
        if of_callers.get(&caller) == Some(&went) {
            continue;
        }
        let name = format!("c{caller} ");
        let of = |lines: &[String]| -> Vec<String> {
            let told = lines.iter().filter_map(|line| line.get(10..));
            told.filter(|line| line.starts_with(&name))
                .map(str::to_owned)
                .collect()
        };
        let (with, without) = (of(&played.lines), of(&without.played.lines));
        let differs = with.iter().zip(&without).find(|(one, other)| one != other);
        played.broken.push(Broken {
            invariant: Invariant::RefusalsCostNothing,
            caller: Some(caller),
            at: Duration::ZERO,
            detail: format!("{refused:?} were refused, and it went another way: {differs:?}"),
        });
    }
    played
}

/// How a scenario went, and what follows only from that.
struct Once {
    played: Played,
    of_callers: BTreeMap<u8, u64>,
    refused: BTreeSet<u8>,
}

fn play_once(scenario: &Scenario, plant: Option<Plant>, keep_lines: bool) -> Once {
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
    Once {
        of_callers: state.of_callers(),
        refused: std::mem::take(&mut state.refused),
        played: Played {
            hash,
            broken: std::mem::take(&mut state.broken),
            tally: std::mem::take(&mut state.tally),
            lines,
        },
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
    Opens {
        caller: u8,
        script: Script,
    },
    Order {
        caller: u8,
        order: Order,
    },
    /// Its session leaves the runtime that it is in.
    Leaves {
        caller: u8,
        by: Departure,
    },
    /// Its session is told that another placement has it.
    HandsOver {
        guest: usize,
    },
    /// Its session goes on in the other runtime, as soon as that is granted it.
    Arrives {
        guest: usize,
    },
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
    /// In which runtime it is.
    home: usize,
    /// When its user called.
    called: Instant,
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
    leases: Arc<SimLeases>,
    cast: Cast,
    watches: Watches,
    spec: PipelineSpec,
    settings: rspp_kernel::plan::LayeredSettings,
    /// The one that all call, and the one that sessions move to.
    runtimes: Vec<Runtime>,
    guests: Vec<Guest>,
    /// What is still to happen, last first.
    actions: Vec<(Duration, Action)>,
    shut_down: bool,
}

/// Processors that are as busy as the scenario says.
#[derive(Debug)]
struct Processors {
    began: Instant,
    /// From when on, first first.
    loads: Vec<(Duration, u64)>,
}

impl Processors {
    fn of(scenario: &Scenario) -> Self {
        let pieces = scenario.pieces.iter();
        let loads = pieces.filter_map(|piece| match piece {
            Piece::Load { at_ms, percent } => Some((ms(*at_ms), *percent)),
            _something_else => None,
        });
        let mut loads: Vec<_> = loads.collect();
        loads.sort_unstable();
        Self {
            began: Instant::now(),
            loads,
        }
    }
}

impl CpuProbe for Processors {
    fn cpu_percent(&self) -> Option<u64> {
        let now = self.began.elapsed();
        let mut before = self.loads.iter().rev();
        Some(before.find(|(from, _)| *from <= now).map_or(0, |it| it.1))
    }
}

/// What a runtime of the scenario takes on.
fn limits(scenario: &Scenario) -> LimitsSpec {
    let mut limits = LimitsSpec {
        max_wait_ms: 400,
        max_waiting: 1,
        ..LimitsSpec::default()
    };
    for piece in &scenario.pieces {
        match piece {
            Piece::Limits { sessions, turns } => {
                limits.node.sessions = Some(Quota::at(*sessions as u64));
                limits.node.turns = Some(Quota::at(*turns as u64));
            }
            Piece::Quota {
                shared,
                of,
                most,
                over,
            } => {
                let quotas = if *shared {
                    &mut limits.node
                } else {
                    &mut limits.tenant
                };
                let quota = match of {
                    Counted::Sessions => &mut quotas.sessions,
                    Counted::SessionsPerMinute => &mut quotas.sessions_per_minute,
                    Counted::Turns => &mut quotas.turns,
                    Counted::TurnsPerMinute => &mut quotas.turns_per_minute,
                    Counted::TokensPerMinute => &mut quotas.tokens_per_minute,
                };
                *quota = Some(Quota::at(*most).then(*over));
            }
            Piece::Load { .. } => {
                limits.overload = OverloadSpec {
                    cpu_percent: Some(Threshold {
                        low: 50,
                        high: 80,
                        severe: 95,
                    }),
                    every_ms: 100,
                    recover_after_ms: 300,
                    ..OverloadSpec::default()
                };
            }
            _something_else => {}
        }
    }
    limits
}

impl<'a> World<'a> {
    async fn play(scenario: &'a Scenario, plant: Option<Plant>, trace: &'a Trace) {
        let ttl = scenario.pieces.iter().find_map(|piece| match piece {
            Piece::Lease { ms: lasts } => Some(ms(*lasts)),
            _something_else => None,
        });
        let generous = plant == Some(Plant::TwoWriters);
        let leases = Arc::new(SimLeases::new(ttl, generous));
        let watches = Watches::default();
        let cast = Cast::of(scenario, &watches, plant);
        let Stage {
            spec,
            settings,
            probes,
        } = pipeline::stage(scenario, plain(), trace);
        let mut config = Config::new(cast.registry.clone(), Pools::simulated(2, ms(1)));
        config.leases = leases.clone();
        config.store = Some(Arc::new(MemoryStore::new(config.leases.clone())));
        config.seed = Some(scenario.seed);
        config.cpu = Arc::new(Processors::of(scenario));
        config.tools = Arc::new(tools::registry(scenario, &watches, trace, plant));
        config.limits = limits(scenario);
        probes.install()(&mut config);
        let moves = |piece: &Piece| matches!(piece, Piece::Move { .. });
        let homes = 1 + usize::from(scenario.pieces.iter().any(moves));
        let mut runtimes = Vec::new();
        for _ in 0..homes {
            let runtime = Runtime::start(config.clone()).await;
            runtimes.push(runtime.expect("the runtime starts"));
        }
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
            runtimes,
            guests: Vec::new(),
            actions: Vec::new(),
            shut_down: false,
        };
        world.actions = world.actions();
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
                Piece::Move { caller, at_ms, by } => actions.push((
                    ms(*at_ms),
                    Action::Leaves {
                        caller: *caller,
                        by: *by,
                    },
                )),
                _of_somebody_else => {}
            }
        }
        // Last first.
        actions.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        actions
    }

    /// Something more is to happen, so much later.
    fn later(&mut self, after: Duration, action: Action) {
        let at = self.began.elapsed() + after;
        let behind = self.actions.partition_point(|(other, _)| *other > at);
        self.actions.insert(behind, (at, action));
    }

    async fn run(&mut self) {
        let mut next_look = self.began + STEP;
        loop {
            let due = self.actions.last().map(|(at, _)| self.began + *at);
            let next = due.map_or(next_look, |due| due.min(next_look));
            sleep_until(next).await;
            next_look = next_look.max(Instant::now() + STEP);
            self.look();
            let began = self.began;
            while let Some((_, action)) =
                self.actions.pop_if(|(at, _)| began + *at <= Instant::now())
            {
                self.act(action).await;
                self.look();
            }
            if self.actions.is_empty() && self.guests.iter().all(Guest::is_over) {
                return;
            }
        }
    }

    fn look(&mut self) {
        look_at(&mut self.guests, self.plant);
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Opens { caller, script } => {
                let _in_or_not = self.open(caller, 0, script).await;
            }
            Action::Order {
                order: Order::ShutDown,
                ..
            } => {
                self.note(None, "shut down");
                self.trace.lock().tally.act("shut down");
                self.shut_down().await;
            }
            Action::Order { caller, order } => self.order(caller, order).await,
            Action::Leaves { caller, by } => self.leaves(caller, by),
            Action::HandsOver { guest } => self.hands_over(guest),
            Action::Arrives { guest } => Box::pin(self.arrives(guest)).await,
        }
    }

    /// The newest placement of a caller's session.
    fn newest(&self, caller: u8) -> Option<usize> {
        self.guests.iter().rposition(|guest| guest.caller == caller)
    }

    /// The same, if it lives.
    fn guest(&self, caller: u8) -> Option<&Guest> {
        let newest = &self.guests[self.newest(caller)?];
        (!lock(&newest.watch).ended).then_some(newest)
    }

    fn leaves(&mut self, caller: u8, by: Departure) {
        let Some(nth) = self.newest(caller) else {
            return;
        };
        let guest = &self.guests[nth];
        if lock(&guest.watch).ended {
            return;
        }
        match by {
            Departure::HandOver { after_ms } => {
                self.note(Some(caller), "leaves");
                self.trace.lock().tally.act("move: hand over");
                guest.handle.leave();
                self.later(ms(after_ms), Action::HandsOver { guest: nth });
            }
            Departure::Lost if self.leases.run_out() => {
                self.note(Some(caller), "is lost");
                self.trace.lock().tally.act("move: lost");
                self.leases.cut(&guest.id);
                self.later(STEP, Action::Arrives { guest: nth });
            }
            Departure::Lost => {}
        }
    }

    fn hands_over(&mut self, nth: usize) {
        let guest = &self.guests[nth];
        if lock(&guest.watch).ended || self.newest(guest.caller) != Some(nth) {
            return;
        }
        self.note(Some(guest.caller), "is handed over");
        if self.plant != Some(Plant::TwoWriters) {
            guest.handle.hand_over();
        }
        self.later(HANDED_OVER_WITHIN, Action::Arrives { guest: nth });
    }

    /// The user finds the session in the other runtime.
    async fn arrives(&mut self, nth: usize) {
        let caller = self.guests[nth].caller;
        if self.newest(caller) != Some(nth) {
            return;
        }
        let old = &mut self.guests[nth];
        // Whoever was left behind does not need the user to be over.
        let grace = Instant::now() + OVER_WITHIN;
        old.until = old.until.min(grace);
        let (called, home) = (old.called, 1 - old.home);
        let piece = self.scenario.pieces.iter().find_map(|piece| match piece {
            Piece::Caller {
                caller: of,
                hangs_up_ms,
                packet_ms,
                ..
            } if *of == caller => Some((*hangs_up_ms, *packet_ms)),
            _of_others => None,
        });
        let (hangs_up, packet) = piece.expect("somebody who calls is a piece");
        let script = Script::of(self.scenario, caller, hangs_up, packet).rest(called.elapsed());
        if self.shut_down || script.hangs_up() < STEP {
            return;
        }
        if let Ok(false) = self.open(caller, home, script).await {
            // Nobody is granted it yet.
            self.later(STEP, Action::Arrives { guest: nth });
        }
    }

    fn note(&self, caller: Option<u8>, what: &str) {
        self.trace.lock().note(caller, format_args!("{what}"));
    }

    /// Whether the session is open; `Err` if it is not and will not be.
    async fn open(&mut self, caller: u8, home: usize, script: Script) -> Result<bool, ()> {
        let id = SessionId::new(format!("call-{caller}")).expect("not blank");
        let mut fault = None;
        let mut deaf = false;
        let mut settings = self.settings.clone();
        for piece in &self.scenario.pieces {
            match piece {
                Piece::Disk {
                    caller: of,
                    fault: is,
                } if *of == caller => fault = Some(*is),
                Piece::DeafSubscriber { caller: of } if *of == caller => deaf = true,
                Piece::Background { caller: of } if *of == caller => {
                    settings.session.priority = Some(Priority::Background);
                }
                _of_others => {}
            }
        }
        let Some((recorder, record)) = self.record(&id, fault).await else {
            return Err(()); // Not even the header fits: nobody is let in without a timeline.
        };
        let watch = Arc::new(Mutex::new(Watch::new(
            caller,
            self.trace.clone(),
            self.plant,
        )));
        let placed = self.leases.next(&id);
        {
            let mut watch = lock(&watch);
            let (kept, leases, of) = (recorder.clone(), Arc::clone(&self.leases), id.clone());
            watch.refused_evidence = Box::new(move || {
                let stats = kept.stats();
                stats.map_or(0, |stats| stats.evidence_refused)
            });
            watch.placed = Some(placed);
            watch.newest = Box::new(move || leases.placed(&of));
            let before = self.guests.iter().filter(|guest| guest.caller == caller);
            for guest in before {
                watch.heard.extend(lock(&guest.watch).heard.iter().cloned());
            }
        }
        let hangs_up = script.hangs_up();
        self.watches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(id.clone())
            .or_default()
            .push((placed, Arc::clone(&watch)));
        let transport = line::transport(script, Arc::clone(&watch), self.trace.clone(), self.plant);
        let tenant = if caller.is_multiple_of(2) {
            "acme"
        } else {
            "other"
        };
        let request = SessionRequest {
            tenant: TenantId::new(tenant).expect("not blank"),
            session: id.clone(),
            pipeline: self.spec.clone(),
            policy: None,
            settings,
            versions: Versions::default(),
            attributes: BTreeMap::from([("tier".to_owned(), "gold".into())]),
            transport,
            recorder: recorder.clone(),
        };
        self.trace.lock().placed.insert((id.clone(), placed));
        let asked = Instant::now();
        let opened = {
            // Whoever waits for room holds nobody up.
            let mut opening = std::pin::pin!(self.runtimes[home].open(request));
            loop {
                tokio::select! {
                    biased;
                    opened = &mut opening => break opened,
                    () = sleep(STEP) => look_at(&mut self.guests, self.plant),
                }
            }
        };
        let error = match opened {
            Ok(handle) => {
                lock(&watch).follow(handle.subscribe());
                self.trace.lock().tally.sessions += 1;
                self.note(Some(caller), "opens");
                let now = Instant::now();
                let mut before = self.guests.iter().filter(|guest| guest.caller == caller);
                let called = before.next().map_or(now, |first| first.called);
                self.guests.push(Guest {
                    caller,
                    home,
                    called,
                    id,
                    watch,
                    record,
                    fault,
                    recorder,
                    until: now + hangs_up + OVER_WITHIN,
                    deaf: deaf.then(|| handle.subscribe()),
                    handle,
                    late: false,
                });
                return Ok(true);
            }
            Err(error) => error,
        };
        {
            let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(placements) = watches.get_mut(&id) {
                placements.pop();
            }
        }
        let outcome = match error {
            OpenError::Refused(refused) => {
                self.is_refused(caller, &id, &refused, &record);
                // Who had to wait for that held up what was to happen meanwhile.
                let at_once = fault.is_none() && asked == Instant::now();
                if at_once && !self.guests.iter().any(|guest| guest.caller == caller) {
                    self.trace.lock().refused.insert(caller);
                }
                "session refused: full"
            }
            OpenError::Closed => "session refused: shut down",
            OpenError::Lease(_) if home != 0 || self.leases.placed(&id).is_some() => {
                return Ok(false);
            }
            OpenError::Graph(_)
            | OpenError::Sandbox { .. }
            | OpenError::UnknownNode { .. }
            | OpenError::UnknownTool { .. }
            | OpenError::Plan(_)
            | OpenError::Provider { .. }
            | OpenError::UnknownRecording { .. }
            | OpenError::BoundOtherwise { .. }
            | OpenError::Lease(_)
            | OpenError::Start(_)
            | OpenError::Emptying
            | OpenError::Package { .. }
            | OpenError::Busy => panic!("{error}\n{}", self.scenario),
        };
        self.note(Some(caller), outcome);
        self.trace.lock().tally.outcome(outcome);
        if let Record::Disk(recording, _) = record {
            let _whole_or_not = recording.close().await;
        }
        Err(())
    }

    /// Who is refused is told why, once, and leaves nothing behind.
    fn is_refused(&self, caller: u8, id: &SessionId, refused: &SessionRefused, record: &Record) {
        let broken = |detail: String| {
            let mut state = self.trace.lock();
            state.broken(Invariant::RefusalsCostNothing, Some(caller), detail);
        };
        let kind = refused.outcome.outcome_kind;
        self.trace
            .lock()
            .tally
            .outcome(format!("newcomer: {kind:?}"));
        if let Record::Memory(recording) = record {
            let entries = recording.entries();
            let said: Vec<_> = entries.iter().filter_map(Entry::signal).collect();
            if !matches!(said[..], [Signal::Reject | Signal::Defer]) {
                broken(format!("it was told {said:?}"));
            }
        }
        if self.guests.iter().any(|guest| guest.caller == caller) {
            return; // It was inside, and finds no room elsewhere.
        }
        let tree = self.runtimes[0].tree();
        let left = tree.iter().find(|actor| actor.path.contains(id.as_str()));
        if let Some(left) = left {
            broken(format!("{} is left", left.path));
        }
        if self.leases.placed(id).is_some() {
            broken("it was granted a lease".to_owned());
        }
        if self.plant == Some(Plant::RefusalCosts)
            && let Some(inside) = self.guests.first()
        {
            inside.handle.drain();
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
                        entries: ENDINGS + TURN_ROOM.entries + *entries,
                        bytes: 8 << 20,
                    },
                    baseline_reserve: reserve(entries / 4),
                    terminal_reserve: reserve(ENDINGS),
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
        let Some(guest) = self.guest(caller) else {
            return;
        };
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
                let newer = self.leases.rotate(&guest.id);
                guest.handle.rotate(newer.epoch);
            }
            Order::RotateBack => guest.handle.rotate(Epoch::FIRST),
            Order::Steal => {
                let _of_another = self.leases.rotate(&guest.id);
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
        for runtime in &self.runtimes {
            if !runtime.shut_down(Duration::from_secs(5)).await {
                let tree = format!("something was killed: {:?}", runtime.tree());
                let mut state = self.trace.lock();
                state.broken(Invariant::TeardownIsBounded, None, tree);
            }
        }
    }

    // --- after it ----------------------------------------------------------------------------

    async fn clean_up(mut self) {
        // The lines hang up, the last notices arrive.
        sleep(Duration::from_secs(1)).await;
        self.look();
        for runtime in &self.runtimes {
            let kinds: Vec<_> = runtime.tree().iter().map(|actor| actor.kind).collect();
            if !self.shut_down && kinds != ["node", "sessions", "listener"] {
                self.left(format!("actors: {kinds:?}"));
            }
            if runtime.sessions() != 0 {
                self.left(format!("{} places", runtime.sessions()));
            }
        }
        let working = self.cast.at_work();
        if !working.is_empty() {
            self.left(format!("provider streams: {working:?}"));
        }
        self.shut_down().await;
        for guest in std::mem::take(&mut self.guests) {
            self.conclude(guest).await;
        }
        for runtime in &self.runtimes {
            let asked = runtime.admission().node;
            let mut state = self.trace.lock();
            for (kind, count) in [
                ("quota: sessions wait", asked.sessions.throttled),
                (
                    "quota: sessions are served with less",
                    asked.sessions.degraded,
                ),
                ("quota: turns wait", asked.turns.throttled),
                ("quota: turns are served with less", asked.turns.degraded),
                ("work shed", asked.shed),
            ] {
                if count > 0 {
                    state.tally.outcome(kind);
                }
            }
        }
        drop(std::mem::take(&mut self.runtimes));
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
                    LineFault::Mute { .. } => state.tally.fault("line: mute"),
                    LineFault::Reconnects { .. } => state.tally.fault("line: reconnects"),
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
        if self.plant == Some(Plant::HeardTooLittle) {
            for turn in &mut report.turns {
                turn.agent_text_played.clear();
            }
        }
        self.tally(&report);
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

    /// What became of a session beside its turns.
    fn tally(&self, report: &SessionReport) {
        let mut state = self.trace.lock();
        for degradation in &report.degraded {
            let reason = &degradation.reason;
            state.tally.outcome(format!("degraded: {reason}"));
        }
        for code in report.moves_refused.keys() {
            state.tally.outcome(format!("move refused: {code}"));
        }
        if report.speculation.withheld > 0 {
            state.tally.outcome("guess: over budget");
        }
        if report.ended.starts_with("session_memory_cap") {
            state.tally.outcome("session over its memory cap");
        }
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
        let typed = self.scenario.typed(caller);
        let answered = |text: &str| {
            report
                .turns
                .iter()
                .any(|turn| turn.user_text.contains(text))
        };
        let missing = typed.iter().filter(|(_, text)| !answered(text));
        let missing: Vec<_> = missing.collect();
        if missing.len() > watch.unkept {
            let unkept = watch.unkept;
            let detail = format!("{missing:?} are in no turn, and {unkept} were refused");
            watch.broken(Invariant::WordsAreAnswered, detail);
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

/// Looks at everything.
fn look_at(guests: &mut [Guest], plant: Option<Plant>) {
    for guest in guests {
        let mut watch = lock(&guest.watch);
        watch.look();
        let told = watch.ended && plant != Some(Plant::EndUntold);
        if told || guest.late {
            continue;
        }
        if Instant::now() > guest.until {
            guest.late = true;
            watch.broken(Invariant::TeardownIsBounded, "the session is not over");
        }
        let mut memory = guest.handle.memory();
        if plant == Some(Plant::MemoryLeaks) {
            memory.held += memory.cap;
        }
        if memory.held > memory.cap + MEMORY_SLACK {
            guest.late = true;
            watch.broken(Invariant::MemoryIsBounded, format!("{memory:?}"));
        }
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
        let is_lost = turn.dropped.get(&Lane::Data).is_some_and(|lost| *lost > 0);
        if turn.is_commit()
            && !is_lost
            && !watch.is_blemished(number(&turn.turn_id))
            && let Err(error) = invariant::committed(&turn.agent_text, &turn.agent_text_played)
        {
            let detail = format!("{}: {}", turn.turn_id, error.detail);
            watch.broken(Invariant::Kernel(error.invariant), detail);
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
