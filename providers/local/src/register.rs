//! Offering what is there, and saying how to get the rest.

use std::{fmt, sync::Arc, thread};

use rspp_proto::spec::Modality;
use rspp_provider_api::{Fault, InferencePool, Providers};

use crate::{
    Earshot, Energy, Moonshine, OnnxRuntime, Pause, Piper, PiperFiles, Silero, SmartTurn,
    models::{ModelId, Store, files},
};

/// Cores from which a model gets two threads rather than one: two calls must not starve a third.
const CORES_FOR_TWO_THREADS: usize = 4;

/// Who serves a session for which nobody chose anybody; a language model is not among them.
pub const USUAL: [(Modality, &str); 4] = [
    (Modality::Vad, "silero"),
    (Modality::EndOfTurn, "smart-turn"),
    (Modality::Stt, "moonshine"),
    (Modality::Tts, "piper"),
];

/// A provider that this crate has.
struct Entry {
    modality: Modality,
    id: &'static str,
    needs: &'static [ModelId],
    add: fn(&mut Providers, &Context<'_>) -> Option<WarmUp>,
}

/// What providers are made of.
struct Context<'a> {
    store: &'a Store,
    runtime: OnnxRuntime,
    pool: &'a InferencePool,
    piper: Piper,
}

/// Not the dictionary: without it, the voice reads words by their spelling, and says so.
const PIPER_NEEDS: &[ModelId] = &[ModelId::OnnxRuntime, ModelId::PiperJoe];

const ENTRIES: [Entry; 8] = [
    Entry {
        modality: Modality::Vad,
        id: "energy",
        needs: &[],
        add: |providers, _| {
            providers.add_voice(Arc::new(Energy::new()));
            None
        },
    },
    Entry {
        modality: Modality::Vad,
        id: "earshot",
        needs: &[],
        add: |providers, _| {
            providers.add_voice(Arc::new(Earshot::new()));
            None
        },
    },
    Entry {
        modality: Modality::Vad,
        id: "silero",
        needs: &[ModelId::SileroVad],
        add: |providers, context| {
            let path = context.store.dir(ModelId::SileroVad).join(files::SILERO);
            let silero = Arc::new(Silero::new(path));
            providers.add_voice(Arc::clone(&silero) as _);
            Some(Box::new(move || silero.warm_up()))
        },
    },
    Entry {
        modality: Modality::EndOfTurn,
        id: "pause",
        needs: &[],
        add: |providers, _| {
            providers.add_end_of_turn(Arc::new(Pause::new()));
            None
        },
    },
    Entry {
        modality: Modality::EndOfTurn,
        id: "smart-turn",
        needs: &[ModelId::OnnxRuntime, ModelId::SmartTurn],
        add: |providers, context| {
            let path = context.store.dir(ModelId::SmartTurn).join(files::TURN);
            let turn = Arc::new(SmartTurn::new(path, context.runtime.clone()));
            providers.add_end_of_turn(Arc::clone(&turn) as _);
            Some(Box::new(move || turn.warm_up()))
        },
    },
    Entry {
        modality: Modality::Stt,
        id: "moonshine",
        needs: &[ModelId::OnnxRuntime, ModelId::MoonshineBaseEn],
        add: |providers, context| {
            let dir = context.store.dir(ModelId::MoonshineBaseEn);
            let (runtime, pool) = (context.runtime.clone(), context.pool.clone());
            let moonshine = Arc::new(Moonshine::new(dir, runtime, pool));
            providers.add_stt(Arc::clone(&moonshine) as _);
            Some(Box::new(move || moonshine.warm_up()))
        },
    },
    Entry {
        modality: Modality::Tts,
        id: "piper",
        needs: PIPER_NEEDS,
        add: |providers, context| Some(add_piper(providers, context.piper.clone())),
    },
    Entry {
        modality: Modality::Tts,
        id: "piper-steady",
        needs: PIPER_NEEDS,
        add: |providers, context| Some(add_piper(providers, context.piper.clone().steady())),
    },
];

/// A provider that is not offered because its models are not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What it would do.
    pub modality: Modality,
    /// Its id.
    pub provider: &'static str,
    /// The models it lacks.
    pub models: Vec<ModelId>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let models: Vec<_> = self.models.iter().map(|id| id.as_str()).collect();
        let (provider, models) = (self.provider, models.join(" "));
        write!(
            f,
            "`{provider}` needs models: run `rspp models pull {models}`"
        )
    }
}

fn add_piper(providers: &mut Providers, piper: Piper) -> WarmUp {
    let piper = Arc::new(piper);
    providers.add_tts(Arc::clone(&piper) as _);
    Box::new(move || piper.warm_up())
}

type WarmUp = Box<dyn FnOnce() -> Result<(), Fault> + Send>;

/// What was offered, and what was not.
pub struct Registered {
    /// Providers whose models are not there.
    pub missing: Vec<Missing>,
    warm_ups: Vec<(&'static str, WarmUp)>,
    pool: InferencePool,
}

impl Registered {
    /// Leaves out those that nobody has chosen: they load when they are first asked.
    #[must_use]
    pub fn chosen(mut self, is_chosen: impl Fn(&str) -> bool) -> Self {
        self.warm_ups.retain(|(id, _)| is_chosen(id));
        self
    }

    /// Loads all models that were offered and runs each once, so that the first conversation does
    /// not wait for them: about 3 s. All are tried; the first failure is returned.
    pub async fn warm_up(self) -> Result<(), Fault> {
        let mut result = Ok(());
        for (id, warm_up) in self.warm_ups {
            let warmed = self.pool.run(warm_up).await;
            let warmed = warmed.unwrap_or_else(|error| Err(error.into_fault()));
            if let Err(fault) = &warmed {
                tracing::warn!(provider = id, %fault, "a model could not be loaded");
            }
            result = result.and(warmed);
        }
        result
    }
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered")
            .field("missing", &self.missing)
            .finish_non_exhaustive()
    }
}

/// Adds every local provider whose models are there. Models load when they are first needed, or
/// by [`Registered::warm_up`].
pub fn register(providers: &mut Providers, store: &Store, pool: &InferencePool) -> Registered {
    let runtime = OnnxRuntime::new(store.onnxruntime(), threads());
    let context = Context {
        store,
        piper: Piper::new(PiperFiles::in_store(store), runtime.clone(), pool.clone()),
        runtime,
        pool,
    };
    let mut registered = Registered {
        missing: Vec::new(),
        warm_ups: Vec::new(),
        pool: pool.clone(),
    };
    for entry in ENTRIES {
        let lacks = |id: &ModelId| match id {
            // Any copy of the library will do.
            ModelId::OnnxRuntime => !store.onnxruntime().is_file(),
            ModelId::SileroVad
            | ModelId::SmartTurn
            | ModelId::MoonshineBaseEn
            | ModelId::CmuDict
            | ModelId::PiperJoe => !store.has(*id),
        };
        let models: Vec<_> = entry.needs.iter().copied().filter(lacks).collect();
        if !models.is_empty() {
            registered.missing.push(Missing {
                modality: entry.modality,
                provider: entry.id,
                models,
            });
            continue;
        }
        if let Some(warm_up) = (entry.add)(providers, &context) {
            registered.warm_ups.push((entry.id, warm_up));
        }
    }
    registered
}

fn threads() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if cores < CORES_FOR_TWO_THREADS { 1 } else { 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-010
    #[test]
    fn without_models_the_rest_is_offered_and_the_fix_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Some(dir.path())).unwrap();
        let mut providers = Providers::new();
        let registered = register(&mut providers, &store, &InferencePool::new(1));

        let ids = |modality| -> Vec<String> {
            let ids = providers.ids(modality);
            ids.iter().map(ToString::to_string).collect()
        };
        assert_eq!(ids(Modality::Vad), ["earshot", "energy"]);
        assert_eq!(ids(Modality::EndOfTurn), ["pause"]);
        assert_eq!(ids(Modality::Stt), [""; 0]);
        let fixes: Vec<_> = registered.missing.iter().map(ToString::to_string).collect();
        assert!(
            fixes.contains(&"`silero` needs models: run `rspp models pull silero-vad`".to_owned()),
            "{fixes:?}"
        );
    }
}
