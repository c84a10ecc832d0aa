//! Carries out what the agenda decides: reads files, fills the archive, remembers how far it is.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rspp_proto::{Hex, Monotonic, WallClock};
use serde::Serialize;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::{
    sync::Notify,
    task::{self, JoinSet},
};

use super::{
    agenda::{Agenda, CourseId, Next, Standing, Task},
    archive::{Archive, ArchiveFault, FaultKind},
    fetch::{MANIFEST, Manifest, segment_key},
    policy::{ExportPolicy, PolicyError},
    progress::{Progress, file_name, recording},
    spooled::{Follower, Room, Spooled},
};
use crate::{
    FileHeader, OpenError, Options, ReadError, Recorder, Recording, Timeline,
    writer::{blocking, private},
};

/// How often recorders are told how the export fares, while it is behind.
const PRESS_EVERY: Duration = Duration::from_millis(250);
/// A lag below this is nobody's business: half of what costs the first recording level.
const NOTABLE_LAG: Duration = Duration::from_secs(1);

/// Everything that one process exports; cheap to clone.
#[derive(Clone)]
pub struct Exports {
    shared: Arc<Shared>,
}

struct Shared {
    archive: Arc<dyn Archive>,
    policy: ExportPolicy,
    spool: PathBuf,
    room: Arc<Room>,
    state: Mutex<State>,
    /// What writers have said since the driver last looked.
    news: Mutex<BTreeMap<CourseId, News>>,
    work: Notify,
    /// Held by whoever carries out tasks.
    driver: tokio::sync::Mutex<()>,
}

struct State {
    agenda: Agenda,
    files: BTreeMap<CourseId, Followed>,
    next_id: u64,
    stats: Counted,
}

/// A file that is followed.
struct Followed {
    path: PathBuf,
    progress: Progress,
    recorder: Option<Recorder>,
    /// What its recorder was last told.
    told: Pressed,
    /// So that no other process takes it for one whose owner was killed.
    _lock: File,
}

#[derive(Clone, Copy, Default, PartialEq)]
struct Pressed {
    lag: Duration,
    fill: f64,
}

#[derive(Clone, Copy)]
struct News {
    length: u64,
    is_closed: bool,
}

#[derive(Clone, Default)]
struct Counted {
    segments: u64,
    bytes: u64,
    recordings: u64,
    retries: u64,
    failures: u64,
    last_fault: Option<ArchiveFault>,
}

/// A recording in the spool that is over.
#[derive(Clone, Debug)]
pub struct Over {
    id: CourseId,
    /// Its name, as the archive has it.
    pub recording: String,
}

/// How the export fares (observability.md §4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportStats {
    /// Recordings that the archive does not have as a whole (`durable_export_queue_depth`).
    pub queue_depth: usize,
    /// Bytes that it does not have.
    pub pending_bytes: u64,
    /// How old the oldest of them is, in milliseconds (`durable_export_lag_ms`).
    pub lag_ms: u64,
    /// Failures since something worked.
    pub failures_in_a_row: u32,
    /// Failures in all (`durable_export_failures_total`).
    pub failures: u64,
    /// Segments that were sent again, in all (`durable_export_retries_total`).
    pub retries: u64,
    /// Segments that the archive has taken, in all.
    pub segments: u64,
    /// Bytes that it has taken, in all.
    pub bytes: u64,
    /// Recordings that it has as a whole, in all.
    pub recordings: u64,
    /// What it said last when something did not work; kept when it works again.
    pub last_fault: Option<String>,
}

/// Why a spool cannot be used.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// The policy cannot be kept.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The system said no.
    #[error("the spool {}: {source}", path.display())]
    Io {
        /// What was used.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is no timeline.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ReadError,
    },
    /// A file has lost its header, so that nobody knows whose it is.
    #[error("{} has no whole header: nobody knows whose it is", path.display())]
    NoHeader {
        /// The file.
        path: PathBuf,
    },
    /// Another process writes or exports a file.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
}

/// What was found in a spool.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Recordings of processes that were stopped, which are exported from where they stood.
    pub resumed: Vec<PathBuf>,
    /// Files that cannot be exported, and stay where they are.
    pub broken: Vec<(PathBuf, SpoolError)>,
}

/// What the archive did not take in time. It stays in the spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Recordings that it does not have as a whole.
    pub recordings: usize,
    /// Bytes that it does not have.
    pub bytes: u64,
}

impl Exports {
    /// Exports to `archive` what is recorded in `spool`, a directory that is made if there is none. `chance`
    /// spreads the retries of several processes.
    ///
    /// Nothing is sent before somebody [runs](Self::run) it.
    pub fn open(
        archive: Arc<dyn Archive>,
        spool: impl Into<PathBuf>,
        policy: ExportPolicy,
        chance: u64,
    ) -> Result<Self, SpoolError> {
        policy.check()?;
        let spool = spool.into();
        if let Err(source) = fs::create_dir_all(&spool) {
            return Err(SpoolError::Io {
                path: spool,
                source,
            });
        }
        let most = policy
            .spool_bytes
            .saturating_add(policy.spool_reserve_bytes);
        let shared = Shared {
            archive,
            spool,
            room: Arc::new(Room::new(most)),
            state: Mutex::new(State {
                agenda: Agenda::new(policy.clone(), chance),
                files: BTreeMap::new(),
                next_id: 0,
                stats: Counted::default(),
            }),
            policy,
            news: Mutex::default(),
            work: Notify::new(),
            driver: tokio::sync::Mutex::new(()),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Where it exports to, for people.
    pub fn place(&self) -> &str {
        self.shared.archive.place()
    }

    /// Begins a recording in the spool; its file goes once the archive has it.
    pub async fn record(
        &self,
        header: FileHeader,
        options: Options,
    ) -> Result<(Recorder, Recording), OpenError> {
        let path = self.shared.spool.join(file_name(&recording(&header)));
        self.begin(path, header, options, false).await
    }

    /// Begins a recording in a new file of that name, which stays.
    pub async fn record_at(
        &self,
        path: impl Into<PathBuf>,
        header: FileHeader,
        options: Options,
    ) -> Result<(Recorder, Recording), OpenError> {
        self.begin(path.into(), header, options, true).await
    }

    async fn begin(
        &self,
        path: PathBuf,
        header: FileHeader,
        options: Options,
        keep: bool,
    ) -> Result<(Recorder, Recording), OpenError> {
        let failed = |source| OpenError::Io {
            path: path.clone(),
            source,
        };
        let progress = Progress::new(recording(&header), keep);
        let new = (path.clone(), progress.clone());
        let opened = blocking(move || -> io::Result<(File, File)> {
            let (path, progress) = new;
            let mut open = OpenOptions::new();
            open.write(true).create_new(true);
            private(&mut open);
            let file = open.open(&path)?;
            let lock = file.try_clone()?;
            lock.try_lock().map_err(io::Error::from)?;
            progress.write(&path)?;
            Ok((file, lock))
        });
        let (file, lock) = opened.await.map_err(failed)?;
        let id = self.follow(
            path.clone(),
            progress,
            lock,
            Monotonic::ZERO,
            Standing::default(),
        );
        let follower = Writer {
            shared: Arc::clone(&self.shared),
            id,
        };
        let spooled = Spooled::new(file, follower, Arc::clone(&self.shared.room));
        let (recorder, recording) = Recording::begin(spooled, header, options)
            .await
            .map_err(failed)?;
        if let Some(followed) = self.shared.state().files.get_mut(&id) {
            followed.recorder = Some(recorder.clone());
        }
        Ok((recorder, recording))
    }

    fn follow(
        &self,
        path: PathBuf,
        progress: Progress,
        lock: File,
        now: Monotonic,
        standing: Standing,
    ) -> CourseId {
        let mut state = self.shared.state();
        let id = CourseId(state.next_id);
        state.next_id += 1;
        state.agenda.add(now, id, standing);
        state.files.insert(
            id,
            Followed {
                path,
                progress,
                recorder: None,
                told: Pressed::default(),
                _lock: lock,
            },
        );
        id
    }

    /// Takes up what processes have left in the spool that were killed. What another process that lives is
    /// busy with is left to it.
    pub async fn recover(&self, now: Monotonic) -> Result<Recovery, SpoolError> {
        let spool = self.shared.spool.clone();
        let listed = blocking(move || {
            let files = fs::read_dir(&spool)?.filter_map(|entry| {
                let path = entry.ok()?.path();
                Progress::file(&path)
            });
            io::Result::Ok(files.collect::<Vec<_>>())
        });
        let mut files = listed.await.map_err(|source| SpoolError::Io {
            path: self.shared.spool.clone(),
            source,
        })?;
        files.sort();
        let mut recovery = Recovery::default();
        for path in files {
            match self.resume(path.clone(), now).await {
                Ok(true) => recovery.resumed.push(path),
                Ok(false) | Err(SpoolError::InUse { .. }) => {}
                Err(error) => recovery.broken.push((path, error)),
            }
        }
        Ok(recovery)
    }

    /// Exports a recording that nobody writes any more, from where its export stands; the file stays unless it
    /// was recorded into the spool. `false` if the archive has it already.
    pub async fn adopt(
        &self,
        path: impl Into<PathBuf>,
        now: Monotonic,
    ) -> Result<bool, SpoolError> {
        self.resume(path.into(), now).await
    }

    async fn resume(&self, path: PathBuf, now: Monotonic) -> Result<bool, SpoolError> {
        let found = {
            let path = path.clone();
            blocking(move || found(path)).await?
        };
        let Some((progress, lock, length)) = found else {
            return Ok(false);
        };
        let standing = progress.standing(length, true);
        self.shared
            .room
            .take(standing.length - standing.acknowledged);
        self.follow(path, progress, lock, now, standing);
        self.shared.work.notify_one();
        Ok(true)
    }

    /// How the export fares.
    pub fn stats(&self, now: Monotonic) -> ExportStats {
        self.shared.read_news(now);
        let state = self.shared.state();
        let Counted {
            segments,
            bytes,
            recordings,
            retries,
            failures,
            ref last_fault,
        } = state.stats;
        ExportStats {
            queue_depth: state.agenda.len(),
            pending_bytes: state.agenda.pending(),
            lag_ms: state.agenda.lag(now).as_millis() as u64,
            failures_in_a_row: state.agenda.failures(),
            failures,
            retries,
            segments,
            bytes,
            recordings,
            last_fault: last_fault.as_ref().map(ToString::to_string),
        }
    }

    /// What has waited in the spool for longer than it may be kept, whether or not the archive has it: what is over
    /// is not kept because an archive is away (F-116). `keep` says how long, by tenant and session as keys write
    /// them; for ever if `None`. What is still written or sent, and what a user keeps, is not among it.
    pub fn over(&self, now: WallClock, keep: impl Fn(&str, &str) -> Option<Duration>) -> Vec<Over> {
        let state = self.shared.state();
        let old = state.files.iter().filter(|(id, followed)| {
            let mut parts = followed.progress.recording.split('/');
            let (tenant, session) = (
                parts.next().unwrap_or_default(),
                parts.next().unwrap_or_default(),
            );
            let may_go = state.agenda.is_idle(**id)
                && followed.recorder.is_none()
                && !followed.progress.keep;
            may_go && keep(tenant, session).is_some_and(|keep| is_older(&followed.path, keep, now))
        });
        old.map(|(id, followed)| Over {
            id: *id,
            recording: followed.progress.recording.clone(),
        })
        .collect()
    }

    /// Removes a recording that is over from the spool. Whether it is gone: by now somebody may send it.
    pub fn remove(&self, over: &Over) -> io::Result<bool> {
        let mut state = self.shared.state();
        let Some(pending) = state.agenda.give_up(over.id) else {
            return Ok(false);
        };
        self.shared.room.give_back(pending);
        let Some(followed) = state.files.remove(&over.id) else {
            return Ok(false);
        };
        drop(state);
        tidy(&followed.path, false)?;
        Ok(true)
    }

    /// Exports, until it is dropped. One of several at a time works, the others wait for it to be gone.
    pub async fn run(&self, now: impl Fn() -> Monotonic + Send) {
        self.drive(now, |_| false).await;
    }

    /// Exports until nothing is left, at most for so long; what is left stays in the spool.
    ///
    /// For the end of a process, when nothing is recorded any more.
    pub async fn drain(&self, now: impl Fn() -> Monotonic + Send, within: Duration) -> Left {
        let done = self.drive(now, |agenda| agenda.len() == 0);
        if tokio::time::timeout(within, done).await.is_ok() {
            return Left::default();
        }
        let state = self.shared.state();
        Left {
            recordings: state.agenda.len(),
            bytes: state.agenda.pending(),
        }
    }

    async fn drive(
        &self,
        now: impl Fn() -> Monotonic + Send,
        is_done: impl Fn(&Agenda) -> bool + Send,
    ) {
        let shared = &self.shared;
        let _driver = shared.driver.lock().await;
        shared.state().agenda.interrupted();
        let mut uploads = JoinSet::new();
        let mut under_way: BTreeMap<task::Id, (CourseId, Task)> = BTreeMap::new();
        loop {
            let at = now();
            shared.read_news(at);
            let mut until = loop {
                let mut state = shared.state();
                match state.agenda.next(at) {
                    Next::Start(id, task) => {
                        let work = Arc::clone(shared).carry_out(id, task, &mut state);
                        let handle = uploads.spawn(work);
                        under_way.insert(handle.id(), (id, task));
                    }
                    Next::Wait(until) => break until,
                }
            };
            if is_done(&shared.state().agenda) {
                return;
            }
            if shared.press(at) {
                until = Some(until.unwrap_or(at + PRESS_EVERY).min(at + PRESS_EVERY));
            }
            let pause = until.map_or(Duration::from_hours(1), |until| until.since(at));
            tokio::select! {
                biased;
                Some(landed) = uploads.join_next_with_id() => {
                    let (which, outcome) = match landed {
                        Ok((which, outcome)) => (which, outcome),
                        Err(error) => {
                            let died = ArchiveFault::unavailable(format!("the upload died: {error}"));
                            (error.id(), Err(died))
                        }
                    };
                    if let Some((id, task)) = under_way.remove(&which) {
                        shared.landed(now(), id, task, outcome);
                    }
                }
                () = shared.work.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// A recording that nobody writes any more, with what is whole of it; `None` if the archive has it already.
fn found(path: PathBuf) -> Result<Option<(Progress, File, u64)>, SpoolError> {
    let io = |source| SpoolError::Io {
        path: path.clone(),
        source,
    };
    let known = Progress::read(&path).map_err(io)?;
    if known.as_ref().is_some_and(|progress| progress.is_complete) {
        let progress = known.expect("it is complete");
        // Killed between its last word and putting the file away.
        tidy(&path, progress.keep).map_err(io)?;
        return Ok(None);
    }
    let lock = File::open(&path).map_err(io)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(SpoolError::InUse { path }),
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    let read = |source| SpoolError::Read {
        path: path.clone(),
        source,
    };
    let mut timeline = Timeline::open(&path).map_err(read)?;
    let Some(header) = timeline.header().cloned() else {
        return Err(SpoolError::NoHeader { path });
    };
    for item in &mut timeline {
        item.map_err(|error| read(error.into()))?;
    }
    let length = timeline.report().whole_bytes;
    let progress = known.unwrap_or_else(|| Progress::new(recording(&header), true));
    progress.write(&path).map_err(io)?;
    Ok(Some((progress, lock, length)))
}

/// Whether nothing was written to a file for so long.
fn is_older(path: &Path, keep: Duration, now: WallClock) -> bool {
    let written = fs::metadata(path).and_then(|it| it.modified());
    let Ok(since) = written.map(|it| {
        it.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
    }) else {
        return false;
    };
    Duration::from_millis(now.0).saturating_sub(since) >= keep
}

/// Nobody needs a file any more, unless it is to be kept.
fn tidy(path: &Path, keep: bool) -> io::Result<()> {
    if keep {
        return Ok(());
    }
    // The file first: what is left of it by a crash in between is found by its progress.
    for path in [path, &Progress::path(path)] {
        match fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, id: CourseId, change: impl FnOnce(&mut News)) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        change(news.entry(id).or_insert(News {
            length: 0,
            is_closed: false,
        }));
        drop(news);
        self.work.notify_one();
    }

    fn read_news(&self, now: Monotonic) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let news = std::mem::take(&mut *news);
        let mut state = self.state();
        for (id, News { length, is_closed }) in news {
            state.agenda.grew(now, id, length);
            if is_closed {
                state.agenda.closed(id);
                if let Some(followed) = state.files.get_mut(&id) {
                    followed.recorder = None;
                }
            }
        }
    }

    /// What a task takes, as a future that needs nothing of the driver.
    fn carry_out(
        self: Arc<Self>,
        id: CourseId,
        task: Task,
        state: &mut State,
    ) -> impl Future<Output = Result<(), ArchiveFault>> + Send + 'static {
        let followed = state.files.get_mut(&id);
        let order = followed.map(|followed| {
            if let Task::Segment { to, .. } = task {
                let again = followed.progress.sealed.replace(to).is_some();
                state.stats.retries += u64::from(again);
            }
            (followed.path.clone(), followed.progress.clone())
        });
        async move {
            let (path, progress) = order.expect("what is on the agenda is followed");
            match task {
                Task::Segment { from, to } => self.segment(path, progress, from, to).await,
                Task::Manifest { bytes } => self.manifest(path, progress, bytes).await,
            }
        }
    }

    async fn segment(
        &self,
        path: PathBuf,
        progress: Progress,
        from: u64,
        to: u64,
    ) -> Result<(), ArchiveFault> {
        let file = path.clone();
        let (sealed, bytes) = blocking(move || {
            // First what will be sent, so that after a crash the same is sent again.
            progress.write(&file)?;
            let bytes = read_range(&file, from, to)?;
            io::Result::Ok((progress, bytes))
        })
        .await
        .map_err(|error| spool_fault(&path, &error))?;
        let key = segment_key(&sealed.recording, from);
        self.put(&key, bytes).await?;
        let done = Progress {
            acknowledged: to,
            sealed: None,
            ..sealed
        };
        let file = path.clone();
        blocking(move || done.write(&file))
            .await
            .map_err(|error| spool_fault(&path, &error))
    }

    async fn manifest(
        &self,
        path: PathBuf,
        progress: Progress,
        bytes: u64,
    ) -> Result<(), ArchiveFault> {
        let file = path.clone();
        let sha256 = blocking(move || hash(&file, bytes))
            .await
            .map_err(|error| spool_fault(&path, &error))?;
        let key = format!("{}/{MANIFEST}", progress.recording);
        let manifest = Manifest { bytes, sha256 };
        let text = serde_json::to_vec(&manifest).expect("a manifest can be written");
        self.put(&key, text.into()).await?;
        let done = Progress {
            is_complete: true,
            ..progress
        };
        let file = path.clone();
        blocking(move || {
            done.write(&file)?;
            tidy(&file, done.keep)
        })
        .await
        .map_err(|error| spool_fault(&path, &error))
    }

    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), ArchiveFault> {
        let timeout = self.policy.timeout();
        match tokio::time::timeout(timeout, self.archive.put(key, bytes)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ArchiveFault::unavailable(format!(
                "no answer within {timeout:?}"
            ))),
        }
    }

    fn landed(&self, now: Monotonic, id: CourseId, task: Task, outcome: Result<(), ArchiveFault>) {
        let mut state = self.state();
        let State {
            agenda,
            files,
            stats,
            ..
        } = &mut *state;
        match outcome {
            Ok(()) => {
                if agenda.failures() > 0 {
                    tracing::info!(place = self.archive.place(), "the archive is back");
                }
                if let Task::Segment { from, to } = task {
                    stats.segments += 1;
                    stats.bytes += to - from;
                    self.room.give_back(to - from);
                    if let Some(followed) = files.get_mut(&id) {
                        followed.progress.acknowledged = to;
                        followed.progress.sealed = None;
                    }
                }
                if agenda.done(now, id, task) {
                    stats.recordings += 1;
                    files.remove(&id);
                }
            }
            Err(fault) => {
                stats.failures += 1;
                let place = self.archive.place();
                let is_news = stats.last_fault.as_ref() != Some(&fault) || agenda.failures() == 0;
                match fault.kind {
                    FaultKind::Refused if is_news => {
                        tracing::error!(place, %fault, "the archive takes no timelines; they stay in the spool");
                    }
                    FaultKind::Unavailable if is_news => {
                        tracing::warn!(place, %fault, "timelines stay in the spool until the archive is back");
                    }
                    FaultKind::Refused | FaultKind::Unavailable => {
                        tracing::debug!(place, %fault, "the archive still takes no timelines");
                    }
                }
                agenda.failed(now, id, fault.kind);
                stats.last_fault = Some(fault);
            }
        }
    }

    /// Tells recorders how far the export is behind, and how full the spool is. `true` if they are to be told
    /// again.
    fn press(&self, now: Monotonic) -> bool {
        let fill = self.room.used() as f64 / self.policy.spool_bytes as f64;
        let mut state = self.state();
        let State { agenda, files, .. } = &mut *state;
        let mut again = false;
        for (id, followed) in files {
            let Some(recorder) = &followed.recorder else {
                continue;
            };
            let lag = agenda.lag_of(now, *id);
            again |= !lag.is_zero();
            let pressed = Pressed {
                lag: if lag < NOTABLE_LAG {
                    Duration::ZERO
                } else {
                    lag
                },
                fill: if fill < 0.5 { 0.0 } else { fill.min(1.0) },
            };
            if pressed != followed.told {
                followed.told = pressed;
                recorder.set_export(now, pressed.lag, pressed.fill);
            }
        }
        again
    }
}

/// The writer's end.
struct Writer {
    shared: Arc<Shared>,
    id: CourseId,
}

impl Follower for Writer {
    fn grew(&self, length: u64) {
        self.shared.tell(self.id, |news| news.length = length);
    }

    fn closed(&self) {
        self.shared.tell(self.id, |news| news.is_closed = true);
    }
}

/// What this machine's disk said, which is not the archive's fault.
fn spool_fault(path: &Path, error: &io::Error) -> ArchiveFault {
    ArchiveFault::refused(format!("{} in the spool: {error}", path.display()))
}

fn read_range(path: &Path, from: u64, to: u64) -> io::Result<Bytes> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = vec![0; (to - from) as usize];
    file.read_exact(&mut bytes)?;
    Ok(bytes.into())
}

fn hash(path: &Path, bytes: u64) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let read = io::copy(&mut File::open(path)?.take(bytes), &mut hasher)?;
    if read < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Hex(&hasher.finalize()).to_string())
}
