//! Changes that somebody else has to look at first (F-165).

use std::collections::BTreeSet;

use rspp_proto::{Actor, WallClock};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Change;
use crate::registry::Kind;

/// What needs approval, and how many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApprovalPolicy {
    /// People beside the author who have to agree; 0 is nobody.
    pub approvals: u8,
    /// How long a proposal waits, in milliseconds; 0 is for ever.
    pub expires_after_ms: u64,
}

impl ApprovalPolicy {
    /// Whether `after` asks for fewer people: they may not be outvoted by one who sets them aside first.
    pub fn is_lowered_by(&self, after: &Self) -> bool {
        after.approvals < self.approvals
    }
}

/// What is proposed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Proposed {
    /// A change of a rollout.
    Rollout {
        /// Of what.
        kind: Kind,
        /// Of which line.
        line: String,
        /// What is to be done.
        change: Change,
    },
    /// Fewer approvals than are in force.
    Approvals {
        /// What is to be in force instead.
        approvals: ApprovalPolicy,
    },
}

/// What became of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProposalState {
    /// It waits for approval.
    Waiting,
    /// It may be activated.
    Approved,
    /// Somebody said no.
    Rejected,
    /// It was carried out.
    Activated,
}

/// A change that waits for approval, or waited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Its name.
    pub id: String,
    /// What is to be done.
    #[serde(flatten)]
    pub what: Proposed,
    /// The rollout's generation that it was made for, or the rules' version. If that has moved on since,
    /// nobody has approved what would come of it now.
    pub generation: u64,
    /// Who proposes it.
    pub author: Actor,
    /// When.
    pub at: WallClock,
    /// Who has agreed.
    pub approved_by: BTreeSet<Actor>,
    /// What became of it.
    pub state: ProposalState,
}

/// Why a proposal is not approved, or not activated.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ApprovalError {
    /// Nobody approves their own.
    #[error("{actor} proposed it; somebody else has to approve")]
    OwnProposal {
        /// Who.
        actor: Actor,
    },
    /// Not enough have agreed.
    #[error("{found} of {needed} have approved it")]
    NotApproved {
        /// How many.
        found: usize,
        /// Out of how many.
        needed: usize,
    },
    /// It is decided already.
    #[error("it is {} already", match state { ProposalState::Waiting => "waiting", ProposalState::Approved => "approved", ProposalState::Rejected => "rejected", ProposalState::Activated => "activated" })]
    Decided {
        /// How.
        state: ProposalState,
    },
    /// It waited too long.
    #[error("it has expired; propose it again")]
    Expired,
    /// The rollout, or the rules, are not what they were.
    #[error(
        "what it is about has changed since it was proposed (generation {found}, not {expected}); propose it again"
    )]
    Outdated {
        /// What it was made for.
        expected: u64,
        /// What it is.
        found: u64,
    },
}

impl Proposal {
    /// One that nobody has agreed to yet.
    pub fn new(id: String, what: Proposed, generation: u64, author: Actor, at: WallClock) -> Self {
        Self {
            id,
            what,
            generation,
            author,
            at,
            approved_by: BTreeSet::new(),
            state: ProposalState::Waiting,
        }
    }

    /// Somebody agrees. Agreeing twice counts once.
    pub fn approve(
        &mut self,
        by: &Actor,
        policy: &ApprovalPolicy,
        now: WallClock,
    ) -> Result<(), ApprovalError> {
        self.is_open(policy, now)?;
        if *by == self.author {
            return Err(ApprovalError::OwnProposal { actor: by.clone() });
        }
        self.approved_by.insert(by.clone());
        if self.approved_by.len() >= usize::from(policy.approvals) {
            self.state = ProposalState::Approved;
        }
        Ok(())
    }

    /// Somebody says no; even the author may.
    pub fn reject(&mut self, policy: &ApprovalPolicy, now: WallClock) -> Result<(), ApprovalError> {
        self.is_open(policy, now)?;
        self.state = ProposalState::Rejected;
        Ok(())
    }

    /// Marks it as carried out, if it may be: by the policy of now, on the rollout as it was.
    pub fn activate(
        &mut self,
        policy: &ApprovalPolicy,
        generation: u64,
        now: WallClock,
    ) -> Result<(), ApprovalError> {
        self.is_open(policy, now)?;
        let (found, needed) = (self.approved_by.len(), usize::from(policy.approvals));
        if found < needed {
            return Err(ApprovalError::NotApproved { found, needed });
        }
        if generation != self.generation {
            return Err(ApprovalError::Outdated {
                expected: self.generation,
                found: generation,
            });
        }
        self.state = ProposalState::Activated;
        Ok(())
    }

    fn is_open(&self, policy: &ApprovalPolicy, now: WallClock) -> Result<(), ApprovalError> {
        match self.state {
            ProposalState::Waiting | ProposalState::Approved => {}
            ProposalState::Rejected | ProposalState::Activated => {
                return Err(ApprovalError::Decided { state: self.state });
            }
        }
        let age = now.0.saturating_sub(self.at.0);
        if policy.expires_after_ms > 0 && age >= policy.expires_after_ms {
            return Err(ApprovalError::Expired);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposal() -> Proposal {
        let what = Proposed::Rollout {
            kind: Kind::Pipeline,
            line: "desk".to_owned(),
            change: Change::Pause,
        };
        let ana = Actor::new("ana").unwrap();
        Proposal::new("p-1".to_owned(), what, 4, ana, WallClock(0))
    }

    /// F-165: two others have to agree, neither of them the author, neither of them twice.
    #[test]
    fn a_change_waits_for_others() {
        let policy = ApprovalPolicy {
            approvals: 2,
            expires_after_ms: 1_000,
        };
        let [ana, bob, eve] = ["ana", "bob", "eve"].map(|name| Actor::new(name).unwrap());
        let now = WallClock(10);
        let mut it = proposal();
        let own = ApprovalError::OwnProposal { actor: ana.clone() };
        assert_eq!(it.approve(&ana, &policy, now), Err(own));
        let missing = |found| Err(ApprovalError::NotApproved { found, needed: 2 });
        assert_eq!(it.activate(&policy, 4, now), missing(0));
        it.approve(&bob, &policy, now).unwrap();
        it.approve(&bob, &policy, now).unwrap();
        assert_eq!(it.activate(&policy, 4, now), missing(1));
        it.approve(&eve, &policy, now).unwrap();
        assert_eq!(it.state, ProposalState::Approved);
        let outdated = ApprovalError::Outdated {
            expected: 4,
            found: 5,
        };
        assert_eq!(it.activate(&policy, 5, now), Err(outdated));
        assert_eq!(
            it.activate(&policy, 4, WallClock(1_000)),
            Err(ApprovalError::Expired)
        );
        it.activate(&policy, 4, now).unwrap();
        let decided = ApprovalError::Decided {
            state: ProposalState::Activated,
        };
        assert_eq!(it.activate(&policy, 4, now), Err(decided));
    }

    /// F-165: what was kept before approvals could be proposed is read as it was.
    #[test]
    fn proposals_keep_their_form() {
        let kept = serde_json::json!({
            "id": "p-1", "kind": "pipeline", "line": "desk", "change": Change::Pause,
            "generation": 4, "author": "ana", "at": 0, "approved_by": [], "state": "waiting",
        });
        assert_eq!(serde_json::to_value(proposal()).unwrap(), kept);
        let read: Proposal = serde_json::from_value(kept).unwrap();
        assert_eq!(read, proposal());
        let approvals = ApprovalPolicy::default();
        let fewer = Proposal {
            what: Proposed::Approvals { approvals },
            ..proposal()
        };
        let kept = serde_json::to_string(&fewer).unwrap();
        assert_eq!(serde_json::from_str::<Proposal>(&kept).unwrap(), fewer);
    }

    #[test]
    fn a_stricter_policy_counts_even_for_what_was_approved_before() {
        let lax = ApprovalPolicy {
            approvals: 1,
            ..ApprovalPolicy::default()
        };
        let strict = ApprovalPolicy {
            approvals: 2,
            ..lax
        };
        let mut it = proposal();
        it.approve(&Actor::new("bob").unwrap(), &lax, WallClock(1))
            .unwrap();
        assert!(it.clone().activate(&strict, 4, WallClock(2)).is_err());
        it.activate(&lax, 4, WallClock(2)).unwrap();
    }
}
