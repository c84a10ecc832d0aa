//! Everything that is stored, as a file and back (F-166, NF-031).

use std::{
    io::{self, BufReader, BufWriter, Seek as _, SeekFrom, Write},
    pin::Pin,
};

use bytes::Bytes;
use futures::Stream;
use rspp_controlplane::{
    access::Operation,
    keys,
    registry::Kind,
    store::{Op, Query, Txn},
};
use rspp_controlplane_api::wire::{self, backup_server::Backup};
use rspp_controlplane_storage::backup::{self, BackupError};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    audit::{Note, done},
    failure::Failure,
    plane::{Plane, wall_clock},
};

pub(crate) struct BackupService(pub(crate) Plane);

/// Bytes of one chunk.
const CHUNK: usize = 64 * 1024;
/// Largest backup that is taken in, in bytes.
const MAX_BACKUP: usize = 1024 * 1024 * 1024;

#[tonic::async_trait]
impl Backup for BackupService {
    type TakeBackupStream = Pin<Box<dyn Stream<Item = Result<wire::BackupChunk, Status>> + Send>>;

    async fn take_backup(
        &self,
        request: Request<wire::TakeBackupRequest>,
    ) -> Result<Response<Self::TakeBackupStream>, Status> {
        let plane = self.0.clone();
        let by = plane.admit(&request, Operation::Backup, None, "backup")?;
        let (sender, chunks) = mpsc::channel(4);
        let task = plane.clone();
        plane.spawn(async move {
            // On a file first: a slow reader must not hold the moment that the store shows.
            let written = task.write_backup().await;
            match written {
                Ok((mut file, records)) => {
                    let detail = json!({ "records": records });
                    let record = done(
                        wall_clock(),
                        &by,
                        Operation::Backup.as_str(),
                        "backup",
                        detail,
                    );
                    task.note(Note::happened(record));
                    send(&mut file, &sender).await;
                }
                Err(failure) => {
                    let _ = sender.send(Err(failure.into())).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(chunks))))
    }

    async fn restore(
        &self,
        request: Request<Streaming<wire::BackupChunk>>,
    ) -> Result<Response<wire::RestoreResponse>, Status> {
        let plane = &self.0;
        let by = plane.admit(&request, Operation::Backup, None, "restore")?;
        let mut chunks = request.into_inner();
        let mut file = tempfile()?;
        let mut bytes = 0;
        while let Some(chunk) = chunks.message().await? {
            bytes += chunk.data.len();
            if bytes > MAX_BACKUP {
                return Err(Failure::TooLarge {
                    what: "backup",
                    limit: MAX_BACKUP,
                }
                .into());
            }
            file.write_all(&chunk.data).map_err(io_failure)?;
        }
        file.seek(SeekFrom::Start(0)).map_err(io_failure)?;
        let mut input = BufReader::new(file);
        // A damaged backup takes nothing away.
        let (summary, records) = backup::read(&mut input).map_err(Failure::from)?;
        plane.make_room().await?;
        let restored = backup::put(plane.store(), records).await;
        restored.map_err(Failure::from)?;
        let detail = json!({ "records": summary.records, "taken_at_ms": summary.at_ms });
        plane.note(Note::happened(done(
            wall_clock(),
            &by,
            "restore",
            "backup",
            detail,
        )));
        Ok(Response::new(wire::RestoreResponse {
            records: summary.records,
            revision: summary.revision.0,
            at_ms: summary.at_ms,
        }))
    }
}

fn io_failure(error: io::Error) -> Failure {
    Failure::Backup(error.into())
}

/// A file without a name, gone with its last use.
fn tempfile() -> Result<std::fs::File, Failure> {
    tempfile::tempfile().map_err(io_failure)
}

impl Plane {
    async fn write_backup(&self) -> Result<(std::fs::File, u64), Failure> {
        let mut out = BufWriter::new(tempfile()?);
        let summary = backup::write(self.store(), wall_clock().0, &mut out).await?;
        let mut file = out
            .into_inner()
            .map_err(|error| io_failure(error.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(io_failure)?;
        Ok((file, summary.records))
    }
}

impl Plane {
    /// Takes away what a control plane writes by itself when it begins on an empty store. Where people
    /// have written anything, nothing is taken away: then it is no place to restore into.
    async fn make_room(&self) -> Result<(), Failure> {
        let mut theirs: Vec<_> = Kind::ALL.map(keys::artifacts).into();
        theirs.extend([keys::placements(), keys::all_rollouts(), keys::statuses()]);
        for prefix in theirs {
            let query = Query {
                limit: 1,
                ..Query::first(prefix)
            };
            if !self.store().list(query).await?.entries.is_empty() {
                return Err(BackupError::NotEmpty.into());
            }
        }
        let mut txn = Txn::default();
        txn.then.push(Op::DeleteAll(keys::all()));
        self.store().commit(txn).await?;
        Ok(())
    }
}

async fn send(file: &mut std::fs::File, sender: &mpsc::Sender<Result<wire::BackupChunk, Status>>) {
    use io::Read as _;
    let mut buffer = vec![0; CHUNK];
    loop {
        let chunk = match file.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => Ok(wire::BackupChunk {
                data: Bytes::copy_from_slice(&buffer[..read]),
            }),
            Err(error) => Err(io_failure(error).into()),
        };
        if sender.send(chunk).await.is_err() {
            return;
        }
    }
}
