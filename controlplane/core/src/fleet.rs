//! The runtimes: what they said of themselves, whether they still renew, and whether they take anything on.

use std::time::Duration;

pub use rspp_proto::control::{Description, Endpoint, Load, PROTOCOL, ProtocolWindow};
use rspp_proto::{RuntimeId, WallClock, abi::SchemaVersion};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::authority::{Holder, Incarnation};

/// Most ways to reach a runtime.
pub const MAX_ENDPOINTS: usize = 16;

/// Whether a runtime takes sessions on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// It does.
    Serving,
    /// It takes no new ones and gets rid of those it has (F-106).
    Draining,
}

/// A runtime's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// Who, in its newest life.
    pub holder: Holder,
    /// What it says of itself.
    pub description: Description,
    /// Whether it takes sessions on.
    pub duty: Duty,
    /// When it registered, for people.
    pub since: WallClock,
}

/// Why a runtime may not join.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum JoinError {
    /// It speaks another protocol.
    #[error(
        "this control plane speaks protocols {} to {}, the runtime {} to {}: upgrade the {} first",
        ours.oldest, ours.newest, theirs.oldest, theirs.newest,
        if theirs.newest < ours.oldest { "runtime" } else { "control plane" }
    )]
    Protocol {
        /// What we speak.
        ours: ProtocolWindow,
        /// What it speaks.
        theirs: ProtocolWindow,
    },
    /// It reads no events that we know of.
    #[error("`{0}` is no event schema version")]
    Events(String),
    /// It writes events of another major version: what it keeps nobody else here reads.
    #[error(
        "this control plane's fleet speaks event schema v{}, the runtime {theirs}: upgrade the {} first",
        SchemaVersion::CURRENT.major,
        if theirs.major < SchemaVersion::CURRENT.major { "runtime" } else { "control plane" }
    )]
    ForeignEvents {
        /// What it speaks.
        theirs: SchemaVersion,
    },
    /// It can be reached nowhere, or in too many ways.
    #[error("a runtime has 1 to {MAX_ENDPOINTS} endpoints, this one {0}")]
    Endpoints(usize),
    /// It takes no sessions.
    #[error("a runtime without capacity cannot serve")]
    NoCapacity,
}

/// Registers a runtime, in its next life: the one after its record's, and later than any life whose record
/// was removed, or a process of that time would be taken for this one. A runtime that was being drained
/// comes back serving: it is another process.
pub fn register(
    before: Option<&Runtime>,
    removed: Option<Incarnation>,
    runtime: RuntimeId,
    description: Description,
    now: WallClock,
) -> Result<Runtime, JoinError> {
    let theirs = description.protocol;
    if theirs.oldest > theirs.newest || PROTOCOL.common(theirs).is_none() {
        return Err(JoinError::Protocol {
            ours: PROTOCOL,
            theirs,
        });
    }
    match description.events.parse::<SchemaVersion>() {
        Ok(theirs) if theirs.major == SchemaVersion::CURRENT.major => {}
        Ok(theirs) => return Err(JoinError::ForeignEvents { theirs }),
        Err(_) => return Err(JoinError::Events(description.events)),
    }
    if !(1..=MAX_ENDPOINTS).contains(&description.endpoints.len()) {
        return Err(JoinError::Endpoints(description.endpoints.len()));
    }
    if description.capacity == 0 {
        return Err(JoinError::NoCapacity);
    }
    let last = before.map(|before| before.holder.incarnation).max(removed);
    let incarnation = last.map_or(Incarnation::FIRST, Incarnation::next);
    Ok(Runtime {
        holder: Holder {
            runtime,
            incarnation,
        },
        description,
        duty: Duty::Serving,
        since: now,
    })
}

/// How a runtime seems to be, by when it was last heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Heard lately.
    Alive,
    /// A heartbeat is missing: gets nothing new, keeps what it has.
    Suspect,
    /// Its lease has ended, by the store's clock: what it had may be taken over.
    Dead,
    /// The same, and it was emptied before: nobody waits for it.
    Left,
}

impl Presence {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Left => "left",
        }
    }
}

/// What is known of a runtime when somebody asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Its record.
    pub runtime: Runtime,
    /// What it last said.
    pub load: Load,
    /// How it seems to be.
    pub presence: Presence,
}

/// How a runtime seems to be. `has_lease`: its liveness is in the store; `goes`: it has said that it goes, or an
/// operator empties it; `silent_for`: how long ago the asker last saw it renew, on the asker's own clock.
///
/// Only the store decides that somebody is dead, for that gives others the right to its sessions. To
/// suspect somebody needs no such care: it only keeps new sessions away.
pub fn presence(
    has_lease: bool,
    goes: bool,
    silent_for: Duration,
    heartbeat: Duration,
) -> Presence {
    if !has_lease {
        if goes { Presence::Left } else { Presence::Dead }
    } else if silent_for > heartbeat * 2 {
        Presence::Suspect
    } else {
        Presence::Alive
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use rspp_proto::Region;

    use super::*;

    pub(crate) fn description(region: &str, capacity: u32) -> Description {
        Description {
            region: Region::new(region).unwrap(),
            endpoints: vec![Endpoint {
                transport: "websocket".to_owned(),
                url: format!("ws://{region}.test/call"),
            }],
            capacity,
            build: "test".to_owned(),
            protocol: PROTOCOL,
            events: "v1.0".to_owned(),
            labels: BTreeMap::new(),
        }
    }

    #[test]
    fn a_runtime_that_restarts_is_somebody_else() {
        let id = RuntimeId::new("a").unwrap();
        let first = register(None, None, id.clone(), description("eu", 2), WallClock(1)).unwrap();
        assert_eq!(first.holder.incarnation, Incarnation::FIRST);
        let draining = Runtime {
            duty: Duty::Draining,
            ..first
        };
        let again = register(
            Some(&draining),
            None,
            id.clone(),
            description("eu", 2),
            WallClock(2),
        )
        .unwrap();
        assert!(again.holder.incarnation > draining.holder.incarnation);
        assert_eq!(again.duty, Duty::Serving);
        // Its record was removed meanwhile.
        let gone = Some(again.holder.incarnation);
        let later = register(None, gone, id, description("eu", 2), WallClock(3)).unwrap();
        assert!(later.holder.incarnation > again.holder.incarnation);
    }

    /// NF-032: neighbours in version work together, others are told what to do.
    #[test]
    fn only_versions_that_speak_together_join() {
        let window = |oldest, newest| ProtocolWindow { oldest, newest };
        assert_eq!(window(1, 2).common(window(2, 3)), Some(2));
        assert_eq!(window(1, 3).common(window(1, 2)), Some(2));
        assert_eq!(window(1, 1).common(window(2, 3)), None);
        let join = |description| {
            register(
                None,
                None,
                RuntimeId::new("a").unwrap(),
                description,
                WallClock(0),
            )
        };
        let newer = Description {
            protocol: window(8, 9),
            ..description("eu", 1)
        };
        assert_eq!(
            join(newer).unwrap_err().to_string(),
            "this control plane speaks protocols 1 to 1, the runtime 8 to 9: \
             upgrade the control plane first"
        );
        let odd = Description {
            events: "1".to_owned(),
            ..description("eu", 1)
        };
        assert_eq!(join(odd), Err(JoinError::Events("1".to_owned())));
        let foreign = Description {
            events: "v2.0".to_owned(),
            ..description("eu", 1)
        };
        assert_eq!(
            join(foreign).unwrap_err().to_string(),
            "this control plane's fleet speaks event schema v1, the runtime v2.0: \
             upgrade the control plane first"
        );
        assert_eq!(join(description("eu", 0)), Err(JoinError::NoCapacity));
    }

    #[test]
    fn only_the_store_says_that_somebody_is_dead() {
        let beat = Duration::from_secs(1);
        let long = Duration::from_hours(1);
        let check = |has_lease, goes, silent_for, expected| {
            assert_eq!(presence(has_lease, goes, silent_for, beat), expected);
        };
        check(true, false, beat, Presence::Alive);
        check(true, false, beat * 2, Presence::Alive);
        check(true, false, long, Presence::Suspect);
        check(false, false, Duration::ZERO, Presence::Dead);
        // Who goes is there until its lease has ended.
        check(true, true, beat, Presence::Alive);
        check(true, true, long, Presence::Suspect);
        check(false, true, long, Presence::Left);
    }
}
