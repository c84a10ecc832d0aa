//! Killed, frozen, cut off, restarted: the conversation goes on elsewhere with the same id and what was
//! committed, and no two processes speak for it.

use std::time::Duration;

use rspp_controlplane_api::{
    ControlError,
    wire::{DrainRuntimeRequest, GetStatusRequest, Kind, SessionPhase},
};
use rspp_proto::SessionId;
use rspp_tests::{etcd::Cluster, link::Weather};
use rspp_websocket::{protocol::ServerMessage, testing::Client};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;

use crate::processes::{ALONE, Fleet, Ground, check, hello, reply, says, speaks};

/// The default lease, and what the store waits longer.
const TTL: Duration = Duration::from_secs(4);

fn session(name: &str) -> SessionId {
    SessionId::new(name).unwrap()
}

/// A client that the agent knows by name, and tells a long story.
async fn in_a_story(fleet: &Fleet, id: &SessionId) -> (String, Client) {
    let (at, mut client) = fleet.connect(id).await;
    says(&mut client, "My name is Ada.").await;
    let (outcome, heard) = reply(&mut client).await;
    assert_eq!(outcome, "commit");
    assert!(!heard.is_empty());
    says(&mut client, "Tell me a long story.").await;
    speaks(&mut client).await;
    (at, client)
}

/// What was committed is known, wherever the session runs now.
async fn assert_knows_ada(client: &mut Client) {
    says(client, "What is my name?").await;
    let (outcome, heard) = reply(client).await;
    assert_eq!(outcome, "commit");
    assert!(heard.contains("Ada"), "{heard}");
}

/// Goes where a client was told at the end that its session goes on; how long it was without a line.
async fn sent_on(fleet: &Fleet, told: &[ServerMessage]) -> (Client, Duration) {
    let Some(ServerMessage::End(ended)) = told.last() else {
        panic!("{told:?} {}", fleet.logs());
    };
    let moved = Instant::now();
    let to = ended.elsewhere.clone().expect("it goes on elsewhere");
    let mut client = Fleet::follow(&to.url, &to.token.expect("with a token")).await;
    let ready = client.next().await;
    assert!(matches!(ready, Some(ServerMessage::Ready(_))), "{ready:?}");
    (client, moved.elapsed())
}

/// P25, F-095, F-155: a runtime is killed in the middle of a reply, and the session resumes on another with
/// the same id, knowing what was committed; soon after the lease is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_runtime_loses_no_conversation() {
    let mut fleet = Fleet::start(&["a", "b"]).await;
    let id = session("killed");
    let (first, client) = in_a_story(&fleet, &id).await;
    fleet.runtimes[&first].process.signal(Signal::KILL);
    let killed = Instant::now();
    drop(client);

    let (second, mut client) = fleet.connect(&id).await;
    assert_eq!(second, fleet.other(&first));
    let back = killed.elapsed();
    assert_knows_ada(&mut client).await;
    assert!(back < TTL + Duration::from_secs(10), "{back:?}");
    println!("back after {back:?}");
    check(&fleet.notes());
    fleet.runtimes.remove(&first);
}

/// Design §5: a runtime is stopped in the middle of a reply and wakes up when another speaks for the
/// session: not one of its outputs is accepted any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_runtime_wakes_up_to_silence() {
    let fleet = Fleet::start(&["a", "b"]).await;
    let id = session("frozen");
    let (first, mut old) = fleet.connect(&id).await;
    says(&mut old, "Hello.").await;
    reply(&mut old).await;
    says(&mut old, "Tell me a long story.").await;
    speaks(&mut old).await;
    fleet.runtimes[&first].process.signal(Signal::STOP);
    let (second, mut client) = fleet.connect(&id).await;
    assert_eq!(second, fleet.other(&first));
    says(&mut client, "My name is Ada.").await;
    speaks(&mut client).await;
    fleet.runtimes[&first].process.signal(Signal::CONT);
    let (outcome, _) = reply(&mut client).await;
    assert_eq!(outcome, "commit", "{}", fleet.logs());
    // It finds its way back by itself, in another life.
    fleet.ready(&first).await;
    check(&fleet.notes());
}

/// Issue 4: a runtime that is cut off from the control plane, not from its clients, falls silent before
/// its session is another's, and recovers when the way is open again.
#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_is_cut_off_falls_silent_in_time() {
    let fleet = Fleet::start(&["a", "b"]).await;
    let id = session("cut-off");
    let (first, mut old) = in_a_story(&fleet, &id).await;
    fleet.set_weather(&first, Weather::Silent);
    // It speaks on for as long as its lease lasts, and then lets its client go.
    old.until(|_| false).await;
    let (second, mut client) = fleet.connect(&id).await;
    assert_eq!(second, fleet.other(&first));
    assert_knows_ada(&mut client).await;
    fleet.set_weather(&first, Weather::Fair);
    fleet.ready(&first).await;
    check(&fleet.notes());
}

/// Issue 4, 10: a control plane that is killed and comes back is not noticed by those who talk, and takes
/// up what it left.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_control_plane_is_not_noticed() {
    let mut fleet = Fleet::start(&["a"]).await;
    let id = session("restarted");
    let (_, mut client) = fleet.connect(&id).await;
    says(&mut client, "Hello.").await;
    reply(&mut client).await;
    fleet.planes[ALONE].process.signal(Signal::KILL);
    fleet.restart_plane(ALONE);
    fleet.plane_serves(ALONE).await;
    says(&mut client, "Are you still there?").await;
    let (outcome, _) = reply(&mut client).await;
    assert_eq!(outcome, "commit");
    tokio::time::sleep(TTL * 2).await;
    says(&mut client, "And now?").await;
    assert_eq!(reply(&mut client).await.0, "commit");
    let (runtime, epoch) = fleet.holder(&id).await;
    assert_eq!((runtime.as_str(), epoch), ("a", Some(1)));
    check(&fleet.notes());
}

/// Issue 4, 10: a control plane that starts while its cluster of etcd has no majority waits for it, and serves
/// once there is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_waits_for_its_store() {
    let mut cluster = Cluster::start(3).await;
    let ground = Ground {
        etcd: (0..cluster.size())
            .map(|member| cluster.address(member))
            .collect(),
        ..Ground::default()
    };
    let mut fleet = Fleet::start_on(ground, &[]).await;
    fleet.planes[ALONE].process.signal(Signal::TERM);
    fleet.ends(ALONE).await;
    for member in [0, 1] {
        cluster.kill(member);
    }
    fleet.restart_plane(ALONE);
    let waiting = "waiting for the store";
    let by = Instant::now() + Duration::from_secs(30);
    while !fleet.log(ALONE).contains(waiting) {
        assert!(Instant::now() < by, "{}", fleet.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.restart(0).await;
    fleet.plane_serves(ALONE).await;
    fleet.add("a").await;
    let (_, mut client) = fleet.connect(&session("patient")).await;
    says(&mut client, "Hello.").await;
    assert_eq!(reply(&mut client).await.0, "commit");
}

/// Issue 4: the clocks on the walls of a runtime and of its control plane jump, an hour ahead and two hours
/// back, and whoever talks there notices nothing: leases are counted, not read off a clock.
#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_jump_end_no_session() {
    let ground = Ground {
        has_clocks: true,
        ..Ground::default()
    };
    let fleet = Fleet::start_on(ground, &["a"]).await;
    let id = session("clocks");
    let (_, mut client) = fleet.connect(&id).await;
    says(&mut client, "My name is Ada.").await;
    assert_eq!(reply(&mut client).await.0, "commit");
    for (runtime, plane) in [(3_600, 0), (3_600, -7_200), (-7_200, 3_600), (0, 0)] {
        fleet.set_clock("a", runtime);
        fleet.set_clock(ALONE, plane);
        tokio::time::sleep(TTL * 2).await;
        says(&mut client, "What is my name?").await;
        let (outcome, heard) = reply(&mut client).await;
        assert_eq!(outcome, "commit");
        assert!(heard.contains("Ada"), "{heard}");
        let until = fleet.route(&id).await.token.expires.0 / 1_000;
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let ahead = until.cast_signed() - now.as_secs().cast_signed();
        assert!(
            (plane..plane + 600).contains(&ahead),
            "its clock did not jump: {ahead}"
        );
    }
    let (runtime, epoch) = fleet.holder(&id).await;
    assert_eq!((runtime.as_str(), epoch), ("a", Some(1)));
    check(&fleet.notes());
}

/// P26, F-099, F-106, NF-016: a runtime that is asked to end lets its sessions go, tells their clients where
/// they go on, and ends in order; they go on there at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_drained_runtime_hands_its_sessions_over() {
    let mut fleet = Fleet::start(&["a", "b"]).await;
    let id = session("drained");
    let (first, mut client) = fleet.connect(&id).await;
    says(&mut client, "My name is Ada.").await;
    reply(&mut client).await;
    fleet.runtimes[&first].process.signal(Signal::TERM);
    let told = client.until(|_| false).await;
    let (mut client, back) = sent_on(&fleet, &told).await;
    assert_knows_ada(&mut client).await;
    println!("back after {back:?}");
    assert!(back < Duration::from_secs(2), "{back:?}");
    fleet.ends(&first).await;
    check(&fleet.notes());
}

/// F-106, F-113, NF-016: a runtime is emptied by order while it speaks, for longer than a lease. Each reply is
/// heard to its end; then its client is told where to go on, is let in there at once, and is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_is_emptied_cuts_no_reply() {
    let fleet = Fleet::start(&["a", "b"]).await;
    let id = session("story");
    let (first, mut client) = in_a_story(&fleet, &id).await;
    let request = DrainRuntimeRequest {
        runtime: first.clone(),
        migrate: true,
        ..DrainRuntimeRequest::default()
    };
    let ordered = Instant::now();
    fleet.operator.drain_runtime(request).await.unwrap();
    let told = client.until(|_| false).await;
    let outcome = told.iter().find_map(|it| match it {
        ServerMessage::Turn(turn) => Some(turn.outcome.as_str()),
        _another => None,
    });
    assert_eq!(outcome, Some("commit"), "{told:?} {}", fleet.logs());
    let said = ordered.elapsed();
    assert!(said > TTL, "no long story: {said:?}");
    let (mut client, back) = sent_on(&fleet, &told).await;
    println!("it was said for {said:?}, and the line was back after {back:?}");
    assert_knows_ada(&mut client).await;
    assert_eq!(fleet.holder(&id).await.0.as_str(), fleet.other(&first));
    check(&fleet.notes());
}

/// F-099, issue 4, 5: a client that comes to the wrong runtime is told which one its token is for, and is let
/// in there.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_at_the_wrong_runtime_is_told_where_to_go() {
    let fleet = Fleet::start(&["a", "b"]).await;
    let route = fleet.route(&session("misled")).await;
    let wrong = fleet.runtimes[&fleet.other(route.runtime.as_str())].calls;
    let token = route.token.token;
    let mut client = Fleet::follow(&format!("ws://{wrong}/v1/talk"), &token).await;
    let Some(ServerMessage::Error(trouble)) = client.next().await else {
        panic!("it was let in");
    };
    let to = trouble.elsewhere.expect("it is told where to go");
    assert_eq!(to.url, route.endpoint.url);
    let mut client = Fleet::follow(&to.url, &token).await;
    let ready = client.next().await;
    assert!(matches!(ready, Some(ServerMessage::Ready(_))), "{ready:?}");
}

/// F-159: a runtime that has not heard of the fleet lately does not say where a client should go before it has
/// heard or looked again; while nobody answers it sends nobody anywhere, and says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_where_to_go_by_a_view_that_was_refreshed_first() {
    let fleet = Fleet::start(&["a", "b"]).await;
    let route = fleet.route(&session("misled")).await;
    let wrong = fleet.other(route.runtime.as_str());
    let url = format!("ws://{}/v1/talk", fleet.runtimes[&wrong].calls);
    let token = route.token.token;
    fleet.set_weather(&wrong, Weather::Silent);
    tokio::time::sleep(Duration::from_millis(5_300)).await;
    let Err(why) = Fleet::knock(&url, &token).await else {
        panic!("it was let in");
    };
    assert!(why.contains("routing_view_stale"), "{why}");
    fleet.set_weather(&wrong, Weather::Fair);
    let began = Instant::now();
    let to = loop {
        // Its first look may still be on the way that was silent.
        let Ok(mut client) = Fleet::knock(&url, &token).await else {
            assert!(began.elapsed() < TTL * 8, "{}", fleet.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        client.say(hello()).await;
        match client.next().await {
            Some(ServerMessage::Error(trouble)) => break trouble.elsewhere,
            another => panic!("it was let in: {another:?}"),
        }
    };
    assert_eq!(to.expect("it is told where to go").url, route.endpoint.url);
}

/// A policy bundle, which lets a turn speak so many characters.
fn bundle(characters: Option<u64>) -> String {
    let caps = characters
        .map(|most| json!({ "caps": { "turn": { "tts_characters": most }, "action": "refuse" } }));
    json!({
        "schema": "rspp.policy.bundle.v1",
        "policy_resolution_snapshot": "policy/speech",
        "allowed_adaptive_actions": [],
        "providers": caps.unwrap_or(json!({})),
    })
    .to_string()
}

/// F-102, F-099: runtimes run the versions of policy and provider settings that a session is bound to; these
/// roll by themselves, a session keeps its own when another runtime takes it over, and its record says which
/// they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_keeps_its_policy_and_provider_settings() {
    const CUT: &str = "abort: budget_exhausted";
    let mut fleet = Fleet::start(&["a", "b"]).await;
    let answers = async |client: &mut rspp_websocket::testing::Client| {
        says(client, "Hello.").await;
        reply(client).await.0
    };
    let bound = async |fleet: &Fleet, id: &SessionId| {
        let request = GetStatusRequest {
            tenant: "acme".to_owned(),
            session: id.to_string(),
        };
        let status = fleet.operator.get_status(request).await.unwrap();
        let binding = status.binding.unwrap();
        (binding.policy, binding.providers)
    };
    let is = |policy: &str, providers: &str| (policy.to_owned(), providers.to_owned());
    // The first policy lets nobody say anything.
    fleet
        .roll_out(Kind::Policy, "simple-1", bundle(Some(1)))
        .await;
    let first = session("first");
    let (home, mut client) = fleet.connect(&first).await;
    assert_eq!(answers(&mut client).await, CUT);
    // The second does; the first session keeps the first.
    fleet.roll_out(Kind::Policy, "simple-2", bundle(None)).await;
    let second = session("second");
    let (_, mut free) = fleet.connect(&second).await;
    assert_eq!(answers(&mut free).await, "commit");
    assert_eq!(answers(&mut client).await, CUT);
    // Provider settings have versions of their own.
    let settings = bundle(Some(1));
    fleet.roll_out(Kind::Providers, "simple-1", settings).await;
    let third = session("third");
    let (_, mut cut) = fleet.connect(&third).await;
    assert_eq!(answers(&mut cut).await, CUT);
    assert_eq!(answers(&mut free).await, "commit");
    // Whoever takes a session over runs it as what it is.
    fleet.runtimes[&home].process.signal(Signal::KILL);
    for (id, outcome) in [(&first, CUT), (&second, "commit"), (&third, CUT)] {
        let (at, mut client) = fleet.connect(id).await;
        assert_eq!(at, fleet.other(&home));
        assert_eq!(answers(&mut client).await, outcome, "{id}");
    }
    assert_eq!(bound(&fleet, &first).await, is("simple-1", ""));
    assert_eq!(bound(&fleet, &second).await, is("simple-2", ""));
    assert_eq!(bound(&fleet, &third).await, is("simple-2", "simple-1"));
    fleet.runtimes.remove(&home);
}

/// F-101: what the control plane says of a session keeps step with its runtime, from its begin to its end;
/// another tenant is told of no such session.
#[tokio::test(flavor = "multi_thread")]
async fn a_status_keeps_step_with_its_runtime() {
    let fleet = Fleet::start(&["a"]).await;
    let id = session("watched");
    let ask = |tenant: &str| GetStatusRequest {
        tenant: tenant.to_owned(),
        session: id.to_string(),
    };
    let becomes = async |wanted: SessionPhase| {
        let began = Instant::now();
        loop {
            let status = fleet.operator.get_status(ask("acme")).await.unwrap();
            if status.phase() == wanted {
                return status;
            }
            assert!(began.elapsed() < TTL, "{status:?} {}", fleet.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let none = fleet.operator.get_status(ask("acme")).await;
    assert!(matches!(none, Err(ControlError::UnknownSession)));
    let (_, mut client) = fleet.connect(&id).await;
    says(&mut client, "Hello.").await;
    reply(&mut client).await;
    let running = becomes(SessionPhase::Running).await;
    assert_eq!((running.runtime.as_str(), running.epoch), ("a", 1));
    let foreign = fleet.operator.get_status(ask("other")).await;
    assert!(matches!(foreign, Err(ControlError::UnknownSession)));
    client.bye().await;
    client.until(|_| false).await;
    becomes(SessionPhase::Ended).await;
}
