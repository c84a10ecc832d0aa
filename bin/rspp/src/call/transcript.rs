//! A conversation as people read it.

use std::time::Duration;

use rspp_host::report::TurnReport;

use crate::{report::Report, terminal::millis};

/// One turn: what was said, what was heard, and where the time went.
pub(crate) fn turn(
    turn: &TurnReport,
    heard_after: Option<Duration>,
    fault: Option<&str>,
) -> String {
    let mut text = format!("{}  {}", turn.turn_id, turn.outcome);
    if let Some(reason) = &turn.reason {
        text += &format!(" ({reason})");
    }
    if let Some(heard_after) = heard_after {
        text += &format!(", heard {} after the user fell silent", millis(heard_after));
    }
    text += &format!("\n  user   {}\n", or_nothing(&turn.user_text));
    let played = turn.agent_text_played.trim();
    text += &format!("  agent  {}\n", or_nothing(played));
    let cut_off = turn.agent_text.trim().strip_prefix(played);
    if let Some(cut_off) = cut_off.map(str::trim).filter(|text| !text.is_empty()) {
        text += &format!("  cut    {cut_off}\n");
    }
    if let Some(fault) = fault {
        text += &format!("  fault  {fault}\n");
    }
    for line in turn.anchors.waterfall().to_string().lines() {
        text += &format!("  {line}\n");
    }
    text
}

fn or_nothing(text: &str) -> &str {
    if text.is_empty() { "(nothing)" } else { text }
}

/// The conversation as a whole.
pub(crate) fn summary(report: &Report, took: Duration) -> String {
    let session = &report.session;
    let lasted = session.duration_ms / 1e3;
    let clock = if session.virtual_time {
        format!("in virtual time, which took {:.1} s", took.as_secs_f64())
    } else {
        "in real time".to_owned()
    };
    let mut text = format!(
        "{}, {lasted:.1} s of conversation {clock}\n",
        counted(report.turns.len() as u64, "turn", "turns")
    );
    let mut first_audio: Vec<f64> = report
        .turns
        .iter()
        .filter_map(|turn| turn.first_audio_ms)
        .collect();
    first_audio.sort_by(f64::total_cmp);
    if let (Some(median), Some(worst)) = (nearest_rank(&first_audio, 0.5), first_audio.last()) {
        text += &format!(
            "first audio {median:.0} ms after the end of speech (median), {worst:.0} ms at most\n"
        );
    }
    let overhead = report.kernel_overhead_us;
    if overhead.samples > 0 {
        text += &format!(
            "runtime overhead {:.1} us an event (median), {:.1} us p99\n",
            overhead.p50, overhead.p99
        );
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
            text += &format!("{}\n", counted(count, one, many));
        }
    }
    text
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
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        assert_eq!(nearest_rank(&[], 0.5), None);
        assert_eq!(nearest_rank(&[1.0], 0.5), Some(1.0));
        assert_eq!(nearest_rank(&[1.0, 2.0, 3.0, 4.0], 0.5), Some(2.0));
        assert_eq!(nearest_rank(&[1.0, 2.0, 3.0], 0.5), Some(2.0));
    }
}
