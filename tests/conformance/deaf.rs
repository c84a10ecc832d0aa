//! Work that heeds its cancel, work that is deaf to it, work that never ends.

use std::{
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use rspp_controlplane_api::LocalLeases;
use rspp_host::{
    Event, Notice,
    node::{NodeContext, Step},
};
use rspp_kernel::CancelReason;
use rspp_proto::{Payload, SessionId, abi::Signal};
use rspp_tests::{
    call::{Builder, Call, Cast, Ended, REPLY, after_reply, first, says},
    nodes::{Probes, add, custom, forward, get, insert},
};
use rspp_timeline::{Entry, gates::Gates};
use rspp_transport_api::loopback::Start;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A call with a node `probe` between the model and the segmenter, in which the user speaks twice.
async fn call_with(probes: Probes) -> Call {
    let said = vec![says(first()), says(Start::At(Duration::from_secs(6)))];
    Builder::new(&Cast::default(), said)
        .pipeline(|spec| {
            insert(spec, "llm", custom("probe"), "segmenter");
            spec.observe.metrics_every_ms = Some(200);
        })
        .configure(probes.install())
        .start()
        .await
}

/// Cancels the first turn 100 ms after it opened.
async fn cancel_first(call: &Call) {
    call.log.until(Signal::TurnOpen, 1).await;
    tokio::time::sleep(ms(100)).await;
    let receipt = call.session.cancel(CancelReason::UserCancel).await;
    assert!(receipt.is_some_and(|receipt| receipt.turn.is_some()));
}

/// The acknowledgements of `node`: how long each took, and whether it was forced.
fn acknowledged(ended: &Ended, of: &str) -> Vec<(u64, bool)> {
    let notices = ended.log.notices().into_iter();
    let events = notices.filter_map(|notice| match notice {
        Notice::Event(event) => Some(event),
        Notice::Signal(_) | Notice::State(_) | Notice::Turn(_) | Notice::Foreign(_) => None,
    });
    let of_node = events.filter(|event| {
        let node = event.envelope.node_id.as_ref();
        node.is_some_and(|node| node.as_str() == of)
    });
    of_node
        .filter_map(|event| match &event.payload {
            Some(Payload::Metrics(sample)) if sample.name == "cancel_ack_ms" => Some((
                sample.value.round() as u64,
                sample.labels["forced"] == "yes",
            )),
            _something_else => None,
        })
        .collect()
}

/// From the cancel to its last acknowledgement, as the first turn's evidence has it.
fn evidence(ended: &Ended) -> Option<Duration> {
    let baseline = ended.entries.iter().find_map(|entry| match entry {
        Entry::Turn(baseline) => Some(baseline),
        _something_else => None,
    });
    let cancel = baseline?.cancel.as_ref()?;
    let accepted = cancel.cancel_accepted_at?;
    Some(cancel.cancel_ack_at?.since(accepted))
}

/// F-036: a node that loops looks at its token, returns, and the cancel is acknowledged, as an event
/// and in the turn's evidence.
#[tokio::test(start_paused = true)]
async fn a_node_that_heeds_its_cancel_winds_up_by_itself_and_acknowledges_it() {
    fn looping(cx: &mut NodeContext, wound_up: Arc<AtomicU32>) -> Step<'_> {
        let cancelled = cx.cancellation().clone();
        Step::Work(Box::pin(async move {
            while !cancelled.is_cancelled() {
                tokio::time::sleep(ms(30)).await;
            }
            // Putting things in order takes its time too.
            tokio::time::sleep(ms(10)).await;
            add(&wound_up);
            Ok(())
        }))
    }
    let wound_up = Arc::new(AtomicU32::new(0));
    let mut probes = Probes::default();
    let (count, seen) = (Arc::clone(&wound_up), AtomicU32::new(0));
    let hooks = probes.add("probe", move |nth, cx: &mut NodeContext, event: Event| {
        if add(&seen) == 1 {
            return looping(cx, Arc::clone(&count));
        }
        forward(nth, cx, event)
    });
    let call = call_with(probes).await;
    cancel_first(&call).await;
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_eq!(get(&wound_up), 1, "it was cut off");
    let [(took, false)] = acknowledged(&ended, "probe")[..] else {
        panic!("{:?}", acknowledged(&ended, "probe"));
    };
    assert!((10..=40).contains(&took), "{took} ms");
    assert_eq!(evidence(&ended), Some(ms(took)));
    assert_eq!(get(&hooks.cancel), 1);
    assert!(ended.report.degraded.is_empty(), "{:?}", ended.report);
    // The nodes that had nothing to do acknowledge at once.
    assert_eq!(acknowledged(&ended, "segmenter"), [(0, false)]);
    assert!(ended.log.signals_of(Signal::Degrade).is_empty());
}

/// F-037, P16: a node that is deaf to its cancel is stopped when its grace of 75 ms ends; the session
/// is degraded, says so everywhere, and goes on.
#[tokio::test(start_paused = true)]
async fn a_deaf_node_is_force_stopped_and_the_session_is_degraded() {
    let mut probes = Probes::default();
    let seen = AtomicU32::new(0);
    let hooks = probes.add("probe", move |nth, cx: &mut NodeContext, event: Event| {
        if add(&seen) == 1 {
            return Step::Work(Box::pin(std::future::pending()));
        }
        forward(nth, cx, event)
    });
    let call = call_with(probes).await;
    cancel_first(&call).await;
    assert!(!call.session.status().is_degraded(), "before its grace");
    tokio::time::sleep(ms(74)).await;
    assert!(!call.session.status().is_degraded(), "before its grace");
    tokio::time::sleep(ms(2)).await;
    let status = call.session.status();
    assert_eq!(status.degraded[0].reason, "node_deaf_to_cancel");
    let node = status.degraded[0].node.as_ref().expect("it is about one");
    assert_eq!(node.as_str(), "probe");
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"], "the call goes on");
    assert_eq!(ended.turn(2).agent_text_played, REPLY);
    assert_eq!(acknowledged(&ended, "probe"), [(75, true)]);
    assert_eq!(
        ended.log.reasons_of(Signal::Degrade),
        ["node_deaf_to_cancel"]
    );
    let said = ended.log.signals_of(Signal::Degrade).remove(0);
    let named = said.envelope.node_id.expect("it is about a node");
    assert_eq!(named.as_str(), "probe");
    assert_eq!(ended.report.degraded, status.degraded);
    assert_eq!(
        [get(&hooks.init), get(&hooks.stop)],
        [2, 2],
        "each instance was stopped"
    );
}

/// F-036, NF-003: how long each node took to hear of a cancel is on the timeline, so that a slow one
/// can be named; the fence waits for none of them.
#[tokio::test(start_paused = true)]
async fn the_fence_does_not_wait_for_a_deaf_node() {
    let mut probes = Probes::default();
    probes.add("probe", |nth, cx: &mut NodeContext, event: Event| {
        if nth == 6 {
            return Step::Work(Box::pin(std::future::pending()));
        }
        forward(nth, cx, event)
    });
    let call = call_with(probes).await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(ms(100)).await;
    call.session.cancel(CancelReason::UserCancel).await;
    let ended = call.end().await;
    let cancel = ended.log.signals_of(Signal::Cancel).remove(0);
    let abort = ended.log.signals_of(Signal::Abort).remove(0);
    let at = |signal: &rspp_proto::abi::ControlSignal| signal.envelope.runtime_timestamp_ms;
    assert_eq!(at(&abort) - at(&cancel), 75, "its end waits for evidence");
    let heard = ended.heard();
    assert!(heard[0].cut);
    let silent = heard[0].ended.as_millis() as u64;
    assert!(silent <= at(&cancel) + 20, "{silent} after {}", at(&cancel));
}

/// T8, AE-002, F-156: a session that loses its authority while a cancelled turn waits for a deaf node says so at
/// once: who may speak does not hang on who has heard of a cancel.
#[tokio::test(start_paused = true)]
async fn lost_authority_does_not_wait_for_a_deaf_node() {
    for rotates in [false, true] {
        let mut probes = Probes::default();
        probes.add("probe", |_nth, _cx: &mut NodeContext, _event: Event| {
            Step::Work(Box::pin(std::future::pending()))
        });
        let leases = Arc::new(LocalLeases::default());
        let granted = Arc::clone(&leases);
        let install = probes.install();
        let call = Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(|spec| insert(spec, "llm", custom("probe"), "segmenter"))
            .configure(move |config| {
                install(config);
                config.leases = granted;
            })
            .start()
            .await;
        cancel_first(&call).await;
        tokio::time::sleep(ms(10)).await;
        if rotates {
            let session = SessionId::new("call").unwrap();
            call.session.rotate(leases.acquire(&session).unwrap().epoch);
        } else {
            call.session.revoke();
        }
        let ended = call.end().await;
        assert_eq!(ended.endings()[0], "authority_loss");
        let at = |signal| {
            ended.log.signals_of(signal)[0]
                .envelope
                .runtime_timestamp_ms
        };
        let after = at(Signal::Abort) - at(Signal::Cancel);
        assert!((10..20).contains(&after), "{after} ms");
    }
}

/// NF-003: a node that takes longer than it may to let go is named, with what it took, on every timeline: whether
/// or not the session is measured.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_slow_to_let_go_is_named() {
    for (limit, named) in [(Some(40), 1), (None, 0)] {
        let mut probes = Probes::default();
        let seen = AtomicU32::new(0);
        probes.add("probe", move |nth, cx: &mut NodeContext, event: Event| {
            if add(&seen) == 1 {
                return Step::Work(Box::pin(std::future::pending()));
            }
            forward(nth, cx, event)
        });
        let call = Builder::new(&Cast::default(), vec![says(first())])
            .pipeline(move |spec| {
                insert(spec, "llm", custom("probe"), "segmenter");
                spec.observe.slow_cancel_ms = limit;
            })
            .configure(probes.install())
            .start()
            .await;
        cancel_first(&call).await;
        let ended = call.end().await;
        let mut gates = Gates::default();
        gates.add(&ended.entries);
        let slow = gates.report().slow_cancels;
        assert_eq!(slow.len(), named, "{slow:?}");
        for slow in slow {
            assert_eq!(slow.node_id.as_str(), "probe");
            assert_eq!((slow.times, slow.longest_ms), (1, 75));
            assert_eq!(slow.provider_id, None);
        }
    }
}

/// P16, P18: a listening node that never comes back is given up, made anew by its supervisor, and the
/// call goes on.
#[tokio::test(start_paused = true)]
async fn a_listening_node_that_hangs_is_made_anew() {
    let mut probes = Probes::default();
    let seen = AtomicU32::new(0);
    let hooks = probes.add("probe", move |nth, cx: &mut NodeContext, event: Event| {
        if add(&seen) == 1 {
            return Step::Wait(Box::pin(std::future::pending()));
        }
        forward(nth, cx, event)
    });
    let cast = Cast::default();
    let said = vec![says(first()), says(Start::At(Duration::from_secs(6)))];
    let ended = Builder::new(&cast, said)
        .pipeline(|spec| insert(spec, "stt", custom("probe"), "turn"))
        .configure(probes.install())
        .hold()
        .await;
    // Whether the first utterance was lost with the instance or not, the last one is answered.
    assert_eq!(
        ended.endings().last(),
        Some(&"commit"),
        "{:#?}",
        ended.report
    );
    assert_eq!([get(&hooks.init), get(&hooks.stop)], [2, 2]);
    let warned = ended.log.signals_of(Signal::BudgetWarning);
    let given_up = ended.log.signals_of(Signal::BudgetExhausted);
    assert_eq!([warned.len(), given_up.len()], [1, 1]);
    let at = |signal: &rspp_proto::abi::ControlSignal| signal.envelope.runtime_timestamp_ms;
    // It is noticed at its budget of 800 ms (P18), and given up at three times that.
    assert_eq!(at(&given_up[0]) - at(&warned[0]), 1_600);
    let degraded = ["node_budget_threshold_exceeded", "node_hung"];
    assert_eq!(ended.log.reasons_of(Signal::Degrade), degraded);
    assert_eq!(ended.report.node_failures, 1);
}

/// F-134: a listening node that crashes again and again is restarted at growing intervals before its
/// session is given up.
#[tokio::test(start_paused = true)]
async fn a_listening_node_is_restarted_at_growing_intervals() {
    let deaths = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut probes = Probes::default();
    let died = Arc::clone(&deaths);
    probes.add("probe", move |_nth, cx: &mut NodeContext, _event: Event| {
        died.lock().expect("poisoned by nobody").push(cx.now());
        Step::Wait(Box::pin(async { panic!("a planted fault") }))
    });
    let cast = Cast::default();
    let mut builder = Builder::new(&cast, vec![says(first()), says(after_reply())])
        .pipeline(|spec| insert(spec, "ingress", custom("probe"), "stt"))
        .configure(probes.install());
    builder.script.hang_up_after = Duration::from_mins(1);
    let ended = builder.hold().await;
    assert!(
        ended.report.ended.contains("probe"),
        "{}",
        ended.report.ended
    );
    let deaths = deaths.lock().expect("poisoned by nobody");
    assert_eq!(deaths.len(), 6, "five restarts");
    let waits: Vec<_> = deaths.windows(2).map(|w| w[1].since(w[0])).collect();
    // Doubling from 20 ms, of which chance takes a fifth at most; frames come every 20 ms.
    for (wait, expected) in waits.iter().zip([20, 40, 80, 160, 320]) {
        let range = ms(expected * 8 / 10)..=ms(expected + 25);
        assert!(range.contains(wait), "{waits:?}");
    }
}
