//! How quickly an agent falls silent, with 50 calls in which it speaks.
//!
//! `cargo bench -p rspp-tests --bench interruption` prints a table, with `-- --json` JSON, with
//! `-- --quick` hastily. Two worker threads, real time.
//!
//! Cancelled from outside: one call after the other, timed from before the request. Interrupted by
//! voice: all users begin to speak, and speech of 200 ms counts as an interruption; timed from the
//! session's acceptance. A frame leaked is one that is played after the line was told to forget the
//! turn, or more than a millisecond after the fence: one that was accepted just before the fence may be
//! on its way to the sink while it falls.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use hdrhistogram::Histogram;
use rspp_host::Notice;
use rspp_kernel::CancelReason;
use rspp_proto::TurnNumber;
use rspp_provider_api::scripted::ScriptedVoice;
use rspp_tests::{
    bench::{Aim, Args, Table, histogram, on_workers, us},
    fleet::{self, Caller, Meters, Metronome, Sound},
};
use rspp_timeline::Anchor;

/// Calls in which the agent speaks.
const CALLS: usize = 50;
/// Longest that an accepted frame may take to the sink, in nanoseconds.
const UNDER_WAY: u64 = 1_000_000;

fn main() {
    let args = Args::read();
    on_workers(measure(args)).print(args);
}

/// What was found of many interruptions; nanoseconds.
struct Silence {
    fence: Histogram<u64>,
    cleared: Histogram<u64>,
    last_frame: Histogram<u64>,
    leaked: u64,
}

impl Default for Silence {
    fn default() -> Self {
        Self {
            fence: histogram(),
            cleared: histogram(),
            last_frame: histogram(),
            leaked: 0,
        }
    }
}

async fn measure(args: Args) -> Table {
    let mut table = Table::new(
        "interruption",
        "simple/v1 and a probe, scripted providers, 50 calls at 50 frames/s each way; 2 workers",
    );
    let cancelled = cancelled(args.pick(40, 2)).await;
    report(&mut table, "cancelled", &cancelled);
    let interrupted = interrupted(args.pick(10, 1)).await;
    report(&mut table, "interrupted", &interrupted);
    table
}

fn report(table: &mut Table, how: &str, silence: &Silence) {
    let count = silence.fence.len();
    table.note("count", format!("{how}: turns"), count as f64, "turns");
    table.note(
        "fence_p50_us",
        format!("{how}: accepted to fence, p50"),
        us(&silence.fence, 0.5),
        "us",
    );
    table.aim(
        "fence_p99_us",
        format!("{how}: accepted to fence, p99"),
        us(&silence.fence, 0.99),
        "us",
        Aim::AtMost(50.0),
    );
    table.aim(
        "last_frame_p99_us",
        format!("{how}: accepted to last frame out of the sink, p99"),
        us(&silence.last_frame, 0.99),
        "us",
        Aim::AtMost(1_000.0),
    );
    table.note(
        "cleared_p50_us",
        format!("{how}: asked for to peer told to be silent, p50"),
        us(&silence.cleared, 0.5),
        "us",
    );
    table.note(
        "cleared_p99_us",
        format!("{how}: asked for to peer told to be silent, p99"),
        us(&silence.cleared, 0.99),
        "us",
    );
    table.aim(
        "leaked",
        format!("{how}: frames played after the fence"),
        silence.leaked as f64,
        "frames",
        Aim::AtMost(0.0),
    );
}

async fn start(voice: ScriptedVoice, meters: &Arc<Meters>) -> (rspp_host::Runtime, Vec<Caller>) {
    let providers = fleet::providers(Duration::from_secs(40), voice);
    let runtime = fleet::runtime(providers, meters).await;
    let callers = fleet::calls(&runtime, CALLS, &fleet::probed(), meters).await;
    (runtime, callers)
}

/// Waits until a reply after `turn` is heard.
async fn replied(caller: &Caller, turn: TurnNumber) -> TurnNumber {
    loop {
        if let Some(reply) = caller.heard.newest().filter(|reply| reply.turn > turn) {
            return reply.turn;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Cancels through the session's handle.
async fn cancelled(rounds: usize) -> Silence {
    let meters = Arc::new(Meters::default());
    let (runtime, callers) = start(ScriptedVoice::by_timeline("vad", []), &meters).await;
    let metronome = Metronome::start(&callers, Sound::Stamped, &meters);
    let mut turns = vec![TurnNumber(0); CALLS];
    let mut silence = Silence::default();
    for _ in 0..rounds {
        for (caller, turn) in callers.iter().zip(&mut turns) {
            caller.types("Tell me everything.");
            *turn = replied(caller, *turn).await;
        }
        let mut asked = Vec::with_capacity(CALLS);
        for caller in &callers {
            let before = meters.watch.nanos();
            let receipt = caller.session.cancel(CancelReason::UserCancel).await;
            let after = meters.watch.nanos();
            let receipt = receipt.expect("the session lives");
            silence
                .fence
                .saturating_record(receipt.fence.as_nanos() as u64);
            asked.push((before, after));
            // Not in step with the output clock.
            tokio::time::sleep(Duration::from_micros(3_300)).await;
        }
        // Whoever goes on playing is found out.
        tokio::time::sleep(Duration::from_millis(60)).await;
        for ((caller, turn), (before, after)) in callers.iter().zip(&turns).zip(asked) {
            let reply = caller.heard.reply(*turn).expect("it was heard");
            let fence = after;
            note(&mut silence, &reply, before, fence);
        }
    }
    drop(metronome);
    fleet::end(runtime, callers).await;
    silence
}

fn note(silence: &mut Silence, reply: &fleet::Reply, accepted: u64, fence: u64) {
    silence
        .last_frame
        .saturating_record(reply.last.saturating_sub(accepted));
    silence.leaked += reply.leaked + u64::from(reply.last > fence + UNDER_WAY);
    if let Some(cleared) = reply.cleared {
        silence.cleared.saturating_record(cleared - accepted);
    }
}

/// Speaks over the agent. What was said then opens the next turn, and the agent speaks again.
async fn interrupted(rounds: usize) -> Silence {
    let meters = Arc::new(Meters::default());
    let (runtime, callers) = start(ScriptedVoice::by_energy("vad"), &meters).await;
    let metronome = Metronome::start(&callers, Sound::Speech, &meters);
    let mut notices: Vec<_> = callers.iter().map(|c| c.session.subscribe()).collect();
    let mut turns = vec![TurnNumber(0); CALLS];
    for caller in &callers {
        caller.types("Tell me everything.");
    }
    for _ in 0..rounds {
        for (caller, turn) in callers.iter().zip(&mut turns) {
            *turn = replied(caller, *turn).await;
        }
        for speaking in [true, false] {
            for caller in &callers {
                caller.speaking.store(speaking, Ordering::Relaxed);
                // Not in step with the output clock.
                tokio::time::sleep(Duration::from_micros(3_300)).await;
            }
            tokio::time::sleep(Duration::from_millis(350)).await;
        }
    }
    drop(metronome);
    let mut silence = Silence::default();
    for (caller, notices) in callers.iter().zip(&mut notices) {
        while let Ok(notice) = notices.try_recv() {
            let Notice::Turn(turn) = notice else { continue };
            let accepted = turn.anchors.get(Anchor::CancelAccepted);
            let (Some(accepted), Some(fence_us)) = (accepted, turn.cancel_fence_us) else {
                continue;
            };
            let replies = caller.heard.replies();
            let Some(reply) = replies.iter().find(|r| r.turn.id() == turn.turn_id) else {
                continue;
            };
            let fence = (fence_us * 1e3) as u64;
            silence.fence.saturating_record(fence);
            let accepted = accepted.as_duration().as_nanos() as u64;
            note(&mut silence, reply, accepted, accepted + fence);
        }
    }
    fleet::end(runtime, callers).await;
    silence
}
