//! What one node may take: time by event or by turn, processor time, memory (F-045, F-107).

use std::time::Duration;

use rspp_actors::Stopwatch;
use rspp_host::{
    Event,
    node::{
        Node, NodeContext, NodeReport, Step,
        testing::{Harness, Output, generated, silence},
    },
};
use rspp_kernel::edge::EdgeNotice;
use rspp_proto::{
    Payload,
    abi::Signal,
    spec::{BudgetPer, NodeExecutionPolicy, NodeSpec, PipelineSpec},
};
use rspp_tests::{
    call::{Builder, Cast, Ended, REPLY, first, says},
    nodes::{Probes, custom, forward, insert},
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Does something with the n-th event, then passes it on.
struct Busy<F> {
    seen: u64,
    work: F,
}

impl<F: Fn(u64, &mut NodeContext) + Send + 'static> Node for Busy<F> {
    fn on_event<'a>(
        &'a mut self,
        cx: &'a mut NodeContext,
        _port: rspp_host::Port,
        event: Event,
    ) -> Step<'a> {
        self.seen += 1;
        (self.work)(self.seen, cx);
        cx.forward(event);
        Step::OK
    }
}

fn busy(work: impl Fn(u64, &mut NodeContext) + Clone + Send + Sync + 'static) -> Harness {
    Harness::new(move |_spec| {
        Box::new(Busy {
            seen: 0,
            work: work.clone(),
        })
    })
}

fn limited(limits: NodeExecutionPolicy) -> impl FnOnce(&mut NodeSpec) {
    move |spec| spec.execution = Some(limits)
}

fn cpu(per_second: u64) -> NodeExecutionPolicy {
    NodeExecutionPolicy {
        cpu_ms_per_second: Some(per_second),
        ..NodeExecutionPolicy::default()
    }
}

fn memory(bytes: u64) -> NodeExecutionPolicy {
    NodeExecutionPolicy {
        memory_bytes: Some(bytes),
        ..NodeExecutionPolicy::default()
    }
}

/// F-107: a node that has taken its processor time is held until it has some again; what comes for it
/// waits, nothing is lost, and it is told of once.
#[test]
fn a_node_beyond_its_processor_time_is_held() {
    let harness = busy(|_nth, cx| cx.charge(ms(80))).node(limited(cpu(100)));
    let mut rig = harness.start().unwrap();
    for text in ["a", "b", "c"] {
        rig.feed(generated(text));
    }
    // A second's worth, and a little more, since what a handler takes is known when it has ended.
    assert_eq!(rig.texts(), ["a", "b"]);
    // What the handlers themselves really took counts too.
    let reports = rig.reports();
    let [NodeReport::Throttled { wait }] = reports[..] else {
        panic!("{reports:?}")
    };
    assert!((ms(601)..ms(700)).contains(&wait), "{wait:?}");
    rig.advance(ms(600));
    assert!(rig.texts().is_empty());
    rig.advance(ms(100));
    assert_eq!(rig.texts(), ["c"]);
    rig.stop();
}

/// F-107, F-036: a node that is held hears of a cancel at once, and what waited for it is gone.
#[test]
fn a_node_that_is_held_hears_of_a_cancel() {
    let harness = busy(|_nth, cx| cx.charge(ms(500))).node(limited(cpu(100)));
    let mut rig = harness.start().unwrap();
    rig.feed(generated("a"));
    rig.feed(generated("b"));
    rig.cancel_work(rspp_kernel::CancelReason::UserCancel);
    let reports = rig.reports();
    assert!(
        matches!(
            reports[..],
            [
                NodeReport::Throttled { .. },
                NodeReport::CancelAcknowledged {
                    after: Duration::ZERO,
                    is_forced: false,
                    ..
                }
            ]
        ),
        "{reports:?}"
    );
    rig.advance(Duration::from_secs(10));
    assert_eq!(rig.texts(), ["a"]);
    rig.stop();
}

/// F-107: what a handler computes on its thread is measured, whatever it says.
#[test]
fn what_a_handler_computes_is_measured() {
    let spin = |_nth: u64, _cx: &mut NodeContext| {
        let watch = Stopwatch::start();
        while watch.elapsed() < ms(60) {
            std::hint::spin_loop();
        }
    };
    let mut rig = busy(spin).node(limited(cpu(1))).start().unwrap();
    rig.feed(generated("a"));
    rig.feed(generated("b"));
    assert_eq!(rig.texts(), ["a"]);
    let reports = rig.reports();
    assert!(
        matches!(reports[..], [NodeReport::Throttled { wait }] if wait > ms(1_000)),
        "{reports:?}"
    );
}

/// F-107: large inputs into a limited node: what waits for it stays within its memory, and what does not
/// fit is lost as its edge says, and told.
#[test]
fn what_waits_for_a_node_stays_within_its_memory() {
    let harness = Harness::new(|_spec| Box::new(Slow)).node(limited(memory(2_000)));
    let mut rig = harness.start().unwrap();
    for _ in 0..10 {
        rig.feed(silence(ms(20)));
    }
    rig.advance(Duration::from_secs(2));
    let emitted = rig.emitted().len();
    // One at hand, three of 640 bytes that wait.
    assert_eq!(emitted, 4);
    let lost = rig.reports().into_iter().filter(|report| {
        matches!(
            report,
            NodeReport::EdgeNotice {
                notice: EdgeNotice::Drop { .. },
                ..
            }
        )
    });
    assert!(lost.count() > 0);
    rig.stop();
}

/// Takes 100 ms over each event.
struct Slow;

impl Node for Slow {
    fn on_event<'a>(
        &'a mut self,
        cx: &'a mut NodeContext,
        _port: rspp_host::Port,
        event: Event,
    ) -> Step<'a> {
        Step::Wait(Box::pin(async move {
            tokio::time::sleep(ms(100)).await;
            cx.forward(event);
            Ok(())
        }))
    }
}

/// F-107: a node that keeps more than it may is stopped: its turn fails, or a standby goes on; one that
/// listens is made anew.
#[test]
fn a_node_that_keeps_too_much_is_stopped() {
    let hoards = |nth: u64, cx: &mut NodeContext| cx.hold(nth as usize * 600);
    let over = NodeReport::OverMemory {
        kept: 1_200,
        limit: 1_000,
    };
    let harness = busy(hoards).node(limited(memory(1_000)));
    let mut rig = harness.start().unwrap();
    rig.feed(generated("a"));
    rig.feed(generated("b"));
    assert_eq!(rig.texts(), ["a"]);
    let reports = rig.reports();
    assert_eq!(reports[0], over);
    assert!(
        matches!(reports[1], NodeReport::Failed { .. }),
        "{reports:?}"
    );
    rig.stop();

    let stands_by = |_spec: &NodeSpec| -> Box<dyn Node> {
        Box::new(Busy {
            seen: 0,
            work: |_nth: u64, _cx: &mut NodeContext| {},
        })
    };
    let mut rig = harness.clone().standby(stands_by).start().unwrap();
    rig.feed(generated("a"));
    rig.feed(generated("b"));
    let reports = rig.reports();
    assert_eq!(reports[0], over);
    assert!(
        matches!(reports[1], NodeReport::TookOver { .. }),
        "{reports:?}"
    );
    rig.feed(generated("c"));
    assert!(rig.texts().ends_with(&["c".to_owned()]));
    rig.stop();

    let mut rig = harness.listening().start().unwrap();
    rig.feed(generated("a"));
    rig.feed(generated("b"));
    let outputs = rig.outputs();
    let restarted = |output: &Output| {
        matches!(
            output,
            Output::Crashed {
                is_restarted: true,
                ..
            }
        )
    };
    assert!(outputs.iter().any(restarted), "{outputs:?}");
    rig.advance(Duration::from_secs(1));
    rig.feed(generated("c"));
    assert_eq!(rig.texts(), ["c"]);
    rig.stop();
}

/// F-107: limits are checked where they are written.
#[test]
fn a_limit_of_nothing_is_refused() {
    for field in ["cpu_ms_per_second", "memory_bytes"] {
        let with = format!("kind: llm\n    execution: {{ {field}: 0 }}");
        let text = PipelineSpec::simple_template().replacen("kind: llm", &with, 1);
        let refused = PipelineSpec::parse("p.yaml", &text, rspp_proto::spec::Mode::Strict);
        let told = refused.expect_err("it is refused").to_string();
        assert!(told.contains(field), "{told}");
    }
}

/// A call with a node `probe` between model and segmenter.
async fn with_probe(
    probes: Probes,
    spec: NodeSpec,
    change: impl FnOnce(&mut PipelineSpec),
) -> Ended {
    Builder::new(&Cast::default(), vec![says(first())])
        .pipeline(|pipeline| {
            insert(pipeline, "llm", spec, "segmenter");
            // What waits for a slow node is not what is looked at.
            pipeline.budgets.edge_budget_ms_default = Some(60_000);
            change(pipeline);
        })
        .configure(probes.install())
        .hold()
        .await
}

/// F-107: in a call a violation is a signal, a degradation and a metric; the turn is late, and complete.
#[tokio::test(start_paused = true)]
async fn a_violation_is_a_signal_and_a_metric() {
    let mut probes = Probes::default();
    probes.add("probe", |nth, cx: &mut NodeContext, event: Event| {
        cx.charge(ms(30));
        forward(nth, cx, event)
    });
    let mut probe = custom("probe");
    probe.execution = Some(cpu(200));
    let ended = with_probe(probes, probe, |spec| {
        spec.observe.metrics_every_ms = Some(100);
    })
    .await;
    assert_eq!(ended.endings(), ["commit"], "{:#?}", ended.report);
    assert_eq!(ended.turn(1).agent_text_played, REPLY);
    let reason = "node_cpu_limit_exceeded";
    assert_eq!(ended.log.reasons_of(Signal::BudgetWarning), [reason]);
    assert_eq!(ended.log.reasons_of(Signal::Degrade), [reason]);
    let counted = ended
        .log
        .payloads()
        .into_iter()
        .any(|payload| match payload {
            Payload::Metrics(sample) => {
                sample.name == "node_limit_violations_total"
                    && sample
                        .labels
                        .get("limit")
                        .is_some_and(|limit| limit == "cpu")
                    && sample
                        .labels
                        .get("node_id")
                        .is_some_and(|node| node == "probe")
            }
            _something_else => false,
        });
    assert!(counted, "no metric tells of it");
    let measured = ended.report.measurements.expect("it is measured");
    let probe = &measured.nodes["probe"];
    assert_eq!(probe.cpu_violations, 1);
    assert!(probe.cpu_ms >= 270.0, "{}", probe.cpu_ms);
}

/// Takes 60 ms over each event.
fn slowly(cx: &mut NodeContext, event: Event) -> Step<'_> {
    Step::Wait(Box::pin(async move {
        tokio::time::sleep(ms(60)).await;
        cx.forward(event);
        Ok(())
    }))
}

async fn slow(per: BudgetPer, budget: u64, standby: bool) -> Ended {
    let mut probes = Probes::default();
    probes.add("probe", |_nth, cx, event| slowly(cx, event));
    probes.add("backup", forward);
    let mut probe = custom("probe");
    probe.budget_ms = Some(budget);
    probe.execution = Some(NodeExecutionPolicy {
        budget_per: per,
        ..NodeExecutionPolicy::default()
    });
    probe.fallback = standby.then(|| "backup".parse().unwrap());
    with_probe(probes, probe, |spec| {
        if standby {
            spec.nodes.push(custom("backup"));
        }
    })
    .await
}

const OVERRUN: &str = "node_budget_threshold_exceeded";

/// F-045: counted by event, 60 ms are within 200; counted by turn they add up, which is told once, and
/// leads to a session that counts as degraded.
#[tokio::test(start_paused = true)]
async fn a_budget_counts_by_event_or_by_turn() {
    let ended = slow(BudgetPer::Event, 200, false).await;
    assert_eq!(ended.endings(), ["commit"]);
    assert!(ended.log.signals_of(Signal::BudgetWarning).is_empty());
    assert!(ended.report.degraded.is_empty());

    let ended = slow(BudgetPer::Turn, 200, false).await;
    assert_eq!(ended.endings(), ["commit"]);
    assert_eq!(ended.log.reasons_of(Signal::BudgetWarning), [OVERRUN]);
    assert!(ended.log.signals_of(Signal::BudgetExhausted).is_empty());
    assert_eq!(ended.log.reasons_of(Signal::Degrade), [OVERRUN]);
    assert_eq!(ended.report.degraded[0].reason, OVERRUN);
}

/// F-045, F-007: the follow-up end to end: warned, exhausted, and the standby goes on, by event and by
/// turn.
#[tokio::test(start_paused = true)]
async fn an_overrun_leads_to_the_fallback() {
    for (per, budget) in [(BudgetPer::Event, 50), (BudgetPer::Turn, 200)] {
        let ended = slow(per, budget, true).await;
        assert_eq!(ended.endings(), ["commit"], "{:#?}", ended.report);
        let told: Vec<_> = ended
            .log
            .signals()
            .into_iter()
            .filter(|signal| {
                [
                    Signal::BudgetWarning,
                    Signal::BudgetExhausted,
                    Signal::Fallback,
                ]
                .contains(&signal.signal)
            })
            .map(|signal| (signal.signal, signal.reason.unwrap().to_string()))
            .collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert_eq!(told[0], (Signal::BudgetWarning, OVERRUN.to_owned()));
        assert_eq!(told[1], (Signal::BudgetExhausted, OVERRUN.to_owned()));
        assert!(told[2].1.starts_with("from=probe to=backup"), "{told:?}");
        assert!(ended.report.degraded.is_empty());
    }
}
