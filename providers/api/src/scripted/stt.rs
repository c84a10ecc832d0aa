//! A scripted recogniser.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use rspp_proto::{InvocationId, SampleRate, SessionId};

use crate::{
    AudioStream, Call, ChunkStream, Description, Fault, SpeechToText, SttChunk, SttRequest,
};

use super::{
    Script, Tally, describe,
    performance::{Cue, Performance, Stage, last_item},
};

/// Sessions whose utterances are counted; the oldest is forgotten first.
const SESSIONS_REMEMBERED: usize = 4_096;

/// What was spoken, as far as a scripted recogniser can know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Utterance {
    /// Whose.
    pub session: SessionId,
    /// Which of the session's utterances, from 1. Silence is none, another attempt is the same.
    pub number: u64,
}

type Understand = dyn Fn(&Utterance) -> String + Send + Sync;

/// A recogniser that reads its audio and understands what it was told to.
///
/// Audio of nothing but zeros is silence and gives a blank final; everything else is one utterance.
pub struct ScriptedStt {
    description: Description,
    stage: Stage,
    understand: Arc<Understand>,
    heard: Arc<Heard>,
    word_every: Duration,
    final_after: Duration,
    confidence: Option<f32>,
}

impl ScriptedStt {
    /// A recogniser of that id: it hears "utterance 1", "utterance 2" and so on, without delay.
    pub fn new(id: &str) -> Self {
        Self {
            description: describe(id, true),
            stage: Stage::default(),
            understand: Arc::new(|heard| format!("utterance {}", heard.number)),
            heard: Arc::default(),
            word_every: Duration::from_millis(300),
            final_after: Duration::ZERO,
            confidence: None,
        }
    }

    /// A session's n-th utterance is the n-th of `texts`, and round again.
    #[must_use]
    pub fn utterances<S: Into<String>>(self, texts: impl IntoIterator<Item = S>) -> Self {
        let texts: Vec<String> = texts.into_iter().map(Into::into).collect();
        self.understand(move |heard| match texts.len() as u64 {
            0 => String::new(),
            total => texts[((heard.number - 1) % total) as usize].clone(),
        })
    }

    /// Understands by a function.
    #[must_use]
    pub fn understand(
        mut self,
        understand: impl Fn(&Utterance) -> String + Send + Sync + 'static,
    ) -> Self {
        self.understand = Arc::new(understand);
        self
    }

    /// Audio that a word of a partial result takes.
    #[must_use]
    pub fn word_every(mut self, audio: Duration) -> Self {
        self.word_every = audio;
        self
    }

    /// From the end of the audio to the final result.
    #[must_use]
    pub fn final_after(mut self, delay: Duration) -> Self {
        self.final_after = delay;
        self
    }

    /// The confidence of final results.
    #[must_use]
    pub fn confidence(mut self, confidence: f32) -> Self {
        self.confidence = Some(confidence);
        self
    }

    /// How attempts go.
    #[must_use]
    pub fn script(self, script: Script) -> Self {
        self.set_script(script);
        self
    }

    /// Changes how attempts from now on go.
    pub fn set_script(&self, script: Script) {
        self.stage.set_script(script);
    }

    /// What became of the calls.
    pub fn tally(&self) -> Tally {
        self.stage.tally()
    }
}

impl SpeechToText for ScriptedStt {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn transcribe(
        &self,
        call: Call,
        request: SttRequest,
        audio: AudioStream,
    ) -> ChunkStream<SttChunk> {
        let listener = Listener {
            performance: self.stage.begin(&call),
            audio,
            understand: Arc::clone(&self.understand),
            heard: Arc::clone(&self.heard),
            session: call.session,
            invocation: call.invocation,
            sample_rate: request.sample_rate,
            partials: request.partials,
            word_every: self.word_every,
            final_after: self.final_after,
            confidence: self.confidence,
            bytes: 0,
            text: None,
            words_shown: 0,
            finalised: false,
        };
        Box::pin(stream::unfold(Some(listener), |listener| async move {
            listener?.step().await
        }))
    }
}

impl fmt::Debug for ScriptedStt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedStt")
            .field("description", &self.description)
            .field("tally", &self.tally())
            .finish_non_exhaustive()
    }
}

/// One utterance being heard.
struct Listener {
    performance: Performance,
    audio: AudioStream,
    understand: Arc<Understand>,
    heard: Arc<Heard>,
    session: SessionId,
    invocation: InvocationId,
    sample_rate: SampleRate,
    partials: bool,
    word_every: Duration,
    final_after: Duration,
    confidence: Option<f32>,
    bytes: u64,
    /// What was said; `None` as long as all was silence.
    text: Option<String>,
    words_shown: usize,
    finalised: bool,
}

impl Listener {
    async fn step(mut self) -> Option<(Result<SttChunk, Fault>, Option<Self>)> {
        if self.finalised {
            return last_item(self.performance.finish().await);
        }
        let (chunk, pace) = match self.next_chunk().await {
            Ok(next) => next,
            Err(cancelled) => return last_item(cancelled),
        };
        match self.performance.cue(pace).await {
            Cue::Emit => Some((Ok(chunk), Some(self))),
            cue @ (Cue::Fail(_) | Cue::End) => last_item(cue),
        }
    }

    /// Listens until there is something to say, and after how long.
    async fn next_chunk(&mut self) -> Result<(SttChunk, Duration), Cue> {
        // Trouble does not wait until enough was heard for another chunk.
        while self.performance.trouble_now().is_none() {
            let heard = self.performance.unless_cancelled(self.audio.next()).await?;
            let Some(samples) = heard else {
                return Ok((self.finalise(), self.final_after));
            };
            self.hear(&samples);
            if let Some(text) = self.new_partial() {
                return Ok((SttChunk::Partial { text }, Duration::ZERO));
            }
        }
        Ok((self.finalise(), Duration::ZERO))
    }

    fn hear(&mut self, samples: &Bytes) {
        self.bytes += samples.len() as u64;
        if self.text.is_none() && samples.iter().any(|byte| *byte != 0) {
            let utterance = Utterance {
                session: self.session.clone(),
                number: self.heard.number(&self.session, &self.invocation),
            };
            self.text = Some((self.understand)(&utterance));
        }
    }

    fn new_partial(&mut self) -> Option<String> {
        let text = self.text.as_ref().filter(|_| self.partials)?;
        let audio = self.sample_rate.duration_of(self.bytes / 2);
        let words = audio
            .as_nanos()
            .checked_div(self.word_every.as_nanos())
            .map_or(usize::MAX, |words| {
                usize::try_from(words).unwrap_or(usize::MAX)
            });
        let words = words.min(text.split_whitespace().count());
        if words <= self.words_shown {
            return None;
        }
        self.words_shown = words;
        let shown: Vec<&str> = text.split_whitespace().take(words).collect();
        Some(shown.join(" "))
    }

    fn finalise(&mut self) -> SttChunk {
        self.finalised = true;
        SttChunk::Final {
            text: self.text.take().unwrap_or_default(),
            confidence: self.confidence,
        }
    }
}

/// How many utterances each session has spoken.
#[derive(Debug, Default)]
struct Heard(Mutex<Sessions>);

#[derive(Debug, Default)]
struct Sessions {
    last: HashMap<SessionId, (InvocationId, u64)>,
    by_age: VecDeque<SessionId>,
}

impl Heard {
    /// The utterance's number: one more than the session's last, unless it is that one.
    fn number(&self, session: &SessionId, invocation: &InvocationId) -> u64 {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((last, number)) = sessions.last.get_mut(session) {
            if last != invocation {
                *last = invocation.clone();
                *number += 1;
            }
            return *number;
        }
        if sessions.by_age.len() == SESSIONS_REMEMBERED
            && let Some(oldest) = sessions.by_age.pop_front()
        {
            sessions.last.remove(&oldest);
        }
        sessions.by_age.push_back(session.clone());
        sessions
            .last
            .insert(session.clone(), (invocation.clone(), 1));
        1
    }
}
