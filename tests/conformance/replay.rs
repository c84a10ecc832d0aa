//! A recorded call decides again as it did, and two calls can be set against each other.

use std::{sync::Arc, time::Duration};

use rspp_kernel::{CancelReason, journal::Line};
use rspp_proto::{SessionId, abi::Signal, spec::ReplayMode};
use rspp_provider_api::scripted::{Conduct, Script, ScriptedLlm};
use rspp_replay::{Divergence, DivergenceClass, Replay, Step, Tolerance, compare};
use rspp_tests::call::{Builder, Cast, Ended, LONG, after_reply, first, over_reply, says};
use rspp_timeline::Entry;

fn session() -> SessionId {
    SessionId::new("call").unwrap()
}

fn replay(entries: &[Entry], mode: ReplayMode) -> Replay {
    Replay::new(session(), entries, mode).unwrap()
}

/// All lines from where the replay stands.
fn rest(replay: &mut Replay) -> Vec<Step> {
    std::iter::from_fn(|| replay.step().unwrap()).collect()
}

fn divergences(entries: &[Entry]) -> Vec<Divergence> {
    let mut replay = replay(entries, ReplayMode::RecomputeDecisions);
    let steps = rest(&mut replay);
    let found = steps.into_iter().filter_map(|step| step.divergence);
    found.chain(replay.surplus()).collect()
}

async fn interrupted() -> Ended {
    let cast = Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG, "Very well."])),
        ..Cast::default()
    };
    let said = vec![says(first()), says(over_reply(700)), says(after_reply())];
    Builder::new(&cast, said).hold().await
}

/// RD-001, F-140, F-029: equal inputs give equal decisions, in run and replay, however a turn ends.
#[tokio::test(start_paused = true)]
async fn every_recorded_call_decides_again_as_it_did() {
    let ended = interrupted().await;
    assert_eq!(ended.endings(), ["cancelled", "commit", "commit"]);
    assert_eq!(divergences(&ended.entries), []);

    let stalled = Cast {
        llm: Arc::new(
            ScriptedLlm::new("llm").script(Script::calls([Conduct::good().stalling_after(0)])),
        ),
        ..Cast::default()
    };
    let ended = Builder::new(&stalled, vec![says(first())]).hold().await;
    assert_eq!(ended.endings(), ["budget_exhausted"]);
    assert_eq!(divergences(&ended.entries), []);

    let call = Builder::new(&Cast::default(), vec![says(first())])
        .start()
        .await;
    call.log.until(Signal::PlaybackStarted, 1).await;
    call.session.revoke();
    let _ended = call.session.cancel(CancelReason::UserCancel).await;
    let ended = call.end().await;
    assert_eq!(ended.endings(), ["authority_loss"]);
    assert_eq!(divergences(&ended.entries), []);
}

/// F-152: a replay stops anywhere, and goes on from a saved cursor at the same boundary.
#[tokio::test(start_paused = true)]
async fn a_replay_goes_on_from_where_it_stopped() {
    let ended = interrupted().await;
    let whole = rest(&mut replay(&ended.entries, ReplayMode::RecomputeDecisions));
    for stop in [0, 1, whole.len() / 2, whole.len() - 1, whole.len()] {
        let mut before = replay(&ended.entries, ReplayMode::RecomputeDecisions);
        for _ in 0..stop {
            before.step().unwrap();
        }
        let kept = serde_json::to_string(&before.cursor()).unwrap();
        let mut after = replay(&ended.entries, ReplayMode::RecomputeDecisions);
        after.go_to(&serde_json::from_str(&kept).unwrap()).unwrap();
        assert_eq!(rest(&mut after), whole[stop..]);
    }
    let mut beyond = replay(&ended.entries, ReplayMode::RecomputeDecisions);
    let mut cursor = beyond.cursor();
    cursor.line = whole.len() as u64 + 1;
    assert!(beyond.go_to(&cursor).is_err());
}

/// F-151, NF-009: the mode is chosen, is in every step, and repeated replays are the same.
#[tokio::test(start_paused = true)]
async fn each_step_says_which_mode_made_it() {
    let ended = interrupted().await;
    for mode in [ReplayMode::ReplayDecisions, ReplayMode::RecomputeDecisions] {
        let once = rest(&mut replay(&ended.entries, mode));
        assert!(once.iter().all(|step| step.mode == mode));
        assert_eq!(rest(&mut replay(&ended.entries, mode)), once);
    }
    let refused = Replay::new(session(), &ended.entries, ReplayMode::ReSimulateNodes);
    assert!(refused.is_err());
}

/// ML-003: an input that is missing shows as the decision that did not follow.
#[tokio::test(start_paused = true)]
async fn a_missing_input_is_found_by_what_was_decided() {
    let mut entries = interrupted().await.entries;
    let cancel = entries.iter().position(|entry| match entry {
        Entry::Journal(line) => line.line.to_string().contains("playback_started"),
        _another => false,
    });
    entries.remove(cancel.unwrap());
    let found = divergences(&entries);
    assert_eq!(
        found.len(),
        1,
        "one difference, not all that follow: {found:#?}"
    );
    assert_eq!(found[0].class, DivergenceClass::OutcomeDivergence);
}

/// F-153: below the highest level the journal holds no word that was said, and decides all the same.
#[tokio::test(start_paused = true)]
async fn the_journal_holds_no_words() {
    let ended = interrupted().await;
    let mut lines = 0;
    for entry in &ended.entries {
        let Entry::Journal(line) = entry else {
            continue;
        };
        lines += 1;
        let text = line.line.to_string();
        for word in ["hello", "story", "town"] {
            assert!(!text.contains(word), "{text}");
        }
        serde_json::from_value::<Line>(line.line.clone()).unwrap();
    }
    assert!(lines > 20);
}

/// RD-002, RD-004, F-077: two runs of one call do not differ; each kind of difference is told apart.
#[tokio::test(start_paused = true)]
async fn two_runs_are_compared_by_what_differs() {
    let (one, other) = (interrupted().await, interrupted().await);
    let tolerance = Tolerance::default();
    assert_eq!(compare(&one.entries, &other.entries, &tolerance), []);

    let classes = |candidate: &[Entry], tolerance: &Tolerance| -> Vec<DivergenceClass> {
        let found = compare(&one.entries, candidate, tolerance);
        let mut classes: Vec<_> = found.iter().map(|it| it.class).collect();
        classes.sort();
        classes.dedup();
        classes
    };
    // Slower within the tolerance, and beyond it.
    let mut slow = one.entries.clone();
    for entry in &mut slow {
        if let Entry::Turn(turn) = entry
            && let Some(started) = &mut turn.anchors.assistant_audio_playback_started_ts
        {
            *started = *started + Duration::from_millis(20);
        }
    }
    assert_eq!(
        classes(&slow, &tolerance),
        [DivergenceClass::TimingDivergence]
    );
    assert_eq!(
        classes(
            &slow,
            &Tolerance {
                timing_ms: 25.0,
                ..tolerance.clone()
            }
        ),
        []
    );
    // A signal that is gone is one difference.
    let mut gone = one.entries.clone();
    let at = gone
        .iter()
        .position(|it| it.signal() == Some(Signal::BargeIn));
    gone.remove(at.unwrap());
    let found = compare(&one.entries, &gone, &tolerance);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].class, DivergenceClass::OutcomeDivergence);
    // One that stands elsewhere is a matter of order.
    let mut moved = one.entries.clone();
    let signal = moved.remove(at.unwrap());
    moved.push(signal);
    assert_eq!(
        classes(&moved, &tolerance),
        [DivergenceClass::OrderingDivergence]
    );
    // Another policy is another plan.
    let mut planned = one.entries.clone();
    for entry in &mut planned {
        if let Entry::Plan(plan) = entry {
            *plan.plan.get_mut("policy_hash").unwrap() = "another".into();
        }
    }
    assert_eq!(
        classes(&planned, &tolerance),
        [DivergenceClass::PlanDivergence]
    );
}

/// F-021: what is written in a version of the ABI that this build does not read is not replayed by guesswork, in
/// whatever mode: it is refused, with what to do. As it was recorded it is replayed.
#[tokio::test(start_paused = true)]
async fn a_recording_in_another_version_is_refused_with_what_to_do() {
    let ended = interrupted().await;
    assert_eq!(divergences(&ended.entries), []);
    for (version, advice) in [
        ("v2.0", "upgrade this reader"),
        ("v0.9", "convert the recording"),
    ] {
        let mut entries = ended.entries.clone();
        let event = entries.iter_mut().rev().find_map(|entry| match entry {
            Entry::Signal(signal) => Some(&mut signal.envelope),
            _another_entry => None,
        });
        event.unwrap().schema_version = version.parse().unwrap();
        for mode in [ReplayMode::ReplayDecisions, ReplayMode::RecomputeDecisions] {
            let refused = Replay::new(session(), &entries, mode)
                .err()
                .unwrap()
                .to_string();
            assert!(
                refused.contains(version) && refused.contains(advice),
                "{refused}"
            );
        }
        let refused = rspp_replay::Recorded::of(&entries)
            .err()
            .unwrap()
            .to_string();
        assert!(refused.contains(advice), "{refused}");
    }
}
