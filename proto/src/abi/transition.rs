//! How a turn may move from one state to the next (lifecycle §1).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::vocabulary::vocabulary;

vocabulary! {
    /// Where a turn's life stands.
    TurnState {
        /// No turn.
        Idle = "Idle",
        /// An intent is being judged; the turn has no authority yet.
        Opening = "Opening",
        /// The turn is authoritative and its plan frozen.
        Active = "Active",
        /// Committed or aborted.
        Terminal = "Terminal",
        /// Over for good.
        Closed = "Closed",
    }
}

vocabulary! {
    /// What moves a turn on; each is a signal of the same name.
    TurnTrigger {
        /// Someone means to open a turn.
        TurnOpenProposed = "turn_open_proposed",
        /// Admitted, authorised, planned.
        TurnOpen = "turn_open",
        /// Refused.
        Reject = "reject",
        /// Not now.
        Defer = "defer",
        /// The writer's epoch is not the session's.
        StaleEpochReject = "stale_epoch_reject",
        /// The writer's authority is gone.
        DeauthorizedDrain = "deauthorized_drain",
        /// Generation is finished.
        Commit = "commit",
        /// Ended before it was finished.
        Abort = "abort",
        /// Made final.
        Close = "close",
    }
}

impl TurnState {
    /// The table of legal moves; `None` for every other.
    pub const fn after(self, trigger: TurnTrigger) -> Option<Self> {
        use TurnTrigger as T;
        match (self, trigger) {
            (Self::Idle, T::TurnOpenProposed) => Some(Self::Opening),
            (Self::Opening, T::TurnOpen) => Some(Self::Active),
            (Self::Opening, T::Reject | T::Defer | T::StaleEpochReject | T::DeauthorizedDrain) => {
                Some(Self::Idle)
            }
            (Self::Active, T::Commit | T::Abort) => Some(Self::Terminal),
            (Self::Terminal, T::Close) => Some(Self::Closed),

            // Authority lost in a turn drains *and* aborts; the abort is what moves it (T8).
            (
                Self::Idle,
                T::TurnOpen
                | T::Reject
                | T::Defer
                | T::StaleEpochReject
                | T::DeauthorizedDrain
                | T::Commit
                | T::Abort
                | T::Close,
            )
            | (Self::Opening, T::TurnOpenProposed | T::Commit | T::Abort | T::Close)
            | (
                Self::Active,
                T::TurnOpenProposed
                | T::TurnOpen
                | T::Reject
                | T::Defer
                | T::StaleEpochReject
                | T::DeauthorizedDrain
                | T::Close,
            )
            | (
                Self::Terminal,
                T::TurnOpenProposed
                | T::TurnOpen
                | T::Reject
                | T::Defer
                | T::StaleEpochReject
                | T::DeauthorizedDrain
                | T::Commit
                | T::Abort,
            )
            | (
                Self::Closed,
                T::TurnOpenProposed
                | T::TurnOpen
                | T::Reject
                | T::Defer
                | T::StaleEpochReject
                | T::DeauthorizedDrain
                | T::Commit
                | T::Abort
                | T::Close,
            ) => None,
        }
    }
}

/// A move that a turn made, as evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TurnTransition {
    /// Where it came from.
    pub from_state: TurnState,
    /// What moved it.
    pub trigger: TurnTrigger,
    /// Where it went.
    pub to_state: TurnState,
    /// Always `true`: the same inputs move every turn alike.
    #[schemars(extend("const" = true))]
    pub deterministic: bool,
}

/// A move that no turn makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IllegalTransition {
    /// The state does not know the trigger.
    #[error("trigger: a turn in {from} does not react to {trigger}")]
    Trigger {
        /// Where the turn is.
        from: TurnState,
        /// What would move it.
        trigger: TurnTrigger,
    },
    /// The trigger leads elsewhere.
    #[error("to_state: {trigger} leads from {from} to {expected}, not to {found}")]
    Target {
        /// Where the turn is.
        from: TurnState,
        /// What moves it.
        trigger: TurnTrigger,
        /// Where it would go.
        expected: TurnState,
        /// Where the record says it went.
        found: TurnState,
    },
    /// A record that claims to be a matter of chance.
    #[error("deterministic: must be true")]
    NotDeterministic,
}

impl TurnTransition {
    /// The move that `trigger` makes from `from`.
    pub fn new(from: TurnState, trigger: TurnTrigger) -> Result<Self, IllegalTransition> {
        let to_state = from
            .after(trigger)
            .ok_or(IllegalTransition::Trigger { from, trigger })?;
        Ok(Self {
            from_state: from,
            trigger,
            to_state,
            deterministic: true,
        })
    }

    /// Checks a recorded move against the table.
    pub fn validate(&self) -> Result<(), IllegalTransition> {
        let expected = Self::new(self.from_state, self.trigger)?;
        if !self.deterministic {
            return Err(IllegalTransition::NotDeterministic);
        }
        if self.to_state != expected.to_state {
            return Err(IllegalTransition::Target {
                from: self.from_state,
                trigger: self.trigger,
                expected: expected.to_state,
                found: self.to_state,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{TurnState as S, TurnTrigger as T, *};

    /// CT-003, lifecycle §1: nine edges are legal, all others are not.
    #[test]
    fn only_the_edges_of_the_table_are_legal() {
        let legal = [
            (S::Idle, T::TurnOpenProposed, S::Opening),
            (S::Opening, T::TurnOpen, S::Active),
            (S::Opening, T::Reject, S::Idle),
            (S::Opening, T::Defer, S::Idle),
            (S::Opening, T::StaleEpochReject, S::Idle),
            (S::Opening, T::DeauthorizedDrain, S::Idle),
            (S::Active, T::Commit, S::Terminal),
            (S::Active, T::Abort, S::Terminal),
            (S::Terminal, T::Close, S::Closed),
        ];
        for &from_state in S::ALL {
            for &trigger in T::ALL {
                for &to_state in S::ALL {
                    let step = TurnTransition {
                        from_state,
                        trigger,
                        to_state,
                        deterministic: true,
                    };
                    let expected = legal.contains(&(from_state, trigger, to_state));
                    assert_eq!(step.validate().is_ok(), expected, "{step:?}");
                }
            }
        }
    }

    #[test]
    fn a_move_by_chance_is_refused() {
        let mut step = TurnTransition::new(S::Opening, T::TurnOpen).unwrap();
        step.deterministic = false;
        assert_eq!(step.validate(), Err(IllegalTransition::NotDeterministic));
    }
}
