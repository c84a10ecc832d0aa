//! An agent without models: it hears that something was said, and answers by turns.

use std::{sync::Arc, time::Duration};

use rspp_kernel::plan::{LayeredSettings, Settings};
use rspp_proto::{ProviderId, spec::Modality};
use rspp_provider_api::{
    Providers,
    scripted::{ScriptedEndOfTurn, ScriptedLlm, ScriptedStt, ScriptedTts, ScriptedVoice},
};

use crate::problem::Problem;

const SCRIPTED: &str = "scripted";

/// All providers, scripted.
pub(crate) fn cast<const N: usize>(answers: [&'static str; N]) -> Providers {
    let mut providers = Providers::new();
    providers
        .add_voice(Arc::new(ScriptedVoice::by_energy(SCRIPTED)))
        .add_end_of_turn(Arc::new(ScriptedEndOfTurn::always(SCRIPTED, 0.99)))
        .add_stt(Arc::new(ScriptedStt::new(SCRIPTED).understand(|heard| {
            format!("something that was said as number {}", heard.number)
        })))
        .add_llm(Arc::new(
            ScriptedLlm::new(SCRIPTED)
                .answers(answers)
                .token_every(Duration::from_millis(20)),
        ))
        .add_tts(Arc::new(ScriptedTts::new(SCRIPTED)));
    providers
}

/// Binds them.
pub(crate) fn settings() -> Result<LayeredSettings, Problem> {
    let id = ProviderId::new(SCRIPTED).map_err(Problem::failure)?;
    let modalities = [
        Modality::Vad,
        Modality::EndOfTurn,
        Modality::Stt,
        Modality::Llm,
        Modality::Tts,
    ];
    Ok(LayeredSettings {
        defaults: Settings {
            provider_bindings: modalities.map(|it| (it, vec![id.clone()])).into(),
            ..Settings::default()
        },
        ..LayeredSettings::default()
    })
}
