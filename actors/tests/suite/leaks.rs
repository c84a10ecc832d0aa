//! Nothing is left of actors that have ended.
#![cfg(target_os = "linux")]

use std::time::Duration;

use rspp_actors::{ChildSpec, Offer};

use crate::kit::{Log, ask, lane, root, system, worker};

const ACTORS: usize = 10_000;
const AT_ONCE: usize = 500;

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux shows it");
    let pages: usize = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("the second number");
    pages * 4096
}

#[tokio::test]
async fn ten_thousand_actors_come_and_go_and_leave_nothing() {
    let (system, log) = (system(), Log::default());
    let parent = root(&system, "p", &log).await;
    let metrics = tokio::runtime::Handle::current().metrics();
    let tasks = metrics.num_alive_tasks();

    let mut after_warm_up = 0;
    for round in 0..ACTORS / AT_ONCE {
        let seen = log.clone();
        ask(&parent, move |ctx| {
            Box::pin(async move {
                let mut children = Vec::new();
                for _ in 0..AT_ONCE {
                    let spec = ChildSpec::transient("c");
                    let child = ctx.spawn(spec, lane(), worker("c", &seen)).await.unwrap();
                    ctx.spawn_task("idle", std::future::ready(()));
                    assert_eq!(child.data.offer(1), Offer::Queued);
                    children.push(child);
                }
                for child in children {
                    ctx.stop_child(child.id, "enough").await;
                }
            })
        })
        .await;
        // Told of every end, and nothing kept of it.
        ask(&parent, |_| Box::pin(async {})).await;
        assert_eq!(log_len(&log.take()), AT_ONCE);
        if round == 3 {
            after_warm_up = resident();
        }
    }
    assert_eq!(system.live(), 1);
    assert_eq!(system.tree().len(), 1);
    let all_gone = async {
        while metrics.num_alive_tasks() > tasks {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), all_gone)
        .await
        .expect("no task is left behind");

    // Other tests of this process run beside this one: leave them room, yet less than 1 KB for each actor.
    let grown = resident().saturating_sub(after_warm_up);
    assert!(grown < 8 << 20, "{grown} bytes after {ACTORS} actors");
}

fn log_len(lines: &[String]) -> usize {
    lines.iter().filter(|line| line.contains("heard")).count()
}
