//! A session machine that is told again what it was told.

use rspp_kernel::{Session, journal::Decision, journal::Line};
use rspp_proto::{Monotonic, SessionId, TurnNumber, abi::AbiViolation, spec::ReplayMode};
use rspp_timeline::{Entry, JournalEntry};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Divergence, DivergenceClass, version};

/// Why a recording cannot be replayed.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// It holds no journal.
    #[error(
        "the recording holds no journal of decisions; record it with this release or a newer one"
    )]
    NoJournal,
    /// Its events are of a version that this build does not read.
    #[error("{0}")]
    Version(#[from] AbiViolation),
    /// Its journal does not begin at the beginning.
    #[error(
        "the journal does not begin with the session's opening; the recording was cut at its start"
    )]
    NoOpening,
    /// Lines were lost under pressure.
    #[error(
        "lines of the journal were lost before line {line}; only what is before can be replayed"
    )]
    Lost {
        /// Counts lines from 0.
        line: u64,
    },
    /// A line says something that this build does not know.
    #[error("line {line} of the journal cannot be read: {error}; use the release that wrote it")]
    Unreadable {
        /// Counts lines from 0.
        line: u64,
        /// What is wrong.
        error: serde_json::Error,
    },
    /// The cursor is of another recording, or beyond the end of this one.
    #[error(
        "the cursor is at line {line} of {session}, which this recording of {found} has not got"
    )]
    Cursor {
        /// The cursor's line.
        line: u64,
        /// The cursor's session.
        session: SessionId,
        /// This recording's session.
        found: SessionId,
    },
    /// The mode runs nodes, which this replay does not.
    #[error(
        "`{}` is not a mode of decisions; choose replay_decisions or recompute_decisions",
        .0.as_str()
    )]
    Mode(ReplayMode),
}

/// Where a replay stands; can be kept and gone on from (F-152).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Of which recording.
    pub session_id: SessionId,
    /// The next line of its journal, from 0.
    pub line: u64,
    /// In which mode (F-151).
    pub mode: ReplayMode,
}

/// One step of a replay: one line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// The line, from 0.
    pub line: u64,
    /// When it was written.
    pub at: Monotonic,
    /// Which mode made this (F-151).
    pub mode: ReplayMode,
    /// What the machine was told, or decided.
    pub told: Line,
    /// Where the replay decided otherwise.
    pub divergence: Option<Divergence>,
}

/// A recording being replayed.
///
/// `replay_decisions` plays back what was decided. `recompute_decisions` has the machine of this build
/// decide again, and compares.
pub struct Replay {
    session: SessionId,
    mode: ReplayMode,
    lines: Vec<(Monotonic, Line)>,
    at: usize,
    machine: Option<Session>,
    /// What the machine decided and the recording has not said yet.
    decided: std::collections::VecDeque<Decision>,
    /// A divergence was told: what follows from it would only repeat it.
    derailed: bool,
}

impl Replay {
    /// A replay of these entries, from the beginning.
    pub fn new(
        session: SessionId,
        entries: &[Entry],
        mode: ReplayMode,
    ) -> Result<Self, ReplayError> {
        match mode {
            ReplayMode::ReplayDecisions | ReplayMode::RecomputeDecisions => {}
            ReplayMode::ReSimulateNodes | ReplayMode::PlaybackRecordedProviderOutputs => {
                return Err(ReplayError::Mode(mode));
            }
        }
        version::check(entries)?;
        let journal = entries.iter().filter_map(|entry| match entry {
            Entry::Journal(line) => Some(&**line),
            _not_of_the_journal => None,
        });
        let lines = journal
            .enumerate()
            .map(|(line, entry)| read(line as u64, entry))
            .collect::<Result<Vec<_>, _>>()?;
        match lines.first() {
            None => return Err(ReplayError::NoJournal),
            Some((_, Line::Opened { .. })) => {}
            Some((_, Line::Input(_) | Line::Settled | Line::Decided(_) | Line::Lost)) => {
                return Err(ReplayError::NoOpening);
            }
        }
        Ok(Self {
            session,
            mode,
            lines,
            at: 0,
            machine: None,
            decided: std::collections::VecDeque::new(),
            derailed: false,
        })
    }

    /// Where it stands.
    pub fn cursor(&self) -> Cursor {
        Cursor {
            session_id: self.session.clone(),
            line: self.at as u64,
            mode: self.mode,
        }
    }

    /// Goes to where a cursor stood. The machine comes to the same state again, since it is told the
    /// same again.
    pub fn go_to(&mut self, cursor: &Cursor) -> Result<(), ReplayError> {
        if cursor.session_id != self.session || cursor.line > self.lines.len() as u64 {
            return Err(ReplayError::Cursor {
                line: cursor.line,
                session: cursor.session_id.clone(),
                found: self.session.clone(),
            });
        }
        self.at = 0;
        self.machine = None;
        self.decided.clear();
        self.derailed = false;
        while (self.at as u64) < cursor.line {
            self.step()?;
        }
        Ok(())
    }

    /// Lines in all.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is nothing to replay.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The next line; `None` at the end.
    pub fn step(&mut self) -> Result<Option<Step>, ReplayError> {
        let line = self.at as u64;
        let Some((at, told)) = self.lines.get(self.at).cloned() else {
            return Ok(None);
        };
        self.at += 1;
        let divergence = match (&told, self.mode) {
            (Line::Lost, _) => return Err(ReplayError::Lost { line }),
            (
                Line::Opened {
                    policy,
                    connection,
                    epoch,
                },
                _,
            ) => {
                let machine = Session::new((**policy).clone(), *epoch);
                self.machine = Some(machine.with_connection(**connection));
                None
            }
            (Line::Input(input), ReplayMode::RecomputeDecisions) => {
                if let Some(machine) = &mut self.machine {
                    machine.handle(at, (**input).clone());
                }
                self.collect();
                None
            }
            (Line::Settled, ReplayMode::RecomputeDecisions) => {
                if let Some(machine) = &mut self.machine {
                    machine.settle();
                }
                self.collect();
                None
            }
            (Line::Decided(recorded), ReplayMode::RecomputeDecisions) => self.compare(recorded),
            (Line::Input(_) | Line::Settled | Line::Decided(_), _) => None,
        };
        Ok(Some(Step {
            line,
            at,
            mode: self.mode,
            told,
            divergence,
        }))
    }

    /// What the machine decided beyond the end of the recording.
    pub fn surplus(&self) -> Option<Divergence> {
        let decided = self.decided.front().filter(|_| !self.derailed)?;
        let at_end = self.at == self.lines.len();
        at_end.then(|| self.diverged("nothing", &describe(decided), decided.turn()))
    }

    fn collect(&mut self) {
        while let Some(effect) = self.machine.as_mut().and_then(Session::poll_effect) {
            self.decided.extend(Decision::of(&effect));
        }
    }

    fn compare(&mut self, recorded: &Decision) -> Option<Divergence> {
        let decided = self.decided.pop_front();
        if self.derailed || decided.as_ref() == Some(recorded) {
            return None;
        }
        self.derailed = true;
        let candidate = decided
            .as_ref()
            .map_or_else(|| "nothing".to_owned(), describe);
        Some(self.diverged(&describe(recorded), &candidate, recorded.turn()))
    }

    fn diverged(&self, baseline: &str, candidate: &str, turn: Option<TurnNumber>) -> Divergence {
        Divergence {
            class: DivergenceClass::OutcomeDivergence,
            scope: match turn {
                Some(turn) => format!("turn:{}", turn.id()),
                None => format!("session:{}", self.session),
            },
            baseline: baseline.to_owned(),
            candidate: candidate.to_owned(),
            diff_ms: None,
        }
    }
}

fn read(line: u64, entry: &JournalEntry) -> Result<(Monotonic, Line), ReplayError> {
    let told = serde_json::from_value(entry.line.clone())
        .map_err(|error| ReplayError::Unreadable { line, error })?;
    Ok((entry.at, told))
}

/// A decision in a few words.
pub(crate) fn describe(decision: &Decision) -> String {
    match decision {
        Decision::Signal { signal, reason, .. } => match reason {
            Some(reason) => format!("{signal} ({reason})"),
            None => signal.clone(),
        },
        Decision::Transition { step, .. } => {
            format!("{:?} to {:?}", step.from_state, step.to_state)
        }
        Decision::Refused { refusal, .. } => format!("refused: {}", refusal.as_str()),
        Decision::Session(state) => format!("session {state:?}"),
        Decision::MoveRefused(refused) => {
            format!("refused: {} ({})", refused.asked(), refused.code())
        }
    }
}
