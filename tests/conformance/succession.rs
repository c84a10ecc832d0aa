//! A session that another placement takes over: what was done is not done again.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use rspp_controlplane_api::{LocalLeases, MemoryStore};
use rspp_host::{Config, ToolRegistry};
use rspp_proto::{
    IdempotencyKey, Payload, SessionId,
    abi::Signal,
    spec::{NodeKind, PipelineSpec},
};
use rspp_provider_api::{
    LlmRequest, Role, Tool, ToolCall, ToolOutput, function,
    scripted::{Answer, ScriptedLlm},
};
use rspp_tests::{
    call::{Builder, Call, Cast, Ended, after_reply, first, says},
    wire::{Opening, Wire},
};
use rspp_timeline::{Entry, ToolStep};
use rspp_transport_api::{Ingress, Stamped};
use serde_json::json;

/// What all placements of a session share.
#[derive(Clone)]
struct Fleet {
    leases: Arc<LocalLeases>,
    store: Arc<MemoryStore>,
    /// Orders that were carried out.
    effects: Arc<AtomicU32>,
    /// Another placement takes the session over while the model answers.
    loses: bool,
}

impl Fleet {
    fn new() -> Self {
        let leases = Arc::new(LocalLeases::default());
        Self {
            store: Arc::new(MemoryStore::new(Arc::<LocalLeases>::clone(&leases))),
            leases,
            effects: Arc::default(),
            loses: false,
        }
    }

    fn join(&self) -> impl FnOnce(&mut Config) + 'static {
        let (leases, store) = (Arc::clone(&self.leases), Arc::clone(&self.store));
        move |config| {
            config.leases = leases;
            config.store = Some(store);
        }
    }

    fn take_away(&self) {
        let session = SessionId::new("call").unwrap();
        let _lease = self.leases.acquire(&session).unwrap();
    }

    /// A tool that has its effect at once, and takes so long to say so.
    fn order(&self, takes: Duration) -> Arc<dyn Tool> {
        let effects = Arc::clone(&self.effects);
        function(move |_run| {
            let nth = effects.fetch_add(1, Relaxed) + 1;
            async move {
                tokio::time::sleep(takes).await;
                Ok(ToolOutput::new(format!("order {nth} is placed")))
            }
        })
    }

    /// A call whose model orders one pizza unless it has just been told of an order.
    fn caller(&self, turns: usize, takes: Duration, effects: &str, asked: &Asked) -> Builder {
        let (seen, fleet) = (Arc::clone(asked), self.clone());
        let llm = ScriptedLlm::new("llm").answer_with(move |request| {
            seen.lock().unwrap().push(request.clone());
            if fleet.loses {
                fleet.take_away();
            }
            match request.messages.last() {
                Some(last) if last.role == Role::Tool => last.content.as_str().into(),
                Some(_) | None => Answer {
                    text: String::new(),
                    tool_calls: vec![ToolCall {
                        id: "call_0".to_owned(),
                        name: "order".to_owned(),
                        arguments: r#"{"pizza": 1}"#.to_owned(),
                    }],
                },
            }
        });
        let cast = Cast {
            llm: Arc::new(llm),
            ..Cast::default()
        };
        let (join, tool) = (self.join(), self.order(takes));
        let mut said = vec![says(first())];
        said.extend((1..turns).map(|_| says(after_reply())));
        let declared = json!([{
            "name": "order",
            "description": "Orders.",
            "parameters": { "type": "object" },
            "effects": effects,
            "timeout_ms": 30_000,
        }]);
        Builder::new(&cast, said)
            .pipeline(move |spec: &mut PipelineSpec| {
                let mut nodes = spec.nodes.iter_mut();
                let llm = nodes.find(|node| node.kind == NodeKind::Llm);
                llm.expect("there is a model").tools = serde_json::from_value(declared).unwrap();
            })
            .configure(move |config| {
                join(config);
                let mut tools = ToolRegistry::default();
                tools.register("order", tool);
                config.tools = Arc::new(tools);
            })
    }

    async fn until_ordered(&self, times: u32) {
        while self.effects.load(Relaxed) < times {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

type Asked = Arc<Mutex<Vec<LlmRequest>>>;

const LONG: Duration = Duration::from_secs(8);
const SHORT: Duration = Duration::from_millis(100);

fn steps(ended: &Ended) -> Vec<ToolStep> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Tool(step) => Some(step.step),
            _something_else => None,
        })
        .collect()
}

fn notes(ended: &Ended, name: &str) -> usize {
    let entries = ended.entries.iter();
    entries
        .filter(|entry| match entry {
            Entry::Event(event) => {
                matches!(&event.record.payload, Some(Payload::Debug(note)) if note.message == name)
            }
            _something_else => false,
        })
        .count()
}

async fn ended(call: Call) -> Ended {
    call.end().await
}

/// F-158, F-155, P7: an order that the old writer had begun when it was replaced is not placed again by the
/// new one, whose model was not told of it; it is told what is known, and the turns do not share a number.
#[tokio::test(start_paused = true)]
async fn an_order_that_was_begun_is_not_placed_again_by_the_next_placement() {
    let (fleet, asked) = (Fleet::new(), Asked::default());
    let before = fleet.caller(1, LONG, "external", &asked).start().await;
    fleet.until_ordered(1).await;
    asked.lock().unwrap().clear();
    let after = fleet.caller(1, SHORT, "external", &asked).start().await;
    after.log.until(Signal::Close, 1).await;
    assert_eq!(fleet.effects.load(Relaxed), 1, "it was ordered once");
    let after = ended(after).await;
    assert_eq!(after.endings(), ["commit"]);
    let turn = after.report.turns.first().unwrap();
    assert_eq!(
        turn.turn_id.as_str(),
        "turn-0002",
        "the first was another's"
    );
    assert!(
        turn.agent_text.contains("may or may not have taken effect"),
        "{}",
        turn.agent_text
    );
    assert_eq!(steps(&after), [ToolStep::Requested, ToolStep::Abandoned]);
    assert_eq!(notes(&after, "succession"), 1);
    // The model was shown it from the start.
    {
        let asked = asked.lock().unwrap();
        let shown = asked[0].messages.iter().find(|it| it.role == Role::Tool);
        assert!(shown.is_some_and(|it| it.content.contains("begun before the session moved")));
    }
    let before = ended(before).await;
    assert!(before.report.epoch < after.report.epoch);
    assert_eq!(fleet.effects.load(Relaxed), 1);
}

/// F-158: an order that was placed, but of which no reply has told, is answered with its result.
#[tokio::test(start_paused = true)]
async fn a_result_that_nobody_was_told_is_told_by_the_next_placement() {
    let (fleet, asked) = (Fleet::new(), Asked::default());
    let before = fleet.caller(1, SHORT, "external", &asked).start().await;
    before.log.until(Signal::PlaybackStarted, 1).await;
    assert_eq!(fleet.effects.load(Relaxed), 1);
    let after = fleet.caller(1, SHORT, "external", &asked).start().await;
    let after = ended(after).await;
    assert_eq!(after.endings(), ["commit"]);
    assert_eq!(after.report.turns[0].agent_text, "order 1 is placed");
    assert_eq!(fleet.effects.load(Relaxed), 1);
    let _before = ended(before).await;
}

/// F-158: once a reply has told of an order, the next one is another order, wherever it is placed; and what
/// only looks something up is looked up again.
#[tokio::test(start_paused = true)]
async fn what_was_told_may_be_ordered_again_and_what_has_no_effects_always() {
    for (effects, moves_after) in [
        ("external", Signal::Close),
        ("none", Signal::PlaybackStarted),
    ] {
        let (fleet, asked) = (Fleet::new(), Asked::default());
        let before = fleet.caller(1, SHORT, effects, &asked).start().await;
        before.log.until(moves_after, 1).await;
        let after = ended(fleet.caller(2, SHORT, effects, &asked).start().await).await;
        assert_eq!(after.endings(), ["commit", "commit"], "{effects}");
        assert_eq!(fleet.effects.load(Relaxed), 3, "{effects}");
        let _before = ended(before).await;
    }
}

/// F-156, F-158: a placement that was replaced and does not know it places no order: the store does not let it
/// write it down.
#[tokio::test(start_paused = true)]
async fn a_placement_that_was_replaced_places_no_order() {
    let (fleet, asked) = (Fleet::new(), Asked::default());
    let fleet = Fleet {
        loses: true,
        ..fleet
    };
    let call = fleet.caller(1, SHORT, "external", &asked).start().await;
    let call = ended(call).await;
    assert_eq!(fleet.effects.load(Relaxed), 0, "it was not for it to order");
    assert_eq!(steps(&call), [ToolStep::Requested, ToolStep::Refused]);
}

/// F-158: a key under which the old writer has let an event take effect has no second effect at the new one.
#[tokio::test(start_paused = true)]
async fn a_key_is_known_to_the_next_placement() {
    let fleet = Fleet::new();
    let opening = || Opening {
        configure: Box::new(fleet.join()),
        ..Opening::default()
    };
    let send = |key: &str, text: &str| {
        Ingress::Stamped(Box::new(Stamped {
            epoch: None,
            key: Some(IdempotencyKey::new(key).unwrap()),
            event: Ingress::Text(text.to_owned()),
        }))
    };
    let before = Wire::open(&Cast::default(), opening()).await;
    before.send(send("order-1", "one pizza"));
    before.until(Signal::Close, 1).await;
    let after = Wire::open(&Cast::default(), opening()).await;
    after.send(send("order-1", "one pizza"));
    tokio::time::sleep(Duration::from_secs(3)).await;
    after.send(send("order-2", "and a salad"));
    after.until(Signal::Close, 1).await;
    let after = after.end().await;
    let turns: Vec<_> = after
        .report
        .turns
        .iter()
        .map(|it| it.user_text.as_str())
        .collect();
    assert_eq!(turns, ["and a salad"]);
    let repeated = after.entries.iter().filter_map(|entry| match entry {
        Entry::Event(event) => match &event.record.payload {
            Some(Payload::Debug(note)) if note.message == "duplicate_event" => {
                Some(&event.record.envelope)
            }
            _another_payload => None,
        },
        _another_entry => None,
    });
    let repeated: Vec<_> = repeated.collect();
    assert_eq!(repeated.len(), 1);
    assert_eq!(
        repeated[0].idempotency_key.as_ref().unwrap().as_str(),
        "order-1"
    );
    assert!(
        repeated[0].causal_parent_id.is_some(),
        "it names the first time"
    );
    let _before = before.end().await;
}
