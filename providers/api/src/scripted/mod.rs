//! Real providers whose behaviour is a script: the runtime cannot tell them from a vendor.
//!
//! What they answer is set on each provider; how an attempt goes (late, stalled, failing, deaf to
//! cancel, panicking) is a [`Script`]; what became of the calls is read from a [`Tally`]. All time is
//! tokio's, so a paused clock makes a conversation instant. Nothing here spawns: a dropped stream
//! is gone.

mod batch_llm;
mod conduct;
mod end_of_turn;
mod llm;
mod performance;
mod script;
mod stt;
mod tally;
mod tts;
mod voice;

pub use batch_llm::ScriptedBatchLlm;
pub use conduct::{Conduct, OnCancel, Trouble};
pub use end_of_turn::ScriptedEndOfTurn;
pub use llm::{Answer, ScriptedLlm};
pub use script::Script;
pub use stt::{ScriptedStt, Utterance};
pub use tally::{Tally, VoiceTally};
pub use tts::{ScriptedTts, Sound};
pub use voice::ScriptedVoice;

use rspp_proto::ProviderId;

use crate::Description;

/// How a scripted provider describes itself.
fn describe(id: &str, streaming: bool) -> Description {
    Description {
        id: ProviderId::new(id).expect("a scripted provider is given a valid id"),
        model: "scripted".to_owned(),
        streaming,
        networked: false,
    }
}
