//! Ending is a supervisor's decision with a deadline.

use std::{sync::Arc, time::Duration};

use rspp_host::{
    OpenError,
    node::{NodeContext, Step},
};
use rspp_proto::{SessionId, abi::Signal};
use rspp_provider_api::scripted::{Conduct, Script, ScriptedLlm, ScriptedTts};
use rspp_tests::{
    call::{Builder, Cast, LONG, assert_nothing_left, first, says},
    nodes::{Probes, custom, insert},
};
use rspp_timeline::verify::verify;
use tokio::time::Instant;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn talkative() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG])),
        ..Cast::default()
    }
}

/// P15, P17: shutting down in the middle of a reply ends it in order, and soon.
#[tokio::test(start_paused = true)]
async fn shutting_down_in_the_middle_of_a_reply_is_orderly_and_bounded() {
    let cast = talkative();
    let call = Builder::new(&cast, vec![says(first())]).start().await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    tokio::time::sleep(ms(500)).await;
    let began = Instant::now();
    assert!(
        call.runtime.shut_down(Duration::from_secs(5)).await,
        "something was killed"
    );
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    assert!(call.runtime.tree().is_empty(), "{:?}", call.runtime.tree());
    let report = call
        .session
        .wait()
        .await
        .expect("the session leaves a report");
    assert_eq!(report.turns.len(), 1);
    assert_eq!(report.turns[0].outcome, "abort");
    let violations = verify(&call.recording.entries());
    assert!(violations.is_empty(), "{violations:#?}");
    assert!(cast.is_idle());
    assert_eq!(call.runtime.sessions(), 0);
    assert_eq!(call.line.leaked(), 0);
}

/// P15, P16: neither a provider that ignores its cancel nor a node that never comes back holds up
/// the end.
#[tokio::test(start_paused = true)]
async fn neither_deaf_providers_nor_hanging_nodes_hold_up_the_end() {
    let deaf = || Script::always(Conduct::good().deaf());
    let llm = ScriptedLlm::new("llm").answers([LONG]);
    let cast = Cast {
        llm: Arc::new(llm.token_every(ms(200)).script(deaf())),
        tts: Arc::new(ScriptedTts::new("tts").script(deaf())),
        ..Cast::default()
    };
    let mut probes = Probes::default();
    probes.add("probe", |nth, cx: &mut NodeContext, event| {
        if nth > 3 {
            return Step::Wait(Box::pin(std::future::pending()));
        }
        cx.forward(event);
        Step::OK
    });
    let call = Builder::new(&cast, vec![says(first())])
        .pipeline(|spec| insert(spec, "llm", custom("probe"), "segmenter"))
        .configure(probes.install())
        .start()
        .await;
    call.log.until(Signal::TurnOpen, 1).await;
    tokio::time::sleep(ms(900)).await;
    let began = Instant::now();
    let _orderly = call.runtime.shut_down(Duration::from_secs(5)).await;
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
    assert!(call.runtime.tree().is_empty());
    tokio::time::sleep(ms(100)).await;
    assert!(cast.is_idle());
}

/// An idle runtime shuts down at once, and takes no session afterwards.
#[tokio::test(start_paused = true)]
async fn a_runtime_that_was_shut_down_takes_no_session() {
    let cast = Cast::default();
    let mut builder = Builder::new(&cast, vec![]);
    let runtime = builder.runtime().await;
    assert!(runtime.shut_down(Duration::from_secs(5)).await);
    let refused = builder.open(&runtime).await.map(|_| ());
    assert!(matches!(refused, Err(OpenError::Closed)), "{refused:?}");
    assert_eq!(runtime.sessions(), 0);
}

/// P20: a hundred short calls leave nothing behind, one after the other.
#[tokio::test(start_paused = true)]
async fn calls_come_and_go_and_leave_nothing_behind() {
    let cast = Cast::default();
    let mut host = Builder::new(&cast, vec![]);
    let runtime = host.runtime().await;
    for n in 0..100 {
        let mut builder = Builder::new(&cast, vec![]);
        builder.session = SessionId::new(format!("call-{n}")).unwrap();
        builder.script.reply_timeout = ms(20);
        builder.script.hang_up_after = ms(0);
        let placed = builder.open(&runtime).await.expect("the session opens");
        placed.end().await;
        assert_nothing_left(&runtime);
    }
    assert!(cast.is_idle());
    assert!(runtime.shut_down(Duration::from_secs(5)).await);
}

/// P15: draining every session empties the node.
#[tokio::test(start_paused = true)]
async fn draining_every_session_empties_the_node() {
    let cast = talkative();
    let mut host = Builder::new(&cast, vec![]);
    let runtime = host.runtime().await;
    let mut placed = Vec::new();
    for n in 0..5 {
        let mut builder = Builder::new(&cast, vec![says(first())]);
        builder.session = SessionId::new(format!("call-{n}")).unwrap();
        placed.push(builder.open(&runtime).await.expect("the session opens"));
    }
    tokio::time::sleep(ms(2_500)).await;
    assert_eq!(runtime.sessions(), 5);
    for call in &placed {
        call.session.drain();
    }
    for call in placed {
        assert_eq!(call.end().await.endings(), ["commit"]);
    }
    assert_nothing_left(&runtime);
}
