//! A session's record of who speaks for it, and every way in which that changes.

use std::time::Duration;

use rspp_proto::{
    Epoch, RuntimeId, SessionId, WallClock,
    control::{Attempt, Binding, Holder, WhyRevoked},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Term;

/// Whether the time of a revoked holder is being counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fuse {
    /// Not yet. It must be lit after the revocation is stored, or it would be over too early.
    Unlit,
    /// Yes: once its record is gone, so is the holder's right.
    Lit,
}

/// How a session came to have no holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vacated {
    /// Its holder gave it up by itself.
    Released,
    /// Its holder let go because it was told to.
    HandedOver,
}

/// Who speaks for a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Standing {
    /// `by` does, as long as it renews.
    Held {
        /// The one writer.
        by: Holder,
    },
    /// `from` still may, and has been told to let go.
    Revoking {
        /// The one writer.
        from: Holder,
        /// Why.
        why: WhyRevoked,
        /// Whether its time is being counted.
        fuse: Fuse,
        /// How long what it had begun may take to end; a lease at least.
        #[serde(default)]
        finish_within: Duration,
        /// Who is to have it next; anybody if nobody is named or that one is gone.
        to: Option<RuntimeId>,
    },
    /// Nobody does.
    Vacant {
        /// Who did, last.
        last: Holder,
        /// How it came to that.
        how: Vacated,
        /// Who is to have it next.
        to: Option<RuntimeId>,
    },
    /// Nobody ever will again.
    Ended {
        /// Who did, last.
        last: Holder,
        /// When it ended; only how long the record is kept goes by it. Older records do not say it: what
        /// they are of has been over for long.
        #[serde(default)]
        at: WallClock,
    },
}

/// How a session went from one holder to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Passed {
    /// Its holder gave it up by itself.
    Released,
    /// Its holder let go because it was told to.
    HandedOver,
    /// Its holder was gone, or had not let go in time.
    TakenOver,
}

impl Passed {
    /// Its name, as records and commands write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::HandedOver => "handed_over",
            Self::TakenOver => "taken_over",
        }
    }
}

/// An earlier holder of a session, for people and accounts; nothing is decided by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Past {
    /// Who.
    pub holder: Holder,
    /// At which epoch.
    pub epoch: Epoch,
    /// How it went to the next.
    pub how: Passed,
    /// When the next was granted it.
    pub at: WallClock,
}

/// Most earlier holders that are remembered; the oldest are forgotten first.
pub const MAX_PAST: usize = 16;

/// How a session came to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    /// Its holder ended it, and said why.
    Ended {
        /// Why.
        why: String,
    },
    /// Nobody spoke for it, and nobody took it up in time.
    Abandoned,
}

/// A session's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// The session.
    pub session: SessionId,
    /// What it was bound to.
    pub binding: Binding,
    /// The newest epoch. Never falls.
    pub epoch: Epoch,
    /// The request of its holder that it was granted by.
    pub attempt: Attempt,
    /// Who speaks.
    pub standing: Standing,
    /// When the epoch was granted, for people to read; nothing is decided by it.
    pub since: WallClock,
    /// Who had it before, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<Past>,
    /// How it came to its end, if it has; older records do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<Over>,
}

#[cfg(test)]
impl Placement {
    /// A record that a test looks at.
    pub(crate) fn of_acme(standing: Standing) -> Self {
        Self {
            session: SessionId::new("s").expect("not blank"),
            binding: Binding {
                tenant: rspp_proto::TenantId::new("acme").expect("not blank"),
                pipeline: rspp_proto::PipelineVersion::new("desk-1").expect("not blank"),
                policy: None,
                providers: None,
            },
            epoch: Epoch::FIRST,
            attempt: Attempt(1),
            standing,
            since: WallClock(0),
            past: Vec::new(),
            over: None,
        }
    }
}

impl Placement {
    /// Who had it before, now that `next` is granted it.
    fn past_before(&self, next: &Holder, how: Passed, now: WallClock) -> Vec<Past> {
        let mut past = self.past.clone();
        if let Some(last) = self.last_holder().filter(|last| *last != next) {
            past.push(Past {
                holder: last.clone(),
                epoch: self.epoch,
                how,
                at: now,
            });
        }
        let forgotten = past.len().saturating_sub(MAX_PAST);
        past.drain(..forgotten);
        past
    }

    /// Who may write now, if anybody.
    pub fn holder(&self) -> Option<&Holder> {
        match &self.standing {
            Standing::Held { by } => Some(by),
            Standing::Revoking { from, .. } => Some(from),
            Standing::Vacant { .. } | Standing::Ended { .. } => None,
        }
    }

    /// Who may write now; once it has ended, who did last. For people to read.
    pub fn spokesman(&self) -> Option<&Holder> {
        match &self.standing {
            Standing::Held { by } => Some(by),
            Standing::Revoking { from, .. } => Some(from),
            Standing::Ended { last, .. } => Some(last),
            Standing::Vacant { .. } => None,
        }
    }

    /// Who may write now, or else who did last; nobody once the session has ended.
    fn last_holder(&self) -> Option<&Holder> {
        match &self.standing {
            Standing::Held { by } => Some(by),
            Standing::Revoking { from, .. } => Some(from),
            Standing::Vacant { last, .. } => Some(last),
            Standing::Ended { .. } => None,
        }
    }

    /// How long the fuse of a holder that was told to let go burns.
    pub fn fuse(&self, term: Term) -> Option<Duration> {
        match &self.standing {
            Standing::Revoking { finish_within, .. } => Some(term.fuse(*finish_within)),
            Standing::Held { .. } | Standing::Vacant { .. } | Standing::Ended { .. } => None,
        }
    }

    /// Who is to have it next.
    pub fn reserved(&self) -> Option<&RuntimeId> {
        match &self.standing {
            Standing::Revoking { to, .. } | Standing::Vacant { to, .. } => to.as_ref(),
            Standing::Held { .. } | Standing::Ended { .. } => None,
        }
    }
}

/// What the store showed besides the record, in the same transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whether the holder's liveness is there.
    pub holder_alive: bool,
    /// Whether the session's fuse burns.
    pub fuse_burns: bool,
    /// Whether the runtime that it is reserved for is alive, and takes sessions.
    pub reserved_alive: bool,
}

/// A request for a session. The store must find `by` alive in the same transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquire {
    /// The session.
    pub session: SessionId,
    /// Who asks. Whoever asks gives up at once what it held of this session: the answer may be lost.
    pub by: Holder,
    /// Which request it is.
    pub attempt: Attempt,
    /// What the session is bound to if this is its first placement.
    pub binding: Binding,
}

/// A lease was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The new record.
    pub placement: Placement,
    /// Whether somebody else was to speak until now and did not let go by itself.
    pub taken_over: bool,
    /// Whether this very request had been granted before: nothing is to be written.
    pub repeated: bool,
}

/// Why there is no lease, or nothing was done with one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Somebody else speaks for the session.
    #[error("the session is held by {by} at {epoch}")]
    Held {
        /// Who.
        by: Holder,
        /// At which epoch.
        epoch: Epoch,
    },
    /// Its holder has been told to let go and may not have heard of it yet.
    #[error("the session is being let go by {from} at {epoch}")]
    LettingGo {
        /// Who.
        from: Holder,
        /// At which epoch.
        epoch: Epoch,
    },
    /// Somebody else is to have it next.
    #[error("the session is kept for {runtime}")]
    Reserved {
        /// Who.
        runtime: RuntimeId,
    },
    /// A newer lease was granted, or to somebody else.
    #[error("the session is at {held}, not at {offered}")]
    Stale {
        /// The newest epoch.
        held: Epoch,
        /// What was offered.
        offered: Epoch,
    },
    /// The session belongs to another tenant, or there is none.
    #[error("there is no such session")]
    Unknown,
    /// The same runtime has made a later request since, or has given up what this one gave it.
    #[error("the request was overtaken")]
    Overtaken,
    /// The session is over for good.
    #[error("the session has ended")]
    Ended,
}

/// Grants a lease with an epoch above all earlier ones, if nobody else may still write.
///
/// | standing | asked by | and | then |
/// | --- | --- | --- | --- |
/// | none | anybody | | the first epoch |
/// | held | its holder | the same attempt | the same lease again |
/// | held | its holder | a later attempt | the next epoch |
/// | held, revoking, vacant | its last holder | an earlier attempt | refused: overtaken |
/// | revoking, vacant | its last holder | the same attempt | refused: overtaken |
/// | held | another | the holder is alive | refused: held |
/// | held | another | the holder is gone | the next epoch, taken over |
/// | revoking | anybody | the holder is alive, its fuse unlit or burning | refused: letting go |
/// | revoking | anybody | the holder is gone, or its fuse has burned down | the next epoch, taken over |
/// | vacant | anybody | | the next epoch |
/// | vacant, revoking | not whom it is kept for | that one is alive | refused: reserved |
/// | ended | anybody | | refused: ended |
pub fn acquire(
    current: Option<&Placement>,
    seen: Seen,
    ask: &Acquire,
    now: WallClock,
) -> Result<Granted, Refusal> {
    let grant = |epoch, binding: &Binding, past| Placement {
        session: ask.session.clone(),
        binding: binding.clone(),
        epoch,
        attempt: ask.attempt,
        standing: Standing::Held { by: ask.by.clone() },
        since: now,
        past,
        over: None,
    };
    let Some(current) = current else {
        return Ok(Granted {
            placement: grant(Epoch::FIRST, &ask.binding, Vec::new()),
            taken_over: false,
            repeated: false,
        });
    };
    if current.binding.tenant != ask.binding.tenant {
        // As if it were not there: whose it is is nobody else's business (F-114).
        return Err(Refusal::Unknown);
    }
    let held = matches!(current.standing, Standing::Held { .. });
    if current.last_holder() == Some(&ask.by) && ask.attempt <= current.attempt {
        return if held && ask.attempt == current.attempt {
            Ok(Granted {
                placement: current.clone(),
                taken_over: false,
                repeated: true,
            })
        } else {
            Err(Refusal::Overtaken)
        };
    }
    let passed = match &current.standing {
        // Nobody else had it meanwhile.
        Standing::Held { by } if *by == ask.by => Passed::Released,
        Standing::Held { by } if seen.holder_alive => {
            return Err(Refusal::Held {
                by: by.clone(),
                epoch: current.epoch,
            });
        }
        Standing::Held { .. } => Passed::TakenOver,
        Standing::Revoking { from, fuse, .. } => {
            let still_may = seen.holder_alive && (*fuse == Fuse::Unlit || seen.fuse_burns);
            if still_may {
                return Err(Refusal::LettingGo {
                    from: from.clone(),
                    epoch: current.epoch,
                });
            }
            Passed::TakenOver
        }
        Standing::Vacant { how, .. } => match how {
            Vacated::Released => Passed::Released,
            Vacated::HandedOver => Passed::HandedOver,
        },
        Standing::Ended { .. } => return Err(Refusal::Ended),
    };
    if let Some(runtime) = current.reserved()
        && *runtime != ask.by.runtime
        && seen.reserved_alive
    {
        return Err(Refusal::Reserved {
            runtime: runtime.clone(),
        });
    }
    let past = current.past_before(&ask.by, passed, now);
    Ok(Granted {
        placement: grant(current.epoch.next(), &current.binding, past),
        taken_over: passed == Passed::TakenOver,
        repeated: false,
    })
}

/// Whether `by` may write at `epoch`; every write of session-durable state stands in one transaction
/// with this record.
pub fn check(current: Option<&Placement>, by: &Holder, epoch: Epoch) -> Result<(), Refusal> {
    let current = current.ok_or(Refusal::Unknown)?;
    match &current.standing {
        Standing::Ended { .. } => Err(Refusal::Ended),
        Standing::Held { .. } | Standing::Revoking { .. } | Standing::Vacant { .. } => {
            if current.epoch == epoch && current.holder() == Some(by) {
                Ok(())
            } else {
                Err(Refusal::Stale {
                    held: current.epoch,
                    offered: epoch,
                })
            }
        }
    }
}

/// What a holder gives up. Repeating it changes nothing: `None` is nothing to write.
pub fn release(
    current: Option<&Placement>,
    by: &Holder,
    epoch: Epoch,
) -> Result<Option<Placement>, Refusal> {
    let Some(placement) = current else {
        return Err(Refusal::Unknown);
    };
    let how = match &placement.standing {
        Standing::Vacant { last, .. } if last == by && placement.epoch == epoch => return Ok(None),
        Standing::Revoking { .. } => Vacated::HandedOver,
        Standing::Held { .. } | Standing::Vacant { .. } | Standing::Ended { .. } => {
            Vacated::Released
        }
    };
    check(current, by, epoch)?;
    Ok(Some(Placement {
        standing: Standing::Vacant {
            last: by.clone(),
            how,
            to: placement.reserved().cloned(),
        },
        ..placement.clone()
    }))
}

/// Longest reason of an end that is kept, in characters.
const MAX_WHY: usize = 256;

/// Ends a session for good, by its holder. Repeating it changes nothing.
pub fn end(
    current: Option<&Placement>,
    by: &Holder,
    epoch: Epoch,
    why: &str,
    now: WallClock,
) -> Result<Option<Placement>, Refusal> {
    let Some(placement) = current else {
        return Err(Refusal::Unknown);
    };
    match &placement.standing {
        Standing::Ended { last, .. } if last == by && placement.epoch == epoch => return Ok(None),
        Standing::Ended { .. } => return Err(Refusal::Ended),
        Standing::Held { .. } | Standing::Revoking { .. } | Standing::Vacant { .. } => {}
    }
    check(current, by, epoch)?;
    Ok(Some(Placement {
        standing: Standing::Ended {
            last: by.clone(),
            at: now,
        },
        over: Some(Over::Ended {
            why: why.chars().take(MAX_WHY).collect(),
        }),
        ..placement.clone()
    }))
}

/// Ends a session that nobody speaks for and nobody took up. `holder_alive`: whether who may write still
/// renews; the store must find the same in the transaction. `None`: somebody may, or it has ended.
pub fn abandon(current: &Placement, holder_alive: bool, now: WallClock) -> Option<Placement> {
    let last = match &current.standing {
        Standing::Held { by: last } | Standing::Revoking { from: last, .. } if !holder_alive => {
            last
        }
        Standing::Vacant { last, .. } => last,
        Standing::Held { .. } | Standing::Revoking { .. } | Standing::Ended { .. } => return None,
    };
    Some(Placement {
        standing: Standing::Ended {
            last: last.clone(),
            at: now,
        },
        over: Some(Over::Abandoned),
        ..current.clone()
    })
}

/// An order to let go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoke {
    /// Why.
    pub why: WhyRevoked,
    /// How long what was begun may take to end; less than a lease is a lease.
    pub finish_within: Duration,
    /// Who is to have it next.
    pub to: Option<RuntimeId>,
}

/// Tells a session's holder to let go. The holder reads it with its next renewal, or hears of it
/// sooner; once this is stored the fuse has to be lit. Repeating it changes only whom it is kept for: the
/// holder may count on the time that it was first given.
pub fn revoke(current: Option<&Placement>, order: &Revoke) -> Result<Placement, Refusal> {
    let placement = current.ok_or(Refusal::Unknown)?;
    let standing = match &placement.standing {
        Standing::Held { by } => Standing::Revoking {
            from: by.clone(),
            why: order.why,
            fuse: Fuse::Unlit,
            finish_within: order.finish_within,
            to: order.to.clone(),
        },
        Standing::Revoking {
            from,
            why,
            fuse,
            finish_within,
            to: _,
        } => Standing::Revoking {
            from: from.clone(),
            why: *why,
            fuse: *fuse,
            finish_within: *finish_within,
            to: order.to.clone(),
        },
        Standing::Vacant { last, how, .. } => Standing::Vacant {
            last: last.clone(),
            how: *how,
            to: order.to.clone(),
        },
        Standing::Ended { .. } => return Err(Refusal::Ended),
    };
    Ok(Placement {
        standing,
        ..placement.clone()
    })
}

/// Notes that the fuse burns; its record is written in the same transaction. `None`: it is not, or
/// no longer, to be lit.
pub fn light(current: &Placement) -> Option<Placement> {
    match &current.standing {
        Standing::Revoking {
            from,
            why,
            fuse: Fuse::Unlit,
            finish_within,
            to,
        } => Some(Placement {
            standing: Standing::Revoking {
                from: from.clone(),
                why: *why,
                fuse: Fuse::Lit,
                finish_within: *finish_within,
                to: to.clone(),
            },
            ..current.clone()
        }),
        Standing::Revoking {
            fuse: Fuse::Lit, ..
        }
        | Standing::Held { .. }
        | Standing::Vacant { .. }
        | Standing::Ended { .. } => None,
    }
}

/// How far epochs jump when a backup is restored: more than any session is granted between two backups.
const RESTORE_JUMP: u64 = 1 << 20;

/// A session's record after it came back from a backup. Leases may have been granted since that the
/// backup knows nothing of: nobody holds it, and the next epoch is above all of them.
pub fn after_restore(placement: Placement) -> Placement {
    let epoch = placement.epoch.get().saturating_add(RESTORE_JUMP);
    let standing = match placement.standing {
        Standing::Held { by } | Standing::Revoking { from: by, .. } => Standing::Vacant {
            last: by,
            how: Vacated::Released,
            to: None,
        },
        Standing::Vacant { last, how, .. } => Standing::Vacant {
            last,
            how,
            to: None,
        },
        Standing::Ended { last, at } => Standing::Ended { last, at },
    };
    Placement {
        epoch: Epoch::new(epoch).unwrap_or(placement.epoch),
        standing,
        ..placement
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use rspp_proto::{PipelineVersion, TenantId};

    use super::{super::Incarnation, *};

    fn holder(name: &str) -> Holder {
        Holder {
            runtime: RuntimeId::new(name).unwrap(),
            incarnation: Incarnation::FIRST,
        }
    }

    fn epoch(number: u64) -> Epoch {
        Epoch::new(number).unwrap()
    }

    fn binding(tenant: &str) -> Binding {
        Binding {
            tenant: TenantId::new(tenant).unwrap(),
            pipeline: PipelineVersion::new("greeter-1").unwrap(),
            policy: None,
            providers: None,
        }
    }

    fn ask(by: &str, attempt: u64) -> Acquire {
        Acquire {
            session: SessionId::new("s").unwrap(),
            by: holder(by),
            attempt: Attempt(attempt),
            binding: binding("t"),
        }
    }

    fn at(standing: Standing) -> Placement {
        Placement {
            session: SessionId::new("s").unwrap(),
            binding: binding("t"),
            epoch: epoch(7),
            attempt: Attempt(1),
            standing,
            since: WallClock(0),
            past: Vec::new(),
            over: None,
        }
    }

    /// A session that ended before records said when stays readable, and is long over.
    #[test]
    fn an_ended_record_that_does_not_say_when_is_read() {
        let ended = Standing::Ended {
            last: holder("a"),
            at: WallClock(5),
        };
        let mut record = serde_json::to_value(at(ended)).unwrap();
        let standing = record["standing"]["ended"].as_object_mut().unwrap();
        assert!(standing.remove("at").is_some());
        let read: Placement = serde_json::from_value(record).unwrap();
        assert!(matches!(
            read.standing,
            Standing::Ended {
                at: WallClock(0),
                ..
            }
        ));
    }

    fn held(by: &str) -> Placement {
        at(Standing::Held { by: holder(by) })
    }

    fn revoking(fuse: Fuse, to: Option<&str>) -> Placement {
        at(Standing::Revoking {
            from: holder("a"),
            why: WhyRevoked::Drain,
            finish_within: Duration::ZERO,
            fuse,
            to: to.map(|to| RuntimeId::new(to).unwrap()),
        })
    }

    fn vacant(to: Option<&str>) -> Placement {
        at(Standing::Vacant {
            last: holder("a"),
            how: Vacated::HandedOver,
            to: to.map(|to| RuntimeId::new(to).unwrap()),
        })
    }

    const ALIVE: Seen = Seen {
        holder_alive: true,
        fuse_burns: true,
        reserved_alive: true,
    };
    const GONE: Seen = Seen {
        holder_alive: false,
        ..ALIVE
    };
    const BURNED: Seen = Seen {
        fuse_burns: false,
        ..ALIVE
    };
    const ALONE: Seen = Seen {
        reserved_alive: false,
        ..ALIVE
    };

    const NOW: WallClock = WallClock(1);

    fn over(last: Holder) -> Standing {
        Standing::Ended { last, at: NOW }
    }

    /// The epoch that is granted and whether it was taken over, or why not.
    #[track_caller]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a row of the table reads better"
    )]
    fn check_acquire(
        current: Option<Placement>,
        seen: Seen,
        ask: &Acquire,
        expected: Result<(u64, bool), Refusal>,
    ) {
        let found = acquire(current.as_ref(), seen, ask, WallClock(1));
        let found = found.map(|granted| (granted.placement.epoch.get(), granted.taken_over));
        assert_eq!(found, expected);
    }

    /// F-095, P25: the table of [`acquire`], a line a row.
    #[test]
    fn a_lease_is_granted_only_when_nobody_else_may_write() {
        let (a, b) = (ask("a", 2), ask("b", 1));
        let late = ask("a", 0);
        let is_held = || Refusal::Held {
            by: holder("a"),
            epoch: epoch(7),
        };
        let letting_go = || Refusal::LettingGo {
            from: holder("a"),
            epoch: epoch(7),
        };
        let reserved = || Refusal::Reserved {
            runtime: RuntimeId::new("c").unwrap(),
        };
        check_acquire(None, ALIVE, &a, Ok((1, false)));
        check_acquire(Some(held("a")), ALIVE, &ask("a", 1), Ok((7, false)));
        check_acquire(Some(held("a")), ALIVE, &a, Ok((8, false)));
        check_acquire(Some(held("a")), ALIVE, &late, Err(Refusal::Overtaken));
        check_acquire(Some(vacant(None)), ALIVE, &late, Err(Refusal::Overtaken));
        check_acquire(
            Some(vacant(None)),
            ALIVE,
            &ask("a", 1),
            Err(Refusal::Overtaken),
        );
        check_acquire(Some(held("a")), ALIVE, &b, Err(is_held()));
        check_acquire(Some(held("a")), GONE, &b, Ok((8, true)));
        check_acquire(
            Some(revoking(Fuse::Unlit, None)),
            ALIVE,
            &b,
            Err(letting_go()),
        );
        check_acquire(
            Some(revoking(Fuse::Unlit, None)),
            BURNED,
            &b,
            Err(letting_go()),
        );
        check_acquire(
            Some(revoking(Fuse::Lit, None)),
            ALIVE,
            &b,
            Err(letting_go()),
        );
        check_acquire(
            Some(revoking(Fuse::Lit, None)),
            ALIVE,
            &a,
            Err(letting_go()),
        );
        check_acquire(Some(revoking(Fuse::Lit, None)), BURNED, &b, Ok((8, true)));
        check_acquire(Some(revoking(Fuse::Unlit, None)), GONE, &b, Ok((8, true)));
        check_acquire(
            Some(revoking(Fuse::Lit, Some("c"))),
            BURNED,
            &b,
            Err(reserved()),
        );
        check_acquire(Some(vacant(None)), ALIVE, &b, Ok((8, false)));
        check_acquire(Some(vacant(Some("c"))), ALIVE, &b, Err(reserved()));
        check_acquire(Some(vacant(Some("c"))), ALONE, &b, Ok((8, false)));
        check_acquire(Some(vacant(Some("b"))), ALIVE, &b, Ok((8, false)));
        let ended = at(over(holder("a")));
        check_acquire(Some(ended), GONE, &a, Err(Refusal::Ended));
        let foreign = Acquire {
            binding: binding("other"),
            ..b
        };
        check_acquire(Some(vacant(None)), ALIVE, &foreign, Err(Refusal::Unknown));
    }

    /// F-099, P26: what a session was bound to stays, whoever takes it over.
    #[test]
    fn a_session_keeps_its_version_over_its_placements() {
        let newer = Acquire {
            binding: Binding {
                pipeline: PipelineVersion::new("greeter-2").unwrap(),
                ..binding("t")
            },
            ..ask("b", 1)
        };
        let granted = acquire(Some(&held("a")), GONE, &newer, WallClock(1)).unwrap();
        assert_eq!(granted.placement.binding, binding("t"));
    }

    /// F-156: exactly the newest epoch, and only its holder.
    #[test]
    fn a_write_needs_the_very_epoch_and_its_holder() {
        let stale = |offered| {
            Err(Refusal::Stale {
                held: epoch(7),
                offered: epoch(offered),
            })
        };
        let (a, b) = (holder("a"), holder("b"));
        let again = Holder {
            incarnation: Incarnation::FIRST.next(),
            ..a.clone()
        };
        assert_eq!(check(Some(&held("a")), &a, epoch(7)), Ok(()));
        assert_eq!(check(Some(&held("a")), &a, epoch(6)), stale(6));
        assert_eq!(check(Some(&held("a")), &a, epoch(8)), stale(8));
        assert_eq!(check(Some(&held("a")), &b, epoch(7)), stale(7));
        assert_eq!(check(Some(&held("a")), &again, epoch(7)), stale(7));
        assert_eq!(
            check(Some(&revoking(Fuse::Lit, None)), &a, epoch(7)),
            Ok(())
        );
        assert_eq!(check(Some(&vacant(None)), &a, epoch(7)), stale(7));
        assert_eq!(check(None, &a, epoch(7)), Err(Refusal::Unknown));
        let ended = at(over(a.clone()));
        assert_eq!(check(Some(&ended), &a, epoch(7)), Err(Refusal::Ended));
    }

    #[test]
    fn what_is_repeated_changes_nothing() {
        let a = holder("a");
        let released = release(Some(&held("a")), &a, epoch(7)).unwrap().unwrap();
        assert_eq!(release(Some(&released), &a, epoch(7)), Ok(None));
        assert!(release(Some(&released), &a, epoch(6)).is_err());
        let ended = end(Some(&held("a")), &a, epoch(7), "over", NOW)
            .unwrap()
            .unwrap();
        assert_eq!(end(Some(&ended), &a, epoch(7), "over", NOW), Ok(None));
        assert_eq!(
            end(Some(&ended), &holder("b"), epoch(7), "over", NOW),
            Err(Refusal::Ended)
        );
        let order = Revoke {
            why: WhyRevoked::Drain,
            finish_within: Duration::ZERO,
            to: None,
        };
        let revoked = revoke(Some(&held("a")), &order).unwrap();
        assert_eq!(revoke(Some(&revoked), &order).unwrap(), revoked);
        let lit = light(&revoked).unwrap();
        assert_eq!(light(&lit), None);
        // A fuse that burns goes on burning when the order is repeated.
        assert_eq!(revoke(Some(&lit), &order).unwrap(), lit);
    }

    /// F-096: what was kept for a runtime stays kept for it when the holder lets go.
    #[test]
    fn a_hand_over_goes_to_whom_it_was_meant_for() {
        let order = Revoke {
            why: WhyRevoked::Transfer,
            finish_within: Duration::ZERO,
            to: Some(RuntimeId::new("c").unwrap()),
        };
        let revoked = revoke(Some(&held("a")), &order).unwrap();
        let free = release(Some(&revoked), &holder("a"), epoch(7))
            .unwrap()
            .unwrap();
        assert_eq!(free.reserved(), order.to.as_ref());
        check_acquire(Some(free.clone()), ALIVE, &ask("c", 1), Ok((8, false)));
        let Standing::Vacant { how, .. } = free.standing else {
            panic!("{free:?}");
        };
        assert_eq!(how, Vacated::HandedOver);
    }

    /// F-166: what was granted after the backup was taken is stale after it is restored.
    #[test]
    fn a_restored_session_is_above_every_epoch_that_was_granted_since() {
        let restored = after_restore(held("a"));
        assert!(check(Some(&restored), &holder("a"), epoch(7)).is_err());
        let granted = acquire(Some(&restored), ALIVE, &ask("b", 1), WallClock(1)).unwrap();
        assert!(granted.placement.epoch > epoch(7 + 1_000_000));
        let ended = after_restore(at(over(holder("a"))));
        assert!(matches!(ended.standing, Standing::Ended { .. }));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Acquire(u8, u8, Seen),
        Release(u8),
        End(u8),
        Abandon(bool),
        Revoke(Option<u8>),
        Light,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let seen = (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(a, b, c)| Seen {
            holder_alive: a,
            fuse_burns: b,
            reserved_alive: c,
        });
        let step = prop_oneof![
            8 => (0..3u8, 0..4u8, seen).prop_map(|(by, n, seen)| Step::Acquire(by, n, seen)),
            3 => (0..3u8).prop_map(Step::Release),
            1 => (0..3u8).prop_map(Step::End),
            1 => any::<bool>().prop_map(Step::Abandon),
            3 => proptest::option::of(0..3u8).prop_map(Step::Revoke),
            2 => Just(Step::Light),
        ];
        proptest::collection::vec(step, 1..60)
    }

    proptest! {
        /// F-095: whatever happens in whatever order, epochs only rise, each belongs to one holder,
        /// and an ended session stays ended.
        #[test]
        fn epochs_only_rise_and_each_has_one_holder(steps in steps()) {
            let name = |n: u8| ["a", "b", "c"][usize::from(n)];
            let mut current: Option<Placement> = None;
            let mut owners = std::collections::BTreeMap::new();
            for step in steps {
                let before = current.clone();
                let epoch = current.as_ref().map_or(Epoch::FIRST, |p| p.epoch);
                let next = match step {
                    Step::Acquire(by, n, seen) => {
                        let ask = ask(name(by), u64::from(n));
                        acquire(current.as_ref(), seen, &ask, WallClock(1)).ok().map(|g| g.placement)
                    }
                    Step::Release(by) => release(current.as_ref(), &holder(name(by)), epoch).ok().flatten(),
                    Step::End(by) => end(current.as_ref(), &holder(name(by)), epoch, "over", NOW).ok().flatten(),
                    Step::Abandon(alive) => {
                        current.as_ref().and_then(|it| abandon(it, alive, NOW))
                    }
                    Step::Revoke(to) => {
                        let to = to.map(|to| RuntimeId::new(name(to)).unwrap());
                        revoke(current.as_ref(), &Revoke { why: WhyRevoked::Drain, finish_within: Duration::ZERO, to }).ok()
                    }
                    Step::Light => current.as_ref().and_then(light),
                };
                let Some(next) = next else { continue };
                if let Some(before) = before {
                    prop_assert!(next.epoch >= before.epoch);
                    let had_ended = matches!(before.standing, Standing::Ended { .. });
                    prop_assert!(!had_ended);
                    if let (Some(old), Some(new)) = (before.holder(), next.holder()) {
                        prop_assert!(old == new || next.epoch > before.epoch);
                    }
                }
                if let Some(by) = next.holder() {
                    let owner = owners.entry(next.epoch).or_insert_with(|| by.clone());
                    prop_assert_eq!(&*owner, by);
                }
                current = Some(next);
            }
        }
    }
}
