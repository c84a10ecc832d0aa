//! Who serves speech and language, by the settings.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use rspp_kernel::plan::{LayeredSettings, Settings};
use rspp_llm::{Dialogue, OpenAi, OpenAiConfig};
use rspp_local::{Registered, USUAL, models::Store};
use rspp_proto::{ProviderId, spec::Modality};
use rspp_provider_api::{
    InferencePool, Providers,
    scripted::{ScriptedStt, ScriptedTts},
};

use crate::{Problem, config};

/// Who serves where nobody chose and no models are wanted.
const SCRIPTED: [(Modality, &str); 4] = [
    (Modality::Vad, "energy"),
    (Modality::EndOfTurn, "pause"),
    (Modality::Stt, "scripted"),
    (Modality::Tts, "scripted"),
];

/// The choice as settings of every session.
pub(crate) fn settings(chosen: &config::Providers) -> Result<LayeredSettings, Problem> {
    let usual = if chosen.scripted { SCRIPTED } else { USUAL };
    let alternates = &chosen.alternates;
    let mut bindings = BTreeMap::new();
    for (modality, usual) in usual.into_iter().chain([(Modality::Llm, Dialogue::ID)]) {
        let chosen = match modality {
            Modality::Vad => &chosen.vad,
            Modality::EndOfTurn => &chosen.end_of_turn,
            Modality::Stt => &chosen.stt,
            Modality::Llm => &chosen.llm,
            Modality::Tts => &chosen.tts,
            Modality::External => &None,
        };
        let usual = ProviderId::new(usual).map_err(Problem::failure)?;
        let first = chosen.clone().unwrap_or(usual);
        let others = alternates.get(&modality).into_iter().flatten();
        let others = others.filter(|it| **it != first).cloned();
        bindings.insert(
            modality,
            std::iter::once(first.clone()).chain(others).collect(),
        );
    }
    Ok(LayeredSettings {
        defaults: Settings {
            provider_bindings: bindings,
            ..Settings::default()
        },
        ..LayeredSettings::default()
    })
}

/// Everything that can be offered; what every session needs must be there.
pub(crate) fn register(
    config: &config::Providers,
    settings: &LayeredSettings,
    pool: &InferencePool,
) -> Result<(Providers, Registered), Problem> {
    let store = match Store::open(config.models.as_deref()) {
        // Whoever does without models needs no place for them.
        Err(_nowhere) if config.scripted => Store::open(Some(Path::new("models"))),
        opened => opened,
    };
    let store = store.map_err(Problem::input)?;
    let mut providers = Providers::new();
    let registered = rspp_local::register(&mut providers, &store, pool);
    providers.add_llm(Arc::new(Dialogue::new()));
    if config.scripted {
        providers.add_stt(Arc::new(ScriptedStt::new("scripted")));
        providers.add_tts(Arc::new(ScriptedTts::new("scripted")));
    }
    match (&config.openai.url, &config.openai.model) {
        (Some(url), Some(model)) => {
            let mut openai = OpenAiConfig::new("openai", url, model);
            openai.api_key = config.openai.api_key.as_ref().map(ToString::to_string);
            let client = OpenAi::new(openai)
                .map_err(|error| Problem::input(format!("providers.openai: {error}")))?;
            providers.add_llm(Arc::new(client));
        }
        (None, None) => {}
        (Some(_), None) | (None, Some(_)) => {
            return Err(Problem::input(
                "providers.openai: url and model belong together; one of them is missing",
            ));
        }
    }
    for (modality, ids) in &settings.defaults.provider_bindings {
        for id in ids {
            check(*modality, id, &providers, &registered)?;
        }
    }
    let bound = |id: &str| {
        let mut bound = settings.defaults.provider_bindings.values().flatten();
        bound.any(|it| it.as_str() == id)
    };
    Ok((providers, registered.chosen(bound)))
}

/// A provider that is not there is told of before anybody calls.
fn check(
    modality: Modality,
    id: &ProviderId,
    providers: &Providers,
    registered: &Registered,
) -> Result<(), Problem> {
    let known = providers.ids(modality);
    if known.contains(id) {
        return Ok(());
    }
    let missing = registered
        .missing
        .iter()
        .find(|missing| missing.modality == modality && missing.provider == id.as_str());
    if let Some(missing) = missing {
        return Err(Problem::input(format!(
            "{missing}; or set providers.scripted=true to do without models"
        )));
    }
    let known: Vec<_> = known.iter().map(ToString::to_string).collect();
    Err(Problem::input(format!(
        "providers.{}: unknown provider `{id}`; known: {}",
        modality.as_str(),
        known.join(", ")
    )))
}
