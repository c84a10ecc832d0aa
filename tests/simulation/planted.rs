//! Bugs that are planted between the runtime and those who look on: each is noticed, by the rule
//! that it breaks. A simulation that overlooked them would show nothing.

use rspp_kernel::invariant;
use rspp_tests::sim::{Invariant, Plant, Scenario, play};
use rspp_timeline::verify::Rule;

use crate::sessions::hush;

/// Seeds within which a planted bug has to show.
const SEEDS: u64 = 200;

#[track_caller]
fn is_noticed(plant: Plant, as_a_breach_of: Invariant) {
    hush();
    let mut others = Vec::new();
    for seed in 0..SEEDS {
        let played = play(&Scenario::of(seed), Some(plant), false);
        let rules = played.broken.iter().map(|broken| broken.invariant);
        if rules.clone().any(|rule| rule == as_a_breach_of) {
            return;
        }
        if others.len() < 40 {
            others.extend(rules);
        }
    }
    panic!("{plant:?} was overlooked in {SEEDS} scenarios; noticed instead: {others:?}");
}

/// F-175, P1: a sink that plays on after the fence.
#[test]
fn a_frame_after_the_fence_is_noticed() {
    is_noticed(Plant::FrameAfterFence, Invariant::SilentAfterTheFence);
}

/// F-156: a frame of an older epoch.
#[test]
fn a_frame_of_an_old_epoch_is_noticed() {
    is_noticed(Plant::FrameAfterFence, Invariant::SilentForOldEpochs);
}

#[test]
fn a_frame_that_is_played_twice_is_noticed() {
    is_noticed(Plant::FrameTwice, Invariant::FramesInOrder);
}

/// P20: a provider's stream that outlives its session.
#[test]
fn a_stream_that_is_left_is_noticed() {
    is_noticed(Plant::StreamLeft, Invariant::NothingIsLeft);
}

/// F-139: a recorder that forgets how a turn ended.
#[test]
fn a_forgotten_terminal_is_noticed() {
    is_noticed(
        Plant::TerminalForgotten,
        Invariant::Recorded(Rule::TerminalOnce),
    );
}

/// NF-028: a recorder that loses evidence.
#[test]
fn forgotten_evidence_is_noticed() {
    is_noticed(
        Plant::EvidenceForgotten,
        Invariant::Recorded(Rule::EvidencePresent),
    );
    is_noticed(Plant::EvidenceForgotten, Invariant::EvidenceOrAbort);
}

/// P2: a conversation that remembers more than was heard.
#[test]
fn words_that_nobody_heard_are_noticed() {
    let rule = invariant::Invariant::HeardIsPrefix;
    is_noticed(Plant::HeardTooMuch, Invariant::Kernel(rule));
}

/// P14: a turn that is committed although nobody heard it.
#[test]
fn a_committed_turn_that_nobody_heard_is_noticed() {
    let rule = invariant::Invariant::CommittedIsHeard;
    is_noticed(Plant::HeardTooLittle, Invariant::Kernel(rule));
}

/// P16: an order that waits for ever.
#[test]
fn an_unanswered_order_is_noticed() {
    is_noticed(Plant::OrderUnanswered, Invariant::ControlIsNotStarved);
}

/// F-139: a turn that is committed twice.
#[test]
fn a_turn_that_ends_twice_is_noticed() {
    let rule = invariant::Invariant::EndsOnceThenCloses;
    is_noticed(Plant::EndsTwice, Invariant::Kernel(rule));
    is_noticed(Plant::EndsTwice, Invariant::Recorded(Rule::TerminalOnce));
}

/// F-149: a plan that is not what was hashed.
#[test]
fn a_changed_plan_is_noticed() {
    is_noticed(Plant::PlanChanged, Invariant::PlanIsFrozen);
}

/// P17: a session that never ends.
#[test]
fn a_session_that_does_not_end_is_noticed() {
    is_noticed(Plant::EndUntold, Invariant::TeardownIsBounded);
}

/// P7, F-158: an order that is placed twice.
#[test]
fn an_effect_that_happens_twice_is_noticed() {
    is_noticed(Plant::EffectTwice, Invariant::EffectsHappenOnce);
}

/// P1: a tool that does what its dead turn had asked for.
#[test]
fn an_effect_for_a_dead_turn_is_noticed() {
    is_noticed(Plant::EffectOfTheDead, Invariant::EffectsOfTheLiving);
}

/// P9: a guess that is heard before it is a turn.
#[test]
fn a_guess_that_is_heard_is_noticed() {
    is_noticed(Plant::GuessHeard, Invariant::GuessesAreMute);
}

/// F-156, AE-003: a placement that goes on although another has its session.
#[test]
fn two_writers_are_noticed() {
    is_noticed(Plant::TwoWriters, Invariant::OneWriter);
}

/// F-049, F1: a refusal that somebody inside pays for.
#[test]
fn a_refusal_that_costs_is_noticed() {
    is_noticed(Plant::RefusalCosts, Invariant::RefusalsCostNothing);
}

/// P19: a session that outgrows its cap and lives on.
#[test]
fn memory_beyond_the_cap_is_noticed() {
    is_noticed(Plant::MemoryLeaks, Invariant::MemoryIsBounded);
}
