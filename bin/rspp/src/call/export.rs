//! Where timelines are exported to.

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use rspp_actors::Clock;
use rspp_archive::{ObjectArchive, Place};
use rspp_proto::Monotonic;
use rspp_timeline::export::{ExportPolicy, Exports, Left};

use super::transcript::counted;
use crate::{problem::Problem, terminal};

/// Where timelines are exported to, and where they wait for it.
#[derive(Debug, Args)]
pub(crate) struct ExportOptions {
    /// Export the timeline while it is written: to a directory, `s3://bucket/prefix`, or
    /// `http://host/bucket/prefix`
    #[arg(long, value_name = "PLACE", help_heading = "Output")]
    export: Option<Place>,
    #[command(flatten)]
    spool: SpoolOptions,
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

/// Opens the exports of this process.
pub(crate) fn open(place: &Place, spool: &Path) -> Result<Exports, Problem> {
    let unusable = |error: &dyn std::fmt::Display| Problem::input(format!("{place}: {error}"));
    let archive = ObjectArchive::open(place).map_err(|error| unusable(&error))?;
    let chance = u64::from(std::process::id());
    Exports::open(Arc::new(archive), spool, ExportPolicy::default(), chance).map_err(Problem::input)
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

impl ExportOptions {
    /// Whether virtual time would mean nothing to it.
    pub(crate) fn is_networked(&self) -> bool {
        self.export.as_ref().is_some_and(Place::is_networked)
    }

    /// The exports of this process, with what others have left in the spool; `None` if nobody asked for them.
    pub(crate) async fn open(&self, clock: Clock) -> Result<Option<Exports>, Problem> {
        let Some(place) = &self.export else {
            return Ok(None);
        };
        let exports = open(place, &self.spool.directory()?)?;
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
