//! Playing a scenario: the runtime, the calls, the cues.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use rspp_actors::Clock;
use rspp_controlplane_api::{Leases, LocalLeases, MemoryStore};
use rspp_host::{
    Capture, CaptureBounds, Config, CpuProbe, Notice, OpenError, Pools, Runtime, SessionHandle,
    SessionRequest, report::SessionReport,
};
use rspp_kernel::{
    SessionState,
    plan::{LayeredSettings, News, ProviderNews},
};
use rspp_proto::{
    MetricSample, Monotonic, SampleRate, SessionId, WallClock,
    abi::ControlSignal,
    control::Versions,
    spec::{PipelineSpec, PolicyBundle, ReplayMode},
};
use rspp_replay::{Stage as Again, Tolerance};
use rspp_timeline::{
    Entry, FileHeader, Options, Pace, Recorder, Recording, Storage, Timeline, export::Exports,
    verify,
};
use rspp_transport_api::{
    Ingress, Link, Source, Stamped,
    loopback::{self, EchoPath, Line, Network, Script, Start, Utterance},
};
use tokio::{
    sync::{broadcast, mpsc},
    time::Instant,
};

use super::{
    archive::Archived,
    cast::{Cast, Stage},
    expect::{Finding, FoundCapture, check_captures},
    measures::Measures,
    nodes, patch,
    scenario::{
        self, Batches, Busy, Call, Captures, Cue, Happens, Hooks, Recording as Kept, Says,
        Scenario, Sends,
    },
    servers,
};
use crate::{call::rerun, problem::Problem, specs::Setup};

/// How long the runtime may take to stop.
const GRACE: Duration = Duration::from_secs(5);
/// Longest rehearsal.
const LONGEST: Duration = Duration::from_mins(30);

/// A scenario that has been played.
pub(crate) struct Performance {
    /// The calls, in the order of the scenario.
    pub(crate) calls: Vec<Played>,
    /// What holds for the runtime as a whole.
    pub(crate) findings: Vec<Finding>,
}

/// A call that is over, or was not taken.
pub(crate) struct Played {
    pub(crate) id: SessionId,
    pub(crate) report: Option<SessionReport>,
    pub(crate) signals: Vec<ControlSignal>,
    /// The newest of what it has measured of itself.
    pub(crate) measures: Vec<MetricSample>,
    /// Why it was not taken, if it was not.
    pub(crate) refused: Option<String>,
    pub(crate) findings: Vec<Finding>,
    /// The clock at which the call was placed.
    pub(crate) placed_at: Monotonic,
}

impl Performance {
    /// Everything that was looked at.
    pub(crate) fn findings(&self) -> impl Iterator<Item = &Finding> {
        let calls = self.calls.iter().flat_map(|call| &call.findings);
        calls.chain(&self.findings)
    }
}

/// Plays a scenario to its end. The timeline of each call is kept in a file of its own, by the name that
/// `timeline` gives it.
pub(crate) fn perform(
    scenario: &Scenario,
    timeline: impl Fn(&SessionId) -> PathBuf,
) -> Result<Performance, Problem> {
    let mut builder = if scenario.realtime {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let tokio = builder
        .enable_all()
        .start_paused(!scenario.realtime)
        .build()
        .map_err(Problem::failure)?;
    let spec = patch::pipeline(&scenario.pipeline, &scenario.folder)?;
    let policy = patch::policy(&scenario.policy, &scenario.folder)?;
    let cast = Cast::of(scenario)?;
    let mut settings = scenario.settings.clone();
    for (modality, ids) in &cast.bindings {
        let bound = &mut settings.defaults.provider_bindings;
        bound.entry(*modality).or_insert_with(|| ids.clone());
    }
    let piece = Piece {
        spec,
        policy,
        settings,
    };
    tokio.block_on(async {
        let played = async {
            let mut performance = play(scenario, piece, cast, &timeline).await?;
            for call in &mut performance.calls {
                for mode in &scenario.recording.replays {
                    let file = timeline(&call.id);
                    let replayed = Box::pin(replayed(scenario, *mode, &file));
                    call.findings.push(replayed.await?);
                }
            }
            Ok(performance)
        };
        tokio::time::timeout(LONGEST, Box::pin(played))
            .await
            .map_err(|_| Problem::failure("the rehearsal does not come to an end"))?
    })
}

/// Whether a call goes the same way again, beside an equal cast (F-151).
async fn replayed(scenario: &Scenario, mode: ReplayMode, file: &Path) -> Result<Finding, Problem> {
    let entries = Timeline::open(file)
        .map_err(Problem::failure)?
        .entries()
        .map_err(Problem::failure)?;
    let stage = Again {
        providers: Cast::of(scenario)?.providers,
        nodes: Arc::new(nodes::registry(
            &scenario.nodes,
            &mut nodes::Tally::default(),
        )),
        limits: scenario.limits.clone(),
    };
    let again = file.with_extension(format!("{}.rspp", mode.as_str()));
    let (_, found) = Box::pin(rerun::again(
        &entries,
        mode,
        stage,
        &again,
        Tolerance::default(),
    ))
    .await?;
    Ok(Finding::of(
        format!("the same again by {}", mode.as_str()),
        found.is_empty(),
        || {
            let told: Vec<_> = found.iter().map(ToString::to_string).collect();
            told.join("; ")
        },
    ))
}

/// What all calls run.
struct Piece {
    spec: PipelineSpec,
    policy: Option<PolicyBundle>,
    settings: LayeredSettings,
}

async fn play(
    scenario: &Scenario,
    piece: Piece,
    cast: Cast,
    timeline: &impl Fn(&SessionId) -> PathBuf,
) -> Result<Performance, Problem> {
    let clock = Clock::start();
    let leases = Arc::<LocalLeases>::default();
    let granting: Arc<dyn Leases> = leases.clone();
    let store = Arc::new(MemoryStore::new(granting));
    let mut tally = nodes::Tally::default();
    let mut configure = |cast: &Cast| {
        let pools = if scenario.realtime {
            Pools::new(2)
        } else {
            Pools::in_virtual_time(2)
        };
        let mut config = Config::new(cast.providers.clone(), pools);
        config.clock = clock;
        config.leases = leases.clone();
        config.store = Some(store.clone());
        config.limits = scenario.limits.clone();
        config.nodes = Arc::new(nodes::registry(&scenario.nodes, &mut tally));
        config.tools = Arc::new(servers::registry(&scenario.servers));
        if !scenario.cpu.is_empty() {
            config.cpu = Arc::new(Cpu {
                clock,
                busy: scenario.cpu.clone(),
            });
        }
        config
    };
    let mut config = configure(&cast);
    let archived = scenario.recording.exports.as_ref();
    let archived = archived
        .map(|exported| Archived::begin(exported, clock))
        .transpose()?;
    config.exports = archived.as_ref().map(|archived| archived.exports.clone());
    let exports = config.exports.clone();
    let roots = ROOTS + usize::from(exports.is_some());
    let mut runtimes = Vec::new();
    let mut casts = vec![cast];
    if scenario
        .calls
        .iter()
        .any(|call| Stage::of(call) == Stage::Second)
    {
        let second = Cast::on(scenario, Stage::Second)?;
        let mut config = configure(&second);
        config.exports.clone_from(&exports);
        runtimes.push(Runtime::start(config).await.map_err(Problem::failure)?);
        casts.push(second);
    }
    runtimes.insert(0, Runtime::start(config).await.map_err(Problem::failure)?);
    let runtime = &runtimes[0];
    let ground = Ground {
        runtimes: &runtimes,
        leases: &leases,
        clock,
        piece: &piece,
        kept: &scenario.recording,
        exports: exports.as_ref(),
    };
    let placed = scenario.calls.iter().map(|call| {
        let file = timeline(&call.id);
        place(&ground, call, file)
    });
    let calls = join_all(placed).await;
    let calls = calls.into_iter().collect::<Result<Vec<_>, _>>()?;
    // The lines hang up, the last words of the actors arrive.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let left = runtimes
        .iter()
        .map(|runtime| runtime.tree().len().saturating_sub(roots));
    let left: usize = left.sum();
    let mut findings = vec![
        Finding::of("nothing is left of any call", left == 0, || {
            format!("{left} actors")
        }),
        Finding::of(
            "no provider works on",
            casts.iter().all(Cast::is_idle),
            || "some calls were not given up".to_owned(),
        ),
    ];
    findings.extend(scenario.batches.iter().map(|(id, wanted)| {
        let found = runtime.batches(id).map(|found| Batches {
            batches: found.batches(),
            calls: found.calls(),
        });
        let what = format!("`{id}` is asked {} in {}", wanted.calls, wanted.batches);
        Finding::of(what, found == Some(*wanted), || match found {
            Some(found) => format!("{} in {}", found.calls, found.batches),
            None => "it is asked one by one".to_owned(),
        })
    }));
    let mut stopped = true;
    for runtime in runtimes {
        stopped &= runtime.shut_down(GRACE).await;
    }
    findings.extend(scenario.hooks.iter().map(|(kind, wanted)| {
        let found = tally.of(kind);
        let Hooks { init, start, stop } = *wanted;
        let what =
            format!("nodes `{kind}` are initialised {init}, started {start}, stopped {stop} times");
        Finding::of(what, found == *wanted, || format!("{found:?}"))
    }));
    findings.push(Finding::of("the runtime stops in time", stopped, || {
        "some actors had to be killed".to_owned()
    }));
    drop(exports);
    if let Some(archived) = archived {
        let taken = calls.iter().filter(|call| call.report.is_some());
        let files: Vec<_> = taken.map(|call| timeline(&call.id)).collect();
        findings.extend(archived.findings(&files, clock).await?);
    }
    Ok(Performance { calls, findings })
}

/// Processors that are as busy as the scenario says.
struct Cpu {
    clock: Clock,
    busy: Vec<Busy>,
}

impl CpuProbe for Cpu {
    fn cpu_percent(&self) -> Option<u64> {
        let now = self.clock.now();
        let begun = |busy: &&Busy| Duration::from_millis(busy.from_ms) <= now;
        let latest = self
            .busy
            .iter()
            .filter(begun)
            .max_by_key(|busy| busy.from_ms);
        latest.map(|busy| busy.percent)
    }
}

/// Actors of a runtime without sessions.
const ROOTS: usize = 3;

/// What all calls are placed on.
struct Ground<'a> {
    /// Where calls are placed; and where they are taken over, if any are.
    runtimes: &'a [Runtime],
    leases: &'a LocalLeases,
    clock: Clock,
    piece: &'a Piece,
    kept: &'a Kept,
    exports: Option<&'a Exports>,
}

async fn place(ground: &Ground<'_>, call: &Call, file: PathBuf) -> Result<Played, Problem> {
    let Ground {
        runtimes,
        leases,
        clock,
        piece,
        kept,
        exports: _,
    } = *ground;
    let runtime = &runtimes[Stage::of(call) as usize];
    tokio::time::sleep(Duration::from_millis(call.opens_at_ms)).await;
    let placed_at = Monotonic::from_duration(clock.now());
    let mut script = Script {
        utterances: call.says.iter().map(utterance).collect(),
        sink_rate: call
            .line_rate
            .and_then(SampleRate::new)
            .unwrap_or(SampleRate::HZ_16000),
        ..Script::default()
    };
    if let Some(patience) = call.patience_ms {
        script.reply_timeout = Duration::from_millis(patience);
    }
    if let Some(after) = call.hangs_up_after_ms {
        script.hang_up_after = Duration::from_millis(after);
    }
    script.echo = call.speakerphone.map(|phone| EchoPath {
        gain: phone.gain,
        delay: Duration::from_millis(phone.delay_ms),
    });
    let ms = |late: &[u64]| late.iter().copied().map(Duration::from_millis).collect();
    script.telephone = call.line.telephone;
    script.network = Network {
        agent_late: ms(&call.line.agent_late_ms),
        user_late: ms(&call.line.user_late_ms),
        cushion: Duration::from_millis(call.line.cushion_ms),
    };
    let (mut transport, line) = loopback::call(script).map_err(Problem::failure)?;
    let (client, injected) = mpsc::channel(64);
    let muted = Arc::<AtomicBool>::default();
    transport.source = with_client(transport.source, injected, Arc::clone(&muted));
    let (recorder, recording) = match (record(ground, call, &file).await, &call.expect.refused) {
        (Ok(begun), _) => begun,
        (Err(Problem::Failure(error)), Some(part)) => {
            let finding = Finding::refused(part, &error.to_string());
            let at = Monotonic::from_duration(clock.now());
            return Ok(turned_away(call, &error, finding, placed_at, at));
        }
        (Err(error), _) => return Err(error),
    };
    let mut settings = piece.settings.clone();
    settings.session.priority = call.priority.or(settings.session.priority);
    let opened = runtime
        .open(SessionRequest {
            tenant: call.tenant.clone(),
            session: call.session().clone(),
            pipeline: piece.spec.clone(),
            policy: piece.policy.clone(),
            settings,
            versions: Versions::default(),
            attributes: call.attributes.clone(),
            transport,
            recorder,
        })
        .await;
    let handle = match (opened, &call.expect.refused) {
        (Ok(handle), _) => handle,
        (Err(error), Some(part)) => {
            let finding = Finding::refused(part, &error.to_string());
            let at = Monotonic::from_duration(clock.now());
            return Ok(turned_away(call, &error, finding, placed_at, at));
        }
        // A runtime that says no is something to rehearse, unlike what can never run.
        (Err(error @ (OpenError::Refused(_) | OpenError::Emptying)), None) => {
            let finding = Finding::of("the call is taken", false, || error.to_string());
            let at = Monotonic::from_duration(clock.now());
            return Ok(turned_away(call, &error, finding, placed_at, at));
        }
        (Err(error), None) => return Err(Problem::input(format!("call `{}`: {error}", call.id))),
    };
    let director = Director {
        runtime,
        leases,
        session: call.session(),
        handle: &handle,
        line: &line,
        client,
        muted,
        cues: &call.cues,
        captures: Mutex::default(),
    };
    let (signals, captures, measures) = director.direct().await;
    let report = handle.wait().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let closed = recording.close().await;
    // What was said before anybody could listen, and after the end, is on the record only.
    let signals = match kept.disk_bytes {
        None => whole(signals, &entries(&file)?),
        Some(_) => signals,
    };
    let mut findings = measures.check(&call.expect.measures);
    match &report {
        Some(report) => findings.extend(call.expect.check(report, &signals)),
        None => findings.push(Finding::of("the session leaves a report", false, || {
            "it crashed".to_owned()
        })),
    }
    if let Some(expected) = &call.expect.captures {
        let found: Vec<_> = captures.into_iter().map(exhausted).collect();
        findings.extend(check_captures(expected, &found));
    }
    if let Some(part) = &call.expect.refused {
        findings.push(Finding::of(format!("refused: {part}"), false, || {
            "the call was taken".to_owned()
        }));
    }
    let leaked = line.leaked();
    findings.push(Finding::of("no frame passes a fence", leaked == 0, || {
        format!("{leaked} frames")
    }));
    // A disk that is too small may cost all that no turn's end depends on.
    if kept.disk_bytes.is_none() {
        findings.push(Finding::of("the timeline is kept", closed.is_ok(), || {
            closed
                .as_ref()
                .err()
                .map(ToString::to_string)
                .unwrap_or_default()
        }));
    }
    let entries = entries(&file)?;
    findings.push(verified(&entries));
    findings.extend(readable(kept, &file)?);
    let turns = report.as_ref().map_or(&[][..], |report| &report.turns);
    findings.extend(call.expect.check_plans(&entries, turns));
    findings.extend(call.expect.check_line(&line.rates(), turns));
    Ok(Played {
        id: call.id.clone(),
        report,
        signals,
        measures: measures.newest(),
        refused: None,
        findings,
        placed_at,
    })
}

fn turned_away(
    call: &Call,
    error: &dyn std::fmt::Display,
    finding: Finding,
    placed_at: Monotonic,
    at: Monotonic,
) -> Played {
    let waited = at.since(placed_at).as_millis();
    Played {
        id: call.id.clone(),
        report: None,
        signals: Vec::new(),
        measures: Vec::new(),
        refused: Some(format!("{error}, after {waited} ms")),
        findings: vec![finding],
        placed_at,
    }
}

/// All signals of a call, in its own order: those that were heard, and those that were only recorded.
fn whole(heard: Vec<ControlSignal>, recorded: &[Entry]) -> Vec<ControlSignal> {
    let recorded = recorded.iter().filter_map(|entry| match entry {
        Entry::Signal(signal) => Some(ControlSignal::clone(signal)),
        _another_entry => None,
    });
    let all = recorded.chain(heard);
    let all = all.map(|signal| (signal.envelope.runtime_sequence, signal));
    all.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// What can be read in the recording, and what cannot.
fn readable(kept: &Kept, file: &Path) -> Result<Vec<Finding>, Problem> {
    if kept.hides.is_empty() && kept.holds.is_empty() {
        return Ok(Vec::new());
    }
    let bytes = std::fs::read(file).map_err(Problem::failure)?;
    let holds = |text: &str| contains(&bytes, text.as_bytes());
    let hidden = kept.hides.iter().map(|text| {
        Finding::of(
            format!("the timeline does not hold `{text}`"),
            !holds(text),
            || "it can be read there".to_owned(),
        )
    });
    let held = kept.holds.iter().map(|text| {
        Finding::of(format!("the timeline holds `{text}`"), holds(text), || {
            "it is not there".to_owned()
        })
    });
    Ok(hidden.chain(held).collect())
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes
        .windows(text.len().max(1))
        .any(|window| window == text)
}

/// What was recorded, header and footer included.
fn entries(file: &Path) -> Result<Vec<Entry>, Problem> {
    let timeline = Timeline::open(file).map_err(Problem::failure)?;
    let entries = timeline.map(|item| item.map(|item| item.entry));
    entries.collect::<Result<_, _>>().map_err(Problem::failure)
}

/// Whether the recording keeps the invariants.
fn verified(entries: &[Entry]) -> Finding {
    let violations = verify::verify(entries);
    Finding::of(
        "the timeline keeps all invariants",
        violations.is_empty(),
        || {
            let told: Vec<_> = violations.iter().map(ToString::to_string).collect();
            told.join("; ")
        },
    )
}

fn utterance(says: &Says) -> Utterance {
    let ms = Duration::from_millis;
    let start = match (says.at_ms, says.after_reply_ms, says.over_reply_ms) {
        (Some(at), _, _) => Start::At(ms(at)),
        (None, Some(pause), _) => Start::AfterReply { pause: ms(pause) },
        (None, None, heard) => Start::BargeIn {
            after_reply_audio: ms(heard.unwrap_or_default()),
        },
    };
    Utterance {
        audio: tone(ms(says.lasts_ms)),
        start,
    }
}

/// Speech, as far as a scripted detector is concerned.
fn tone(length: Duration) -> Vec<i16> {
    let rate = f64::from(loopback::USER_RATE.hertz());
    let samples = (length.as_secs_f64() * rate) as usize;
    let wave = |n: usize| (n as f64 * 220.0 * std::f64::consts::TAU / rate).sin();
    (0..samples).map(|n| (wave(n) * 8_000.0) as i16).collect()
}

/// The user's audio unless it is muted, and what the client sends beside it, until the user hangs up.
fn with_client(
    source: Source,
    injected: mpsc::Receiver<Ingress>,
    muted: Arc<AtomicBool>,
) -> Source {
    let heard = source.filter(move |ingress| {
        let is_sound = matches!(ingress, Ingress::Audio(_) | Ingress::Frame(_));
        let passes = !is_sound || !muted.load(Ordering::Relaxed);
        std::future::ready(passes)
    });
    let heard: Source = Box::pin(heard);
    Box::pin(futures::stream::unfold(
        (heard, injected),
        |(mut heard, mut injected)| async move {
            let next = tokio::select! {
                biased;
                Some(next) = injected.recv() => Some(next),
                next = heard.next() => next,
            };
            next.map(|next| (next, (heard, injected)))
        },
    ))
}

async fn record(
    ground: &Ground<'_>,
    call: &Call,
    file: &Path,
) -> Result<(Recorder, Recording), Problem> {
    let Ground {
        runtimes: _,
        leases: _,
        clock,
        piece,
        kept,
        exports,
    } = *ground;
    if file.exists() {
        std::fs::remove_file(file).map_err(Problem::failure)?;
    }
    let setup = Setup::of(
        piece.spec.clone(),
        piece.policy.clone(),
        piece.settings.clone(),
    )?;
    let mut options = Options::under(&setup.plan()?.recording_policy);
    options.level = kept.level.unwrap_or(options.level);
    let level = options.level;
    options.capacity = kept.capacity();
    let mut header = FileHeader::new(
        call.session().clone(),
        piece.spec.version.clone(),
        "rspp rehearse",
        level,
        Monotonic::from_duration(clock.now()),
        WallClock(0),
    );
    header.tenant_id = Some(call.tenant.clone());
    if let Some(exports) = exports {
        let begun = exports.record_at(file, header, options).await;
        return begun.map_err(Problem::failure);
    }
    if kept.disk_bytes.is_none() && kept.write_takes_ms == 0 {
        return Recording::create(file, header, options)
            .await
            .map_err(Problem::failure);
    }
    let disk = Disk {
        file: std::fs::File::create(file).map_err(Problem::failure)?,
        room: kept.disk_bytes.unwrap_or(usize::MAX),
        write_takes: Duration::from_millis(kept.write_takes_ms),
    };
    let begun = Recording::begin(disk, header, options).await;
    begun.map_err(|error| Problem::failure(format!("no recording: {error}")))
}

/// A disk that is slow, or has only so much room.
struct Disk {
    file: std::fs::File,
    room: usize,
    write_takes: Duration,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(left) = self.room.checked_sub(bytes.len()) else {
            return Err(io::ErrorKind::StorageFull.into());
        };
        self.room = left;
        self.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Storage for Disk {
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn pace(&self) -> Pace {
        Pace::Takes(self.write_takes)
    }

    fn reserve(&mut self, bytes: u64) -> io::Result<()> {
        // Nobody else writes to it.
        if self.room as u64 >= bytes {
            Ok(())
        } else {
            Err(io::ErrorKind::StorageFull.into())
        }
    }
}

/// Gives the cues of one call, and notes what it says.
struct Director<'a> {
    runtime: &'a Runtime,
    leases: &'a LocalLeases,
    session: &'a SessionId,
    handle: &'a SessionHandle,
    line: &'a Line,
    client: mpsc::Sender<Ingress>,
    muted: Arc<AtomicBool>,
    cues: &'a [Cue],
    /// What operators look at, in the order in which they began.
    captures: Mutex<Vec<Capture>>,
}

/// What a capture came to once nothing more comes.
fn exhausted(mut capture: Capture) -> FoundCapture {
    let mut events = 0;
    while capture.try_next().is_some() {
        events += 1;
    }
    FoundCapture {
        ended: capture.ended(),
        events: events + capture.missed(),
    }
}

impl Director<'_> {
    /// Until the session has ended: what it said, what was captured, and what it measured.
    async fn direct(self) -> (Vec<ControlSignal>, Vec<Capture>, Measures) {
        let mut notices = self.handle.subscribe();
        let placed = Instant::now();
        let mut due: Vec<(Instant, &Cue)> = Vec::new();
        let mut waiting: Vec<&Cue> = Vec::new();
        for cue in self.cues {
            match cue.at_ms {
                Some(at) => due.push((placed + Duration::from_millis(at), cue)),
                None => waiting.push(cue),
            }
        }
        let mut signals = Vec::new();
        let mut measures = Measures::default();
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        loop {
            let next = due.iter().map(|(at, _)| *at).min();
            let timer = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                notice = notices.recv() => match notice {
                    Ok(Notice::Signal(signal)) => {
                        let name = signal.signal.as_str();
                        let times = seen.entry(name).or_default();
                        *times += 1;
                        let now = Instant::now();
                        waiting.retain(|cue| {
                            let given = cue.after == Some(signal.signal) && cue.times == *times;
                            if given {
                                due.push((now + Duration::from_millis(cue.wait_ms), cue));
                            }
                            !given
                        });
                        signals.push(*signal);
                    }
                    Ok(Notice::State(SessionState::Ended))
                    | Err(broadcast::error::RecvError::Closed) => {
                        let captures = self.captures.into_inner();
                        let captures = captures.expect("nobody panics while it is locked");
                        return (signals, captures, measures);
                    }
                    Ok(Notice::Event(event)) => measures.note(*event),
                    Ok(
                        Notice::State(_)
                        | Notice::Turn(_)
                        | Notice::Foreign(_),
                    )
                    | Err(broadcast::error::RecvError::Lagged(_)) => {}
                },
                () = timer => {
                    // What falls on one moment is said in one breath, in the order of the scenario.
                    let now = Instant::now();
                    let given = due.extract_if(.., |(at, _)| *at <= now);
                    join_all(given.map(|(_, cue)| self.give(&cue.happens))).await;
                }
            }
        }
    }

    async fn give(&self, happens: &Happens) {
        match happens {
            Happens::Types(text) => self.send(Ingress::Text(text.clone())).await,
            Happens::EndsUtterance => self.send(Ingress::EndOfUtterance).await,
            Happens::PressesStop => self.send(Ingress::Cancel).await,
            Happens::Sends(sends) => self.send(stamped(sends)).await,
            Happens::Reconnects => self.send(Ingress::Link(Link::Reconnecting)).await,
            Happens::LosesLink => self.send(Ingress::Link(Link::Lost)).await,
            Happens::ComesBack => self.send(Ingress::Link(Link::Back)).await,
            Happens::LineChanges(rate) => {
                let rate = SampleRate::new(*rate).expect("it was checked with the scenario");
                self.line.change_rate(rate);
            }
            Happens::Mutes => self.muted.store(true, Ordering::Relaxed),
            Happens::Unmutes => self.muted.store(false, Ordering::Relaxed),
            Happens::HangsUp => self.line.hang_up(),
            Happens::Cancel(cancel) => {
                let target = cancel.target().expect("it was checked with the scenario");
                let _ended = self.handle.cancel_part(target, cancel.reason).await;
            }
            Happens::Rotate(epoch) => {
                // Epochs only rise: what is refused here is refused there too, for all to see.
                let _granted = self.leases.acquire_at(self.session, *epoch);
                self.handle.rotate(*epoch);
            }
            Happens::Leave => self.handle.leave(),
            Happens::HandOver => self.handle.hand_over(),
            Happens::Revoke => self.handle.revoke(),
            Happens::Drain => self.handle.drain(),
            Happens::News(news) => self.runtime.provider_board().publish(published(news)),
            Happens::Captures(captures) => {
                let capture = self.handle.capture(bounds(*captures));
                let mut begun = self.captures.lock().expect("nobody panics while locked");
                begun.push(capture);
            }
        }
    }

    async fn send(&self, ingress: Ingress) {
        let _hung_up = self.client.send(ingress).await;
    }
}

fn stamped(sends: &Sends) -> Ingress {
    let event = match &sends.words {
        Some(words) => Ingress::Text(words.clone()),
        None => Ingress::Cancel,
    };
    Ingress::Stamped(Box::new(Stamped {
        epoch: sends.epoch,
        key: sends.key.clone(),
        event,
    }))
}

fn bounds(captures: Captures) -> CaptureBounds {
    let usual = CaptureBounds::default();
    CaptureBounds {
        length: captures.for_ms.map_or(usual.length, Duration::from_millis),
        events: captures.events.unwrap_or(usual.events),
        bytes: captures.bytes.unwrap_or(usual.bytes),
    }
}

fn published(news: &[scenario::News]) -> News {
    let each = news.iter().map(|news| {
        let known = ProviderNews {
            health: news.health,
            price_micros: news.price_micros,
        };
        ((news.modality, news.id.clone()), known)
    });
    each.collect()
}
