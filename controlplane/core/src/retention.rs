//! How long records of what is over are kept.
//!
//! Whose right it would touch is never decided here by a wall clock: that a holder is gone is a record
//! that the store deleted, and how long it has been gone is counted by the one who looks. Only how long
//! an ended session is remembered goes by the date in its record.

use std::{collections::BTreeMap, time::Duration};

use rspp_proto::{Monotonic, WallClock};
use thiserror::Error;

use crate::authority::{self, Placement, Standing};

/// Shortest that anything is kept: requests may be repeated for this long, and proofs of leases and
/// tokens that speak of a record are valid for less.
pub const SHORTEST: Duration = Duration::from_mins(15);

/// How long records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// A session that has ended, so that its status can be asked for.
    pub ended: Duration,
    /// A session that nobody speaks for may be taken up for this long; then it is ended.
    pub abandoned: Duration,
    /// A runtime that is gone.
    pub runtimes: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            ended: Duration::from_hours(1),
            abandoned: Duration::from_hours(1),
            runtimes: Duration::from_hours(1),
        }
    }
}

/// A time that is too short to keep anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("`{what}` is kept for {SHORTEST:?} at least, not {asked:?}")]
pub struct RetentionError {
    /// Which.
    pub what: &'static str,
    /// What was asked for.
    pub asked: Duration,
}

impl Retention {
    /// These times, if all are long enough.
    pub fn checked(self) -> Result<Self, RetentionError> {
        let all = [
            ("ended", self.ended),
            ("abandoned", self.abandoned),
            ("runtimes", self.runtimes),
        ];
        match all.into_iter().find(|(_, asked)| *asked < SHORTEST) {
            Some((what, asked)) => Err(RetentionError { what, asked }),
            None => Ok(self),
        }
    }
}

/// What is to become of a session's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Keep,
    /// Nobody speaks for it. It becomes this when that has lasted for long enough.
    Abandoned(Box<Placement>),
    /// It has been over for long enough.
    Remove,
}

/// What is to become of a session's record, `holder_alive` being whether who may write still renews.
pub fn fate(placement: &Placement, holder_alive: bool, ended: Duration, now: WallClock) -> Fate {
    if let Standing::Ended { at, .. } = placement.standing {
        let kept = u64::try_from(ended.as_millis()).unwrap_or(u64::MAX);
        return if now.0.saturating_sub(at.0) >= kept {
            Fate::Remove
        } else {
            Fate::Keep
        };
    }
    match authority::abandon(placement, holder_alive, now) {
        Some(after) => Fate::Abandoned(Box::new(after)),
        None => Fate::Keep,
    }
}

/// Since when each of several was seen dead, by one who looks at all of them again and again, a part at
/// a time.
///
/// What is named must stay dead under that name: a session nobody speaks for *at an epoch*, one life of
/// a runtime. So nothing that happens between two looks goes unnoticed.
#[derive(Clone, Debug)]
pub struct Vigil<K> {
    dead: BTreeMap<K, Seen>,
    pass: u64,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    since: Monotonic,
    pass: u64,
}

impl<K> Default for Vigil<K> {
    fn default() -> Self {
        Self {
            dead: BTreeMap::new(),
            pass: 0,
        }
    }
}

impl<K: Ord> Vigil<K> {
    /// Notes that it is dead now; says how long that has been seen.
    pub fn saw(&mut self, name: K, now: Monotonic) -> Duration {
        let pass = self.pass;
        let seen = self.dead.entry(name).or_insert(Seen { since: now, pass });
        seen.pass = pass;
        now.since(seen.since)
    }

    /// All were looked at: what was not seen dead is forgotten.
    pub fn passed(&mut self) {
        let pass = self.pass;
        self.dead.retain(|_, seen| seen.pass == pass);
        self.pass += 1;
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.dead.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.dead.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use rspp_proto::RuntimeId;

    use super::*;
    use crate::authority::{Fuse, Holder, Incarnation, Vacated, WhyRevoked};

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_secs(seconds))
    }

    /// A session that somebody may speak for is never touched, an ended one only after its time.
    #[test]
    fn what_becomes_of_a_record() {
        let by = Holder {
            runtime: RuntimeId::new("a").unwrap(),
            incarnation: Incarnation::FIRST,
        };
        let held = Standing::Held { by: by.clone() };
        let revoking = Standing::Revoking {
            from: by.clone(),
            why: WhyRevoked::Drain,
            fuse: Fuse::Lit,
            finish_within: Duration::ZERO,
            to: None,
        };
        let vacant = Standing::Vacant {
            last: by.clone(),
            how: Vacated::Released,
            to: None,
        };
        let over = |at| Standing::Ended {
            last: by.clone(),
            at: WallClock(at),
        };
        let hour = Duration::from_hours(1);
        let now = WallClock(10_000_000);
        let abandoned = || {
            Fate::Abandoned(Box::new(Placement {
                over: Some(authority::Over::Abandoned),
                ..Placement::of_acme(over(now.0))
            }))
        };
        let table = [
            (held.clone(), true, Fate::Keep),
            (held, false, abandoned()),
            (revoking.clone(), true, Fate::Keep),
            (revoking, false, abandoned()),
            (vacant, false, abandoned()),
            (over(now.0 - 3_600_000), false, Fate::Remove),
            (over(now.0 - 3_599_999), false, Fate::Keep),
            // Dated by a clock that goes ahead of ours.
            (over(now.0 + 1), false, Fate::Keep),
        ];
        for (standing, alive, expected) in table {
            let found = fate(&Placement::of_acme(standing.clone()), alive, hour, now);
            assert_eq!(found, expected, "{standing:?}, alive: {alive}");
        }
    }

    #[test]
    fn who_lives_again_is_counted_anew() {
        let mut vigil = Vigil::default();
        assert_eq!(vigil.saw("a", at(10)), Duration::ZERO);
        vigil.saw("b", at(10));
        vigil.passed();
        assert_eq!(vigil.saw("a", at(25)), Duration::from_secs(15));
        vigil.passed();
        assert_eq!((vigil.len(), vigil.is_empty()), (1, false));
        assert_eq!(vigil.saw("b", at(40)), Duration::ZERO);
    }

    #[test]
    fn nothing_is_kept_for_less_than_what_speaks_of_it() {
        assert_eq!(Retention::default().checked(), Ok(Retention::default()));
        let short = Retention {
            runtimes: Duration::from_mins(14),
            ..Retention::default()
        };
        let error = short.checked().unwrap_err();
        assert_eq!(error.what, "runtimes");
    }
}
