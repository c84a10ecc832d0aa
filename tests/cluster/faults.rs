//! A fleet on three members of etcd of which everything is killed, frozen, cut off, slowed down, replaced and
//! moved, at random, while people talk; what all of its processes said is read when it is over.
//!
//! ```text
//! RSPP_SEED=42    the faults of that seed, in the same order (what they hit is real, and never quite the same)
//! RSPP_FAULTS=1000 cargo test -p rspp-tests --test cluster faults -- --nocapture    that many
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rspp_controlplane_api::wire;
use rspp_tests::{
    etcd::{Cluster, Setup},
    link::Weather,
    sim::Dice,
};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::{
    callers::Party,
    processes::{ENDS_WITHIN, Fleet, Ground, check},
};

const FAULTS: u64 = 60;
/// How many there are between two lines of progress.
const PROGRESS: u64 = 100;
const RUNTIMES: [&str; 3] = ["a", "b", "c"];
const PLANES: usize = 2;
const MEMBERS: usize = 3;
const CALLERS: u64 = 6;

/// What is done to one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillRuntime,
    FreezeRuntime,
    CutRuntime,
    LoseAnswersOfRuntime,
    SlowRuntime,
    ReplaceRuntime,
    KillPlane,
    FreezePlane,
    CutPlaneFromStore,
    LoseAnswersOfStore,
    SlowStore,
    ReplacePlane,
    KillMember,
    FreezeMember,
    CutMember,
    SkewRuntime,
    SkewPlane,
    MoveSession,
}

/// The more often it stands here, the more often it happens.
const OFTEN: [Fault; 24] = [
    Fault::KillRuntime,
    Fault::KillRuntime,
    Fault::FreezeRuntime,
    Fault::FreezeRuntime,
    Fault::FreezeRuntime,
    Fault::CutRuntime,
    Fault::CutRuntime,
    Fault::LoseAnswersOfRuntime,
    Fault::LoseAnswersOfRuntime,
    Fault::SlowRuntime,
    Fault::ReplaceRuntime,
    Fault::KillPlane,
    Fault::FreezePlane,
    Fault::CutPlaneFromStore,
    Fault::LoseAnswersOfStore,
    Fault::SlowStore,
    Fault::ReplacePlane,
    Fault::KillMember,
    Fault::FreezeMember,
    Fault::CutMember,
    Fault::CutMember,
    Fault::SkewRuntime,
    Fault::SkewPlane,
    Fault::MoveSession,
];

/// What makes it good again.
#[derive(Clone, Debug)]
enum Remedy {
    StartRuntime(String),
    ThawRuntime(String),
    HealRuntime(String),
    StartPlane(String),
    ThawPlane(String),
    HealPlane(String),
    StartMember(usize),
    ThawMember(usize),
    RejoinMember(usize),
    SetClock(String),
    /// Is started again once it has ended, which it has to by then.
    ReplaceRuntime(String),
    ReplacePlane(String),
}

struct Trouble {
    fleet: Fleet,
    cluster: Cluster,
    dice: Dice,
    /// What is to be made good, and when.
    remedies: Vec<(Instant, Remedy)>,
    /// Who suffers from something already.
    suffer: BTreeSet<String>,
    done: BTreeMap<Fault, u32>,
}

impl Trouble {
    /// One of these that suffers from nothing, if enough of them would be left.
    fn victim(&mut self, names: &[String], most: usize) -> Option<String> {
        let well = |it: &&String| !self.suffer.contains(*it);
        let well: Vec<String> = names.iter().filter(well).cloned().collect();
        if names.len() - well.len() >= most {
            return None;
        }
        let victim = self.dice.pick(&well);
        self.suffer.insert(victim.clone());
        Some(victim)
    }

    fn later(&mut self, ms: std::ops::Range<u64>, remedy: Remedy) {
        let after = Duration::from_millis(self.dice.within(ms));
        self.remedies.push((Instant::now() + after, remedy));
    }

    /// Does something to somebody; `false` if they all suffer enough.
    async fn inject(&mut self, fault: Fault) -> bool {
        let runtimes = RUNTIMES.map(str::to_owned);
        let planes: Vec<String> = self.fleet.planes.keys().cloned().collect();
        let members = ["members".to_owned()];
        let victim = match fault {
            Fault::KillRuntime
            | Fault::FreezeRuntime
            | Fault::CutRuntime
            | Fault::LoseAnswersOfRuntime
            | Fault::SlowRuntime
            | Fault::SkewRuntime
            | Fault::ReplaceRuntime => self.victim(&runtimes, RUNTIMES.len() - 1),
            Fault::KillPlane
            | Fault::FreezePlane
            | Fault::CutPlaneFromStore
            | Fault::LoseAnswersOfStore
            | Fault::SlowStore
            | Fault::SkewPlane
            | Fault::ReplacePlane => self.victim(&planes, PLANES - 1),
            // A majority is left.
            Fault::KillMember | Fault::FreezeMember | Fault::CutMember => self.victim(&members, 1),
            Fault::MoveSession => Some(format!("caller-{}", self.dice.within(0..CALLERS))),
        };
        let Some(name) = victim else {
            return false;
        };
        let slow = Weather::Slow(Duration::from_millis(self.dice.within(50..600)));
        let member = self.dice.within(0..MEMBERS as u64) as usize;
        // An hour and more, either way.
        let skew = self.dice.within(0..8_000).cast_signed() - 4_000;
        match fault {
            Fault::KillRuntime => {
                self.fleet.runtimes[&name].process.signal(Signal::KILL);
                self.later(200..3_000, Remedy::StartRuntime(name));
            }
            Fault::FreezeRuntime => {
                self.fleet.runtimes[&name].process.signal(Signal::STOP);
                self.later(300..9_000, Remedy::ThawRuntime(name));
            }
            Fault::CutRuntime => {
                self.fleet.set_weather(&name, Weather::Silent);
                self.later(500..8_000, Remedy::HealRuntime(name));
            }
            Fault::LoseAnswersOfRuntime => {
                self.fleet.set_weather(&name, Weather::AnswersLost);
                self.later(500..6_000, Remedy::HealRuntime(name));
            }
            Fault::SlowRuntime => {
                self.fleet.set_weather(&name, slow);
                self.later(1_000..6_000, Remedy::HealRuntime(name));
            }
            Fault::ReplaceRuntime => {
                self.fleet.runtimes[&name].process.signal(Signal::TERM);
                let until = Instant::now() + ENDS_WITHIN;
                self.remedies.push((until, Remedy::ReplaceRuntime(name)));
            }
            Fault::KillPlane => {
                self.fleet.planes[&name].process.signal(Signal::KILL);
                self.later(100..3_000, Remedy::StartPlane(name));
            }
            Fault::FreezePlane => {
                self.fleet.planes[&name].process.signal(Signal::STOP);
                self.later(300..6_000, Remedy::ThawPlane(name));
            }
            Fault::CutPlaneFromStore => {
                self.set_store(&name, Weather::Silent);
                self.later(500..6_000, Remedy::HealPlane(name));
            }
            Fault::LoseAnswersOfStore => {
                self.set_store(&name, Weather::AnswersLost);
                self.later(300..4_000, Remedy::HealPlane(name));
            }
            Fault::SlowStore => {
                self.set_store(&name, slow);
                self.later(1_000..5_000, Remedy::HealPlane(name));
            }
            Fault::ReplacePlane => {
                self.fleet.planes[&name].process.signal(Signal::TERM);
                let until = Instant::now() + ENDS_WITHIN;
                self.remedies.push((until, Remedy::ReplacePlane(name)));
            }
            Fault::KillMember => {
                self.cluster.kill(member);
                self.later(200..3_000, Remedy::StartMember(member));
            }
            Fault::FreezeMember => {
                self.cluster.freeze(member);
                self.later(300..4_000, Remedy::ThawMember(member));
            }
            Fault::CutMember => {
                self.cluster.cut_off(member);
                self.later(500..6_000, Remedy::RejoinMember(member));
            }
            Fault::SkewRuntime => {
                self.fleet.set_clock(&name, skew);
                self.later(1_000..8_000, Remedy::SetClock(name));
            }
            Fault::SkewPlane => {
                self.fleet.set_clock(&name, skew);
                self.later(1_000..6_000, Remedy::SetClock(name));
            }
            Fault::MoveSession => {
                let request_id = format!("move-{}", self.dice.roll());
                let moved = self.fleet.operator.move_session(wire::MoveSessionRequest {
                    tenant: "acme".to_owned(),
                    session: name,
                    request_id,
                    ..wire::MoveSessionRequest::default()
                });
                // It may be nobody's at this moment, and nobody may be there to be asked.
                if moved.await.is_err() {
                    return false;
                }
            }
        }
        *self.done.entry(fault).or_default() += 1;
        true
    }

    fn set_store(&self, plane: &str, weather: Weather) {
        for way in &self.fleet.planes[plane].ways {
            way.set(weather);
        }
    }

    /// Makes good what is due; all of it, if `all`.
    async fn remedy(&mut self, all: bool) -> Result<(), String> {
        let now = Instant::now();
        for (at, remedy) in std::mem::take(&mut self.remedies) {
            let due = all || at <= now;
            match remedy {
                Remedy::ReplaceRuntime(name) => {
                    let member = self.fleet.runtimes.get_mut(&name).expect("it was there");
                    match member.process.ended() {
                        Some(ended) if self.fleet.is_orderly(&name, ended) => {
                            self.fleet.restart_runtime(&name);
                            self.suffer.remove(&name);
                        }
                        Some(ended) => return Err(format!("{name} was to end, and {ended}")),
                        None if at <= now => return Err(format!("{name} does not end")),
                        None => self.remedies.push((at, Remedy::ReplaceRuntime(name))),
                    }
                }
                Remedy::ReplacePlane(name) => {
                    let plane = self.fleet.planes.get_mut(&name).expect("it was there");
                    match plane.process.ended() {
                        Some(ended) if self.fleet.is_orderly(&name, ended) => {
                            self.fleet.restart_plane(&name);
                            self.suffer.remove(&name);
                        }
                        Some(ended) => return Err(format!("{name} was to end, and {ended}")),
                        None if at <= now => return Err(format!("{name} does not end")),
                        None => self.remedies.push((at, Remedy::ReplacePlane(name))),
                    }
                }
                remedy if !due => self.remedies.push((at, remedy)),
                Remedy::StartRuntime(name) => {
                    self.fleet.restart_runtime(&name);
                    self.suffer.remove(&name);
                }
                Remedy::ThawRuntime(name) => {
                    self.fleet.runtimes[&name].process.signal(Signal::CONT);
                    self.suffer.remove(&name);
                }
                Remedy::HealRuntime(name) => {
                    self.fleet.set_weather(&name, Weather::Fair);
                    self.suffer.remove(&name);
                }
                Remedy::StartPlane(name) => {
                    self.fleet.restart_plane(&name);
                    self.suffer.remove(&name);
                }
                Remedy::ThawPlane(name) => {
                    self.fleet.planes[&name].process.signal(Signal::CONT);
                    self.suffer.remove(&name);
                }
                Remedy::HealPlane(name) => {
                    self.set_store(&name, Weather::Fair);
                    self.suffer.remove(&name);
                }
                Remedy::StartMember(member) => {
                    self.cluster.restart(member).await;
                    self.suffer.remove("members");
                }
                Remedy::ThawMember(member) => {
                    self.cluster.thaw(member);
                    self.suffer.remove("members");
                }
                Remedy::RejoinMember(member) => {
                    self.cluster.rejoin(member);
                    self.suffer.remove("members");
                }
                Remedy::SetClock(name) => {
                    self.fleet.set_clock(&name, 0);
                    self.suffer.remove(&name);
                }
            }
        }
        Ok(())
    }

    /// Nobody has ended who was not made to.
    fn look_after(&mut self) -> Result<(), String> {
        let runtimes = self.fleet.runtimes.iter_mut();
        let planes = self.fleet.planes.iter_mut();
        let all = runtimes.map(|(name, it)| (name, &mut it.process));
        for (name, process) in all.chain(planes.map(|(name, it)| (name, &mut it.process))) {
            if !self.suffer.contains(name)
                && let Some(ended) = process.ended()
            {
                return Err(format!("{name} has ended by itself: {ended}"));
            }
        }
        Ok(())
    }

    /// Breaks things for as long as it takes, then makes all of them good.
    async fn rage(&mut self, faults: u64) -> Result<(), String> {
        let mut next = Instant::now();
        let mut left = faults;
        while left > 0 {
            self.remedy(false).await?;
            self.look_after()?;
            if Instant::now() >= next {
                let fault = self.dice.pick(&OFTEN);
                if self.inject(fault).await {
                    left -= 1;
                    if left > 0 && left.is_multiple_of(PROGRESS) {
                        println!("{} of {faults} faults", faults - left);
                    }
                    next = Instant::now() + Duration::from_millis(self.dice.within(100..700));
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
        while !self.remedies.is_empty() {
            self.remedy(true).await?;
            sleep(Duration::from_millis(20)).await;
        }
        for name in self.fleet.planes.keys() {
            self.fleet.plane_serves(name).await;
        }
        for name in RUNTIMES {
            self.fleet.serves(name).await;
            self.fleet.ready(name).await;
        }
        Ok(())
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Issue 4, F-095, F-111, F-155, F-156, NF-016, NF-027: whatever happens to whichever process, a session has one
/// writer epoch at a time, nothing of an older one is accepted after a newer was granted, no turn is lost
/// of which somebody was told that it was committed, and sessions keep their names; when all is well again
/// everybody is answered, and the trail of what was done is whole.
#[tokio::test(flavor = "multi_thread")]
async fn faults_of_all_kinds_give_no_session_two_writers_and_lose_no_turn() {
    let seed = number("RSPP_SEED").unwrap_or_else(rand);
    let faults = number("RSPP_FAULTS").unwrap_or(FAULTS);
    println!("RSPP_SEED={seed} RSPP_FAULTS={faults}");
    let mut dice = Dice::new(seed);
    let setup = Setup {
        members: MEMBERS,
        is_divisible: true,
        ..Setup::default()
    };
    let cluster = Cluster::start_as(&setup).await;
    let ground = Ground {
        etcd: (0..MEMBERS).map(|member| cluster.address(member)).collect(),
        planes: PLANES,
        has_clocks: true,
        ..Ground::default()
    };
    let fleet = Fleet::start_on(ground, &RUNTIMES).await;
    let party = Party::begin(&fleet.operator, CALLERS, &mut dice);
    let mut trouble = Trouble {
        fleet,
        cluster,
        dice,
        remedies: Vec::new(),
        suffer: BTreeSet::new(),
        done: BTreeMap::new(),
    };
    let began = Instant::now();
    let raged = trouble.rage(faults).await;
    let took = began.elapsed();
    let talked = party.end().await;
    let fleet = &trouble.fleet;
    let done = &trouble.done;
    let failed = |why: String| panic!("RSPP_SEED={seed}: after {done:?}: {why} {}", fleet.logs());
    raged.unwrap_or_else(failed);
    let sum = talked.unwrap_or_else(|why| panic!("RSPP_SEED={seed}: {why} {}", fleet.logs()));
    let notes = fleet.notes();
    let frames = notes.iter().filter(|note| note.what == "frame").count();
    let epochs: BTreeSet<_> = notes.iter().map(|it| (&it.session, it.epoch)).collect();
    println!("{:?}", trouble.done);
    println!("{sum:?}");
    let epochs = epochs.len();
    println!("{faults} faults in {took:?}: {frames} frames accepted under {epochs} epochs");
    check(&notes);
    assert!(sum.committed > 0 && epochs > CALLERS as usize);
    let trail = fleet.operator.verify_trail(wire::VerifyTrailRequest {});
    let trail = trail.await.expect("it is verified");
    assert_eq!(trail.broken, "", "RSPP_SEED={seed}");
}

/// A seed that was not used before.
fn rand() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}
