//! Whole sessions through the real actors.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    env,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use rspp_tests::sim::{Played, Scenario, Tally, play, shrink};

/// Seeds of the normal test run; `.ci/run` has more.
const SEEDS: u64 = 300;

/// From here on everything has to be seen.
const MANY: u64 = 3_000;

/// What a few hundred seeds have to come across.
const COMMON: &[&str] = &[
    "disk: fails",
    "disk: full",
    "disk: slow",
    "line: closes",
    "line: dies",
    "line: full",
    "line: jitter",
    "line: mute",
    "line: reconnects",
    "line: stalls",
    "disk: tight",
    "llm: deaf",
    "llm: fails",
    "llm: late",
    "llm: panics",
    "llm: slow to stop",
    "llm: stalls",
    "llm: truncates",
    "node: fails",
    "node: hangs",
    "node: panics",
    "node: slow",
    "stt: fails",
    "stt: late",
    "stt: panics",
    "stt: truncates",
    "subscriber: deaf",
    "tool: deaf",
    "tool: effect",
    "tool: fails",
    "tool: panics",
    "tool: refused",
    "tts: deaf",
    "tts: fails",
    "tts: late",
    "tts: panics",
    "tts: stalls",
    "tts: truncates",
    "vad: panics",
    "cancel call",
    "cancel node",
    "cancel session",
    "cancel turn",
    "drain",
    "move: hand over",
    "move: lost",
    "revoke",
    "rotate",
    "rotate back",
    "shut down",
    "steal lease",
    "user cancels",
    "user coughs",
    "user ends utterance",
    "user speaks",
    "user types",
    "commit",
    "cancelled",
    "authority_loss",
    "node_timeout_or_failure",
    "provider_failure",
    "recording_evidence_unavailable",
    "transport_disconnect_or_stall",
    "defer admission_capacity_defer",
    "reject admission_capacity_reject",
    "stale_epoch_reject authority_epoch_mismatch",
    "deauthorized_drain authority_revoked_before_open",
    "deauthorized_drain authority_revoked_in_turn",
    "session refused: full",
    "newcomer: Defer",
    "newcomer: Reject",
    "degraded: session_memory_soft_mark",
    "session over its memory cap",
    "speculation_begun",
    "speculation_discarded session_over",
    "speculation_discarded user_went_on",
    "speculation_promoted",
    "move refused: no_such_turn",
    "barge_in",
    "credit_grant",
    "degrade",
    "discontinuity",
    "migration_finish",
    "migration_start",
    "reconnecting",
    "session_handoff",
    "shed",
    "provider_error",
    "drop_notice",
    "flow_xoff",
    "flow_xon",
    "watermark",
    "playback_cancelled",
    "playback_completed",
];

/// What many seeds have to come across.
const ALL: &[&str] = &[
    "stt: deaf",
    "stt: slow to stop",
    "stt: stalls",
    "tts: slow to stop",
    "session refused: shut down",
    "guess: over budget",
    "speculation_discarded words_differ",
    "quota: sessions wait",
    "work shed",
    "degraded: node_budget_threshold_exceeded",
    "move refused: session_has_ended",
    "move refused: session_is_draining",
    "silence",
    "budget_exhausted",
    "budget_warning",
    "fallback",
    "provider_switch",
    "circuit_event",
];

/// Panics that are part of a scenario are not worth a line each.
pub(crate) fn hush() {
    static HUSHED: std::sync::Once = std::sync::Once::new();
    HUSHED.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let payload = info.payload();
            let text = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied());
            if !text.is_some_and(|text| text.starts_with("scripted panic")) {
                loud(info);
            }
        }));
    });
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// What a failing seed looks like, and how to see it again.
fn explain(scenario: &Scenario, played: &Played) -> String {
    let broken = &played.broken[0];
    let smallest = shrink(scenario, broken, 200);
    let again = play(&smallest, None, true);
    let (seed, rule) = (scenario.seed, broken.invariant);
    let list = |lines: &mut dyn Iterator<Item = String>| lines.collect::<Vec<_>>().join("\n  ");
    format!(
        "seed {seed} breaks {rule}. Replay it with\n  \
         RSPP_SEED={seed} cargo test -p rspp-tests --test simulation one_seed -- --nocapture\n  \
         {}\nShrunk:\n{smallest}  {}\n",
        list(&mut played.broken.iter().map(ToString::to_string)),
        list(&mut again.lines.iter().map(|line| format!("| {line}"))),
    )
}

/// Different rules broken after which a run has seen enough.
const ENOUGH: usize = 4;

/// One failure for each rule that was broken.
type Failures = BTreeMap<String, String>;

fn known(failures: &Mutex<Failures>) -> MutexGuard<'_, Failures> {
    failures.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Plays seeds on all cores; what was covered, and one failure for each rule that was broken.
fn explore(seeds: std::ops::Range<u64>) -> (Tally, Failures) {
    let next = AtomicU64::new(seeds.start);
    let failures = Mutex::new(Failures::new());
    let run = || {
        let mut tally = Tally::default();
        while known(&failures).len() < ENOUGH {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= seeds.end {
                break;
            }
            let scenario = Scenario::of(seed);
            let played = play(&scenario, None, false);
            tally.add(&played.tally);
            let Some(broken) = played.broken.first() else {
                continue;
            };
            let rule = broken.invariant.to_string();
            // Taken first, so that nobody else shrinks the same.
            let is_new = match known(&failures).entry(rule.clone()) {
                Entry::Vacant(place) => place.insert(String::new()).is_empty(),
                Entry::Occupied(_) => false,
            };
            if is_new {
                let text = explain(&scenario, &played);
                known(&failures).insert(rule, text);
            }
        }
        tally
    };
    let mut tally = Tally::default();
    thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(2, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(run)).collect();
        for worker in workers {
            tally.add(&worker.join().expect("a scenario is played to its end"));
        }
    });
    (
        tally,
        failures
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner),
    )
}

/// F-134, P1, P2, P16, P17, P20: whatever fails, whoever speaks, whatever is ordered, at whatever
/// moment: at every step all invariants hold.
#[test]
fn whatever_happens_the_invariants_hold() {
    hush();
    let seeds = number("RSPP_SEEDS").unwrap_or(SEEDS);
    let from = number("RSPP_FROM").unwrap_or(0);
    let began = tokio::time::Instant::now();
    let (tally, failures) = explore(from..from + seeds);
    println!("{tally}\nin {:.1} s", began.elapsed().as_secs_f64());
    let missing = match seeds {
        ..SEEDS => Vec::new(),
        SEEDS..MANY => tally.missing(COMMON),
        MANY.. => tally.missing(&[COMMON, ALL].concat()),
    };
    assert!(
        missing.is_empty() || !failures.is_empty(),
        "a simulation that explores nothing shows nothing; never seen: {missing:?}"
    );
    let failures: Vec<_> = failures.into_values().collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A seed is played again exactly: the same hash over all that was said, played and reported.
#[test]
fn the_same_seed_goes_the_same_way() {
    hush();
    for seed in 0..40 {
        let scenario = Scenario::of(seed);
        let (one, two) = (play(&scenario, None, true), play(&scenario, None, true));
        if one.hash != two.hash {
            let differs = one.lines.iter().zip(&two.lines).find(|(a, b)| a != b);
            panic!("seed {seed} differs: {differs:#?}\n{scenario}");
        }
    }
}

/// Plays one seed, line by line: `RSPP_SEED=… cargo test -p rspp-tests --test simulation one_seed -- --nocapture`.
#[test]
fn one_seed() {
    hush();
    let Some(seed) = number("RSPP_SEED") else {
        return;
    };
    let scenario = Scenario::of(seed);
    let played = play(&scenario, None, true);
    println!("{scenario}");
    for line in &played.lines {
        println!("{line}");
    }
    println!("hash {:016x}", played.hash);
    assert!(played.broken.is_empty(), "{}", explain(&scenario, &played));
}
