//! End of turn: has the user finished, or only paused?

mod mel;
mod pause;
mod smart_turn;

pub use pause::Pause;
pub use smart_turn::SmartTurn;
