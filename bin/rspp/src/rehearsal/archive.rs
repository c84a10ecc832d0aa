//! An archive that only a rehearsal has: it hangs and fails when the scenario says so, and needs no network.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use rspp_actors::Clock;
use rspp_timeline::export::{Answer, Archive, ArchiveFault, Exports, Kept, fetch, list};

use super::{
    expect::Finding,
    scenario::{Exported, Outage, OutageKind},
};
use crate::{call::export, problem::Problem};

/// How long is waited for an archive once all calls are over.
const PATIENCE: Duration = Duration::from_mins(5);

/// The exports of a rehearsal, and where they end up.
pub(super) struct Archived {
    pub(super) exports: Exports,
    shelf: Arc<Shelf>,
    spool: PathBuf,
}

impl Archived {
    pub(super) fn begin(exported: &Exported, clock: Clock) -> Result<Self, Problem> {
        let shelf = Arc::new(Shelf {
            clock,
            outages: exported.outages.clone(),
            objects: Mutex::default(),
        });
        let spool = std::env::temp_dir().join(format!("rspp-spool-{:016x}", rand::random::<u64>()));
        let archive: Arc<dyn Archive> = Arc::clone(&shelf) as _;
        let exports = Exports::open(archive, &spool, exported.policy.clone(), 1);
        Ok(Self {
            exports: exports
                .map_err(|error| Problem::input(format!("recording.exports: {error}")))?,
            shelf,
            spool,
        })
    }

    /// Whether the archive has every timeline in the end, to the byte.
    pub(super) async fn findings(
        self,
        files: &[PathBuf],
        clock: Clock,
    ) -> Result<Vec<Finding>, Problem> {
        let left = self.exports.drain(export::now(clock), PATIENCE).await;
        let found = list(&*self.shelf, "").await.map_err(Problem::failure)?;
        let mut whole = 0;
        for archived in &found {
            let fetched = fetch(&*self.shelf, &archived.recording).await;
            let fetched = fetched.map_err(Problem::failure)?;
            let is_kept = |file: &&Path| std::fs::read(file).is_ok_and(|it| it == fetched.bytes);
            let of_file = files.iter().map(PathBuf::as_path).find(is_kept);
            whole += usize::from(fetched.is_complete && of_file.is_some());
        }
        drop(self.exports);
        if let Err(error) = std::fs::remove_dir_all(&self.spool) {
            tracing::debug!(%error, "the spool was left where it is");
        }
        let expected = files.len();
        Ok(vec![
            Finding::of(
                "nothing waits for the archive",
                left.recordings == 0,
                || format!("{} timelines", left.recordings),
            ),
            Finding::of(
                format!("the archive has {expected} timelines, to the byte"),
                whole == expected && found.len() == expected,
                || format!("{whole} of {}", found.len()),
            ),
        ])
    }
}

struct Shelf {
    clock: Clock,
    outages: Vec<Outage>,
    objects: Mutex<BTreeMap<String, Bytes>>,
}

impl Shelf {
    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.objects.lock().expect("nobody panics while locked")
    }

    /// Answers, or does as the scenario says that it does now.
    async fn answers(&self) -> Result<(), ArchiveFault> {
        let now = self.clock.now().as_millis() as u64;
        let outage = |it: &&Outage| (it.from_ms..it.to_ms).contains(&now);
        match self.outages.iter().find(outage).map(|it| it.how) {
            None => Ok(()),
            Some(OutageKind::Hangs) => std::future::pending().await,
            Some(OutageKind::Fails) => Err(ArchiveFault::unavailable("as the scenario has it")),
        }
    }
}

impl Archive for Shelf {
    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        Box::pin(async move {
            self.answers().await?;
            self.objects().insert(key.to_owned(), bytes);
            Ok(())
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Bytes>> {
        Box::pin(async move { Ok(self.objects().get(key).cloned()) })
    }

    fn list<'a>(&'a self, under: &'a str) -> Answer<'a, Vec<Kept>> {
        Box::pin(async move {
            let objects = self.objects();
            let under = objects.iter().filter(|(key, _)| key.starts_with(under));
            let kept = under.map(|(key, bytes)| Kept {
                key: key.clone(),
                bytes: bytes.len() as u64,
            });
            Ok(kept.collect())
        })
    }

    fn place(&self) -> &'static str {
        "the scenario's archive"
    }
}
