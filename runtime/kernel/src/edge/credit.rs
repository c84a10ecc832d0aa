//! The sender's side of an edge: whether it may send.

use rspp_proto::spec::FlowMode;
use thiserror::Error;

use super::EdgeNotice;

/// Why a sender must wait (F-145).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoCredit {
    /// The receiver said `flow_xoff`.
    #[error("the receiver said flow_xoff; wait for flow_xon")]
    Stopped,
    /// All credit is spent.
    #[error("no credit is left; wait for credit_grant")]
    Spent,
}

/// Whether a sender may still wait for an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It can: an edge that holds it back gives the item back.
    Left,
    /// It cannot, or has waited for `max_block_time`: the edge decides now.
    Spent,
}

/// What a sender was told by its edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    mode: FlowMode,
    stopped: bool,
    left: u64,
    /// Items sent without credit, since they must not be lost; paid before anything else.
    owed: u64,
}

impl Credit {
    /// A sender under `mode` that was told nothing yet.
    pub fn new(mode: FlowMode) -> Self {
        Self {
            mode,
            stopped: false,
            left: 0,
            owed: 0,
        }
    }

    /// Takes in what the edge reports.
    pub fn note(&mut self, notice: &EdgeNotice) {
        match notice {
            EdgeNotice::FlowXoff => self.stopped = true,
            EdgeNotice::FlowXon => self.stopped = false,
            EdgeNotice::Credit { amount } => self.granted(*amount),
            EdgeNotice::Watermark { .. }
            | EdgeNotice::Act(_)
            | EdgeNotice::Drop { .. }
            | EdgeNotice::Discontinuity { .. }
            | EdgeNotice::GroupLost { .. }
            | EdgeNotice::Merge { .. } => {}
        }
    }

    pub(super) fn granted(&mut self, amount: u64) {
        let paid = amount.min(self.owed);
        self.owed -= paid;
        self.left = self.left.saturating_add(amount - paid);
    }

    pub(super) fn told(&mut self, stopped: bool) {
        self.stopped = stopped;
    }

    /// Whether one item may be sent. `hybrid` asks for both: no stop, and credit.
    pub fn may_send(&self) -> Result<(), NoCredit> {
        match self.mode {
            FlowMode::Signal | FlowMode::Hybrid if self.stopped => Err(NoCredit::Stopped),
            FlowMode::Signal => Ok(()),
            FlowMode::Credit | FlowMode::Hybrid if self.left > 0 => Ok(()),
            FlowMode::Credit | FlowMode::Hybrid => Err(NoCredit::Spent),
        }
    }

    /// Whether credit that this mode asks for is there, whatever was said about stopping.
    pub(super) fn is_covered(&self) -> bool {
        match self.mode {
            FlowMode::Signal => true,
            FlowMode::Credit | FlowMode::Hybrid => self.left > 0,
        }
    }

    /// Counts one item as sent.
    pub(super) fn charge(&mut self) {
        match self.mode {
            FlowMode::Signal => {}
            FlowMode::Credit | FlowMode::Hybrid => match self.left.checked_sub(1) {
                Some(left) => self.left = left,
                None => self.owed += 1,
            },
        }
    }

    /// Spends the right to send one item.
    pub fn spend(&mut self) -> Result<(), NoCredit> {
        self.may_send()?;
        self.charge();
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn owed(&self) -> u64 {
        self.owed
    }

    /// Items that may still be sent in credit and hybrid modes.
    pub fn left(&self) -> u64 {
        self.left
    }
}
