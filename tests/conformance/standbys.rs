//! Nodes that stand by for others, one after the other.

use std::sync::{Arc, atomic::AtomicU32};

use rspp_host::{
    Event,
    node::{Hook, NodeContext, NodeError, Step},
};
use rspp_proto::{abi::Signal, spec::PipelineSpec};
use rspp_tests::{
    call::{Builder, Cast, Ended, REPLY, first, says},
    nodes::{Hooks, Probes, custom, forward, get, insert},
};

/// `probe`, behind the model, has `second` standing by, and that `third`.
fn chain(spec: &mut PipelineSpec) {
    let mut probe = custom("probe");
    probe.fallback = Some("second".parse().unwrap());
    let mut second = custom("second");
    second.fallback = Some("third".parse().unwrap());
    insert(spec, "llm", probe, "segmenter");
    spec.nodes.push(second);
    spec.nodes.push(custom("third"));
}

async fn hold(probes: Probes) -> Ended {
    Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(chain)
        .configure(probes.install())
        .hold()
        .await
}

/// Fails in the same way on whatever comes.
fn failing(_cx: &mut NodeContext) -> Step<'_> {
    Step::Done(Err(NodeError::new("a planted fault")))
}

#[track_caller]
fn check_succession(ended: &Ended, hooks: [&Arc<Hooks>; 3]) {
    assert_eq!(ended.endings(), ["commit"], "{:#?}", ended.report);
    assert_eq!(ended.turn(1).agent_text_played, REPLY, "word for word");
    let [from, to] = &ended.log.reasons_of(Signal::Fallback)[..] else {
        panic!("{:?}", ended.log.reasons_of(Signal::Fallback));
    };
    assert!(from.starts_with("from=probe to=second: "), "{from}");
    assert!(to.starts_with("from=second to=third: "), "{to}");
    for of in hooks {
        assert_eq!(get(&of.init), 1);
    }
}

/// F-007, F-133: a standby that fails too is stood in for in turn, each with what its predecessor had
/// been told, and each step is told with its cause.
#[tokio::test(start_paused = true)]
async fn standbys_take_over_one_after_the_other() {
    let mut probes = Probes::default();
    let probe = probes.add("probe", |_nth, cx, _event| failing(cx));
    let second = probes.add("second", |_nth, cx, _event| failing(cx));
    let third = probes.add("third", forward);
    let ended = hold(probes).await;
    check_succession(&ended, [&probe, &second, &third]);
    let reasons = ended.log.reasons_of(Signal::Fallback);
    assert!(
        reasons.iter().all(|r| r.ends_with("a planted fault")),
        "{reasons:?}"
    );
    // Each of them was stopped once (F-012).
    assert_eq!([&probe, &second, &third].map(|of| get(&of.stop)), [1, 1, 1]);
}

/// F-007, F-134: the same if they panic.
#[tokio::test(start_paused = true)]
async fn standbys_take_over_from_standbys_that_panic() {
    let mut probes = Probes::default();
    let probe = probes.add("probe", |_nth, _cx, _event| panic!("a planted fault"));
    let second = probes.add("second", |_nth, _cx, _event| panic!("a planted fault"));
    let third = probes.add("third", forward);
    let ended = hold(probes).await;
    check_succession(&ended, [&probe, &second, &third]);
}

/// F-007, F-012: the same if they do not even begin.
#[tokio::test(start_paused = true)]
async fn standbys_take_over_from_standbys_that_do_not_begin() {
    fn refuse(hook: Hook, _cx: &mut NodeContext) -> Step<'_> {
        match hook {
            Hook::Start => Step::Done(Err(NodeError::new("no such file"))),
            _others => Step::OK,
        }
    }
    let mut probes = Probes::default();
    let probe = probes.add_hooked("probe", refuse);
    let second = probes.add_hooked("second", refuse);
    let third = probes.add("third", forward);
    let ended = hold(probes).await;
    check_succession(&ended, [&probe, &second, &third]);
}

/// F-007: when the last of them has failed, the turn ends as it would without any.
#[tokio::test(start_paused = true)]
async fn a_chain_of_standbys_has_an_end() {
    let mut probes = Probes::default();
    let tried = Arc::new(AtomicU32::new(0));
    for kind in ["probe", "second", "third"] {
        let tried = Arc::clone(&tried);
        probes.add(kind, move |_nth, cx: &mut NodeContext, _event: Event| {
            rspp_tests::nodes::add(&tried);
            failing(cx)
        });
    }
    let ended = hold(probes).await;
    assert_eq!(ended.endings(), ["node_timeout_or_failure"]);
    assert!(get(&tried) >= 3);
    assert_eq!(ended.log.signals_of(Signal::Fallback).len(), 2);
}
