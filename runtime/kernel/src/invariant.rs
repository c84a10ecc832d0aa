//! What must hold of a session whatever happens to it, each rule named once.
//!
//! One pass over what a session says and asks for. Property tests feed it with the kernel's effects,
//! simulations with the signals of real actors; neither has rules of its own for what stands here.
//! What a whole recording has to keep is the timeline's `verify`.

use std::fmt;

use rspp_proto::{Monotonic, TurnNumber, abi::Signal};

use crate::{
    Session,
    effect::{Effect, SessionState},
};

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// A turn opens only after it was proposed, one at a time, each with a higher number
    /// (lifecycle.md §4, 4 and §8).
    OneTurnAtATime,
    /// An accepted turn is committed or aborted once, then closed once (lifecycle.md §4, 1 and 2).
    EndsOnceThenCloses,
    /// What was refused before opening has neither open, abort nor close (lifecycle.md §4, 3).
    RefusedStaysPreTurn,
    /// Only an open turn gives output or is cancelled (lifecycle.md §4, 12; event-abi.md §5, 3).
    OutputOfOpenTurns,
    /// The fence falls before a turn's end is told (failures.md §1: fence before terminal).
    FenceBeforeEnd,
    /// The evidence is appended before a turn's end is told (lifecycle.md §4, 15).
    EvidenceBeforeEnd,
    /// What is held is of the open turn, and is let go before it closes (P11, P12).
    HoldsAreLetGo,
    /// A turn's actors live between its opening and its close (P20).
    WorkOfOpenTurns,
    /// Session states go one way, and nothing follows the last (F-138).
    StatesGoOneWay,
    /// What was heard is the beginning of what was to be said (P2).
    HeardIsPrefix,
    /// Of a turn that is committed all was heard that was to be said, unless what was lost of it was told (P14).
    CommittedIsHeard,
    /// A deadline lies ahead: a host that sleeps until then makes progress.
    DeadlinesLieAhead,
}

impl Invariant {
    /// The rule's name in reports.
    pub fn id(self) -> &'static str {
        match self {
            Self::OneTurnAtATime => "one-turn-at-a-time",
            Self::EndsOnceThenCloses => "ends-once-then-closes",
            Self::RefusedStaysPreTurn => "refused-stays-pre-turn",
            Self::OutputOfOpenTurns => "output-of-open-turns",
            Self::FenceBeforeEnd => "fence-before-end",
            Self::EvidenceBeforeEnd => "evidence-before-end",
            Self::HoldsAreLetGo => "holds-are-let-go",
            Self::WorkOfOpenTurns => "work-of-open-turns",
            Self::StatesGoOneWay => "states-go-one-way",
            Self::HeardIsPrefix => "heard-is-prefix",
            Self::CommittedIsHeard => "committed-is-heard",
            Self::DeadlinesLieAhead => "deadlines-lie-ahead",
        }
    }
}

/// A rule that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub invariant: Invariant,
    /// What was found.
    pub detail: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant.id(), self.detail)
    }
}

fn broken(invariant: Invariant, detail: impl Into<String>) -> Result<(), Broken> {
    Err(Broken {
        invariant,
        detail: detail.into(),
    })
}

/// Looks at a turn that was committed whole: nothing of it was cancelled, nobody had to stand in, and nothing
/// was lost on its way that was told.
pub fn committed(said: &str, heard: &str) -> Result<(), Broken> {
    if said != heard {
        let detail = format!("committed with {said:?} to be said and {heard:?} heard");
        return broken(Invariant::CommittedIsHeard, detail);
    }
    Ok(())
}

/// Where the session's turns stand, as far as its signals tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Quiet,
    Proposed,
    Open(TurnNumber),
    Ended(TurnNumber),
    Over,
}

/// Follows the signals of one session.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    stage: Stage,
    newest: Option<TurnNumber>,
}

impl Lifecycle {
    /// The turn that is open.
    pub fn open_turn(&self) -> Option<TurnNumber> {
        match self.stage {
            Stage::Open(turn) => Some(turn),
            Stage::Quiet | Stage::Proposed | Stage::Ended(_) | Stage::Over => None,
        }
    }

    /// Whether a turn was proposed and not yet answered.
    pub fn is_proposed(&self) -> bool {
        self.stage == Stage::Proposed
    }

    /// Whether no turn is left half way.
    pub fn is_settled(&self) -> bool {
        match self.stage {
            Stage::Quiet | Stage::Over => true,
            Stage::Proposed | Stage::Open(_) | Stage::Ended(_) => false,
        }
    }

    /// Takes in the next signal, and the turn that it is of.
    pub fn signal(&mut self, signal: Signal, turn: Option<TurnNumber>) -> Result<(), Broken> {
        let stage = self.stage;
        let found = || format!("{signal} of {turn:?} while {stage:?}");
        if stage == Stage::Over && !is_evidence(signal) {
            return broken(Invariant::StatesGoOneWay, found());
        }
        match (signal, turn) {
            (Signal::TurnOpenProposed, _) => {
                self.stage = Stage::Proposed;
                if stage != Stage::Quiet {
                    return broken(Invariant::OneTurnAtATime, found());
                }
            }
            (Signal::TurnOpen, Some(turn)) => {
                self.stage = Stage::Open(turn);
                let rises = self.newest.is_none_or(|newest| newest < turn);
                self.newest = Some(turn);
                if stage != Stage::Proposed || !rises {
                    return broken(Invariant::OneTurnAtATime, found());
                }
            }
            // Without a turn these are the answer to a proposal, or news about the session.
            (
                Signal::Reject
                | Signal::Defer
                | Signal::StaleEpochReject
                | Signal::DeauthorizedDrain,
                None,
            ) if stage == Stage::Proposed => self.stage = Stage::Quiet,
            (Signal::Reject | Signal::Defer, Some(_)) => {
                return broken(Invariant::RefusedStaysPreTurn, found());
            }
            (Signal::Commit | Signal::Abort, Some(turn)) => match stage {
                Stage::Open(open) if open == turn => self.stage = Stage::Ended(turn),
                Stage::Quiet | Stage::Proposed if self.newest < Some(turn) => {
                    return broken(Invariant::RefusedStaysPreTurn, found());
                }
                Stage::Quiet | Stage::Proposed | Stage::Open(_) | Stage::Ended(_) | Stage::Over => {
                    return broken(Invariant::EndsOnceThenCloses, found());
                }
            },
            (Signal::Close, Some(turn)) => match stage {
                Stage::Ended(ended) if ended == turn => self.stage = Stage::Quiet,
                Stage::Quiet | Stage::Proposed if self.newest < Some(turn) => {
                    return broken(Invariant::RefusedStaysPreTurn, found());
                }
                Stage::Quiet | Stage::Proposed | Stage::Open(_) | Stage::Ended(_) | Stage::Over => {
                    return broken(Invariant::EndsOnceThenCloses, found());
                }
            },
            (
                Signal::OutputAccepted
                | Signal::PlaybackStarted
                | Signal::PlaybackCompleted
                | Signal::PlaybackCancelled
                | Signal::BargeIn
                | Signal::Cancel,
                Some(turn),
            ) if stage != Stage::Open(turn) => {
                return broken(Invariant::OutputOfOpenTurns, found());
            }
            (Signal::Ended, _) => {
                self.stage = Stage::Over;
                if stage != Stage::Quiet {
                    return broken(Invariant::EndsOnceThenCloses, found());
                }
            }
            _says_nothing_of_a_turns_life => {}
        }
        Ok(())
    }
}

/// What is told of work that has been done; it may come after the end of what it was done for.
fn is_evidence(signal: Signal) -> bool {
    matches!(
        signal,
        Signal::StaleEpochReject
            | Signal::DropNotice
            | Signal::Discontinuity
            | Signal::Watermark
            | Signal::FlowXoff
            | Signal::FlowXon
            | Signal::CreditGrant
            | Signal::ProviderError
            | Signal::CircuitEvent
            | Signal::ProviderSwitch
    )
}

/// Follows what the kernel asks of its host.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    lifecycle: Lifecycle,
    fenced: Option<TurnNumber>,
    sealed: Option<TurnNumber>,
    working: Option<TurnNumber>,
    held: Option<TurnNumber>,
    state: Option<SessionState>,
    revoked: bool,
}

impl Orders {
    /// Takes in the next effect.
    pub fn effect(&mut self, effect: &Effect) -> Result<(), Broken> {
        match effect {
            Effect::Signal(said) => {
                self.lifecycle.signal(said.signal, said.turn)?;
                if matches!(said.signal, Signal::Commit | Signal::Abort) {
                    if self.fenced < said.turn && !self.revoked {
                        return broken(
                            Invariant::FenceBeforeEnd,
                            format!("{} of {:?} without a fence", said.signal, said.turn),
                        );
                    }
                    if self.held.is_some() {
                        return broken(
                            Invariant::HoldsAreLetGo,
                            format!("{} while {:?} is held", said.signal, self.held),
                        );
                    }
                    if self.sealed != said.turn {
                        return broken(
                            Invariant::EvidenceBeforeEnd,
                            format!("{} of {:?} without evidence", said.signal, said.turn),
                        );
                    }
                }
            }
            Effect::Fence { turn, .. } => self.fenced = self.fenced.max(Some(*turn)),
            Effect::Revoke => self.revoked = true,
            Effect::Hold { turn } => {
                let before = self.held.replace(*turn);
                if before.is_some() || self.lifecycle.open_turn() != Some(*turn) {
                    return broken(
                        Invariant::HoldsAreLetGo,
                        format!("{turn} is held beside {before:?}"),
                    );
                }
            }
            Effect::Release { turn, .. } if self.held.take() != Some(*turn) => {
                return broken(Invariant::HoldsAreLetGo, format!("{turn} was not held"));
            }
            Effect::Seal { turn, .. } => self.sealed = Some(*turn),
            Effect::Start { turn, .. } => {
                let before = self.working.replace(*turn);
                if before.is_some() || self.lifecycle.open_turn() != Some(*turn) {
                    return broken(
                        Invariant::WorkOfOpenTurns,
                        format!("{turn} starts beside {before:?}"),
                    );
                }
            }
            Effect::Stop { turn } if self.working.take() != Some(*turn) => {
                return broken(Invariant::WorkOfOpenTurns, format!("{turn} stops twice"));
            }
            Effect::Session(state) => {
                let before = self.state.replace(*state);
                if before >= Some(*state) {
                    return broken(
                        Invariant::StatesGoOneWay,
                        format!("{state:?} after {before:?}"),
                    );
                }
            }
            _changes_nothing_here => {}
        }
        Ok(())
    }

    /// Looks at the session itself, after its effects have been carried out.
    pub fn session(&self, session: &Session) -> Result<(), Broken> {
        if let Some(said) = session.exchange()
            && !said.agent_text.starts_with(&said.heard)
        {
            return broken(Invariant::HeardIsPrefix, format!("{said:?}"));
        }
        if session.state() == SessionState::Ended && !self.lifecycle.is_settled() {
            return broken(
                Invariant::EndsOnceThenCloses,
                format!("ended while {:?}", self.lifecycle),
            );
        }
        Ok(())
    }

    /// Looks at the session's deadline, after it was told what time it is.
    pub fn deadline(&self, session: &Session, now: Monotonic) -> Result<(), Broken> {
        match session.next_deadline() {
            Some(at) if at <= now => broken(
                Invariant::DeadlinesLieAhead,
                format!("{at:?} is not after {now:?}"),
            ),
            Some(_) | None => Ok(()),
        }
    }
}
