//! A conversation as people read it.

use std::time::Duration;

use rspp_host::report::TurnReport;

use crate::{
    report::Report,
    terminal::{millis, of_lines},
};

/// One turn: what was said, what was heard, and where the time went.
pub(crate) fn turn(
    turn: &TurnReport,
    heard_after: Option<Duration>,
    fault: Option<&str>,
) -> String {
    let reason = turn.reason.as_ref().map(|reason| format!(" ({reason})"));
    let heard = heard_after.map(|it| format!(", heard {} after the user fell silent", millis(it)));
    let played = turn.agent_text_played.trim();
    let cut_off = turn.agent_text.trim().strip_prefix(played).map(str::trim);
    let mut lines = vec![
        format!(
            "{}  {}{}{}",
            turn.turn_id,
            turn.outcome,
            reason.unwrap_or_default(),
            heard.unwrap_or_default()
        ),
        format!("  user   {}", or_nothing(&turn.user_text)),
        format!("  agent  {}", or_nothing(played)),
    ];
    lines.extend(
        cut_off
            .filter(|text| !text.is_empty())
            .map(|text| format!("  cut    {text}")),
    );
    lines.extend(fault.map(|fault| format!("  fault  {fault}")));
    let waterfall = turn.anchors.waterfall().to_string();
    lines.extend(waterfall.lines().map(|line| format!("  {line}")));
    of_lines(&lines)
}

fn or_nothing(text: &str) -> &str {
    if text.is_empty() { "(nothing)" } else { text }
}

/// The conversation as a whole.
pub(crate) fn summary(report: &Report, took: Duration) -> String {
    let session = &report.session;
    let clock = if session.virtual_time {
        format!("in virtual time, which took {:.1} s", took.as_secs_f64())
    } else {
        "in real time".to_owned()
    };
    let mut lines = vec![format!(
        "{}, {:.1} s of conversation {clock}",
        counted(report.turns.len() as u64, "turn", "turns"),
        session.duration_ms / 1e3
    )];
    let mut first_audio: Vec<f64> = report
        .turns
        .iter()
        .filter_map(|turn| turn.first_audio_ms)
        .collect();
    first_audio.sort_by(f64::total_cmp);
    if let (Some(median), Some(worst)) = (nearest_rank(&first_audio, 0.5), first_audio.last()) {
        lines.push(format!(
            "first audio {median:.0} ms after the end of speech (median), {worst:.0} ms at most"
        ));
    }
    let overhead = report.kernel_overhead_us;
    if overhead.samples > 0 {
        lines.push(format!(
            "runtime overhead {:.1} us an event (median), {:.1} us p99",
            overhead.p50, overhead.p99
        ));
    }
    if let Some(budget) = overhead.budget {
        lines.push(format!(
            "runtime overhead was above its budget of {budget} us {} times",
            overhead.above_budget
        ));
    }
    for (count, one, many) in [
        (
            session.refused_turns,
            "turn was refused",
            "turns were refused",
        ),
        (session.node_failures, "node failed", "nodes failed"),
        (
            session.underruns,
            "gap in the agent's speech",
            "gaps in the agent's speech",
        ),
        (
            session.frames_after_clear,
            "frame came after it was taken back",
            "frames came after they were taken back",
        ),
    ] {
        if count > 0 {
            lines.push(counted(count, one, many));
        }
    }
    if let Some(wire) = session.wire.filter(|wire| wire.gaps > 0) {
        lines.push(format!(
            "{} on the line, {} ms in all and {} ms at most: that is what a caller hears as chopped",
            counted(wire.gaps, "gap", "gaps"),
            wire.gap_ms,
            wire.longest_gap_ms
        ));
    }
    of_lines(&lines)
}

/// A number and the thing in its number.
pub(crate) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// The percentile of sorted values by nearest rank (gates.md §1).
fn nearest_rank(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use rspp_transport_api::wire::WireReport;

    use super::*;
    use crate::report::tests::{report, session};

    #[test]
    fn a_turn_reads_as_what_was_heard_and_what_was_cut() {
        let mut session = session();
        let turn_report = session.turns.remove(0);
        let heard = Some(Duration::from_millis(812));
        insta::assert_snapshot!(turn(&turn_report, heard, None), @r#"
        turn-0001  abort (cancelled), heard 812 ms after the user fell silent
          user   Tell me a story.
          agent  Once upon a time
          cut    there was a lighthouse.
          end of turn found     400.0 ms  ███████████▎
          LLM first token       100.0 ms             ██▉
          playback started      200.0 ms                █████▋
          cancel accepted      1000.0 ms                     ████████████████████████████▎
          cancel fence            0.0 ms                                                 ▏
          total                1700.0 ms  from user audio in
        "#);
        let mute = TurnReport {
            outcome: "abort".to_owned(),
            reason: Some("provider_failure".to_owned()),
            agent_text: String::new(),
            agent_text_played: String::new(),
            anchors: rspp_timeline::Anchors::default(),
            ..turn_report
        };
        insta::assert_snapshot!(turn(&mute, None, Some("node `llm`: no answer")), @r#"
        turn-0001  abort (provider_failure)
          user   Tell me a story.
          agent  (nothing)
          fault  node `llm`: no answer
          no two anchors of this turn are known
        "#);
    }

    #[test]
    fn the_summary_is_short_unless_something_went_wrong() {
        let took = Duration::from_millis(1_234);
        insta::assert_snapshot!(summary(&report(), took), @r#"
        1 turn, 5.0 s of conversation in virtual time, which took 1.2 s
        first audio 700 ms after the end of speech (median), 700 ms at most
        runtime overhead 0.5 us an event (median), 17.5 us p99
        "#);
        let mut bad = report();
        bad.session.virtual_time = false;
        bad.session.underruns = 1;
        bad.session.frames_after_clear = 2;
        bad.session.wire = Some(WireReport {
            frames: 250,
            gaps: 3,
            gap_ms: 190,
            longest_gap_ms: 80,
            jitter_us: 9_000,
        });
        insta::assert_snapshot!(summary(&bad, took), @r#"
        1 turn, 5.0 s of conversation in real time
        first audio 700 ms after the end of speech (median), 700 ms at most
        runtime overhead 0.5 us an event (median), 17.5 us p99
        1 gap in the agent's speech
        2 frames came after they were taken back
        3 gaps on the line, 190 ms in all and 80 ms at most: that is what a caller hears as chopped
        "#);
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        assert_eq!(nearest_rank(&[], 0.5), None);
        assert_eq!(nearest_rank(&[1.0], 0.5), Some(1.0));
        assert_eq!(nearest_rank(&[1.0, 2.0, 3.0, 4.0], 0.5), Some(2.0));
        assert_eq!(nearest_rank(&[1.0, 2.0, 3.0], 0.5), Some(2.0));
    }
}
