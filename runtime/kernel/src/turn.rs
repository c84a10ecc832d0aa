//! One turn's life: the truth table of lifecycle.md §2 as a function.
//!
//! Knows nothing of speech, plans or providers: what must happen is handed out as effects, in
//! order, and a closed turn never reopens.

use serde::{Deserialize, Serialize};

pub use rspp_proto::abi::TurnState;

/// Why an intent did not become a turn; never leads to an abort or a close (lifecycle.md §3 rule 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Refusal {
    /// Ask again later: no capacity, no fresh snapshot, no plan (T2, T5a).
    Defer(RefusalReason),
    /// Not at all (T2, T5a).
    Reject(RefusalReason),
    /// The placement's epoch is not the session's (T3).
    StaleEpoch,
    /// The placement lost its authority before the turn opened (T4).
    Deauthorized,
}

/// Why an intent was deferred or rejected (lifecycle.md §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusalReason {
    /// `snapshot_invalid_or_missing`
    Snapshot,
    /// `admission_capacity_reject` or `admission_capacity_defer`
    Capacity,
    /// `plan_materialization_failed`
    Plan,
    /// `recording_evidence_unavailable`: there is no room for what the turn would have to leave behind.
    Evidence,
}

impl Refusal {
    /// The reason as outcomes write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Defer(RefusalReason::Snapshot) | Self::Reject(RefusalReason::Snapshot) => {
                "snapshot_invalid_or_missing"
            }
            Self::Defer(RefusalReason::Capacity) => "admission_capacity_defer",
            Self::Reject(RefusalReason::Capacity) => "admission_capacity_reject",
            Self::Defer(RefusalReason::Plan) | Self::Reject(RefusalReason::Plan) => {
                "plan_materialization_failed"
            }
            Self::Defer(RefusalReason::Evidence) | Self::Reject(RefusalReason::Evidence) => {
                "recording_evidence_unavailable"
            }
            Self::StaleEpoch => "authority_epoch_mismatch",
            Self::Deauthorized => "authority_revoked_before_open",
        }
    }
}

/// What ends an active turn; ordered weakest first, so that the greatest of what is pending at one
/// arbitration point wins (design §7, precedence inside Active).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Ending {
    /// Generation is complete (T6).
    Finished,
    /// The connection is gone or stalls.
    TransportLost,
    /// A node failed or overran and nothing legal is left.
    NodeFailed,
    /// A provider failed and nothing legal is left.
    ProviderFailed,
    /// The budget is used up and the verdict was to terminate.
    BudgetTerminated,
    /// Evidence cannot be kept (T9).
    EvidenceFailed,
    /// A cancel was accepted (T7).
    Cancelled,
    /// Authority was revoked (T8).
    AuthorityLost,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Terminal {
    /// Generation is done; no more output.
    Commit,
    /// Ended before that.
    Abort(AbortReason),
}

/// Why a turn was aborted (lifecycle.md §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AbortReason {
    /// A cancel was accepted.
    Cancelled,
    /// Another placement speaks for the session, or none.
    AuthorityLoss,
    /// Evidence could not be kept.
    RecordingEvidenceUnavailable,
    /// A provider failed for good.
    ProviderFailure,
    /// A node failed or overran for good.
    NodeTimeoutOrFailure,
    /// The connection was lost.
    TransportDisconnectOrStall,
    /// The turn's budget was used up.
    BudgetExhausted,
}

impl AbortReason {
    /// The reason as the signal carries it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::AuthorityLoss => "authority_loss",
            Self::RecordingEvidenceUnavailable => "recording_evidence_unavailable",
            Self::ProviderFailure => "provider_failure",
            Self::NodeTimeoutOrFailure => "node_timeout_or_failure",
            Self::TransportDisconnectOrStall => "transport_disconnect_or_stall",
            Self::BudgetExhausted => "budget_exhausted",
        }
    }
}

impl Ending {
    /// The terminal outcome that this ending leads to.
    pub fn terminal(self) -> Terminal {
        match self {
            Self::Finished => Terminal::Commit,
            Self::TransportLost => Terminal::Abort(AbortReason::TransportDisconnectOrStall),
            Self::NodeFailed => Terminal::Abort(AbortReason::NodeTimeoutOrFailure),
            Self::ProviderFailed => Terminal::Abort(AbortReason::ProviderFailure),
            Self::BudgetTerminated => Terminal::Abort(AbortReason::BudgetExhausted),
            Self::EvidenceFailed => Terminal::Abort(AbortReason::RecordingEvidenceUnavailable),
            Self::Cancelled => Terminal::Abort(AbortReason::Cancelled),
            Self::AuthorityLost => Terminal::Abort(AbortReason::AuthorityLoss),
        }
    }
}

/// What can happen to a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnInput {
    /// Somebody wants a turn (T1).
    Proposed,
    /// The intent was refused (T2, T3, T4, T5a).
    Refused(Refusal),
    /// Admitted, authorised, and the plan is built (T5).
    PlanResolved,
    /// The strongest ending at one arbitration point (T6 to T10).
    Ended(Ending),
    /// Whether the terminal evidence could be kept; answers [`TurnEffect::Seal`].
    Sealed {
        /// The evidence is in the local record.
        stored: bool,
    },
    /// Something arrived for the turn (T11).
    Arrived,
}

/// What a turn asks for, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnEffect {
    /// Say that the intent was refused.
    Refuse(Refusal),
    /// Emit `turn_open`; the plan is frozen.
    Open,
    /// Emit `deauthorized_drain` (T8).
    Drain,
    /// Append the terminal evidence, then answer with [`TurnInput::Sealed`].
    Seal(Terminal),
    /// Emit `commit` or `abort`.
    End(Terminal),
    /// Emit `close`.
    Close,
    /// The turn is over: apply the late-event policy to what arrived (T11).
    Late,
}

/// A turn: its state, and the ending whose evidence is being sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    state: TurnState,
    sealing: Option<Ending>,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            state: TurnState::Idle,
            sealing: None,
        }
    }
}

impl Turn {
    /// Where the turn stands.
    pub fn state(self) -> TurnState {
        self.state
    }

    /// Whether it has ended, and its evidence is being sealed.
    pub fn is_sealing(self) -> bool {
        self.sealing.is_some()
    }

    fn at(state: TurnState) -> Self {
        Self {
            state,
            sealing: None,
        }
    }

    /// Takes one input; effects are appended to `out` in order.
    #[must_use]
    pub fn step(self, input: TurnInput, out: &mut Vec<TurnEffect>) -> Self {
        use TurnEffect as E;
        use TurnInput as I;
        use TurnState as S;
        match (self.state, input) {
            (S::Idle, I::Proposed) => Self::at(S::Opening), // T1

            // Nothing was opened, so there is nothing to abort or close.
            (S::Opening, I::Refused(refusal)) => {
                out.push(E::Refuse(refusal)); // T2, T3, T4, T5a
                Self::at(S::Idle)
            }
            (S::Opening, I::PlanResolved) => {
                out.push(E::Open); // T5
                Self::at(S::Active)
            }

            (S::Active, I::Ended(ending)) if self.sealing.is_none() => {
                if ending == Ending::AuthorityLost {
                    out.push(E::Drain); // T8: said before the terminal
                }
                out.push(E::Seal(ending.terminal()));
                Self {
                    state: S::Active,
                    sealing: Some(ending),
                }
            }
            (S::Active, I::Sealed { stored }) => match self.sealing {
                Some(ending) => {
                    out.extend([E::End(sealed_terminal(ending, stored)), E::Close]);
                    Self::at(S::Closed) // T6 to T10, by way of Terminal
                }
                None => self,
            },

            // T11: late; a closed turn never reopens.
            (S::Terminal | S::Closed, I::Arrived) => {
                out.push(E::Late);
                self
            }

            // Out of place: nothing changes, whoever asked for it.
            (
                S::Idle,
                I::Refused(_) | I::PlanResolved | I::Ended(_) | I::Sealed { .. } | I::Arrived,
            )
            | (S::Opening, I::Proposed | I::Ended(_) | I::Sealed { .. } | I::Arrived)
            | (
                S::Active,
                I::Proposed | I::Refused(_) | I::PlanResolved | I::Ended(_) | I::Arrived,
            )
            | (
                S::Terminal | S::Closed,
                I::Proposed | I::Refused(_) | I::PlanResolved | I::Ended(_) | I::Sealed { .. },
            ) => self,
        }
    }
}

impl Terminal {
    /// How the turn ends if its evidence cannot be kept whole (T9). The kernel comes to the same when
    /// it is told so; this is for the evidence that is appended before.
    #[must_use]
    pub fn without_evidence(self) -> Self {
        match self {
            Self::Abort(AbortReason::Cancelled | AbortReason::AuthorityLoss) => self,
            Self::Commit
            | Self::Abort(
                AbortReason::RecordingEvidenceUnavailable
                | AbortReason::ProviderFailure
                | AbortReason::NodeTimeoutOrFailure
                | AbortReason::TransportDisconnectOrStall
                | AbortReason::BudgetExhausted,
            ) => Self::Abort(AbortReason::RecordingEvidenceUnavailable),
        }
    }
}

/// T9 takes over what ranks below it; a cancel and a loss of authority keep their own reason even
/// if their evidence could not be kept.
fn sealed_terminal(ending: Ending, stored: bool) -> Terminal {
    if stored {
        ending.terminal()
    } else {
        ending.max(Ending::EvidenceFailed).terminal()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(inputs: &[TurnInput]) -> (TurnState, Vec<TurnEffect>) {
        let mut out = Vec::new();
        let turn = inputs
            .iter()
            .fold(Turn::default(), |turn, input| turn.step(*input, &mut out));
        (turn.state(), out)
    }

    #[track_caller]
    fn check(inputs: &[TurnInput], state: TurnState, effects: &[TurnEffect]) {
        assert_eq!(run(inputs), (state, effects.to_vec()));
    }

    /// T9: evidence that is appended says what the kernel will decide when it learns that some is lost.
    #[test]
    fn evidence_that_is_not_whole_says_so_itself() {
        for ending in [
            Ending::Finished,
            Ending::TransportLost,
            Ending::NodeFailed,
            Ending::ProviderFailed,
            Ending::BudgetTerminated,
            Ending::EvidenceFailed,
            Ending::Cancelled,
            Ending::AuthorityLost,
        ] {
            let told = ending.terminal().without_evidence();
            assert_eq!(told, sealed_terminal(ending, false), "{ending:?}");
        }
    }

    use AbortReason as A;
    use TurnEffect::{Close, Drain, End, Late, Open, Refuse, Seal};
    use TurnInput::{Arrived, Ended, PlanResolved, Proposed, Refused, Sealed};
    use TurnState as S;

    const KEPT: TurnInput = Sealed { stored: true };
    const LOST: TurnInput = Sealed { stored: false };

    /// F-141, T1 to T5a, CT-003, AE-001, AE-005: what is refused before opening is never aborted or closed.
    #[test]
    fn the_way_to_an_open_turn() {
        check(&[Proposed], S::Opening, &[]); // T1
        for refusal in [
            Refusal::Defer(RefusalReason::Snapshot),  // T2
            Refusal::Reject(RefusalReason::Capacity), // T2
            Refusal::StaleEpoch,                      // T3
            Refusal::Deauthorized,                    // T4
            Refusal::Defer(RefusalReason::Plan),      // T5a
            Refusal::Reject(RefusalReason::Plan),     // T5a
        ] {
            check(&[Proposed, Refused(refusal)], S::Idle, &[Refuse(refusal)]);
        }
        check(&[Proposed, PlanResolved], S::Active, &[Open]); // T5
    }

    /// T6 to T10, F-139, NF-029, AC-139-1: one terminal, then close.
    #[test]
    fn every_way_an_active_turn_ends() {
        #[track_caller]
        fn ends(ending: Ending, answer: TurnInput, terminal: Terminal) {
            let mut effects = vec![Open];
            if ending == Ending::AuthorityLost {
                effects.push(Drain);
            }
            effects.extend([Seal(ending.terminal()), End(terminal), Close]);
            check(
                &[Proposed, PlanResolved, Ended(ending), answer],
                S::Closed,
                &effects,
            );
        }
        let abort = Terminal::Abort;
        ends(Ending::Finished, KEPT, Terminal::Commit); // T6
        ends(Ending::Cancelled, KEPT, abort(A::Cancelled)); // T7
        ends(Ending::AuthorityLost, KEPT, abort(A::AuthorityLoss)); // T8
        ends(
            Ending::EvidenceFailed,
            KEPT,
            abort(A::RecordingEvidenceUnavailable),
        ); // T9
        ends(
            Ending::Finished,
            LOST,
            abort(A::RecordingEvidenceUnavailable),
        ); // T9
        ends(
            Ending::ProviderFailed,
            LOST,
            abort(A::RecordingEvidenceUnavailable),
        ); // T9
        ends(Ending::Cancelled, LOST, abort(A::Cancelled)); // rank above T9
        ends(Ending::AuthorityLost, LOST, abort(A::AuthorityLoss)); // rank above T9
        ends(Ending::BudgetTerminated, KEPT, abort(A::BudgetExhausted)); // T10
        ends(Ending::ProviderFailed, KEPT, abort(A::ProviderFailure)); // T10
        ends(Ending::NodeFailed, KEPT, abort(A::NodeTimeoutOrFailure)); // T10
        ends(
            Ending::TransportLost,
            KEPT,
            abort(A::TransportDisconnectOrStall),
        ); // T10
    }

    /// T11, AC-139-2: late and misplaced inputs change nothing.
    #[test]
    fn a_closed_turn_never_reopens() {
        let closed = [Proposed, PlanResolved, Ended(Ending::Finished), KEPT];
        let settled = [Open, Seal(Terminal::Commit), End(Terminal::Commit), Close];
        for late in [
            Proposed,
            PlanResolved,
            Refused(Refusal::StaleEpoch),
            Ended(Ending::AuthorityLost),
            KEPT,
        ] {
            let mut inputs = closed.to_vec();
            inputs.push(late);
            check(&inputs, S::Closed, &settled);
        }
        let mut inputs = closed.to_vec();
        inputs.push(Arrived);
        let mut effects = settled.to_vec();
        effects.push(Late);
        check(&inputs, S::Closed, &effects); // T11
    }

    /// AE-002, lifecycle.md §3 rules 5 and 6: the strongest of what is pending wins.
    #[test]
    fn endings_rank_as_decided() {
        let strongest_first = [
            Ending::AuthorityLost,
            Ending::Cancelled,
            Ending::EvidenceFailed,
            Ending::BudgetTerminated,
            Ending::ProviderFailed,
            Ending::NodeFailed,
            Ending::TransportLost,
            Ending::Finished,
        ];
        assert!(strongest_first.is_sorted_by(|a, b| a > b));
    }

    /// A second ending while the first is being sealed changes nothing: one terminal per turn.
    #[test]
    fn the_first_sealed_ending_stands() {
        check(
            &[
                Proposed,
                PlanResolved,
                Ended(Ending::Finished),
                Ended(Ending::Cancelled),
                KEPT,
            ],
            S::Closed,
            &[Open, Seal(Terminal::Commit), End(Terminal::Commit), Close],
        );
    }
}
