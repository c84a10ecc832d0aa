//! Streams that belong together: a loss on one edge is answered on all of the domain's.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rspp_host::{Tags, node::NodeContext};
use rspp_kernel::edge::BreakReason;
use rspp_proto::{
    SampleIndex, SyncDomain, SyncId,
    abi::{Emitter, Signal},
    spec::{Mode, PipelineSpec},
};
use rspp_tests::{
    call::{Builder, Cast, Ended, first, says},
    nodes::{Hooks, Probes, Taken, branch, words},
};
use serde_json::json;

struct Run {
    /// The slow consumer and the quick one: what they got, and what they were told.
    slow: (Taken, Arc<Hooks>),
    quick: (Taken, Arc<Hooks>),
    ended: Ended,
}

/// A source that says four words of each moment, to a consumer that is too slow and to one that is
/// not; both edges belong to the domain `av`.
async fn run(strategy: &str, policy: &str, scope: &str, group_by: &str) -> Run {
    let mut probes = Probes::default();
    probes.source("source", |nth, cx: &mut NodeContext| {
        let moment = nth / 4;
        let tags = Tags {
            sync_id: Some(SyncId::new(format!("moment-{moment}")).unwrap()),
            sync_domain: Some(SyncDomain::new("av").unwrap()),
            key: Some(format!("moment-{moment}").into()),
        };
        cx.emit_tagged(
            words(moment, "word", false),
            SampleIndex(0),
            moment,
            Arc::new(tags),
        );
    });
    let slow = probes.sink("slow", Duration::from_millis(50));
    let quick = probes.sink("quick", Duration::from_millis(19));
    let ended = Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|spec| {
            let buffer = json!({
                "strategy": strategy, "max_queue_items": 8, "max_queue_ms": 600_000,
                "max_latency_contribution_ms": 600_000, "max_queue_bytes": 1_000_000,
                "sync_drop_policy": { "group_by": group_by, "policy": policy, "scope": scope,
                                      "sync_domain": "av" },
            });
            let edge = |to: &str| {
                json!({ "from": "source", "to": to, "carries": "text", "buffer": buffer })
            };
            branch(spec, "source", &[edge("slow"), edge("quick")]);
        })
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    Run { slow, quick, ended }
}

fn moments(taken: &Taken) -> Vec<(u32, usize)> {
    let mut moments = Vec::<(u32, usize)>::new();
    for (_, event) in taken.events() {
        let moment = event.stamp.segment;
        match moments.last_mut() {
            Some((of, count)) if *of == moment => *count += 1,
            Some(_) | None => moments.push((moment, 1)),
        }
    }
    moments
}

fn breaks(hooks: &Hooks) -> Vec<BreakReason> {
    let breaks = hooks.breaks.lock().unwrap();
    breaks.iter().map(|(_, reason)| *reason).collect()
}

fn reasons(ended: &Ended, kind: Signal) -> BTreeSet<String> {
    ended.log.reasons_of(kind).into_iter().collect()
}

fn names(reasons: &BTreeSet<String>) -> Vec<&str> {
    reasons.iter().map(String::as_str).collect()
}

/// F-146, F5: `atomic_drop` takes the whole moment from that edge, and from no other.
#[tokio::test(start_paused = true)]
async fn an_atomic_drop_takes_the_whole_group_on_its_edge() {
    for group_by in ["sync_id", "custom"] {
        let run = run("drop_newest", "atomic_drop", "edge_local", group_by).await;
        let reasons = reasons(&run.ended, Signal::DropNotice);
        let both = ["queue_pressure_drop", "sync_atomic_drop"];
        assert_eq!(names(&reasons), both, "{group_by}");
        assert_eq!(run.ended.log.signals_of(Signal::Discontinuity).len(), 0);
        for (of, hooks) in [(&run.slow.0, &run.slow.1), (&run.quick.0, &run.quick.1)] {
            let moments = moments(of);
            // The first has three frames; the last may be cut by the end of the call.
            let whole = moments[1..moments.len() - 1]
                .iter()
                .all(|(_, count)| *count == 4);
            assert!(whole, "{group_by}: {moments:?}");
            assert_eq!(breaks(hooks), []);
        }
        assert!(moments(&run.slow.0).len() * 2 < moments(&run.quick.0).len());
    }
}

/// F-146, F5: a moment of which a part was delivered before the rest is lost is said to be lost in
/// part, and the consumer is told to reset.
#[tokio::test(start_paused = true)]
async fn a_moment_that_is_lost_in_part_is_said_to_be() {
    let run = run("drop_oldest", "atomic_drop", "edge_local", "sync_id").await;
    let torn = run.ended.log.signals_of(Signal::Discontinuity);
    assert!(torn.len() > 10);
    for signal in &torn {
        assert_eq!(signal.emitted_by, Emitter::SyncIntegrity);
        assert_eq!(
            signal.reason.as_ref().unwrap().as_str(),
            "sync_domain_partial_loss"
        );
    }
    let of_slow = moments(&run.slow.0);
    let in_part = of_slow.iter().filter(|(_, count)| *count < 4).count();
    assert!(
        in_part <= torn.len() + 2,
        "{of_slow:?}, {} said",
        torn.len()
    );
    let told = breaks(&run.slow.1);
    // Breaks with nothing between them are one for who listens.
    let expected = torn.len() / 2..=torn.len();
    assert!(expected.contains(&told.len()), "{} told", told.len());
    assert!(
        told.iter()
            .all(|reason| *reason == BreakReason::PartialLoss)
    );
    assert_eq!(breaks(&run.quick.1), []);
}

/// F-146, ML-004, F5: `drop_with_discontinuity` tells downstream to reset, on the wire and the
/// consumer itself, each time before what follows the gap.
#[tokio::test(start_paused = true)]
async fn a_drop_with_discontinuity_tells_downstream_to_reset() {
    let run = run(
        "drop_oldest",
        "drop_with_discontinuity",
        "edge_local",
        "sync_id",
    )
    .await;
    let signals = run.ended.log.signals_of(Signal::Discontinuity);
    assert!(!signals.is_empty());
    let mut ids = BTreeSet::new();
    for signal in &signals {
        assert_eq!(signal.emitted_by, Emitter::SyncIntegrity);
        assert_eq!(
            signal.reason.as_ref().unwrap().as_str(),
            "sync_drop_with_discontinuity"
        );
        assert_eq!(signal.envelope.sync_domain.as_ref().unwrap().as_str(), "av");
        assert!(ids.insert(signal.envelope.discontinuity_id.clone().unwrap()));
    }
    // A drop notice comes first, then the reset (F5).
    let order: Vec<_> = run
        .ended
        .log
        .signals()
        .into_iter()
        .map(|signal| signal.signal)
        .filter(|signal| [Signal::DropNotice, Signal::Discontinuity].contains(signal))
        .collect();
    assert_eq!(order[0], Signal::DropNotice);
    let told = breaks(&run.slow.1);
    let gaps = run.slow.0.sequences();
    let gaps = gaps
        .windows(2)
        .filter(|pair| pair[1] != pair[0] + 1)
        .count();
    assert_eq!(told.len(), gaps, "one reset for each gap");
    assert!(
        told.iter()
            .all(|reason| *reason == BreakReason::DropWithDiscontinuity)
    );
    assert_eq!(breaks(&run.quick.1), [], "the other edge has no gap");

    // The same call again: the same ids (ML-004).
    let again = self::run(
        "drop_oldest",
        "drop_with_discontinuity",
        "edge_local",
        "sync_id",
    )
    .await;
    let ids_again = again
        .ended
        .log
        .signals_of(Signal::Discontinuity)
        .into_iter();
    let ids_again: BTreeSet<_> = ids_again
        .map(|s| s.envelope.discontinuity_id.unwrap())
        .collect();
    assert_eq!(ids, ids_again);
}

/// F-146, ML-004: `plan_wide` reaches every edge of the domain: what is lost on one is given up on
/// the others or said to be a partial loss, and all consumers are told.
#[tokio::test(start_paused = true)]
async fn a_plan_wide_loss_reaches_every_edge_of_the_domain() {
    let run = run("drop_newest", "atomic_drop", "plan_wide", "sync_id").await;
    assert!(!breaks(&run.slow.1).is_empty());
    assert!(
        !breaks(&run.quick.1).is_empty(),
        "the other edge's consumer is told too"
    );
    let reasons = reasons(&run.ended, Signal::Discontinuity);
    let known = ["sync_atomic_drop", "sync_domain_partial_loss"];
    assert!(
        names(&reasons).iter().all(|reason| known.contains(reason)),
        "{reasons:?}"
    );
    assert!(reasons.contains("sync_atomic_drop"), "{reasons:?}");

    let wide = self::run(
        "drop_oldest",
        "drop_with_discontinuity",
        "plan_wide",
        "sync_id",
    )
    .await;
    assert!(
        breaks(&wide.quick.1).len() >= 3,
        "told of the other edge's gaps"
    );
}

/// F-146: what is refused has a precise reason.
#[test]
fn a_wide_scope_needs_a_domain() {
    let text = |domain: &str| {
        format!(
            "schema: rspp.pipeline.v1\nversion: v1\nprofile: simple/v1\nnodes:\n  - {{ id: vad, kind: vad }}\n\
             edges:\n  - from: ingress\n    to: vad\n    carries: audio\n    buffer:\n      sync_drop_policy: \
             {{ group_by: sync_id, policy: atomic_drop, scope: plan_wide{domain} }}\n"
        )
    };
    let errors = |domain: &str| -> Vec<String> {
        match PipelineSpec::parse("p.yaml", &text(domain), Mode::Strict) {
            Ok(_) => Vec::new(),
            Err(found) => found.0.iter().map(ToString::to_string).collect(),
        }
    };
    let without = errors("");
    assert!(
        without
            .iter()
            .any(|error| error.contains("needs sync_domain")),
        "{without:?}"
    );
    let with = errors(", sync_domain: av");
    assert!(
        with.iter().all(|error| !error.contains("sync_domain")),
        "{with:?}"
    );
}
