//! F-116, F-168: what is over in archives goes as its tenant's rule says, with a trace; what cannot go is told.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_archive::{ObjectArchive, Place};
use rspp_controlplane_api::{ControlError, ControlPlane as _, wire};
use rspp_controlplane_server::{KeptIn, Settings};
use rspp_proto::{
    Region,
    control::{Removal, RemovalStep},
};
use rspp_timeline::export::{Aged, Answer, Archive as _, ArchiveFault, Perishable, list};
use serde_json::{Value, json};

use crate::rig::{Rig, settings};

/// How an archive behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Works,
    /// It lets nothing go.
    Locked,
    /// It is not there.
    Away,
}

/// A directory that does not always do what it is asked for.
struct Moody {
    archive: ObjectArchive,
    mood: Mutex<Mood>,
    /// Tries to remove something.
    tried: Mutex<u32>,
}

impl Perishable for Moody {
    fn page<'a>(&'a self, after: &'a str, most: usize) -> Answer<'a, Vec<Aged>> {
        match *self.mood.lock().unwrap() {
            Mood::Works | Mood::Locked => self.archive.page(after, most),
            Mood::Away => Box::pin(async { Err(ArchiveFault::unavailable("no route to host")) }),
        }
    }

    fn remove<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        *self.tried.lock().unwrap() += 1;
        match *self.mood.lock().unwrap() {
            Mood::Works => self.archive.remove(key),
            Mood::Locked => Box::pin(async { Err(ArchiveFault::refused("object is locked")) }),
            Mood::Away => Box::pin(async { Err(ArchiveFault::unavailable("no route to host")) }),
        }
    }

    fn place(&self) -> &'static str {
        "eu-calls"
    }
}

struct Ground {
    rig: Rig,
    archive: Arc<Moody>,
    directory: ObjectArchive,
    _dir: tempfile::TempDir,
}

fn open(path: &Path) -> ObjectArchive {
    ObjectArchive::open(&Place::Directory(path.to_owned())).unwrap()
}

impl Ground {
    async fn start(mood: Mood) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let archive = Arc::new(Moody {
            archive: open(dir.path()),
            mood: Mutex::new(mood),
            tried: Mutex::new(0),
        });
        let kept_in = KeptIn {
            region: Region::new("eu").unwrap(),
            archive: Arc::clone(&archive) as _,
        };
        let rig = Rig::start_as(Settings {
            archives: vec![kept_in],
            expire_every: Duration::from_millis(100),
            ..settings()
        })
        .await;
        Self {
            rig,
            archive,
            directory: open(dir.path()),
            _dir: dir,
        }
    }

    async fn record(&self, recording: &str) {
        for object in [
            "000000000000000.part",
            "000000000000900.part",
            "manifest.json",
        ] {
            let key = format!("{recording}/{object}");
            self.directory.put(&key, "bytes".into()).await.unwrap();
        }
    }

    async fn rules(&self, rules: Value) -> Result<(), String> {
        let request = wire::SetGovernanceRequest {
            document: rules.to_string(),
            ..wire::SetGovernanceRequest::default()
        };
        let set = self.rig.admin().set_governance(request).await;
        set.map(drop).map_err(|error| error.to_string())
    }

    async fn left(&self) -> Vec<String> {
        let found = list(&self.directory, "").await.unwrap();
        found.into_iter().map(|it| it.recording).collect()
    }

    /// What the trail says of timelines: operation, subject, tenant, details.
    async fn told(&self) -> Vec<(String, String, String, Value)> {
        let all = wire::ListEntriesRequest {
            page_size: 500,
            ..wire::ListEntriesRequest::default()
        };
        let entries = self.rig.admin().list_entries(all).await.unwrap().entries;
        let of_timelines = entries
            .into_iter()
            .filter(|it| it.operation.starts_with("timelines"));
        of_timelines
            .map(|it| {
                let detail = serde_json::from_str(&it.detail).unwrap();
                (it.operation, it.subject, it.tenant, detail)
            })
            .collect()
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn(&Self) -> bool) {
        for _ in 0..200 {
            if is_so(self).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{what}: {:?} {:#?}", self.left().await, self.told().await);
    }

    async fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (operation, ..) in self.told().await {
            *counts.entry(operation).or_default() += 1;
        }
        counts
    }
}

/// F-116: short for one tenant, long for another; what goes is put down before and after, the chain holds, and
/// neither another tenant's nor what is held is touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_tenants_timelines_go_by_its_own_rule_and_leave_a_trace() {
    let ground = Ground::start(Mood::Works).await;
    for recording in [
        "acme/a/1-1",
        "acme/b/2-1",
        "sued/a/1-1",
        "sued/call=2F7/1-1",
        "zeta/a/1-1",
    ] {
        ground.record(recording).await;
    }
    let rules = json!({ "retention": {
        "keep_ms": 3_600_000,
        "tenants": {
            "acme": { "keep_ms": 1 },
            "sued": { "keep_ms": 1, "hold": ["call/7"] },
        },
    }});
    ground.rules(rules).await.unwrap();
    ground
        .until("what is over goes", async |it| {
            it.left().await == ["sued/call=2F7/1-1", "zeta/a/1-1"]
        })
        .await;
    ground
        .until("what is held is told", async |it| {
            it.counts().await.contains_key("timelines_held")
        })
        .await;
    let told = ground.told().await;
    let of = |operation: &str, subject: &str| {
        let mut found = told
            .iter()
            .filter(|it| it.0 == operation && it.1 == subject);
        let one = found
            .next()
            .unwrap_or_else(|| panic!("{operation} {subject}: {told:#?}"));
        assert!(
            found.next().is_none(),
            "{operation} {subject} once: {told:#?}"
        );
        assert_eq!(one.2, subject, "of that tenant");
        one.3.clone()
    };
    let expire = of("timelines_expire", "acme");
    assert_eq!(expire["recordings"], json!(["acme/a/1-1", "acme/b/2-1"]));
    assert_eq!(
        (&expire["region"], &expire["kept_ms"]),
        (&json!("eu"), &json!(1))
    );
    let removed = of("timelines_removed", "acme");
    assert_eq!(
        (&removed["recordings"], &removed["bytes"]),
        (&json!(2), &json!(30))
    );
    assert!(
        removed["newest_ms"].as_u64().unwrap() > 1_700_000_000_000,
        "until when: {removed}"
    );
    assert_eq!(of("timelines_removed", "sued")["recordings"], 1);
    assert_eq!(of("timelines_held", "sued")["recordings"], 1);
    // Many passes later nothing more is said, and the hold may be lifted.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(ground.told().await.len(), told.len());
    ground
        .rules(json!({ "retention": { "keep_ms": 1 } }))
        .await
        .unwrap();
    ground
        .until("all goes", async |it| it.left().await.is_empty())
        .await;
    let verified = ground
        .rig
        .admin()
        .verify_trail(wire::VerifyTrailRequest {})
        .await
        .unwrap();
    assert_eq!(verified.broken, "");
}

/// F-116: what an archive does not let go, and an archive that is not there, are told once and tried on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_go_is_told_and_tried_again() {
    let ground = Ground::start(Mood::Locked).await;
    ground.record("acme/a/1-1").await;
    ground
        .rules(json!({ "retention": { "keep_ms": 1 } }))
        .await
        .unwrap();
    ground
        .until("it is told", async |it| {
            it.counts().await.contains_key("timelines_not_removed")
        })
        .await;
    let tried = *ground.archive.tried.lock().unwrap();
    ground
        .until("it is tried on", async |it| {
            *it.archive.tried.lock().unwrap() > tried + 2
        })
        .await;
    let told = ground.told().await;
    let names: Vec<_> = told.iter().map(|it| it.0.as_str()).collect();
    assert_eq!(
        names,
        ["timelines_expire", "timelines_not_removed"],
        "{told:#?}"
    );
    assert_eq!(
        (&told[1].3["why"], &told[1].3["some"]),
        (&json!("object is locked"), &json!(["acme/a/1-1"]))
    );
    *ground.archive.mood.lock().unwrap() = Mood::Away;
    ground
        .until("that it is away is told", async |it| {
            it.told()
                .await
                .iter()
                .any(|it| it.1 == "eu-calls" && it.3["why"] == "no route to host")
        })
        .await;
    assert_eq!(ground.left().await, ["acme/a/1-1"]);
    *ground.archive.mood.lock().unwrap() = Mood::Works;
    ground
        .until("it goes", async |it| it.left().await.is_empty())
        .await;
    ground
        .until("and that is told", async |it| {
            it.counts().await.contains_key("timelines_removed")
        })
        .await;
}

/// F-116: nobody can set a rule that lets go what has to be kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_below_the_least_cannot_be_set() {
    let ground = Ground::start(Mood::Works).await;
    let short = json!({ "retention": {
        "at_least_ms": 86_400_000,
        "tenants": { "acme": { "keep_ms": 1_000 } },
    }});
    let error = ground.rules(short).await.unwrap_err();
    let told = "retention: acme: 1000 ms are less than at_least_ms, 86400000, which has to be kept";
    assert!(error.contains(told), "{error}");
}

/// F-168, NF-034: what lies in a region where its tenant's may not is found and told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_where_it_may_not_is_told() {
    let ground = Ground::start(Mood::Works).await;
    for recording in ["acme/a/1-1", "zeta/a/1-1"] {
        ground.record(recording).await;
    }
    let rules = json!({ "residency": { "tenants": { "acme": ["us"], "zeta": ["eu"] } } });
    ground.rules(rules).await.unwrap();
    ground
        .until("it is told", async |it| {
            it.counts().await.contains_key("timelines_out_of_place")
        })
        .await;
    let told = ground.told().await;
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!(told[0].1, "acme");
    assert_eq!(
        told[0].3,
        json!({ "archive": "eu-calls", "region": "eu", "recordings": 1 })
    );
}

/// F-116: what a runtime removes from its spool is in the trail in the same words, each tenant's apart, told by that
/// runtime and nobody else, and as long as it lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_leaves_a_spool_leaves_a_trace() {
    let ground = Ground::start(Mood::Works).await;
    let node = ground.rig.node("a").await;
    let removal = |step, recordings: &[&str], why: &str| Removal {
        step,
        recordings: recordings.iter().map(|it| (*it).to_owned()).collect(),
        why: why.to_owned(),
    };
    let note = |it| node.client.tell_removal(&node.holder(), it);
    let both = ["acme/a/1-1", "zeta/a/1-1"];
    note(removal(RemovalStep::Planned, &both, ""))
        .await
        .unwrap();
    note(removal(RemovalStep::Done, &both[..1], ""))
        .await
        .unwrap();
    let failed = removal(RemovalStep::Failed, &both[1..], "permission denied");
    note(failed).await.unwrap();
    let spool = json!({ "runtime": "a", "incarnation": 1 });
    let entry = |operation: &str, tenant: &str, detail: Value| {
        (
            operation.to_owned(),
            tenant.to_owned(),
            tenant.to_owned(),
            detail,
        )
    };
    let of_acme = json!({ "spool": spool, "recordings": ["acme/a/1-1"] });
    let of_zeta = json!({ "spool": spool, "recordings": ["zeta/a/1-1"] });
    let why = json!({ "spool": spool, "recordings": ["zeta/a/1-1"], "why": "permission denied" });
    assert_eq!(
        ground.told().await,
        [
            entry("timelines_expire", "acme", of_acme.clone()),
            entry("timelines_expire", "zeta", of_zeta),
            entry("timelines_removed", "acme", of_acme),
            entry("timelines_not_removed", "zeta", why),
        ]
    );
    for (wrong, told) in [
        (
            removal(RemovalStep::Done, &[], ""),
            "are 0: 1 to 32 are taken",
        ),
        (
            removal(RemovalStep::Done, &["acme"], ""),
            "not `tenant/session/…`",
        ),
    ] {
        let error = note(wrong).await.unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
    let others = ground.rig.client("runtime/b");
    let foreign = others.tell_removal(&node.holder(), removal(RemovalStep::Done, &both, ""));
    assert!(matches!(foreign.await, Err(ControlError::Denied { .. })));
    assert_eq!(ground.told().await.len(), 4);
}
