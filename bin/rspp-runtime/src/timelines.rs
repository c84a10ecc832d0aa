//! Where sessions' timelines go, for how long they may wait there, and who may not be recorded here.

use std::{
    io,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use rspp_actors::Clock;
use rspp_archive::{KeyRing, Place, PlaceError, SealedArchive};
use rspp_controlplane::governance::Governance;
use rspp_host::{Begun, PlaneHandle, PlaneStatus, Recorded};
use rspp_proto::{
    Monotonic, Region, SessionId, TenantId, WallClock,
    control::{MAX_REMOVED, Removal, RemovalStep},
};
use rspp_timeline::{
    FileHeader, Options,
    export::{Exports, Over, key_part},
};
use rspp_transport_api::Refusal;
use tokio::sync::watch;

use crate::{Problem, config::Config};

/// How long the archive may take for what is left when the program ends; the rest stays in the spool.
const PATIENCE: Duration = Duration::from_secs(10);

/// The timelines of a runtime's sessions.
pub(crate) struct Timelines {
    exports: Exports,
    region: Region,
    runtime: String,
    clock: Clock,
    /// What the fleet's rules are; a runtime that stands alone has none.
    fleet: Option<watch::Receiver<PlaneStatus>>,
    /// They as they were last read, and out of what: they are asked for with each session, and seldom change.
    read: Mutex<Option<(Arc<str>, Arc<Governance>)>>,
}

impl Timelines {
    /// Opens the archive and the spool that the settings name, and takes up what was left there.
    pub(crate) async fn open(config: &Config, clock: Clock) -> Result<Option<Self>, Problem> {
        let settings = &config.timelines;
        let Some(to) = &settings.to else {
            return Ok(None);
        };
        let wrong = |key: &str, what: &dyn std::fmt::Display| {
            Problem::input(format!("timelines.{key}: {what}"))
        };
        let place: Place = to
            .parse()
            .map_err(|error: PlaceError| wrong("to", &error))?;
        let region = settings.region.as_ref().unwrap_or(&config.region);
        let region = Region::new(region.as_str()).map_err(|error| wrong("region", &error))?;
        let keys = settings.keys.as_deref().map(KeyRing::open).transpose();
        let keys = keys.map_err(|error| wrong("keys", &error))?.map(Arc::new);
        let archive = SealedArchive::open(&place, keys)
            .map_err(|error| wrong("to", &format!("{place}: {error}")))?;
        let chance = u64::from(std::process::id());
        let exports = Exports::open(
            Arc::new(archive),
            &settings.spool,
            settings.policy.clone(),
            chance,
        )
        .map_err(|error| wrong("spool", &error))?;
        let recovery = exports.recover(now(clock)).await;
        let recovery = recovery.map_err(|error| wrong("spool", &error))?;
        for (_, error) in &recovery.broken {
            tracing::error!(%error, "a timeline cannot be exported, and stays where it is");
        }
        if !recovery.resumed.is_empty() {
            let count = recovery.resumed.len();
            tracing::info!(
                count,
                place = exports.place(),
                "timelines of earlier processes are exported"
            );
        }
        Ok(Some(Self {
            exports,
            region,
            runtime: config.name.clone(),
            clock,
            fleet: None,
            read: Mutex::default(),
        }))
    }

    /// Goes by the fleet's rules, if there is a fleet.
    pub(crate) fn following(mut self, plane: Option<&PlaneHandle>) -> Self {
        self.fleet = plane.map(PlaneHandle::status);
        self
    }

    pub(crate) fn exports(&self) -> Exports {
        self.exports.clone()
    }

    /// Where the archive lies.
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// The fleet's rules as they were last heard; `None` for a runtime that stands alone.
    fn rules(&self) -> Result<Option<Arc<Governance>>, Refusal> {
        let Some(fleet) = &self.fleet else {
            return Ok(None);
        };
        let document = fleet
            .borrow()
            .governance
            .as_ref()
            .map(|it| Arc::clone(&it.document));
        let Some(document) = document else {
            let what =
                "where timelines may lie is not known yet: the control plane has not said it";
            return Err(Refusal::Busy(what.to_owned()));
        };
        let mut read = self.read.lock().expect("no code panics while locked");
        if let Some((of, rules)) = &*read
            && Arc::ptr_eq(of, &document)
        {
            return Ok(Some(Arc::clone(rules)));
        }
        let rules: Governance = serde_json::from_str(&document).map_err(|error| {
            Refusal::Failed(format!("the control plane's rules cannot be read: {error}"))
        })?;
        let rules = Arc::new(rules);
        *read = Some((document, Arc::clone(&rules)));
        Ok(Some(rules))
    }

    /// Whether a tenant's timelines may lie in our archive (F-168).
    fn may_lie_here(&self, tenant: &TenantId) -> Result<(), Refusal> {
        let Some(rules) = self.rules()? else {
            return Ok(());
        };
        if rules.residency.allows(tenant, &self.region) {
            return Ok(());
        }
        let allowed = rules.residency.tenants.get(tenant).into_iter().flatten();
        let allowed: Vec<_> = allowed.map(Region::as_str).collect();
        Err(Refusal::NotHere(format!(
            "timelines of {tenant} may lie in {} only, and the archive of {} lies in {}",
            allowed.join(", "),
            self.runtime,
            self.region
        )))
    }

    /// Begins a session's timeline, if it may lie where it would go.
    pub(crate) async fn begin(&self, begun: Begun) -> Result<Recorded, Refusal> {
        self.may_lie_here(&begun.tenant)?;
        let mut header = FileHeader::new(
            begun.session,
            begun.pipeline,
            self.runtime.as_str(),
            begun.policy.recording_level,
            now(self.clock),
            wall_clock(),
        );
        header.tenant_id = Some(begun.tenant);
        let options = Options::under(&begun.policy);
        let begun = self.exports.record(header, options).await;
        let (recorder, recording) =
            begun.map_err(|error| Refusal::Failed(format!("it cannot be recorded: {error}")))?;
        Ok((recorder, Some(recording)))
    }

    /// Removes what has waited for the archive for longer than it may be kept at all, again and again, and puts it
    /// down in the fleet's trail (F-116).
    pub(crate) async fn expire(&self, every: Duration, plane: &PlaneHandle) {
        loop {
            tokio::time::sleep(every).await;
            match self.rules() {
                Ok(Some(rules)) => self.expire_by(&rules, |it| plane.tell_removal(it)).await,
                Ok(None) => return,
                Err(refusal) => tracing::warn!(%refusal, "nothing is removed from the spool"),
            }
        }
    }

    /// As the leader does with archives: what is about to go is put down before it goes, so that nothing goes
    /// without a trace; then what became of it.
    async fn expire_by<F>(&self, rules: &Governance, put_down: impl Fn(Removal) -> F)
    where
        F: Future<Output = Result<(), String>>,
    {
        for batch in self.over(rules).chunks(MAX_REMOVED) {
            let planned = removal(RemovalStep::Planned, names(batch));
            if let Err(why) = put_down(planned).await {
                tracing::error!(
                    why,
                    "what is over stays in the spool: it could not be put down"
                );
                return;
            }
            let (removed, left) = self.remove(batch.to_vec()).await;
            let mut became = Vec::new();
            if !removed.is_empty() {
                tracing::warn!(
                    recordings = removed.join(", "),
                    "timelines were over before the archive had all of them, and were removed"
                );
                became.push(removal(RemovalStep::Done, removed));
            }
            for (recording, error) in left {
                tracing::error!(recording, %error, "a timeline that is over cannot be removed");
                became.push(Removal {
                    why: error.to_string(),
                    ..removal(RemovalStep::Failed, vec![recording])
                });
            }
            for removal in became {
                if let Err(why) = put_down(removal).await {
                    tracing::error!(
                        why,
                        "what became of timelines that were over was not put down"
                    );
                }
            }
        }
    }

    fn over(&self, rules: &Governance) -> Vec<Over> {
        let known: Vec<_> = rules.retention.tenants.keys().collect();
        self.exports.over(wall_clock(), |tenant, session| {
            let tenant = known.iter().find(|it| key_part(it.as_str()) == tenant);
            let of_session = |it: &SessionId| key_part(it.as_str()) == session;
            rules.retention.spooled(tenant.copied(), of_session)
        })
    }

    /// Which went, and which could not. What somebody sends by now is in neither: it goes the next time.
    async fn remove(&self, batch: Vec<Over>) -> (Vec<String>, Vec<(String, io::Error)>) {
        let exports = self.exports.clone();
        let work = move || {
            let (mut removed, mut left) = (Vec::new(), Vec::new());
            for over in batch {
                match exports.remove(&over) {
                    Ok(true) => removed.push(over.recording),
                    Ok(false) => {}
                    Err(error) => left.push((over.recording, error)),
                }
            }
            (removed, left)
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_default()
    }

    /// Gives the archive a while for what is left.
    pub(crate) async fn drain(&self) {
        let left = self.exports.drain(|| now(self.clock), PATIENCE).await;
        if left.recordings > 0 {
            let place = self.exports.place();
            tracing::warn!(
                place,
                timelines = left.recordings,
                bytes = left.bytes,
                "the spool keeps what the archive has not taken"
            );
        }
    }
}

fn names(batch: &[Over]) -> Vec<String> {
    batch.iter().map(|it| it.recording.clone()).collect()
}

fn removal(step: RemovalStep, recordings: Vec<String>) -> Removal {
    Removal {
        step,
        recordings,
        why: String::new(),
    }
}

fn now(clock: Clock) -> Monotonic {
    Monotonic::from_duration(clock.now())
}

fn wall_clock() -> WallClock {
    SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use rspp_archive::ObjectArchive;
    use rspp_controlplane_api::{Snapshot, SnapshotKind};
    use rspp_proto::{
        PipelineVersion,
        spec::{RecordingLevel, RecordingPolicy, RedactSpec},
    };
    use rspp_timeline::export::list;
    use serde_json::{Value, json};

    use super::*;

    struct Ground {
        dir: tempfile::TempDir,
        timelines: Timelines,
        fleet: watch::Sender<PlaneStatus>,
    }

    fn status(rules: Option<&Value>) -> PlaneStatus {
        PlaneStatus {
            governance: rules.map(|rules| Snapshot {
                kind: SnapshotKind::Governance,
                name: "governance/1".to_owned(),
                revision: 1,
                document: rules.to_string().into(),
            }),
            ..PlaneStatus::default()
        }
    }

    impl Ground {
        /// A runtime in `eu` whose archive lies in `us`.
        async fn new(rules: Option<&Value>) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut config = Config {
                region: "eu".to_owned(),
                ..Config::default()
            };
            config.timelines.to = Some(dir.path().join("calls").display().to_string());
            config.timelines.region = Some("us".to_owned());
            config.timelines.spool = dir.path().join("spool");
            config.timelines.policy.last_retry_ms = 100;
            let opened = Timelines::open(&config, Clock::start()).await.unwrap();
            let (fleet, heard) = watch::channel(status(rules));
            let mut timelines = opened.unwrap();
            timelines.fleet = Some(heard);
            Self {
                dir,
                timelines,
                fleet,
            }
        }

        async fn begin(&self, tenant: &str) -> Result<Recorded, Refusal> {
            self.begin_as(tenant, &format!("call-of-{tenant}")).await
        }

        async fn begin_as(&self, tenant: &str, session: &str) -> Result<Recorded, Refusal> {
            let begun = Begun {
                tenant: TenantId::new(tenant).unwrap(),
                session: SessionId::new(session).unwrap(),
                pipeline: PipelineVersion::new("bot/1").unwrap(),
                policy: RecordingPolicy {
                    recording_level: RecordingLevel::L0,
                    allowed_replay_modes: BTreeSet::new(),
                    full_capture: BTreeSet::new(),
                    redact: RedactSpec::default(),
                },
            };
            self.timelines.begin(begun).await
        }

        async fn archived(&self) -> Vec<String> {
            let place = Place::Directory(self.dir.path().join("calls"));
            let archive = ObjectArchive::open(&place).unwrap();
            let found = list(&archive, "").await.unwrap();
            found.into_iter().map(|it| it.recording).collect()
        }

        fn spooled(&self) -> usize {
            fs::read_dir(self.dir.path().join("spool")).unwrap().count()
        }
    }

    /// F-168, NF-034: a tenant that may not lie where the archive does is not recorded here, not even a first byte,
    /// and is told where it may; the others are.
    #[tokio::test]
    async fn nobody_is_recorded_where_they_may_not_lie() {
        let rules = json!({ "residency": { "tenants": { "acme": ["eu"], "zeta": ["eu", "us"] } } });
        let ground = Ground::new(Some(&rules)).await;
        let refusal = ground.begin("acme").await.err().unwrap();
        assert_eq!(
            refusal,
            Refusal::NotHere(
                "timelines of acme may lie in eu only, and the archive of runtime-1 lies in us"
                    .to_owned()
            )
        );
        assert_eq!(ground.spooled(), 0);
        for tenant in ["zeta", "free"] {
            let (_recorder, recording) = ground.begin(tenant).await.unwrap();
            recording.unwrap().close().await.unwrap();
        }
        ground.timelines.drain().await;
        let archived = ground.archived().await;
        assert_eq!(archived.len(), 2, "{archived:?}");
        assert!(archived[0].starts_with("free/") && archived[1].starts_with("zeta/"));
        // Rules that change hold from the next session on.
        ground.fleet.send_replace(status(Some(&json!({}))));
        assert!(ground.begin("acme").await.is_ok());
    }

    /// F-168: while nobody has said where timelines may lie, none begins.
    #[tokio::test]
    async fn without_rules_nobody_is_recorded() {
        let ground = Ground::new(None).await;
        let refusal = ground.begin("acme").await.err().unwrap();
        assert!(matches!(refusal, Refusal::Busy(_)), "{refusal}");
        assert_eq!(ground.spooled(), 0);
    }

    /// F-116: what waits for an archive that is away is removed when its time is over, held or young ones are not.
    #[tokio::test]
    async fn what_waits_too_long_is_removed_from_the_spool() {
        let rules = json!({ "retention": {
            "tenants": { "acme": { "keep_ms": 1 }, "sued": { "keep_ms": 1, "hold": ["call-of-sued"] } },
        }});
        let ground = Ground::new(Some(&rules)).await;
        // Nobody runs the exports: the archive is as good as away.
        for tenant in ["acme", "sued", "zeta"] {
            let (_recorder, recording) = ground.begin(tenant).await.unwrap();
            recording.unwrap().close().await.unwrap();
        }
        let open = ground.begin_as("acme", "call-8").await.unwrap();
        assert_eq!(ground.spooled(), 2 * 4);
        // Has it heard of what was closed.
        ground.timelines.exports.stats(Monotonic::ZERO);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let rules = ground.timelines.rules().unwrap().unwrap();
        let told = Mutex::new(Vec::new());
        let away = async |_: Removal| Err("the control plane is away".to_owned());
        ground.timelines.expire_by(&rules, away).await;
        assert_eq!(ground.spooled(), 2 * 4, "nothing goes without a trace");
        let put_down = async |removal: Removal| {
            let spooled = ground.spooled();
            told.lock().unwrap().push((removal, spooled));
            Ok(())
        };
        for _twice in 0..2 {
            ground.timelines.expire_by(&rules, put_down).await;
        }
        assert_eq!(
            ground.spooled(),
            2 * 3,
            "one was over; another is still written"
        );
        let told = told.into_inner().unwrap();
        let steps: Vec<_> = told.iter().map(|(it, left)| (it.step, *left)).collect();
        let expected = [(RemovalStep::Planned, 2 * 4), (RemovalStep::Done, 2 * 3)];
        assert_eq!(steps, expected, "before it goes, and after");
        let of_acme = told.iter().all(|(it, _)| {
            it.recordings.len() == 1 && it.recordings[0].starts_with("acme/call-of-acme/")
        });
        assert!(of_acme, "{told:?}");
        open.1.unwrap().close().await.unwrap();
        ground.timelines.drain().await;
        let archived = ground.archived().await;
        let tenants: Vec<_> = archived
            .iter()
            .map(|it| it.split('/').next().unwrap())
            .collect();
        assert_eq!(tenants, ["acme", "sued", "zeta"], "{archived:?}");
    }
}
