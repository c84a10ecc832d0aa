//! What every recogniser must do.

use std::{f32::consts::TAU, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, future};
use rspp_proto::SampleRate;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::{AudioStream, Call, ChunkStream, SpeechToText, SttChunk, SttRequest};

use super::{
    Failing, Patience,
    support::{WatchedAudio, describes_itself, drain, gives_nothing, is_normal, new_call, stops},
};

/// How long a final result may be awaited in vain while the audio still runs.
const STILL_LISTENING: Duration = Duration::from_millis(300);

/// The recogniser under test and what to have it hear.
pub struct Subject {
    /// The recogniser.
    pub provider: Arc<dyn SpeechToText>,
    /// Rate of `speech`.
    pub sample_rate: SampleRate,
    /// An utterance: mono 16-bit PCM, little-endian.
    pub speech: Bytes,
    /// Words that must be understood, in lower case.
    pub words: Vec<String>,
    /// The same recogniser set up to fail.
    pub failing: Vec<Failing<dyn SpeechToText>>,
    /// How long to wait.
    pub patience: Patience,
}

impl Subject {
    /// A recogniser that hears a second of hum; set `speech` and `words` for one that understands.
    pub fn new(provider: Arc<dyn SpeechToText>) -> Self {
        let hum = (0..16_000).flat_map(|at| {
            let phase = TAU * 150.0 * at as f32 / 16_000.0;
            ((phase.sin() * 8_000.0) as i16).to_le_bytes()
        });
        Self {
            provider,
            sample_rate: SampleRate::HZ_16000,
            speech: hum.collect(),
            words: Vec::new(),
            failing: Vec::new(),
            patience: Patience::default(),
        }
    }

    fn request(&self) -> SttRequest {
        SttRequest {
            sample_rate: self.sample_rate,
            language: None,
            partials: true,
        }
    }

    fn hear(&self, call: Call, audio: AudioStream) -> ChunkStream<SttChunk> {
        self.provider.transcribe(call, self.request(), audio)
    }

    fn hear_all(&self, pieces: Vec<Bytes>) -> ChunkStream<SttChunk> {
        self.hear(new_call("stt"), WatchedAudio::ending(pieces).audio)
    }

    /// The speech, cut every `bytes`.
    fn pieces(&self, bytes: usize) -> Vec<Bytes> {
        let cuts = (0..self.speech.len()).step_by(bytes);
        cuts.map(|from| self.speech.slice(from..self.speech.len().min(from + bytes)))
            .collect()
    }

    /// 20 ms frames, as a transport gives them.
    fn frames(&self) -> Vec<Bytes> {
        self.pieces(self.sample_rate.samples_in(Duration::from_millis(20)) as usize * 2)
    }

    fn understood(&self, what: &str, chunks: &[SttChunk]) {
        let text = final_text(what, chunks).to_lowercase();
        for word in &self.words {
            assert!(
                text.contains(word),
                "{what}: `{word}` is missing in `{text}`"
            );
        }
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("provider", self.provider.describe())
            .field("failing", &self.failing)
            .finish_non_exhaustive()
    }
}

/// Runs every category.
pub async fn run_all(subject: &Subject) {
    contract_shape(subject).await;
    streaming_lifecycle(subject).await;
    cancel_path(subject).await;
    outcome_normalization(subject).await;
}

/// Descriptions do not change; audio is taken in pieces of any length; partials only if wanted.
pub async fn contract_shape(subject: &Subject) {
    describes_itself(|| subject.provider.describe());
    let answer = subject.patience.answer;
    for (what, pieces) in [
        ("20 ms frames", subject.frames()),
        ("one piece", vec![subject.speech.clone()]),
        ("pieces that cut samples in two", subject.pieces(4_801)),
        ("an empty piece", vec![Bytes::new(), subject.speech.clone()]),
    ] {
        let seen = drain(what, &mut subject.hear_all(pieces), answer).await;
        subject.understood(what, &seen.success(what));
    }

    let request = SttRequest {
        partials: false,
        ..subject.request()
    };
    let audio = WatchedAudio::ending(subject.frames()).audio;
    let mut stream = subject.provider.transcribe(new_call("stt"), request, audio);
    let chunks = drain("without partials", &mut stream, answer).await;
    let chunks = chunks.success("without partials");
    subject.understood("without partials", &chunks);
    assert_eq!(chunks.len(), 1, "without partials: some came nevertheless");
}

/// Partials while the audio runs, one final once it has ended; utterances at a time do not mix.
pub async fn streaming_lifecycle(subject: &Subject) {
    let answer = subject.patience.answer;

    let frames = subject.frames();
    let (audio, heard) = mpsc::channel(frames.len() + 1);
    for frame in frames {
        let sent = audio.try_send(frame);
        assert!(sent.is_ok(), "the channel holds every frame");
    }
    let mut stream = subject.hear(new_call("stt"), Box::pin(ReceiverStream::new(heard)));
    let mut chunks = Vec::new();
    while let Ok(next) = timeout(STILL_LISTENING, stream.next()).await {
        match next {
            Some(Ok(chunk @ SttChunk::Partial { .. })) => chunks.push(chunk),
            Some(Ok(SttChunk::Final { .. })) => {
                panic!("open audio: the final came before the audio had ended")
            }
            Some(Err(fault)) => panic!("open audio: failed although nothing was wrong: {fault:?}"),
            None => panic!("open audio: ended before the audio had ended"),
        }
    }
    drop(audio);
    let rest = drain("ended audio", &mut stream, answer).await;
    chunks.extend(rest.success("ended audio"));
    subject.understood("ended audio", &chunks);

    let mut streams: Vec<_> = (0..3).map(|_| subject.hear_all(subject.frames())).collect();
    let utterances = streams
        .iter_mut()
        .map(|stream| drain("one of three utterances", stream, answer));
    for seen in future::join_all(utterances).await {
        let what = "one of three utterances";
        subject.understood(what, &seen.success(what));
    }
}

/// Stops promptly: before it starts, while it listens, on drop; then lets its audio go.
pub async fn cancel_path(subject: &Subject) {
    let patience = subject.patience;

    let call = new_call("stt");
    call.cancel.cancel();
    let mut stream = subject.hear(call, WatchedAudio::ending(subject.frames()).audio);
    gives_nothing("cancelled before the start", &mut stream, patience).await;

    for (what, pieces) in [
        ("cancelled while listening to nothing", Vec::new()),
        ("cancelled while listening", subject.frames()),
    ] {
        let call = new_call("stt");
        let cancel = call.cancel.clone();
        let (audio, released) = WatchedAudio::pending(pieces).split();
        let mut stream = subject.hear(call, audio);
        // Whatever comes before the cancel is no matter; it must only have begun.
        while let Ok(next) = timeout(STILL_LISTENING, stream.next()).await {
            assert!(next.is_some(), "{what}: ended before the audio had ended");
        }
        cancel.cancel();
        stops(what, &mut stream, patience).await;
        drop(stream);
        let let_go = timeout(patience.stop, released.cancelled()).await;
        assert!(let_go.is_ok(), "{what}: held on to its audio");
    }

    let (audio, released) = WatchedAudio::pending(subject.frames()).split();
    let mut stream = subject.hear(new_call("stt"), audio);
    // Gives up after a while or at the first partial: either way it is under way.
    let _ = timeout(STILL_LISTENING, stream.next()).await;
    drop(stream);
    let let_go = timeout(patience.stop, released.cancelled()).await;
    assert!(let_go.is_ok(), "dropped: held on to its audio");

    let mut stream = subject.hear_all(subject.frames());
    let seen = drain("after a drop", &mut stream, patience.answer).await;
    subject.understood("after a drop", &seen.success("after a drop"));
}

/// Faults keep to the taxonomy; nothing said is a blank final, not a failure.
pub async fn outcome_normalization(subject: &Subject) {
    let answer = subject.patience.answer;
    let second = subject.sample_rate.hertz() as usize * 2;
    for (what, pieces) in [
        ("no audio", Vec::new()),
        ("an empty piece of audio", vec![Bytes::new()]),
        ("a second of silence", vec![Bytes::from(vec![0; second])]),
    ] {
        let seen = drain(what, &mut subject.hear_all(pieces), answer).await;
        let text = final_text(what, &seen.success(what));
        assert!(text.trim().is_empty(), "{what}: understood `{text}`");
    }

    let words: Vec<&str> = subject.words.iter().map(String::as_str).collect();
    for case in &subject.failing {
        let audio = WatchedAudio::ending(subject.frames()).audio;
        let mut stream = case
            .provider
            .transcribe(new_call("stt"), subject.request(), audio);
        let seen = drain(case.what, &mut stream, answer).await;
        let Some(fault) = seen.fault else {
            panic!(
                "{}: ended well, but must fail as {:?}",
                case.what, case.class
            );
        };
        assert_eq!(fault.class, case.class, "{}: {fault:?}", case.what);
        is_normal(case.what, &fault, &words);
        assert!(
            !seen.chunks.iter().any(is_final),
            "{}: a final, and a failure after it",
            case.what
        );
    }
}

fn is_final(chunk: &SttChunk) -> bool {
    matches!(chunk, SttChunk::Final { .. })
}

/// The text of the one final, which must be last.
fn final_text(what: &str, chunks: &[SttChunk]) -> String {
    let finals = chunks.iter().filter(|chunk| is_final(chunk)).count();
    assert_eq!(finals, 1, "{what}: there must be exactly one final");
    match chunks.last() {
        Some(SttChunk::Final { text, confidence }) => {
            assert!(
                confidence.is_none_or(|sure| (0.0..=1.0).contains(&sure)),
                "{what}: a confidence of {confidence:?}"
            );
            text.clone()
        }
        Some(SttChunk::Partial { .. }) | None => panic!("{what}: a partial came after the final"),
    }
}
