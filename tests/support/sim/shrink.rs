//! From a scenario that breaks something to the pieces that it takes.

use super::{Broken, Scenario, play};

/// Leaves out one piece after the other, as long as the same rule stays broken; at most `tries` plays.
pub fn shrink(scenario: &Scenario, broken: &Broken, tries: u32) -> Scenario {
    let mut smallest = scenario.clone();
    let mut tries = tries;
    loop {
        let before = smallest.pieces.len();
        let mut at = 0;
        while at < smallest.pieces.len() {
            if tries == 0 {
                return smallest;
            }
            tries -= 1;
            let mut without = smallest.clone();
            without.pieces.remove(at);
            let played = play(&without, None, false);
            let same = |of: &Broken| of.invariant == broken.invariant;
            if played.broken.iter().any(same) {
                smallest = without;
            } else {
                at += 1;
            }
        }
        if smallest.pieces.len() == before {
            return smallest;
        }
    }
}
