//! What runtimes measure, counted by the control plane, and what follows from it.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rspp_controlplane_api::{ControlError, wire};
use rspp_proto::{
    PipelineVersion, ProviderId, SessionId,
    abi::Signal,
    spec::{NodeKind, PipelineSpec},
};
use rspp_tests::web::{Reply, Web};
use rspp_websocket::{protocol::ServerMessage, testing::Client};
use rustix::process::Signal as Sent;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::processes::{ALONE, Fleet, Ground, reply, roll_out, says};

/// How long it may take until something that was measured has led to something.
const SOON: Duration = Duration::from_secs(30);

async fn rules(fleet: &Fleet, document: serde_json::Value) {
    let request = wire::SetGovernanceRequest {
        document: document.to_string(),
        ..wire::SetGovernanceRequest::default()
    };
    fleet.operator.set_governance(request).await.unwrap();
}

async fn rollout(fleet: &Fleet) -> wire::Rollout {
    let request = wire::GetRolloutRequest {
        kind: wire::Kind::Pipeline.into(),
        line: "simple".to_owned(),
    };
    fleet.operator.get_rollout(request).await.unwrap()
}

async fn changed(fleet: &Fleet, change: wire::change::Change) -> Result<(), ControlError> {
    let request = wire::ChangeRolloutRequest {
        kind: wire::Kind::Pipeline.into(),
        line: "simple".to_owned(),
        change: Some(wire::Change {
            change: Some(change),
        }),
        reason: "a test has it so".to_owned(),
        ..wire::ChangeRolloutRequest::default()
    };
    fleet.operator.change_rollout(request).await.map(|_| ())
}

async fn entries(fleet: &Fleet, operation: &str) -> Vec<wire::AuditEntry> {
    let request = wire::ListEntriesRequest {
        operation: operation.to_owned(),
        ..wire::ListEntriesRequest::default()
    };
    fleet.operator.list_entries(request).await.unwrap().entries
}

/// A whole call: which version it got, and whether it was answered.
async fn call(fleet: &Fleet, name: String) -> (String, bool) {
    let session = SessionId::new(name).unwrap();
    let version = fleet.route(&session).await.pipeline.to_string();
    let (_, mut client) = fleet.connect(&session).await;
    says(&mut client, "Hello.").await;
    let answered = timeout(Duration::from_secs(10), reply(&mut client)).await;
    let is_well = answered.is_ok_and(|(outcome, _)| outcome == "commit");
    client.bye().await;
    (version, is_well)
}

/// NF-030, F-093: a version whose provider fails is tried on half of all sessions. What two runtimes have seen of it
/// is judged together: it is gone back from by itself, the trail says why, and the version before goes on. What that
/// cost spends the error budget, which freezes the rollout until somebody lets it go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_fails_is_gone_back_from_and_spends_the_budget() {
    let broken = Web::start(|_asked| Reply::new(503, "overloaded")).await;
    let stands = json!({
        "providers": {
            "scripted": true,
            "openai": { "url": format!("{}/v1", broken.url), "model": "m" },
        },
    });
    let ground = Ground {
        settings: BTreeMap::from([("a", stands.clone()), ("b", stands)]),
        ..Ground::default()
    };
    let fleet = Fleet::start_on(ground, &["a", "b"]).await;
    rules(
        &fleet,
        json!({ "error_budget": { "allowed_per_10k": 100, "min_sessions": 30 } }),
    )
    .await;
    let mut newer = PipelineSpec::simple();
    newer.version = PipelineVersion::new("simple-2").unwrap();
    for node in &mut newer.nodes {
        if node.kind == NodeKind::Llm {
            node.provider = Some(ProviderId::new("openai").unwrap());
        }
    }
    let half = wire::change::Change::Try(wire::Try {
        version: newer.version.to_string(),
        strategy: Some(wire::Strategy {
            strategy: Some(wire::strategy::Strategy::Canary(wire::Canary {
                percent: 50,
                gate: Some(wire::Gate {
                    min_sessions: 6,
                    max_failed_per_10k: 2_000,
                    max_first_audio_p95_ms: None,
                    max_regression_percent: None,
                }),
                ..wire::Canary::default()
            })),
        }),
    });
    let source = serde_json::to_string(&newer).unwrap();
    let kind = wire::Kind::Pipeline;
    roll_out(&fleet.operator, kind, "simple-2", source, half.clone()).await;

    let began = Instant::now();
    let mut calls = Vec::new();
    while rollout(&fleet).await.candidate.is_some() {
        let shown = rollout(&fleet).await.readings;
        assert!(
            began.elapsed() < SOON * 4,
            "{calls:?} {shown:?} {}",
            fleet.logs()
        );
        calls.push(call(&fleet, format!("call-{}", calls.len())).await);
    }
    let of = |version: &str| calls.iter().filter(|(it, _)| it == version).count();
    println!(
        "gone back after {} calls, {:?}",
        calls.len(),
        began.elapsed()
    );
    assert!(of("simple-1") > 0 && of("simple-2") >= 6, "{calls:?}");
    for (version, is_well) in &calls {
        assert_eq!(*is_well, version == "simple-1", "{calls:?}");
    }
    let after = rollout(&fleet).await;
    assert_eq!(after.stable, "simple-1");
    let measured = after.readings.unwrap();
    let (tried, stable) = (measured.candidate.unwrap(), measured.stable.unwrap());
    assert_eq!(measured.tried, "simple-2");
    assert!(
        tried.sessions >= 6 && tried.sessions as usize <= of("simple-2"),
        "{tried:?}"
    );
    assert_eq!((tried.failed, stable.failed), (tried.sessions, 0));
    assert!(
        stable.first_audio_p95_ms.is_some_and(|ms| ms < 10_000),
        "{stable:?}"
    );
    let trail = entries(&fleet, "automatic_rollback").await;
    assert_eq!(trail.len(), 1, "{trail:?}");
    let why = "10000 of 10000 sessions failed, at most 2000 may";
    assert!(trail[0].detail.contains(why), "{}", trail[0].detail);
    assert!(trail[0].detail.contains("simple-2") && trail[0].subject == "pipeline/simple");

    // The version before goes on, until enough was seen to say that the budget is spent.
    while rollout(&fleet).await.frozen.is_empty() {
        assert!(began.elapsed() < SOON * 6, "{calls:?} {}", fleet.logs());
        calls.push(call(&fleet, format!("call-{}", calls.len())).await);
        let last = calls.last().unwrap();
        assert_eq!(*last, ("simple-1".to_owned(), true));
    }
    println!("frozen after {} calls, {:?}", calls.len(), began.elapsed());
    assert_eq!(rollout(&fleet).await.frozen, "budget_spent");
    assert_eq!(entries(&fleet, "automatic_freeze").await.len(), 1);
    let refused = changed(&fleet, half.clone()).await.unwrap_err();
    assert!(refused.to_string().contains("frozen"), "{refused}");
    let thaw = wire::change::Change::Thaw(wire::Nothing {});
    changed(&fleet, thaw).await.unwrap();
    let end = call(&fleet, "after-the-thaw".to_owned()).await;
    assert_eq!(end, ("simple-1".to_owned(), true));
    changed(&fleet, half).await.unwrap();
}

/// What a runtime has counted itself.
async fn metric(fleet: &Fleet, runtime: &str, name: &str) -> u64 {
    let health = fleet.runtimes[runtime].health;
    let mut stream = TcpStream::connect(health).await.unwrap();
    let asked = b"GET /metrics HTTP/1.1\r\nconnection: close\r\n\r\n";
    stream.write_all(asked).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let line = text.lines().find(|line| line.starts_with(name));
    line.map_or(0, |line| {
        let (_, value) = line.rsplit_once(' ').unwrap();
        value.parse::<f64>().unwrap() as u64
    })
}

async fn used(fleet: &Fleet) -> u64 {
    let request = wire::GetUsageRequest {
        tenant: "acme".to_owned(),
    };
    let usage = fleet.operator.get_usage(request).await.unwrap();
    usage.tokens_per_minute
}

/// Waits until the fleet has counted what its runtime has.
async fn all_is_counted(fleet: &Fleet) -> u64 {
    let began = Instant::now();
    loop {
        let here = metric(fleet, "a", "tenant_tokens_total{tenant_id=\"acme\"}").await;
        let there = used(fleet).await;
        if here > 0 && here == there {
            return here;
        }
        assert!(began.elapsed() < SOON, "{here} {there} {}", fleet.logs());
        sleep(Duration::from_millis(100)).await;
    }
}

/// What becomes of something that is said: `commit`, or why no turn opened.
async fn becomes(client: &mut Client, text: &str) -> String {
    says(client, text).await;
    outcome(client).await
}

/// What becomes of what was said last.
async fn outcome(client: &mut Client) -> String {
    let become_of_it = async {
        while let Some(message) = client.next().await {
            match message {
                ServerMessage::Turn(turn) => return turn.outcome,
                ServerMessage::Signal(told)
                    if matches!(told.signal, Signal::Reject | Signal::Defer) =>
                {
                    return told.reason.unwrap_or_default();
                }
                _others_go_before => {}
            }
        }
        panic!("the session ended: {:?}", client.closed);
    };
    let heard = timeout(Duration::from_secs(15), become_of_it).await;
    heard.expect("something becomes of it")
}

/// F-050, F-098: tokens are counted for the whole fleet, each once, also those that were used while the control plane
/// did not answer. A tenant that has used up what it may opens no session, and no turn of one that runs; once it may
/// use more, it is served again.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_count_in_the_whole_fleet_and_their_limit_acts() {
    let fleet = Fleet::start(&["a"]).await;
    // Within one minute of the clock nothing slides out of what is compared.
    let second = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs()
            % 60
    };
    while second() > 15 {
        sleep(Duration::from_millis(500)).await;
    }
    let session = SessionId::new("talks").unwrap();
    let (_, mut client) = fleet.connect(&session).await;
    assert_eq!(becomes(&mut client, "Hello.").await, "commit");
    let before = all_is_counted(&fleet).await;

    says(&mut client, "Are you there?").await;
    // Reports are under way, and nobody answers.
    fleet.planes[ALONE].process.signal(Sent::STOP);
    sleep(Duration::from_secs(1)).await;
    fleet.planes[ALONE].process.signal(Sent::CONT);
    assert_eq!(outcome(&mut client).await, "commit");
    let after = all_is_counted(&fleet).await;
    println!("{before} tokens, and {after} after the control plane was away");
    assert!(after > before);
    assert_eq!(metric(&fleet, "a", "tokens_uncounted_total").await, 0);

    let limited = |limit: u64| {
        let quota = json!({ "limit": limit, "over": "reject" });
        json!({ "admission": { "tenants": { "acme": { "tokens_per_minute": quota } } } })
    };
    rules(&fleet, limited(20)).await;
    // The runtime hears of it with what it reports next.
    let began = Instant::now();
    let why = loop {
        let became = becomes(&mut client, "And now?").await;
        if became != "commit" {
            break became;
        }
        assert!(began.elapsed() < SOON, "{}", fleet.logs());
        sleep(Duration::from_millis(500)).await;
    };
    println!("a turn is refused: {why}");
    assert!(why.contains("admission"), "{why}");
    let newcomer = SessionId::new("newcomer").unwrap();
    let refused = Fleet::route_once(&fleet.operator, &newcomer).await;
    let is_refused = matches!(&refused, Err(ControlError::NotAdmitted { cause, .. })
        if cause == "cp_admission_reject_quota");
    assert!(is_refused, "{refused:?}");
    assert!(used(&fleet).await >= 20);

    rules(&fleet, limited(1_000_000)).await;
    let began = Instant::now();
    while becomes(&mut client, "Better?").await != "commit" {
        assert!(began.elapsed() < SOON, "{}", fleet.logs());
        sleep(Duration::from_millis(500)).await;
    }
    fleet.connect(&newcomer).await;
}
