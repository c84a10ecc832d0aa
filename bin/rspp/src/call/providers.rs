//! Which providers a conversation uses, and where they come from.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use rspp_kernel::plan::{LayeredSettings, Settings};
use rspp_llm::{Dialogue, OpenAi, OpenAiConfig};
use rspp_local::{
    Registered, USUAL,
    models::{ModelId, Store},
};
use rspp_proto::{ProviderId, spec::Modality};
use rspp_provider_api::{InferencePool, Providers};

use crate::{
    problem::Problem,
    terminal::{self, PullDisplay, size},
};

/// Id of the client that `--llm-url` sets up.
const OPENAI: &str = "openai";

/// Which providers to use; what is not chosen is left to the pipeline, then to the defaults.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Providers")]
pub(crate) struct ProviderOptions {
    /// Speech to text [default: moonshine]
    #[arg(long, value_name = "ID")]
    stt: Option<ProviderId>,
    /// Language model: `dialogue` (offline, by rules) or `openai` [default: dialogue]
    #[arg(long, value_name = "ID")]
    llm: Option<ProviderId>,
    /// Text to speech [default: piper]
    #[arg(long, value_name = "ID")]
    tts: Option<ProviderId>,
    /// Voice activity: `silero`, `earshot` or `energy` [default: silero]
    #[arg(long, value_name = "ID")]
    vad: Option<ProviderId>,
    /// End of turn: `smart-turn` or `pause` [default: smart-turn]
    #[arg(long, value_name = "ID")]
    end_of_turn: Option<ProviderId>,
    /// An OpenAI-compatible server for `--llm openai`, such as http://127.0.0.1:8080/v1
    #[arg(long, value_name = "URL", requires = "llm_model")]
    llm_url: Option<String>,
    /// The model to ask it for
    #[arg(long, value_name = "MODEL", requires = "llm_url")]
    llm_model: Option<String>,
    /// Where its key is, never the key itself: env://NAME
    #[arg(long, value_name = "REF", requires = "llm_url")]
    llm_api_key: Option<String>,
}

impl ProviderOptions {
    /// The choice as settings: the defaults, and what the user chose for this session.
    pub(crate) fn settings(&self) -> Result<LayeredSettings, Problem> {
        let bind = |modality: Modality, id: &ProviderId| (modality, vec![id.clone()]);
        let defaults = USUAL
            .into_iter()
            .chain([(Modality::Llm, Dialogue::ID)])
            .map(|(modality, id)| {
                let id = ProviderId::new(id).map_err(Problem::failure)?;
                Ok(bind(modality, &id))
            })
            .collect::<Result<BTreeMap<_, _>, Problem>>()?;
        let llm = self.llm();
        let session = [
            (Modality::Stt, &self.stt),
            (Modality::Llm, &llm),
            (Modality::Tts, &self.tts),
            (Modality::Vad, &self.vad),
            (Modality::EndOfTurn, &self.end_of_turn),
        ]
        .into_iter()
        .filter_map(|(modality, id)| id.as_ref().map(|id| bind(modality, id)))
        .collect();
        Ok(LayeredSettings {
            defaults: Settings {
                provider_bindings: defaults,
                ..Settings::default()
            },
            session: Settings {
                provider_bindings: session,
                ..Settings::default()
            },
            ..LayeredSettings::default()
        })
    }

    /// The same choice as `providers` of the settings of `rspp-runtime`.
    pub(crate) fn of_a_runtime(&self, store: &Store) -> serde_json::Value {
        serde_json::json!({
            "stt": self.stt,
            "llm": self.llm(),
            "tts": self.tts,
            "vad": self.vad,
            "end_of_turn": self.end_of_turn,
            "models": store.root(),
            "openai": {"url": self.llm_url, "model": self.llm_model, "api_key": self.llm_api_key},
        })
    }

    /// Whoever names a server means to use it.
    fn llm(&self) -> Option<ProviderId> {
        let openai = || ProviderId::new(OPENAI).expect("it is not blank, and short");
        let chosen = self.llm.clone();
        chosen.or_else(|| self.llm_url.is_some().then(openai))
    }

    /// Everything that can be offered now; what lacks models is told by the second value.
    pub(crate) fn register(
        &self,
        store: &Store,
        pool: &InferencePool,
    ) -> Result<(Providers, Registered), Problem> {
        let mut providers = Providers::new();
        let registered = rspp_local::register(&mut providers, store, pool);
        providers.add_llm(std::sync::Arc::new(Dialogue::new()));
        if let (Some(url), Some(model)) = (&self.llm_url, &self.llm_model) {
            let mut config = OpenAiConfig::new(OPENAI, url, model);
            config.api_key.clone_from(&self.llm_api_key);
            let client = OpenAi::new(config).map_err(|error| {
                let cause = std::error::Error::source(&error);
                let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
                Problem::input(format!("--llm-url: {error}{cause}"))
            })?;
            providers.add_llm(std::sync::Arc::new(client));
        }
        Ok((providers, registered))
    }
}

/// The models that `used` providers lack; a provider that does not exist is an error.
pub(crate) fn lacking(
    used: &BTreeSet<(Modality, ProviderId)>,
    providers: &Providers,
    registered: &Registered,
) -> Result<BTreeSet<ModelId>, Problem> {
    let mut models = BTreeSet::new();
    for (modality, id) in used {
        if providers.ids(*modality).contains(id) {
            continue;
        }
        let missing = registered
            .missing
            .iter()
            .filter(|missing| missing.modality == *modality);
        if let Some(missing) = missing.clone().find(|it| it.provider == id.as_str()) {
            models.extend(missing.models.iter().copied());
            continue;
        }
        if id.as_str() == OPENAI && *modality == Modality::Llm {
            return Err(Problem::input(
                "--llm openai needs a server: add --llm-url URL --llm-model MODEL",
            ));
        }
        let mut known: BTreeSet<String> = providers
            .ids(*modality)
            .iter()
            .map(ToString::to_string)
            .collect();
        known.extend(missing.map(|missing| missing.provider.to_owned()));
        return Err(Problem::input(format!(
            "unknown {} provider `{id}`; known: {}",
            modality.as_str(),
            known.into_iter().collect::<Vec<_>>().join(", ")
        )));
    }
    Ok(models)
}

/// Fetches `models`, or says how they can be had.
pub(crate) fn fetch(
    store: &Store,
    models: &BTreeSet<ModelId>,
    may_pull: bool,
) -> Result<(), Problem> {
    if models.is_empty() {
        return Ok(());
    }
    let mut models = models.clone();
    if may_pull && models.contains(&ModelId::PiperJoe) {
        // The voice speaks without its dictionary, only worse.
        models.insert(ModelId::CmuDict);
    }
    let ids: Vec<ModelId> = ModelId::ALL
        .into_iter()
        .filter(|id| models.contains(id))
        .collect();
    let names: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
    let names = names.join(" ");
    if !may_pull {
        return Err(Problem::input(format!(
            "models are missing from {}: run `rspp models pull {names}`, or leave out --no-pull",
            store.root().display()
        )));
    }
    let bytes = ids.iter().map(|id| id.model().download_bytes()).sum();
    terminal::note(format!(
        "fetching {} models once ({}) into {}",
        ids.len(),
        size(bytes),
        store.root().display()
    ));
    let mut display = PullDisplay::new();
    store
        .pull(&ids, &mut |progress| display.show(progress))
        .map_err(Problem::input)
}
