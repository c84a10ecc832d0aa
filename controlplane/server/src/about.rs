//! What a control plane tells its operators: how it stands, and which runtimes have ended.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rspp_controlplane::{
    authority::{Placement, Standing},
    fleet::{Duty, Presence},
    keys,
};
use rspp_controlplane_api::millis;
use rspp_controlplane_storage::election::Office;
use rspp_proto::{WallClock, control::Holder};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::plane::{Plane, wall_clock};

/// Lives that have ended and are not told of yet; of more, the oldest are forgotten.
const MAX_ENDED: usize = 1_024;

/// The duties of all, and since when this replica has them.
pub(crate) struct InOffice {
    office: Office,
    since: WallClock,
}

/// Lives of runtimes that have ended, and when that was seen here. Every replica sees them; the leader tells
/// of them. One that was not elected yet when a runtime ended with the last leader tells of it then.
#[derive(Default)]
pub(crate) struct EndedLives(VecDeque<EndedLife>);

struct EndedLife {
    at: Instant,
    holder: Holder,
    /// What it held then.
    sessions: usize,
}

impl EndedLives {
    fn put(&mut self, ended: EndedLife) {
        if self.0.len() == MAX_ENDED {
            self.0.pop_front();
        }
        self.0.push_back(ended);
    }
}

impl Plane {
    /// Notes that this replica has the duties of all.
    pub(crate) fn leads(&self, office: &Office) {
        let held = self.shared.office.lock();
        let mut held = held.expect("no code panics while locked");
        let is_same = |it: &InOffice| it.office.elected() == office.elected();
        if !held.as_ref().is_some_and(is_same) {
            *held = Some(InOffice {
                office: office.clone(),
                since: wall_clock(),
            });
        }
    }

    /// Sees lives of runtimes end.
    pub(crate) async fn follow_lives(self) {
        let shared = &self.shared;
        let (mut alive, mut runtimes) = (shared.alive.changes(), shared.runtimes.changes());
        let mut lives = BTreeSet::new();
        loop {
            let known: Vec<Holder> = {
                let runtimes = shared.runtimes.records();
                runtimes.values().map(|it| it.holder.clone()).collect()
            };
            let is_alive = |holder: &Holder| self.seems_alive(holder);
            let (go_on, ended): (BTreeSet<Holder>, BTreeSet<Holder>) =
                lives.into_iter().partition(is_alive);
            lives = go_on;
            lives.extend(known.into_iter().filter(is_alive));
            for holder in ended {
                let ended = EndedLife {
                    at: Instant::now(),
                    sessions: self.held_by(&holder),
                    holder,
                };
                let told = shared.ended_lives.lock();
                told.expect("no code panics while locked").put(ended);
            }
            let changed = tokio::select! {
                changed = alive.changed() => changed,
                changed = runtimes.changed() => changed,
            };
            if changed.is_err() {
                return; // Nothing is followed any more.
            }
        }
    }

    /// Tells of runtimes that have ended. A duty of the leader's, so that each is told of once.
    pub(crate) fn tell_ended_lives(&self) {
        let ended = {
            let ended = self.shared.ended_lives.lock();
            let mut ended = ended.expect("no code panics while locked");
            std::mem::take(&mut ended.0)
        };
        // Before that there was another leader, who has told of it.
        let lately = self.settings().term.kept() * 2;
        for EndedLife {
            at,
            holder,
            sessions,
        } in ended
        {
            if at.elapsed() > lately {
                continue;
            }
            let newest = self.runtime(&holder.runtime).map(|it| it.holder);
            if newest.is_some_and(|newest| newest.incarnation > holder.incarnation) {
                tracing::info!(%holder, sessions, "an earlier life of a runtime has ended");
            } else if self.goes_away(&holder) {
                tracing::info!(%holder, sessions, "a runtime has left");
            } else {
                tracing::warn!(%holder, sessions, "a runtime died: its sessions may be taken over");
            }
        }
    }

    /// How many sessions a life of a runtime holds by their records.
    fn held_by(&self, holder: &Holder) -> usize {
        let placements = self.shared.placements.records();
        let there = |it: &&Placement| it.holder() == Some(holder);
        placements.values().filter(there).count()
    }

    /// How it stands, for operators: who it is, who leads, what it knows of sessions and runtimes.
    pub fn about(&self) -> Value {
        let shared = &self.shared;
        let leads_since_ms = {
            let held = shared.office.lock().expect("no code panics while locked");
            let lasts = held.as_ref().filter(|it| it.office.lasts());
            lasts.map(|it| it.since.0)
        };
        let leader = shared.leader.get(&keys::leader()).map(|it| it.replica);
        json!({
            "replica": self.settings().replica,
            "version": env!("CARGO_PKG_VERSION"),
            "leads": leads_since_ms.is_some(),
            "leads_since_ms": leads_since_ms,
            "leader": leader,
            "store": {
                "kind": shared.store.name(),
                "seen_ms_ago": millis(self.fleet_age()),
            },
            "sessions": self.about_sessions(),
            "runtimes": self.about_runtimes(),
        })
    }

    fn about_sessions(&self) -> Value {
        let mut lives = BTreeMap::<Holder, bool>::new();
        let mut is_alive = |holder: &Holder| {
            let known = lives.entry(holder.clone());
            *known.or_insert_with(|| self.seems_alive(holder))
        };
        let (mut held, mut moving, mut waiting, mut lost, mut ended) = (0, 0, 0, 0, 0);
        for placement in self.shared.placements.records().values() {
            let count: &mut u64 = match &placement.standing {
                Standing::Held { by } if is_alive(by) => &mut held,
                Standing::Revoking { from, .. } if is_alive(from) => &mut moving,
                Standing::Held { .. } | Standing::Revoking { .. } => &mut lost,
                Standing::Vacant { .. } => &mut waiting,
                Standing::Ended { .. } => &mut ended,
            };
            *count += 1;
        }
        json!({ "held": held, "moving": moving, "waiting": waiting, "lost": lost, "ended": ended })
    }

    fn about_runtimes(&self) -> Value {
        let (mut serving, mut draining, mut suspect, mut dead, mut left) = (0, 0, 0, 0, 0);
        for sight in self.sights() {
            let count: &mut u64 = match (sight.presence, sight.runtime.duty) {
                (Presence::Alive, Duty::Serving) => &mut serving,
                (Presence::Alive, Duty::Draining) => &mut draining,
                (Presence::Suspect, _) => &mut suspect,
                (Presence::Dead, _) => &mut dead,
                (Presence::Left, _) => &mut left,
            };
            *count += 1;
        }
        json!({
            "serving": serving,
            "draining": draining,
            "suspect": suspect,
            "dead": dead,
            "left": left,
        })
    }
}
