//! Every process of a fleet is replaced, one after the other, while people talk.

use std::time::Duration;

use rspp_controlplane_api::wire;
use rspp_tests::{etcd::Cluster, sim::Dice};
use rustix::process::Signal;
use tokio::time::sleep;

use crate::{
    callers::Party,
    processes::{Fleet, Ground, check},
};

const RUNTIMES: [&str; 3] = ["a", "b", "c"];
const MEMBERS: usize = 3;
const CALLERS: u64 = 4;
/// How long people talk before the next process goes.
const TALK: Duration = Duration::from_millis(500);

/// P26, NF-016, F-106: every runtime, every replica of the control plane and every member of etcd is replaced in
/// turn, as an upgrade does, while people talk. Each process ends in order, no session changes its name or
/// has two writers, no turn is lost of which somebody was told that it was committed, and everybody is
/// answered in the end.
#[tokio::test(flavor = "multi_thread")]
async fn everything_is_replaced_while_people_talk() {
    let mut cluster = Cluster::start(MEMBERS).await;
    let ground = Ground {
        etcd: (0..MEMBERS).map(|member| cluster.address(member)).collect(),
        planes: 2,
        ..Ground::default()
    };
    let mut fleet = Fleet::start_on(ground, &RUNTIMES).await;
    let party = Party::begin(&fleet.operator, CALLERS, &mut Dice::new(4));
    let planes: Vec<_> = fleet.planes.keys().cloned().collect();
    for name in RUNTIMES {
        sleep(TALK).await;
        fleet.runtimes[name].process.signal(Signal::TERM);
        fleet.ends(name).await;
        fleet.restart_runtime(name);
        fleet.serves(name).await;
        fleet.ready(name).await;
    }
    for name in &planes {
        sleep(TALK).await;
        fleet.planes[name].process.signal(Signal::TERM);
        fleet.ends(name).await;
        fleet.restart_plane(name);
        fleet.plane_serves(name).await;
    }
    for member in 0..MEMBERS {
        sleep(TALK).await;
        cluster.kill(member);
        cluster.restart(member).await;
    }
    sleep(TALK).await;
    let talked = party.end().await;
    let sum = talked.unwrap_or_else(|why| panic!("{why} {}", fleet.logs()));
    println!("{sum:?}");
    assert!(sum.committed > 0);
    check(&fleet.notes());
    let trail = fleet.operator.verify_trail(wire::VerifyTrailRequest {});
    assert_eq!(trail.await.expect("it is verified").broken, "");
}
