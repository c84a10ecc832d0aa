//! Where timelines are exported to.

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use rspp_actors::Clock;
use rspp_archive::{KeyRing, Place, PlaceError, SealedArchive};
use rspp_proto::Monotonic;
use rspp_timeline::export::{ExportPolicy, Exports, Left};
use serde::Deserialize;

use super::transcript::counted;
use crate::{problem::Problem, specs, terminal};

/// Where timelines are exported to, and where they wait for it.
#[derive(Debug, Args)]
pub(crate) struct ExportOptions {
    /// Export the timeline while it is written: to a directory, `s3://bucket/prefix`, or
    /// `http://host/bucket/prefix`
    #[arg(long, value_name = "PLACE", help_heading = "Output")]
    export: Option<Place>,
    #[command(flatten)]
    spool: SpoolOptions,
    #[command(flatten)]
    keys: KeyOptions,
    /// Settings of exports: a file with `exports: { to: …, spool: …, keys: …, policy: { … } }`; flags win
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    export_settings: Option<PathBuf>,
}

/// A file of settings.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsFile {
    exports: ExportSection,
}

/// Its section for exports.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ExportSection {
    to: Option<String>,
    spool: Option<PathBuf>,
    keys: Option<PathBuf>,
    policy: ExportPolicy,
}

/// What archives are sealed with.
#[derive(Debug, Args)]
pub(crate) struct KeyOptions {
    /// Keys that archives are sealed and opened with, by reference: see `rspp timeline keys --help`
    #[arg(
        long = "archive-keys",
        value_name = "FILE",
        help_heading = "Output",
        env = "RSPP_ARCHIVE_KEYS",
        hide_env = true
    )]
    keys: Option<PathBuf>,
}

impl KeyOptions {
    /// The keys, if some are named.
    pub(crate) fn open(&self) -> Result<Option<Arc<KeyRing>>, Problem> {
        self.keys.as_deref().map(ring).transpose()
    }
}

/// The keys that a file names.
pub(crate) fn ring(path: &Path) -> Result<Arc<KeyRing>, Problem> {
    Ok(Arc::new(KeyRing::open(path).map_err(Problem::input)?))
}

/// Where timelines wait for their archive.
#[derive(Debug, Args)]
pub(crate) struct SpoolOptions {
    /// Where timelines wait for the archive [default: ~/.local/state/rspp/spool]
    #[arg(
        long,
        value_name = "DIR",
        help_heading = "Output",
        env = "RSPP_SPOOL_DIR",
        hide_env = true
    )]
    spool: Option<PathBuf>,
}

impl SpoolOptions {
    /// The directory.
    pub(crate) fn directory(&self) -> Result<PathBuf, Problem> {
        let set = |name| {
            env::var_os(name)
                .filter(|it| !it.is_empty())
                .map(PathBuf::from)
        };
        self.spool
            .clone()
            .or_else(|| Some(set("XDG_STATE_HOME")?.join("rspp/spool")))
            .or_else(|| Some(set("HOME")?.join(".local/state/rspp/spool")))
            .ok_or_else(|| Problem::input("--spool: name a directory, since HOME is not set"))
    }
}

/// How long a command waits for an archive once all else is done.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Opens the exports of this process, as usual.
pub(crate) fn open(
    place: &Place,
    spool: &Path,
    keys: Option<Arc<KeyRing>>,
) -> Result<Exports, Problem> {
    open_under(place, spool, keys, ExportPolicy::default())
}

fn open_under(
    place: &Place,
    spool: &Path,
    keys: Option<Arc<KeyRing>>,
    policy: ExportPolicy,
) -> Result<Exports, Problem> {
    let archive = SealedArchive::open(place, keys)
        .map_err(|error| Problem::input(format!("{place}: {error}")))?;
    let chance = u64::from(std::process::id());
    Exports::open(Arc::new(archive), spool, policy, chance).map_err(Problem::input)
}

/// A clock as exports ask it.
pub(crate) fn now(clock: Clock) -> impl Fn() -> Monotonic + Send {
    move || Monotonic::from_duration(clock.now())
}

/// Says what waits, and what can be done.
pub(crate) fn tell_left(exports: &Exports, left: Left, clock: Clock) {
    let stats = exports.stats(now(clock)());
    let why = stats
        .last_fault
        .map_or(String::new(), |fault| format!(" ({fault})"));
    let waiting = counted(left.recordings as u64, "timeline waits", "timelines wait");
    terminal::note(format!(
        "{waiting} for {}{why}; `rspp timeline export --to {}` goes on",
        exports.place(),
        exports.place()
    ));
}

/// What a command exports, all of its settings read.
#[derive(Debug)]
pub(crate) struct ExportPlan {
    place: Option<Place>,
    spool: Option<PathBuf>,
    keys: Option<Arc<KeyRing>>,
    policy: ExportPolicy,
}

impl ExportOptions {
    /// The command line and the file of settings, which is read this once: it may be the standard input.
    pub(crate) fn read(&self) -> Result<ExportPlan, Problem> {
        let section = self.section()?;
        let place = self.place(&section)?;
        let spool = match (&place, &self.spool.spool, section.spool) {
            (None, _, _) => None,
            (Some(_), None, Some(spool)) => Some(spool),
            (Some(_), Some(_), _) | (Some(_), None, None) => Some(self.spool.directory()?),
        };
        let keys = match (&place, self.keys.open()?, &section.keys) {
            (None, _, _) => None,
            (Some(_), Some(keys), _) => Some(keys),
            (Some(_), None, keys) => keys.as_deref().map(ring).transpose()?,
        };
        Ok(ExportPlan {
            place,
            spool,
            keys,
            policy: section.policy,
        })
    }

    /// What the file of settings says, if there is one.
    fn section(&self) -> Result<ExportSection, Problem> {
        let Some(path) = &self.export_settings else {
            return Ok(ExportSection::default());
        };
        let name = path.display();
        let text = specs::read(path).map_err(|refused| refused.into_problem(""))?;
        let file: SettingsFile = rspp_service::yaml::read(&text)
            .map_err(|error| Problem::input(format!("{name}: {error}")))?;
        let policy = &file.exports.policy;
        policy
            .check()
            .map_err(|error| Problem::input(format!("{name}: exports.policy.{error}")))?;
        Ok(file.exports)
    }

    /// Where to, by the command line or else by the file.
    fn place(&self, section: &ExportSection) -> Result<Option<Place>, Problem> {
        if self.export.is_some() {
            return Ok(self.export.clone());
        }
        let place = section.to.as_deref().map(str::parse).transpose();
        place.map_err(|error: PlaceError| Problem::input(format!("exports.to: {error}")))
    }
}

impl ExportPlan {
    /// Whether virtual time would mean nothing to it.
    pub(crate) fn is_networked(&self) -> bool {
        self.place.as_ref().is_some_and(Place::is_networked)
    }

    /// The exports of this process, with what others have left in the spool; `None` if nobody asked for them.
    pub(crate) async fn open(self, clock: Clock) -> Result<Option<Exports>, Problem> {
        let (Some(place), Some(spool)) = (self.place, self.spool) else {
            return Ok(None);
        };
        let exports = open_under(&place, &spool, self.keys, self.policy)?;
        recover(&exports, clock).await?;
        Ok(Some(exports))
    }
}

/// Takes up what others have left in the spool.
pub(crate) async fn recover(exports: &Exports, clock: Clock) -> Result<u64, Problem> {
    let recovery = exports
        .recover(now(clock)())
        .await
        .map_err(Problem::input)?;
    for (_, error) in &recovery.broken {
        terminal::note(format!("left alone: {error}"));
    }
    Ok(recovery.resumed.len() as u64)
}
