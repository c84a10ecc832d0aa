//! Every order in which two runtimes, a store, an operator and a bad network can act on one session's
//! lease, explored to the end (F-095, F-111, F-156, NF-027).
//!
//! The store's half is the real decision code, the runtime's half the real timer; between them messages
//! are lost, repeated, delayed and overtaken, processes stop and go on late, a deposed leader of the
//! store takes a renewal. In every state that can be reached, whoever may write holds the newest epoch.
//! That the exploration would notice is shown by rules broken on purpose: each is found.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use rspp_controlplane::authority::{
    self, Acquire, Attempt, Binding, Fuse, Holder, Incarnation, Placement, Refusal, Revoke, Seen,
    Standing, Term, Vacated, WhyRevoked,
};
use rspp_kernel::authority::LeaseTimer;
use rspp_proto::{Epoch, Monotonic, PipelineVersion, RuntimeId, SessionId, TenantId, WallClock};

/// Seconds, as everything here is counted: what a holder is told.
const TOLD: u8 = 2;
/// What the store waits.
const KEPT: u8 = TOLD + 1;
/// How long whoever is told to let go may take to finish what it says.
const FINISH: u8 = TOLD + 3;
/// How long its fuse burns.
const FUSE: u8 = FINISH + 1;
/// Ages from here on are all the same: over, but for whoever may finish.
const OLD: u8 = TOLD;
const MAX_MESSAGES: usize = 2;

/// What may happen in one exploration. All at once would be too many worlds to visit; what belongs
/// together is together in one of them.
#[derive(Clone, Copy, Debug)]
struct Scope {
    /// Runtime 0 may crash and restart.
    restarts: bool,
    /// The operator may move the session.
    moves: bool,
    /// A runtime may ask again before it was answered.
    overlaps: bool,
    /// Epochs that are granted.
    epochs: u8,
    /// How often the network repeats a message, or a deposed leader takes a renewal.
    mischief: u8,
}

const SCOPES: [Scope; 4] = [
    Scope {
        restarts: true,
        moves: false,
        overlaps: false,
        epochs: 3,
        mischief: 0,
    },
    Scope {
        restarts: false,
        moves: true,
        overlaps: false,
        epochs: 2,
        mischief: 0,
    },
    Scope {
        restarts: false,
        moves: false,
        overlaps: false,
        epochs: 2,
        mischief: 1,
    },
    Scope {
        restarts: false,
        moves: false,
        overlaps: true,
        epochs: 2,
        mischief: 0,
    },
];

/// Rules that can be broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// The store grants although the holder still renews.
    GrantsWhileHeld,
    /// The fuse begins to burn before the revocation is stored.
    LightsTooEarly,
    /// The holder counts from the answer, not from the question.
    CountsFromTheAnswer,
    /// The holder goes on writing while it asks for the session anew.
    KeepsWhileAsking,
    /// The store waits no longer than the holder believes.
    WaitsWithoutGuard,
    /// The order to let go is forgotten when it has been outwaited, and what was over comes back.
    ComesBack,
    /// A new lease is counted from its own request, however long ago the runtime renewed.
    ForgetsItsRenewal,
    /// The answer to an earlier request is taken for that to the newest.
    TakesOldAnswers,
    /// Who may finish goes on although its runtime is not renewed.
    FinishesWithoutARight,
    /// The fuse burns as a lease lasts, however long the holder may take to finish.
    LightsAShortFuse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    Acquire {
        by: u8,
        life: u8,
        attempt: u8,
        age: u8,
    },
    Granted {
        to: u8,
        life: u8,
        attempt: u8,
        age: u8,
        epoch: u8,
    },
    Renew {
        by: u8,
        life: u8,
        age: u8,
    },
    Renewed {
        to: u8,
        life: u8,
        age: u8,
        let_go: bool,
    },
    Lost {
        to: u8,
        life: u8,
    },
    Release {
        by: u8,
        life: u8,
        epoch: u8,
    },
}

impl Message {
    /// Whether it asks for that runtime, or answers it.
    fn is_call_of(self, runtime: u8) -> bool {
        match self {
            Self::Acquire { by, .. } | Self::Renew { by, .. } => by == runtime,
            Self::Granted { to, .. } | Self::Renewed { to, .. } | Self::Lost { to, .. } => {
                to == runtime
            }
            Self::Release { .. } => false,
        }
    }

    /// One second later.
    fn older(mut self) -> Self {
        match &mut self {
            Self::Acquire { age, .. }
            | Self::Granted { age, .. }
            | Self::Renew { age, .. }
            | Self::Renewed { age, .. } => *age = (*age + 1).min(OLD),
            Self::Lost { .. } | Self::Release { .. } => {}
        }
        self
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stands {
    Nobody,
    Held { by: u8, life: u8 },
    Revoking { from: u8, life: u8, lit: bool },
    Vacant { last: u8, life: u8, reserved: bool },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Runtime {
    life: u8,
    attempts: u8,
    /// Whether the newest of them has not been answered. An answer counts once.
    waiting: bool,
    /// How long ago the newest renewal was asked for that was answered; registering is one.
    renewed: u8,
    /// Epoch, and how long ago it was asked for or renewed.
    holds: Option<(u8, u8)>,
    /// It is to be let go: no renewal prolongs it any more.
    going: bool,
}

/// The whole world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    epoch: u8,
    /// The request that the epoch was granted by.
    attempt: u8,
    stands: Stands,
    /// By runtime and life: how long the store still waits for it.
    alive: [[u8; 2]; 2],
    /// How long the fuse still burns.
    fuse: u8,
    /// The order that each life of each runtime has yet to follow.
    marks: [[bool; 2]; 2],
    runtimes: [Runtime; 2],
    messages: Vec<Message>,
    revoked_once: bool,
    mischief: u8,
}

fn holder(by: u8, life: u8) -> Holder {
    let incarnation = Incarnation::new(u64::from(life) + 1).expect("not zero");
    let runtime = RuntimeId::new(["a", "b"][usize::from(by)]).expect("a name");
    Holder {
        runtime,
        incarnation,
    }
}

fn index(holder: &Holder) -> (u8, u8) {
    let by = u8::from(holder.runtime.as_str() == "b");
    (by, holder.incarnation.get() as u8 - 1)
}

fn binding() -> Binding {
    Binding {
        tenant: TenantId::new("t").expect("a name"),
        pipeline: PipelineVersion::new("p-1").expect("a name"),
        policy: None,
        providers: None,
    }
}

impl World {
    fn new() -> Self {
        Self {
            epoch: 0,
            attempt: 0,
            stands: Stands::Nobody,
            alive: [[KEPT, 0], [KEPT, 0]],
            fuse: 0,
            marks: [[false; 2]; 2],
            runtimes: [Runtime::default(); 2],
            messages: Vec::new(),
            revoked_once: false,
            mischief: 0,
        }
    }

    /// The store's record, as the decision code knows it.
    fn placement(&self) -> Option<Placement> {
        let b = || RuntimeId::new("b").expect("a name");
        let standing = match self.stands {
            Stands::Nobody => return None,
            Stands::Held { by, life } => Standing::Held {
                by: holder(by, life),
            },
            Stands::Revoking { from, life, lit } => Standing::Revoking {
                from: holder(from, life),
                why: WhyRevoked::Transfer,
                finish_within: Duration::from_secs(u64::from(FINISH)),
                fuse: if lit { Fuse::Lit } else { Fuse::Unlit },
                to: Some(b()),
            },
            Stands::Vacant {
                last,
                life,
                reserved,
            } => Standing::Vacant {
                last: holder(last, life),
                how: Vacated::Released,
                to: reserved.then(b),
            },
        };
        Some(Placement {
            session: SessionId::new("s").expect("a name"),
            binding: binding(),
            epoch: Epoch::new(u64::from(self.epoch)).expect("not zero"),
            attempt: Attempt(u64::from(self.attempt)),
            standing,
            since: WallClock(0),
            past: Vec::new(),
            over: None,
        })
    }

    fn store(&mut self, placement: &Placement) {
        self.epoch = placement.epoch.get() as u8;
        self.attempt = placement.attempt.0 as u8;
        self.stands = match &placement.standing {
            Standing::Held { by } => {
                let (by, life) = index(by);
                Stands::Held { by, life }
            }
            Standing::Revoking { from, fuse, .. } => {
                let (from, life) = index(from);
                let lit = *fuse == Fuse::Lit;
                Stands::Revoking { from, life, lit }
            }
            Standing::Vacant { last, to, .. } => {
                let (last, life) = index(last);
                let reserved = to.is_some();
                Stands::Vacant {
                    last,
                    life,
                    reserved,
                }
            }
            Standing::Ended { .. } => unreachable!("nobody ends it here"),
        };
    }

    fn is_alive(&self, by: u8, life: u8) -> bool {
        self.alive[usize::from(by)][usize::from(life)] > 0
    }

    /// Whether a runtime's output passes its own fence now.
    fn may_write(&self, by: usize, broken: Broken) -> Option<u8> {
        let runtime = &self.runtimes[by];
        let (epoch, age) = runtime.holds?;
        let ends = if runtime.going {
            let has_right = !is_over(runtime.renewed, TOLD);
            is_over(age, FINISH) || !(has_right || broken == Broken::FinishesWithoutARight)
        } else {
            is_over(age, TOLD)
        };
        (!ends).then_some(epoch)
    }

    /// Who may write holds the newest epoch.
    fn is_safe(&self, broken: Broken) -> bool {
        let may_write = |by| self.may_write(by, broken);
        (0..2).all(|by| may_write(by).is_none_or(|epoch| epoch == self.epoch))
            && (may_write(0).is_none() || may_write(1).is_none())
    }

    fn send(&mut self, message: Message) {
        if !self.messages.contains(&message) {
            self.messages.push(message);
            self.messages.sort_unstable();
        }
    }

    fn has_room(&self) -> bool {
        self.messages.len() < MAX_MESSAGES
    }
}

/// The runtime's own clock says that it must have fallen silent.
fn is_over(age: u8, after: u8) -> bool {
    let now = Monotonic::from_millis(100_000);
    let asked = Monotonic::from_millis(100_000 - u64::from(age) * 1_000);
    LeaseTimer::new(asked, Duration::from_secs(u64::from(after))).is_over(now)
}

/// What happened.
#[derive(Clone, Copy, Debug)]
#[expect(
    dead_code,
    reason = "the fields are for whoever reads the way to a violation"
)]
enum Step {
    ASecondPasses,
    Asks { by: u8 },
    AsksToRenew { by: u8 },
    LetsGo { by: u8 },
    CrashesAndRestarts { by: u8 },
    TheOperatorMovesTheSession,
    TheFuseIsLit,
    TheFuseIsLitTooEarly,
    Lost(Message),
    Delivered(Message),
    DeliveredAndAgainLater(Message),
    DeliveredToADeposedLeader(Message),
}

/// All worlds that one step leads to.
fn steps(world: &World, scope: Scope, broken: Broken) -> Vec<(Step, World)> {
    let mut next = Vec::new();
    let mut add = |name: Step, change: &dyn Fn(&mut World)| {
        let mut after = world.clone();
        change(&mut after);
        next.push((name, after));
    };

    add(Step::ASecondPasses, &|w| {
        for left in w.alive.iter_mut().flatten().chain([&mut w.fuse]) {
            *left = left.saturating_sub(1);
        }
        for runtime in &mut w.runtimes {
            runtime.renewed = (runtime.renewed + 1).min(OLD);
            let old = if runtime.going { FINISH } else { OLD };
            if let Some((_, age)) = &mut runtime.holds {
                *age = (*age + 1).min(old);
            }
        }
        let messages = std::mem::take(&mut w.messages);
        for it in messages {
            w.send(it.older());
        }
    });

    for by in 0..2_u8 {
        let it = world.runtimes[usize::from(by)];
        let busy = world.messages.iter().any(|message| message.is_call_of(by));
        let may_ask = world.has_room() && (scope.overlaps || !busy);
        // Runtime 0 asks twice in its first life, the others once: one asks anew, one takes over.
        let most = if by == 0 && it.life == 0 { 2 } else { 1 };
        if may_ask && it.attempts < most && world.epoch < scope.epochs {
            add(Step::Asks { by }, &|w| {
                let runtime = &mut w.runtimes[usize::from(by)];
                runtime.attempts += 1;
                runtime.waiting = true;
                if broken != Broken::KeepsWhileAsking {
                    runtime.holds = None;
                    runtime.going = false;
                }
                let (life, attempt) = (runtime.life, runtime.attempts);
                w.send(Message::Acquire {
                    by,
                    life,
                    attempt,
                    age: 0,
                });
            });
        }
        if may_ask && it.renewed > 0 {
            add(Step::AsksToRenew { by }, &|w| {
                w.send(Message::Renew {
                    by,
                    life: it.life,
                    age: 0,
                });
            });
        }
        if world.has_room() && by == 0 && it.holds.is_some() {
            add(Step::LetsGo { by }, &|w| let_go(w, by));
        }
        if scope.restarts && by == 0 && it.life == 0 {
            add(Step::CrashesAndRestarts { by }, &|w| {
                w.runtimes[0] = Runtime {
                    life: 1,
                    attempts: 0,
                    waiting: false,
                    renewed: 0,
                    holds: None,
                    going: false,
                };
                w.alive[0][1] = KEPT;
            });
        }
    }

    if let Stands::Held { by: 0, life } = world.stands
        && scope.moves
        && !world.revoked_once
    {
        add(Step::TheOperatorMovesTheSession, &|w| {
            let order = Revoke {
                why: WhyRevoked::Transfer,
                finish_within: Duration::from_secs(u64::from(FINISH)),
                to: Some(RuntimeId::new("b").expect("a name")),
            };
            let revoked = authority::revoke(w.placement().as_ref(), &order).expect("it is held");
            w.store(&revoked);
            w.marks[0][usize::from(life)] = true;
            w.revoked_once = true;
        });
        if broken == Broken::LightsTooEarly && world.fuse == 0 {
            add(Step::TheFuseIsLitTooEarly, &|w| w.fuse = FUSE);
        }
    }
    if let Stands::Revoking { lit: false, .. } = world.stands {
        add(Step::TheFuseIsLit, &|w| {
            let lit = authority::light(&w.placement().expect("it is held")).expect("it is unlit");
            w.store(&lit);
            if broken != Broken::LightsTooEarly {
                w.fuse = match broken {
                    Broken::WaitsWithoutGuard => FINISH,
                    Broken::LightsAShortFuse => KEPT,
                    _another => FUSE,
                };
            }
        });
    }

    for (at, message) in world.messages.iter().enumerate() {
        add(Step::Lost(*message), &|w| {
            w.messages.remove(at);
        });
        add(Step::Delivered(*message), &|w| {
            w.messages.remove(at);
            handle(w, *message, broken, false);
        });
        if world.mischief == scope.mischief {
            continue;
        }
        add(Step::DeliveredAndAgainLater(*message), &|w| {
            w.mischief += 1;
            handle(w, *message, broken, false);
        });
        if matches!(message, Message::Renew { .. }) {
            add(Step::DeliveredToADeposedLeader(*message), &|w| {
                w.mischief += 1;
                w.messages.remove(at);
                handle(w, *message, broken, true);
            });
        }
    }
    next
}

/// The rule of [`Attempt`]s and lives: an answer counts for whom it is, in this life.
fn is_for(world: &World, to: u8, life: u8) -> bool {
    world.runtimes[usize::from(to)].life == life
}

fn let_go(world: &mut World, by: u8) {
    let runtime = &mut world.runtimes[usize::from(by)];
    runtime.going = false;
    if let Some((epoch, _)) = runtime.holds.take() {
        let life = runtime.life;
        world.send(Message::Release { by, life, epoch });
    }
}

fn handle(world: &mut World, message: Message, broken: Broken, deposed: bool) {
    match message {
        Message::Acquire {
            by,
            life,
            attempt,
            age,
        } => {
            if !world.is_alive(by, life) {
                return;
            }
            let current = world.placement();
            let held_by = current.as_ref().and_then(|p| p.holder()).map(index);
            let holder_alive = held_by.is_some_and(|(by, life)| world.is_alive(by, life));
            let seen = Seen {
                holder_alive: holder_alive && broken != Broken::GrantsWhileHeld,
                fuse_burns: world.fuse > 0,
                reserved_alive: world.alive[1].iter().any(|left| *left > 0),
            };
            let ask = Acquire {
                session: SessionId::new("s").expect("a name"),
                by: holder(by, life),
                attempt: Attempt(u64::from(attempt)),
                binding: binding(),
            };
            match authority::acquire(current.as_ref(), seen, &ask, WallClock(0)) {
                Ok(granted) => {
                    if !granted.repeated {
                        if broken == Broken::ComesBack
                            && let Some((by, life)) = held_by
                        {
                            world.marks[usize::from(by)][usize::from(life)] = false;
                        }
                        // Its own order is over with its own new epoch.
                        world.marks[usize::from(by)][usize::from(life)] = false;
                        world.fuse = 0;
                        world.store(&granted.placement);
                    }
                    let epoch = world.epoch;
                    world.send(Message::Granted {
                        to: by,
                        life,
                        attempt,
                        age,
                        epoch,
                    });
                }
                Err(
                    Refusal::Held { .. }
                    | Refusal::LettingGo { .. }
                    | Refusal::Reserved { .. }
                    | Refusal::Stale { .. }
                    | Refusal::Unknown
                    | Refusal::Overtaken
                    | Refusal::Ended,
                ) => {}
            }
        }
        Message::Granted {
            to,
            life,
            attempt,
            age,
            epoch,
        } => {
            let counted = if broken == Broken::CountsFromTheAnswer {
                0
            } else {
                age
            };
            let runtime = &mut world.runtimes[usize::from(to)];
            // The lease is worth no more than what keeps its holder alive.
            let counted = if broken == Broken::ForgetsItsRenewal {
                counted
            } else {
                counted.max(runtime.renewed)
            };
            let newest = runtime.attempts == attempt && runtime.waiting;
            let newest = newest || broken == Broken::TakesOldAnswers;
            let rises = runtime.holds.is_none_or(|(held, _)| epoch > held);
            if runtime.life == life && newest && rises {
                runtime.waiting = false;
                runtime.going = false;
                runtime.holds = Some((epoch, counted));
            }
        }
        Message::Renew { by, life, age } => {
            if !world.is_alive(by, life) {
                world.send(Message::Lost { to: by, life });
                return;
            }
            // A deposed leader believes that it prolonged what the new one has counted since its election.
            let guard = u8::from(broken == Broken::WaitsWithoutGuard);
            let full = KEPT - guard;
            let left = &mut world.alive[usize::from(by)][usize::from(life)];
            *left = (*left).max(if deposed { full - 1 } else { full });
            let let_go = world.marks[usize::from(by)][usize::from(life)];
            world.send(Message::Renewed {
                to: by,
                life,
                age,
                let_go,
            });
        }
        Message::Renewed {
            to,
            life,
            age,
            let_go: true,
        } => {
            if !is_for(world, to, life) {
                return;
            }
            let runtime = &mut world.runtimes[usize::from(to)];
            if let Some((_, held)) = runtime.holds
                && !runtime.going
            {
                // What is over stays over, whatever time it was to have.
                if is_over(held, TOLD) {
                    runtime.holds = None;
                } else {
                    runtime.going = true;
                }
            }
            // The others of the runtime are renewed by it.
            runtime.renewed = runtime.renewed.min(age);
        }
        Message::Renewed {
            to,
            life,
            age,
            let_go: false,
        } => {
            if !is_for(world, to, life) {
                return;
            }
            let counted = if broken == Broken::CountsFromTheAnswer {
                0
            } else {
                age
            };
            let runtime = &mut world.runtimes[usize::from(to)];
            runtime.renewed = runtime.renewed.min(counted);
            if let Some((epoch, held)) = runtime.holds {
                let limit = if runtime.going { FINISH } else { TOLD };
                // What is over stays over, even if an answer comes that would have prolonged it.
                runtime.holds = if is_over(held, limit) && broken != Broken::ComesBack {
                    None
                } else if runtime.going && broken != Broken::ComesBack {
                    Some((epoch, held))
                } else {
                    Some((epoch, held.min(counted)))
                };
            }
        }
        Message::Lost { to, life } => {
            if is_for(world, to, life) {
                let runtime = &mut world.runtimes[usize::from(to)];
                runtime.holds = None;
                runtime.going = false;
            }
        }
        Message::Release { by, life, epoch } => {
            let Some(epoch) = Epoch::new(u64::from(epoch)) else {
                return;
            };
            let released = authority::release(world.placement().as_ref(), &holder(by, life), epoch);
            if let Ok(Some(placement)) = released {
                world.store(&placement);
                world.marks[usize::from(by)][usize::from(life)] = false;
                world.fuse = 0;
            }
        }
    }
}

/// What an exploration found.
struct Explored {
    states: usize,
    /// The way to the first world that is not safe.
    violation: Option<Vec<String>>,
    /// What was seen on the way, to know that it was not for nothing.
    seen: BTreeSet<&'static str>,
}

/// Visits every world that can be reached, nearest first.
fn explore(scope: Scope, broken: Broken, most: usize) -> Explored {
    let start = World::new();
    let mut known: HashMap<World, Option<(usize, Step)>> = HashMap::new();
    let mut order = vec![start.clone()];
    known.insert(start, None);
    let mut queue = VecDeque::from([0_usize]);
    let mut seen = BTreeSet::new();
    while let Some(at) = queue.pop_front() {
        let world = order[at].clone();
        note(&world, broken, &mut seen);
        if !world.is_safe(broken) {
            let mut way = Vec::new();
            let mut step = known[&world];
            while let Some((before, name)) = step {
                way.push(format!("{name:?}"));
                step = known[&order[before]];
            }
            way.reverse();
            return Explored {
                states: order.len(),
                violation: Some(way),
                seen,
            };
        }
        for (name, after) in steps(&world, scope, broken) {
            if !known.contains_key(&after) {
                known.insert(after.clone(), Some((at, name)));
                queue.push_back(order.len());
                order.push(after);
            }
        }
        assert!(
            order.len() < most,
            "more than {most} states: bound the model"
        );
    }
    Explored {
        states: order.len(),
        violation: None,
        seen,
    }
}

fn note(world: &World, broken: Broken, seen: &mut BTreeSet<&'static str>) {
    if world.may_write(0, broken).is_some() {
        seen.insert("0 writes");
    }
    if world.may_write(1, broken).is_some() {
        seen.insert("1 writes");
        if world.revoked_once && world.is_alive(0, 0) {
            seen.insert("1 writes after 0 was told to let go and lives on");
        }
        if !world.is_alive(0, 0) && world.epoch > 1 {
            seen.insert("1 took over from 0, which is gone");
        }
    }
    if matches!(world.stands, Stands::Revoking { lit: true, .. }) && world.fuse == 0 {
        seen.insert("a fuse burned down");
    }
    if world.runtimes[0].life == 1 && world.may_write(0, broken).is_some() {
        seen.insert("0 writes in its second life");
    }
    if world.epoch == 3 {
        seen.insert("a third epoch");
    }
}

const MOST: usize = 3_000_000;

/// F-095, F-156, NF-027: no order of events lets an old epoch be written after a newer one was granted.
#[test]
fn no_order_of_events_gives_a_session_two_writers() {
    let mut seen = BTreeSet::new();
    for scope in SCOPES {
        let explored = explore(scope, Broken::Nothing, MOST);
        if let Some(way) = explored.violation {
            panic!("two writers in {scope:?}:\n  {}", way.join("\n  "));
        }
        println!("{} states of {scope:?}", explored.states);
        assert!(explored.states > 10_000, "{} states", explored.states);
        seen.extend(explored.seen);
    }
    let seen: Vec<_> = seen.into_iter().collect();
    assert_eq!(
        seen,
        [
            "0 writes",
            "0 writes in its second life",
            "1 took over from 0, which is gone",
            "1 writes",
            "1 writes after 0 was told to let go and lives on",
            "a fuse burned down",
            "a third epoch",
        ]
    );
}

/// The exploration finds what it is there to find: each rule is needed.
#[test]
fn each_rule_that_is_broken_on_purpose_is_found() {
    for (broken, scope) in [
        (Broken::GrantsWhileHeld, 0),
        (Broken::LightsTooEarly, 1),
        (Broken::CountsFromTheAnswer, 0),
        (Broken::KeepsWhileAsking, 0),
        (Broken::WaitsWithoutGuard, 2),
        (Broken::ComesBack, 1),
        (Broken::ForgetsItsRenewal, 0),
        (Broken::TakesOldAnswers, 3),
        (Broken::FinishesWithoutARight, 1),
        (Broken::LightsAShortFuse, 1),
    ] {
        let explored = explore(SCOPES[scope], broken, MOST);
        let (states, way) = (explored.states, explored.violation);
        let way = way.unwrap_or_else(|| panic!("{broken:?} was not found in {states} worlds"));
        println!("{broken:?}, {states} states:\n  {}", way.join("\n  "));
    }
}

/// The model's lengths are those of the real lease, to scale.
#[test]
fn the_model_counts_as_the_lease_does() {
    let term = Term::new(Duration::from_secs(u64::from(TOLD))).expect("whole seconds");
    assert_eq!(term.told(), Duration::from_secs(u64::from(TOLD)));
    assert_eq!(term.kept(), Duration::from_secs(u64::from(KEPT)));
    let fuse = term.fuse(Duration::from_secs(u64::from(FINISH)));
    assert_eq!(fuse, Duration::from_secs(u64::from(FUSE)));
}
