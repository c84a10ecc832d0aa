//! Brings entries from a recorder's queue to a file.
//!
//! One task per recording waits for work and hands batches to a blocking thread, which encodes,
//! redacts and writes. A storage that is slow fills the queue, one that fails ends the recording;
//! neither ever holds up a turn.
//!
//! Beyond what is written, the storage keeps room free for a turn's end ([`Storage::reserve`]). When it
//! can keep no more, what it has kept is given to evidence alone: no turn opens, the running one ends
//! (T9), and its end is written (invariant 16). Once there is room again, everything goes on.

use std::{
    collections::VecDeque,
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
    queue::{CapacityError, Slot},
    reader::{Item, Timeline},
    recorder::{Batch, KEPT_FREE, Options, Shared, TURN_BYTES, WRITTEN, prepare},
};

/// Where a recording's bytes go.
pub trait Storage: Write + Send + 'static {
    /// Forces what was written to where it survives a power cut.
    fn sync(&mut self) -> io::Result<()>;

    /// How it takes the next batch.
    fn pace(&self) -> Pace {
        Pace::Blocking
    }

    /// Keeps room free for the next so many bytes, from where it writes now; a reader finds nothing of
    /// that, also after a crash. A storage that is full says [`io::ErrorKind::StorageFull`].
    ///
    /// One that cannot keep room promises nothing, and says so when it is written to.
    fn reserve(&mut self, bytes: u64) -> io::Result<()> {
        let _ = bytes;
        Ok(())
    }

    /// Gives back what was kept free and not used. Nothing is written after that.
    fn give_back(&mut self) -> io::Result<()> {
        Ok(())
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

    fn reserve(&mut self, bytes: u64) -> io::Result<()> {
        let at = self.stream_position()?;
        preallocate(self, at, bytes)
    }

    fn give_back(&mut self) -> io::Result<()> {
        let end = self.stream_position()?;
        self.set_len(end)
    }
}

/// Gives a file blocks beyond its end, which stays where it is.
#[cfg(target_os = "linux")]
fn preallocate(file: &File, at: u64, bytes: u64) -> io::Result<()> {
    use rustix::{
        fs::{FallocateFlags, fallocate},
        io::Errno,
    };
    match fallocate(file, FallocateFlags::KEEP_SIZE, at, bytes) {
        // Some file systems cannot.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn preallocate(_file: &File, _at: u64, _bytes: u64) -> io::Result<()> {
    Ok(())
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
    /// The queue cannot hold what is reserved in it.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
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
    ///
    /// Waits for two things, without which no evidence can be kept: the file is there, and there is room
    /// for a turn's end in it. Nothing is written yet; that is the writer's business, as everything that
    /// follows.
    pub async fn create(
        path: impl Into<PathBuf>,
        header: FileHeader,
        options: Options,
    ) -> Result<(Recorder, Self), OpenError> {
        options.capacity.check()?;
        let path = path.into();
        let opened = blocking(move || {
            let mut open = OpenOptions::new();
            open.write(true).create_new(true);
            private(&mut open);
            let start = |path: &Path| -> io::Result<File> {
                let mut file = open.open(path)?;
                keep_free(&mut file)?;
                Ok(file)
            };
            start(&path).map_err(|source| OpenError::Io { path, source })
        });
        let file = opened.await?;
        Ok(Self::start(file, Some(header), Summary::default(), options))
    }

    /// Continues a recording after a crash: cuts off an unfinished frame and appends.
    pub async fn reopen(
        path: impl Into<PathBuf>,
        options: Options,
    ) -> Result<(Recorder, Self, Recovered), OpenError> {
        options.capacity.check()?;
        let path = path.into();
        let (file, recovered, summary) = blocking(move || recover(path)).await?;
        let (recorder, recording) = Self::start(file, None, summary, options);
        Ok((recorder, recording, recovered))
    }

    /// Begins a recording in any storage. Waits until that keeps room for a turn's end, and for no
    /// write.
    pub async fn begin(
        mut storage: impl Storage,
        header: FileHeader,
        options: Options,
    ) -> io::Result<(Recorder, Self)> {
        let capacity = options.capacity.check();
        capacity.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let storage = match storage.pace() {
            Pace::Blocking => blocking(move || keep_free(&mut storage).map(|()| storage)).await?,
            Pace::Takes(_) => {
                keep_free(&mut storage)?;
                storage
            }
        };
        Ok(Self::start(
            storage,
            Some(header),
            Summary::default(),
            options,
        ))
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

    /// Of a `storage` that keeps [`KEPT_FREE`].
    fn start<S: Storage>(
        storage: S,
        header: Option<FileHeader>,
        summary: Summary,
        options: Options,
    ) -> (Recorder, Self) {
        let shared = Arc::new(Shared::new(options, KEPT_FREE));
        let is_new = header.is_some();
        let writer = Writer {
            storage,
            header,
            summary,
            shared: Arc::clone(&shared),
            buffer: Vec::new(),
            kept_free: KEPT_FREE,
            is_full: false,
            lost: 0,
        };
        if is_new {
            shared.work.notify_one();
        }
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
    /// What the file begins with, until that is written.
    header: Option<FileHeader>,
    summary: Summary,
    shared: Arc<Shared>,
    buffer: Vec<u8>,
    /// Bytes that the storage keeps free from here.
    kept_free: u64,
    is_full: bool,
    /// Evidence that was taken and found no room.
    lost: u64,
}

/// What of a batch fits on the storage, beside what is kept free.
enum Fit {
    All,
    /// Everything but details.
    Evidence,
    /// How turns end, and what else leaves room for that; why no more.
    Endings(Arc<str>),
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
                return match self.lost {
                    0 => Ok(self.summary),
                    lost => Err(CloseError {
                        reason: format!("{lost} entries found no room").into(),
                    }),
                };
            }
        }
    }

    fn write(&mut self, batch: Batch) -> Result<(), WriteError> {
        let is_last = batch.is_last;
        let mut ends_turn = false;
        if let Some(header) = self.header.take() {
            self.buffer.extend_from_slice(&preamble(VERSION));
            encode(&mut self.buffer, &header.into())?;
        }
        let fit = self.make_room(&batch.slots)?;
        for slot in batch.slots {
            ends_turn |= slot.class == EntryClass::Terminal;
            self.take(slot, &fit)?;
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
        self.kept_free = self.kept_free.saturating_sub(self.buffer.len() as u64);
        self.buffer.clear();
        self.buffer.shrink_to(KEPT_BUFFER_BYTES);
        let must_sync = match self.shared.options.sync {
            SyncPolicy::OnClose => is_last,
            SyncPolicy::AtTurnEnd => is_last || ends_turn,
            SyncPolicy::EachBatch => true,
        };
        self.storage.flush()?;
        if is_last {
            self.storage.give_back()?;
        }
        if must_sync {
            self.storage.sync()?;
        }
        let full = match fit {
            Fit::All | Fit::Evidence => None,
            Fit::Endings(reason) => Some(reason),
        };
        self.shared.wrote(self.kept_free, full);
        Ok(())
    }

    /// Sees to it that the storage keeps enough free when these are written too. Details are the first to
    /// find no room; a storage that was full has to have room for more than the next batch to be none.
    fn make_room(&mut self, slots: &VecDeque<Slot>) -> io::Result<Fit> {
        let weigh = |counts: fn(&Slot) -> bool| {
            let weights = slots.iter().filter(|slot| counts(slot));
            weights
                .map(|slot| slot.weight as u64 * WRITTEN)
                .sum::<u64>()
        };
        let begun = self.buffer.len() as u64;
        let all = begun + weigh(|_| true);
        if !self.is_full && self.kept_free >= all + KEPT_FREE {
            return Ok(Fit::All);
        }
        // Ahead of what is needed, so that not every batch has to ask.
        let error = match self.reserve(all + 2 * KEPT_FREE)? {
            Ok(()) => {
                self.is_full = false;
                return Ok(Fit::All);
            }
            Err(error) => error,
        };
        let evidence = begun + weigh(|slot| slot.class.is_evidence());
        if !self.is_full && self.reserve(evidence + KEPT_FREE)?.is_ok() {
            return Ok(Fit::Evidence);
        }
        let reason = error.to_string();
        if !std::mem::replace(&mut self.is_full, true) {
            tracing::error!(reason, "no more room is kept for evidence");
        }
        Ok(Fit::Endings(reason.into()))
    }

    /// Whether the storage keeps so much free; the outer error is another than that it is full.
    fn reserve(&mut self, bytes: u64) -> io::Result<Result<(), io::Error>> {
        match self.storage.reserve(bytes) {
            Ok(()) => {
                self.kept_free = bytes;
                Ok(Ok(()))
            }
            Err(error) if is_full(&error) => Ok(Err(error)),
            Err(error) => Err(error),
        }
    }

    /// Encodes one entry. Of a storage that is full, evidence leaves what the end of a turn needs.
    fn take(&mut self, slot: Slot, fit: &Fit) -> Result<(), WriteError> {
        let mark = self.buffer.len();
        let entry = prepare(slot.entry, slot.level, &self.shared.options.redaction);
        let encoded = encode(&mut self.buffer, &entry);
        let left = self.kept_free.checked_sub(self.buffer.len() as u64);
        let has_room = match (fit, slot.class) {
            (Fit::All, _) | (Fit::Evidence, EntryClass::Baseline | EntryClass::Terminal) => true,
            (Fit::Evidence | Fit::Endings(_), EntryClass::Journal | EntryClass::Detail) => false,
            (Fit::Endings(_), EntryClass::Baseline) => {
                left.is_some_and(|left| left >= TURN_BYTES / 2)
            }
            (Fit::Endings(_), EntryClass::Terminal) => left.is_some(),
        };
        match (encoded, slot.class) {
            (Ok(()), _) if has_room => self.summary.count(&entry),
            (Err(error), EntryClass::Journal | EntryClass::Detail) => {
                tracing::warn!(%error, "a detail could not be recorded");
                self.shared.count_dropped(1);
            }
            (Ok(()), EntryClass::Journal | EntryClass::Detail) => {
                self.buffer.truncate(mark);
                self.shared.count_dropped(1);
            }
            (Ok(()), EntryClass::Baseline | EntryClass::Terminal) => {
                self.buffer.truncate(mark);
                self.lost += 1;
                self.shared.count_refused();
            }
            (Err(error), EntryClass::Baseline | EntryClass::Terminal) => return Err(error),
        }
        Ok(())
    }
}

fn keep_free(storage: &mut impl Storage) -> io::Result<()> {
    storage.reserve(KEPT_FREE).map_err(|error| {
        if is_full(&error) {
            let message = format!(
                "there is no room for the {KEPT_FREE} bytes that a turn's evidence may need; free some"
            );
            io::Error::new(io::ErrorKind::StorageFull, message)
        } else {
            error
        }
    })
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
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
    keep_free(&mut file).map_err(io)?;
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
