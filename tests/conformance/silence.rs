//! Silence towards the user has an end, whoever it is that says nothing, and what follows is told.

use std::{
    sync::{Arc, Mutex, atomic::AtomicU32},
    time::Duration,
};

use rspp_host::{
    Event,
    node::{NodeContext, Step},
};
use rspp_proto::{
    Payload, ProviderId,
    abi::Signal,
    spec::{CallPolicy, Cap, CapAction, CostCaps, FailurePolicy, Modality},
};
use rspp_provider_api::{
    Fault, LlmRequest, Role,
    scripted::{Conduct, Script, ScriptedLlm, ScriptedStt, ScriptedTts},
};
use rspp_tests::{
    call::{Builder, Cast, Ended, LONG, REPLY, first, says, tone},
    nodes::{Probes, add, custom, insert},
};
use rspp_transport_api::loopback::{Start, Utterance};

/// What the user gets when a turn has failed for good.
const SORRY: &str = "Sorry, say that again.";
/// `max_silence_ms` of the profile, and what is added to it before a turn ends that nobody can help.
const SILENCE: u64 = 4_000;
const GAP: u64 = 1_500;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn id(id: &str) -> ProviderId {
    ProviderId::new(id).unwrap()
}

/// A user who would wait for long.
fn patient(cast: &Cast, said: Vec<Utterance>) -> Builder {
    let mut builder = Builder::new(cast, said);
    builder.script.reply_timeout = Duration::from_secs(12);
    builder.script.hang_up_after = Duration::from_secs(30);
    builder
}

fn voiced(tts: ScriptedTts) -> Cast {
    Cast {
        tts: Arc::new(tts),
        ..Cast::default()
    }
}

/// From when the first turn opened until the `nth` signal of a kind, in milliseconds.
fn after_open(ended: &Ended, kind: Signal, nth: usize) -> u64 {
    let opened = ended.turn(1).anchors.turn_open_emitted_ts.unwrap();
    let at = ended.log.signals_of(kind)[nth]
        .envelope
        .runtime_timestamp_ms;
    at - opened.as_millis()
}

fn reasons(ended: &Ended, kind: Signal) -> Vec<String> {
    ended.log.reasons_of(kind)
}

/// P13, P14, F-046: a voice that says nothing after the model has spoken is given up when the turn has been
/// silent for as long as its plan lets it, not after attempts that know nothing of each other.
#[tokio::test(start_paused = true)]
async fn a_voice_that_never_speaks_is_given_up_in_good_time() {
    for (silence, gives_up) in [(None, SILENCE), (Some(2_500), 2_500)] {
        let stall = Script::always(Conduct::good().stalling_after(0));
        let ended = patient(
            &voiced(ScriptedTts::new("tts").script(stall)),
            vec![says(first())],
        )
        .pipeline(|spec| spec.budgets.max_silence_ms = silence)
        .hold()
        .await;
        assert_eq!(ended.endings(), ["provider_failure"]);
        let after = after_open(&ended, Signal::Abort, 0);
        assert!((gives_up..gives_up + 300).contains(&after), "{after} ms");
    }
}

/// A call whose model's words go through a node that hangs at its `nth` event, with a budget of half a minute.
fn hanging_at(nth: u32, llm: ScriptedLlm) -> Builder {
    let mut probes = Probes::default();
    let seen = AtomicU32::new(0);
    probes.add("filter", move |_nth, cx: &mut NodeContext, event: Event| {
        if matches!(event.payload, Payload::Text(_)) && add(&seen) == nth {
            return Step::Wait(Box::pin(std::future::pending()));
        }
        cx.forward(event);
        Step::OK
    });
    let cast = Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    };
    patient(&cast, vec![says(first())])
        .pipeline(|spec| {
            let mut filter = custom("filter");
            filter.budget_ms = Some(30_000);
            insert(spec, "segmenter", filter, "tts");
        })
        .configure(probes.install())
}

/// P13, T10: nor does a large budget of one node make the user wait for it: the node that hangs is found
/// when the turn has been silent for as long as it may, before its first word and in the middle of a reply.
#[tokio::test(start_paused = true)]
async fn a_large_budget_of_a_node_is_no_licence_for_silence() {
    for (nth, speaks) in [(1, false), (2, true)] {
        let llm = ScriptedLlm::new("llm").answers([LONG]);
        let ended = hanging_at(nth, llm).hold().await;
        assert_eq!(ended.endings(), ["node_timeout_or_failure"], "{nth}");
        let gap = reasons(&ended, Signal::BudgetExhausted);
        assert!(gap.contains(&"output_gap".to_owned()), "{gap:?}");
        let silent_since = if speaks {
            let first = &ended.heard()[0];
            let began = ended.turn(1).anchors.assistant_audio_playback_started_ts;
            let opened = ended.turn(1).anchors.turn_open_emitted_ts.unwrap();
            (began.unwrap().as_millis() - opened.as_millis()) + first.length().as_millis() as u64
        } else {
            0
        };
        let silent = after_open(&ended, Signal::Abort, 0) - silent_since;
        assert!(silent <= SILENCE + 400, "{nth}: {silent} ms");
    }
}

/// P13, T10: nor do words that pile up before the node that hangs: what the model goes on to say does not reach
/// the user.
#[tokio::test(start_paused = true)]
async fn words_that_do_not_get_through_are_no_sign_of_life() {
    const EVERY: u64 = 900;
    let llm = ScriptedLlm::new("llm")
        .answers(["One. Two. Three. Four. Five. Six. Seven. Eight. Nine. Ten. Eleven. Twelve."])
        .token_every(ms(EVERY));
    let ended = hanging_at(1, llm).hold().await;
    assert_eq!(ended.endings(), ["node_timeout_or_failure"]);
    // The first word is whole once the second comes.
    let after = after_open(&ended, Signal::Abort, 0);
    let most = 2 * EVERY + SILENCE + 400;
    assert!((SILENCE..most).contains(&after), "{after} ms");
}

/// P13: a model that is slow but living is waited for, for longer than the turn may be silent.
#[tokio::test(start_paused = true)]
async fn a_slow_model_that_lives_is_waited_for() {
    let words = "one two three four five six seven eight nine";
    let llm = ScriptedLlm::new("llm")
        .answers([words])
        .token_every(ms(900));
    let cast = Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    };
    // Its words are spoken when all are there.
    let mut probes = Probes::default();
    let kept = Mutex::new(Vec::new());
    probes.add("gather", move |_nth, cx: &mut NodeContext, event: Event| {
        let is_last = matches!(event.payload, Payload::TextEnd);
        let mut kept = kept.lock().unwrap();
        kept.push(event);
        if is_last {
            kept.drain(..).for_each(|event| cx.forward(event));
        }
        Step::OK
    });
    let ended = patient(&cast, vec![says(first())])
        .pipeline(|spec| insert(spec, "segmenter", custom("gather"), "tts"))
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, words);
}

/// P13, F-133: a second voice is asked for the rest of a clause that the first does not end; what was heard
/// of it is not said again, and no hole is longer than a reply may have.
#[tokio::test(start_paused = true)]
async fn a_clause_that_stalls_is_gone_on_with_by_another_voice() {
    let stall = Script::calls([Conduct::good().stalling_after(10)]);
    let mut builder = patient(
        &voiced(ScriptedTts::new("tts").script(stall)),
        vec![says(first())],
    );
    builder
        .providers
        .add_tts(Arc::new(ScriptedTts::new("tts2")));
    let bound = &mut builder.settings.defaults.provider_bindings;
    bound.insert(Modality::Tts, ["tts", "tts2"].map(id).into());
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(
        reasons(&ended, Signal::ProviderSwitch),
        ["from=tts to=tts2"]
    );
    assert_eq!(ended.turn(1).agent_text_played, REPLY);
    let switched = after_open(&ended, Signal::ProviderSwitch, 0);
    assert!(switched <= GAP + 300, "{switched} ms");
    // As long as its words are: what the first has said is not said again.
    let spoken = ScriptedTts::new("tts").duration_of(REPLY);
    let length = ended.heard()[0].length();
    assert!(length <= spoken + ms(GAP + 200), "{length:?}");
}

/// P14, P6: a model that breaks off in the middle of a sentence is gone on with by another, which is told what
/// was said; nothing of it is said again.
#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_is_gone_on_with_by_another_model() {
    let asked = Arc::<Mutex<Vec<LlmRequest>>>::default();
    let noted = Arc::clone(&asked);
    let broken = Conduct::good().failing_after(6, Fault::stream("the line is cut"));
    let first_model =
        ScriptedLlm::new("llm").answers(["One two three four. Five six seven eight."]);
    let cast = Cast {
        llm: Arc::new(
            first_model
                .token_every(ms(50))
                .script(Script::always(broken)),
        ),
        ..Cast::default()
    };
    let mut builder = patient(&cast, vec![says(first())]);
    let second = ScriptedLlm::new("llm2").answer_with(move |request| {
        noted.lock().unwrap().push(request.clone());
        "nine ten."
    });
    builder.providers.add_llm(Arc::new(second));
    let bound = &mut builder.settings.defaults.provider_bindings;
    bound.insert(Modality::Llm, ["llm", "llm2"].map(id).into());
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(
        reasons(&ended, Signal::ProviderSwitch),
        ["from=llm to=llm2"]
    );
    assert_eq!(
        ended.turn(1).agent_text_played,
        "One two three four. Five six nine ten."
    );
    let asked = asked.lock().unwrap();
    let told: Vec<_> = asked[0].messages.iter().rev().take(2).collect();
    assert_eq!(told[0].role, Role::System);
    assert_eq!(
        (told[1].role, told[1].content.as_str()),
        (Role::Assistant, "One two three four. Five six")
    );
}

/// P14, F-131: a voice that ends without a sound has failed, as a model that ends without a word has.
#[tokio::test(start_paused = true)]
async fn a_voice_that_ends_without_a_sound_has_failed() {
    let nothing = Script::always(Conduct::good().truncated_after(0));
    let cast = voiced(ScriptedTts::new("tts").script(nothing));
    let ended = patient(&cast, vec![says(first())]).hold().await;
    assert_eq!(ended.endings(), ["provider_failure"]);
    let errors = reasons(&ended, Signal::ProviderError);
    assert!(!errors.is_empty());
    assert!(
        errors
            .iter()
            .all(|error| error.starts_with("tts infrastructure_failure")),
        "{errors:?}"
    );
}

fn sorry(builder: Builder) -> Builder {
    builder.pipeline(|spec| {
        spec.providers.failure = Some(Box::new(FailurePolicy {
            reply: Some(SORRY.into()),
            ..FailurePolicy::default()
        }));
    })
}

fn deaf(script: Script) -> Cast {
    Cast {
        stt: Arc::new(
            ScriptedStt::new("stt")
                .utterances(["hello there"; 3])
                .script(script),
        ),
        ..Cast::default()
    }
}

/// When a signal of a kind with that reason was given.
fn when(ended: &Ended, kind: Signal, reason: &str) -> Option<u64> {
    let signals = ended.log.signals_of(kind).into_iter();
    let mut of_reason =
        signals.filter(|signal| signal.reason.as_ref().is_some_and(|r| r.as_str() == reason));
    of_reason
        .next()
        .map(|signal| signal.envelope.runtime_timestamp_ms)
}

/// P5, F-135: words that recognition fails on are given up, which is told, and the user is asked to say them
/// again as soon as the silence tells that they are over.
#[tokio::test(start_paused = true)]
async fn words_that_are_not_recognised_are_apologised_for() {
    let refused =
        || Conduct::good().failing_after(0, Fault::blocked("provider_client_error", "no"));
    let broken = || Conduct::good().failing_after(0, Fault::stream("cut"));
    for script in [vec![refused()], vec![broken(), broken()]] {
        let said = vec![says(first()), says(Start::At(ms(12_000)))];
        let cast = deaf(Script::calls(script));
        let ended = sorry(patient(&cast, said)).hold().await;
        assert_eq!(ended.endings(), ["commit", "commit"]);
        assert_eq!(ended.turn(1).user_text, "");
        assert_eq!(ended.turn(1).agent_text_played, SORRY);
        assert_eq!(ended.turn(2).user_text, "hello there");
        let told = when(&ended, Signal::Fallback, "utterance_not_recognised");
        assert!(told.is_some_and(|at| at < 2_500), "{told:?}");
    }
    // Nobody asked for an apology: it is told all the same.
    let cast = deaf(Script::calls([refused()]));
    let ended = patient(&cast, vec![says(first())]).hold().await;
    assert!(ended.endings().is_empty());
    assert!(when(&ended, Signal::Degrade, "utterance_not_recognised").is_some());
}

/// P5, P11: recognition that hangs is not waited for longer than the pipeline waits for words.
#[tokio::test(start_paused = true)]
async fn recognition_that_hangs_is_given_up_when_its_time_is_over() {
    for timeout in [500, 3_000] {
        let stall = Script::always(Conduct::good().stalling_after(0));
        let ended = sorry(patient(&deaf(stall), vec![says(first())]))
            .pipeline(|spec| spec.turns.transcript_timeout_ms = timeout)
            .hold()
            .await;
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.turn(1).agent_text_played, SORRY);
        let told = when(&ended, Signal::Fallback, "transcript_timeout").unwrap();
        // The user has spoken until 1,300 ms.
        assert!((1_300 + timeout..1_900 + timeout).contains(&told), "{told}");
    }
}

fn capped(action: CapAction) -> Builder {
    let long = Utterance {
        audio: tone(ms(2_500)),
        start: first(),
    };
    patient(&Cast::default(), vec![long]).pipeline(|spec| {
        spec.providers.caps = Some(Box::new(CostCaps {
            turn: Cap {
                audio_seconds: Some(1),
                ..Cap::default()
            },
            action,
            ..CostCaps::default()
        }));
    })
}

/// F-058, P5: a cap on the user's audio costs the words beyond it, and no time: the answer comes as soon as
/// the user has finished. One that refuses refuses all of them, and that is told.
#[tokio::test(start_paused = true)]
async fn a_cap_on_audio_costs_words_and_no_time() {
    let cut = capped(CapAction::Truncate).hold().await;
    assert_eq!(cut.endings(), ["commit"]);
    let opened = cut.turn(1).anchors.turn_open_emitted_ts.unwrap();
    assert!(opened.as_millis() < 3_600, "{opened:?}");
    let refused = sorry(capped(CapAction::Refuse)).hold().await;
    let reason = "cost_cap_audio_ms scope=turn limit=1000 action=refuse";
    assert_eq!(reasons(&refused, Signal::BudgetExhausted)[0], reason);
    assert!(when(&refused, Signal::Fallback, "utterance_refused_cost_cap").is_some());
    assert_eq!(refused.turn(1).user_text, "");
    assert_eq!(refused.turn(1).agent_text_played, SORRY);
}

/// F-059: a turn that leaves no useful time for its model says why it fails.
#[tokio::test(start_paused = true)]
async fn a_call_without_useful_time_says_why() {
    let ended = patient(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            spec.providers.calls = Some(Box::new(CallPolicy {
                least_useful_ms: 6_000,
                ..CallPolicy::default()
            }));
        })
        .hold()
        .await;
    assert_eq!(ended.endings(), ["provider_failure"]);
    assert_eq!(
        reasons(&ended, Signal::ProviderError),
        ["llm timeout provider_budget_exhausted"]
    );
}
