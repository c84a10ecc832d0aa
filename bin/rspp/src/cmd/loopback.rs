//! `rspp loopback`: a whole conversation on this machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use clap::Args;
use rspp_actors::{ActorInfo, Stopwatch};
use rspp_host::{
    Config, Notice, Pools, Runtime, SessionRequest, ToolRegistry, report::SessionReport,
};
use rspp_local::Registered;
use rspp_proto::{
    Monotonic, NodeId, Payload, ProviderId, SessionId, Speaker, TenantId, TurnId, WallClock,
    abi::Signal, control::Versions, spec::Modality,
};
use rspp_provider_api::{Description, Providers};
use rspp_timeline::{FileHeader, OpenError, Options, Recorder, Recording, export::Exports};
use rspp_tools::HttpTools;
use rspp_transport_api::{
    loopback::{self, Line, Network, Script},
    wav::StereoWriter,
};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::{models::StoreOptions, tree};
use crate::{
    call::{
        export::{self, ExportOptions, ExportPlan},
        providers::{self, ProviderOptions},
        said::{self, Said},
        transcript,
        voice::{self, Ready, USER_VOICE},
    },
    outputs::{is_same_file, make_room},
    problem::Problem,
    report::{Circumstances, Report},
    specs::Setup,
    terminal::{self, Live},
};

/// Talk to the agent on this machine: WAV files or text go in, its spoken reply comes out.
///
/// The first run fetches the local models. Without any input a short built-in conversation is held.
/// Unless told otherwise the conversation runs in virtual time: waiting costs nothing, inference is
/// charged at what it really takes, so that latencies are those of this machine.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line"
)]
#[command(after_help = "\
Examples:
  rspp loopback                                       A built-in conversation of two turns
  rspp loopback --say 'What are your opening hours?'  Speak as text
  rspp loopback question.wav --out reply.wav          Speak as a recording, keep both sides
  rspp loopback --say 'Tell me a long story.' --barge-in-at 1.5s 'Stop, thank you.'
  rspp loopback --phone --jitter 120ms --out heard.wav   Hear what a caller on a bad line hears
  rspp loopback a.wav --timeline call.rspp --report call.json
  rspp loopback a.wav --export s3://acme-calls/eu     Timeline to a bucket, see `rspp timeline list`
  rspp loopback --llm-url http://127.0.0.1:8080/v1 --llm-model qwen --say 'Hello!'

Turns are spoken in the order given, each when the reply before is over.")]
pub(crate) struct Loopback {
    #[command(flatten)]
    said: Said,

    /// Run in real time, as a call would
    #[arg(long)]
    realtime: bool,
    /// Over a telephone line: 8 kHz both ways, and what G.711 leaves of a voice
    #[arg(long, help_heading = "Line")]
    phone: bool,
    /// How late frames may come, both ways, such as 120ms: what comes too late is a gap in what is heard
    #[arg(long, value_name = "TIME", value_parser = said::parse_duration, help_heading = "Line")]
    jitter: Option<Duration>,
    /// The pipeline; the built-in one without
    #[arg(long, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    /// A policy bundle that overrides it
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,

    #[command(flatten)]
    providers: ProviderOptions,

    /// Keep the conversation as a stereo WAV file: left the user, right the agent
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Keep the timeline; see `rspp timeline show`
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    timeline: Option<PathBuf>,
    /// Keep the report as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    report: Option<PathBuf>,
    /// Show the supervision tree, caught while the agent speaks
    #[arg(long, help_heading = "Output")]
    tree: bool,
    /// Print the report as JSON instead of the conversation
    #[arg(long, help_heading = "Output")]
    json: bool,

    #[command(flatten)]
    export: ExportOptions,

    #[command(flatten)]
    store: StoreOptions,
    /// Do not fetch missing models
    #[arg(long, help_heading = "Models")]
    no_pull: bool,
}

/// How long the runtime may take to stop.
const GRACE: Duration = Duration::from_secs(3);
/// How often the recording is written out.
const WRITE_EVERY: Duration = Duration::from_millis(500);

impl Loopback {
    pub(crate) fn run(self) -> Result<(), Problem> {
        // All that can be wrong with the input is told before anything is fetched or started.
        let turns = voice::read(self.said.turns()?)?;
        let settings = self.providers.settings()?;
        let export = self.export.read()?;
        let setup = Setup::load(self.pipeline.as_deref(), self.policy.as_deref(), settings)?;
        let used = setup.providers()?;
        self.check_outputs(&turns)?;
        self.fetch_models(&used, turns.iter().any(Ready::needs_voice))?;

        let networked = self.networked(&used)?;
        let exports_over_network = export.is_networked();
        let virtual_time = !self.realtime && networked.is_none() && !exports_over_network;
        if let (false, Some(provider)) = (self.realtime, networked) {
            terminal::note(format!(
                "`{provider}` is reached over a network: running in real time"
            ));
        } else if !self.realtime && exports_over_network {
            terminal::note("the archive is reached over a network: running in real time");
        }
        let mut builder = if virtual_time {
            tokio::runtime::Builder::new_current_thread()
        } else {
            tokio::runtime::Builder::new_multi_thread()
        };
        let tokio = builder
            .enable_all()
            .start_paused(virtual_time)
            .build()
            .map_err(Problem::failure)?;
        tokio.block_on(self.hold(setup, used, turns, export, virtual_time))
    }

    /// Refuses places that cannot be written before the conversation rather than after it.
    fn check_outputs(&self, turns: &[Ready]) -> Result<(), Problem> {
        let mut taken: Vec<&Path> = turns.iter().filter_map(Ready::file).collect();
        let outputs = [&self.out, &self.timeline, &self.report];
        for path in outputs.into_iter().flatten() {
            let name = path.display();
            if path.is_dir() {
                return Err(Problem::input(format!(
                    "{name}: is a directory; name a file"
                )));
            }
            let parent = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                Some(_) | None => Path::new("."),
            };
            if !parent.is_dir() {
                return Err(Problem::input(format!(
                    "{name}: there is no directory {}; create it first",
                    parent.display()
                )));
            }
            if taken.iter().any(|other| is_same_file(other, path)) {
                return Err(Problem::input(format!(
                    "{name}: is named twice; give every input and output a file of its own"
                )));
            }
            taken.push(path);
        }
        Ok(())
    }

    fn fetch_models(
        &self,
        used: &BTreeSet<(Modality, ProviderId)>,
        needs_voice: bool,
    ) -> Result<(), Problem> {
        let mut used = used.clone();
        if needs_voice {
            let voice = ProviderId::new(USER_VOICE).map_err(Problem::failure)?;
            used.insert((Modality::Tts, voice));
        }
        let store = self.store.open()?;
        let (offered, registered) = self.register(&Pools::new(1))?;
        let lacking = providers::lacking(&used, &offered, &registered)?;
        providers::fetch(&store, &lacking, !self.no_pull)
    }

    fn register(&self, pools: &Pools) -> Result<(Providers, Registered), Problem> {
        self.providers.register(&self.store.open()?, &pools.work)
    }

    /// The first provider in use for which virtual time means nothing.
    fn networked(
        &self,
        used: &BTreeSet<(Modality, ProviderId)>,
    ) -> Result<Option<ProviderId>, Problem> {
        let (offered, _) = self.register(&Pools::new(1))?;
        Ok(used
            .iter()
            .find(|(modality, id)| describe(&offered, *modality, id).is_some_and(|it| it.networked))
            .map(|(_, id)| id.clone()))
    }

    async fn hold(
        &self,
        setup: Setup,
        used: BTreeSet<(Modality, ProviderId)>,
        turns: Vec<Ready>,
        export: ExportPlan,
        virtual_time: bool,
    ) -> Result<(), Problem> {
        let took = Stopwatch::start();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let pools = if virtual_time {
            Pools::in_virtual_time(cores)
        } else {
            Pools::new(cores)
        };
        let (offered, registered) = self.register(&pools)?;
        let live = Live::new(!self.json);
        live.say("loading models");
        registered
            .warm_up()
            .await
            .map_err(|fault| Problem::failure(fault.message))?;
        let used_models = used
            .iter()
            .filter_map(|(modality, id)| {
                let model = &describe(&offered, *modality, id)?.model;
                Some((modality.as_str().to_owned(), format!("{id} ({model})")))
            })
            .collect();
        live.say("speaking the user's words");
        let utterances = voice::utterances(turns, &offered).await?;
        let plan = setup.plan()?;
        let (transport, line) = loopback::call(Script {
            utterances,
            telephone: self.phone,
            network: self.jitter.map(Network::jittery).unwrap_or_default(),
            ..Script::default()
        })
        .map_err(Problem::failure)?;
        let sink_rate = transport.sink.sample_rate();

        let mut config = Config::new(offered, pools);
        config.tools = Arc::new(ToolRegistry::with_http(HttpTools::default().into_factory()));
        let clock = config.clock;
        let session =
            SessionId::new(format!("loopback-{}", wall_clock().0)).map_err(Problem::failure)?;
        let exports = export.open(clock).await?;
        config.exports.clone_from(&exports);
        let (recorder, recording) = if self.timeline.is_some() || exports.is_some() {
            let header = FileHeader::new(
                session.clone(),
                setup.spec.version.clone(),
                "rspp loopback",
                plan.recording_policy.recording_level,
                Monotonic::from_duration(clock.now()),
                wall_clock(),
            );
            let options = Options::under(&plan.recording_policy);
            let (recorder, recording) =
                record(self.timeline.as_deref(), exports.as_ref(), header, options).await?;
            (recorder, Some(recording))
        } else {
            (Recorder::null(), None)
        };
        let mut wav = match &self.out {
            Some(path) => Some(StereoWriter::create(path, sink_rate).map_err(Problem::input)?),
            None => None,
        };

        let runtime = Runtime::start(config).await.map_err(Problem::failure)?;
        let handle = runtime
            .open(SessionRequest {
                tenant: TenantId::new("local").map_err(Problem::failure)?,
                session,
                pipeline: setup.authored.clone(),
                policy: setup.policy.clone(),
                settings: setup.settings.clone(),
                versions: Versions::default(),
                attributes: BTreeMap::new(),
                transport,
                recorder,
            })
            .await
            .map_err(Problem::input)?;
        let mut notices = handle.subscribe();
        let mut watcher = Watcher {
            live: &live,
            runtime: &runtime,
            line: &line,
            shows_turns: !self.json,
            tree: None,
            faults: BTreeMap::new(),
        };
        let interrupted = hang_up_on_ctrl_c(line.clone());
        let mut write = tokio::time::interval(WRITE_EVERY);
        let ended = handle.wait();
        tokio::pin!(ended);
        let session = loop {
            tokio::select! {
                biased;
                notice = notices.recv() => match notice {
                    Ok(notice) => watcher.notice(&notice)?,
                    Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "notices were missed"),
                    Err(RecvError::Closed) => break ended.await,
                },
                session = &mut ended => break session,
                _ = write.tick() => keep(&mut wav, &line)?,
            }
        };
        loop {
            match notices.try_recv() {
                Ok(notice) => watcher.notice(&notice)?,
                Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        let Watcher {
            tree: caught,
            faults,
            ..
        } = watcher;
        let was_interrupted = interrupted.is_finished();
        interrupted.abort();
        let stopped = runtime.shut_down(GRACE).await;
        if !stopped {
            tracing::warn!("some actors had to be killed");
        }

        let mut files = Vec::new();
        if let (Some(mut wav), Some(path)) = (wav.take(), &self.out) {
            let rest = line.take_rest();
            wav.write(&rest.user, &rest.agent)
                .map_err(Problem::failure)?;
            let lasts = wav.duration();
            wav.finish().map_err(Problem::failure)?;
            files.push((
                path,
                format!("{:.1} s, left user, right agent", lasts.as_secs_f64()),
            ));
        }
        if let Some(recording) = recording {
            let summary = recording.close().await.map_err(Problem::failure)?;
            let entries = transcript::counted(summary.entries, "entry", "entries");
            if let Some(path) = &self.timeline {
                files.push((path, entries));
            }
        }
        let archive: PathBuf;
        if let Some(exports) = &exports {
            let left = exports.drain(export::now(clock), export::PATIENCE).await;
            if left.recordings > 0 {
                export::tell_left(exports, left, clock);
            } else {
                archive = exports.place().into();
                let bytes = exports.stats(export::now(clock)()).bytes;
                files.push((&archive, format!("timeline exported, {bytes} bytes")));
            }
        }
        live.clear();
        let session: SessionReport = session
            .ok_or_else(|| Problem::failure("the session crashed; run with -v to see why"))?;
        let report = Report::new(
            &session,
            Circumstances {
                providers: used_models,
                execution_profile: plan.execution_profile.as_str().to_owned(),
                virtual_time,
                interrupted: was_interrupted,
                frames_after_clear: line.leaked(),
                moments: line.moments(),
            },
        );
        if let Some(path) = &self.report {
            report
                .write(path)
                .map_err(|error| Problem::failure(format!("{}: {error}", path.display())))?;
            let turns = transcript::counted(report.turns.len() as u64, "turn", "turns");
            files.push((path, turns));
        }
        self.conclude(&report, caught, &files, took.elapsed())?;
        if was_interrupted {
            return Err(Problem::Interrupted);
        }
        // An interruption is part of a conversation; anything else that ends a turn is not.
        let failed = report.turns.iter().find(|turn| turn.has_failed());
        match failed {
            Some(turn) => Err(Problem::failure(match faults.get(&turn.turn_id) {
                Some(fault) => format!("{}: {fault}", turn.turn_id),
                None => format!(
                    "{} was aborted: {}",
                    turn.turn_id,
                    turn.reason.as_deref().unwrap_or("no reason given")
                ),
            })),
            None => Ok(()),
        }
    }

    fn conclude(
        &self,
        report: &Report,
        tree: Option<Vec<ActorInfo>>,
        files: &[(&PathBuf, String)],
        took: Duration,
    ) -> Result<(), Problem> {
        if self.json {
            return terminal::print_json(report);
        }
        if self.tree {
            terminal::print(match tree {
                Some(actors) => tree::text(&actors),
                None => "the agent was never heard, so no tree was caught\n".to_owned(),
            })?;
        }
        terminal::print(transcript::summary(report, took))?;
        let width = files.iter().map(|(path, _)| path.as_os_str().len()).max();
        for (path, what) in files {
            let width = width.unwrap_or(0);
            terminal::print(format!("{:width$}  {what}", path.display()))?;
        }
        Ok(())
    }
}

/// Follows a conversation.
struct Watcher<'a> {
    live: &'a Live,
    runtime: &'a Runtime,
    line: &'a Line,
    shows_turns: bool,
    tree: Option<Vec<ActorInfo>>,
    /// The first failure of each turn, in the provider's words.
    faults: BTreeMap<TurnId, String>,
}

impl Watcher<'_> {
    fn notice(&mut self, notice: &Notice) -> Result<(), Problem> {
        match notice {
            Notice::Signal(signal) => {
                if signal.signal == Signal::PlaybackStarted && self.tree.is_none() {
                    self.tree = Some(self.runtime.tree());
                }
            }
            Notice::Event(event) => match (&event.payload, &event.envelope.turn_id) {
                (Some(Payload::Text(text)), _) => {
                    let speaker = match text.speaker {
                        Speaker::User => "user",
                        Speaker::Agent => "agent",
                    };
                    self.live.say(&format!("{speaker}: {}", text.text));
                }
                (Some(Payload::Error(note)), Some(turn)) => {
                    let node = note.node_id.as_ref().map_or("?", NodeId::as_str);
                    let fault = || format!("node `{node}`: {}", note.message);
                    self.faults.entry(turn.clone()).or_insert_with(fault);
                }
                (_, _) => {}
            },
            Notice::State(_) | Notice::Foreign(_) => {}
            Notice::Turn(turn) => {
                if self.shows_turns {
                    let heard = crate::report::heard_after(&turn.turn_id, &self.line.moments());
                    let fault = self.faults.get(&turn.turn_id).map(String::as_str);
                    self.live
                        .print_above(&transcript::turn(turn, heard, fault))?;
                }
            }
        }
        Ok(())
    }
}

/// Moves what was heard since the last time into the file.
fn keep(wav: &mut Option<StereoWriter>, line: &Line) -> Result<(), Problem> {
    let recorded = line.take_recorded();
    match wav {
        Some(wav) => wav
            .write(&recorded.user, &recorded.agent)
            .map_err(Problem::failure),
        None => Ok(()),
    }
}

/// The first Ctrl-C hangs up, so that everything is kept; a second one ends the process.
fn hang_up_on_ctrl_c(line: Line) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_err() {
            return std::future::pending().await;
        }
        terminal::note("\nhanging up; Ctrl-C again to stop at once");
        line.hang_up();
        tokio::spawn(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(130);
            }
        });
    })
}

fn describe(providers: &Providers, modality: Modality, id: &ProviderId) -> Option<Description> {
    match modality {
        Modality::Stt => Some(providers.stt(id).ok()?.describe().clone()),
        Modality::Llm => Some(providers.llm(id).ok()?.describe().clone()),
        Modality::Tts => Some(providers.tts(id).ok()?.describe().clone()),
        Modality::Vad => Some(providers.voice(id).ok()?.describe().clone()),
        Modality::EndOfTurn => Some(providers.end_of_turn(id).ok()?.describe().clone()),
        Modality::External => None,
    }
}

/// Begins a timeline, in its file or in the spool.
async fn record(
    path: Option<&Path>,
    exports: Option<&Exports>,
    header: FileHeader,
    options: Options,
) -> Result<(Recorder, Recording), Problem> {
    if let Some(path) = path {
        make_room(path)?;
    }
    let begun = match (path, exports) {
        (Some(path), Some(exports)) => exports.record_at(path, header, options).await,
        (Some(path), None) => Recording::create(path, header, options).await,
        (None, Some(exports)) => exports.record(header, options).await,
        (None, None) => return Err(Problem::failure("a timeline without a place")),
    };
    begun.map_err(|error| match error {
        OpenError::Io { path, source } => {
            Problem::input(format!("{}: cannot be written: {source}", path.display()))
        }
        OpenError::Capacity(_) | OpenError::Preamble { .. } | OpenError::NoHeader { .. } => {
            Problem::input(error)
        }
    })
}

fn wall_clock() -> WallClock {
    SystemTime::now().into()
}
