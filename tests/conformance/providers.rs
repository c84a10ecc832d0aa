//! Who is asked, when another is asked instead, and who is left alone: the policy of the plan, the
//! news of health and price, and what the providers themselves did.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rspp_host::{
    Event,
    node::{NodeContext, Step},
};
use rspp_kernel::plan::{Health, ProviderNews, ResolvedTurnPlan};
use rspp_proto::{
    Payload, ProviderId, RetryDecision, SampleRate,
    abi::Signal,
    spec::{Bindings, CallPolicy, ChoicePolicy, CircuitPolicy, Modality},
};
use rspp_provider_api::{
    Call as ProviderCall, ChunkStream, Description, Fault, LanguageModel, LlmChunk, LlmRequest,
    scripted::{Answer, Conduct, Script, ScriptedLlm, ScriptedStt, ScriptedTts},
};
use rspp_tests::{
    call::{Builder, Cast, Ended, LONG, REPLY, after_reply, first, over_reply, says},
    nodes::{Probes, custom, insert},
};
use rspp_timeline::{AttemptRecord, Entry, InvocationOutcome, PlanEntry};
use rspp_transport_api::loopback::{Start, Utterance};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn id(id: &str) -> ProviderId {
    ProviderId::new(id).unwrap()
}

/// A second model beside the cast's own; what it says tells who spoke.
fn spare() -> Arc<ScriptedLlm> {
    Arc::new(ScriptedLlm::new("spare").answers(["It is the spare one."]))
}

/// A call that the cast's own model serves first, and then the spare one.
fn with_spare(cast: &Cast, said: Vec<Utterance>, spare: &Arc<ScriptedLlm>) -> Builder {
    let mut builder = Builder::new(cast, said);
    builder.providers.add_llm(spare.clone());
    bind(&mut builder, Modality::Llm, &["llm", "spare"]);
    builder
}

fn bind(builder: &mut Builder, modality: Modality, ids: &[&str]) {
    let bound = &mut builder.settings.defaults.provider_bindings;
    bound.insert(modality, ids.iter().copied().map(id).collect());
}

fn model(script: Script) -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([REPLY]).script(script)),
        ..Cast::default()
    }
}

fn times(count: usize) -> Vec<Utterance> {
    (0..count)
        .map(|n| says(Start::At(ms(300 + 8_000 * n as u64))))
        .collect()
}

fn attempts(ended: &Ended, modality: Modality) -> Vec<&AttemptRecord> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Attempt(attempt) if attempt.modality == modality => Some(&**attempt),
            _something_else => None,
        })
        .collect()
}

fn who(ended: &Ended, modality: Modality) -> Vec<&str> {
    let attempts = attempts(ended, modality).into_iter();
    attempts
        .map(|attempt| attempt.provider_id.as_str())
        .collect()
}

fn outcomes(ended: &Ended, modality: Modality) -> Vec<&InvocationOutcome> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Invocation(outcome) if outcome.modality == modality => Some(&**outcome),
            _something_else => None,
        })
        .collect()
}

fn plans(ended: &Ended) -> Vec<&PlanEntry> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Plan(plan) => Some(&**plan),
            _something_else => None,
        })
        .collect()
}

fn rule(name: &str, providers: &[&str]) -> BTreeMap<String, Bindings> {
    let ids = providers.iter().copied().map(id).collect();
    [(name.to_owned(), [(Modality::Llm, ids)].into())].into()
}

// --- choice ------------------------------------------------------------------------------------

/// F-056: tenant before language before region before cost tier before the binding, each choice told
/// in the plan and in the evidence of the call.
#[tokio::test(start_paused = true)]
async fn rules_choose_the_provider_and_say_which_did() {
    let all = ChoicePolicy {
        tenant: rule("tenant", &["spare"]),
        language: rule("de", &["spare"]),
        region: rule("eu", &["spare"]),
        cost_tier: rule("economy", &["spare"]),
        ..ChoicePolicy::default()
    };
    let without = |strip: fn(&mut ChoicePolicy)| {
        let mut choice = all.clone();
        strip(&mut choice);
        choice
    };
    let cases = [
        (all.clone(), "spare", "rule:tenant"),
        (without(|c| c.tenant.clear()), "spare", "rule:language"),
        (
            without(|c| {
                c.tenant.clear();
                c.language.clear();
            }),
            "spare",
            "rule:region",
        ),
        (
            ChoicePolicy {
                cost_tier: rule("economy", &["nobody", "spare"]),
                ..ChoicePolicy::default()
            },
            "spare",
            "rule:cost_tier",
        ),
        // Nobody that a rule names is there, or no rule knows the session: the binding holds.
        (
            ChoicePolicy {
                tenant: rule("tenant", &["nobody"]),
                ..ChoicePolicy::default()
            },
            "llm",
            "rule:default",
        ),
        (
            ChoicePolicy {
                tenant: rule("another", &["spare"]),
                ..ChoicePolicy::default()
            },
            "llm",
            "rule:default",
        ),
    ];
    for (choice, expected, reason) in cases {
        let mut builder = with_spare(&Cast::default(), vec![says(first())], &spare());
        for (attribute, value) in [
            ("language", "de-AT"),
            ("region", "eu"),
            ("cost_tier", "economy"),
        ] {
            builder.attributes.insert(attribute.into(), value.into());
        }
        let ended = builder
            .pipeline(|spec| spec.providers.choice = Some(Box::new(choice)))
            .hold()
            .await;
        assert_eq!(who(&ended, Modality::Llm), [expected], "{reason}");
        let outcome = outcomes(&ended, Modality::Llm)[0];
        assert_eq!(outcome.routing_reason, reason);
        assert_eq!(outcome.signal_source, "fallback_default:missing");
        let plan = &plans(&ended)[0].plan;
        assert_eq!(plan["provider_choices"]["llm"]["reason"], reason);
        assert_eq!(plan["node_bindings"]["llm"][0], expected);
        let source = plan["provenance"]["node_bindings/llm"]["source"].as_str();
        let told = source.is_some_and(|source| source.ends_with(reason));
        assert_eq!(told, reason != "rule:default", "{source:?}");
    }
}

/// F-060, F-066: who is said to be ill is avoided from the next turn on, and used again once well.
#[tokio::test(start_paused = true)]
async fn news_of_health_steers_the_next_turn_in_both_directions() {
    let spare = spare();
    let call = with_spare(&Cast::default(), times(3), &spare).start().await;
    let board = call.runtime.provider_board();
    let llm_is = |health| {
        let news = ProviderNews {
            health,
            price_micros: None,
        };
        board.publish([((Modality::Llm, id("llm")), news)].into());
    };
    llm_is(Health::Unhealthy);
    call.log.until(Signal::Close, 1).await;
    llm_is(Health::Healthy);
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["commit"; 3]);
    assert_eq!(who(&ended, Modality::Llm), ["spare", "llm", "llm"]);
    let choices: Vec<_> = plans(&ended)
        .iter()
        .map(|plan| plan.plan["provider_choices"]["llm"].clone())
        .collect();
    assert_eq!(choices[0]["signal_source"], "capability_snapshot");
    assert_eq!(choices[0]["candidates"][1]["health"], "unhealthy");
    assert_eq!(choices[1]["candidates"][0]["health"], "healthy");
    // The snapshot that a turn went by is named in its plan, and so in its hash.
    let refs: Vec<_> = plans(&ended)
        .iter()
        .map(|plan| plan.plan["snapshot_provenance"]["provider_health_snapshot"].clone())
        .collect();
    assert!(
        refs[0]
            .as_str()
            .is_some_and(|name| name.starts_with("provider-capability/"))
    );
    assert_ne!(refs[0], refs[1]);
    assert_eq!(refs[1], refs[2]);
}

/// F-066: the cheaper one first, as long as the price is news; then the default order, and why.
#[tokio::test(start_paused = true)]
async fn a_price_counts_until_it_is_stale() {
    let call = with_spare(&Cast::default(), times(2), &spare())
        .pipeline(|spec| {
            spec.providers.choice = Some(Box::new(ChoicePolicy {
                max_signal_age_ms: 5_000,
                ..ChoicePolicy::default()
            }));
        })
        .start()
        .await;
    let price = |micros| ProviderNews {
        health: Health::Unknown,
        price_micros: Some(micros),
    };
    let news = [
        ((Modality::Llm, id("llm")), price(300)),
        ((Modality::Llm, id("spare")), price(200)),
    ];
    call.runtime.provider_board().publish(news.into());
    let ended = call.end().await;
    assert_eq!(who(&ended, Modality::Llm), ["spare", "llm"]);
    let sources: Vec<_> = outcomes(&ended, Modality::Llm)
        .iter()
        .map(|outcome| outcome.signal_source.clone())
        .collect();
    assert_eq!(sources, ["capability_snapshot", "fallback_default:stale"]);
}

/// F-055: who understands, answers and speaks is a matter of settings: with each of them exchanged for another the
/// graph is the same, bound otherwise, and a node of the business between them is told and says the same.
#[tokio::test(start_paused = true)]
async fn an_adapter_is_exchanged_and_no_other_node_notices() {
    let run = async |exchanged: Option<Modality>| {
        let seen = Arc::<Mutex<Vec<Payload>>>::default();
        let noted = Arc::clone(&seen);
        let mut probes = Probes::default();
        probes.add(
            "business",
            move |_nth, cx: &mut NodeContext, event: Event| {
                noted.lock().unwrap().push(event.payload.clone());
                cx.forward(event);
                Step::OK
            },
        );
        let cast = Cast::default();
        let mut builder = Builder::new(&cast, times(2))
            .pipeline(|spec| insert(spec, "llm", custom("business"), "segmenter"))
            .configure(probes.install());
        let stt = ScriptedStt::new("stt-2").utterances(["hello there", "and again"]);
        builder
            .providers
            .add_stt(Arc::new(stt))
            .add_llm(Arc::new(ScriptedLlm::new("llm-2").answers([REPLY])))
            .add_tts(Arc::new(ScriptedTts::new("tts-2")));
        if let Some(modality) = exchanged {
            let other = format!("{}-2", modality.as_str());
            bind(&mut builder, modality, &[&other]);
        }
        let call = builder.start().await;
        call.log.until(Signal::TurnOpen, 1).await;
        let effective = call.session.effective();
        let ended = call.end().await;
        assert_eq!(ended.endings(), ["commit"; 2]);
        let asked: BTreeMap<Modality, String> = [Modality::Stt, Modality::Llm, Modality::Tts]
            .into_iter()
            .map(|modality| (modality, who(&ended, modality)[0].to_owned()))
            .collect();
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        (
            effective,
            asked,
            seen,
            ended.turn(1).agent_text_played.clone(),
        )
    };
    let (effective, asked, seen, heard) = run(None).await;
    assert!(seen.len() > 4);
    for modality in [Modality::Stt, Modality::Llm, Modality::Tts] {
        let (other, others, told, played) = run(Some(modality)).await;
        assert_eq!(other.graph, effective.graph, "{modality:?}");
        for (of, provider) in &asked {
            let changed = *of == modality;
            let expected = if changed {
                format!("{provider}-2")
            } else {
                provider.clone()
            };
            assert_eq!(others[of], expected);
        }
        assert_ne!(other.policy.node_bindings, effective.policy.node_bindings);
        assert_eq!((told, played), (seen.clone(), heard.clone()));
    }
}

// --- circuits ----------------------------------------------------------------------------------

fn touchy() -> CircuitPolicy {
    CircuitPolicy {
        least_calls: 2,
        window_ms: 60_000,
        cool_down_ms: 12_000,
        ..CircuitPolicy::default()
    }
}

/// F-057, F-060, F-136: faults open the circuit and move the next turns elsewhere; after the
/// cool-down one call is the trial, and a good one closes it. Only changes are told.
#[tokio::test(start_paused = true)]
async fn a_circuit_opens_is_avoided_and_heals() {
    let fails = || Conduct::good().failing_after(0, Fault::transport("connection reset"));
    let cast = model(Script::calls([fails(), fails()]));
    let spare = spare();
    let ended = with_spare(&cast, times(3), &spare)
        .pipeline(|spec| {
            spec.providers.circuit = Some(Box::new(touchy()));
            spec.providers.calls = Some(Box::new(CallPolicy {
                stay_away_ms: 0,
                ..CallPolicy::default()
            }));
        })
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"; 3]);
    // Both attempts of the first turn fail; the second turn does not even try; the third is a trial.
    assert_eq!(
        who(&ended, Modality::Llm),
        ["llm", "llm", "spare", "spare", "llm"]
    );
    assert_eq!(
        ended.log.reasons_of(Signal::CircuitEvent),
        [
            "llm from=closed to=open faults=2/2 threshold=50% code=provider_transport_error",
            "llm from=open to=half_open",
            "llm from=half_open to=closed",
        ]
    );
    let health = |turn: usize| {
        let choice = &plans(&ended)[turn].plan["provider_choices"]["llm"];
        choice["candidates"]
            .as_array()
            .unwrap()
            .iter()
            .map(|candidate| candidate["health"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(health(1), ["unknown", "unhealthy"]);
    assert_eq!(health(2), ["unknown", "unknown"]);
}

/// P27: interruptions, empty answers and turns that only call a tool mark nobody as down.
#[tokio::test(start_paused = true)]
async fn nobody_is_down_because_the_user_interrupts_or_the_answer_is_empty() {
    let tool = rspp_provider_api::ToolCall {
        id: "1".into(),
        name: "look_up".into(),
        arguments: "{}".into(),
    };
    let answers = [
        Answer::from(LONG),
        Answer::from(LONG),
        Answer::from(""),
        Answer {
            text: String::new(),
            tool_calls: vec![tool],
        },
    ];
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers(answers).token_every(ms(20))),
        tts: Arc::new(ScriptedTts::new("tts").real_time_factor(0.5)),
        ..Cast::default()
    };
    let said = vec![
        says(first()),
        says(over_reply(300)),
        says(over_reply(300)),
        says(Start::At(ms(20_000))),
    ];
    let mut builder = Builder::new(&cast, said);
    builder.script.reply_timeout = ms(3_000);
    let ended = builder
        .pipeline(|spec| {
            spec.providers.circuit = Some(Box::new(CircuitPolicy {
                least_calls: 1,
                fault_percent: 1,
                ..CircuitPolicy::default()
            }));
        })
        .hold()
        .await;
    assert!(ended.report.turns.len() >= 3, "{:?}", ended.endings());
    assert!(ended.endings().contains(&"cancelled"));
    assert_eq!(ended.log.reasons_of(Signal::CircuitEvent), [""; 0]);
    assert_eq!(ended.log.reasons_of(Signal::ProviderError), [""; 0]);
}

/// F-057: a trial that is interrupted says nothing, and does not block the next.
#[tokio::test(start_paused = true)]
async fn an_interrupted_trial_is_made_again() {
    let fails = || Conduct::good().failing_after(0, Fault::transport("connection reset"));
    let cast = Cast {
        llm: Arc::new(
            ScriptedLlm::new("llm")
                .answers([LONG])
                .token_every(ms(400))
                .script(Script::calls([fails(), fails()])),
        ),
        ..Cast::default()
    };
    let said = vec![
        says(first()),
        says(Start::At(ms(20_000))),
        says(over_reply(300)),
    ];
    let ended = Builder::new(&cast, said)
        .pipeline(|spec| spec.providers.circuit = Some(Box::new(touchy())))
        .hold()
        .await;
    assert_eq!(ended.endings(), ["provider_failure", "cancelled", "commit"]);
    let last = "llm from=half_open to=closed".to_owned();
    assert_eq!(
        ended.log.reasons_of(Signal::CircuitEvent).last(),
        Some(&last)
    );
}

// --- deadlines, switches and hedges ------------------------------------------------------------

/// F-046: a model on this machine may be silent for five seconds, but not when somebody else could
/// answer within the turn: its call is cancelled at the provider, and the fallback fits.
#[tokio::test(start_paused = true)]
async fn a_fallback_fits_what_is_left_of_the_turn() {
    let cast = model(Script::always(Conduct::good().stalling_after(0)));
    let spare = spare();
    let ended = with_spare(&cast, vec![says(first())], &spare)
        .pipeline(|spec| {
            spec.providers.calls = Some(Box::new(CallPolicy {
                attempts_per_provider: 1,
                ..CallPolicy::default()
            }));
        })
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.log.signals_of(Signal::BudgetExhausted).len(), 0);
    let attempts = attempts(&ended, Modality::Llm);
    assert_eq!(who(&ended, Modality::Llm), ["llm", "spare"]);
    let waited = attempts[0].latency();
    assert!(waited <= ms(1_001), "{waited:?}");
    assert_eq!(cast.llm.tally().cancelled, 1);
    assert!(
        ended
            .turn(1)
            .agent_text_played
            .starts_with("It is the spare")
    );
}

/// F-046: when no time is left the call says so, in words of its own.
#[tokio::test(start_paused = true)]
async fn a_call_without_time_left_says_so() {
    let slow = Conduct::good().failing_after(0, Fault::transport("connection reset"));
    let cast = model(Script::always(slow.late(ms(600))));
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| {
            spec.budgets.turn_budget_ms = Some(700);
            spec.turns.vad_hangover_ms = 240;
        })
        .hold()
        .await;
    assert_ne!(ended.endings(), ["commit"]);
    let outcome = outcomes(&ended, Modality::Llm)[0];
    assert_eq!(outcome.reason, "provider_budget_exhausted");
    assert!(outcome.is_valid());
}

/// F-047: a recogniser that overran is not asked first for the utterances that follow.
#[tokio::test(start_paused = true)]
async fn later_utterances_go_to_the_one_that_kept_up() {
    let stalls = || Conduct::good().stalling_after(0);
    let cast = Cast {
        stt: Arc::new(ScriptedStt::new("stt").script(Script::calls(vec![stalls(); 2]))),
        ..Cast::default()
    };
    let second = Arc::new(ScriptedStt::new("stt-2").utterances(["hello there", "and again"]));
    let mut builder = Builder::new(&cast, vec![says(first()), says(Start::At(ms(25_000)))]);
    builder.script.reply_timeout = ms(30_000);
    builder.providers.add_stt(second);
    bind(&mut builder, Modality::Stt, &["stt", "stt-2"]);
    let ended = builder
        .pipeline(|spec| spec.turns.transcript_timeout_ms = 20_000)
        .hold()
        .await;
    assert_eq!(who(&ended, Modality::Stt), ["stt", "stt", "stt-2", "stt-2"]);
    assert_eq!(
        ended.log.reasons_of(Signal::ProviderSwitch),
        ["from=stt to=stt-2"]
    );
    let routed: Vec<_> = outcomes(&ended, Modality::Stt)
        .iter()
        .map(|outcome| outcome.routing_reason.clone())
        .collect();
    assert_eq!(routed, ["rule:default", "overrun:stt"]);
    let last = ended
        .report
        .turns
        .last()
        .expect("the second utterance is answered");
    assert_eq!(last.outcome, "commit");
}

fn hedging(after_ms: u64, modality: Modality) -> CallPolicy {
    CallPolicy {
        hedge_after_ms: [(modality, after_ms)].into(),
        ..CallPolicy::default()
    }
}

/// P14: a slow model is hedged: the first to speak is heard, the other is stopped at its provider,
/// and both are paid for.
#[tokio::test(start_paused = true)]
async fn a_slow_model_is_hedged_and_the_first_to_speak_wins() {
    for (first_late, second_late, winner) in [(900, 0, "spare"), (350, 500, "llm")] {
        let cast = model(Script::always(Conduct::good().late(ms(first_late))));
        let spare = spare();
        spare.set_script(Script::always(Conduct::good().late(ms(second_late))));
        let ended = with_spare(&cast, vec![says(first())], &spare)
            .pipeline(|spec| spec.providers.calls = Some(Box::new(hedging(300, Modality::Llm))))
            .hold()
            .await;
        assert_eq!(ended.endings(), ["commit"]);
        let attempts = attempts(&ended, Modality::Llm);
        assert_eq!(who(&ended, Modality::Llm), ["llm", "spare"]);
        let apart = attempts[1].started_at.since(attempts[0].started_at);
        assert_eq!(apart, ms(300));
        let (won, lost) = match winner {
            "llm" => (&attempts[0], &attempts[1]),
            _spare => (&attempts[1], &attempts[0]),
        };
        assert_eq!(
            (won.outcome_class.as_str(), won.reason.as_str()),
            ("success", "")
        );
        assert_eq!(lost.reason, "provider_overtaken");
        assert_eq!(
            outcomes(&ended, Modality::Llm)[0].provider_id.as_str(),
            winner
        );
        let tally = if winner == "llm" {
            spare.tally()
        } else {
            cast.llm.tally()
        };
        assert_eq!((tally.dropped, tally.cancelled, tally.chunks), (1, 1, 0));
        let switches = ended.log.reasons_of(Signal::ProviderSwitch);
        let expected: &[&str] = if winner == "llm" {
            &[]
        } else {
            &["from=llm to=spare hedged"]
        };
        assert_eq!(switches, expected);
        assert_eq!(ended.log.reasons_of(Signal::CircuitEvent), [""; 0]);
    }
}

/// P14: so is a slow voice; its characters are charged twice.
#[tokio::test(start_paused = true)]
async fn a_slow_voice_is_hedged_and_both_are_paid_for() {
    let cast = Cast {
        tts: Arc::new(
            ScriptedTts::new("tts").script(Script::always(Conduct::good().late(ms(900)))),
        ),
        ..Cast::default()
    };
    let mut builder = Builder::new(&cast, vec![says(first())]);
    builder
        .providers
        .add_tts(Arc::new(ScriptedTts::new("tts-2")));
    bind(&mut builder, Modality::Tts, &["tts", "tts-2"]);
    let ended = builder
        .pipeline(|spec| spec.providers.calls = Some(Box::new(hedging(200, Modality::Tts))))
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, REPLY);
    let first = outcomes(&ended, Modality::Tts)[0];
    let characters = "Good day to you.".len() as u64;
    assert_eq!(first.spending.tts_characters, 2 * characters);
    assert_eq!(cast.tts.tally().chunks, 0);
}

/// P14: so is a recogniser that owes its text: the other is given the whole utterance, and whoever
/// understands it first is heard.
#[tokio::test(start_paused = true)]
async fn a_slow_recogniser_is_hedged_from_the_end_of_the_speech() {
    let utterances = ["hello there", "and again"];
    let slow = ScriptedStt::new("stt").utterances(utterances);
    let cast = Cast {
        stt: Arc::new(slow.final_after(ms(1_500))),
        ..Cast::default()
    };
    let second = Arc::new(ScriptedStt::new("stt-2").utterances(utterances));
    let mut builder = Builder::new(&cast, vec![says(first())]);
    builder.providers.add_stt(Arc::clone(&second) as _);
    bind(&mut builder, Modality::Stt, &["stt", "stt-2"]);
    let ended = builder
        .pipeline(|spec| spec.providers.calls = Some(Box::new(hedging(200, Modality::Stt))))
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).user_text, "hello there");
    assert_eq!(who(&ended, Modality::Stt), ["stt", "stt-2"]);
    assert_eq!(
        attempts(&ended, Modality::Stt)[0].reason,
        "provider_overtaken"
    );
    assert_eq!(
        ended.log.reasons_of(Signal::ProviderSwitch),
        ["from=stt to=stt-2 hedged"]
    );
    assert!(second.tally().chunks > 0);
}

/// F-133, F-134: an adapter that panics is failed over like any other that fails.
#[tokio::test(start_paused = true)]
async fn an_adapter_that_panics_is_replaced_within_the_turn() {
    let cast = model(Script::always(Conduct::good().panicking_after(0)));
    let spare = spare();
    let ended = with_spare(&cast, vec![says(first())], &spare).hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    let attempts = attempts(&ended, Modality::Llm);
    assert_eq!(attempts[0].reason, "adapter_invoke_error");
    assert_eq!(attempts[0].retry_decision, RetryDecision::ProviderSwitch);
    assert_eq!(who(&ended, Modality::Llm), ["llm", "spare"]);
}

/// A model that streams until somebody says otherwise.
struct Changing {
    model: ScriptedLlm,
    now: [Description; 2],
    changed: AtomicBool,
}

impl Changing {
    fn new() -> Self {
        let describe = |streaming| Description {
            id: id("llm"),
            model: "changing".into(),
            streaming,
            networked: false,
        };
        Self {
            model: ScriptedLlm::new("llm").answers([REPLY]),
            now: [describe(true), describe(false)],
            changed: AtomicBool::new(false),
        }
    }
}

impl LanguageModel for Changing {
    fn describe(&self) -> &Description {
        &self.now[usize::from(self.changed.load(Ordering::Relaxed))]
    }

    fn generate(&self, call: ProviderCall, request: LlmRequest) -> ChunkStream<LlmChunk> {
        self.model.generate(call, request)
    }
}

/// F-161: a provider that changes in the middle of a turn is in the plan of the next one, and of none before:
/// the two plans differ in that, and are told apart by their hashes and by what their evidence names.
#[tokio::test(start_paused = true)]
async fn a_change_of_capabilities_counts_from_the_next_turn() {
    let model = Arc::new(Changing::new());
    let said = vec![says(first()), says(after_reply()), says(after_reply())];
    let mut builder = Builder::new(&Cast::default(), said);
    builder.providers.add_llm(model.clone());
    let call = builder.start().await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    model.changed.store(true, Ordering::Relaxed);
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["commit"; 3]);
    let plans = plans(&ended);
    let streams = |turn: usize| {
        let llm = &plans[turn].plan["provider_capabilities"]["llm"]["llm"];
        llm["streaming"].as_bool().expect("it is known")
    };
    assert_eq!([streams(0), streams(1), streams(2)], [true, false, false]);
    assert_ne!(plans[0].plan_hash, plans[1].plan_hash);
    let used: Vec<_> = attempts(&ended, Modality::Llm)
        .iter()
        .map(|attempt| attempt.streaming_used)
        .collect();
    assert_eq!(used, [true, false, false], "each by the plan of its turn");
    for (turn, plan) in plans.iter().enumerate() {
        let evidence = ended.entries.iter().find_map(|entry| match entry {
            Entry::Turn(baseline) if baseline.turn_id == plan.turn_id => Some(baseline),
            _another_entry => None,
        });
        let evidence = evidence.expect("the turn left evidence");
        assert_eq!(evidence.plan_hash, plan.plan_hash, "{turn}");
    }
}

/// F-161: a line that wants another rate in the middle of a reply gets it with the next: each turn's audio
/// goes out as its plan says, the plans differ in that, are named by it and told apart by their hashes.
#[tokio::test(start_paused = true)]
async fn a_change_of_the_line_counts_from_the_next_turn() {
    let said = vec![says(first()), says(after_reply()), says(after_reply())];
    let call = Builder::new(&Cast::default(), said).start().await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    call.line.change_rate(SampleRate::new(8_000).unwrap());
    call.log.until(Signal::PlaybackStarted, 3).await;
    call.line.change_rate(SampleRate::HZ_24000);
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["commit"; 3]);
    let heard: Vec<_> = ended.heard().iter().map(|heard| heard.cut).collect();
    assert_eq!(heard, [false; 3]);
    let plans = plans(&ended);
    let of = |turn: usize| &plans[turn].plan["transport_capabilities"];
    let rates = [0, 1, 2].map(|turn| of(turn)["sink_rate"].as_u64().unwrap());
    assert_eq!(rates, [16_000, 8_000, 8_000]);
    let carried: Vec<Vec<u32>> = ended
        .line
        .rates()
        .into_values()
        .map(|rates| rates.into_iter().collect())
        .collect();
    assert_eq!(carried, [[16_000], [8_000], [8_000]], "as the plans say");
    assert_eq!(of(0)["transport"], "loopback");
    assert_ne!(of(0)["snapshot_ref"], of(1)["snapshot_ref"]);
    assert_eq!(of(1), of(2));
    assert_eq!(
        plans[0].plan["policy_hash"], plans[1].plan["policy_hash"],
        "what the policy decides is the same"
    );
    for plan in plans {
        let text = serde_json::to_string(&plan.plan).unwrap();
        let read: ResolvedTurnPlan = serde_json::from_str(&text).unwrap();
        assert_eq!(read.verify(), Ok(()), "the line is under the hash");
        let mut other = read.clone();
        other.transport_capabilities = None;
        assert!(other.verify().is_err());
    }
}

/// F-161: what a provider can do is frozen with the plan of each turn.
#[tokio::test(start_paused = true)]
async fn a_plan_knows_what_its_providers_can_do() {
    let ended = Builder::new(&Cast::default(), vec![says(first()), says(after_reply())])
        .hold()
        .await;
    for plan in plans(&ended) {
        let llm = &plan.plan["provider_capabilities"]["llm"]["llm"];
        assert_eq!(
            (&llm["streaming"], &llm["networked"]),
            (&true.into(), &false.into())
        );
    }
    assert!(
        attempts(&ended, Modality::Llm)
            .iter()
            .all(|a| a.streaming_used)
    );
}
