//! Answers begun on a guess: nothing of one counts before it is right, and being right saves time.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rspp_host::{CpuProbe, ToolRegistry, node::Step};
use rspp_kernel::plan::{Health, ProviderNews};
use rspp_proto::{
    Payload, ProviderId, Speaker, TurnNumber,
    abi::Signal,
    spec::{
        CallPolicy, DegradeSpec, Modality, NodeKind, OverloadSpec, PipelineSpec, SpeculationPolicy,
        Threshold,
    },
};
use rspp_provider_api::{
    LlmRequest, Role, ToolCall, ToolOutput, function,
    scripted::{Answer, Conduct, Script, ScriptedEndOfTurn, ScriptedLlm, ScriptedStt, ScriptedTts},
};
use rspp_tests::{
    call::{Builder, Cast, Ended, REPLY, after_reply, first, says, tone},
    nodes::{Probes, custom, forward, get, insert},
};
use rspp_timeline::{Anchor, Entry};
use rspp_transport_api::loopback::{Start, Utterance};
use serde_json::json;

/// Nobody is ever sure that the user has finished; the model takes 400 ms to its first word.
fn unsure() -> Cast {
    let late = Conduct::good().late(Duration::from_millis(400));
    Cast {
        end_of_turn: Arc::new(ScriptedEndOfTurn::always("eot", 0.2)),
        llm: Arc::new(
            ScriptedLlm::new("llm")
                .answers([REPLY])
                .script(Script::always(late)),
        ),
        ..Cast::default()
    }
}

fn guessing(enabled: bool) -> impl FnOnce(&mut PipelineSpec) {
    move |spec| {
        spec.turns.speculation = SpeculationPolicy {
            enabled,
            ..SpeculationPolicy::default()
        };
    }
}

/// Says something, pauses for 600 ms, and goes on.
fn with_a_pause() -> Vec<Utterance> {
    let length = Duration::from_secs(1);
    let begins = |ms| Utterance {
        audio: tone(length),
        start: Start::At(Duration::from_millis(ms)),
    };
    vec![begins(300), begins(300 + 1_000 + 900)]
}

fn notes(ended: &Ended) -> Vec<String> {
    let payloads = ended.log.payloads().into_iter();
    payloads
        .filter_map(|payload| match payload {
            Payload::Debug(note) if note.message.starts_with("speculation") => {
                let reason = note.fields.get("reason").map_or("", String::as_str);
                Some(format!("{} {reason}", note.message).trim().to_owned())
            }
            _something_else => None,
        })
        .collect()
}

fn metric(ended: &Ended, name: &str) -> f64 {
    let payloads = ended.log.payloads().into_iter();
    payloads
        .filter_map(|payload| match payload {
            Payload::Metrics(sample) if sample.name == name => Some(sample.value),
            _something_else => None,
        })
        .sum()
}

/// P9: a guess that is right is heard earlier by all the time that its model had needed.
#[tokio::test(start_paused = true)]
async fn a_right_guess_is_heard_earlier_by_the_time_it_saved() {
    let first_audio = async |enabled: bool| {
        let cast = unsure();
        let ended = Builder::new(&cast, vec![says(first())])
            .pipeline(guessing(enabled))
            .hold()
            .await;
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.turn(1).agent_text_played, REPLY);
        assert_eq!(ended.turn(1).user_text, "hello there");
        assert_eq!(cast.llm.tally().calls, 1, "one answer, one call");
        let stats = ended.report.speculation;
        assert_eq!(stats.promoted, u64::from(enabled));
        assert_eq!(stats.discarded, 0);
        if enabled {
            assert_eq!(notes(&ended), ["speculation_begun", "speculation_promoted"]);
            assert_eq!(
                stats.head_start_ms, 1_500,
                "the whole of the longest silence"
            );
        } else {
            assert!(notes(&ended).is_empty());
        }
        // The plan says whether it is on, and evidence is complete either way.
        let plans = ended.entries.iter().filter_map(|entry| match entry {
            Entry::Plan(plan) => Some(plan.plan["turns"]["speculation"]["enabled"].clone()),
            _something_else => None,
        });
        assert_eq!(plans.collect::<Vec<_>>(), [json!(enabled)]);
        ended.turn(1).first_audio_ms.unwrap()
    };
    let (with, without) = (first_audio(true).await, first_audio(false).await);
    let saved = without - with;
    assert!(
        (380.0..=440.0).contains(&saved),
        "{without} ms, then {with} ms"
    );
}

/// P9, P10: whoever goes on speaking gets no answer to half a sentence; the call is aborted, and what
/// it cost is counted.
#[tokio::test(start_paused = true)]
async fn a_wrong_guess_leaves_nothing_but_its_bill() {
    let asked = Arc::new(Mutex::new(Vec::<LlmRequest>::new()));
    let seen = Arc::clone(&asked);
    let llm = ScriptedLlm::new("llm").answer_with(move |request| {
        seen.lock().unwrap().push(request.clone());
        "Well, let me tell you a very long story. It begins in a small town by the sea."
    });
    let cast = Cast {
        llm: Arc::new(llm.token_every(Duration::from_millis(50))),
        ..unsure()
    };
    let ended = Builder::new(&cast, with_a_pause())
        .pipeline(guessing(true))
        .hold()
        .await;
    assert_eq!(
        notes(&ended),
        [
            "speculation_begun",
            "speculation_discarded user_went_on",
            "speculation_begun",
            "speculation_promoted"
        ]
    );
    // One turn, answered once, with all the words; the number of the guess is not used again.
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(2).user_text, "hello there and again");
    assert_eq!(ended.heard().len(), 1);
    assert_eq!(ended.heard()[0].turn, TurnNumber(2));
    assert_eq!(ended.log.signals_of(Signal::TurnOpen).len(), 1);
    assert_eq!(ended.log.signals_of(Signal::TurnOpenProposed).len(), 1);
    assert!(ended.signals_of(1).is_empty(), "{:?}", ended.signals_of(1));
    // Nobody was shown a word of it, and the model was told nothing of it.
    let shown = ended.log.texts(Speaker::Agent);
    assert!(shown.iter().all(|text| text.text.len() < 60));
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 2);
    let users = asked[1].messages.iter().filter(|m| m.role == Role::User);
    assert_eq!(
        users.map(|m| m.content.as_str()).collect::<Vec<_>>(),
        ["hello there and again"]
    );
    // The provider was really told to stop, in the middle of its answer.
    let tally = cast.llm.tally();
    assert_eq!(
        (tally.calls, tally.cancelled, tally.chunks_after_cancel),
        (2, 1, 0)
    );
    let stats = ended.report.speculation;
    assert_eq!((stats.begun, stats.promoted, stats.discarded), (2, 1, 1));
    assert!((3..=17).contains(&stats.wasted_tokens), "{stats:?}");
    assert!(stats.wasted_characters > 0, "{stats:?}");
    assert!(metric(&ended, "speculation_wasted_tokens") as u64 == stats.wasted_tokens);
    assert!(metric(&ended, "speculation_wasted_characters") as u64 == stats.wasted_characters);
}

/// P9: a guess asks for tools, but none runs before it is right; foreign nodes do not begin for it.
#[tokio::test(start_paused = true)]
async fn no_tool_and_no_foreign_node_works_for_a_guess() {
    let ran = Arc::new(Mutex::new(Vec::new()));
    let runs = Arc::clone(&ran);
    let mut tools = ToolRegistry::default();
    let order = function(move |run| {
        runs.lock().unwrap().push(run.turn.to_string());
        async { Ok(ToolOutput::new("It is ordered.")) }
    });
    tools.register("order", order);
    let llm = ScriptedLlm::new("llm").answer_with(|request: &LlmRequest| {
        let last = request.messages.last().unwrap();
        if last.role == Role::Tool {
            return Answer::from(last.content.clone());
        }
        Answer {
            text: String::new(),
            tool_calls: vec![ToolCall {
                id: "a".to_owned(),
                name: "order".to_owned(),
                arguments: "{}".to_owned(),
            }],
        }
    });
    let cast = Cast {
        llm: Arc::new(llm),
        ..unsure()
    };
    let mut probes = Probes::default();
    let hooks = probes.add("filter", |nth, cx, event| -> Step<'_> {
        forward(nth, cx, event)
    });
    let install = probes.install();
    let ended = Builder::new(&cast, with_a_pause())
        .pipeline(guessing(true))
        .pipeline(|spec| {
            let llm = spec
                .nodes
                .iter_mut()
                .find(|node| node.kind == NodeKind::Llm)
                .unwrap();
            let order = json!([{ "name": "order", "description": "Orders." }]);
            llm.tools = serde_json::from_value(order).unwrap();
            insert(spec, "segmenter", custom("filter"), "tts");
        })
        .configure(|config| {
            install(config);
            config.tools = Arc::new(tools);
        })
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.report.speculation.discarded, 1);
    assert_eq!(ended.turn(2).agent_text_played, "It is ordered.");
    // Both guesses asked for it; the one that was right got it, once.
    assert_eq!(*ran.lock().unwrap(), ["turn-0002"]);
    let journal = ended
        .entries
        .iter()
        .filter(|entry| matches!(entry, Entry::Tool(_)));
    assert!(
        journal
            .clone()
            .all(|entry| entry.turn_id() == Some(&TurnNumber(2).id()))
    );
    assert_eq!(journal.count(), 3);
    // F-012, P9: its hooks ran for the turn, not for the guess.
    assert_eq!(
        (get(&hooks.init), get(&hooks.start), get(&hooks.stop)),
        (1, 1, 1)
    );
}

/// P10: a budget of guesses bounds what may be wasted.
#[tokio::test(start_paused = true)]
async fn guesses_stay_within_their_budget() {
    for (policy, begun) in [
        (
            SpeculationPolicy {
                max_per_minute: 1,
                ..SpeculationPolicy::default()
            },
            1,
        ),
        (
            SpeculationPolicy {
                max_wasted_tokens_per_minute: 1,
                ..SpeculationPolicy::default()
            },
            1,
        ),
        (SpeculationPolicy::default(), 2),
    ] {
        let mut cast = unsure();
        cast.llm = Arc::new(
            ScriptedLlm::new("llm")
                .answers([REPLY])
                .token_every(Duration::from_millis(20)),
        );
        let ended = Builder::new(&cast, with_a_pause())
            .pipeline(|spec| {
                spec.turns.speculation = SpeculationPolicy {
                    enabled: true,
                    ..policy
                };
            })
            .hold()
            .await;
        assert_eq!(ended.endings(), ["commit"]);
        let stats = ended.report.speculation;
        assert_eq!(
            (stats.begun, stats.withheld),
            (begun, 2 - begun),
            "{stats:?}"
        );
        assert_eq!(cast.llm.tally().calls, 2);
    }
}

/// P9: recognition that changes its mind, a caller who types, a caller who hangs up: no guess stays.
#[tokio::test(start_paused = true)]
async fn no_guess_outlives_what_disproves_it() {
    // The user hangs up in the pause.
    let mut cast = unsure();
    cast.tts = Arc::new(ScriptedTts::new("tts").real_time_factor(0.5));
    let mut builder = Builder::new(&cast, vec![says(first())]).pipeline(guessing(true));
    let client = builder.client();
    let call = builder.start().await;
    tokio::time::sleep(Duration::from_millis(2_400)).await;
    assert_eq!(cast.llm.tally().calls, 1, "a guess is being made");
    client
        .send(rspp_transport_api::Ingress::Text(
            "something else".to_owned(),
        ))
        .expect("the call goes on");
    let ended = call.end().await;
    assert_eq!(notes(&ended)[1], "speculation_discarded words_differ");
    assert_eq!(ended.turn(2).user_text, "something else");
    assert_eq!(ended.heard()[0].turn, TurnNumber(2));

    let cast = Cast {
        stt: Arc::new(ScriptedStt::new("stt").utterances(["hello there"])),
        ..unsure()
    };
    let call = Builder::new(&cast, vec![says(first())])
        .pipeline(guessing(true))
        .start()
        .await;
    tokio::time::sleep(Duration::from_millis(2_400)).await;
    call.session.drain();
    let ended = call.end().await;
    assert_eq!(
        notes(&ended),
        ["speculation_begun", "speculation_discarded session_over"]
    );
    assert!(ended.report.turns.is_empty());
    assert!(ended.heard().is_empty());
}

/// A sure end of turn is no guess, and the next turn after a promoted one is like any other.
#[tokio::test(start_paused = true)]
async fn guesses_and_certainty_go_together() {
    let cast = Cast {
        end_of_turn: Arc::new(ScriptedEndOfTurn::always("eot", 1.0)),
        ..unsure()
    };
    let ended = Builder::new(&cast, vec![says(first()), says(after_reply())])
        .pipeline(guessing(true))
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit", "commit"]);
    assert_eq!(ended.report.speculation.begun, 0);

    let ended = Builder::new(&unsure(), vec![says(first()), says(after_reply())])
        .pipeline(guessing(true))
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit", "commit"]);
    assert_eq!(ended.report.speculation.promoted, 2);
    assert_eq!(ended.turn(2).turn_id, TurnNumber(2).id());
}

/// A second model, which is asked after the cast's own.
fn with_spare(cast: &Cast) -> Builder {
    let mut builder = Builder::new(cast, vec![says(first())]).pipeline(guessing(true));
    let spare = ScriptedLlm::new("spare").answers(["It is the spare one."]);
    builder.providers.add_llm(Arc::new(spare));
    let ids = ["llm", "spare"].map(|id| ProviderId::new(id).unwrap());
    let bound = &mut builder.settings.defaults.provider_bindings;
    bound.insert(Modality::Llm, ids.into());
    builder
}

/// F-046, P9: a guess that became a turn has the turn's time and no more: a model that says nothing is
/// given up while another still fits, however patient the guess was.
#[tokio::test(start_paused = true)]
async fn a_promoted_guess_is_held_to_its_turns_deadlines() {
    let silent = Script::always(Conduct::good().stalling_after(0));
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([REPLY]).script(silent)),
        ..unsure()
    };
    let ended = with_spare(&cast)
        .pipeline(|spec| {
            spec.budgets.provider_first_byte_ms = Some(10_000);
            spec.providers.calls = Some(Box::new(CallPolicy {
                attempts_per_provider: 1,
                ..CallPolicy::default()
            }));
        })
        .hold()
        .await;
    assert_eq!(ended.report.speculation.promoted, 1);
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, "It is the spare one.");
    let attempts: Vec<_> = ended
        .entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Attempt(attempt) if attempt.modality == Modality::Llm => Some(&**attempt),
            _something_else => None,
        })
        .collect();
    let asked: Vec<_> = attempts.iter().map(|it| it.provider_id.as_str()).collect();
    assert_eq!(asked, ["llm", "spare"]);
    // Half of what was left for it since the guess began, as for any turn.
    let opened = ended.turn(1).anchors.get(Anchor::TurnOpenEmitted).unwrap();
    let since = attempts[0].started_at;
    let budget = Duration::from_secs(2);
    let given_up = attempts[0].ended_at.since(since);
    assert_eq!(given_up, ((opened + budget).since(since)) / 2);
}

/// F-048, F-149, P9: where the turn would run by another plan than its guess was begun with, in the
/// degrade posture or with other providers, the guess comes to nothing and the turn runs its own.
#[tokio::test(start_paused = true)]
async fn a_guess_is_not_promoted_into_another_plan() {
    #[derive(Debug, Default)]
    struct Cpu(AtomicU64);
    impl CpuProbe for Cpu {
        fn cpu_percent(&self) -> Option<u64> {
            Some(self.0.load(Ordering::Relaxed))
        }
    }
    let spare_is_first = || {
        let ids = [ProviderId::new("spare").unwrap()];
        [(Modality::Llm, ids.into())].into()
    };
    for busy in [true, false] {
        let cpu = Arc::<Cpu>::default();
        let probe = Arc::clone(&cpu);
        let call = with_spare(&unsure())
            .configure(move |config| {
                config.cpu = probe;
                config.limits.overload = OverloadSpec {
                    cpu_percent: Some(Threshold {
                        low: 50,
                        high: 80,
                        severe: 95,
                    }),
                    ..OverloadSpec::default()
                };
            })
            .pipeline(|spec| {
                spec.degrade = Some(DegradeSpec {
                    provider_bindings: spare_is_first(),
                    ..DegradeSpec::default()
                });
            })
            .start()
            .await;
        // In the pause, after the guess was begun and before it is the turn.
        tokio::time::sleep(Duration::from_millis(2_400)).await;
        if busy {
            cpu.0.store(85, Ordering::Relaxed);
        } else {
            let ill = ProviderNews {
                health: Health::Unhealthy,
                price_micros: None,
            };
            let llm = (Modality::Llm, ProviderId::new("llm").unwrap());
            call.runtime.provider_board().publish([(llm, ill)].into());
        }
        let ended = call.end().await;
        assert_eq!(
            notes(&ended),
            ["speculation_begun", "speculation_discarded plan_differs"]
        );
        let stats = ended.report.speculation;
        assert_eq!((stats.promoted, stats.discarded), (0, 1));
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.turn(2).agent_text_played, "It is the spare one.");
        let degraded = ended.log.reasons_of(Signal::Degrade);
        let expected: &[&str] = if busy {
            &["overload_degrade_posture"]
        } else {
            &[]
        };
        assert_eq!(degraded, expected);
        let plans = ended.entries.iter().filter_map(|entry| match entry {
            Entry::Plan(plan) => Some(plan.plan["node_bindings"]["llm"][0].clone()),
            _something_else => None,
        });
        assert_eq!(plans.collect::<Vec<_>>(), ["spare"]);
        assert!(ended.signals_of(1).is_empty(), "a guess is no turn");
    }
}
