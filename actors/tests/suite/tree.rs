//! What is seen of a system from outside.

use rspp_actors::{ActorState, ChildSpec, Offer};

use crate::kit::{Log, child, fail_in, hold, root, system};

#[tokio::test(start_paused = true)]
async fn the_tree_lists_parents_before_children_in_start_order() {
    let (system, log) = (system(), Log::default());
    let node = root(&system, "node", &log).await;
    let sessions = child(&node, ChildSpec::permanent("sessions"), &log).await;
    let export = child(&node, ChildSpec::permanent("export"), &log).await;
    let s1 = child(&sessions, ChildSpec::temporary("s1"), &log).await;
    child(&s1, ChildSpec::temporary("turn-0001"), &log).await;

    let tree = system.tree();
    let paths: Vec<_> = tree.iter().map(|actor| actor.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "node",
            "node/sessions",
            "node/sessions/s1",
            "node/sessions/s1/turn-0001",
            "node/export"
        ]
    );
    assert_eq!(tree[0].parent, None);
    assert_eq!(tree[1].parent, Some(node.id));
    assert_eq!(tree[2].parent, Some(sessions.id));
    assert_eq!(tree[4].parent, Some(node.id));
    assert_eq!(tree[4].id, export.id);
    assert!(tree.iter().all(|actor| actor.kind == "worker"));
    assert_eq!(system.live(), 5);
}

#[tokio::test(start_paused = true)]
async fn an_actor_shows_its_state_its_depths_and_what_it_handled() {
    let (system, log) = (system(), Log::default());
    let p = root(&system, "p", &log).await;
    let c = child(&p, ChildSpec::permanent("c"), &log).await;
    let let_go = hold(&c).await;
    assert_eq!(c.data.offer(1), Offer::Queued);
    assert_eq!(c.data.offer(2), Offer::Queued);
    assert_eq!(c.telemetry.offer(3), Offer::Queued);
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;

    let shown = serde_json::to_value(&system.tree()[1]).unwrap();
    assert_eq!(
        shown,
        serde_json::json!({
            "id": c.id.get(), "parent": p.id.get(), "path": "p/c", "kind": "worker", "state": "busy",
            "restarts": 0, "depths": { "control": 0, "data": 2, "telemetry": 1 },
            "data_displaced": 0, "telemetry_dropped": 0, "handled": 1, "uptime_ms": 1500, "last_exit": null,
        })
    );
    drop(let_go);
    log.wait_for(5).await;
    tokio::task::yield_now().await;
    let info = system.tree().remove(1);
    assert_eq!((info.state, info.handled), (ActorState::Idle, 4));

    fail_in(&c);
    log.wait_for(2).await;
    let info = system.tree().remove(1);
    assert_eq!(info.state, ActorState::Restarting);
    assert_eq!(info.last_exit.as_deref(), Some("failed: on purpose"));
    log.wait_for(1).await;
    let info = system.tree().remove(1);
    assert_eq!((info.restarts, info.id), (1, c.id));
    assert_eq!(info.handled, 5, "counted over restarts");
}
