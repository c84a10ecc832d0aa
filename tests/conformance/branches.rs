//! A turn over several branches: it is over when all of them are, and whoever stands in for another goes on
//! where that one was.

use std::{
    sync::{Arc, Mutex, atomic::AtomicU32},
    time::Duration,
};

use rspp_host::{
    Event,
    node::{NodeContext, NodeError, Step},
};
use rspp_proto::{Payload, spec::PipelineSpec};
use rspp_provider_api::{
    Fault,
    scripted::{Conduct, Script, ScriptedLlm, ScriptedTts},
};
use rspp_tests::{
    call::{Builder, Cast, Ended, REPLY, first, says},
    nodes::{Probes, add, custom, edge, forward, insert, node},
};
use rspp_transport_api::Outgoing;
use serde_json::{Value, json};

/// Passes on what it gets, that much later.
fn late(ms: u64) -> impl for<'a> Fn(u32, &'a mut NodeContext, Event) -> Step<'a> {
    move |_nth, cx, event| {
        Step::Wait(Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            cx.forward(event);
            Ok(())
        }))
    }
}

/// A second way from `from` to `to`, through the node `side`.
fn beside(spec: &mut PipelineSpec, from: &str, to: &str) {
    spec.nodes.push(custom("side"));
    spec.edges.push(edge(
        json!({ "from": from, "to": "side", "carries": "text" }),
    ));
    spec.edges
        .push(edge(json!({ "from": "side", "to": to, "carries": "text" })));
}

fn when(spec: &mut PipelineSpec, from: &str, to: &str, when: &Value) {
    let mut edges = spec.edges.iter_mut();
    let found = edges.find(|edge| edge.from.as_str() == from && edge.to.as_str() == to);
    let found = found.expect("there is such an edge");
    found.when = Some(serde_json::from_value(when.clone()).expect("a condition"));
}

fn vip() -> Value {
    json!({ "attribute": "vip", "is": "eq", "value": true })
}

async fn talk(probes: Probes, change: impl FnOnce(&mut PipelineSpec)) -> Ended {
    Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(change)
        .configure(probes.install())
        .hold()
        .await
}

/// F-004, F-018, P14: where two branches meet the turn goes on until both have said their part, although the
/// first is at its end long before.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_branch_is_not_the_end_of_the_turn() {
    let mut probes = Probes::default();
    probes.add("side", late(200));
    let ended = talk(probes, |spec| {
        beside(spec, "segmenter", "tts");
        when(spec, "segmenter", "tts", &vip());
    })
    .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, REPLY);
}

/// F-004, P14: what a late branch says is heard too, after all that was said before it.
#[tokio::test(start_paused = true)]
async fn a_late_branch_is_heard() {
    let mut probes = Probes::default();
    probes.add("side", late(1_000));
    let ended = talk(probes, |spec| beside(spec, "segmenter", "tts")).await;
    assert_eq!(ended.endings(), ["commit"]);
    let turn = ended.turn(1);
    assert_eq!(turn.agent_text_played, turn.agent_text);
    assert_eq!(turn.agent_text_played, format!("{REPLY} {REPLY}"));
}

/// F-004: nor is the end of what is heard, while text for the user is on its way.
#[tokio::test(start_paused = true)]
async fn text_for_the_user_comes_before_the_end_of_its_turn() {
    let mut probes = Probes::default();
    probes.add("side", late(1_000));
    let mut builder = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| beside(spec, "segmenter", "egress"))
        .configure(probes.install());
    let mut screen = builder.screen();
    let ended = builder.hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    let mut shown = Vec::new();
    while let Ok(sent) = screen.try_recv() {
        if let Outgoing::Text {
            turn: Some(_),
            text,
        } = sent
        {
            shown.push(text.text.to_string());
        }
    }
    let clauses = ["Good day to you.", "How can I help?"];
    assert_eq!(shown.len(), 4, "{shown:?}");
    assert_eq!(shown[2..], clauses, "at last: {shown:?}");
}

/// F-018, F-004: the user's words go to the models whose condition holds, and the turn waits for no other.
#[tokio::test(start_paused = true)]
async fn the_users_words_go_where_their_condition_holds() {
    for (is_vip, heard) in [(true, "At your service."), (false, REPLY)] {
        let butler = Arc::new(ScriptedLlm::new("butler").answers(["At your service."]));
        let cast = Cast::default();
        let mut builder = Builder::new(&cast, vec![says(first())]).pipeline(|spec| {
            spec.nodes.push(node(
                json!({ "id": "other", "kind": "llm", "provider": "butler" }),
            ));
            spec.edges.push(edge(
                json!({ "from": "turn", "to": "other", "carries": "text", "when": vip() }),
            ));
            spec.edges.push(edge(
                json!({ "from": "other", "to": "segmenter", "carries": "text" }),
            ));
            let others = json!({ "attribute": "vip", "is": "ne", "value": true });
            when(spec, "turn", "llm", &others);
        });
        builder.providers.add_llm(butler.clone());
        builder.attributes.insert("vip".to_owned(), is_vip.into());
        let ended = builder.hold().await;
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.turn(1).agent_text_played, heard);
        assert_eq!(butler.tally().calls > 0, is_vip);
        assert_eq!(cast.llm.tally().calls > 0, !is_vip);
    }
}

/// F-018: a turn whose words go nowhere is over at once; no model is asked.
#[tokio::test(start_paused = true)]
async fn words_that_no_condition_lets_pass_are_answered_by_nobody() {
    let cast = Cast::default();
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| when(spec, "turn", "llm", &vip()))
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text, "");
    assert_eq!(cast.llm.tally().calls, 0);
}

/// F-018: the end of a stream goes where the stream went: a node that a condition kept everything from is told
/// of nothing, nor is who is behind it; and the turn does not wait for them.
#[tokio::test(start_paused = true)]
async fn the_end_goes_only_where_the_stream_went() {
    for (is_vip, told) in [
        (true, ["text", "text", "end"].as_slice()),
        (false, [].as_slice()),
    ] {
        let mut probes = Probes::default();
        let lists = ["side", "next"].map(|name| {
            let list = Arc::<Mutex<Vec<&str>>>::default();
            let to = Arc::clone(&list);
            probes.add(name, move |_nth, cx: &mut NodeContext, event: Event| {
                let what = match &event.payload {
                    Payload::Text(_) => "text",
                    Payload::TextEnd => "end",
                    _nothing_of_text => "other",
                };
                to.lock().unwrap().push(what);
                cx.forward(event);
                Step::OK
            });
            list
        });
        let mut builder = Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(|spec| {
                beside(spec, "segmenter", "egress");
                when(spec, "segmenter", "side", &vip());
                insert(spec, "side", custom("next"), "egress");
            })
            .configure(probes.install());
        builder.attributes.insert("vip".to_owned(), is_vip.into());
        let ended = builder.hold().await;
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(ended.turn(1).agent_text_played, REPLY);
        for list in lists {
            assert_eq!(*list.lock().unwrap(), told, "vip: {is_vip}");
        }
    }
}

/// F-018: nor is a node told of an end of words that no condition let pass to it.
#[tokio::test(start_paused = true)]
async fn whom_the_words_do_not_reach_is_told_of_nothing() {
    let mut probes = Probes::default();
    let hooks = probes.add("probe", forward);
    let ended = talk(probes, |spec| {
        insert(spec, "turn", custom("probe"), "llm");
        when(spec, "turn", "probe", &vip());
    })
    .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text, "");
    assert_eq!(rspp_tests::nodes::get(&hooks.events), 0);
}

/// F-018: what the user says goes into an edge only if its condition holds for the session.
#[tokio::test(start_paused = true)]
async fn audio_goes_where_the_sessions_attributes_let_it() {
    for is_vip in [true, false] {
        let mut probes = Probes::default();
        let heard = probes.add("ear", forward);
        let mut builder = Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(|spec| {
                spec.nodes.push(custom("ear"));
                spec.edges.push(edge(
                    json!({ "from": "ingress", "to": "ear", "carries": "audio", "when": vip() }),
                ));
            })
            .configure(probes.install());
        builder.attributes.insert("vip".to_owned(), is_vip.into());
        let ended = builder.hold().await;
        assert_eq!(ended.endings(), ["commit"]);
        assert_eq!(rspp_tests::nodes::get(&heard.events) > 0, is_vip);
    }
}

/// F-135: an apology is heard, and its turn is over, however many branches lead to the voice.
#[tokio::test(start_paused = true)]
async fn an_apology_waits_for_no_branch() {
    let mut cast = Cast::default();
    let refuses = Conduct::good().failing_after(0, Fault::model("a planted fault"));
    cast.llm = Arc::new(
        ScriptedLlm::new("llm")
            .answers([REPLY])
            .script(Script::calls([refuses])),
    );
    let mut probes = Probes::default();
    probes.add("side", late(200));
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| {
            beside(spec, "segmenter", "tts");
            beside_text(spec);
            let failure = json!({ "reply": "I am sorry." });
            spec.providers.failure = serde_json::from_value(failure).unwrap();
        })
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["provider_failure", "commit"]);
    assert_eq!(ended.turn(2).agent_text_played, "I am sorry.");
}

fn beside_text(spec: &mut PipelineSpec) {
    spec.edges.push(edge(
        json!({ "from": "side", "to": "egress", "carries": "text" }),
    ));
}

/// What goes wrong with a node at its second event.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Fails,
    Panics,
    Hangs,
}

/// F-158, P14, F-007: a standby goes on after what was said; nothing is said twice, and nothing is left out.
#[tokio::test(start_paused = true)]
async fn a_standby_goes_on_where_its_predecessor_was() {
    for trouble in [Trouble::Fails, Trouble::Panics, Trouble::Hangs] {
        let mut probes = Probes::default();
        let seen = AtomicU32::new(0);
        probes.add("probe", move |_nth, cx: &mut NodeContext, event: Event| {
            if add(&seen) == 1 {
                cx.forward(event);
                return Step::OK;
            }
            match trouble {
                Trouble::Fails => Step::Done(Err(NodeError::new("a planted fault"))),
                Trouble::Panics => panic!("a planted fault"),
                Trouble::Hangs => Step::Wait(Box::pin(std::future::pending())),
            }
        });
        probes.add("spare", forward);
        let ended = talk(probes, |spec| {
            let mut probe = custom("probe");
            probe.fallback = Some("spare".parse().unwrap());
            insert(spec, "segmenter", probe, "tts");
            spec.nodes.push(custom("spare"));
        })
        .await;
        assert_eq!(ended.endings(), ["commit"], "{trouble:?}");
        assert_eq!(ended.turn(1).agent_text_played, REPLY, "{trouble:?}");
    }
}

/// F-158, P14: what a node has taken in without a word yet is told to its standby; what it has said
/// something of is not, since nobody can tell how much.
#[tokio::test(start_paused = true)]
async fn what_was_said_in_part_is_not_said_again() {
    let mut probes = Probes::default();
    probes.add("probe", |nth, cx: &mut NodeContext, event: Event| {
        if nth > 1 || matches!(event.payload, Payload::TextEnd) {
            return Step::OK; // Kept for later, and later never comes.
        }
        Step::Wait(Box::pin(async move {
            let Payload::Text(mut chunk) = event.payload else {
                return Ok(());
            };
            chunk.text = "Good day".into();
            let media = event.stamp.media;
            cx.emit_now(Payload::Text(chunk), media, 0).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            Err(NodeError::new("a planted fault"))
        }))
    });
    probes.add("spare", forward);
    let ended = talk(probes, |spec| {
        let mut probe = custom("probe");
        probe.fallback = Some("spare".parse().unwrap());
        insert(spec, "segmenter", probe, "tts");
        spec.nodes.push(custom("spare"));
    })
    .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.turn(1).agent_text_played, "Good day How can I help?");
}

/// F-007, P14: a voice that breaks off in a clause is followed by one that goes on with the next.
#[tokio::test(start_paused = true)]
async fn a_second_voice_does_not_begin_the_clause_again() {
    let mut cast = Cast::default();
    let breaks = Conduct::good().failing_after(3, Fault::model("a planted fault"));
    cast.tts = Arc::new(ScriptedTts::new("tts").script(Script::calls([breaks])));
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| {
            let voice = spec.nodes.iter_mut().find(|it| it.id.as_str() == "tts");
            voice.unwrap().fallback = Some("spare".parse().unwrap());
            spec.nodes
                .push(node(json!({ "id": "spare", "kind": "tts" })));
        })
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    // What was made of the first clause is less than its first word.
    assert_eq!(ended.turn(1).agent_text_played, "How can I help?");
    assert_eq!(ended.turn(1).agent_text, "How can I help?");
}
