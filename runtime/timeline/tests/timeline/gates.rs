use rspp_proto::{Monotonic, abi::Signal, spec::Modality};
use rspp_timeline::{
    Anchor, Anchors, Entry, TurnBaseline,
    gates::{Gate, GateReport, Gates},
};

use crate::conversation::{STARTED_MS, entries, turn};

fn at(ms: u64) -> Monotonic {
    Monotonic::from_millis(STARTED_MS + ms)
}

fn baseline(entries: &mut [Entry], number: u32) -> &mut TurnBaseline {
    let mut turns = entries.iter_mut().filter_map(|entry| match entry {
        Entry::Turn(baseline) if baseline.turn_id == turn(number) => Some(baseline),
        _ => None,
    });
    turns.next().unwrap()
}

/// A conversation in which all that gates measure has happened: a turn that went well, one that was
/// cancelled.
fn measured() -> Vec<Entry> {
    let mut entries = entries();
    let well = baseline(&mut entries, 1);
    well.invocation_outcomes[0].attempt_count = 1;
    let mut voice = well.invocation_outcomes[0].clone();
    voice.modality = Modality::Tts;
    well.invocation_outcomes.push(voice);
    for (anchor, ms) in [
        (Anchor::AudioInputIngress, 590),
        (Anchor::TranscriptFinal, 600),
        (Anchor::TurnOpenProposed, 610),
        (Anchor::FirstOutput, 1_052),
        (Anchor::PlaybackStarted, 1_060),
    ] {
        well.anchors.mark(anchor, at(ms));
    }
    let cut = baseline(&mut entries, 2);
    for (anchor, ms) in [
        (Anchor::TurnOpenProposed, 2_000),
        (Anchor::CancelAccepted, 2_300),
        (Anchor::CancelFence, 2_301),
    ] {
        cut.anchors.mark(anchor, at(ms));
    }
    entries
}

fn judge(entries: &[Entry]) -> GateReport {
    let mut gates = Gates::default();
    gates.add(entries);
    gates.report()
}

/// NF-024 to NF-029, NF-038: what is measured, by nearest rank.
#[test]
fn a_run_in_which_everything_happened_passes() {
    let report = judge(&measured());
    assert!(report.passed, "{report}");
    assert_eq!(
        (
            report.accepted_turns,
            report.happy_path_turns,
            report.cancel_observed_turns
        ),
        (2, 1, 1)
    );
    let values: Vec<_> = report.measured.iter().map(|it| it.value.unwrap()).collect();
    assert_eq!(values, [3.0, 439.0, 1.0, 0.0, 1.0, 1.0, 470.0, 470.0]);
}

/// Each gate fails alone, for a value over its limit and for data that is missing.
#[test]
fn a_gate_fails_by_its_value_and_by_what_is_missing() {
    #[track_caller]
    fn fails(gate: Gate, spoil: impl FnOnce(&mut Vec<Entry>)) {
        let mut entries = measured();
        spoil(&mut entries);
        let report = judge(&entries);
        assert!(!report.passed, "{report}");
        let mut failed: Vec<_> = report
            .violations
            .iter()
            .map(|it| it.gate)
            .chain(
                report
                    .measured
                    .iter()
                    .filter(|it| !it.passed)
                    .map(|it| it.gate),
            )
            .collect();
        failed.sort();
        failed.dedup();
        assert_eq!(failed, [gate], "{report}");
    }
    fn anchors(entries: &mut [Entry], number: u32) -> &mut Anchors {
        &mut baseline(entries, number).anchors
    }
    let late = |ms| Some(at(ms));

    fails(Gate::TurnOpenDecision, |entries| {
        anchors(entries, 1).turn_open_proposed_ingress_accepted_ts = late(400);
    });
    fails(Gate::TurnOpenDecision, |entries| {
        anchors(entries, 2).turn_open_proposed_ingress_accepted_ts = None;
    });
    fails(Gate::FirstOutput, |entries| {
        anchors(entries, 1).first_datalane_output_emitted_ts = late(2_200);
    });
    fails(Gate::FirstOutput, |entries| {
        anchors(entries, 1).first_datalane_output_emitted_ts = None;
    });
    fails(Gate::CancelFence, |entries| {
        anchors(entries, 2).cancel_fence_applied_ts = late(2_600);
    });
    fails(Gate::CancelFence, |entries| {
        anchors(entries, 2).cancel_fence_applied_ts = None;
    });
    fails(Gate::AuthoritySafety, |entries| {
        baseline(entries, 1).accepted_stale_epoch_outputs = 1;
    });
    fails(Gate::Evidence, |entries| {
        baseline(entries, 1).plan_hash.clear();
    });
    fails(Gate::Evidence, |entries| {
        baseline(entries, 1).or02_evidence_schema_version = "or02/v9".into();
    });
    fails(Gate::Terminals, |entries| {
        let close = entries
            .iter()
            .position(|it| it.signal() == Some(Signal::Close));
        let twice = entries[close.unwrap()].clone();
        entries.push(twice);
    });
    fails(Gate::EndToEnd, |entries| {
        anchors(entries, 1).audio_input_ingress_ts = late(0).map(|_| Monotonic::ZERO);
        anchors(entries, 1).assistant_audio_playback_started_ts = late(1_700);
    });
    fails(Gate::EndToEnd, |entries| {
        anchors(entries, 1).audio_input_ingress_ts = None;
    });
}

/// Nothing to measure is no pass: without turns, or without a cancel among them.
#[test]
fn gates_without_data_fail() {
    let nothing = judge(&[]);
    assert!(!nothing.passed && nothing.measured.iter().all(|it| !it.passed));

    let mut entries = measured();
    let gone = turn(2);
    entries.retain(|entry| entry.turn_id() != Some(&gone));
    let report = judge(&entries);
    let failed: Vec<_> = report.measured.iter().filter(|it| !it.passed).collect();
    assert_eq!(failed.len(), 1, "{report}");
    assert_eq!(failed[0].gate, Gate::CancelFence);
}
