//! What became of each session of a runtime that was emptied: all that it had when it began to go, each by
//! name, and nothing silent (NF-016).

use std::collections::{BTreeMap, BTreeSet};

use rspp_proto::{
    Actor, Epoch, RuntimeId, SessionId, TenantId, WallClock,
    control::{Emptying, Holder},
};
use serde::{Deserialize, Serialize};

use crate::authority::{Over, Passed, Placement, Standing};

/// Most sessions that one record names; a runtime that had more leaves several.
pub const MAX_NAMED: usize = 5_000;

/// That a runtime goes, and sessions that it had then. Its records together name all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// Which life of which runtime.
    pub holder: Holder,
    /// What was to become of its sessions.
    pub how: Emptying,
    /// Who empties it; `None`: it goes by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Actor>,
    /// Since when.
    pub since: WallClock,
    /// What it had.
    pub sessions: BTreeSet<SessionId>,
    /// Whether the audit trail has the account already.
    #[serde(default)]
    pub accounted: bool,
}

impl Drain {
    /// Whose word holds of several records, in their order: an operator's last, else the runtime's own first.
    pub fn head(records: &[Self]) -> Option<&Self> {
        let by_people = records.iter().rfind(|it| it.by.is_some());
        by_people.or(records.first())
    }

    /// What the runtime says that becomes of its sessions as it ends by itself.
    pub fn own(records: &[Self]) -> Option<&Self> {
        records.iter().find(|it| it.by.is_none())
    }

    /// The records that follow when a runtime names what it has because somebody empties it: what is not named
    /// yet, under the word that holds. None, if that was taken back meanwhile.
    #[must_use]
    pub fn naming(before: &[Self], sessions: impl IntoIterator<Item = SessionId>) -> Vec<Self> {
        match Self::head(before) {
            Some(head) => Self::following(before, head, sessions),
            None => Vec::new(),
        }
    }

    /// The records that follow those there are: what is not named yet, under the word that holds then. An
    /// operator's new word is written even if it names nothing new, and so is that of a runtime which ends by
    /// itself while an operator empties it; to say the same again changes nothing.
    #[must_use]
    pub fn following(
        before: &[Self],
        word: &Self,
        sessions: impl IntoIterator<Item = SessionId>,
    ) -> Vec<Self> {
        let holds = Self::head(before).filter(|head| {
            let is_same = head.by == word.by && head.how == word.how;
            word.by.is_none() || is_same
        });
        let head = Self {
            sessions: BTreeSet::new(),
            accounted: false,
            ..holds.unwrap_or(word).clone()
        };
        let is_named = |session: &SessionId| before.iter().any(|it| it.sessions.contains(session));
        let new: Vec<_> = sessions.into_iter().filter(|it| !is_named(it)).collect();
        let mut records: Vec<_> = new
            .chunks(MAX_NAMED)
            .map(|named| Self {
                sessions: named.iter().cloned().collect(),
                ..head.clone()
            })
            .collect();
        if holds.is_none() && records.is_empty() {
            records.push(head);
        }
        let is_emptied = holds.is_some_and(|it| it.by.is_some());
        if is_emptied && word.by.is_none() && Self::own(before).is_none() {
            let own = Self {
                sessions: BTreeSet::new(),
                accounted: false,
                ..word.clone()
            };
            records.insert(0, own);
        }
        records
    }
}

/// What became of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Became {
    /// It is still there.
    Remains,
    /// It went on elsewhere, let go in order.
    Moved {
        /// To whom.
        to: RuntimeId,
        /// The epoch at which that one was granted it.
        epoch: Epoch,
    },
    /// It was over, in order.
    Finished {
        /// Why.
        why: String,
    },
    /// It was let go, and its client has not come for it yet.
    Waits {
        /// Whom it is kept for; `None`: anybody.
        to: Option<RuntimeId>,
    },
    /// Its runtime died with it, or did not let go in time; it went on elsewhere with what was committed.
    TakenOver {
        /// To whom.
        to: RuntimeId,
        /// The epoch at which that one was granted it.
        epoch: Epoch,
    },
    /// Nobody speaks for it, out of order.
    Lost {
        /// Why.
        why: Loss,
    },
}

/// How a session was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Loss {
    /// Its runtime died with it, and nobody has taken it up.
    RuntimeDied,
    /// Nobody took it up for so long that it was ended.
    Abandoned,
    /// Its record is gone, or says nothing of that runtime any more.
    Unrecorded,
}

impl Loss {
    /// Its name, as records and commands write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RuntimeDied => "its runtime died with it",
            Self::Abandoned => "nobody took it up",
            Self::Unrecorded => "its record says nothing of it",
        }
    }
}

impl Became {
    /// Its name, as records and commands write it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Remains => "remains",
            Self::Moved { .. } => "moved",
            Self::Finished { .. } => "finished",
            Self::Waits { .. } => "waits",
            Self::TakenOver { .. } => "taken_over",
            Self::Lost { .. } => "lost",
        }
    }
}

/// What became of a session that a runtime had, by its record now. `alive`: whether that life renews.
pub fn became(placement: Option<&Placement>, had: &Holder, alive: bool) -> Became {
    let Some(placement) = placement else {
        return Became::Lost {
            why: Loss::Unrecorded,
        };
    };
    match &placement.standing {
        Standing::Held { by } | Standing::Revoking { from: by, .. } if by == had => {
            if alive {
                Became::Remains
            } else {
                Became::Lost {
                    why: Loss::RuntimeDied,
                }
            }
        }
        Standing::Vacant { last, to, .. } if last == had => Became::Waits { to: to.clone() },
        Standing::Ended { last, .. } if last == had => match &placement.over {
            Some(Over::Ended { why }) => Became::Finished { why: why.clone() },
            None => Became::Finished { why: String::new() },
            Some(Over::Abandoned) => Became::Lost {
                why: Loss::Abandoned,
            },
        },
        Standing::Held { by: last }
        | Standing::Revoking { from: last, .. }
        | Standing::Vacant { last, .. }
        | Standing::Ended { last, .. } => went_on(placement, had, last),
    }
}

/// It is another's by now, or was: how it went from the one to the next.
fn went_on(placement: &Placement, had: &Holder, last: &Holder) -> Became {
    let past = &placement.past;
    let Some(at) = past.iter().rposition(|it| it.holder == *had) else {
        return Became::Lost {
            why: Loss::Unrecorded,
        };
    };
    let (to, epoch) = match past.get(at + 1) {
        Some(next) => (next.holder.runtime.clone(), next.epoch),
        None => (last.runtime.clone(), placement.epoch),
    };
    match past[at].how {
        Passed::Released | Passed::HandedOver => Became::Moved { to, epoch },
        Passed::TakenOver => Became::TakenOver { to, epoch },
    }
}

/// A session in an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accounted {
    /// Whose it is, if its record is there.
    pub tenant: Option<TenantId>,
    /// What became of it.
    pub became: Became,
}

/// What became of each session that a runtime had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Each session, by id.
    pub sessions: BTreeMap<SessionId, Accounted>,
}

impl Account {
    /// The account of one life of a runtime, by its records and by those of its sessions as they are.
    pub fn of<'a>(
        drains: impl IntoIterator<Item = &'a Drain>,
        alive: bool,
        placement: impl Fn(&SessionId) -> Option<Placement>,
    ) -> Self {
        let mut sessions = BTreeMap::new();
        for drain in drains {
            for session in &drain.sessions {
                let record = placement(session);
                let accounted = Accounted {
                    became: became(record.as_ref(), &drain.holder, alive),
                    tenant: record.map(|it| it.binding.tenant),
                };
                sessions.insert(session.clone(), accounted);
            }
        }
        Self { sessions }
    }

    /// How many sessions became what, by name.
    pub fn sums(&self) -> BTreeMap<&'static str, usize> {
        let mut sums = BTreeMap::new();
        for it in self.sessions.values() {
            *sums.entry(it.became.as_str()).or_default() += 1;
        }
        sums
    }

    /// Whether none is left there.
    pub fn is_settled(&self) -> bool {
        let mut all = self.sessions.values();
        all.all(|it| it.became != Became::Remains)
    }

    /// Those that did not go in order.
    pub fn losses(&self) -> impl Iterator<Item = (&SessionId, &Accounted)> {
        self.sessions.iter().filter(|(_, it)| match it.became {
            Became::TakenOver { .. } | Became::Lost { .. } => true,
            Became::Remains
            | Became::Moved { .. }
            | Became::Finished { .. }
            | Became::Waits { .. } => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::authority::{self, Acquire, Attempt, Incarnation, Revoke, Seen, WhyRevoked};

    fn holder(name: &str) -> Holder {
        Holder {
            runtime: RuntimeId::new(name).unwrap(),
            incarnation: Incarnation::FIRST,
        }
    }

    fn session(name: &str) -> SessionId {
        SessionId::new(name).unwrap()
    }

    fn at(standing: Standing) -> Placement {
        Placement::of_acme(standing)
    }

    fn held(by: &str) -> Placement {
        at(Standing::Held { by: holder(by) })
    }

    /// The session goes to the next, by the rules.
    fn acquired(before: &Placement, by: &str, holder_alive: bool) -> Placement {
        let seen = Seen {
            holder_alive,
            fuse_burns: false,
            reserved_alive: false,
        };
        let ask = Acquire {
            session: before.session.clone(),
            by: holder(by),
            attempt: Attempt(before.epoch.get() + 1),
            binding: before.binding.clone(),
        };
        let granted = authority::acquire(Some(before), seen, &ask, WallClock(9));
        granted.unwrap().placement
    }

    fn released(placement: &Placement, by: &str) -> Placement {
        let released = authority::release(Some(placement), &holder(by), placement.epoch);
        released.unwrap().unwrap()
    }

    fn ended(placement: &Placement, by: &str, why: &str) -> Placement {
        let ended = authority::end(
            Some(placement),
            &holder(by),
            placement.epoch,
            why,
            WallClock(9),
        );
        ended.unwrap().unwrap()
    }

    /// NF-016: what became of a session, by every way that it can go.
    #[test]
    fn each_way_has_its_name() {
        let (a, died) = (holder("a"), Loss::RuntimeDied);
        let to = |name: &str| RuntimeId::new(name).unwrap();
        let epoch = |number| Epoch::new(number).unwrap();
        let check = |placement: &Placement, alive, expected: Became| {
            assert_eq!(became(Some(placement), &a, alive), expected);
        };
        let there = held("a");
        check(&there, true, Became::Remains);
        check(&there, false, Became::Lost { why: died });
        let order = Revoke {
            why: WhyRevoked::Drain,
            finish_within: Duration::ZERO,
            to: None,
        };
        let going = authority::revoke(Some(&there), &order).unwrap();
        check(&going, true, Became::Remains);
        check(&going, false, Became::Lost { why: died });
        let over = ended(&there, "a", "the user hung up");
        let why = "the user hung up".to_owned();
        check(&over, false, Became::Finished { why });
        let let_go = released(&there, "a");
        check(&let_go, false, Became::Waits { to: None });
        let abandoned = authority::abandon(&let_go, false, WallClock(9)).unwrap();
        let why = Loss::Abandoned;
        check(&abandoned, false, Became::Lost { why });
        // It goes on elsewhere; where it goes from there does not matter any more.
        let moved = Became::Moved {
            to: to("b"),
            epoch: epoch(2),
        };
        let on_b = acquired(&let_go, "b", false);
        check(&on_b, false, moved.clone());
        check(&released(&on_b, "b"), false, moved.clone());
        check(&ended(&on_b, "b", "over"), false, moved.clone());
        let on_c = acquired(&released(&on_b, "b"), "c", false);
        check(&on_c, false, moved.clone());
        let handed = authority::release(Some(&going), &a, going.epoch)
            .unwrap()
            .unwrap();
        check(&acquired(&handed, "b", true), true, moved);
        // Nobody let go.
        let taken = Became::TakenOver {
            to: to("b"),
            epoch: epoch(2),
        };
        check(&acquired(&there, "b", false), false, taken.clone());
        let deaf = authority::light(&going).unwrap();
        check(&acquired(&deaf, "b", true), true, taken);
        // Nothing is known of it.
        let unrecorded = Became::Lost {
            why: Loss::Unrecorded,
        };
        check(&held("c"), false, unrecorded.clone());
        assert_eq!(became(None, &a, true), unrecorded);
    }

    /// NF-016: a session that comes back to where it was is still there, and one that was there twice is
    /// accounted for by its last time.
    #[test]
    fn the_last_time_counts() {
        let (a, b) = (holder("a"), holder("b"));
        let on_b = acquired(&released(&held("a"), "a"), "b", false);
        let back = acquired(&released(&on_b, "b"), "a", false);
        assert_eq!(became(Some(&back), &a, true), Became::Remains);
        let again = acquired(&back, "c", false);
        let to = RuntimeId::new("c").unwrap();
        let epoch = Epoch::new(4).unwrap();
        assert_eq!(
            became(Some(&again), &a, false),
            Became::TakenOver { to, epoch }
        );
        let to = RuntimeId::new("a").unwrap();
        let epoch = Epoch::new(3).unwrap();
        assert_eq!(became(Some(&again), &b, false), Became::Moved { to, epoch });
    }

    /// NF-016: an operator's newest word holds, over the runtime's own whichever came first; said again it changes
    /// nothing.
    #[test]
    fn the_newest_word_of_an_operator_holds() {
        let word = |by: Option<&str>, how, since| Drain {
            holder: holder("a"),
            how,
            by: by.map(|by| Actor::new(by).unwrap()),
            since: WallClock(since),
            sessions: BTreeSet::new(),
            accounted: false,
        };
        let head = |records: &[Drain]| {
            let head = Drain::head(records).unwrap();
            let by = head.by.as_ref().map(ToString::to_string);
            (by, head.how, head.since.0)
        };
        let own = Drain::following(&[], &word(None, Emptying::Wait, 1), [session("one")]);
        assert_eq!(head(&own), (None, Emptying::Wait, 1));
        let first = word(Some("ana"), Emptying::Move, 1);
        let mut records = Drain::following(&[], &first, [session("one")]);
        let mut said = |by: Option<&str>, how, since, expected: (&str, Emptying, u64), more| {
            let next = Drain::following(&records, &word(by, how, since), [session("one")]);
            assert_eq!(next.len(), more);
            records.extend(next);
            let (by, how, since) = expected;
            assert_eq!(head(&records), (Some(by.to_owned()), how, since));
        };
        said(
            Some("otto"),
            Emptying::Wait,
            2,
            ("otto", Emptying::Wait, 2),
            1,
        );
        said(
            Some("otto"),
            Emptying::Wait,
            3,
            ("otto", Emptying::Wait, 2),
            0,
        );
        // That it ends is written down, for when the operator takes back what they said.
        said(None, Emptying::Finish, 4, ("otto", Emptying::Wait, 2), 1);
        said(None, Emptying::Finish, 5, ("otto", Emptying::Wait, 2), 0);
        said(
            Some("ana"),
            Emptying::Move,
            5,
            ("ana", Emptying::Move, 5),
            1,
        );
        said(
            Some("otto"),
            Emptying::Wait,
            6,
            ("otto", Emptying::Wait, 6),
            1,
        );
        let own = Drain::own(&records).map(|it| (it.how, it.since.0));
        assert_eq!(own, Some((Emptying::Finish, 4)));
        // What is named later is under the word that holds.
        let late = Drain::following(&records, &word(None, Emptying::Finish, 7), [session("two")]);
        assert_eq!(head(&late), (Some("otto".to_owned()), Emptying::Wait, 6));
        let named = Drain::naming(&records, ["one", "two"].map(session));
        assert_eq!(named, late);
        assert_eq!(
            Drain::naming(&[], [session("one")]),
            [],
            "it was taken back"
        );
    }

    /// NF-016: the account names each session once, adds up, and says what did not go in order.
    #[test]
    fn an_account_adds_up() {
        let drain = Drain {
            holder: holder("a"),
            how: Emptying::Move,
            by: None,
            since: WallClock(1),
            sessions: BTreeSet::new(),
            accounted: false,
        };
        let first = Drain::following(&[], &drain, ["one", "two"].map(session));
        let more = Drain::following(&first, &drain, ["two", "three"].map(session));
        assert_eq!((first.len(), more.len()), (1, 1));
        assert_eq!(more[0].sessions, BTreeSet::from([session("three")]));
        assert_eq!(Drain::following(&first, &drain, [session("one")]), []);
        assert_eq!(
            Drain::following(&[], &drain, []).len(),
            1,
            "that it went is known"
        );
        let many = (0..=MAX_NAMED).map(|n| session(&format!("s{n}")));
        assert_eq!(Drain::following(&[], &drain, many).len(), 2);
        let records: Vec<_> = first.into_iter().chain(more).collect();
        let account = Account::of(&records, false, |it| match it.as_str() {
            "one" => Some(ended(&held("a"), "a", "over")),
            "two" => Some(acquired(&held("a"), "b", false)),
            _three => None,
        });
        let sums = BTreeMap::from([("finished", 1), ("taken_over", 1), ("lost", 1)]);
        assert_eq!(account.sums(), sums);
        assert_eq!(
            account.sums().values().sum::<usize>(),
            account.sessions.len()
        );
        assert!(account.is_settled());
        let lost: Vec<_> = account.losses().map(|(it, _)| it.as_str()).collect();
        assert_eq!(lost, ["three", "two"]);
        let there = Account::of(&records, true, |_| Some(held("a")));
        assert!(!there.is_settled());
    }
}
