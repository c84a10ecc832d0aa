//! F2: node timeout or failure (RK-08, RK-17, RK-03).

use std::{sync::Arc, time::Duration};

use rspp_host::{
    Event,
    node::{NodeContext, NodeError, Step},
};
use rspp_proto::{Payload, abi::Signal};
use rspp_provider_api::scripted::{Conduct, Script, ScriptedLlm};
use rspp_tests::{
    call::{Builder, Cast, Ended, REPLY, first, says},
    nodes::{Probes, custom, insert, node},
};
use rspp_timeline::Entry;
use rspp_transport_api::loopback::Start;
use serde_json::json;

use crate::row::{assert_aborted, assert_committed};

/// A call of two utterances with a node `probe` before the segmenter.
async fn with_probe(probes: Probes) -> Ended {
    let second = Start::At(Duration::from_secs(9));
    Builder::new(&Cast::default(), vec![says(first()), says(second)])
        .pipeline(|spec| insert(spec, "llm", custom("probe"), "segmenter"))
        .configure(probes.install())
        .hold()
        .await
}

/// The same call with a `probe` between two nodes that hangs once, with a `backup` for it if there is to be one.
async fn with_hang(between: [&str; 2], budget_ms: Option<u64>, standby: bool) -> Ended {
    let mut probes = Probes::default();
    hangs_once(&mut probes, "probe");
    probes.add("backup", rspp_tests::nodes::forward);
    let second = Start::At(Duration::from_secs(9));
    Builder::new(&Cast::default(), vec![says(first()), says(second)])
        .pipeline(|spec| {
            let mut probe = custom("probe");
            probe.budget_ms = budget_ms;
            if standby {
                probe.fallback = Some("backup".parse().expect("a name"));
                spec.nodes.push(custom("backup"));
            }
            insert(spec, between[0], probe, between[1]);
        })
        .configure(probes.install())
        .hold()
        .await
}

/// The nodes that errors were reported of.
fn named(ended: &Ended) -> Vec<String> {
    let payloads = ended.log.payloads().into_iter();
    let nodes = payloads.filter_map(|payload| match payload {
        Payload::Error(note) => note.node_id.map(|node| node.to_string()),
        _something_else => None,
    });
    nodes.collect()
}

/// F2, F-134: a node that panics ends its turn, is named, and the next turn runs.
#[tokio::test(start_paused = true)]
async fn a_node_that_panics_aborts_its_turn() {
    let mut probes = Probes::default();
    probes.add("probe", |nth, cx: &mut NodeContext, event: Event| {
        let first_turn = cx.settings().turn.is_some_and(|turn| turn.0 == 1);
        assert!(!first_turn || nth < 3, "a planted fault");
        cx.forward(event);
        Step::OK
    });
    let ended = with_probe(probes).await;
    assert_aborted(&ended, 1, "node_timeout_or_failure");
    assert_committed(&ended, 2);
    assert!(named(&ended).contains(&"probe".to_owned()));
}

/// F2, F-131: so does one that gives up.
#[tokio::test(start_paused = true)]
async fn a_node_that_gives_up_aborts_its_turn() {
    let mut probes = Probes::default();
    probes.add("probe", |nth, cx: &mut NodeContext, event: Event| {
        if cx.settings().turn.is_some_and(|turn| turn.0 == 1) && nth == 2 {
            return Step::Done(Err(NodeError::new("a planted fault")));
        }
        cx.forward(event);
        Step::OK
    });
    let ended = with_probe(probes).await;
    assert_aborted(&ended, 1, "node_timeout_or_failure");
    assert_committed(&ended, 2);
    assert!(named(&ended).contains(&"probe".to_owned()));
}

/// F2, F-045: a node over its soft budget is told of, and the turn goes on.
#[tokio::test(start_paused = true)]
async fn a_node_over_its_budget_is_told_of() {
    let mut probes = Probes::default();
    probes.add("probe", |nth, cx: &mut NodeContext, event: Event| {
        Step::Wait(Box::pin(async move {
            if nth == 1 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            cx.forward(event);
            Ok(())
        }))
    });
    let ended = with_probe(probes).await;
    assert_committed(&ended, 1);
    let warned = ended.log.signals_of(Signal::BudgetWarning);
    assert!(!warned.is_empty());
    assert_eq!(
        warned[0].reason.as_ref().map(rspp_proto::Reason::as_str),
        Some("node_budget_threshold_exceeded")
    );
}

/// F2, F-007, F-133: with a standby at hand the branch that was chosen is told of, and the turn
/// commits.
#[tokio::test(start_paused = true)]
async fn a_standby_goes_on_with_the_turn() {
    let fails = Script::always(Conduct::good().panicking_after(0));
    let llm = ScriptedLlm::new("llm").answers([REPLY]).script(fails);
    let cast = Cast {
        llm: Arc::new(llm),
        ..Cast::default()
    };
    let mut builder = Builder::new(&cast, vec![says(first())]).pipeline(|spec| {
        let mut nodes = spec.nodes.iter_mut();
        let llm = nodes.find(|node| node.id.as_str() == "llm");
        llm.expect("there is a model").fallback = Some("backup".parse().unwrap());
        spec.nodes.push(node(
            json!({ "id": "backup", "kind": "llm", "provider": "llm-2" }),
        ));
        spec.edges.push(rspp_tests::nodes::edge(
            json!({ "from": "backup", "to": "segmenter", "carries": "text" }),
        ));
    });
    builder
        .providers
        .add_llm(Arc::new(ScriptedLlm::new("llm-2").answers([REPLY])));
    let ended = builder.hold().await;
    assert_committed(&ended, 1);
    assert_eq!(ended.turn(1).agent_text_played, REPLY);
    let chosen = ended.log.reasons_of(Signal::Fallback);
    assert_eq!(chosen.len(), 1);
    assert!(chosen[0].starts_with("from=llm to=backup"), "{chosen:?}");
}

/// F2: what is left of a failure says all of it: the node, by the budget that it broke and by the signals of it;
/// the branch that was chosen; how the turn ended. Without a branch to take that is an abort, and nothing of
/// another turn.
#[tokio::test(start_paused = true)]
async fn the_evidence_names_node_budget_branch_and_end() {
    for standby in [false, true] {
        let ended = with_hang(["llm", "segmenter"], Some(300), standby).await;
        let recorded = |kind: Signal| -> Vec<(String, String)> {
            let entries = ended.entries.iter();
            let signals = entries.filter_map(|entry| match entry {
                Entry::Signal(signal) if signal.signal == kind => Some(signal),
                _another_entry => None,
            });
            signals
                .map(|signal| {
                    let of = signal.envelope.node_id.as_ref();
                    let reason = signal.reason.as_ref();
                    (
                        of.map_or_else(String::new, ToString::to_string),
                        reason.map_or_else(String::new, ToString::to_string),
                    )
                })
                .collect()
        };
        let reason = "node_budget_threshold_exceeded";
        let told = ("probe".to_owned(), reason.to_owned());
        assert_eq!(recorded(Signal::BudgetWarning)[0], told);
        let plan = ended.entries.iter().find_map(|entry| match entry {
            Entry::Plan(plan) => Some(plan.plan.to_value()),
            _another_entry => None,
        });
        let plan = plan.expect("it was recorded").to_string();
        assert!(plan.contains("\"probe\":300"), "{plan}");
        let chosen = recorded(Signal::Fallback);
        if standby {
            assert_eq!(chosen.len(), 1, "{chosen:?}");
            assert_eq!(chosen[0].0, "probe");
            assert!(
                chosen[0].1.starts_with("from=probe to=backup"),
                "{chosen:?}"
            );
            assert_committed(&ended, 1);
        } else {
            assert_eq!(chosen, []);
            let degraded = recorded(Signal::Degrade);
            assert_eq!(degraded[0], told);
            assert_aborted(&ended, 1, "node_timeout_or_failure");
        }
        assert_committed(&ended, 2);
    }
}

/// Hangs for ever at its first event, and passes all others on.
fn hangs_once(probes: &mut Probes, kind: &str) {
    let seen = std::sync::atomic::AtomicU32::new(0);
    probes.add(kind, move |_nth, cx: &mut NodeContext, event: Event| {
        if rspp_tests::nodes::add(&seen) == 1 {
            return Step::Wait(Box::pin(std::future::pending()));
        }
        cx.forward(event);
        Step::OK
    });
}

/// F2, F-045: a node that hangs over its whole turn costs that turn, by its own reason, and no other.
#[tokio::test(start_paused = true)]
async fn a_node_that_hangs_aborts_its_turn() {
    let mut probes = Probes::default();
    hangs_once(&mut probes, "probe");
    let ended = with_probe(probes).await;
    assert_aborted(&ended, 1, "node_timeout_or_failure");
    assert_committed(&ended, 2);
    let warned = ended.log.reasons_of(Signal::BudgetWarning);
    assert_eq!(warned[0], "node_budget_threshold_exceeded");
}

/// F2, F-007: a node that listens and hangs is given up for its standby where there is one, and made anew
/// where there is none; either way the call goes on.
#[tokio::test(start_paused = true)]
async fn a_listening_node_that_hangs_is_replaced() {
    for standby in [false, true] {
        let ended = with_hang(["stt", "turn"], None, standby).await;
        let endings = ended.endings();
        assert_eq!(endings.last(), Some(&"commit"), "{endings:?}");
        let exhausted = ended.log.reasons_of(Signal::BudgetExhausted);
        assert!(!exhausted.is_empty());
        let fallbacks = ended.log.signals_of(Signal::Fallback).len();
        assert_eq!(fallbacks, usize::from(standby));
        let hung = ended
            .report
            .degraded
            .iter()
            .any(|it| it.reason == "node_hung");
        assert_eq!(hung, !standby);
    }
}
