//! Every process of a fleet is replaced, one after the other, while people talk.

use std::time::Duration;

use rspp_controlplane_api::wire;
use rspp_proto::SessionId;
use rspp_tests::{etcd::Cluster, sim::Dice};
use rustix::process::Signal;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    callers::{Caller, Diary},
    faults::ENDS_WITHIN,
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
    let (stop, stopped) = watch::channel(false);
    let mut dice = Dice::new(4);
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let session = SessionId::new(format!("caller-{number}")).unwrap();
            let operator = std::sync::Arc::clone(&fleet.operator);
            let dice = Dice::new(dice.roll());
            tokio::spawn(Caller::new(operator, session, dice, stopped.clone()).talk())
        })
        .collect();
    let planes: Vec<_> = fleet.planes.keys().cloned().collect();
    for name in RUNTIMES {
        sleep(TALK).await;
        fleet.runtimes[name].process.signal(Signal::TERM);
        let process = |fleet: &mut Fleet| fleet.runtimes.get_mut(name).unwrap().process.ended();
        until_ended(&mut fleet, name, process).await;
        fleet.restart_runtime(name);
        fleet.serves(name).await;
        fleet.ready(name).await;
    }
    for name in &planes {
        sleep(TALK).await;
        fleet.planes[name].process.signal(Signal::TERM);
        let process = |fleet: &mut Fleet| fleet.planes.get_mut(name).unwrap().process.ended();
        until_ended(&mut fleet, name, process).await;
        fleet.restart_plane(name);
        fleet.plane_serves(name).await;
    }
    for member in 0..MEMBERS {
        sleep(TALK).await;
        cluster.kill(member);
        cluster.restart(member).await;
    }
    sleep(TALK).await;
    stop.send_replace(true);
    let mut sum = Diary::default();
    for caller in callers {
        let talked = caller.await.expect("it does not panic");
        sum += talked.unwrap_or_else(|why| panic!("{why} {}", fleet.logs()));
    }
    println!("{sum:?}");
    assert!(sum.committed > 0);
    check(&fleet.notes());
    let trail = fleet.operator.verify_trail(wire::VerifyTrailRequest {});
    assert_eq!(trail.await.expect("it is verified").broken, "");
}

/// Waits for a process to end in order.
async fn until_ended(
    fleet: &mut Fleet,
    name: &str,
    ended: impl Fn(&mut Fleet) -> Option<std::process::ExitStatus>,
) {
    let by = Instant::now() + ENDS_WITHIN;
    loop {
        if let Some(ended) = ended(fleet) {
            assert!(ended.success(), "{name}: {ended} {}", fleet.logs());
            return;
        }
        assert!(Instant::now() < by, "{name} does not end: {}", fleet.logs());
        sleep(Duration::from_millis(20)).await;
    }
}
