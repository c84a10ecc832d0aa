//! A scripted language model that answers several calls together.

use std::sync::{Mutex, PoisonError};

use crate::{
    BatchLanguageModel, Call, ChunkStream, Description, LanguageModel, LlmChunk, LlmRequest,
};

use super::{ScriptedLlm, Tally};

/// Answers each call of a batch as a [`ScriptedLlm`] does, and remembers how large batches were.
#[derive(Debug)]
pub struct ScriptedBatchLlm {
    one: ScriptedLlm,
    sizes: Mutex<Vec<usize>>,
}

impl ScriptedBatchLlm {
    /// Answers like `one`.
    pub fn new(one: ScriptedLlm) -> Self {
        Self {
            one,
            sizes: Mutex::default(),
        }
    }

    /// The sizes of the batches so far, in order.
    pub fn sizes(&self) -> Vec<usize> {
        let sizes = self.sizes.lock();
        sizes.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What became of the calls.
    pub fn tally(&self) -> Tally {
        self.one.tally()
    }
}

impl BatchLanguageModel for ScriptedBatchLlm {
    fn describe(&self) -> &Description {
        self.one.describe()
    }

    fn generate_batch(&self, calls: Vec<(Call, LlmRequest)>) -> Vec<ChunkStream<LlmChunk>> {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        sizes.push(calls.len());
        let calls = calls.into_iter();
        calls
            .map(|(call, request)| self.one.generate(call, request))
            .collect()
    }
}
