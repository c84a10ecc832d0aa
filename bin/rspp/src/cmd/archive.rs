//! `rspp timeline list`, `fetch` and `export`: timelines in an archive.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use rspp_actors::Clock;
use rspp_archive::{ObjectArchive, Place, SealedArchive};
use rspp_timeline::export::{self, Archived, FetchError, Fetched};

use crate::{
    call::{
        export::{KeyOptions, PATIENCE, SpoolOptions, now, open, recover, tell_left},
        transcript::counted,
    },
    problem::Problem,
    terminal,
};

/// List the timelines of an archive.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp timeline list calls/                  What a directory has
  rspp timeline list s3://acme-calls/eu      What a bucket has
  rspp timeline list calls/ --under acme     What of it is a tenant's")]
pub(crate) struct List {
    /// The archive: a directory, `s3://bucket/prefix` or `http://host/bucket/prefix`
    #[arg(value_name = "PLACE")]
    place: Place,
    /// Only what is under a tenant, or `tenant/session`
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    under: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Fetch a timeline from an archive.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp timeline fetch s3://acme-calls/eu acme/call-7/1790000000000-1 --out call.rspp
  rspp timeline fetch calls/ acme/call-7/1790000000000-1 --out call.rspp --archive-keys keys.yaml")]
pub(crate) struct Fetch {
    /// The archive: a directory, `s3://bucket/prefix` or `http://host/bucket/prefix`
    #[arg(value_name = "PLACE")]
    place: Place,
    /// Its name in the archive, see `rspp timeline list`
    #[arg(value_name = "NAME")]
    name: String,
    /// Where to; must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    keys: KeyOptions,
}

/// Export timelines to an archive: files, and what stopped processes have left in the spool.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp timeline export --to s3://acme-calls/eu          What waits in the spool
  rspp timeline export call.rspp --to calls/            A file, which stays")]
pub(crate) struct Export {
    /// Timelines that nobody writes any more; without one, those in the spool
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The archive: a directory, `s3://bucket/prefix` or `http://host/bucket/prefix`
    #[arg(long = "to", value_name = "PLACE")]
    place: Place,
    #[command(flatten)]
    spool: SpoolOptions,
    #[command(flatten)]
    keys: KeyOptions,
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Problem> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Problem::failure)
}

pub(super) fn archive(place: &Place) -> Result<ObjectArchive, Problem> {
    if let Place::Directory(path) = place
        && !path.is_dir()
    {
        return Err(Problem::input(format!("{place}: no such directory")));
    }
    ObjectArchive::open(place).map_err(|error| Problem::input(format!("{place}: {error}")))
}

impl List {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let archive = archive(&self.place)?;
        let found = runtime()?
            .block_on(export::list(&archive, &self.under))
            .map_err(Problem::failure)?;
        if self.json {
            return terminal::print_json(&found);
        }
        let lines: Vec<_> = found.iter().map(line).collect();
        terminal::print(terminal::of_lines(&lines))
    }
}

fn line(archived: &Archived) -> String {
    let Archived {
        recording,
        segments,
        bytes,
        is_complete,
    } = archived;
    let segments = counted(*segments as u64, "segment", "segments");
    let behind = if *is_complete { "" } else { ", behind" };
    format!("{recording}  {bytes} bytes in {segments}{behind}")
}

impl Fetch {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let Fetched { bytes, is_complete } = fetched(&self.place, &self.name, &self.keys)?;
        write_new(&self.out, &bytes)?;
        if !is_complete {
            terminal::note(format!(
                "{}: the archive is behind; this is the beginning of the recording",
                self.name
            ));
        }
        let name = self.out.display();
        terminal::print(format!("{name}  {} bytes", bytes.len()))
    }
}

/// An archive, opened with the keys that are given.
pub(super) fn sealed(place: &Place, keys: &KeyOptions) -> Result<SealedArchive, Problem> {
    let archive = archive(place)?;
    Ok(SealedArchive::new(Arc::new(archive), keys.open()?))
}

/// A recording of an archive, opened with the keys that are given.
pub(super) fn fetched(place: &Place, name: &str, keys: &KeyOptions) -> Result<Fetched, Problem> {
    let archive = sealed(place, keys)?;
    runtime()?
        .block_on(export::fetch(&archive, name))
        .map_err(|error| match error {
            FetchError::Unknown(_) => Problem::input(format!("{place}: {error}")),
            FetchError::Archive(_) | FetchError::Missing { .. } | FetchError::Corrupt { .. } => {
                Problem::failure(error)
            }
        })
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Problem> {
    let failed = |error| Problem::input(format!("{}: cannot be written: {error}", path.display()));
    let mut file = File::create_new(path).map_err(failed)?;
    file.write_all(bytes).map_err(failed)
}

impl Export {
    pub(crate) fn run(self) -> Result<(), Problem> {
        runtime()?.block_on(self.export())
    }

    async fn export(self) -> Result<(), Problem> {
        let clock = Clock::start();
        let exports = open(&self.place, &self.spool.directory()?, self.keys.open()?)?;
        let mut taken = 0;
        if self.files.is_empty() {
            taken = recover(&exports, clock).await?;
        }
        for file in &self.files {
            let adopted = exports
                .adopt(file, now(clock)())
                .await
                .map_err(Problem::input)?;
            taken += u64::from(adopted);
        }
        let left = exports.drain(now(clock), PATIENCE).await;
        if left.recordings > 0 {
            tell_left(&exports, left, clock);
            return Err(Problem::Reported);
        }
        let stats = exports.stats(now(clock)());
        let timelines = counted(taken, "timeline", "timelines");
        let place = exports.place();
        terminal::print(format!(
            "{place}  {timelines} exported, {} bytes",
            stats.bytes
        ))
    }
}
