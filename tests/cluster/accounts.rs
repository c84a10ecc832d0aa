//! A runtime is replaced under live sessions, and each of them is accounted for.

use std::{collections::BTreeMap, time::Duration};

use rspp_controlplane_api::wire;
use rspp_proto::SessionId;
use rspp_websocket::{protocol::ServerMessage, testing::Client};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::processes::{Fleet, Ground, check, reply, says, speaks};

/// Sessions that each runtime has when it goes.
const EACH: usize = 3;
/// Sessions that are asked for until so many go to one of three.
const MOST_ASKED: usize = 200;
/// How long it may take until the account is what the clients saw.
const SOON: Duration = Duration::from_secs(20);

type Talks = BTreeMap<String, Client>;

/// Live sessions on one runtime, so many, by id; each has said something. Names begin with the runtime's.
async fn talks(fleet: &Fleet, runtime: &str) -> Talks {
    let mut routes = Vec::new();
    for number in 0.. {
        if routes.len() == EACH {
            break;
        }
        assert!(number < MOST_ASKED, "few go to {runtime} {}", fleet.logs());
        let id = SessionId::new(format!("{runtime}-{number}")).unwrap();
        let route = fleet.route(&id).await;
        if route.runtime.as_str() == runtime {
            routes.push((id.to_string(), route));
        }
    }
    // All at once, by what they were told while nobody was there: who is busier than the others is sent nobody.
    let each = routes.into_iter().map(async |(id, route)| {
        let mut client = Fleet::follow(&route.endpoint.url, &route.token.token).await;
        let ready = client.next().await;
        assert!(
            matches!(ready, Some(ServerMessage::Ready(_))),
            "{id}: {ready:?}"
        );
        says(&mut client, "My name is Ada.").await;
        assert_eq!(reply(&mut client).await.0, "commit", "{id}");
        (id, client)
    });
    futures::future::join_all(each).await.into_iter().collect()
}

async fn account(fleet: &Fleet, runtime: &str) -> wire::DrainAccount {
    let request = wire::AccountDrainRequest {
        runtime: runtime.to_owned(),
        incarnation: 0,
    };
    fleet.operator.account_drain(request).await.unwrap()
}

/// Waits until what became of each is what is expected.
async fn accounted(
    fleet: &Fleet,
    runtime: &str,
    expected: &BTreeMap<String, String>,
) -> wire::DrainAccount {
    let began = Instant::now();
    loop {
        let account = account(fleet, runtime).await;
        let each = account
            .sessions
            .iter()
            .map(|it| (it.session.clone(), it.became.clone()));
        let each: BTreeMap<_, _> = each.collect();
        if each == *expected {
            return account;
        }
        assert!(
            began.elapsed() < SOON,
            "{runtime}: {each:?} is not what its clients saw, {expected:?} {}",
            fleet.logs()
        );
        sleep(Duration::from_millis(100)).await;
    }
}

/// What the trail has of a runtime that was emptied.
async fn put_down(fleet: &Fleet, runtime: &str) -> serde_json::Value {
    let began = Instant::now();
    loop {
        let request = wire::ListEntriesRequest {
            operation: "drain_accounted".to_owned(),
            ..wire::ListEntriesRequest::default()
        };
        let entries = fleet.operator.list_entries(request).await.unwrap().entries;
        let mut own = entries.iter().filter(|it| it.subject == runtime);
        if let Some(entry) = own.next_back() {
            return serde_json::from_str(&entry.detail).unwrap();
        }
        assert!(
            began.elapsed() < SOON,
            "{runtime} is not in the trail {}",
            fleet.logs()
        );
        sleep(Duration::from_millis(100)).await;
    }
}

fn drains(how: &str, seconds: u64) -> serde_json::Value {
    json!({ "drain": { "how": how, "deadline": format!("{seconds}s") } })
}

/// NF-016, F-106, P26: of three runtimes each is replaced under live sessions, one by each policy. Whatever a client
/// was told, to go on elsewhere or that it is over, is what the account says of its session; the account names each
/// session that the runtime had and no other, and the trail keeps it.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_accounts_for_each_session_by_each_policy() {
    let ground = Ground {
        settings: BTreeMap::from([
            ("a", drains("finish", 5)),
            ("b", drains("wait", 4)),
            ("c", drains("move", 5)),
        ]),
        ..Ground::default()
    };
    let names = ["a", "b", "c"];
    let mut fleet = Fleet::start_on(ground, &names).await;
    for (name, how) in [
        ("a", wire::DrainHow::Finish),
        ("b", wire::DrainHow::Wait),
        ("c", wire::DrainHow::Move),
    ] {
        let mut clients = talks(&fleet, name).await;
        let had = clients.len();
        let (busy, client) = clients.iter_mut().next().unwrap();
        let busy = busy.clone();
        says(client, "Tell me a long story.").await;
        speaks(client).await;
        fleet.runtimes[name].process.signal(Signal::TERM);
        let mut expected = BTreeMap::new();
        let mut hung_up = None;
        if how == wire::DrainHow::Wait {
            // One hangs up by itself; the others are there when the time is up.
            let (id, client) = clients.iter_mut().find(|(id, _)| **id != busy).unwrap();
            sleep(Duration::from_millis(300)).await;
            client.bye().await;
            hung_up = Some(id.clone());
        }
        // At once: what is not read when its process ends is gone.
        let reading = clients.into_iter().map(async |(id, mut client)| {
            let told = client.until(|_| false).await;
            (id, told)
        });
        for (id, told) in futures::future::join_all(reading).await {
            if hung_up.as_ref() == Some(&id) {
                expected.insert(id, "finished".to_owned());
                continue;
            }
            let Some(ServerMessage::End(ended)) = told.last() else {
                panic!("{id}: {told:?} {}", fleet.logs());
            };
            let became = match &ended.elsewhere {
                Some(to) => {
                    let token = to.token.clone().expect("with a token");
                    let mut client = Fleet::follow(&to.url, &token).await;
                    says(&mut client, "What is my name?").await;
                    let (outcome, heard) = reply(&mut client).await;
                    assert_eq!(outcome, "commit");
                    assert!(heard.contains("Ada"), "{heard}");
                    client.bye().await;
                    "moved"
                }
                // It was let go of, and its client could take it up.
                None => "waits",
            };
            let by_policy = match how {
                wire::DrainHow::Move => "moved",
                wire::DrainHow::Finish | wire::DrainHow::Wait => "waits",
                wire::DrainHow::Unspecified => unreachable!("each has its policy"),
            };
            assert_eq!(became, by_policy, "{id}: {ended:?}");
            expected.insert(id, became.to_owned());
        }
        fleet.ends(name).await;
        let account = accounted(&fleet, name, &expected).await;
        assert_eq!((account.sessions.len(), account.how()), (had, how));
        assert!(account.by.is_empty(), "by itself");
        let why = |id: &str| {
            let found = account.sessions.iter().find(|it| it.session == id);
            found.map(|it| it.why.clone()).unwrap_or_default()
        };
        if let Some(id) = hung_up {
            assert_eq!(why(&id), "the user hung up");
        }
        let told = put_down(&fleet, name).await;
        let became = told["became"].as_object().unwrap();
        let sum: u64 = became.values().filter_map(serde_json::Value::as_u64).sum();
        assert_eq!(sum, had as u64, "it adds up: {told}");
        assert_eq!(told["out_of_order"], json!([]), "{told}");
        println!("{name}: {told}");
        fleet.restart_runtime(name);
        fleet.serves(name).await;
        fleet.ready(name).await;
    }
    check(&fleet.notes());
}

/// NF-016: a runtime is killed in the middle of its drain. What had gone in order is told so; of what was still
/// there is told who went on elsewhere and who is lost, by the account and by the trail: nothing is silent.
#[tokio::test(flavor = "multi_thread")]
async fn what_dies_in_a_drain_is_told_as_lost() {
    let ground = Ground {
        settings: BTreeMap::from([("a", drains("wait", 30))]),
        ..Ground::default()
    };
    let mut fleet = Fleet::start_on(ground, &["a", "b"]).await;
    let mut clients = talks(&fleet, "a").await;
    let mut expected = BTreeMap::new();
    fleet.runtimes["a"].process.signal(Signal::TERM);
    let began = Instant::now();
    while fleet
        .operator
        .account_drain(wire::AccountDrainRequest {
            runtime: "a".to_owned(),
            incarnation: 0,
        })
        .await
        .is_err()
    {
        assert!(began.elapsed() < SOON, "{}", fleet.logs());
        sleep(Duration::from_millis(50)).await;
    }
    let (ended, mut client) = clients.pop_first().unwrap();
    client.bye().await;
    client.until(|_| false).await;
    expected.insert(ended, "finished".to_owned());
    for id in clients.keys() {
        expected.insert(id.clone(), "remains".to_owned());
    }
    accounted(&fleet, "a", &expected).await;
    fleet.runtimes["a"].process.signal(Signal::KILL);
    // One client comes back, and is let in elsewhere; the others do not.
    let (back, _line) = clients.pop_first().unwrap();
    let (at, mut client) = fleet.connect(&SessionId::new(back.clone()).unwrap()).await;
    assert_eq!(at, "b");
    says(&mut client, "What is my name?").await;
    assert!(reply(&mut client).await.1.contains("Ada"));
    expected.insert(back.clone(), "taken_over".to_owned());
    for id in clients.keys() {
        expected.insert(id.clone(), "lost".to_owned());
    }
    let account = accounted(&fleet, "a", &expected).await;
    assert!(!account.alive);
    let taken = account
        .sessions
        .iter()
        .find(|it| it.session == back)
        .unwrap();
    assert_eq!((taken.to.as_str(), taken.epoch), ("b", 2));
    let told = put_down(&fleet, "a").await;
    let losses = told["out_of_order"].as_array().unwrap().len();
    assert_eq!(losses, expected.len() - 1, "{told}");
    println!("{told}");
    let log = fleet.log(crate::processes::ALONE);
    assert!(log.contains("sessions were lost in a drain"), "{log}");
    fleet.runtimes.remove("a");
    check(&fleet.notes());
}
