//! The providers that a process offers, by id and in a fixed order.

use std::{collections::BTreeMap, fmt, sync::Arc};

use rspp_proto::{
    ProviderId,
    spec::{BatchingSpec, Modality},
};
use thiserror::Error;

use crate::{
    BatchCounters, BatchLanguageModel, Batching, Description, EndOfTurn, LanguageModel,
    SpeechToText, TextToSpeech, VoiceActivity,
};

/// Why a provider cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RegistryError {
    /// No provider of that id serves that modality.
    #[error("unknown {} provider `{id}`; known: {}", modality.as_str(), known.join(", "))]
    Unknown {
        /// What was looked for.
        modality: Modality,
        /// The id asked for.
        id: ProviderId,
        /// What there is.
        known: Vec<String>,
    },
    /// No language model of that id can answer several calls together.
    #[error(
        "language model `{id}` does not batch; those that do: {}",
        all_or_none(known)
    )]
    NoBatches {
        /// The id asked for.
        id: ProviderId,
        /// What there is.
        known: Vec<String>,
    },
}

fn all_or_none(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.join(", "),
    }
}

/// A process's providers. Ids are unique within a modality; order is by id.
#[derive(Clone, Default)]
pub struct Providers {
    stt: BTreeMap<ProviderId, Arc<dyn SpeechToText>>,
    llm: BTreeMap<ProviderId, Arc<dyn LanguageModel>>,
    tts: BTreeMap<ProviderId, Arc<dyn TextToSpeech>>,
    voice: BTreeMap<ProviderId, Arc<dyn VoiceActivity>>,
    end_of_turn: BTreeMap<ProviderId, Arc<dyn EndOfTurn>>,
    /// Language models that can answer several calls together, and what gathers these.
    batching: BTreeMap<ProviderId, (Arc<dyn BatchLanguageModel>, Arc<Batching>)>,
}

macro_rules! modality {
    ($add:ident, $get:ident, $field:ident, $trait:ident, $modality:expr) => {
        /// Adds a provider; one with the same id is replaced.
        pub fn $add(&mut self, provider: Arc<dyn $trait>) -> &mut Self {
            self.$field.insert(provider.describe().id.clone(), provider);
            self
        }

        /// The provider of that id.
        pub fn $get(&self, id: &ProviderId) -> Result<Arc<dyn $trait>, RegistryError> {
            self.$field
                .get(id)
                .cloned()
                .ok_or_else(|| self.unknown($modality, id))
        }
    };
}

impl Providers {
    /// No providers.
    pub fn new() -> Self {
        Self::default()
    }

    modality!(add_stt, stt, stt, SpeechToText, Modality::Stt);
    modality!(add_llm, llm, llm, LanguageModel, Modality::Llm);
    modality!(add_tts, tts, tts, TextToSpeech, Modality::Tts);
    modality!(add_voice, voice, voice, VoiceActivity, Modality::Vad);
    modality!(
        add_end_of_turn,
        end_of_turn,
        end_of_turn,
        EndOfTurn,
        Modality::EndOfTurn
    );

    /// Adds a language model that can answer several calls together; until it is told
    /// [how](Self::batch), it answers each alone.
    pub fn add_batch_llm(&mut self, model: Arc<dyn BatchLanguageModel>) -> &mut Self {
        self.gather(model, None);
        self
    }

    /// Gathers the calls of a language model from now on (F-051).
    pub fn batch(&mut self, id: &ProviderId, spec: BatchingSpec) -> Result<(), RegistryError> {
        let Some((model, _)) = self.batching.get(id) else {
            return Err(RegistryError::NoBatches {
                id: id.clone(),
                known: self.batching.keys().map(ToString::to_string).collect(),
            });
        };
        self.gather(Arc::clone(model), Some(spec));
        Ok(())
    }

    fn gather(&mut self, model: Arc<dyn BatchLanguageModel>, spec: Option<BatchingSpec>) {
        let id = model.describe().id.clone();
        let gathering = Arc::new(Batching::new(Arc::clone(&model), spec));
        self.llm.insert(id.clone(), Arc::clone(&gathering) as _);
        self.batching.insert(id, (model, gathering));
    }

    /// What was gathered of a language model's calls; `None` if it answers each alone.
    pub fn batches(&self, id: &ProviderId) -> Option<BatchCounters> {
        let (_, gathering) = self.batching.get(id)?;
        Some(gathering.counters())
    }

    /// The ids that serve a modality, in order.
    pub fn ids(&self, modality: Modality) -> Vec<ProviderId> {
        match modality {
            Modality::Stt => self.stt.keys().cloned().collect(),
            Modality::Llm => self.llm.keys().cloned().collect(),
            Modality::Tts => self.tts.keys().cloned().collect(),
            Modality::Vad => self.voice.keys().cloned().collect(),
            Modality::EndOfTurn => self.end_of_turn.keys().cloned().collect(),
            Modality::External => Vec::new(),
        }
    }

    /// What a provider says that it is; `None` if there is no such provider.
    pub fn describe(&self, modality: Modality, id: &ProviderId) -> Option<&Description> {
        Some(match modality {
            Modality::Stt => self.stt.get(id)?.describe(),
            Modality::Llm => self.llm.get(id)?.describe(),
            Modality::Tts => self.tts.get(id)?.describe(),
            Modality::Vad => self.voice.get(id)?.describe(),
            Modality::EndOfTurn => self.end_of_turn.get(id)?.describe(),
            Modality::External => return None,
        })
    }

    fn unknown(&self, modality: Modality, id: &ProviderId) -> RegistryError {
        let known = self.ids(modality);
        RegistryError::Unknown {
            modality,
            id: id.clone(),
            known: known.iter().map(ToString::to_string).collect(),
        }
    }
}

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Providers")
            .field("stt", &self.ids(Modality::Stt))
            .field("llm", &self.ids(Modality::Llm))
            .field("tts", &self.ids(Modality::Tts))
            .field("voice", &self.ids(Modality::Vad))
            .field("end_of_turn", &self.ids(Modality::EndOfTurn))
            .finish()
    }
}
