//! What the simulation has found, shrunk to the pieces that it took.

use rspp_proto::spec::Modality;
use rspp_provider_api::scripted::Conduct;
use rspp_tests::sim::{LineFault, Part, Piece, Played, Scenario, Twist, UserAct, play};

use crate::sessions::hush;

#[track_caller]
fn holds(pieces: Vec<Piece>) -> Played {
    hush();
    let scenario = Scenario { seed: 0, pieces };
    let played = play(&scenario, None, true);
    let broken: Vec<_> = played.broken.iter().map(ToString::to_string).collect();
    assert!(
        broken.is_empty(),
        "{}\n{scenario}{}",
        broken.join("\n"),
        played.lines.join("\n")
    );
    played
}

fn calls(hangs_up_ms: u64) -> Piece {
    Piece::Caller {
        caller: 0,
        opens_ms: 0,
        hangs_up_ms,
        packet_ms: 40,
    }
}

fn types(at_ms: u64) -> Piece {
    Piece::User {
        caller: 0,
        at_ms,
        does: UserAct::Types(format!("typed at {at_ms}")),
    }
}

/// F-007, F-134: a standby that took over from a node whose provider's adapter panicked waited for
/// words that nobody told it again.
#[test]
fn a_standby_is_told_what_a_crashed_adapter_was_told() {
    let panics = Piece::Provider {
        part: Part {
            modality: Modality::Llm,
            second: false,
        },
        call: 0,
        conduct: Conduct::good().panicking_after(0),
    };
    let played = holds(vec![
        calls(3_000),
        types(300),
        panics,
        Piece::Twist(Twist::Standby),
    ]);
    assert_eq!(
        played.tally.outcomes.get("commit"),
        Some(&1),
        "{}",
        played.tally
    );
}

/// event-abi.md §5, 1; F-160: a node that was restarted numbered its events, and its calls, from one
/// again, so that a number was given twice on an edge.
#[test]
fn a_restarted_node_goes_on_counting() {
    let speaks = Piece::User {
        caller: 0,
        at_ms: 340,
        does: UserAct::Speaks { for_ms: 900 },
    };
    let played = holds(vec![
        calls(3_700),
        speaks,
        Piece::Twist(Twist::Tap {
            from: "vad",
            to: "stt",
        }),
        Piece::DeafeningNoise { windows: 54 },
    ]);
    assert_eq!(played.tally.faults.get("vad: panics"), Some(&1));
}

/// P2: a frame that came to a peer that was gone counted as heard.
#[test]
fn what_a_peer_that_is_gone_was_sent_was_not_heard() {
    let one_frame = Piece::Provider {
        part: Part {
            modality: Modality::Tts,
            second: false,
        },
        call: 0,
        conduct: Conduct::good().truncated_after(1),
    };
    let played = holds(vec![
        calls(1_500),
        types(500),
        one_frame,
        Piece::Line {
            caller: 0,
            fault: LineFault::Closes { at_ms: 400 },
        },
    ]);
    assert!(played.tally.faults.contains_key("line: closes"));
}

/// F-004, P14: where two ways lead to the voice, a turn is committed once both are at their end, and all that
/// came by either was heard.
#[test]
fn a_turn_is_not_over_before_all_of_its_branches_are() {
    for only in [true, false] {
        for ms in [0, 40, 200, 800] {
            let beside = Piece::Twist(Twist::Beside { ms, only });
            let played = holds(vec![calls(60_000), types(500), beside]);
            let is_turn = |line: &&String| line.contains(" turn ") && line.contains(" commit ");
            let turns: Vec<_> = played.lines.iter().filter(is_turn).collect();
            assert!(!turns.is_empty(), "{only} {ms}: nothing is committed");
            for turn in turns {
                assert!(!turn.ends_with("heard \"\""), "{only} {ms}: {turn}");
            }
        }
    }
}
