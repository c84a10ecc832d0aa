//! Nodes that block the thread they are called on: noticed in real time, kept to their own session.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_host::{Event, node::NodeContext};
use rspp_kernel::CancelReason;
use rspp_proto::{SessionId, abi::Signal};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Cast, Placed},
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
    let mut host = Builder::new(&cast, vec![]).configure(probes.install());
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
