//! The user's side of a call: recordings, and words that the local voice speaks.

use std::{path::Path, sync::Arc, time::Duration};

use futures::StreamExt;
use rspp_proto::{Epoch, EventId, InvocationId, ProviderId, SessionId};
use rspp_provider_api::{Attempt, Call, Deadlines, Providers, TtsRequest};
use rspp_transport_api::{
    audio::{Resampler, samples},
    loopback::{Start, USER_RATE, Utterance},
};
use tokio_util::sync::CancellationToken;

use super::said::{Turn, Voice, read_recording};
use crate::problem::Problem;

/// Who speaks the user's words: a voice that is local, and says them the same each time, so that what is
/// rehearsed can be rehearsed again.
pub(crate) const USER_VOICE: &str = "piper-steady";

/// Silence before the first words, as a caller's.
const FIRST_WORDS: Duration = Duration::from_millis(400);
/// How long the user thinks before the next turn.
const THINKING: Duration = Duration::from_millis(600);

/// A turn of the user's, with recordings read.
pub(crate) struct Ready {
    turn: Turn,
    recording: Option<Vec<i16>>,
}

impl Ready {
    /// The recording it was read from.
    pub(crate) fn file(&self) -> Option<&Path> {
        match &self.turn.source {
            Voice::File(path) => Some(path),
            Voice::Text(_) => None,
        }
    }

    /// Whether it has to be synthesised.
    pub(crate) fn needs_voice(&self) -> bool {
        self.recording.is_none()
    }
}

/// Reads all recordings, so that a bad file is told before anything else is done.
pub(crate) fn read(turns: Vec<Turn>) -> Result<Vec<Ready>, Problem> {
    let read = |turn: Turn| {
        let recording = match &turn.source {
            Voice::File(path) => Some(read_recording(path)?),
            Voice::Text(text) if text.trim().is_empty() => {
                return Err(Problem::input("--say needs words to say"));
            }
            Voice::Text(_) => None,
        };
        Ok(Ready { turn, recording })
    };
    turns.into_iter().map(read).collect()
}

/// Synthesises what is not recorded, and puts the turns in time.
pub(crate) async fn utterances(
    turns: Vec<Ready>,
    providers: &Providers,
) -> Result<Vec<Utterance>, Problem> {
    let mut utterances = Vec::with_capacity(turns.len());
    for (n, Ready { turn, recording }) in turns.into_iter().enumerate() {
        let audio = match (recording, &turn.source) {
            (Some(recording), _) => recording,
            (None, Voice::Text(text)) => speak(text, providers).await?,
            (None, Voice::File(path)) => read_recording(path)?,
        };
        let start = match (n, turn.barge_in) {
            (0, _) => Start::At(FIRST_WORDS),
            (_, None) => Start::AfterReply { pause: THINKING },
            (_, Some(after_reply_audio)) => Start::BargeIn { after_reply_audio },
        };
        utterances.push(Utterance { audio, start });
    }
    Ok(utterances)
}

async fn speak(text: &str, providers: &Providers) -> Result<Vec<i16>, Problem> {
    let failed = |what: String| Problem::failure(format!("--say {text:?}: {what}"));
    let id = ProviderId::new(USER_VOICE).map_err(Problem::failure)?;
    let voice = providers.tts(&id).map_err(Problem::input)?;
    let session = SessionId::new("user").map_err(Problem::failure)?;
    let event = EventId::canonical(&session, None, 0);
    let invocation = InvocationId::canonical(&session, None, &event, "tts");
    let call = Call {
        idempotency_key: invocation.to_string(),
        invocation,
        attempt: Attempt::FIRST,
        session,
        turn: None,
        epoch: Epoch::FIRST,
        deadlines: Deadlines {
            first_byte: Duration::from_secs(30),
            inter_chunk: Duration::from_secs(30),
        },
        share: Arc::default(),
        queue: Arc::default(),
        extras: Arc::default(),
        cancel: CancellationToken::new(),
    };
    let request = TtsRequest {
        text: text.trim().to_owned(),
        previous_text: None,
        voice: None,
    };
    let mut chunks = voice.synthesize(call, request);
    let mut resampler: Option<Resampler> = None;
    let mut audio = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|fault| failed(fault.message))?;
        let resampler = match &mut resampler {
            Some(resampler) => resampler,
            none => {
                let fresh = Resampler::new(chunk.sample_rate, USER_RATE);
                none.insert(fresh.map_err(|error| failed(error.to_string()))?)
            }
        };
        let pcm: Vec<i16> = samples(&chunk.pcm).collect();
        resampler.push(&pcm, &mut audio);
    }
    if let Some(mut resampler) = resampler {
        resampler.finish(&mut audio);
    }
    if audio.is_empty() {
        return Err(failed("the voice said nothing".to_owned()));
    }
    Ok(audio)
}
