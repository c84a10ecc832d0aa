//! Where events go: to all who ask for them, by condition, together again.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_host::node::{NodeContext, Step};
use rspp_proto::{Payload, SessionId, abi::Signal, spec::PipelineSpec};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Cast, Ended, REPLY, first, says},
    nodes::{Probes, custom, edge, forward, get, node},
};
use rspp_transport_api::Ingress;
use serde_json::json;

/// What choices were recorded: which edge was or was not taken.
fn routes(ended: &Ended) -> Vec<(String, bool)> {
    let payloads = ended.log.payloads().into_iter();
    payloads
        .filter_map(|payload| match payload {
            Payload::Debug(note) if note.message == "route" => {
                Some((note.fields["edge"].clone(), note.fields["taken"] == "yes"))
            }
            _something_else => None,
        })
        .collect()
}

fn selections(ended: &Ended) -> Vec<String> {
    let payloads = ended.log.payloads().into_iter();
    payloads
        .filter_map(|payload| match payload {
            Payload::Debug(note) if note.message == "select" => Some(note.fields["input"].clone()),
            _something_else => None,
        })
        .collect()
}

/// Takes the model's own way to the segmenter out, and puts two branches in its place.
fn branches(spec: &mut PipelineSpec, join: &str, a: Option<&str>, b: Option<&str>) {
    spec.edges
        .retain(|edge| !(edge.from.as_str() == "llm" && edge.to.as_str() == "segmenter"));
    spec.nodes.push(custom("a"));
    spec.nodes.push(custom("b"));
    spec.nodes.push(node(json!({ "id": "join", "kind": join })));
    let when = |tier: Option<&str>| {
        tier.map(|tier| json!({ "attribute": "tier", "is": "eq", "value": tier }))
    };
    for (branch, tier) in [("a", a), ("b", b)] {
        let (to_branch, to_join) = if join == "select" {
            (None, when(tier))
        } else {
            (when(tier), None)
        };
        let mut into = json!({ "from": "llm", "to": branch, "carries": "text" });
        if let Some(when) = to_branch {
            into["when"] = when;
        }
        spec.edges.push(edge(into));
        let mut out = json!({ "from": branch, "to": "join", "carries": "text" });
        if let Some(when) = to_join {
            out["when"] = when;
        }
        spec.edges.push(edge(out));
    }
    spec.edges.push(edge(
        json!({ "from": "join", "to": "segmenter", "carries": "text" }),
    ));
}

fn tier(builder: &mut Builder, tier: &str) {
    builder.attributes.insert("tier".into(), tier.into());
}

/// F-004: every node that an output leads to gets every event, in the same order.
#[tokio::test(start_paused = true)]
async fn one_output_reaches_every_node_in_the_same_order() {
    let mut probes = Probes::default();
    let heard: Vec<Arc<Mutex<Vec<u64>>>> = (0..3).map(|_| Arc::default()).collect();
    for (name, heard) in ["x", "y", "z"].iter().zip(&heard) {
        let heard = Arc::clone(heard);
        probes.add(name, move |_nth, _cx: &mut NodeContext, event| {
            heard.lock().unwrap().push(event.stamp.sequence);
            Step::OK
        });
    }
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            for name in ["x", "y", "z"] {
                spec.nodes.push(custom(name));
                spec.edges.push(edge(
                    json!({ "from": "llm", "to": name, "carries": "text" }),
                ));
                spec.edges.push(edge(
                    json!({ "from": name, "to": "egress", "carries": "text" }),
                ));
            }
        })
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, REPLY);
    let expected: Vec<u64> = (1..=9).collect();
    for heard in heard {
        assert_eq!(*heard.lock().unwrap(), expected);
    }
}

/// F-018: an event takes the edges whose conditions hold, and every choice is recorded.
#[tokio::test(start_paused = true)]
async fn conditional_edges_are_taken_by_attribute_and_recorded() {
    for (chosen, taken, other) in [("gold", "a", "b"), ("blue", "b", "a")] {
        let mut probes = Probes::default();
        let hooks = [probes.add("a", forward), probes.add("b", forward)];
        let mut builder = Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(|spec| branches(spec, "merge", Some("gold"), Some("blue")))
            .configure(probes.install());
        tier(&mut builder, chosen);
        let ended = builder.hold().await;
        assert_eq!(ended.endings(), ["commit"], "{:#?}", ended.report);
        assert_eq!(ended.turn(1).agent_text_played, REPLY);
        // Where no word goes nothing ends.
        let events = |name: &str| get(&hooks[usize::from(name == "b")].events);
        assert_eq!((events(taken), events(other)), (9, 0));
        let routes = routes(&ended);
        let of = |name: &str| format!("llm->{name}:text");
        assert_eq!(
            routes.iter().filter(|r| **r == (of(taken), true)).count(),
            8,
            "{routes:?}"
        );
        assert_eq!(
            routes.iter().filter(|r| **r == (of(other), false)).count(),
            8,
            "{routes:?}"
        );
    }
}

/// F-006: a select node forwards the input whose condition holds, and says which.
#[tokio::test(start_paused = true)]
async fn a_select_forwards_the_input_whose_condition_holds() {
    for (chosen, edge) in [("gold", "a->join:text"), ("blue", "b->join:text")] {
        let mut probes = Probes::default();
        let _a = probes.add("a", forward);
        let _b = probes.add("b", forward);
        let mut builder = Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(|spec| branches(spec, "select", Some("gold"), Some("blue")))
            .configure(probes.install());
        tier(&mut builder, chosen);
        let ended = builder.hold().await;
        assert_eq!(ended.endings(), ["commit"], "{:#?}", ended.report);
        assert_eq!(ended.turn(1).agent_text_played, REPLY);
        assert_eq!(selections(&ended), [edge]);
    }
}

/// F-005: a merge gives everything of all its inputs, ordered by when it was made, and ends once.
#[tokio::test(start_paused = true)]
async fn a_merge_gives_all_of_its_inputs_in_order() {
    let mut probes = Probes::default();
    let _a = probes.add("a", forward);
    let _b = probes.add("b", forward);
    // One word after the other: of equal times the first source's would come first.
    let llm = ScriptedLlm::new("llm")
        .answers([REPLY])
        .token_every(Duration::from_millis(50));
    let cast = Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    };
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| branches(spec, "merge", None, None))
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"], "{:#?}", ended.report);
    // Every word twice, since it took both ways.
    let doubled: String = REPLY
        .split_inclusive(' ')
        .flat_map(|word| [word, word])
        .collect();
    let said: String = ended.turn(1).agent_text_played.split_whitespace().collect();
    let expected: String = doubled.split_whitespace().collect();
    assert_eq!(said, expected);
}

/// F-034: a cancel by the client reaches every node of a diamond once, and no other session.
#[tokio::test(start_paused = true)]
async fn a_cancel_reaches_all_of_a_diamond_and_nobody_else() {
    let mut probes = Probes::default();
    let hooks = [probes.add("a", forward), probes.add("b", forward)];
    let llm = ScriptedLlm::new("llm").answers([REPLY]);
    let cast = Cast {
        llm: Arc::new(llm.token_every(Duration::from_millis(150))),
        ..Cast::default()
    };
    let diamond = |name: &str| {
        let mut builder = Builder::new(&cast, vec![says(first())])
            .pipeline(|spec| branches(spec, "merge", None, None));
        builder.session = SessionId::new(name).unwrap();
        builder
    };
    let mut host = Builder::new(&cast, vec![]).configure(probes.install());
    let runtime = host.runtime().await;
    let mut cancelled = diamond("cancelled");
    let client = cancelled.client();
    let cancelled = cancelled.open(&runtime).await.expect("the session opens");
    let beside = diamond("beside")
        .open(&runtime)
        .await
        .expect("the session opens");
    cancelled.log.until(Signal::TurnOpen, 1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    client.send(Ingress::Cancel).unwrap();
    assert_eq!(cancelled.end().await.endings(), ["cancelled"]);
    assert_eq!(beside.end().await.endings(), ["commit"]);
    for hooks in hooks {
        assert_eq!(get(&hooks.cancel), 1, "one of the two sessions' nodes");
        assert_eq!((get(&hooks.init), get(&hooks.stop)), (2, 2));
    }
}
