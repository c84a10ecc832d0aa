//! What every voice must do.

use std::{fmt, sync::Arc, time::Duration};

use futures::future;

use crate::{ChunkStream, TextToSpeech, TtsChunk, TtsRequest};

use super::{
    Failing, Patience,
    support::{
        describes_itself, drain, first_chunk, gives_nothing, is_normal, is_refusal, new_call, stops,
    },
};

/// The voice under test and what to have it say.
pub struct Subject {
    /// The voice.
    pub provider: Arc<dyn TextToSpeech>,
    /// A clause of at least a second.
    pub text: String,
    /// How long it may take to say, from and to.
    pub spoken: (Duration, Duration),
    /// The same voice set up to fail.
    pub failing: Vec<Failing<dyn TextToSpeech>>,
    /// How long to wait.
    pub patience: Patience,
}

impl Subject {
    /// A voice that says an ordinary sentence.
    pub fn new(provider: Arc<dyn TextToSpeech>) -> Self {
        Self {
            provider,
            text: "Good morning, your table for four is booked for seven o'clock.".to_owned(),
            spoken: (Duration::from_secs(1), Duration::from_secs(15)),
            failing: Vec::new(),
            patience: Patience::default(),
        }
    }

    fn say(&self) -> ChunkStream<TtsChunk> {
        let request = request_for(&self.text);
        self.provider.synthesize(new_call("tts"), request)
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

fn request_for(text: &str) -> TtsRequest {
    TtsRequest {
        text: text.to_owned(),
        previous_text: None,
        voice: None,
    }
}

/// Runs every category.
pub async fn run_all(subject: &Subject) {
    contract_shape(subject).await;
    streaming_lifecycle(subject).await;
    cancel_path(subject).await;
    outcome_normalization(subject).await;
}

/// Descriptions do not change; audio is whole samples of one rate, as long as the text takes.
pub async fn contract_shape(subject: &Subject) {
    describes_itself(|| subject.provider.describe());
    let seen = drain("a clause", &mut subject.say(), subject.patience.answer).await;
    let chunks = seen.success("a clause");
    is_speech("a clause", &chunks);
    let spoken: Duration = chunks
        .iter()
        .map(|chunk| chunk.sample_rate.duration_of(chunk.pcm.len() as u64 / 2))
        .sum();
    let (least, most) = subject.spoken;
    assert!(
        (least..=most).contains(&spoken),
        "a clause: took {spoken:?} to say, expected {least:?} to {most:?}"
    );
}

/// At least one chunk, then the end; calls at the same time do not mix; context is accepted.
pub async fn streaming_lifecycle(subject: &Subject) {
    let patience = subject.patience;
    let mut streams: Vec<_> = (0..3).map(|_| subject.say()).collect();
    let clauses = streams
        .iter_mut()
        .map(|stream| drain("one of three clauses", stream, patience.answer));
    for seen in future::join_all(clauses).await {
        is_speech(
            "one of three clauses",
            &seen.success("one of three clauses"),
        );
    }

    let request = TtsRequest {
        previous_text: Some(subject.text.clone()),
        ..request_for("Anything else?")
    };
    let mut stream = subject.provider.synthesize(new_call("tts"), request);
    let seen = drain("a clause after another", &mut stream, patience.answer).await;
    is_speech(
        "a clause after another",
        &seen.success("a clause after another"),
    );
}

/// Stops promptly: before it starts, mid-stream, on drop; and only the call that was cancelled.
pub async fn cancel_path(subject: &Subject) {
    let patience = subject.patience;
    let request = || request_for(&subject.text);

    let call = new_call("tts");
    call.cancel.cancel();
    let mut stream = subject.provider.synthesize(call, request());
    gives_nothing("cancelled before the start", &mut stream, patience).await;

    let call = new_call("tts");
    let cancel = call.cancel.clone();
    let mut stream = subject.provider.synthesize(call, request());
    let mut other = subject.say();
    first_chunk("cancelled mid-stream", &mut stream, patience.answer).await;
    cancel.cancel();
    stops("cancelled mid-stream", &mut stream, patience).await;
    let seen = drain("beside a cancelled call", &mut other, patience.answer).await;
    is_speech(
        "beside a cancelled call",
        &seen.success("beside a cancelled call"),
    );

    let mut stream = subject.say();
    first_chunk("dropped mid-stream", &mut stream, patience.answer).await;
    drop(stream);
    drop(subject.say());
    let seen = drain("after a drop", &mut subject.say(), patience.answer).await;
    is_speech("after a drop", &seen.success("after a drop"));
}

/// Faults keep to the taxonomy; a text with nothing to pronounce is no failure.
pub async fn outcome_normalization(subject: &Subject) {
    let patience = subject.patience;
    // Blank text breaks the contract's own promise, but must not look like an outage (P27).
    for (what, text) in [("blank text", " "), ("bare punctuation", "...")] {
        let request = request_for(text);
        let mut stream = subject.provider.synthesize(new_call("tts"), request);
        let seen = drain(what, &mut stream, patience.answer).await;
        check_chunks(what, &seen.chunks);
        if let Some(fault) = seen.fault {
            is_refusal(what, &fault);
        }
    }

    for case in &subject.failing {
        let request = request_for(&subject.text);
        let mut stream = case.provider.synthesize(new_call("tts"), request);
        let seen = drain(case.what, &mut stream, patience.answer).await;
        let Some(fault) = seen.fault else {
            panic!(
                "{}: ended well, but must fail as {:?}",
                case.what, case.class
            );
        };
        assert_eq!(fault.class, case.class, "{}: {fault:?}", case.what);
        is_normal(case.what, &fault, &[&subject.text]);
    }
}

fn is_speech(what: &str, chunks: &[TtsChunk]) {
    assert!(!chunks.is_empty(), "{what}: ended well without any audio");
    check_chunks(what, chunks);
}

fn check_chunks(what: &str, chunks: &[TtsChunk]) {
    for chunk in chunks {
        assert!(!chunk.pcm.is_empty(), "{what}: an empty chunk");
        assert!(
            chunk.pcm.len().is_multiple_of(2),
            "{what}: a chunk of {} bytes cuts a sample in two",
            chunk.pcm.len()
        );
        assert_eq!(
            chunk.sample_rate, chunks[0].sample_rate,
            "{what}: the rate changed within a call"
        );
    }
}
