//! One utterance: audio in, partial results as it grows, one final result.

use std::{mem, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures::{Future, StreamExt};
use rspp_proto::SampleRate;
use rspp_provider_api::{AudioStream, Call, Fault, InferencePool, SttChunk, SttRequest};

use super::{
    decoder::{Decoder, Transcript},
    quiet,
    resample::{RATE, resample},
    stop::{Stop, StopOnDrop},
};
use crate::lazy::Lazy;

/// New audio that makes another partial result worth while, in seconds.
const PARTIAL_EVERY: f32 = 0.5;
/// Longest stretch that is understood in one go, in seconds; the model knows no longer ones.
const LONGEST: f32 = 24.0;
/// A longer utterance is cut at the quietest place of these seconds.
const CUT_BETWEEN: [f32; 2] = [14.0, 23.0];
/// Audio taken in before it must be understood, in seconds; more waits with its sender.
const MOST_WAITING: f32 = 60.0;

type Outcome = Result<Option<Transcript>, Fault>;

/// The state of one call.
pub(super) struct Recognition {
    call: Call,
    request: SttRequest,
    audio: Option<AudioStream>,
    decoder: Arc<Lazy<Decoder>>,
    pool: InferencePool,
    /// What was heard since the last cut.
    heard: Heard,
    /// What was understood up to the last cut.
    settled: Settled,
    /// The work in progress: never more than one piece, so that none queues behind another.
    job: Option<Job>,
    /// Samples that the last finished partial covered, and what it found.
    last_partial: (usize, Transcript),
    finished: bool,
}

struct Job {
    goal: Goal,
    /// Samples it covers.
    samples: usize,
    outcome: Pin<Box<dyn Future<Output = Outcome> + Send>>,
    /// Stops the work when the job is dropped.
    _stop: StopOnDrop,
}

/// What a piece of work is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// The utterance so far.
    Partial,
    /// The head of a long utterance.
    Head,
    /// The utterance, or its tail.
    Final,
}

/// What there is to do next.
enum Event {
    Cancelled,
    Outcome(Outcome),
    Audio(Option<Bytes>),
}

impl Recognition {
    pub(super) fn new(
        call: Call,
        request: SttRequest,
        audio: AudioStream,
        decoder: Arc<Lazy<Decoder>>,
        pool: InferencePool,
    ) -> Self {
        Self {
            heard: Heard::new(request.sample_rate),
            call,
            request,
            audio: Some(audio),
            decoder,
            pool,
            settled: Settled::default(),
            job: None,
            last_partial: (0, Transcript::default()),
            finished: false,
        }
    }

    /// The next chunk; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Result<SttChunk, Fault>> {
        while !self.finished {
            let chunk = match self.event().await {
                Event::Outcome(Ok(Some(transcript))) => self.understood(transcript).map(Ok),
                // Work stops early only at the call's end.
                Event::Cancelled | Event::Outcome(Ok(None)) => Some(Err(Fault::cancelled())),
                Event::Outcome(Err(fault)) => Some(Err(fault)),
                Event::Audio(piece) => self.hear(piece).map(Ok),
            };
            match chunk {
                Some(Ok(chunk @ SttChunk::Partial { .. })) => {
                    self.start_next();
                    return Some(Ok(chunk));
                }
                Some(last) => {
                    self.finish();
                    return Some(last);
                }
                None => self.start_next(),
            }
        }
        None
    }

    async fn event(&mut self) -> Event {
        let room = self.heard.seconds() < MOST_WAITING;
        let job = async {
            match &mut self.job {
                Some(job) => job.outcome.as_mut().await,
                None => std::future::pending().await,
            }
        };
        let audio = async {
            match &mut self.audio {
                Some(audio) if room => audio.next().await,
                Some(_) | None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.call.cancel.cancelled() => Event::Cancelled,
            outcome = job => Event::Outcome(outcome),
            piece = audio => Event::Audio(piece),
        }
    }

    /// Takes audio in, or its end.
    fn hear(&mut self, piece: Option<Bytes>) -> Option<SttChunk> {
        if let Some(piece) = piece {
            self.heard.push(&piece);
            return None;
        }
        self.audio = None;
        let all = self.heard.samples.len();
        if let Some(job) = &mut self.job
            && job.goal == Goal::Partial
        {
            if job.samples == all {
                // It already works on the whole utterance.
                job.goal = Goal::Final;
            } else {
                self.job = None;
            }
        }
        let (covered, transcript) = &mut self.last_partial;
        if self.job.is_none() && *covered == all && self.heard.seconds() <= LONGEST {
            let transcript = mem::take(transcript);
            return Some(self.final_chunk(&transcript));
        }
        None
    }

    fn understood(&mut self, transcript: Transcript) -> Option<SttChunk> {
        let job = self.job.take()?;
        match job.goal {
            Goal::Final => Some(self.final_chunk(&transcript)),
            Goal::Head => {
                self.settled.push(&transcript);
                self.heard.samples.drain(..job.samples);
                self.last_partial = (0, Transcript::default());
                None
            }
            Goal::Partial => {
                let new = transcript.text != self.last_partial.1.text;
                let text = self.settled.with(&transcript.text);
                self.last_partial = (job.samples, transcript);
                (new && !text.is_empty()).then_some(SttChunk::Partial { text })
            }
        }
    }

    fn final_chunk(&mut self, transcript: &Transcript) -> SttChunk {
        self.settled.push(transcript);
        SttChunk::Final {
            text: mem::take(&mut self.settled.text),
            confidence: self.settled.confidence(),
        }
    }

    /// Starts whatever is worth doing, if nothing is being done.
    fn start_next(&mut self) {
        if self.finished || self.job.is_some() {
            return;
        }
        let seconds = self.heard.seconds();
        let new = self.heard.samples.len() - self.last_partial.0;
        if seconds > LONGEST {
            self.start(Goal::Head);
        } else if self.audio.is_none() {
            self.start(Goal::Final);
        } else if self.request.partials && self.heard.seconds_of(new) >= PARTIAL_EVERY {
            self.start(Goal::Partial);
        }
    }

    fn start(&mut self, goal: Goal) {
        let (pcm, rate) = (self.heard.samples.clone(), self.heard.rate);
        let samples = match goal {
            Goal::Partial | Goal::Final => pcm.len(),
            Goal::Head => self.heard.cut(),
        };
        let stop = Arc::new(Stop::default());
        let stopped = Arc::clone(&stop);
        let decoder = Arc::clone(&self.decoder);
        let pool = self.pool.clone();
        let outcome = async move {
            let work = move || {
                if stopped.fired() {
                    return Ok(None);
                }
                let audio = resample(&pcm[..samples], rate);
                decoder.get()?.transcribe(&audio, &stopped)
            };
            pool.run(work)
                .await
                .unwrap_or_else(|error| Err(error.into_fault()))
        };
        self.job = Some(Job {
            goal,
            samples,
            outcome: Box::pin(outcome),
            _stop: StopOnDrop(stop),
        });
    }

    /// Lets everything go.
    fn finish(&mut self) {
        self.finished = true;
        self.job = None;
        self.audio = None;
        self.heard.samples = Vec::new();
    }
}

/// Samples at the caller's rate.
struct Heard {
    rate: SampleRate,
    samples: Vec<i16>,
    /// The first half of a sample that a piece ended in.
    half: Option<u8>,
}

impl Heard {
    fn new(rate: SampleRate) -> Self {
        Self {
            rate,
            samples: Vec::new(),
            half: None,
        }
    }

    fn push(&mut self, piece: &[u8]) {
        let mut rest = piece;
        if let (Some(low), Some((high, after))) = (self.half, rest.split_first()) {
            self.samples.push(i16::from_le_bytes([low, *high]));
            self.half = None;
            rest = after;
        }
        let (whole, rest) = rest.as_chunks();
        self.samples
            .extend(whole.iter().map(|bytes| i16::from_le_bytes(*bytes)));
        if let [half] = rest {
            self.half = Some(*half);
        }
    }

    fn seconds(&self) -> f32 {
        self.seconds_of(self.samples.len())
    }

    fn seconds_of(&self, samples: usize) -> f32 {
        samples as f32 / self.rate.hertz() as f32
    }

    /// Where to cut a long utterance.
    fn cut(&self) -> usize {
        let scale = self.rate.hertz() as f32;
        let [from, to] = CUT_BETWEEN.map(|seconds| (seconds * scale) as usize);
        let audio = resample(&self.samples[from..to], self.rate);
        let cut = quiet::quietest(&audio, 0..audio.len());
        from + (cut as f32 * scale / RATE as f32) as usize
    }
}

/// What is certain of a transcript.
#[derive(Debug, Default)]
struct Settled {
    text: String,
    confidence: Option<f32>,
}

impl Settled {
    fn push(&mut self, transcript: &Transcript) {
        self.text = self.with(&transcript.text);
        // Of several parts, the least certain counts.
        let parts = [self.confidence, transcript.confidence];
        self.confidence = parts.into_iter().flatten().reduce(f32::min);
    }

    fn with(&self, more: &str) -> String {
        let parts = [self.text.as_str(), more];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join(" ")
    }

    fn confidence(&self) -> Option<f32> {
        self.confidence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_cut_in_two_are_put_together() {
        let mut heard = Heard::new(SampleRate::HZ_16000);
        for piece in [&[1][..], &[], &[0, 2, 0, 3], &[0], &[0xff, 0xff]] {
            heard.push(piece);
        }
        assert_eq!(heard.samples, [1, 2, 3, -1]);
        assert_eq!(heard.half, None);
    }

    #[test]
    fn parts_of_a_long_utterance_are_joined_and_the_least_certain_counts() {
        let mut settled = Settled::default();
        for (text, confidence) in [("One two.", Some(0.9)), ("", None), ("Three.", Some(0.7))] {
            settled.push(&Transcript {
                text: text.into(),
                confidence,
            });
        }
        assert_eq!(settled.with("four"), "One two. Three. four");
        assert_eq!(settled.confidence(), Some(0.7));
    }
}
