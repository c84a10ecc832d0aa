//! The real models, on real voices.
//!
//! Needs the models (`rspp models pull`, or `cargo run -p rspp-local --example pull`) and recorded
//! sentences (`apt-get install pocketsphinx-testdata`); then
//! `cargo test -p rspp-local -- --include-ignored`.

#![expect(
    clippy::unwrap_used,
    reason = "a missing model or recording should stop the test where it is noticed"
)]

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use rspp_local::{
    models::{ModelId, Store},
    register,
};
use rspp_proto::{
    Epoch, EventId, InvocationId, ProviderId, SampleRate, SessionId, TurnNumber, spec::Modality,
};
use rspp_provider_api::{
    Attempt, AudioStream, Call, Cost, Deadlines, EndOfTurn, InferencePool, OutcomeClass, Providers,
    SpeechToText, SttChunk, SttRequest, VoiceActivity,
    conformance::{Failing, end_of_turn, stt, voice},
    conformance_tests,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Sentences of one reader, and their words.
const SENTENCES: &str = "/usr/share/pocketsphinx/test/data/librivox";

/// One set of models for all tests: loading takes seconds.
static PROVIDERS: LazyLock<Providers> = LazyLock::new(|| {
    let mut providers = Providers::new();
    let store = Store::open(None).unwrap();
    let registered = register(&mut providers, &store, &InferencePool::new(2));
    assert!(registered.missing.is_empty(), "{:?}", registered.missing);
    providers
});

fn id(text: &str) -> ProviderId {
    ProviderId::new(text).unwrap()
}

fn silero() -> Arc<dyn VoiceActivity> {
    PROVIDERS.voice(&id("silero")).unwrap()
}

fn smart_turn() -> Arc<dyn EndOfTurn> {
    PROVIDERS.end_of_turn(&id("smart-turn")).unwrap()
}

fn moonshine() -> Arc<dyn SpeechToText> {
    PROVIDERS.stt(&id("moonshine")).unwrap()
}

struct Sentence {
    samples: Vec<i16>,
    words: String,
}

fn sentences() -> Vec<Sentence> {
    let hint = "run `apt-get install pocketsphinx-testdata`";
    let lines = fs::read_to_string(format!("{SENTENCES}/transcription")).expect(hint);
    let sentence = |line: &str| {
        let (words, name) = line.trim().rsplit_once(' ').unwrap();
        let name = name.trim_matches(['(', ')']);
        let mut wav = hound::WavReader::open(format!("{SENTENCES}/{name}.wav")).expect(hint);
        assert_eq!(wav.spec().sample_rate, 16_000);
        Sentence {
            samples: wav.samples().map(Result::unwrap).collect(),
            words: words.replace("<s>", "").replace("</s>", "").trim().into(),
        }
    };
    lines.lines().map(sentence).collect()
}

fn bytes(samples: &[i16]) -> Bytes {
    samples.iter().flat_map(|s| s.to_le_bytes()).collect()
}

fn call() -> Call {
    let session = SessionId::new("models").unwrap();
    let turn = TurnNumber::FIRST.id();
    let event = EventId::canonical(&session, Some(&turn), 1);
    Call {
        invocation: InvocationId::canonical(&session, Some(&turn), &event, "stt"),
        attempt: Attempt::FIRST,
        session,
        turn: Some(turn),
        epoch: Epoch::FIRST,
        idempotency_key: "models".into(),
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

fn request(rate: u32, partials: bool) -> SttRequest {
    SttRequest {
        sample_rate: SampleRate::new(rate).unwrap(),
        language: Some("en-US".into()),
        partials,
    }
}

fn whole(samples: &[i16]) -> AudioStream {
    Box::pin(stream::iter([bytes(samples)]))
}

async fn recognise(rate: u32, samples: &[i16]) -> (String, Option<f32>) {
    let mut chunks = moonshine().transcribe(call(), request(rate, false), whole(samples));
    let Some(Ok(SttChunk::Final { text, confidence })) = chunks.next().await else {
        panic!("no final");
    };
    assert!(chunks.next().await.is_none(), "something after the final");
    (text, confidence)
}

fn words(text: &str) -> Vec<String> {
    let plain = |c: char| {
        if c.is_alphanumeric() || c == '\'' {
            c
        } else {
            ' '
        }
    };
    let text: String = text.to_lowercase().chars().map(plain).collect();
    text.split_whitespace()
        .map(|word| if word == "mr" { "mister" } else { word }.to_owned())
        .collect()
}

/// Words inserted, deleted and substituted.
fn errors(expected: &[String], found: &[String]) -> usize {
    let mut row: Vec<usize> = (0..=found.len()).collect();
    for (i, expected) in expected.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, found) in found.iter().enumerate() {
            let substituted = diagonal + usize::from(expected != found);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[found.len()]
}

fn error_rate(pairs: &[(String, String)]) -> f64 {
    let (mut wrong, mut all) = (0, 0);
    for (expected, found) in pairs {
        let expected = words(expected);
        wrong += errors(&expected, &words(found));
        all += expected.len();
    }
    wrong as f64 / all as f64
}

#[test]
#[ignore = "needs models: rspp models pull"]
fn every_model_in_the_store_is_whole() {
    let store = Store::open(None).unwrap();
    for id in ModelId::ALL {
        let bytes = store.verify(id).unwrap_or_else(|error| panic!("{error}"));
        assert!(bytes > 1_000_000, "{id}");
    }
}

/// F-017. The reference is ONNX Runtime running the same file.
#[test]
#[ignore = "needs models: rspp models pull"]
fn silero_computes_what_onnx_runtime_computes() {
    // First three windows, windows above one half, mean: of each sentence.
    let reference = [
        ([0.046_733_9, 0.030_667_4, 0.032_025_3], 204, 0.926_092),
        ([0.023_846_2, 0.017_501, 0.013_275_6], 78, 0.833_68),
        ([0.032_672_5, 0.014_343_7, 0.008_148_8], 148, 0.902_125),
        ([0.038_440_1, 0.022_684_2, 0.011_238_3], 172, 0.909_492),
        ([0.038_578_7, 0.056_151_7, 0.102_935_1], 85, 0.836_78),
    ];
    for (sentence, (first, voiced, mean)) in sentences().iter().zip(reference) {
        let mut detector = silero().detector().unwrap();
        assert_eq!((detector.window(), detector.cost()), (512, Cost::Offload));
        let windows = sentence.samples.chunks_exact(512);
        let found: Vec<f32> = windows.map(|window| detector.probability(window)).collect();
        for (found, expected) in found.iter().zip(first) {
            assert!((found - expected).abs() < 2e-6, "{found} {expected}");
        }
        assert_eq!(found.iter().filter(|p| **p > 0.5).count(), voiced);
        let sum: f32 = found.iter().sum();
        assert!((sum / found.len() as f32 - mean).abs() < 1e-5);
    }
}

/// F-017. The reference is the model's own feature extraction and ONNX Runtime, in Python.
#[test]
#[ignore = "needs models: rspp models pull"]
fn smart_turn_computes_what_its_reference_computes() {
    // Whole sentence, and its first half.
    let reference = [
        [0.985_43, 0.834_09],
        [0.099_24, 0.009_13],
        [0.942_49, 0.023_16],
        [0.984_86, 0.140_42],
        [0.220_91, 0.016_36],
    ];
    let mut model = smart_turn().model().unwrap();
    assert_eq!((model.window(), model.cost()), (128_000, Cost::Offload));
    for (sentence, [whole, half]) in sentences().iter().zip(reference) {
        let samples = &sentence.samples;
        let found = model.complete(samples, None);
        assert!((found - whole).abs() < 0.02, "{found} {whole}");
        let found = model.complete(&samples[..samples.len() / 2], None);
        assert!((found - half).abs() < 0.02, "{found} {half}");
    }
}

/// F-010: at most 5 % of words wrong.
#[tokio::test]
#[ignore = "needs models: rspp models pull"]
async fn moonshine_understands_read_sentences() {
    let mut pairs = Vec::new();
    for sentence in sentences() {
        let (found, confidence) = recognise(16_000, &sentence.samples).await;
        println!("{confidence:?} {found}");
        assert!(confidence.is_some_and(|sure| sure > 0.5 && sure <= 1.0));
        pairs.push((sentence.words, found));
    }
    let rate = error_rate(&pairs);
    assert!(rate <= 0.05, "word error rate {rate:.3}: {pairs:#?}");
}

#[tokio::test]
#[ignore = "needs models: rspp models pull"]
async fn moonshine_understands_other_rates() {
    let sentence = sentences().remove(2);
    let half: Vec<i16> = sentence.samples.iter().copied().step_by(2).collect();
    let thrice: Vec<i16> = sentence.samples.iter().flat_map(|s| [*s; 3]).collect();
    for (rate, samples) in [(8_000, half), (48_000, thrice)] {
        let (found, _) = recognise(rate, &samples).await;
        let rate = error_rate(&[(sentence.words.clone(), found.clone())]);
        assert!(rate <= 0.1, "{found}");
    }
}

/// An utterance longer than the model knows is cut where it is quiet, and put together again.
#[tokio::test]
#[ignore = "needs models: rspp models pull"]
async fn moonshine_understands_an_utterance_longer_than_its_window() {
    let sentences = sentences();
    let order = [0, 2, 3, 0, 2, 3, 4];
    let pause = vec![0; 6_400];
    let mut samples = Vec::new();
    let mut words = Vec::new();
    for index in order {
        samples.extend([&sentences[index].samples[..], &pause].concat());
        words.push(sentences[index].words.clone());
    }
    assert!(samples.len() > 40 * 16_000);
    let (found, _) = recognise(16_000, &samples).await;
    let rate = error_rate(&[(words.join(" "), found.clone())]);
    assert!(rate <= 0.05, "{rate} {found}");
}

#[tokio::test]
#[ignore = "needs models: rspp models pull"]
async fn moonshine_invents_no_words_for_silence_noise_or_hum() {
    let mut state = 1_u32;
    let noise: Vec<i16> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as i16 / 64
    })
    .take(48_000)
    .collect();
    let hum: Vec<i16> = (0..48_000_u16)
        .map(|i| ((f32::from(i % 320) / 320.0 * std::f32::consts::TAU).sin() * 3_000.0) as i16)
        .collect();
    let speech = &sentences()[0].samples[..1_000];
    for (what, samples) in [
        ("nothing", &[][..]),
        ("silence", &vec![0; 48_000]),
        ("noise", &noise),
        ("hum", &hum),
        ("60 ms", speech),
    ] {
        assert_eq!(
            recognise(16_000, samples).await,
            (String::new(), None),
            "{what}"
        );
    }
}

/// F-009: partials grow while the audio runs; the final comes once it has ended.
#[tokio::test]
#[ignore = "needs models: rspp models pull"]
async fn moonshine_gives_partials_while_the_user_speaks() {
    let sentence = sentences().remove(0);
    let (user, audio) = futures::channel::mpsc::unbounded();
    let mut chunks = moonshine().transcribe(call(), request(16_000, true), Box::pin(audio));
    let mut partials = vec![Vec::new()];
    for said in sentence.samples.chunks(2 * 16_000) {
        for frame in said.chunks(320) {
            user.unbounded_send(bytes(frame)).unwrap();
        }
        if said.len() < 2 * 16_000 {
            break;
        }
        // The user waits to be understood so far.
        let before = partials[partials.len() - 1].len();
        loop {
            let SttChunk::Partial { text } = chunks.next().await.unwrap().unwrap() else {
                panic!("a final transcript while the user speaks: {partials:#?}");
            };
            partials.push(words(&text));
            if words(&text).len() > before {
                break;
            }
        }
    }
    drop(user);
    let found = loop {
        match chunks.next().await.unwrap().unwrap() {
            SttChunk::Partial { text } => partials.push(words(&text)),
            SttChunk::Final { text, .. } => break text,
        }
    };
    assert!(chunks.next().await.is_none());
    assert!(partials.len() > 3, "{partials:#?}");
    let start = &words(&sentence.words)[..3];
    assert!(
        partials[partials.len() / 2].starts_with(start),
        "{partials:#?}"
    );
    assert!(
        error_rate(&[(sentence.words, found.clone())]) <= 0.05,
        "{found}"
    );
}

/// F-036: recognition stops between two steps, not at its end.
#[tokio::test]
#[ignore = "needs models: rspp models pull"]
async fn a_cancelled_recognition_ends_at_once_and_frees_the_model() {
    let sentence = sentences().remove(0);
    let call = call();
    let cancel = call.cancel.clone();
    let mut chunks = moonshine().transcribe(call, request(16_000, false), whole(&sentence.samples));
    let early = timeout(Duration::from_millis(50), chunks.next()).await;
    assert!(early.is_err(), "done before it could be cancelled");
    cancel.cancel();
    let stopped = timeout(Duration::from_millis(20), chunks.next()).await;
    let Ok(Some(Err(fault))) = stopped else {
        panic!("went on after the cancel: {stopped:?}");
    };
    assert_eq!(fault.class, OutcomeClass::Cancelled);
    assert!(chunks.next().await.is_none());
    let (found, _) = recognise(16_000, &sentence.samples).await;
    assert!(!found.is_empty());
}

#[tokio::test]
#[ignore = "needs models: rspp models pull"]
async fn a_language_the_model_does_not_know_is_refused() {
    let request = SttRequest {
        language: Some("de".into()),
        ..request(16_000, false)
    };
    let mut chunks = moonshine().transcribe(call(), request, whole(&[0; 1_600]));
    let fault = chunks.next().await.unwrap().unwrap_err();
    assert_eq!(fault.class, OutcomeClass::Blocked);
    assert!(chunks.next().await.is_none());
}

/// F-010
#[tokio::test]
#[ignore = "needs models: rspp models pull"]
async fn everything_is_offered_and_warms_up() {
    let mut providers = Providers::new();
    let store = Store::open(None).unwrap();
    let registered = register(&mut providers, &store, &InferencePool::new(1));
    assert!(registered.missing.is_empty(), "{:?}", registered.missing);
    registered.warm_up().await.unwrap();
    let ids = |modality| -> Vec<String> {
        let ids = providers.ids(modality);
        ids.iter().map(ToString::to_string).collect()
    };
    assert_eq!(ids(Modality::Vad), ["earshot", "energy", "silero"]);
    assert_eq!(ids(Modality::EndOfTurn), ["pause", "smart-turn"]);
    assert_eq!(ids(Modality::Stt), ["moonshine"]);
    assert_eq!(ids(Modality::Tts), ["piper", "piper-steady"]);
}

conformance_tests! {
    #[tokio::test]
    #[ignore = "needs models: rspp models pull"]
    mod silero_detector: voice = {
        let mut subject = voice::Subject::new(silero());
        subject.speech = Box::new(|_| sentences().remove(0).samples);
        subject
    };
}

conformance_tests! {
    #[tokio::test]
    #[ignore = "needs models: rspp models pull"]
    mod smart_turn_model: end_of_turn = {
        let mut subject = end_of_turn::Subject::new(smart_turn());
        subject.speech = sentences().remove(0).samples;
        subject
    };
}

conformance_tests! {
    #[tokio::test]
    #[ignore = "needs models: rspp models pull"]
    mod moonshine_recogniser: stt = {
        let sentence = sentences().remove(1);
        let mut subject = stt::Subject::new(moonshine());
        subject.speech = bytes(&sentence.samples);
        subject.words = vec!["young man".into()];
        subject.failing.push(Failing {
            what: "a model that is not there",
            provider: Arc::new(rspp_local::Moonshine::new(
                PathBuf::from("/nonexistent"),
                rspp_local::OnnxRuntime::new("/nonexistent.so", 1),
                InferencePool::new(1),
            )),
            class: OutcomeClass::InfrastructureFailure,
        });
        subject
    };
}
