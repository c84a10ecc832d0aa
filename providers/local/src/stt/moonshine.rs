//! Moonshine: English recognition whose cost follows the length of the utterance.

use std::{path::PathBuf, sync::Arc};

use futures::stream;
use rspp_provider_api::{
    AudioStream, Call, ChunkStream, Description, Fault, InferencePool, SpeechToText, SttChunk,
    SttRequest,
};

use super::{decoder::Decoder, recognition::Recognition};
use crate::{OnnxRuntime, describe::describe, lazy::Lazy};

/// Moonshine base, English: about a tenth of an utterance's length on one core.
#[derive(Debug)]
pub struct Moonshine {
    description: Description,
    decoder: Arc<Lazy<Decoder>>,
    pool: InferencePool,
}

impl Moonshine {
    /// Loads the model in `dir` when first needed; recognises on `pool`.
    pub fn new(dir: PathBuf, runtime: OnnxRuntime, pool: InferencePool) -> Self {
        Self {
            description: Description {
                streaming: true,
                ..describe("moonshine", "moonshine-base-en")
            },
            decoder: Arc::new(Lazy::new(move || Decoder::load(&dir, &runtime))),
            pool,
        }
    }

    pub(crate) fn warm_up(&self) -> Result<(), Fault> {
        self.decoder.get()?.warm_up()
    }
}

impl SpeechToText for Moonshine {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn transcribe(
        &self,
        call: Call,
        request: SttRequest,
        audio: AudioStream,
    ) -> ChunkStream<SttChunk> {
        if let Some(language) = request.language.as_deref().filter(|tag| !is_english(tag)) {
            let message = format!("moonshine-base-en knows English only, not `{language}`");
            let fault = Fault::blocked("unsupported_language", message);
            return Box::pin(stream::once(async { Err(fault) }));
        }
        let decoder = Arc::clone(&self.decoder);
        let pool = self.pool.for_call(&call);
        let recognition = Recognition::new(call, request, audio, decoder, pool);
        Box::pin(stream::unfold(recognition, |mut recognition| async {
            let chunk = recognition.next().await?;
            Some((chunk, recognition))
        }))
    }
}

fn is_english(tag: &str) -> bool {
    let primary = tag.split('-').next().unwrap_or_default();
    primary.eq_ignore_ascii_case("en")
}
