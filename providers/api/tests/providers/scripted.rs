//! Scripted providers do what their script says, in virtual time, and count what became of it.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use rspp_proto::{Epoch, InvocationId, SampleRate, SessionId};
use rspp_provider_api::{
    Attempt, AudioStream, Call, Deadlines, EndOfTurn, Fault, FinishReason, LanguageModel, LlmChunk,
    LlmRequest, Message, Role, SpeechToText, SttChunk, SttRequest, TextToSpeech, ToolCall,
    TtsRequest, VoiceActivity,
    scripted::{
        Answer, Conduct, Script, ScriptedEndOfTurn, ScriptedLlm, ScriptedStt, ScriptedTts,
        ScriptedVoice, Sound, Tally, VoiceTally,
    },
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const TOKEN: Duration = Duration::from_millis(40);

fn call(session: &str, number: u64) -> Call {
    Call {
        invocation: InvocationId::new(format!("pvi/{session}/{number}")).unwrap(),
        attempt: Attempt::FIRST,
        session: SessionId::new(session.to_owned()).unwrap(),
        turn: None,
        epoch: Epoch::FIRST,
        idempotency_key: format!("{session}-{number}"),
        deadlines: Deadlines {
            first_byte: Duration::from_secs(1),
            inter_chunk: Duration::from_secs(1),
        },
        share: Arc::default(),
        queue: Arc::default(),
        extras: Arc::default(),
        cancel: CancellationToken::new(),
    }
}

fn says(text: &str) -> LlmRequest {
    LlmRequest {
        messages: vec![Message::new(Role::User, text)],
        ..LlmRequest::default()
    }
}

fn text_of(chunks: &[Result<LlmChunk, Fault>]) -> String {
    let deltas = chunks.iter().filter_map(|chunk| match chunk {
        Ok(LlmChunk::Delta(text)) => Some(text.as_str()),
        Ok(LlmChunk::ToolCall(_) | LlmChunk::Finished { .. }) | Err(_) => None,
    });
    deltas.collect()
}

fn model() -> ScriptedLlm {
    ScriptedLlm::new("llm")
        .answers(["one two three four"])
        .token_every(TOKEN)
}

/// F-063
#[tokio::test(start_paused = true)]
async fn tokens_come_at_their_pace() {
    let model = model();
    let mut stream = model.generate(call("s", 1), says("go"));
    let began = Instant::now();
    let mut times = Vec::new();
    while stream.next().await.is_some() {
        times.push(began.elapsed());
    }
    let expected: Vec<Duration> = (1..=5).map(|n| TOKEN * n).collect();
    assert_eq!(times, expected, "four words and the end");
    let completed = Tally {
        calls: 1,
        completed: 1,
        chunks: 5,
        ..Tally::default()
    };
    assert_eq!(model.tally(), completed);
}

#[tokio::test]
async fn answers_follow_the_conversation_not_the_provider() {
    let model = ScriptedLlm::new("llm").answers(["first", "second"]);
    let mut request = says("a");
    for expected in ["first", "second", "first"] {
        for _ in 0..2 {
            let chunks: Vec<_> = model
                .generate(call("s", 1), request.clone())
                .collect()
                .await;
            assert_eq!(text_of(&chunks), expected);
        }
        request
            .messages
            .push(Message::new(Role::Assistant, expected));
        request.messages.push(Message::new(Role::User, "b"));
    }

    let echo: Vec<_> = ScriptedLlm::new("llm")
        .generate(call("s", 1), says("good day"))
        .collect()
        .await;
    assert_eq!(text_of(&echo), "You said: good day");
}

#[tokio::test]
async fn answers_may_call_tools_and_are_cut_at_their_limit() {
    let tool = ToolCall {
        id: "t1".to_owned(),
        name: "book".to_owned(),
        arguments: "{}".to_owned(),
    };
    let answer = Answer {
        text: "one moment".to_owned(),
        tool_calls: vec![tool.clone()],
    };
    let model = ScriptedLlm::new("llm").answer_with(move |_| answer.clone());
    let chunks: Vec<_> = model.generate(call("s", 1), says("book")).collect().await;
    assert!(chunks.contains(&Ok(LlmChunk::ToolCall(tool))));
    let ended = |chunks: &[Result<LlmChunk, Fault>]| match chunks.last() {
        Some(Ok(LlmChunk::Finished { reason, .. })) => *reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(ended(&chunks), FinishReason::ToolCalls);

    let short = LlmRequest {
        max_tokens: Some(1),
        ..says("book")
    };
    let chunks: Vec<_> = model.generate(call("s", 2), short).collect().await;
    assert_eq!(text_of(&chunks), "one ");
    assert_eq!(ended(&chunks), FinishReason::Length);
}

/// P14: late, stalled, failing, truncated, each at the chunk the script names.
#[tokio::test(start_paused = true)]
async fn attempts_go_as_scripted() {
    let fault = Fault::overload("try later", None);
    let late = Duration::from_millis(700);
    let model = model().script(Script::calls([
        Conduct::good().late(late),
        Conduct::good().failing_after(2, fault.clone()),
        Conduct::good().truncated_after(1),
        Conduct::good().stalling_after(3),
    ]));

    let began = Instant::now();
    let mut stream = model.generate(call("s", 1), says("go"));
    stream.next().await.unwrap().unwrap();
    assert_eq!(began.elapsed(), late + TOKEN);
    drop(stream);

    let chunks: Vec<_> = model.generate(call("s", 2), says("go")).collect().await;
    assert_eq!((chunks.len(), chunks.last()), (3, Some(&Err(fault))));

    let chunks: Vec<_> = model.generate(call("s", 3), says("go")).collect().await;
    assert_eq!((chunks.len(), text_of(&chunks).as_str()), (1, "one "));

    let stream = model.generate(call("s", 4), says("go"));
    let mut seen = 0;
    let stalled = stream.for_each(|_| {
        seen += 1;
        std::future::ready(())
    });
    assert!(timeout(Duration::from_hours(1), stalled).await.is_err());
    assert_eq!(seen, 3);

    let tally = model.tally();
    assert_eq!((tally.calls, tally.completed, tally.failed), (4, 1, 1));
    assert_eq!((tally.dropped, tally.running()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn each_call_meets_the_same_attempts() {
    let flaky = Script::attempts([Conduct::good().failing_after(0, Fault::timeout("slow"))]);
    let model = model().script(flaky);
    for session in ["a", "b"] {
        let first = call(session, 1);
        let second = Call {
            attempt: Attempt::FIRST.next(),
            ..first.clone()
        };
        let chunks: Vec<_> = model.generate(first, says("go")).collect().await;
        assert!(matches!(chunks[..], [Err(_)]), "{chunks:?}");
        let chunks: Vec<_> = model.generate(second, says("go")).collect().await;
        assert_eq!(text_of(&chunks), "one two three four");
    }
    model.set_script(Script::default());
    let chunks: Vec<_> = model.generate(call("c", 1), says("go")).collect().await;
    assert_eq!(chunks.len(), 5, "the script can change while it runs");
}

/// F-033, F-037
#[tokio::test(start_paused = true)]
async fn cancels_are_seen_obeyed_slowly_or_ignored_and_always_counted() {
    let slow = Duration::from_millis(200);
    let model = model().script(Script::calls([
        Conduct::good(),
        Conduct::good().stopping_after(slow),
        Conduct::good().deaf(),
    ]));
    let mut rests = Vec::new();
    for number in 0..3 {
        let call = call("s", number);
        let cancel = call.cancel.clone();
        let mut stream = model.generate(call, says("go"));
        stream.next().await.unwrap().unwrap();
        cancel.cancel();
        let began = Instant::now();
        let rest: Vec<_> = stream.collect().await;
        rests.push((rest, began.elapsed()));
    }
    assert_eq!(rests[0], (vec![Err(Fault::cancelled())], Duration::ZERO));
    assert_eq!(rests[1], (vec![Err(Fault::cancelled())], slow));
    assert_eq!((rests[2].0.len(), rests[2].1), (4, TOKEN * 4));
    let tally = model.tally();
    assert_eq!((tally.cancelled, tally.chunks_after_cancel), (3, 4));

    let call = call("s", 9);
    let cancel = call.cancel.clone();
    let mut stream = model.generate(call, says("go"));
    stream.next().await.unwrap().unwrap();
    cancel.cancel();
    drop(stream);
    assert_eq!(model.tally().cancelled, 4, "also if nobody reads on");
}

/// F-134
#[tokio::test(start_paused = true)]
async fn panics_come_from_polling_and_end_one_stream() {
    let model = model().script(Script::calls([Conduct::good().panicking_after(1)]));
    let reading = model.generate(call("s", 1), says("go")).collect::<Vec<_>>();
    let panic = AssertUnwindSafe(reading).catch_unwind().await.unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert_eq!(text, "scripted panic after 1 chunks");
    let chunks: Vec<_> = model.generate(call("s", 2), says("go")).collect().await;
    assert_eq!(chunks.len(), 5);
    assert_eq!(model.tally().dropped, 1);
}

fn frames(count: usize, value: u8) -> AudioStream {
    Box::pin(stream::iter(vec![Bytes::from(vec![value; 640]); count]))
}

fn hear(partials: bool) -> SttRequest {
    SttRequest {
        sample_rate: SampleRate::HZ_16000,
        language: None,
        partials,
    }
}

async fn words(stt: &ScriptedStt, call: Call, audio: AudioStream) -> Vec<String> {
    let chunks: Vec<_> = stt.transcribe(call, hear(true), audio).collect().await;
    let text = |chunk: Result<SttChunk, Fault>| match chunk.unwrap() {
        SttChunk::Partial { text } => format!("{text}…"),
        SttChunk::Final { text, .. } => text,
    };
    chunks.into_iter().map(text).collect()
}

#[tokio::test(start_paused = true)]
async fn partials_grow_with_the_audio_and_utterances_are_counted_by_session() {
    let stt = ScriptedStt::new("stt")
        .utterances(["book a table", "for four"])
        .word_every(Duration::from_millis(100));
    let heard = words(&stt, call("a", 1), frames(12, 1)).await;
    assert_eq!(heard, ["book…", "book a…", "book a table"]);
    assert_eq!(
        words(&stt, call("a", 2), frames(2, 0)).await,
        [""],
        "silence"
    );
    assert_eq!(
        words(&stt, call("b", 1), frames(1, 1)).await,
        ["book a table"]
    );
    assert_eq!(words(&stt, call("a", 3), frames(1, 1)).await, ["for four"]);
    let again = Call {
        attempt: Attempt::FIRST.next(),
        ..call("a", 3)
    };
    assert_eq!(words(&stt, again, frames(1, 1)).await, ["for four"]);
    assert_eq!(
        words(&stt, call("a", 4), frames(1, 1)).await,
        ["book a table"]
    );

    let counting = ScriptedStt::new("stt");
    assert_eq!(
        words(&counting, call("a", 1), frames(1, 1)).await,
        ["utterance 1"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_recogniser_in_trouble_does_not_wait_for_its_audio() {
    let stt = ScriptedStt::new("stt").script(Script::calls([
        Conduct::good().failing_after(0, Fault::transport("gone")),
        Conduct::good().stalling_after(0),
    ]));
    let mut failed = stt.transcribe(call("a", 1), hear(true), Box::pin(stream::pending()));
    assert_eq!(failed.next().await, Some(Err(Fault::transport("gone"))));
    let mut stalled = stt.transcribe(call("a", 2), hear(true), frames(3, 1));
    let waited = timeout(Duration::from_mins(1), stalled.next()).await;
    assert!(waited.is_err());
}

/// F-064
#[tokio::test(start_paused = true)]
async fn speech_is_as_long_as_its_text_and_made_at_its_pace() {
    let tts = ScriptedTts::new("tts")
        .sample_rate(SampleRate::HZ_8000)
        .per_character(Duration::from_millis(50))
        .chunk(Duration::from_millis(100))
        .real_time_factor(0.1);
    let request = |text: &str| TtsRequest {
        text: text.to_owned(),
        previous_text: None,
        voice: None,
    };
    let began = Instant::now();
    let chunks: Vec<_> = tts
        .synthesize(call("s", 1), request("Hello"))
        .collect()
        .await;
    let sizes: Vec<usize> = chunks
        .iter()
        .map(|c| c.as_ref().unwrap().pcm.len())
        .collect();
    assert_eq!(sizes, [1600, 1600, 800], "250 ms at 8 kHz");
    assert_eq!(began.elapsed(), Duration::from_millis(25));
    let loudest = |pcm: &Bytes| {
        let samples = pcm.chunks_exact(2);
        samples.map(|s| i16::from_le_bytes([s[0], s[1]])).max()
    };
    let tone = loudest(&chunks[0].as_ref().unwrap().pcm).unwrap();
    assert!((7_000..=8_000).contains(&tone), "{tone}");

    let silent = tts.sound(Sound::Silence);
    let chunks: Vec<_> = silent
        .synthesize(call("s", 2), request("Hi"))
        .collect()
        .await;
    assert_eq!(loudest(&chunks[0].as_ref().unwrap().pcm), Some(0));
}

#[test]
fn voices_are_heard_by_loudness_or_by_the_timetable() {
    let loud = ScriptedVoice::by_energy("vad").threshold(1_000);
    let mut detector = loud.detector().unwrap();
    assert_eq!(detector.probability(&[0; 320]), 0.0);
    assert_eq!(detector.probability(&[-1_000; 320]), 1.0);
    assert_eq!(detector.probability(&[999; 320]), 0.0);

    let (from, to) = (Duration::from_millis(40), Duration::from_millis(80));
    let timed = ScriptedVoice::by_timeline("vad", [from..to]);
    let mut detector = timed.detector().unwrap();
    let mut heard = || -> Vec<f32> {
        let window = [0; 320];
        let windows = (0..5).map(|_| detector.probability(&window)).collect();
        detector.reset();
        windows
    };
    assert_eq!(heard(), [0.0, 0.0, 1.0, 1.0, 0.0]);
    assert_eq!(heard(), [0.0, 0.0, 1.0, 1.0, 0.0]);
    drop(detector);
    let tally = VoiceTally {
        made: 1,
        alive: 0,
        answered: 10,
        resets: 2,
    };
    assert_eq!(timed.tally(), tally);
}

#[test]
#[should_panic(expected = "scripted panic after 2 windows")]
fn a_detector_panics_when_it_is_told_to() {
    let voice = ScriptedVoice::by_energy("vad").panicking_after(2);
    let mut detector = voice.detector().unwrap();
    for _ in 0..3 {
        detector.probability(&[0; 320]);
    }
}

#[test]
fn ends_of_turn_are_judged_as_scripted() {
    let listed = ScriptedEndOfTurn::answering("eot", [0.1, 0.9]);
    let mut model = listed.model().unwrap();
    let judged: Vec<f32> = (0..3).map(|_| model.complete(&[], None)).collect();
    assert_eq!(judged, [0.1, 0.9, 0.9]);

    let by_words = ScriptedEndOfTurn::judging("eot", |_, _, transcript| {
        let open = transcript.is_some_and(|text| text.ends_with("and"));
        if open { 0.2 } else { 0.8 }
    });
    let mut model = by_words.model().unwrap();
    assert_eq!(model.complete(&[], Some("a table and")), 0.2);
    assert_eq!(model.complete(&[], Some("a table")), 0.8);
    assert_eq!((by_words.tally().answered, by_words.tally().alive), (2, 1));
}
