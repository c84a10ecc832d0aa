//! The real voice, listened to by the real recogniser and by numbers.
//!
//! Needs the models (`rspp models pull`, or `cargo run -p rspp-local --example pull`); then
//! `cargo test -p rspp-local --test voice -- --ignored --nocapture`.

#![expect(clippy::unwrap_used, reason = "a check that cannot go on may panic")]

use std::{
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use rspp_local::{OnnxRuntime, Piper, PiperFiles, models::Store, register};
use rspp_proto::{Epoch, EventId, InvocationId, ProviderId, SampleRate, SessionId, TurnNumber};
use rspp_provider_api::{
    Attempt, Call, Deadlines, InferencePool, OutcomeClass, Providers, SttChunk, SttRequest,
    TextToSpeech, TtsRequest,
    conformance::{Failing, tts},
    conformance_tests,
};
use tokio_util::sync::CancellationToken;

/// One set of models for all tests: loading takes seconds.
static PROVIDERS: LazyLock<Providers> = LazyLock::new(|| {
    let mut providers = Providers::new();
    let store = Store::open(None).unwrap();
    let registered = register(&mut providers, &store, &InferencePool::new(2));
    assert!(registered.missing.is_empty(), "{:?}", registered.missing);
    providers
});

fn voice() -> Arc<dyn TextToSpeech> {
    PROVIDERS.tts(&ProviderId::new("piper").unwrap()).unwrap()
}

fn call() -> Call {
    let session = SessionId::new("voice").unwrap();
    let turn = TurnNumber::FIRST.id();
    let event = EventId::canonical(&session, Some(&turn), 1);
    Call {
        invocation: InvocationId::canonical(&session, Some(&turn), &event, "tts"),
        attempt: Attempt::FIRST,
        session,
        turn: Some(turn),
        epoch: Epoch::FIRST,
        idempotency_key: "voice".into(),
        deadlines: Deadlines {
            first_byte: Duration::from_secs(20),
            inter_chunk: Duration::from_secs(10),
        },
        share: Arc::default(),
        queue: Arc::default(),
        extras: Arc::default(),
        cancel: CancellationToken::new(),
    }
}

fn request(text: &str) -> TtsRequest {
    TtsRequest {
        text: text.into(),
        previous_text: None,
        voice: None,
    }
}

struct Speech {
    rate: SampleRate,
    pcm: Vec<u8>,
    chunks: Vec<usize>,
}

impl Speech {
    fn samples(&self) -> Vec<f64> {
        let sample = |pair: &[u8]| f64::from(i16::from_le_bytes([pair[0], pair[1]])) / 32_768.0;
        self.pcm.chunks_exact(2).map(sample).collect()
    }

    fn duration(&self) -> Duration {
        self.rate.duration_of(self.pcm.len() as u64 / 2)
    }
}

async fn speak(voice: &dyn TextToSpeech, text: &str) -> Speech {
    let mut stream = voice.synthesize(call(), request(text));
    let mut speech = Speech {
        rate: SampleRate::HZ_8000,
        pcm: Vec::new(),
        chunks: Vec::new(),
    };
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.unwrap();
        speech.rate = chunk.sample_rate;
        speech.chunks.push(chunk.pcm.len());
        speech.pcm.extend_from_slice(&chunk.pcm);
    }
    speech
}

async fn recognise(speech: &Speech) -> String {
    let stt = PROVIDERS
        .stt(&ProviderId::new("moonshine").unwrap())
        .unwrap();
    let asked = SttRequest {
        sample_rate: speech.rate,
        language: Some("en-US".into()),
        partials: false,
    };
    let audio = Box::pin(stream::iter([Bytes::from(speech.pcm.clone())]));
    let mut chunks = stt.transcribe(call(), asked, audio);
    while let Some(chunk) = chunks.next().await {
        if let SttChunk::Final { text, .. } = chunk.unwrap() {
            return text;
        }
    }
    panic!("no final transcript");
}

fn words(text: &str) -> Vec<String> {
    let lower = text
        .to_lowercase()
        .replace('\'', "")
        .replace("to-morrow", "tomorrow");
    let words = lower.split(|c: char| !c.is_alphanumeric());
    words
        .filter(|word| !word.is_empty())
        .map(Into::into)
        .collect()
}

/// Words to add, drop or change to make one of the other.
fn distance(a: &[String], b: &[String]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

const SENTENCES: [&str; 8] = [
    "Hello, how can I help you today?",
    "Your appointment is on Tuesday at half past nine.",
    "The library closes at six, but you can return books through the night.",
    "I am sorry, but we do not have any rooms available for that night.",
    "Please hold the line while I transfer your call.",
    "The weather in the city is sunny with a little rain in the evening.",
    "Could you please repeat your account number?",
    "My brother lives in a small village near the mountains.",
];

/// What is said is understood.
#[tokio::test]
#[ignore = "needs models: rspp models pull"]
async fn the_recogniser_understands_the_voice() {
    let voice = voice();
    let (mut errors, mut total) = (0, 0);
    for sentence in SENTENCES {
        let heard = recognise(&speak(&*voice, sentence).await).await;
        let (said, heard) = (words(sentence), words(&heard));
        let wrong = distance(&said, &heard);
        println!("{wrong} of {}: {}", said.len(), heard.join(" "));
        errors += wrong;
        total += said.len();
    }
    let rate = 100.0 * errors as f64 / total as f64;
    println!("word error rate {rate:.1} %");
    assert!(rate <= 10.0, "word error rate {rate:.1} %");
}

/// The voice reads words by their spelling when the dictionary is gone.
#[tokio::test]
#[ignore = "needs models: rspp models pull"]
async fn the_voice_is_understood_without_its_dictionary() {
    let store = Store::open(None).unwrap();
    let files = PiperFiles {
        dictionary: None,
        ..PiperFiles::in_store(&store)
    };
    let runtime = OnnxRuntime::new(store.onnxruntime(), 2);
    let voice = Piper::new(files, runtime, InferencePool::new(1));
    let (mut errors, mut total) = (0, 0);
    for sentence in SENTENCES {
        let heard = recognise(&speak(&voice, sentence).await).await;
        let (said, heard) = (words(sentence), words(&heard));
        errors += distance(&said, &heard);
        total += said.len();
    }
    let rate = 100.0 * errors as f64 / total as f64;
    println!("word error rate by spelling {rate:.1} %");
    assert!(rate <= 15.0, "word error rate {rate:.1} %");
}

#[tokio::test]
#[ignore = "needs models: rspp models pull"]
async fn speech_is_loud_enough_never_clipped_and_as_long_as_people_take() {
    let voice = voice();
    for sentence in SENTENCES {
        let speech = speak(&*voice, sentence).await;
        let samples = speech.samples();
        let peak = samples
            .iter()
            .fold(0.0_f64, |peak, sample| peak.max(sample.abs()));
        let rms = (samples.iter().map(|s| s * s).sum::<f64>() / samples.len() as f64).sqrt();
        let per_word = speech.duration() / words(sentence).len() as u32;
        println!("peak {peak:.2} rms {rms:.3} {per_word:?} a word: {sentence}");
        assert!((0.1..0.98).contains(&peak), "{sentence}: peak {peak}");
        assert!((0.03..0.25).contains(&rms), "{sentence}: rms {rms}");
        let plausible = Duration::from_millis(150)..Duration::from_millis(600);
        assert!(
            plausible.contains(&per_word),
            "{sentence}: {per_word:?} a word"
        );
        assert!(
            speech
                .chunks
                .iter()
                .all(|bytes| bytes % 2 == 0 && *bytes <= 7056)
        );
    }
}

/// F-064, the part that is the voice's: sound comes before all of it is made.
#[tokio::test]
#[ignore = "needs models: rspp models pull"]
async fn the_first_sound_of_a_long_clause_comes_before_the_rest_is_made() {
    let long = "If you need anything else while you are waiting for the engineer, please call \
                the number that we sent you yesterday and ask for the manager of the branch";
    let voice = voice();
    let mut stream = voice.synthesize(call(), request(long));
    stream.next().await.unwrap().unwrap();
    // What is ready by now belongs to the first piece; then there is more to wait for.
    let is_made = loop {
        match stream.next().now_or_never() {
            Some(Some(chunk)) => drop(chunk.unwrap()),
            Some(None) => break true,
            None => break false,
        }
    };
    assert!(!is_made, "the first sound came after all was made");
    stream.next().await.unwrap().unwrap();
}

#[tokio::test]
#[ignore = "needs models: rspp models pull"]
async fn a_steady_voice_says_the_same_twice() {
    let store = Store::open(None).unwrap();
    let runtime = OnnxRuntime::new(store.onnxruntime(), 1);
    let files = PiperFiles::in_store(&store);
    let voice = Piper::new(files, runtime, InferencePool::new(1)).steady();
    let once = speak(&voice, "The same again, please.").await;
    let twice = speak(&voice, "The same again, please.").await;
    assert!(!once.pcm.is_empty());
    assert!(once.pcm == twice.pcm, "samples differ");
}

fn subject() -> tts::Subject {
    let mut subject = tts::Subject::new(voice());
    let gone = PiperFiles {
        model: PathBuf::from("/nonexistent.onnx"),
        config: PathBuf::from("/nonexistent.onnx.json"),
        dictionary: None,
    };
    let runtime = OnnxRuntime::new("/nonexistent.so", 1);
    subject.failing.push(Failing {
        what: "a voice that is not there",
        provider: Arc::new(Piper::new(gone, runtime, InferencePool::new(1))),
        class: OutcomeClass::InfrastructureFailure,
    });
    subject
}

conformance_tests! {
    #[tokio::test]
    #[ignore = "needs models: rspp models pull"]
    mod piper: tts = subject();
}
