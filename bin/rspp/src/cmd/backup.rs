//! `rspp backup` and `rspp restore`: everything that a control plane keeps.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use clap::Args;
use futures::{StreamExt as _, stream};
use rspp_actors::Stopwatch;
use rspp_controlplane_api::{Client, millis};
use rspp_proto::WallClock;
use serde_json::json;

use crate::{
    control::{Remote, refused, when},
    outputs::{no_file, unfinished},
    problem::Problem,
    terminal,
};

/// Bytes that are sent at once.
const CHUNK: usize = 64 * 1024;

/// Write everything that a control plane keeps into a file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp backup --out rspp-2026-11-29.jsonl   One moment of it, readable JSON lines
  rspp restore rspp-2026-11-29.jsonl        Into a control plane on an empty store

Who is alive and who holds what is left out: that is found out anew.")]
pub(crate) struct Backup {
    #[command(flatten)]
    remote: Remote,
    /// Into this file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Backup {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let remote = &self.remote;
        remote.run(|client| take(remote, client, &self.out))
    }
}

/// A new file that nobody else on the machine reads: what people said is in it.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

async fn take(remote: &Remote, client: Client, out: &Path) -> Result<(), Problem> {
    // A device or a link would become a file.
    if out.symlink_metadata().is_ok_and(|it| !it.is_file()) {
        return Err(no_file(out));
    }
    let chunks = client.take_backup().await.map_err(refused)?;
    let mut chunks = std::pin::pin!(chunks);
    // Under another name until it is whole: half a backup is none.
    let part = unfinished(out);
    let wrong = |error| Problem::input(format!("cannot write {}: {error}", part.display()));
    let mut file = private().open(&part).map_err(wrong)?;
    let mut bytes = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(refused)?;
        bytes += chunk.len();
        file.write_all(&chunk).map_err(wrong)?;
    }
    file.sync_all().map_err(wrong)?;
    std::fs::rename(&part, out).map_err(wrong)?;
    remote.print(
        || format!("{bytes} bytes in {}", out.display()),
        || json!({ "file": out, "bytes": bytes }),
    )
}

/// Put a backup into a control plane on an empty store.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp restore rspp-2026-11-29.jsonl   Prints how old it is (RPO) and how long it took (RTO)

Nobody holds a session afterwards, and epochs begin far above any that can have been granted since the
backup: runtimes register anew and take their sessions up again.")]
pub(crate) struct Restore {
    #[command(flatten)]
    remote: Remote,
    /// What `rspp backup` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Restore {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let remote = &self.remote;
        remote.run(|client| restore(remote, client, &self.file))
    }
}

async fn restore(remote: &Remote, client: Client, path: &Path) -> Result<(), Problem> {
    let file = File::open(path);
    let file =
        file.map_err(|error| Problem::input(format!("cannot read {}: {error}", path.display())))?;
    let watch = Stopwatch::start();
    let chunks = stream::unfold(Some(file), |file| async move {
        let mut file = file?;
        let mut buffer = vec![0; CHUNK];
        // A file that cannot be read further ends here, and the backup is found to be cut off.
        match file.read(&mut buffer) {
            Ok(0) | Err(_) => None,
            Ok(read) => {
                buffer.truncate(read);
                Some((buffer.into(), Some(file)))
            }
        }
    });
    let restored = client.restore(chunks).await.map_err(refused)?;
    let took = watch.elapsed();
    let now: WallClock = SystemTime::now().into();
    let lost = Duration::from_millis(now.0.saturating_sub(restored.at_ms));
    remote.print(
        || {
            format!(
                "{} records, as of {}\nRPO {} (what came later is lost)\nRTO {} ms",
                restored.records,
                when(restored.at_ms),
                terminal::wait(lost),
                took.as_millis()
            )
        },
        || {
            json!({
                "records": restored.records,
                "revision": restored.revision,
                "taken_at_ms": restored.at_ms,
                "rpo_ms": millis(lost),
                "rto_ms": millis(took),
            })
        },
    )
}
