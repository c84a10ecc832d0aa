//! Providers and storages that fail: the call goes on, or ends for a reason that it names.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use rspp_proto::{
    Monotonic, PipelineVersion, ProviderId, RetryDecision, SessionId, Speaker, WallClock,
    abi::Signal,
    spec::{Modality, RecordingLevel},
};
use rspp_provider_api::{
    Fault,
    scripted::{Conduct, Script, ScriptedLlm, ScriptedStt, ScriptedTts},
};
use rspp_tests::call::{Builder, Cast, Ended, REPLY, after_reply, first, says};
use rspp_timeline::{Entry, FileHeader, Options, Recording, Storage};
use rspp_transport_api::loopback::{Start, Utterance};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A model that goes by that script.
fn model(script: Script) -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([REPLY]).script(script)),
        ..Cast::default()
    }
}

/// Two utterances at fixed times, since nobody may answer the first.
fn two_at(second_ms: u64) -> Vec<Utterance> {
    vec![says(first()), says(Start::At(ms(second_ms)))]
}

/// Puts a second provider behind the first.
fn behind(builder: &mut Builder, modality: Modality, second: &str) {
    let bound = &mut builder.settings.defaults.provider_bindings;
    let id = ProviderId::new(second).expect("not blank");
    bound.get_mut(&modality).expect("bound").push(id);
}

/// Gives the model's first word that long; local providers get five times as long as others.
fn first_byte(builder: Builder, limit_ms: u64) -> Builder {
    builder.pipeline(|spec| {
        let llm = spec.nodes.iter_mut().find(|node| node.id.as_str() == "llm");
        let config = &mut llm.expect("there is a model").config;
        config.insert("first_byte_ms".into(), (limit_ms / 5).into());
    })
}

/// The failed turn left its line silent, and the next one was heard whole.
#[track_caller]
fn assert_recovers(ended: &Ended) {
    let next = ended.turn(2);
    assert_eq!(next.outcome, "commit", "{:#?}", ended.report);
    assert_eq!(next.agent_text_played, REPLY);
    let last = ended.heard().pop().expect("something was heard");
    assert!(!last.cut, "{last:?}");
}

fn attempts(ended: &Ended) -> Vec<(&str, u32, &str, RetryDecision)> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Attempt(attempt) => Some((
                attempt.provider_id.as_str(),
                attempt.attempt,
                attempt.outcome_class.as_str(),
                attempt.retry_decision,
            )),
            _something_else => None,
        })
        .filter(|attempt| !["stt"].contains(&attempt.0))
        .collect()
}

/// F-134: an adapter that panics costs its turn, not the call.
#[tokio::test(start_paused = true)]
async fn a_model_that_panics_costs_its_turn_alone() {
    for after in [0, 3] {
        let cast = model(Script::calls([Conduct::good().panicking_after(after)]));
        let ended = Builder::new(&cast, two_at(6_000)).hold().await;
        assert_eq!(
            ended.endings(),
            ["provider_failure", "commit"],
            "after {after} tokens"
        );
        assert_recovers(&ended);
    }
}

/// F-134: so does a voice.
#[tokio::test(start_paused = true)]
async fn a_voice_that_panics_costs_its_turn_alone() {
    let panics = Script::calls([Conduct::good().panicking_after(20)]);
    let cast = Cast {
        tts: Arc::new(ScriptedTts::new("tts").script(panics)),
        ..Cast::default()
    };
    let ended = Builder::new(&cast, two_at(6_000)).hold().await;
    assert_eq!(ended.endings(), ["provider_failure", "commit"]);
    assert_recovers(&ended);
    let turn = ended.turn(1);
    assert!(turn.agent_text.starts_with(&turn.agent_text_played));
}

/// P14: a model that says nothing is given up in time, and asked once more.
#[tokio::test(start_paused = true)]
async fn a_silent_model_is_given_up_and_asked_again() {
    let cast = model(Script::calls([Conduct::good().stalling_after(0)]));
    let ended = first_byte(Builder::new(&cast, vec![says(first())]), 500)
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(
        attempts(&ended)[..2],
        [
            ("llm", 1, "timeout", RetryDecision::Retry),
            ("llm", 2, "success", RetryDecision::None),
        ]
    );
    assert_eq!(
        ended.log.reasons_of(Signal::ProviderError),
        ["llm timeout provider_timeout"]
    );
    assert_eq!(cast.llm.tally().dropped, 1, "the stalled stream was let go");
}

/// P14, F-133: with another model at hand it answers instead, within the turn.
#[tokio::test(start_paused = true)]
async fn a_silent_model_is_replaced_within_the_turn() {
    let cast = model(Script::always(Conduct::good().stalling_after(0)));
    let second = Arc::new(ScriptedLlm::new("llm-2").answers([REPLY]));
    let mut builder = first_byte(Builder::new(&cast, vec![says(first())]), 500);
    builder.providers.add_llm(second.clone());
    behind(&mut builder, Modality::Llm, "llm-2");
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, REPLY);
    assert_eq!(
        ended.log.reasons_of(Signal::ProviderSwitch),
        ["from=llm to=llm-2"]
    );
    let said = attempts(&ended);
    assert_eq!(said[1].3, RetryDecision::ProviderSwitch, "{said:?}");
    assert_eq!(said[2].0, "llm-2");
    assert_eq!(second.tally().completed, 1);
    // Nothing of the model that was given up came through (P6).
    assert_eq!(cast.llm.tally().chunks, 0);
}

/// P14, T10: with nobody to ask instead the turn is given up when its time is up, not later.
#[tokio::test(start_paused = true)]
async fn a_turn_without_an_answer_is_given_up_when_its_time_is_up() {
    let stall = || Conduct::good().stalling_after(0);
    let cast = model(Script::calls([stall()]));
    let ended = Builder::new(&cast, two_at(6_000)).hold().await;
    assert_eq!(ended.endings(), ["budget_exhausted", "commit"]);
    assert_recovers(&ended);
    let exhausted = ended.log.signals_of(Signal::BudgetExhausted);
    assert_eq!(exhausted.len(), 1);
    let anchors = &ended.turn(1).anchors;
    let opened = anchors.turn_open_emitted_ts.expect("the turn opened");
    let at = Monotonic::from_millis(exhausted[0].envelope.runtime_timestamp_ms);
    let waited = at.since(opened);
    assert!(waited >= ms(1_999) && waited <= ms(2_010), "{waited:?}");
    assert_eq!(cast.llm.tally().cancelled, 1, "{:?}", cast.llm.tally());
}

/// P14: an answer that stops in the middle is not waited for longer than the gap allows.
#[tokio::test(start_paused = true)]
async fn an_answer_that_stops_in_the_middle_fails_the_turn() {
    let cast = model(Script::calls([Conduct::good().stalling_after(3)]));
    let ended = Builder::new(&cast, two_at(9_000)).hold().await;
    assert_eq!(ended.endings(), ["provider_failure", "commit"]);
    assert_recovers(&ended);
    assert_eq!(cast.llm.tally().running(), 0);
}

/// F-133: an error before the first word is made good by another attempt.
#[tokio::test(start_paused = true)]
async fn an_error_before_the_first_word_is_repaired() {
    let fails = Conduct::good().failing_after(0, Fault::transport("connection reset"));
    let cast = model(Script::calls([fails]));
    let ended = Builder::new(&cast, vec![says(first())]).hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, REPLY);
    assert_eq!(attempts(&ended)[0].3, RetryDecision::Retry);
}

/// P6: words that were passed on cannot be taken back, so the same question is not put again after them.
#[tokio::test(start_paused = true)]
async fn an_error_after_the_first_word_fails_the_turn() {
    let fails = Conduct::good().failing_after(3, Fault::stream("broken pipe"));
    let cast = model(Script::calls([fails]));
    let ended = Builder::new(&cast, two_at(6_000)).hold().await;
    assert_eq!(ended.endings(), ["provider_failure", "commit"]);
    assert_eq!(cast.llm.tally().calls, 2, "one for each turn");
    assert_recovers(&ended);
}

/// A request that is refused is not repeated, and says why.
#[tokio::test(start_paused = true)]
async fn a_refused_request_is_not_repeated() {
    let refused = Fault::blocked("provider_auth_or_policy_block", "the key is not valid");
    let cast = model(Script::calls([Conduct::good().failing_after(0, refused)]));
    let ended = Builder::new(&cast, two_at(6_000)).hold().await;
    assert_eq!(ended.endings(), ["provider_failure", "commit"]);
    assert_eq!(
        attempts(&ended)[0],
        ("llm", 1, "blocked", RetryDecision::None)
    );
    assert_recovers(&ended);
}

/// P11: an utterance that nobody understood opens no turn, and the next one is heard.
#[tokio::test(start_paused = true)]
async fn recognition_that_fails_costs_one_utterance() {
    let fails = || Conduct::good().failing_after(0, Fault::model("out of memory"));
    let stt = ScriptedStt::new("stt").script(Script::calls([fails()]));
    let cast = Cast {
        stt: Arc::new(stt),
        ..Cast::default()
    };
    let ended = Builder::new(&cast, two_at(4_000)).hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    let texts = ended.log.texts(Speaker::User);
    let blank = texts.iter().find(|text| text.segment == 0 && text.is_final);
    assert_eq!(&*blank.expect("a final text, blank").text, "");
    assert!(ended.turn(1).user_text.starts_with("utterance"));
    assert_eq!(
        ended.log.reasons_of(Signal::ProviderError),
        ["stt infrastructure_failure adapter_invoke_error"]
    );
}

/// P11: so does recognition that panics or never answers.
#[tokio::test(start_paused = true)]
async fn recognition_that_panics_or_stalls_costs_one_utterance() {
    let panics = |after| vec![Conduct::good().panicking_after(after)];
    // Silence is tried once more; a panic is not.
    let stalls = vec![Conduct::good().stalling_after(1); 2];
    for conduct in [panics(0), panics(2), stalls] {
        let stall = Script::calls(conduct.clone());
        let cast = Cast {
            stt: Arc::new(ScriptedStt::new("stt").script(stall)),
            ..Cast::default()
        };
        let said = vec![says(first()), says(Start::At(ms(20_000)))];
        let mut builder = Builder::new(&cast, said);
        builder.script.reply_timeout = ms(30_000);
        let ended = builder.hold().await;
        let last = ended
            .report
            .turns
            .last()
            .expect("the second utterance is answered");
        assert_eq!(last.agent_text_played, REPLY, "{conduct:?}");
    }
}

/// F-133, P14: a voice that breaks off is replaced in the middle of a reply, without a repetition.
#[tokio::test(start_paused = true)]
async fn a_voice_that_breaks_off_is_replaced_in_the_middle_of_a_sentence() {
    let breaks = || Conduct::good().failing_after(10, Fault::stream("broken pipe"));
    let cast = Cast {
        tts: Arc::new(ScriptedTts::new("tts").script(Script::always(breaks()))),
        ..Cast::default()
    };
    let second = Arc::new(ScriptedTts::new("tts-2"));
    let mut builder = Builder::new(&cast, vec![says(first())]);
    builder.providers.add_tts(second.clone());
    behind(&mut builder, Modality::Tts, "tts-2");
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, REPLY);
    let switches = ended.log.reasons_of(Signal::ProviderSwitch);
    // The next clause is not begun with the one that broke off (F-047).
    assert_eq!(switches, ["from=tts to=tts-2"]);
    // As long as if one voice had said it all.
    let heard = ended.heard()[0];
    let whole = cast.tts.duration_of("Good day to you.") + cast.tts.duration_of("How can I help?");
    let length = heard.length();
    assert!(
        length >= whole && length <= whole + ms(400),
        "{length:?} instead of {whole:?}"
    );
}

/// T10: a voice that cannot be replaced fails the turn; what was heard of it is remembered.
#[tokio::test(start_paused = true)]
async fn a_voice_that_cannot_be_replaced_fails_the_turn() {
    let fails = || Conduct::good().failing_after(10, Fault::model("no such voice"));
    let cast = Cast {
        tts: Arc::new(ScriptedTts::new("tts").script(Script::calls([fails()]))),
        ..Cast::default()
    };
    let ended = Builder::new(&cast, two_at(6_000)).hold().await;
    assert_eq!(ended.endings(), ["provider_failure", "commit"]);
    assert_recovers(&ended);
    let signals = ended.signals_of(1);
    assert_eq!(signals[signals.len() - 2..], ["abort", "close"]);
}

/// An empty answer is an answer: the turn commits without a sound, and the user may go on.
#[tokio::test(start_paused = true)]
async fn an_empty_answer_ends_the_turn_in_silence() {
    for nothing in ["", "  ", "..."] {
        let cast = Cast {
            llm: Arc::new(ScriptedLlm::new("llm").answers([nothing, REPLY])),
            ..Cast::default()
        };
        let ended = Builder::new(&cast, vec![says(first()), says(after_reply())])
            .hold()
            .await;
        assert_eq!(ended.endings(), ["commit", "commit"], "{nothing:?}");
        assert_eq!(ended.turn(1).agent_text_played, "");
        assert_recovers(&ended);
    }
}

/// A storage that fails as soon as it is written to.
struct FullDisk {
    room: usize,
}

impl Write for FullDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.room.checked_sub(bytes.len()) {
            Some(left) => {
                self.room = left;
                Ok(bytes.len())
            }
            None => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Storage for FullDisk {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// T9: a turn whose evidence cannot be kept does not open where that is known, and where the disk fails
/// without a warning it is aborted when it does, whatever was said; its report says so.
#[tokio::test(start_paused = true)]
async fn a_turn_whose_evidence_cannot_be_kept_is_aborted() {
    let (mut refused, mut aborted) = (0, 0);
    for room in (4_096..36_000).step_by(2_048) {
        let cast = Cast::default();
        let header = FileHeader::new(
            SessionId::new("call").unwrap(),
            PipelineVersion::new("simple-1").unwrap(),
            "test",
            RecordingLevel::L0,
            Monotonic::ZERO,
            WallClock(0),
        );
        let begun = Recording::begin(FullDisk { room }, header, Options::default()).await;
        let (recorder, recording) = begun.expect("it does not say how full it is");
        let mut builder = Builder::new(&cast, vec![says(first())]);
        builder.recorder = Some(recorder);
        builder.script.reply_timeout = Duration::from_secs(3);
        let ended = builder.hold().await;
        let lost = ["recording_evidence_unavailable"];
        if ended.log.signals_of(Signal::TurnOpen).is_empty() {
            refused += 1;
            assert_eq!(ended.log.reasons_of(Signal::Defer), lost, "{room}");
            assert!(ended.log.signals_of(Signal::Abort).is_empty(), "{room}");
        } else if ended.endings() != ["commit"] {
            aborted += 1;
            assert_eq!(ended.endings(), lost, "{room}");
            assert_eq!(ended.turn(1).outcome, "abort", "{room}");
            assert_eq!(ended.log.reasons_of(Signal::Abort), lost, "{room}");
            assert_eq!(ended.log.signals_of(Signal::Close).len(), 1, "{room}");
        }
        let _not_whole = recording.close().await;
    }
    assert!(
        refused > 0 && aborted > 0,
        "{refused} refused, {aborted} aborted"
    );
}
