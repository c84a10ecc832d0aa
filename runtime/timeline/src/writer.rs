//! Brings entries from a recorder's queue to a file.
//!
//! One task per recording waits for work and hands batches to a blocking thread, which encodes,
//! redacts and writes. A storage that is slow fills the queue, one that fails ends the recording;
//! neither ever holds up a turn.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::task::{self, JoinHandle};

use crate::{
    Entry, EntryClass, FileHeader, PreambleError, Recorder, Summary, SyncPolicy, Torn, VERSION,
    format::{FrameTooLong, preamble, write_frame},
    reader::{Item, Timeline},
    recorder::{Batch, Options, Shared, prepare},
};

/// Where a recording's bytes go.
pub trait Storage: Write + Send + 'static {
    /// Forces what was written to where it survives a power cut.
    fn sync(&mut self) -> io::Result<()>;

    /// How it takes the next batch.
    fn pace(&self) -> Pace {
        Pace::Blocking
    }
}

/// How a storage takes a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Writing may block, for as long as it takes: it is done on a thread of its own.
    Blocking,
    /// Writing does not block and takes this long on tokio's clock, as in a simulation.
    Takes(Duration),
}

impl Storage for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Why a recording cannot begin.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The file could not be created, read or written.
    #[error("could not open the recording {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file to append to is no timeline of ours.
    #[error("cannot append to {}", path.display())]
    Preamble {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: PreambleError,
    },
    /// The file to append to has lost its header, so that nobody knows whose it is.
    #[error("{} has no whole header; record into a new file", path.display())]
    NoHeader {
        /// The file.
        path: PathBuf,
    },
}

/// The recording did not reach the storage whole.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the recording is not whole: {reason}")]
pub struct CloseError {
    /// What the storage said.
    pub reason: Arc<str>,
}

/// The owner of a recording: closes it and waits until everything is written.
///
/// Dropped without [`close`](Self::close), the recording ends as well, but nobody hears how.
#[derive(Debug)]
pub struct Recording {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<Result<Summary, CloseError>>>,
}

/// What was found in a file that is appended to.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    /// Whose recording it is.
    pub header: FileHeader,
    /// Whole entries that were kept, header included.
    pub entries: u64,
    /// The unfinished frame that was cut off.
    pub torn: Option<Torn>,
    /// Damaged frames inside the file, which stay and are skipped.
    pub damaged: u64,
}

impl Recording {
    /// Begins a recording in a new file, readable by its owner alone.
    pub async fn create(
        path: impl Into<PathBuf>,
        header: FileHeader,
        options: Options,
    ) -> Result<(Recorder, Self), OpenError> {
        let path = path.into();
        let opened = blocking(move || {
            let mut open = OpenOptions::new();
            open.write(true).create_new(true);
            private(&mut open);
            let start = |path: &Path| -> io::Result<File> {
                let mut file = open.open(path)?;
                write_start(&mut file, header)?;
                Ok(file)
            };
            start(&path).map_err(|source| OpenError::Io { path, source })
        });
        let file = opened.await?;
        Ok(Self::start(file, Summary::default(), options))
    }

    /// Continues a recording after a crash: cuts off an unfinished frame and appends.
    pub async fn reopen(
        path: impl Into<PathBuf>,
        options: Options,
    ) -> Result<(Recorder, Self, Recovered), OpenError> {
        let path = path.into();
        let (file, recovered, summary) = blocking(move || recover(path)).await?;
        let (recorder, recording) = Self::start(file, summary, options);
        Ok((recorder, recording, recovered))
    }

    /// Begins a recording in any storage.
    pub async fn begin(
        mut storage: impl Storage,
        header: FileHeader,
        options: Options,
    ) -> io::Result<(Recorder, Self)> {
        let storage = match storage.pace() {
            Pace::Blocking => {
                blocking(move || write_start(&mut storage, header).map(|()| storage)).await?
            }
            Pace::Takes(time) => {
                tokio::time::sleep(time).await;
                write_start(&mut storage, header)?;
                storage
            }
        };
        Ok(Self::start(storage, Summary::default(), options))
    }

    /// Takes no more entries, writes those that wait and the footer, and forces all to the storage.
    pub async fn close(mut self) -> Result<Summary, CloseError> {
        self.shared.close();
        let writer = self.writer.take().expect("only `close` takes it");
        match writer.await {
            Ok(outcome) => outcome,
            Err(error) => Err(CloseError {
                reason: format!("the writer died: {error}").into(),
            }),
        }
    }

    fn start<S: Storage>(storage: S, summary: Summary, options: Options) -> (Recorder, Self) {
        let shared = Arc::new(Shared::new(options));
        let writer = Writer {
            storage,
            summary,
            shared: Arc::clone(&shared),
            buffer: Vec::new(),
        };
        let writer = Some(tokio::spawn(writer.run()));
        (Recorder::of(Arc::clone(&shared)), Self { shared, writer })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// Buffers kept between batches are not larger than this.
const KEPT_BUFFER_BYTES: usize = 256 << 10;

struct Writer<S> {
    storage: S,
    summary: Summary,
    shared: Arc<Shared>,
    buffer: Vec<u8>,
}

/// Why an entry was not written.
#[derive(Debug, Error)]
enum WriteError {
    #[error(transparent)]
    Storage(#[from] io::Error),
    #[error("a {kind} entry could not be encoded: {error}")]
    Encode { kind: &'static str, error: String },
}

impl<S: Storage> Writer<S> {
    async fn run(mut self) -> Result<Summary, CloseError> {
        let shared = Arc::clone(&self.shared);
        loop {
            shared.work.notified().await;
            // Whatever comes first: the time is up, or somebody is in a hurry.
            let _ = tokio::time::timeout(shared.options.linger, shared.hurry.notified()).await;
            let batch = shared.take();
            let is_last = batch.is_last;
            let written;
            match self.storage.pace() {
                Pace::Blocking => {
                    (self, written) = blocking(move || {
                        let written = self.write(batch);
                        (self, written)
                    })
                    .await;
                }
                Pace::Takes(time) => {
                    tokio::time::sleep(time).await;
                    written = self.write(batch);
                }
            }
            if let Err(error) = written {
                let reason: Arc<str> = error.to_string().into();
                tracing::error!(%reason, "the recording ends here");
                shared.fail(&reason);
                return Err(CloseError { reason });
            }
            if is_last {
                return Ok(self.summary);
            }
        }
    }

    fn write(&mut self, batch: Batch) -> Result<(), WriteError> {
        let is_last = batch.is_last;
        let mut ends_turn = false;
        for slot in batch.slots {
            ends_turn |= slot.class == EntryClass::Terminal;
            let entry = prepare(slot.entry, slot.level, &self.shared.options.redaction);
            match encode(&mut self.buffer, &entry) {
                Ok(()) => self.summary.count(&entry),
                Err(error) if slot.class == EntryClass::Detail => {
                    tracing::warn!(%error, "a detail could not be recorded");
                    self.shared.count_dropped(1);
                }
                Err(error) => return Err(error),
            }
        }
        // The last batch also notes what it could not encode itself.
        let unwritten = if is_last {
            self.shared.take().note
        } else {
            None
        };
        for entry in batch.note.into_iter().chain(unwritten).map(Entry::from) {
            encode(&mut self.buffer, &entry)?;
            self.summary.count(&entry);
        }
        if is_last {
            let (stats, latest) = self.shared.stats();
            self.summary.at = self.summary.at.max(latest);
            self.summary.details_omitted += stats.details_omitted;
            encode(&mut self.buffer, &Entry::from(self.summary))?;
        }
        self.storage.write_all(&self.buffer)?;
        self.buffer.clear();
        self.buffer.shrink_to(KEPT_BUFFER_BYTES);
        let must_sync = match self.shared.options.sync {
            SyncPolicy::OnClose => is_last,
            SyncPolicy::AtTurnEnd => is_last || ends_turn,
            SyncPolicy::EachBatch => true,
        };
        self.storage.flush()?;
        if must_sync {
            self.storage.sync()?;
        }
        Ok(())
    }
}

impl Summary {
    /// Takes in an entry that was written.
    pub(crate) fn count(&mut self, entry: &Entry) {
        self.at = self.at.max(entry.at());
        match entry {
            Entry::Header(_) => return,
            // A recording that goes on after a footer goes on counting.
            Entry::Footer(footer) => {
                self.details_omitted = footer.details_omitted;
                return;
            }
            Entry::Turn(turn) => {
                self.turns += 1;
                self.accepted_turns += u64::from(turn.is_accepted());
                self.complete_turns += u64::from(turn.is_accepted() && turn.is_complete());
            }
            Entry::Dropped(note) => self.details_dropped += note.details,
            Entry::Level(change) => self.downgrades += u64::from(change.is_downgrade()),
            Entry::Plan(_)
            | Entry::Signal(_)
            | Entry::Event(_)
            | Entry::Outcome(_)
            | Entry::Transition(_)
            | Entry::Attempt(_)
            | Entry::Invocation(_)
            | Entry::Handoff(_)
            | Entry::Playout(_)
            | Entry::Journal(_)
            | Entry::Opening(_)
            | Entry::Capture(_)
            | Entry::Tool(_) => {}
        }
        self.entries += 1;
    }
}

fn encode(out: &mut Vec<u8>, entry: &Entry) -> Result<(), WriteError> {
    let kind = entry.kind();
    let failed = |error: String| WriteError::Encode {
        kind: kind.as_str(),
        error,
    };
    let payload = entry.encode().map_err(|error| failed(error.to_string()))?;
    write_frame(out, kind.number(), &payload)
        .map_err(|error: FrameTooLong| failed(error.to_string()))
}

fn write_start(storage: &mut impl Storage, header: FileHeader) -> io::Result<()> {
    let mut start = preamble(VERSION).to_vec();
    encode(&mut start, &header.into()).map_err(io::Error::other)?;
    storage.write_all(&start)?;
    storage.flush()
}

fn recover(path: PathBuf) -> Result<(File, Recovered, Summary), OpenError> {
    let io = |source| OpenError::Io {
        path: path.clone(),
        source,
    };
    let mut timeline = match Timeline::open(&path) {
        Ok(timeline) => timeline,
        Err(crate::ReadError::Preamble(source)) => {
            return Err(OpenError::Preamble { path, source });
        }
        Err(crate::ReadError::Io(source)) => return Err(io(source)),
    };
    let Some(header) = timeline.header().cloned() else {
        return Err(OpenError::NoHeader { path });
    };
    let mut summary = Summary::default();
    let mut entries = 0;
    for item in &mut timeline {
        let Item { entry, .. } = item.map_err(io)?;
        entries += 1;
        summary.count(&entry);
    }
    let report = timeline.report();
    let torn = report.torn;
    let damaged = report.damages.len() as u64 + report.damages_not_listed;
    let whole = report.whole_bytes;

    let mut file = OpenOptions::new().write(true).open(&path).map_err(io)?;
    file.set_len(whole).map_err(io)?;
    file.seek(SeekFrom::End(0)).map_err(io)?;
    file.sync_data().map_err(io)?;
    Ok((
        file,
        Recovered {
            header,
            entries,
            torn,
            damaged,
        },
        summary,
    ))
}

/// Recordings hold what people said.
pub(crate) fn private(open: &mut OpenOptions) {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(open, 0o600);
    #[cfg(not(unix))]
    let _ = open;
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking work that has begun is not cancelled; before that, only as the runtime ends.
            Err(error) => panic!("the runtime ended while a recording was open: {error}"),
        },
    }
}
