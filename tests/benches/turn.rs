//! What the runtime itself adds to a turn: providers that answer at once, and 50 other busy calls.
//!
//! `cargo bench -p rspp-tests --bench turn` prints a table, with `-- --json` JSON, with
//! `-- --quick` hastily. Two worker threads.
//!
//! From the user's typed greeting, handed to the transport, to the first frame of the reply of two
//! sentences at the sink:
//! the turn is admitted, its plan resolved and hashed, its actors started, text generated, cut and
//! spoken, and the first frame fenced. By voice: from the frame by which voice activity can know that
//! the user has stopped; recognition and turn detection come on top.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use hdrhistogram::Histogram;
use rspp_host::Notice;
use rspp_kernel::CancelReason;
use rspp_proto::TurnNumber;
use rspp_provider_api::scripted::ScriptedVoice;
use rspp_tests::{
    bench::{Aim, Args, Table, WORKER, cpu_time_of, histogram, on_workers, us},
    fleet::{self, Caller, GREETING, Meters, Metronome, Sound},
};
use rspp_timeline::{Anchor, Anchors};
use tokio::sync::broadcast::error::RecvError;

/// Calls that are busy all the while.
const BUSY: usize = 50;

/// How long a reply may be waited for.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() {
    let args = Args::read();
    on_workers(measure(args)).print(args);
}

async fn measure(args: Args) -> Table {
    let mut table = Table::new(
        "turn",
        "simple/v1 and a probe, scripted providers without delay, 50 other calls at 50 frames/s each way; 2 workers",
    );
    let rounds = args.pick(1_000, 50);
    let typed = typed(rounds, BUSY).await;
    table.aim(
        "typed_p99_us",
        "typed sentence to first audio, p99",
        us(&typed.whole, 0.99),
        "us",
        Aim::AtMost(2_000.0),
    );
    table.note("typed_p50_us", "the same, p50", us(&typed.whole, 0.5), "us");
    let spoken = spoken(args.pick(10, 2)).await;
    table.aim(
        "spoken_p99_us",
        "user found to have stopped, to first audio, p99",
        us(&spoken, 0.99),
        "us",
        Aim::AtMost(2_000.0),
    );
    table.note("spoken_p50_us", "the same, p50", us(&spoken, 0.5), "us");
    let (spent, cpu) = lone(rounds).await;
    table.note(
        "alone_p50_us",
        "typed sentence to first audio, nobody else calling, p50",
        us(&spent.whole, 0.5),
        "us",
    );
    for ((_, key, what), steps) in STEPS.iter().zip(&spent.steps) {
        let what = format!("  of it until {what}, p50");
        table.note(key, what, us(steps, 0.5), "us");
    }
    table.note(
        "turn_cpu_us",
        "a whole turn and its cancel: processor time of both workers",
        cpu,
        "us",
    );
    table
}

async fn busy_calls(
    runtime: &rspp_host::Runtime,
    count: usize,
    meters: &Arc<Meters>,
) -> Vec<Caller> {
    let callers = fleet::calls(runtime, count, &fleet::probed(), meters).await;
    for caller in &callers {
        caller.types("Tell me everything.");
    }
    callers
}

/// One call types a sentence, hears the first frame, cancels, and so on.
async fn typed(rounds: usize, others: usize) -> Turns {
    let meters = Arc::new(Meters::default());
    let voice = ScriptedVoice::by_timeline("vad", []);
    let providers = fleet::providers(Duration::from_secs(50), voice);
    let runtime = fleet::runtime(providers, &meters).await;
    let mut callers = busy_calls(&runtime, others, &meters).await;
    callers.push(fleet::call(&runtime, "measured", &fleet::probed(), &meters).await);
    let metronome = Metronome::start(&callers, Sound::Stamped, &meters);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = turns(&callers[others], &meters, rounds).await;
    drop(metronome);
    fleet::end(runtime, callers).await;
    spent
}

async fn lone(rounds: usize) -> (Turns, f64) {
    let meters = Arc::new(Meters::default());
    let voice = ScriptedVoice::by_timeline("vad", []);
    let providers = fleet::providers(Duration::from_secs(50), voice);
    let runtime = fleet::runtime(providers, &meters).await;
    let caller = fleet::call(&runtime, "measured", &fleet::probed(), &meters).await;
    turns(&caller, &meters, rounds / 10).await;
    let before = cpu_time_of(WORKER);
    let spent = turns(&caller, &meters, rounds).await;
    let cpu = cpu_time_of(WORKER).saturating_sub(before);
    fleet::end(runtime, vec![caller]).await;
    (spent, cpu.as_secs_f64() * 1e6 / rounds as f64)
}

/// Turns of one call, each cancelled as soon as it is heard.
async fn turns(caller: &Caller, meters: &Meters, rounds: usize) -> Turns {
    let mut spent = Turns {
        whole: histogram(),
        steps: std::array::from_fn(|_| histogram()),
    };
    let mut notices = caller.session.subscribe();
    for _ in 0..rounds {
        let last = caller.heard.newest().map_or(TurnNumber(0), |r| r.turn);
        let began = meters.watch.nanos();
        caller.types(GREETING);
        let reply = loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let waited = Duration::from_nanos(meters.watch.nanos() - began);
            assert!(waited < PATIENCE, "nobody answers the turn after {last:?}");
            if let Some(reply) = caller.heard.newest().filter(|reply| reply.turn > last) {
                break reply;
            }
        };
        spent.whole.saturating_record(reply.first - began);
        caller.session.cancel(CancelReason::UserCancel).await;
        // More turns a second than people have: sooner than the metronome, or there is no room for the next.
        caller.store();
        // The next turn begins when this one is closed.
        loop {
            match notices.recv().await {
                Ok(Notice::Turn(turn)) if turn.turn_id == reply.turn.id() => {
                    spent.note_steps(began, &turn.anchors);
                    break;
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => panic!("the session ended"),
            }
        }
    }
    spent
}

/// Steps of a turn, each from the one before.
const STEPS: [(Anchor, &str, &str); 6] = [
    (Anchor::TurnOpenProposed, "step_proposed_us", "proposed"),
    (
        Anchor::TurnOpenEmitted,
        "step_opened_us",
        "admitted, plan resolved, opened",
    ),
    (
        Anchor::LlmFirstToken,
        "step_token_us",
        "actors started, first token",
    ),
    (Anchor::FirstClause, "step_clause_us", "first clause cut"),
    (Anchor::TtsFirstAudio, "step_audio_us", "first audio made"),
    (
        Anchor::PlaybackStarted,
        "step_played_us",
        "first audio played",
    ),
];

/// What turns took; nanoseconds.
struct Turns {
    whole: Histogram<u64>,
    steps: [Histogram<u64>; STEPS.len()],
}

impl Turns {
    fn note_steps(&mut self, began: u64, anchors: &Anchors) {
        let mut before = began;
        for ((anchor, _, _), steps) in STEPS.iter().zip(&mut self.steps) {
            let Some(at) = anchors.get(*anchor) else {
                return;
            };
            let at = at.as_duration().as_nanos() as u64;
            steps.saturating_record(at.saturating_sub(before));
            before = at;
        }
    }
}

/// All calls speak a second, are answered for one, and speak again.
async fn spoken(rounds: usize) -> Histogram<u64> {
    let meters = Arc::new(Meters::default());
    let providers = fleet::providers(Duration::from_millis(500), ScriptedVoice::by_energy("vad"));
    let runtime = fleet::runtime(providers, &meters).await;
    let callers = fleet::calls(&runtime, BUSY, &fleet::probed(), &meters).await;
    let metronome = Metronome::start(&callers, Sound::Speech, &meters);
    let mut notices: Vec<_> = callers.iter().map(|c| c.session.subscribe()).collect();
    for _ in 0..rounds {
        for caller in &callers {
            caller.speaking.store(true, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        for caller in &callers {
            caller.speaking.store(false, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
        tokio::time::sleep(Duration::from_millis(1_200)).await;
    }
    drop(metronome);
    let mut spent = histogram();
    for notices in &mut notices {
        while let Ok(notice) = notices.try_recv() {
            let Notice::Turn(turn) = notice else { continue };
            let stopped = turn.anchors.get(Anchor::SpeechEnd);
            let played = turn.anchors.get(Anchor::PlaybackStarted);
            if let (Some(stopped), Some(played)) = (stopped, played) {
                spent.saturating_record(played.since(stopped).as_nanos() as u64);
            }
        }
    }
    assert!(!spent.is_empty(), "somebody was answered");
    fleet::end(runtime, callers).await;
    spent
}
