//! The suites are sharp: each way of breaking the contract fails the category that forbids it.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, stream};
use rspp_proto::{ProviderId, SampleRate};
use rspp_provider_api::{
    AudioStream, Call, ChunkStream, Cost, Description, EndOfTurn, EndOfTurnModel, Fault,
    FinishReason, LanguageModel, LlmChunk, LlmRequest, OutcomeClass, SpeechToText, SttChunk,
    SttRequest, TextToSpeech, TtsChunk, TtsRequest, VoiceActivity, VoiceDetector,
    conformance::{Failing, end_of_turn, llm, stt, tts, voice},
    scripted::{Conduct, Script, ScriptedLlm, ScriptedStt, ScriptedTts},
};

const PACE: Duration = Duration::from_millis(20);

/// Runs a category that must fail, and checks that it says why.
#[track_caller]
fn expect(violation: Option<String>, needle: &str) {
    match violation {
        Some(message) => assert!(message.contains(needle), "wrong complaint: {message}"),
        None => panic!("the suite let it pass; expected a complaint about `{needle}`"),
    }
}

async fn violation(category: impl Future<Output = ()>) -> Option<String> {
    let panic = AssertUnwindSafe(category).catch_unwind().await.err()?;
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
}

fn description() -> Description {
    Description {
        id: ProviderId::new("broken").unwrap(),
        model: "broken".to_owned(),
        streaming: true,
        networked: false,
    }
}

/// A provider that answers by a closure, however wrong.
struct Broken<F>(Description, F);

impl<F> Broken<F> {
    fn new(answer: F) -> Self {
        Self(description(), answer)
    }
}

impl<F, S> LanguageModel for Broken<F>
where
    F: Fn(Call, LlmRequest) -> S + Send + Sync + 'static,
    S: Stream<Item = Result<LlmChunk, Fault>> + Send + 'static,
{
    fn describe(&self) -> &Description {
        &self.0
    }

    fn generate(&self, call: Call, request: LlmRequest) -> ChunkStream<LlmChunk> {
        (self.1)(call, request).boxed()
    }
}

impl<F, S> SpeechToText for Broken<F>
where
    F: Fn(Call, SttRequest, AudioStream) -> S + Send + Sync + 'static,
    S: Stream<Item = Result<SttChunk, Fault>> + Send + 'static,
{
    fn describe(&self) -> &Description {
        &self.0
    }

    fn transcribe(&self, call: Call, ask: SttRequest, audio: AudioStream) -> ChunkStream<SttChunk> {
        (self.1)(call, ask, audio).boxed()
    }
}

impl<F, S> TextToSpeech for Broken<F>
where
    F: Fn(Call, TtsRequest) -> S + Send + Sync + 'static,
    S: Stream<Item = Result<TtsChunk, Fault>> + Send + 'static,
{
    fn describe(&self) -> &Description {
        &self.0
    }

    fn synthesize(&self, call: Call, request: TtsRequest) -> ChunkStream<TtsChunk> {
        (self.1)(call, request).boxed()
    }
}

fn delta(text: &str) -> LlmChunk {
    LlmChunk::Delta(text.to_owned())
}

fn finished() -> LlmChunk {
    LlmChunk::Finished {
        reason: FinishReason::Stop,
        usage: None,
    }
}

/// A model that gives exactly these items, whatever it is asked.
fn model_giving(items: Vec<Result<LlmChunk, Fault>>) -> llm::Subject {
    llm::Subject::new(Arc::new(Broken::new(move |_, _| {
        stream::iter(items.clone())
    })))
}

fn scripted_llm(conduct: Conduct) -> llm::Subject {
    let model = ScriptedLlm::new("llm").token_every(PACE);
    let model = model.script(Script::always(conduct));
    llm::Subject::new(Arc::new(model.answers(["One two three four five six."])))
}

/// F-037, F-063
#[tokio::test(start_paused = true)]
async fn a_model_deaf_to_cancel_fails() {
    let deaf = scripted_llm(Conduct::good().deaf());
    assert_eq!(violation(llm::contract_shape(&deaf)).await, None);
    assert_eq!(violation(llm::streaming_lifecycle(&deaf)).await, None);
    expect(
        violation(llm::cancel_path(&deaf)).await,
        "cancelled before it began",
    );
}

#[tokio::test(start_paused = true)]
async fn a_model_that_hears_a_cancel_only_at_its_start_fails() {
    let subject = llm::Subject::new(Arc::new(Broken::new(|call: Call, _| {
        let chunks = if call.cancel.is_cancelled() {
            Vec::new()
        } else {
            vec![delta("a"), delta("b"), delta("c"), finished()]
        };
        stream::iter(chunks.into_iter().map(Ok))
    })));
    expect(
        violation(llm::cancel_path(&subject)).await,
        "3 chunks came after the cancel",
    );
}

#[tokio::test(start_paused = true)]
async fn a_model_slow_to_stop_fails() {
    let slow = scripted_llm(Conduct::good().stopping_after(Duration::from_secs(2)));
    expect(violation(llm::cancel_path(&slow)).await, "had not ended");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_model_that_reports_a_failure_fails() {
    let subject = llm::Subject::new(Arc::new(Broken::new(|call: Call, _| {
        let fault = Fault::transport("closed");
        let begun = (!call.cancel.is_cancelled()).then(|| Ok(delta("a")));
        let cancelled = call.cancel.cancelled_owned();
        let end = cancelled.map(move |()| Err(fault)).into_stream();
        stream::iter(begun).chain(end)
    })));
    expect(
        violation(llm::cancel_path(&subject)).await,
        "must end with nothing or as cancelled",
    );
}

#[tokio::test(start_paused = true)]
async fn a_model_that_stalls_fails() {
    let stalled = scripted_llm(Conduct::good().stalling_after(2));
    expect(
        violation(llm::streaming_lifecycle(&stalled)).await,
        "had not ended after 30s; it gave 2 chunks",
    );
}

#[tokio::test(start_paused = true)]
async fn wrong_ends_of_an_answer_fail() {
    let cases = [
        (
            vec![Ok(delta("a")), Ok(delta("b")), Ok(delta("c"))],
            "finish exactly once",
        ),
        (
            vec![Ok(delta("a")), Ok(finished()), Ok(finished())],
            "finish exactly once",
        ),
        (
            vec![Ok(delta("a")), Ok(finished()), Ok(delta("b"))],
            "something came after `Finished`",
        ),
        (vec![Ok(delta("a")), Ok(finished())], "are not a stream"),
        (
            vec![Ok(delta("a")), Err(Fault::transport("x")), Ok(finished())],
            "came after the error",
        ),
    ];
    for (items, complaint) in cases {
        let subject = model_giving(items);
        expect(
            violation(llm::streaming_lifecycle(&subject)).await,
            complaint,
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_delta_fails() {
    let subject = model_giving(vec![Ok(delta("a")), Ok(delta("")), Ok(finished())]);
    expect(
        violation(llm::contract_shape(&subject)).await,
        "an empty delta",
    );
}

#[tokio::test(start_paused = true)]
async fn a_finish_for_tool_calls_without_any_fails() {
    let reason = FinishReason::ToolCalls;
    let end = LlmChunk::Finished {
        reason,
        usage: None,
    };
    let subject = model_giving(vec![Ok(delta("a")), Ok(end)]);
    expect(
        violation(llm::contract_shape(&subject)).await,
        "there were none",
    );
}

#[tokio::test(start_paused = true)]
async fn a_description_that_changes_fails() {
    struct Moody([Description; 2], std::sync::atomic::AtomicUsize);
    impl LanguageModel for Moody {
        fn describe(&self) -> &Description {
            let turn = self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            &self.0[turn % 2]
        }
        fn generate(&self, _: Call, _: LlmRequest) -> ChunkStream<LlmChunk> {
            stream::empty().boxed()
        }
    }
    let other = Description {
        model: "other".to_owned(),
        ..description()
    };
    let moody = Moody([description(), other], 0.into());
    let subject = llm::Subject::new(Arc::new(moody));
    expect(
        violation(llm::contract_shape(&subject)).await,
        "changed between two calls",
    );
}

/// P27: an empty input must not look like an outage.
#[tokio::test(start_paused = true)]
async fn a_model_that_breaks_on_blank_input_fails() {
    let subject = llm::Subject::new(Arc::new(Broken::new(|_, request: LlmRequest| {
        let broke = request.messages.is_empty();
        let answer = if broke {
            Err(Fault::server("empty"))
        } else {
            Ok(finished())
        };
        stream::iter([answer])
    })));
    expect(
        violation(llm::outcome_normalization(&subject)).await,
        "no messages: a blank input may be refused",
    );
}

#[tokio::test(start_paused = true)]
async fn faults_off_the_taxonomy_fail() {
    let told = Fault::transport("could not send: Please tell me a long story.");
    let wild = Fault {
        retryable: true,
        ..Fault::blocked("provider_client_error", "no")
    };
    let shouting = Fault {
        reason: "Connection Reset!",
        ..Fault::transport("reset")
    };
    for (fault, complaint) in [
        (told, "repeats what was said"),
        (wild, "not a row of the taxonomy"),
        (shouting, "not a stable code"),
        (Fault::cancelled(), "Cancelled"),
    ] {
        let class = match fault.class {
            OutcomeClass::Cancelled => OutcomeClass::Timeout,
            class => class,
        };
        let mut subject = scripted_llm(Conduct::good());
        subject.failing.push(Failing {
            what: "set up to fail",
            provider: Arc::new(Broken::new(move |_, _| stream::iter([Err(fault.clone())]))),
            class,
        });
        expect(
            violation(llm::outcome_normalization(&subject)).await,
            complaint,
        );
    }
}

/// Reads its audio to the end, then gives these chunks.
fn hearing(chunks: Vec<SttChunk>) -> stt::Subject {
    stt::Subject::new(Arc::new(Broken::new(
        move |call: Call, _, audio: AudioStream| {
            let chunks = chunks.clone();
            let heard = audio.for_each(|_| futures::future::ready(()));
            heard
                .map(move |()| stream::iter(chunks.into_iter().map(Ok)))
                .into_stream()
                .flatten()
                .take_until(call.cancel.cancelled_owned())
        },
    )))
}

fn partial(text: &str) -> SttChunk {
    SttChunk::Partial {
        text: text.to_owned(),
    }
}

fn last(text: &str, confidence: Option<f32>) -> SttChunk {
    SttChunk::Final {
        text: text.to_owned(),
        confidence,
    }
}

#[tokio::test(start_paused = true)]
async fn a_recogniser_with_two_finals_or_none_fails() {
    for (chunks, complaint) in [
        (vec![last("a", None), last("a", None)], "exactly one final"),
        (vec![partial("a")], "exactly one final"),
        (vec![last("a", None), partial("a")], "after the final"),
        (vec![last("a", Some(1.5))], "a confidence of"),
        (
            vec![partial("a"), last("a", None)],
            "some came nevertheless",
        ),
    ] {
        let subject = hearing(chunks);
        expect(violation(stt::contract_shape(&subject)).await, complaint);
    }
    let wordless = stt::Subject {
        words: vec!["table".to_owned()],
        ..hearing(vec![last("a chair", None)])
    };
    expect(
        violation(stt::contract_shape(&wordless)).await,
        "`table` is missing in `a chair`",
    );
}

#[tokio::test(start_paused = true)]
async fn a_recogniser_that_is_final_before_its_audio_ends_fails() {
    let hasty = stt::Subject::new(Arc::new(Broken::new(|_, _, _| {
        stream::iter([Ok(last("a", None))])
    })));
    expect(
        violation(stt::streaming_lifecycle(&hasty)).await,
        "before the audio had ended",
    );
}

#[tokio::test(start_paused = true)]
async fn a_recogniser_deaf_to_cancel_fails() {
    let deaf = ScriptedStt::new("stt").script(Script::always(Conduct::good().deaf()));
    let subject = stt::Subject::new(Arc::new(deaf));
    assert_eq!(violation(stt::contract_shape(&subject)).await, None);
    expect(
        violation(stt::cancel_path(&subject)).await,
        "cancelled before it began",
    );
}

#[tokio::test(start_paused = true)]
async fn a_recogniser_that_keeps_its_audio_fails() {
    let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
    let hoarder = stt::Subject::new(Arc::new(Broken::new(
        move |call: Call, _, audio: AudioStream| {
            kept.lock().unwrap().push(audio);
            let cancelled = call.cancel.cancelled_owned();
            stream::pending().take_until(cancelled)
        },
    )));
    expect(
        violation(stt::cancel_path(&hoarder)).await,
        "held on to its audio",
    );
}

#[tokio::test(start_paused = true)]
async fn a_recogniser_that_understands_silence_fails() {
    let inventive = hearing(vec![last("thank you for watching", None)]);
    expect(
        violation(stt::outcome_normalization(&inventive)).await,
        "understood `thank you for watching`",
    );
}

fn audio(hertz: u32, bytes: usize) -> TtsChunk {
    TtsChunk {
        sample_rate: SampleRate::new(hertz).unwrap(),
        pcm: Bytes::from(vec![1; bytes]),
    }
}

#[tokio::test(start_paused = true)]
async fn a_voice_with_malformed_audio_fails() {
    let second = || audio(16_000, 32_000);
    for (items, complaint) in [
        (vec![], "without any audio"),
        (vec![second(), audio(16_000, 0)], "an empty chunk"),
        (vec![audio(16_000, 32_001)], "cuts a sample in two"),
        (vec![second(), audio(8_000, 320)], "the rate changed"),
        (vec![audio(16_000, 3_200)], "expected 1s to 15s"),
    ] {
        let subject = tts::Subject::new(Arc::new(Broken::new(move |_, _| {
            stream::iter(items.clone().into_iter().map(Ok))
        })));
        expect(violation(tts::contract_shape(&subject)).await, complaint);
    }
}

#[tokio::test(start_paused = true)]
async fn a_voice_that_does_not_stop_fails() {
    let deaf = Conduct::good().deaf();
    let slow = Conduct::good().stopping_after(Duration::from_secs(2));
    for conduct in [deaf, slow] {
        let voice = ScriptedTts::new("tts").real_time_factor(0.5);
        let subject = tts::Subject::new(Arc::new(voice.script(Script::always(conduct))));
        assert_eq!(violation(tts::contract_shape(&subject)).await, None);
        expect(violation(tts::cancel_path(&subject)).await, "had not ended");
    }
}

/// A detector and an end-of-turn model that share one state among all that use them.
#[derive(Clone)]
struct Shared {
    description: Description,
    asked: Arc<std::sync::atomic::AtomicU64>,
    most: f32,
}

impl Shared {
    fn up_to(most: f32) -> Self {
        Self {
            description: description(),
            asked: Arc::default(),
            most,
        }
    }

    fn answer(&self) -> f32 {
        let asked = self
            .asked
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.most / (1.0 + asked as f32)
    }
}

impl VoiceActivity for Shared {
    fn describe(&self) -> &Description {
        &self.description
    }
    fn detector(&self) -> Result<Box<dyn VoiceDetector>, Fault> {
        Ok(Box::new(self.clone()))
    }
}

impl VoiceDetector for Shared {
    fn sample_rate(&self) -> SampleRate {
        SampleRate::HZ_16000
    }
    fn window(&self) -> usize {
        320
    }
    fn cost(&self) -> Cost {
        Cost::Inline
    }
    fn probability(&mut self, _: &[i16]) -> f32 {
        self.answer()
    }
    fn reset(&mut self) {}
}

impl EndOfTurn for Shared {
    fn describe(&self) -> &Description {
        &self.description
    }
    fn model(&self) -> Result<Box<dyn EndOfTurnModel>, Fault> {
        Ok(Box::new(self.clone()))
    }
}

impl EndOfTurnModel for Shared {
    fn sample_rate(&self) -> SampleRate {
        SampleRate::HZ_16000
    }
    fn window(&self) -> usize {
        16_000
    }
    fn cost(&self) -> Cost {
        Cost::Inline
    }
    fn complete(&mut self, _: &[i16], _: Option<&str>) -> f32 {
        self.answer()
    }
}

#[tokio::test]
async fn detectors_that_share_a_state_or_cannot_count_fail() {
    let shared = voice::Subject::new(Arc::new(Shared::up_to(1.0)));
    expect(
        violation(voice::cancel_path(&shared)).await,
        "they share a state",
    );
    expect(
        violation(voice::streaming_lifecycle(&shared)).await,
        "speech: at most",
    );
    let wild = voice::Subject::new(Arc::new(Shared::up_to(7.0)));
    expect(
        violation(voice::contract_shape(&wild)).await,
        "is no probability",
    );
}

#[tokio::test]
async fn end_of_turn_models_that_share_a_state_or_cannot_count_fail() {
    let shared = end_of_turn::Subject::new(Arc::new(Shared::up_to(1.0)));
    expect(
        violation(end_of_turn::cancel_path(&shared)).await,
        "they share a state",
    );
    expect(
        violation(end_of_turn::streaming_lifecycle(&shared)).await,
        "their answers differ",
    );
    let wild = end_of_turn::Subject::new(Arc::new(Shared::up_to(f32::NAN)));
    expect(
        violation(end_of_turn::contract_shape(&wild)).await,
        "is no probability",
    );
}
