//! What a session had is free when it is over: a binary of its own, so that nobody else's memory, tasks
//! and handles are counted (P19, P20).

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by its panic"
)]

use std::time::Duration;

use rspp_host::Runtime;
use rspp_proto::SessionId;
use rspp_tests::{
    bench::resident,
    call::{Builder, Cast, assert_nothing_left, first, over_reply, says},
};

/// Sessions at a time.
const AT_ONCE: usize = 50;
/// Sessions after which nothing is learned any more: lanes, pools and the allocator are as large as they
/// get.
const WARM: usize = 100;
/// Sessions that are looked at.
const SESSIONS: usize = 400;
/// Times that they are, at most.
const ROUNDS: usize = 3;
/// Bytes that each may leave behind; one that listens takes a hundred times that.
const LEFT: f64 = 1_024.0;
/// Every tenth of them holds a conversation that is interrupted; the others hang up at once.
const TALKS_EVERY: usize = 10;

/// Opens so many sessions, and waits until all of them are over.
async fn hold(runtime: &Runtime, cast: &Cast, from: usize, count: usize) {
    for begin in (from..from + count).step_by(AT_ONCE) {
        let mut ending = Vec::with_capacity(AT_ONCE);
        for n in begin..begin + AT_ONCE {
            let (said, patience) = if n % TALKS_EVERY == 0 {
                (vec![says(first()), says(over_reply(400))], 4_000)
            } else {
                (Vec::new(), 200)
            };
            let mut builder = Builder::new(cast, said);
            builder.session = SessionId::new(format!("call-{n}")).unwrap();
            builder.script.reply_timeout = Duration::from_millis(patience);
            builder.script.hang_up_after = Duration::from_millis(200);
            let placed = builder.open(runtime).await.expect("the session opens");
            ending.push(placed.end());
        }
        for ended in futures::future::join_all(ending).await {
            // What is still held when the report is written is the report's own.
            let memory = ended.report.memory.expect("it is accounted");
            assert_eq!(memory.held, 0, "{memory:?}");
        }
        assert_nothing_left(runtime);
    }
}

fn tasks() -> usize {
    tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks()
}

fn handles() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// P19, P20, F-107: after hundreds of sessions there are no more tasks, no more actors and no more
/// handles than after the first ones, none is held by any account, and the process is as large as it was.
#[tokio::test(start_paused = true)]
async fn hundreds_of_sessions_leave_nothing() {
    let cast = Cast::default();
    let runtime = Builder::new(&cast, Vec::new()).runtime().await;
    hold(&runtime, &cast, 0, WARM).await;
    let (tasks_before, handles_before) = (tasks(), handles());
    let actors_before = runtime.tree().len();
    // The allocator gives back what is free when it comes to it; what is left behind grows every time.
    let mut each = f64::INFINITY;
    for round in 0..ROUNDS {
        let before = resident();
        hold(&runtime, &cast, WARM + round * SESSIONS, SESSIONS).await;
        each = each.min((resident() - before) / SESSIONS as f64);
        if each < LEFT {
            break;
        }
    }
    assert_eq!(tasks(), tasks_before);
    assert_eq!(handles(), handles_before);
    assert_eq!(runtime.tree().len(), actors_before);
    assert!(cast.is_idle(), "a provider still works for somebody");
    assert!(each < LEFT, "{each:.0} bytes a session are left");
    assert!(runtime.shut_down(Duration::from_secs(5)).await);
}
