//! What the user gets when a turn fails for good: an apology by whatever still works, or the reply
//! in text, and a session that goes on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use rspp_host::Clip;
use rspp_proto::{ErrorCode, Payload, SampleRate, abi::Signal, spec::FailurePolicy};
use rspp_provider_api::{
    Fault,
    scripted::{Conduct, Script, ScriptedLlm, ScriptedTts},
};
use rspp_tests::call::{Builder, Cast, Ended, REPLY, first, says};
use rspp_transport_api::{
    Outgoing,
    loopback::{Start, Utterance},
};

const SORRY: &str = "Sorry, could you say that again?";

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn sorry() -> FailurePolicy {
    FailurePolicy {
        reply: Some(SORRY.into()),
        ..FailurePolicy::default()
    }
}

fn failing(after: u32) -> Conduct {
    Conduct::good().failing_after(after, Fault::model("out of memory"))
}

/// Two utterances, the second long after all that follows the first.
fn two() -> Vec<Utterance> {
    vec![says(first()), says(Start::At(ms(12_000)))]
}

fn call(cast: &Cast, said: Vec<Utterance>, failure: FailurePolicy) -> Builder {
    let mut builder = Builder::new(cast, said);
    builder.script.reply_timeout = ms(12_000);
    builder.pipeline(|spec| spec.providers.failure = Some(Box::new(failure)))
}

/// A recording of half a second, under the name `sorry`.
fn recorded(builder: Builder) -> Builder {
    let pcm = Bytes::from(vec![0; 16_000]);
    let clip = Clip::new(SampleRate::HZ_16000, pcm);
    builder.configure(|config| config.clips = Arc::new(BTreeMap::from([("sorry".into(), clip)])))
}

fn errors(ended: &Ended) -> Vec<(ErrorCode, bool)> {
    let payloads = ended.log.payloads().into_iter();
    payloads
        .filter_map(|payload| match payload {
            Payload::Error(note) => Some((note.error_code, note.retryable)),
            _no_error => None,
        })
        .collect()
}

/// F-135: a failed generation is apologised for by voice; what was heard of the apology enters the
/// conversation, and the session awaits the next turn.
#[tokio::test(start_paused = true)]
async fn a_failed_turn_is_apologised_for() {
    let seen: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let told = seen.clone();
    let llm = ScriptedLlm::new("llm")
        .answer_with(move |request| {
            let messages = request
                .messages
                .iter()
                .map(|message| message.content.clone());
            *told.lock().unwrap() = messages.collect();
            REPLY
        })
        .script(Script::calls([failing(0)]));
    let cast = Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    };
    let ended = call(&cast, two(), sorry()).hold().await;
    assert_eq!(ended.endings(), ["provider_failure", "commit", "commit"]);
    let apology = ended.turn(2);
    assert_eq!(
        (
            apology.user_text.as_str(),
            apology.agent_text_played.as_str()
        ),
        ("", SORRY)
    );
    assert_eq!(ended.turn(3).agent_text_played, REPLY);
    let heard = ended.heard();
    assert!(!heard[0].cut && heard[0].length() >= ms(1_000), "{heard:?}");
    // The model is told that the agent apologised, as the user heard it.
    let seen = seen.lock().unwrap().clone();
    assert!(seen.contains(&SORRY.to_owned()), "{seen:?}");
    assert_eq!(
        cast.llm.tally().calls,
        2,
        "nobody asks a model for an apology"
    );
}

/// F-135: when it is the voice that failed, a recording is played instead.
#[tokio::test(start_paused = true)]
async fn a_voice_that_failed_is_stood_in_for_by_a_recording() {
    let cast = Cast {
        tts: Arc::new(ScriptedTts::new("tts").script(Script::calls([failing(0)]))),
        ..Cast::default()
    };
    let failure = FailurePolicy {
        recording: Some("sorry".into()),
        ..sorry()
    };
    let ended = recorded(call(&cast, two(), failure)).hold().await;
    assert_eq!(ended.endings(), ["provider_failure", "commit", "commit"]);
    assert_eq!(ended.turn(2).agent_text_played, SORRY);
    let length = ended.heard()[0].length();
    assert!(length >= ms(480) && length <= ms(520), "{length:?}");
    assert_eq!(ended.turn(3).agent_text_played, REPLY);
}

/// F-135: the user may interrupt an apology as anything else that the agent says.
#[tokio::test(start_paused = true)]
async fn an_apology_can_be_interrupted() {
    let cast = Cast {
        llm: Arc::new(
            ScriptedLlm::new("llm")
                .answers([REPLY])
                .script(Script::calls([failing(0)])),
        ),
        ..Cast::default()
    };
    let said = vec![says(first()), says(Start::At(ms(2_400)))];
    let ended = call(&cast, said, sorry()).hold().await;
    assert_eq!(ended.endings(), ["provider_failure", "cancelled", "commit"]);
    let apology = ended.turn(2);
    assert!(SORRY.starts_with(&apology.agent_text_played));
    assert_ne!(apology.agent_text_played, SORRY);
}

/// F-135: a recording that is not there is missed before the session opens.
#[tokio::test(start_paused = true)]
async fn a_recording_that_is_not_there_is_missed_at_once() {
    let failure = FailurePolicy {
        recording: Some("sorrow".into()),
        ..sorry()
    };
    let mut builder = recorded(call(&Cast::default(), two(), failure));
    let runtime = builder.runtime().await;
    let error = builder.open(&runtime).await.err().expect("is refused");
    assert_eq!(
        error.to_string(),
        "providers.failure.recording: unknown recording `sorrow`; known: sorry"
    );
    assert!(runtime.shut_down(ms(1_000)).await);
}

/// F-137: when the voice is gone for good the reply goes on in text, the client is told, the next turn
/// does not even try to speak, and later the voice is tried and back.
#[tokio::test(start_paused = true)]
async fn a_session_without_a_voice_goes_on_in_text_and_recovers() {
    let cast = Cast {
        tts: Arc::new(ScriptedTts::new("tts").script(Script::calls([failing(0)]))),
        ..Cast::default()
    };
    let failure = FailurePolicy {
        text_only: true,
        voice_retry_ms: 10_000,
        ..FailurePolicy::default()
    };
    let said = vec![
        says(first()),
        says(Start::At(ms(6_000))),
        says(Start::At(ms(16_000))),
    ];
    let mut builder = call(&cast, said, failure);
    builder.script.reply_timeout = ms(3_000);
    let mut screen = builder.screen();
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit", "commit", "commit"]);
    for turn in 1..=3 {
        assert_eq!(ended.turn(turn).agent_text_played, REPLY);
    }
    assert_eq!(
        cast.tts.tally().calls,
        3,
        "one that failed, none, and two clauses"
    );
    assert_eq!(
        ended.log.reasons_of(Signal::Degrade),
        ["voice_unavailable_text_only"]
    );
    let mut told = Vec::new();
    while let Ok(outgoing) = screen.try_recv() {
        match outgoing {
            Outgoing::Text { text, .. } if text.speaker == rspp_proto::Speaker::Agent => {
                told.push(text.text.to_string());
            }
            Outgoing::Voice { available } => told.push(format!("voice: {available}")),
            Outgoing::Text { .. }
            | Outgoing::Speech(_)
            | Outgoing::AudioEnd(_)
            | Outgoing::ToolCall(_) => {}
        }
    }
    let (one, two) = ("Good day to you.", "How can I help?");
    assert_eq!(told.first().map(String::as_str), Some(one));
    let gone = told
        .iter()
        .position(|line| line == "voice: false")
        .expect("told");
    let back = told
        .iter()
        .position(|line| line == "voice: true")
        .expect("told");
    let between: Vec<_> = told[gone + 1..back].iter().map(String::as_str).collect();
    for clause in [one, two] {
        assert!(
            between.iter().filter(|line| **line == clause).count() >= 2,
            "{told:?}"
        );
    }
    assert_eq!(ended.heard().len(), 1, "only the last reply was spoken");
}

/// F-131: a failure that ends a turn carries the taxonomy's word for it and whether to try again.
#[tokio::test(start_paused = true)]
async fn errors_carry_the_taxonomys_word() {
    let overload = || Fault::overload("busy", None);
    let cases = [
        (Fault::timeout("slow"), ErrorCode::ProviderTimeout, true),
        (overload(), ErrorCode::ProviderOverload, true),
        (
            Fault::model("broken"),
            ErrorCode::RuntimeInternalError,
            false,
        ),
    ];
    for (fault, code, retryable) in cases {
        let fails = Conduct::good().failing_after(1, fault);
        let cast = Cast {
            llm: Arc::new(
                ScriptedLlm::new("llm")
                    .answers([REPLY])
                    .script(Script::calls([fails])),
            ),
            ..Cast::default()
        };
        let ended = Builder::new(&cast, vec![says(first())]).hold().await;
        assert_eq!(ended.endings(), ["provider_failure"]);
        assert_eq!(errors(&ended), [(code, retryable)]);
    }
}
