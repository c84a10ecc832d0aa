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

/// What a sender was told by its edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    mode: FlowMode,
    stopped: bool,
    left: u64,
}

impl Credit {
    /// A sender under `mode` that was told nothing yet.
    pub fn new(mode: FlowMode) -> Self {
        Self {
            mode,
            stopped: false,
            left: 0,
        }
    }

    /// Takes in what the edge reports.
    pub fn note(&mut self, notice: &EdgeNotice) {
        match notice {
            EdgeNotice::FlowXoff => self.stopped = true,
            EdgeNotice::FlowXon => self.stopped = false,
            EdgeNotice::Credit { amount } => self.left = self.left.saturating_add(*amount),
            EdgeNotice::Watermark { .. }
            | EdgeNotice::Drop { .. }
            | EdgeNotice::Discontinuity { .. }
            | EdgeNotice::Merge { .. } => {}
        }
    }

    /// Spends the right to send one item. `hybrid` asks for both: no stop, and credit.
    pub fn spend(&mut self) -> Result<(), NoCredit> {
        match self.mode {
            FlowMode::Signal | FlowMode::Hybrid if self.stopped => Err(NoCredit::Stopped),
            FlowMode::Signal => Ok(()),
            FlowMode::Credit | FlowMode::Hybrid => match self.left.checked_sub(1) {
                Some(left) => {
                    self.left = left;
                    Ok(())
                }
                None => Err(NoCredit::Spent),
            },
        }
    }

    /// Items that may still be sent in credit and hybrid modes.
    pub fn left(&self) -> u64 {
        self.left
    }
}
