//! Nodes that block the thread they are called on: noticed in real time, kept to their own session.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rspp_actors::Stopwatch;
use rspp_host::{
    Event, Pools,
    node::{NodeContext, Step},
};
use rspp_kernel::CancelReason;
use rspp_proto::{SessionId, abi::Signal};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Cast, Placed, first, says},
    nodes::{Probes, custom, forward, insert},
};
use rspp_transport_api::Ingress;
use tokio::{sync::mpsc::UnboundedSender, time::Instant};

/// Keeps its thread busy until then.
fn spin_for(span: Duration) {
    let began = Instant::now();
    while began.elapsed() < span {
        std::hint::spin_loop();
    }
}

struct Two {
    runtime: rspp_host::Runtime,
    blocked: (Placed, UnboundedSender<Ingress>),
    healthy: (Placed, UnboundedSender<Ingress>),
    /// When the node began to block.
    since: Arc<Mutex<Option<Instant>>>,
}

/// Two calls, one of them with a node that blocks for `span` between `from` and `to`.
async fn two(from: &str, to: &str, span: Duration) -> Two {
    let since = Arc::new(Mutex::new(None));
    let mut probes = Probes::default();
    let began = Arc::clone(&since);
    probes.add("probe", move |nth, cx: &mut NodeContext, event: Event| {
        let is_first = {
            let mut began = began.lock().expect("nobody panics here");
            let is_first = began.is_none();
            began.get_or_insert_with(Instant::now);
            is_first
        };
        if is_first {
            spin_for(span);
        }
        forward(nth, cx, event)
    });
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers(vec!["Hi there."; 4])),
        ..Cast::default()
    };
    let install = probes.install();
    let mut host = Builder::new(&cast, vec![]).configure(|config| {
        install(config);
        config.notices_blocking = true;
    });
    let runtime = host.runtime().await;
    let mut calls = Vec::new();
    for name in ["blocked", "healthy"] {
        let mut builder = Builder::new(&cast, vec![]);
        builder.session = SessionId::new(name).unwrap();
        builder.script.reply_timeout = Duration::from_mins(1);
        if name == "blocked" {
            builder = builder.pipeline(|spec| insert(spec, from, custom("probe"), to));
        }
        let user = builder.client();
        calls.push((builder.open(&runtime).await.expect("it opens"), user));
    }
    let healthy = calls.pop().expect("two calls");
    let blocked = calls.pop().expect("two calls");
    Two {
        runtime,
        blocked,
        healthy,
        since,
    }
}

fn say((_, user): &(Placed, UnboundedSender<Ingress>)) {
    user.send(Ingress::Text("hello".into())).expect("connected");
}

impl Two {
    /// Waits until the blocked session is degraded, and says how long after its node began to block.
    async fn noticed(&self) -> Duration {
        for _ in 0..1_000 {
            if self.blocked.0.session.status().is_degraded() {
                let since = self.since.lock().expect("nobody panics here");
                return since.expect("it blocks").elapsed();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("nobody noticed");
    }

    /// The other call goes on as ever: a turn of its own, and a cancel that is heard at once.
    async fn the_other_goes_on(&self) {
        let (call, _) = &self.healthy;
        say(&self.healthy);
        call.log.until(Signal::PlaybackStarted, 1).await;
        let began = Instant::now();
        let receipt = call.session.cancel(CancelReason::UserCancel).await;
        assert!(receipt.is_some_and(|receipt| receipt.turn.is_some()));
        // The fence itself takes microseconds; the rest is a busy machine's.
        assert!(began.elapsed() < Duration::from_millis(250));
        call.log.until(Signal::Close, 1).await;
    }
}

/// P16, P18, P22: a node of a turn that computes on a worker's thread is noticed within a second; its
/// turn ends, its call goes on when it lets go, and another call does not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_blocks_its_thread_is_noticed_and_costs_its_turn() {
    let two = two("llm", "segmenter", Duration::from_secs(3)).await;
    say(&two.blocked);
    let noticed = two.noticed().await;
    assert!(noticed < Duration::from_secs(1), "{noticed:?}");
    two.the_other_goes_on().await;
    let (call, _) = &two.blocked;
    call.log.until(Signal::Abort, 1).await;
    let still = two
        .since
        .lock()
        .expect("nobody panics here")
        .expect("it blocks");
    assert!(
        still.elapsed() < Duration::from_secs(3),
        "the turn waited for it"
    );
    assert_eq!(
        call.log.reasons_of(Signal::Degrade),
        ["node_blocks_its_thread"]
    );
    // The next turn is answered, by a new instance.
    say(&two.blocked);
    call.log.until(Signal::Commit, 1).await;

    two.healthy.0.line.hang_up();
    let healthy = two.healthy.0.end().await;
    assert_eq!(healthy.endings(), ["cancelled"]);
    assert!(healthy.report.degraded.is_empty());
    two.blocked.0.line.hang_up();
    let blocked = two.blocked.0.end().await;
    assert_eq!(blocked.endings(), ["node_timeout_or_failure", "commit"]);
    assert!(two.runtime.shut_down(Duration::from_secs(5)).await);
}

/// P16, F-152: in virtual time a node may take as long as this machine likes: the same call goes the same
/// way whatever else the machine does.
#[tokio::test(start_paused = true)]
async fn in_virtual_time_the_wall_ends_no_turn() {
    let mut probes = Probes::default();
    let is_first = AtomicBool::new(true);
    probes.add("probe", move |nth, cx: &mut NodeContext, event: Event| {
        let span = Duration::from_millis(900);
        let took = Stopwatch::start();
        while is_first.load(Ordering::Relaxed) && took.elapsed() < span {
            std::hint::spin_loop();
        }
        is_first.store(false, Ordering::Relaxed);
        forward(nth, cx, event)
    });
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers(["Hi there."])),
        ..Cast::default()
    };
    let ended = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| insert(spec, "llm", custom("probe"), "segmenter"))
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["commit"]);
    assert!(ended.report.degraded.is_empty());
}

/// P18, P15: a listening node that blocks its thread for good costs its session, which ends within its
/// bound and says which node it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_listening_node_that_blocks_its_thread_costs_its_session() {
    let span = Duration::from_secs(8);
    let two = two("ingress", "stt", span).await;
    let noticed = two.noticed().await;
    assert!(noticed < Duration::from_secs(1), "{noticed:?}");
    two.the_other_goes_on().await;
    let report = two
        .blocked
        .0
        .session
        .wait()
        .await
        .expect("it leaves a report");
    let took = two
        .since
        .lock()
        .expect("nobody panics here")
        .expect("it blocks")
        .elapsed();
    assert!(took < span, "it was waited for: {took:?}");
    assert!(
        report
            .ended
            .starts_with("node `probe` has blocked its thread"),
        "{}",
        report.ended
    );
    two.healthy.0.line.hang_up();
    assert_eq!(two.healthy.0.end().await.endings(), ["cancelled"]);
}

/// P16, F-037, F-105: work that keeps its thread of the pool though its turn was cancelled is replaced, so
/// that others compute as before; its session is marked as degraded and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_blocked_worker_is_replaced_and_its_session_marked() {
    let (let_go, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(Some(wait)));
    let mut probes = Probes::default();
    probes.add("probe", move |nth, cx: &mut NodeContext, event: Event| {
        let pool = cx.pool();
        let Some(wait) = wait.lock().expect("nobody panics here").take() else {
            return forward(nth, cx, event);
        };
        Step::Wait(Box::pin(async move {
            let _given_up = pool.run(move || wait.recv().is_ok()).await;
            Ok(())
        }))
    });
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers(vec!["Hi there."; 4])),
        ..Cast::default()
    };
    let pools = Pools::new(1);
    let shared = pools.work.clone();
    let install = probes.install();
    let mut builder = Builder::new(&cast, vec![])
        .pipeline(|spec| insert(spec, "llm", custom("probe"), "segmenter"))
        .configure(move |config| {
            install(config);
            config.pools = pools;
        });
    builder.script.reply_timeout = Duration::from_mins(1);
    builder.script.hang_up_after = Duration::from_mins(1);
    let user = builder.client();
    let call = builder.start().await;
    user.send(Ingress::Text("hello".into())).expect("connected");
    call.log.until(Signal::TurnOpen, 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    call.session.cancel(CancelReason::UserCancel).await;
    call.log.until(Signal::Close, 1).await;
    assert!(!call.session.status().is_degraded());
    // The only thread of the pool is kept; still, somebody else is served.
    let served = tokio::time::timeout(Duration::from_secs(5), shared.run(|| 7)).await;
    assert_eq!(served, Ok(Ok(7)));
    assert_eq!(shared.lost_workers().now, 1);
    let degrade = call.log.until(Signal::Degrade, 1).await;
    let reason = degrade.reason.map(|reason| reason.to_string());
    assert_eq!(reason.as_deref(), Some("blocked_worker_replaced"));
    user.send(Ingress::Text("again".into())).expect("connected");
    call.log.until(Signal::Close, 2).await;
    let_go.send(()).expect("it waits");
    call.line.hang_up();
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    let degraded = &ended.report.degraded[0];
    let node = degraded.node.as_ref().map(ToString::to_string);
    assert_eq!(node.as_deref(), Some("probe"));
}
