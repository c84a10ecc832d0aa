//! The wire: what a caller hears, gaps and all, and what has been handed to it and is taken back.

use std::{sync::Arc, time::Duration};

use rspp_provider_api::scripted::{ScriptedLlm, ScriptedTts};
use rspp_tests::call::{Builder, Cast, Ended, LONG, first, over_reply, says};
use rspp_transport_api::loopback::{Moment, Network};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn talkative() -> Cast {
    Cast {
        llm: Arc::new(ScriptedLlm::new("llm").answers([LONG])),
        ..Cast::default()
    }
}

/// A call over a telephone line.
fn phone(cast: &Cast, network: Network) -> Builder {
    let mut builder = Builder::new(cast, vec![says(first())]);
    builder.script.telephone = true;
    builder.script.network = network;
    builder
}

/// Silences of the agent's in the middle of its reply, in milliseconds, as the recording has them.
fn silences(ended: &Ended) -> Vec<u64> {
    let moments = ended.line.moments();
    let at = |wanted: fn(&Moment) -> bool| {
        let found = moments.iter().find(|moment| wanted(moment));
        found.expect("the agent spoke").at().as_millis() as usize * 8
    };
    let began = at(|moment| matches!(moment, Moment::ReplyBegan { .. }));
    let over = at(|moment| matches!(moment, Moment::ReplyEnded { .. }));
    let heard = ended.line.take_rest().agent;
    let runs = heard[began..over].chunk_by(|a, b| (*a == 0) == (*b == 0));
    let silent = runs
        .filter(|run| run[0] == 0)
        .map(|run| run.len() as u64 / 8);
    silent.filter(|ms| *ms >= 10).collect()
}

/// P29: on a telephone line of 8 kHz frames leave as evenly as anywhere. Where the line is late, the gap is in
/// the recording, which is made at the caller's end, and in the report, which tells the line from the
/// runtime's clock; a player that waits as long as the line is late hears none.
#[tokio::test(start_paused = true)]
async fn a_choppy_line_is_seen_in_the_recording() {
    let late = || {
        let mut late = vec![Duration::ZERO; 60];
        late.extend([ms(150); 40]);
        late
    };
    for (agent_late, cushion, gaps) in [
        (Vec::new(), ms(40), vec![]),
        (late(), ms(40), vec![150]),
        (late(), ms(150), vec![]),
    ] {
        let network = Network {
            agent_late,
            cushion,
            ..Network::default()
        };
        let ended = phone(&talkative(), network).hold().await;
        assert_eq!(ended.endings(), ["commit"]);
        let line = ended.report.line;
        assert_eq!(
            (line.left_late, line.unplayed),
            (0, 0),
            "the runtime's clock is even"
        );
        assert_eq!(ended.report.underruns, 0);
        let wire = line.wire.expect("the loopback watches its wire");
        assert_eq!(wire.frames, line.left);
        assert_eq!(silences(&ended), gaps);
        assert_eq!(wire.gaps, gaps.len() as u64);
        assert_eq!(wire.gap_ms, gaps.iter().sum::<u64>());
        assert_eq!(wire.longest_gap_ms, gaps.first().copied().unwrap_or(0));
    }
}

/// P29: synthesis that is slower than speech leaves gaps of ours: told as such, by the output clock and at the
/// wire, and heard in the recording.
#[tokio::test(start_paused = true)]
async fn a_gap_of_synthesis_is_told_from_one_of_the_line() {
    let cast = Cast {
        tts: Arc::new(ScriptedTts::new("tts").real_time_factor(1.3)),
        ..talkative()
    };
    let network = Network {
        cushion: ms(40),
        ..Network::default()
    };
    let ended = phone(&cast, network).hold().await;
    assert_eq!(ended.endings(), ["commit"]);
    let wire = ended.report.line.wire.unwrap();
    assert!(ended.report.underruns > 0 && wire.gaps > 0, "{wire:?}");
    let heard: u64 = silences(&ended).iter().sum();
    assert!(heard.abs_diff(wire.gap_ms) <= 100, "{heard} of {wire:?}");
}

/// P5, P29: what has been handed to the line and is under way when the user interrupts is heard until the news
/// come after it, and nothing else is: the lead and the line's delay bound it.
#[tokio::test(start_paused = true)]
async fn what_was_handed_over_is_silenced_by_an_interruption() {
    for delay in [0, 120] {
        let mut builder = Builder::new(&talkative(), vec![says(first()), says(over_reply(900))]);
        builder.script.telephone = true;
        builder.script.network = Network {
            agent_late: vec![ms(delay)],
            ..Network::default()
        };
        let lead = builder.script.lead;
        let ended = builder.hold().await;
        assert_eq!(ended.endings(), ["cancelled", "commit"]);
        let heard = ended.heard()[0];
        assert!(heard.cut);
        let fenced = ended.turn(1).anchors.cancel_fence_applied_ts.unwrap();
        let silent = ended.report.opened_at + heard.ended;
        let after = silent.since(fenced);
        assert!(
            after <= lead + ms(delay),
            "{after:?} after the fence, {delay} ms away"
        );
        assert_eq!(ended.line.leaked(), 0);
    }
}
