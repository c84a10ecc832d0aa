//! Keeps a node's right to speak for its sessions: joins the control plane, renews everything at once,
//! asks for sessions and gives them up, and says in time when a right is over (design §5).
//!
//! Answers, orders and the time come in; requests and verdicts come out. Who carries the requests, and
//! over what, is the host's business. A node has one right, that of its present life, and every session
//! that it was granted in that life stands on it; so one renewal prolongs them all.
//!
//! Three rules keep two nodes from speaking at once:
//! - a right counts from when the newest renewal that was answered was *sent*, and ends a tenth early;
//! - each request is answered once, and what was given up as lost is not listened to any more;
//! - a session that is to be let go is not prolonged by any renewal after that: what time it was given to
//!   finish counts from when the last renewal before was sent.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use rspp_proto::{Epoch, Monotonic, SessionId};

use crate::authority::LeaseTimer;

/// Why nobody can be asked.
const AWAY: &str = "the control plane does not answer";

/// How patient a keeper is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeeperPolicy {
    /// A request that is not answered for so long is lost; a renewal earlier, by what is left of the right.
    pub answer_within: Duration,
    /// How long a session is asked for while somebody else may still speak for it. Longer than a lease:
    /// whoever takes over from a dead node waits for its lease to end.
    pub patience: Duration,
    /// The first wait before something is asked for again.
    pub again_first: Duration,
    /// The longest.
    pub again_most: Duration,
    /// The wait after the control plane has refused to let this node in: somebody has to change something first.
    pub again_refused: Duration,
    /// Where in the last fifth of each wait this node asks, from 0 to 255, so that not all ask at once.
    pub spread: u8,
}

impl Default for KeeperPolicy {
    fn default() -> Self {
        Self {
            answer_within: Duration::from_secs(1),
            patience: Duration::from_secs(7),
            again_first: Duration::from_millis(100),
            again_most: Duration::from_secs(2),
            again_refused: Duration::from_secs(15),
            spread: 0,
        }
    }
}

impl KeeperPolicy {
    /// The wait after so many failures in a row.
    fn again(&self, failures: u32) -> Duration {
        let full = self.again_first.saturating_mul(1 << failures.min(16));
        let full = full.min(self.again_most);
        full * (5 * 255 - u32::from(self.spread)) / (5 * 255)
    }
}

/// One request; no two have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// How a session is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parting {
    /// Somebody else may go on with it.
    Release,
    /// It is over for good.
    End,
}

/// What a node asks the control plane for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A new life.
    Join,
    /// To go on.
    Renew {
        /// What it believes to hold.
        sessions: Vec<(SessionId, Epoch)>,
    },
    /// To speak for a session.
    Acquire {
        /// The session.
        session: SessionId,
        /// Rises with every wish of this life. Repeated after a lost answer it has one effect.
        attempt: u64,
    },
    /// To speak for it no longer.
    Part {
        /// The session.
        session: SessionId,
        /// What was held.
        epoch: Epoch,
        /// How.
        how: Parting,
    },
}

/// What the control plane said, or that it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A new life began, for so long.
    Joined {
        /// From when it was asked for.
        ttl: Duration,
    },
    /// The life goes on.
    Renewed {
        /// From when it was asked for.
        ttl: Duration,
        /// What is not held any more, whatever the node believes.
        lost: Vec<(SessionId, Epoch)>,
        /// What is to be let go, and how long what was begun may take to end.
        going: Vec<(SessionId, Epoch, Duration)>,
    },
    /// The session is this node's.
    Granted {
        /// Under this epoch.
        epoch: Epoch,
        /// Whether another placement spoke for it before.
        taken_over: bool,
    },
    /// Somebody else may still speak for it; that will end.
    Busy {
        /// Who, for people.
        reason: String,
    },
    /// No, and asking again is no use.
    Refused {
        /// Why.
        reason: String,
    },
    /// It is given up, or was not held.
    Parted,
    /// This life of the node is over.
    Stranger,
    /// Nobody was reached.
    Unreachable {
        /// What was in the way.
        reason: String,
    },
}

/// Why a session is not to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The control plane cannot be asked.
    Away {
        /// What is in the way.
        reason: String,
    },
    /// Somebody else speaks for it and did not stop in time.
    Busy {
        /// Who, for people.
        reason: String,
    },
    /// The control plane says no.
    Refused {
        /// Why.
        reason: String,
    },
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Ask; answer with [`Keeper::answered`], at most once.
    Ask {
        /// The request's name.
        request: RequestId,
        /// What for.
        ask: Ask,
    },
    /// A life has begun: sessions may be taken.
    Joined,
    /// The right of the whole node counts from here now.
    Renewed {
        /// When it was asked for.
        asked: Monotonic,
        /// For how long.
        ttl: Duration,
    },
    /// A session is this node's.
    Granted {
        /// Which.
        session: SessionId,
        /// Under this epoch.
        epoch: Epoch,
        /// Since when the right counts.
        asked: Monotonic,
        /// For how long.
        ttl: Duration,
        /// Whether another placement spoke for it before.
        taken_over: bool,
    },
    /// A session is not to be had.
    Denied {
        /// Which.
        session: SessionId,
        /// Why not.
        denial: Denial,
    },
    /// A session is to be let go; it may be spoken for until then, and not a moment longer: not even so long,
    /// if the right of the whole node ends before.
    LetGo {
        /// Which.
        session: SessionId,
        /// What was held.
        epoch: Epoch,
        /// Since when its time counts.
        asked: Monotonic,
        /// For how long, as a lease is.
        ttl: Duration,
    },
    /// A session is somebody else's, or may be: silence, at once.
    Lost {
        /// Which.
        session: SessionId,
        /// What was held.
        epoch: Epoch,
    },
    /// The life is over, and with it every session that stood on it.
    Left {
        /// Why.
        reason: String,
    },
}

/// Where the node stands with the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// No life: nothing may be said in its name.
    Out {
        again_at: Monotonic,
        asking: Option<RequestId>,
        failures: u32,
        reason: String,
    },
    /// A life.
    In {
        right: Right,
        renewing: Option<RequestId>,
        renew_at: Monotonic,
    },
    /// It wants none any more.
    Gone,
}

/// A right, and since when it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Right {
    asked: Monotonic,
    ttl: Duration,
}

impl Right {
    fn silent_at(self) -> Monotonic {
        LeaseTimer::new(self.asked, self.ttl).silent_at()
    }

    /// Earlier than the sessions ask themselves: they find it answered.
    fn renew_at(self) -> Monotonic {
        self.asked + self.ttl * 3 / 10
    }
}

/// How a node stands with one session.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hold {
    Wanted(Wish),
    Held {
        epoch: Epoch,
        /// Once it is to be let go: until when at the latest.
        until: Option<Monotonic>,
    },
    Parting {
        epoch: Epoch,
        how: Parting,
        asking: Option<RequestId>,
        again_at: Monotonic,
        failures: u32,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Wish {
    attempt: u64,
    asking: Option<RequestId>,
    again_at: Monotonic,
    failures: u32,
    /// How long somebody waits; `None` if nobody does any more.
    until: Option<Monotonic>,
    /// Whether it may have been granted without our knowing.
    unsure: bool,
    /// It is to be let go already.
    told: Option<Told>,
    last: Denial,
}

/// The order to let go of a session, and by which right its time counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    epoch: Epoch,
    right: Right,
    finish_within: Duration,
}

#[derive(Clone, Debug)]
struct Flight {
    about: About,
    sent: Monotonic,
    lost_at: Monotonic,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum About {
    Join,
    Renew,
    Session(SessionId),
}

/// Looked at when its time has come, ends before beginnings; what has been settled meanwhile is passed over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Silent,
    Session(SessionId),
    Lost(RequestId),
    Join,
    Renew,
}

/// A node's rights.
#[derive(Debug)]
pub struct Keeper {
    policy: KeeperPolicy,
    standing: Standing,
    sessions: BTreeMap<SessionId, Hold>,
    flights: BTreeMap<RequestId, Flight>,
    timers: BTreeSet<(Monotonic, Timer)>,
    next_request: u64,
    next_attempt: u64,
    duties: VecDeque<Duty>,
}

impl Keeper {
    /// A keeper that asks to join when it is first ticked.
    pub fn new(policy: KeeperPolicy) -> Self {
        let mut keeper = Self {
            policy,
            standing: Standing::Gone,
            sessions: BTreeMap::new(),
            flights: BTreeMap::new(),
            timers: BTreeSet::new(),
            next_request: 1,
            next_attempt: 1,
            duties: VecDeque::new(),
        };
        keeper.out(Monotonic::ZERO, 0, AWAY.to_owned());
        keeper
    }

    /// The next thing to do; call until `None`.
    pub fn poll_duty(&mut self) -> Option<Duty> {
        self.duties.pop_front()
    }

    /// When to [`tick`](Self::tick) at the latest.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Whether nothing is held, wished for or being given up.
    pub fn is_idle(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Whether a session is held, wished for or being given up.
    pub fn knows(&self, session: &SessionId) -> bool {
        self.sessions.contains_key(session)
    }

    /// Whether this node has a life, as of `now`.
    pub fn is_in(&self, now: Monotonic) -> bool {
        match &self.standing {
            Standing::In { right, .. } => now < right.silent_at(),
            Standing::Out { .. } | Standing::Gone => false,
        }
    }

    /// Whether this node may speak for a session under `epoch`, as of `now`.
    pub fn may_speak(&self, now: Monotonic, session: &SessionId, epoch: Epoch) -> bool {
        let Some(Hold::Held { epoch: held, until }) = self.sessions.get(session) else {
            return false;
        };
        self.is_in(now) && *held == epoch && until.is_none_or(|until| now < until)
    }

    /// The time has come, or some of it has passed.
    pub fn tick(&mut self, now: Monotonic) {
        // However late this comes, the end of a right comes before what else was due: nothing is sent
        // in the name of a life that is over.
        self.lapse(now);
        while let Some((at, _)) = self.timers.first()
            && *at <= now
        {
            let (_, timer) = self.timers.pop_first().expect("it was looked at");
            match timer {
                Timer::Join => self.join(now),
                Timer::Renew => self.renew(now),
                Timer::Silent => self.lapse(now),
                Timer::Lost(request) => {
                    let reason = AWAY.to_owned();
                    self.answered(now, request, Answer::Unreachable { reason });
                }
                Timer::Session(session) => self.session_due(now, &session),
            }
        }
    }

    /// Somebody wants to speak for a session here. Whoever spoke for it here before stops.
    pub fn want(&mut self, now: Monotonic, session: SessionId) {
        self.lapse(now);
        match &self.standing {
            Standing::In { .. } => {}
            Standing::Out { reason, .. } => {
                let denial = Denial::Away {
                    reason: reason.clone(),
                };
                self.duties.push_back(Duty::Denied { session, denial });
                return;
            }
            Standing::Gone => {
                let reason = "the node is shutting down".to_owned();
                let denial = Denial::Away { reason };
                self.duties.push_back(Duty::Denied { session, denial });
                return;
            }
        }
        match self.sessions.remove(&session) {
            Some(Hold::Held { epoch, .. }) => self.duties.push_back(Duty::Lost {
                session: session.clone(),
                epoch,
            }),
            Some(Hold::Wanted(Wish { until: Some(_), .. })) => {
                let reason = "the same session was asked for again".to_owned();
                self.duties.push_back(Duty::Denied {
                    session: session.clone(),
                    denial: Denial::Refused { reason },
                });
            }
            Some(Hold::Wanted(Wish { until: None, .. }) | Hold::Parting { .. }) | None => {}
        }
        let wish = Wish {
            attempt: self.next_attempt,
            asking: None,
            again_at: now,
            failures: 0,
            until: Some(now + self.policy.patience),
            unsure: false,
            told: None,
            last: Denial::Away {
                reason: AWAY.to_owned(),
            },
        };
        self.next_attempt += 1;
        self.sessions.insert(session.clone(), Hold::Wanted(wish));
        self.session_due(now, &session);
    }

    /// Nobody waits for the session any more.
    pub fn unwant(&mut self, now: Monotonic, session: &SessionId) {
        if let Some(Hold::Wanted(wish)) = self.sessions.get_mut(session) {
            wish.until = None;
            self.abandon(now, session);
        }
    }

    /// The session is not spoken for here any more.
    pub fn part(&mut self, now: Monotonic, session: &SessionId, epoch: Epoch, how: Parting) {
        self.lapse(now);
        match self.sessions.get(session) {
            Some(Hold::Held { epoch: held, .. }) if *held == epoch => {
                let parting = Hold::Parting {
                    epoch,
                    how,
                    asking: None,
                    again_at: now,
                    failures: 0,
                };
                self.sessions.insert(session.clone(), parting);
                self.session_due(now, session);
            }
            Some(Hold::Held { .. } | Hold::Wanted(_) | Hold::Parting { .. }) | None => {}
        }
    }

    /// The control plane wants a session back. However often it is told, the first time counts: from
    /// then on no renewal prolongs the right to it.
    pub fn told_to_let_go(
        &mut self,
        now: Monotonic,
        session: &SessionId,
        epoch: Epoch,
        finish_within: Duration,
    ) {
        self.lapse(now);
        let Standing::In { right, .. } = &self.standing else {
            return;
        };
        let told = Told {
            epoch,
            right: *right,
            finish_within,
        };
        match self.sessions.get_mut(session) {
            Some(Hold::Held { epoch: held, .. }) if *held == epoch => self.going(session, told),
            // The answer that grants it is still to come.
            Some(Hold::Wanted(wish)) if wish.told.is_none_or(|it| it.epoch < epoch) => {
                wish.told = Some(told);
            }
            Some(Hold::Held { .. } | Hold::Wanted(_) | Hold::Parting { .. }) | None => {}
        }
    }

    /// The time of a session that is held and to be let go begins to run out, if it does not yet.
    fn going(&mut self, session: &SessionId, told: Told) {
        let Some(Hold::Held { epoch, until }) = self.sessions.get_mut(session) else {
            return;
        };
        if *epoch != told.epoch || until.is_some() {
            return;
        }
        // It may believe in its lease at least. The order was stored, and its fuse lit, after the renewal
        // was sent that did not know of it yet.
        let Right { asked, ttl } = told.right;
        let ttl = ttl.max(told.finish_within);
        let end = Right { asked, ttl }.silent_at();
        *until = Some(end);
        self.timers.insert((end, Timer::Session(session.clone())));
        self.duties.push_back(Duty::LetGo {
            session: session.clone(),
            epoch: told.epoch,
            asked,
            ttl,
        });
    }

    /// The clock stood still while the world went on: whatever was granted may be over.
    pub fn clock_stood_still(&mut self, now: Monotonic) {
        if matches!(self.standing, Standing::In { .. }) {
            self.leave(now, "the machine was suspended");
        }
    }

    /// This node wants to speak for nobody any more: what it holds it has parted with before.
    pub fn retire(&mut self, now: Monotonic) {
        self.leave(now, "the node is shutting down");
        self.standing = Standing::Gone;
        self.timers.clear();
    }

    /// A request was answered. One that has been given up as lost, or was answered before, is not
    /// listened to.
    pub fn answered(&mut self, now: Monotonic, request: RequestId, answer: Answer) {
        self.lapse(now);
        let Some(flight) = self.flights.remove(&request) else {
            return;
        };
        self.timers.remove(&(flight.lost_at, Timer::Lost(request)));
        let Flight { about, sent, .. } = flight;
        if answer == Answer::Stranger && about != About::Join {
            self.leave(now, "the control plane does not know this node any more");
            return;
        }
        match about {
            About::Join => self.join_answered(now, sent, answer),
            About::Renew => self.renewal_answered(now, sent, answer),
            About::Session(session) => {
                if self.asks(&session) == Some(request) {
                    self.session_answered(now, sent, &session, answer);
                }
            }
        }
    }

    // --- the node's own life -----------------------------------------------------------------

    fn lapse(&mut self, now: Monotonic) {
        if let Standing::In { right, .. } = &self.standing
            && now >= right.silent_at()
        {
            self.leave(now, AWAY);
        }
    }

    /// Nothing is left of this life; the next one is asked for.
    fn leave(&mut self, now: Monotonic, reason: &str) {
        self.flights.clear();
        self.timers.clear();
        for (session, hold) in std::mem::take(&mut self.sessions) {
            match hold {
                Hold::Held { epoch, .. } => self.duties.push_back(Duty::Lost { session, epoch }),
                Hold::Wanted(Wish { until: Some(_), .. }) => {
                    let denial = Denial::Away {
                        reason: reason.to_owned(),
                    };
                    self.duties.push_back(Duty::Denied { session, denial });
                }
                // Nobody waits, and who is dead holds nothing.
                Hold::Wanted(Wish { until: None, .. }) | Hold::Parting { .. } => {}
            }
        }
        if matches!(self.standing, Standing::In { .. }) {
            let reason = reason.to_owned();
            self.duties.push_back(Duty::Left { reason });
        }
        self.out(now, 0, reason.to_owned());
    }

    fn out(&mut self, again_at: Monotonic, failures: u32, reason: String) {
        self.standing = Standing::Out {
            again_at,
            asking: None,
            failures,
            reason,
        };
        self.timers.insert((again_at, Timer::Join));
    }

    fn join(&mut self, now: Monotonic) {
        let Standing::Out {
            again_at,
            asking: asking @ None,
            ..
        } = &mut self.standing
        else {
            return;
        };
        if *again_at > now {
            return;
        }
        *asking = Some(RequestId(self.next_request));
        self.ask(now, About::Join, Ask::Join, self.policy.answer_within);
    }

    fn join_answered(&mut self, now: Monotonic, sent: Monotonic, answer: Answer) {
        let Standing::Out { failures, .. } = &self.standing else {
            return;
        };
        let failures = failures + 1;
        match answer {
            Answer::Joined { ttl } => {
                self.duties.push_back(Duty::Joined);
                self.count_from(Right { asked: sent, ttl });
                // An answer that took longer than the right itself is worth nothing.
                self.lapse(now);
            }
            Answer::Refused { reason } => {
                self.out(now + self.policy.again_refused, failures, reason);
            }
            Answer::Unreachable { reason } | Answer::Busy { reason } => {
                self.out(now + self.policy.again(failures - 1), failures, reason);
            }
            Answer::Stranger | Answer::Renewed { .. } | Answer::Granted { .. } | Answer::Parted => {
                let reason = "the control plane answered something else".to_owned();
                self.out(now + self.policy.again_most, failures, reason);
            }
        }
    }

    fn count_from(&mut self, right: Right) {
        if let Standing::In { right: older, .. } = &self.standing {
            self.timers.remove(&(older.silent_at(), Timer::Silent));
        }
        self.standing = Standing::In {
            right,
            renewing: None,
            renew_at: right.renew_at(),
        };
        self.timers.insert((right.renew_at(), Timer::Renew));
        self.timers.insert((right.silent_at(), Timer::Silent));
        let Right { asked, ttl } = right;
        self.duties.push_back(Duty::Renewed { asked, ttl });
    }

    fn renew(&mut self, now: Monotonic) {
        let Standing::In {
            right,
            renewing: renewing @ None,
            renew_at,
        } = &mut self.standing
        else {
            return;
        };
        if *renew_at > now {
            return;
        }
        // Short enough for two more tries, whatever is left of the right.
        let within = self.policy.answer_within.min(right.ttl / 5);
        *renewing = Some(RequestId(self.next_request));
        let sessions = self
            .sessions
            .iter()
            .filter_map(|(session, hold)| match hold {
                Hold::Held { epoch, .. } => Some((session.clone(), *epoch)),
                Hold::Wanted(_) | Hold::Parting { .. } => None,
            });
        let sessions = sessions.collect();
        self.ask(now, About::Renew, Ask::Renew { sessions }, within);
    }

    fn renewal_answered(&mut self, now: Monotonic, sent: Monotonic, answer: Answer) {
        let Standing::In {
            right,
            renewing,
            renew_at,
        } = &mut self.standing
        else {
            return;
        };
        *renewing = None;
        match answer {
            Answer::Renewed { ttl, lost, going } => {
                // Before the right is prolonged: what is to be let go counts by the older one.
                for (session, epoch, finish_within) in going {
                    self.told_to_let_go(now, &session, epoch, finish_within);
                }
                for (session, epoch) in lost {
                    self.lost(session, epoch);
                }
                self.count_from(Right { asked: sent, ttl });
            }
            Answer::Unreachable { .. }
            | Answer::Busy { .. }
            | Answer::Refused { .. }
            | Answer::Joined { .. }
            | Answer::Granted { .. }
            | Answer::Parted
            | Answer::Stranger => {
                *renew_at = now + right.ttl / 20;
                self.timers.insert((*renew_at, Timer::Renew));
            }
        }
    }

    fn lost(&mut self, session: SessionId, epoch: Epoch) {
        let held = match self.sessions.get(&session) {
            Some(Hold::Held { epoch: held, .. }) => *held == epoch,
            Some(Hold::Wanted(_) | Hold::Parting { .. }) | None => false,
        };
        if held {
            self.sessions.remove(&session);
            self.duties.push_back(Duty::Lost { session, epoch });
        }
    }

    // --- one session -------------------------------------------------------------------------

    /// Does what is due for a session.
    fn session_due(&mut self, now: Monotonic, session: &SessionId) {
        let request = RequestId(self.next_request);
        let ask = match self.sessions.get_mut(session) {
            None => return,
            Some(Hold::Held { epoch, until }) => {
                let epoch = *epoch;
                if until.is_some_and(|until| until <= now) {
                    self.duties.push_back(Duty::Lost {
                        session: session.clone(),
                        epoch,
                    });
                    // The control plane waits for no word of it, but others can go on at once.
                    self.part(now, session, epoch, Parting::Release);
                }
                return;
            }
            Some(Hold::Wanted(wish)) => {
                if wish.until.is_some_and(|until| until <= now) {
                    let denial = wish.last.clone();
                    wish.until = None;
                    self.duties.push_back(Duty::Denied {
                        session: session.clone(),
                        denial,
                    });
                    self.abandon(now, session);
                    return;
                }
                if wish.asking.is_some() || wish.again_at > now {
                    return;
                }
                wish.asking = Some(request);
                if let Some(until) = wish.until {
                    self.timers.insert((until, Timer::Session(session.clone())));
                }
                Ask::Acquire {
                    session: session.clone(),
                    attempt: wish.attempt,
                }
            }
            Some(Hold::Parting {
                epoch,
                how,
                asking,
                again_at,
                ..
            }) => {
                if asking.is_some() || *again_at > now {
                    return;
                }
                *asking = Some(request);
                Ask::Part {
                    session: session.clone(),
                    epoch: *epoch,
                    how: *how,
                }
            }
        };
        let about = About::Session(session.clone());
        self.ask(now, about, ask, self.policy.answer_within);
    }

    /// Nobody waits for what was wished for. If it may have been granted it has to be given up, or it
    /// would be nobody's for as long as this life lasts.
    fn abandon(&mut self, now: Monotonic, session: &SessionId) {
        match self.sessions.get(session) {
            Some(Hold::Wanted(wish)) if wish.asking.is_none() && !wish.unsure => {
                self.sessions.remove(session);
            }
            Some(Hold::Wanted(_)) => self.session_due(now, session),
            Some(Hold::Held { .. } | Hold::Parting { .. }) | None => {}
        }
    }

    /// The request for a session that waits for its answer. What was asked for an older wish does not.
    fn asks(&self, session: &SessionId) -> Option<RequestId> {
        match self.sessions.get(session)? {
            Hold::Wanted(Wish { asking, .. }) | Hold::Parting { asking, .. } => *asking,
            Hold::Held { .. } => None,
        }
    }

    fn session_answered(
        &mut self,
        now: Monotonic,
        sent: Monotonic,
        session: &SessionId,
        answer: Answer,
    ) {
        let right = match &self.standing {
            Standing::In { right, .. } => *right,
            Standing::Out { .. } | Standing::Gone => return,
        };
        match self.sessions.get_mut(session) {
            Some(Hold::Wanted(wish)) => {
                wish.asking = None;
                let waited_for = wish.until.is_some();
                let denial = match answer {
                    Answer::Granted { epoch, taken_over } => {
                        self.granted(now, sent.min(right.asked), session, epoch, taken_over);
                        return;
                    }
                    Answer::Busy { reason } => {
                        wish.unsure = false;
                        Denial::Busy { reason }
                    }
                    Answer::Unreachable { reason } => {
                        wish.unsure = true;
                        Denial::Away { reason }
                    }
                    Answer::Refused { reason } => {
                        self.sessions.remove(session);
                        if waited_for {
                            let denial = Denial::Refused { reason };
                            let session = session.clone();
                            self.duties.push_back(Duty::Denied { session, denial });
                        }
                        return;
                    }
                    Answer::Joined { .. }
                    | Answer::Renewed { .. }
                    | Answer::Parted
                    | Answer::Stranger => {
                        wish.unsure = true;
                        let reason = "the control plane answered something else".to_owned();
                        Denial::Away { reason }
                    }
                };
                wish.last = denial;
                wish.again_at = now + self.policy.again(wish.failures);
                wish.failures += 1;
                let again = (wish.again_at, Timer::Session(session.clone()));
                if waited_for || wish.unsure {
                    self.timers.insert(again);
                } else {
                    self.sessions.remove(session);
                }
            }
            Some(Hold::Parting {
                asking,
                again_at,
                failures,
                ..
            }) => {
                *asking = None;
                match answer {
                    // Whoever says no says that there is nothing to give up.
                    Answer::Parted | Answer::Refused { .. } => {
                        self.sessions.remove(session);
                    }
                    Answer::Busy { .. }
                    | Answer::Unreachable { .. }
                    | Answer::Joined { .. }
                    | Answer::Renewed { .. }
                    | Answer::Granted { .. }
                    | Answer::Stranger => {
                        *again_at = now + self.policy.again(*failures);
                        *failures += 1;
                        let again = (*again_at, Timer::Session(session.clone()));
                        self.timers.insert(again);
                    }
                }
            }
            Some(Hold::Held { .. }) | None => {}
        }
    }

    fn granted(
        &mut self,
        now: Monotonic,
        asked: Monotonic,
        session: &SessionId,
        epoch: Epoch,
        taken_over: bool,
    ) {
        let wish = self
            .sessions
            .insert(session.clone(), Hold::Held { epoch, until: None });
        let Some(Hold::Wanted(wish)) = wish else {
            return;
        };
        let Some(until) = wish.until else {
            self.part(now, session, epoch, Parting::Release);
            return;
        };
        self.timers
            .remove(&(until, Timer::Session(session.clone())));
        let Standing::In { right, .. } = &self.standing else {
            return;
        };
        self.duties.push_back(Duty::Granted {
            session: session.clone(),
            epoch,
            asked,
            ttl: right.ttl,
            taken_over,
        });
        if let Some(told) = wish.told {
            self.going(session, told);
        }
    }

    fn ask(&mut self, now: Monotonic, about: About, ask: Ask, within: Duration) {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        let lost_at = now + within;
        let flight = Flight {
            about,
            sent: now,
            lost_at,
        };
        self.flights.insert(request, flight);
        self.timers.insert((lost_at, Timer::Lost(request)));
        self.duties.push_back(Duty::Ask { request, ask });
    }
}
