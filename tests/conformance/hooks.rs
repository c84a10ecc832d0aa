//! A node's hooks: each once, awaited for no longer than their time, and never by anybody else.

use std::{
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use rspp_host::{
    OpenError,
    node::{Hook, NodeContext, Step},
};
use rspp_kernel::CancelReason;
use rspp_proto::{Payload, SessionId, abi::Signal};
use rspp_provider_api::scripted::ScriptedLlm;
use rspp_tests::{
    call::{Builder, Cast, Ended, LONG, REPLY, assert_nothing_left, first, over_reply, says},
    nodes::{Hooks, Probes, add, custom, get, insert},
};
use rspp_transport_api::loopback::Start;
use tokio::time::Instant;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn counts(hooks: &Hooks) -> [u32; 3] {
    [get(&hooks.init), get(&hooks.start), get(&hooks.stop)]
}

fn hang<'a>() -> Step<'a> {
    Step::Wait(Box::pin(std::future::pending()))
}

/// Hangs in `hook` of the first instance, waits a little in every other.
fn hanging_once_in(
    hook: Hook,
) -> impl for<'a> Fn(Hook, &'a mut NodeContext) -> Step<'a> + Send + Sync + 'static {
    let seen = AtomicU32::new(0);
    move |called, _cx| {
        if called.as_str() == hook.as_str() && add(&seen) == 1 {
            return hang();
        }
        Step::Wait(Box::pin(async {
            tokio::time::sleep(ms(5)).await;
            Ok(())
        }))
    }
}

/// Two calls of the user, with a node `probe` on the edge between the model and the segmenter.
fn with_probe(cast: &Cast, probes: Probes) -> Builder {
    let said = vec![says(first()), says(Start::At(Duration::from_secs(6)))];
    Builder::new(cast, said)
        .pipeline(|spec| insert(spec, "llm", custom("probe"), "segmenter"))
        .configure(probes.install())
}

fn errors(ended: &Ended) -> Vec<String> {
    let payloads = ended.log.payloads().into_iter();
    payloads
        .filter_map(|payload| match payload {
            Payload::Error(note) => Some(note.message),
            _something_else => None,
        })
        .collect()
}

/// F-012: a hook may wait; it is called once an instance all the same, and what it delays is its node.
#[tokio::test(start_paused = true)]
async fn a_hook_may_wait() {
    let mut probes = Probes::default();
    let hooks = probes.add_hooked("probe", |_hook, _cx| {
        Step::Wait(Box::pin(async {
            tokio::time::sleep(ms(100)).await;
            Ok(())
        }))
    });
    let cast = Cast::default();
    let ended = with_probe(&cast, probes).hold().await;
    assert_eq!(ended.endings(), ["commit", "commit"]);
    assert_eq!(counts(&hooks), [2, 2, 2]);
    assert!(ended.report.degraded.is_empty(), "{:?}", ended.report);
}

/// F-012, turn-plan §8: a hook that hangs at the beginning fails its turn with a clear error once its
/// 250 ms are up; the next turn has an instance of its own.
#[tokio::test(start_paused = true)]
async fn a_beginning_that_hangs_fails_its_turn_and_says_so() {
    for hook in [Hook::Init, Hook::Start] {
        let mut probes = Probes::default();
        let hooks = probes.add_hooked("probe", hanging_once_in(hook));
        let cast = Cast::default();
        let ended = with_probe(&cast, probes).hold().await;
        assert_eq!(
            ended.endings(),
            ["node_timeout_or_failure", "commit"],
            "{hook}"
        );
        let message = format!("`{hook}` took longer than 250 ms");
        let told = errors(&ended);
        assert!(told.iter().any(|told| told.contains(&message)), "{told:?}");
        let anchors = &ended.turn(1).anchors;
        let opened = anchors.turn_open_emitted_ts.expect("it was opened");
        let aborted = ended.log.signals_of(Signal::Abort)[0]
            .envelope
            .runtime_timestamp_ms;
        // Its neighbours, the hooks that do not hang, take 5 ms each.
        let expected = if hook == Hook::Init { 250 } else { 260 };
        assert_eq!(aborted - opened.as_millis(), expected);
        // What was initialised is stopped; what was not is not.
        let stopped = if hook == Hook::Init { 1 } else { 2 };
        let started = if hook == Hook::Init { 1 } else { 2 };
        assert_eq!(counts(&hooks), [2, started, stopped], "{hook}");
    }
}

/// F-012, P24: a listening node that hangs at its beginning refuses its session, and holds up no other.
#[tokio::test(start_paused = true)]
async fn a_listening_node_that_hangs_holds_up_no_other_session() {
    let mut probes = Probes::default();
    probes.add_hooked("probe", |hook, _cx| match hook {
        Hook::Start => hang(),
        _others => Step::OK,
    });
    let cast = Cast::default();
    let mut stuck = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| insert(spec, "stt", custom("probe"), "turn"))
        .configure(probes.install());
    stuck.session = SessionId::new("stuck").unwrap();
    let runtime = stuck.runtime().await;
    let began = Instant::now();
    let healthy = async {
        let healthy = Builder::new(&cast, vec![says(first())]).open(&runtime);
        let healthy = healthy.await.expect("the session opens");
        (began.elapsed(), healthy)
    };
    let (refused, (after, healthy)) = tokio::join!(stuck.open(&runtime), healthy);
    let Err(refused) = refused else {
        panic!("a session whose node hangs was opened");
    };
    assert!(matches!(refused, OpenError::Start(_)), "{refused}");
    let told = refused.to_string();
    assert!(told.contains("`start` took longer than 250 ms"), "{told}");
    assert_eq!(
        after,
        Duration::ZERO,
        "it waited for another session's node"
    );
    assert_eq!(runtime.sessions(), 1, "the refused one holds no place");
    assert_eq!(healthy.end().await.endings(), ["commit"]);
    assert_nothing_left(&runtime);
}

/// F-012, P15: a node that hangs in its end is let go of when its time is up; it costs nobody a turn,
/// and it is told.
#[tokio::test(start_paused = true)]
async fn an_end_that_hangs_is_cut_short() {
    let mut probes = Probes::default();
    let hooks = probes.add_hooked("probe", hanging_once_in(Hook::Stop));
    let cast = Cast::default();
    let ended = with_probe(&cast, probes).hold().await;
    assert_eq!(ended.endings(), ["commit", "commit"]);
    assert_eq!(counts(&hooks), [2, 2, 2]);
    let told = errors(&ended);
    let expected = "its hook `stop` failed: `stop` took longer than 250 ms";
    assert_eq!(told, [expected]);
    assert_eq!(ended.report.degraded.len(), 1);
    assert_eq!(ended.report.degraded[0].reason, "node_hook_failed");
}

/// F-012, F-036: a cancel does not wait for a node that is still beginning.
#[tokio::test(start_paused = true)]
async fn a_cancel_reaches_a_node_that_is_still_beginning() {
    let mut probes = Probes::default();
    let hooks = probes.add_hooked("probe", hanging_once_in(Hook::Start));
    let cast = Cast::default();
    let call = with_probe(&cast, probes).start().await;
    call.log.until(Signal::TurnOpen, 1).await;
    tokio::time::sleep(ms(50)).await;
    let began = Instant::now();
    call.session.cancel(CancelReason::UserCancel).await;
    call.log.until(Signal::Close, 1).await;
    assert!(began.elapsed() <= ms(10), "{:?}", began.elapsed());
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_eq!(counts(&hooks), [2, 2, 2]);
}

/// F-012, F-038: a hook that tells of a cancel may wait too, and one that hangs is cut short.
#[tokio::test(start_paused = true)]
async fn hooks_of_an_interruption_are_called_in_order_and_cut_short() {
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut probes = Probes::default();
    let called = Arc::clone(&order);
    probes.add_hooked("probe", move |hook, _cx| {
        called
            .lock()
            .expect("nobody panics here")
            .push(hook.as_str());
        match hook {
            Hook::BargeIn => hang(),
            _others => Step::OK,
        }
    });
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, REPLY])),
        ..Cast::default()
    };
    let ended = Builder::new(&cast, vec![says(first()), says(over_reply(900))])
        .pipeline(|spec| insert(spec, "llm", custom("probe"), "segmenter"))
        .configure(probes.install())
        .hold()
        .await;
    assert_eq!(ended.endings(), ["cancelled", "commit"]);
    assert_eq!(
        *order.lock().expect("nobody panics here"),
        [
            "init",
            "start",
            "on_barge_in",
            "on_cancel",
            "stop",
            "init",
            "start",
            "stop"
        ]
    );
    let told = errors(&ended);
    assert!(told[0].contains("`on_barge_in` took longer"), "{told:?}");
}
