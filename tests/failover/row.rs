//! What the rows have in common.

use rspp_proto::{TurnNumber, abi::DecisionOutcome};
use rspp_tests::call::Ended;
use rspp_timeline::{Entry, TerminalOutcome, TurnBaseline};

/// The evidence that a turn left.
#[track_caller]
pub(crate) fn evidence(ended: &Ended, turn: u32) -> &TurnBaseline {
    let id = TurnNumber(turn).id();
    let mut found = ended.entries.iter().filter_map(|entry| match entry {
        Entry::Turn(baseline) if baseline.turn_id == id => Some(baseline),
        _something_else => None,
    });
    let baseline = found.next().expect("the turn left evidence");
    assert!(found.next().is_none(), "{turn} left its evidence twice");
    assert!(baseline.is_complete(), "missing: {:?}", baseline.missing());
    baseline
}

/// The decisions that were recorded.
pub(crate) fn outcomes(ended: &Ended) -> Vec<&DecisionOutcome> {
    let entries = ended.entries.iter();
    entries
        .filter_map(|entry| match entry {
            Entry::Outcome(outcome) => Some(&**outcome),
            _something_else => None,
        })
        .collect()
}

/// Abort with that reason, then close, once each and last of all; the evidence says the same.
#[track_caller]
pub(crate) fn assert_aborted(ended: &Ended, turn: u32, reason: &str) {
    let signals = ended.signals_of(turn);
    let ends = |name: &&&str| ["commit", "abort", "close"].contains(*name);
    let ends: Vec<_> = signals.iter().filter(ends).copied().collect();
    assert_eq!(ends, ["abort", "close"], "{signals:?}");
    let baseline = evidence(ended, turn);
    assert_eq!(baseline.terminal_outcome, Some(TerminalOutcome::Abort));
    let recorded = baseline
        .terminal_reason
        .as_ref()
        .map(rspp_proto::Reason::as_str);
    assert_eq!(recorded, Some(reason));
    assert!(baseline.close_emitted);
    assert_eq!(ended.turn(turn).reason.as_deref(), Some(reason));
}

/// Commit, then close, once each; the evidence says the same.
#[track_caller]
pub(crate) fn assert_committed(ended: &Ended, turn: u32) {
    let signals = ended.signals_of(turn);
    let ends = |name: &&&str| ["commit", "abort", "close"].contains(*name);
    let ends: Vec<_> = signals.iter().filter(ends).copied().collect();
    assert_eq!(ends, ["commit", "close"], "{signals:?}");
    let baseline = evidence(ended, turn);
    assert_eq!(baseline.terminal_outcome, Some(TerminalOutcome::Commit));
    assert!(baseline.close_emitted);
}

/// Nothing opened, so nothing was aborted, closed or left as evidence of a turn.
#[track_caller]
pub(crate) fn assert_stayed_pre_turn(ended: &Ended) {
    for never in ["admit", "turn_open", "commit", "abort", "close"] {
        assert!(!ended.signals().contains(&never), "{never}");
    }
    assert!(ended.report.turns.is_empty());
    let evidence = |entry: &Entry| matches!(entry, Entry::Turn(_));
    assert!(!ended.entries.iter().any(evidence));
}
