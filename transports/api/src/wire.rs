//! The agent's speech as it crosses the wire: whether it comes in time to be heard without a gap (P29).
//!
//! A recording of what was made is clean however choppy a call was. What tells is when each frame left,
//! so that is measured, and recorded where it leaves.

use std::time::Duration;

use bytes::Bytes;
use rspp_proto::{SampleRate, TurnNumber};
use serde::{Deserialize, Serialize};

use crate::{
    audio::{Resampler, UnsupportedRate},
    loopback::{Playback, Recorded},
};

/// What a player waits for before it begins to play, and when it has run out: two frames, as the smallest buffers
/// of phones do.
pub const CUSHION: Duration = Duration::from_millis(40);

/// How the agent's speech crossed the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireReport {
    /// Frames that crossed it.
    pub frames: u64,
    /// Times that a frame came when the one before it had been played, in the middle of what a turn says.
    pub gaps: u64,
    /// What these gaps come to, in milliseconds.
    pub gap_ms: u64,
    /// The longest of them, in milliseconds.
    pub longest_gap_ms: u64,
    /// The most that the frames' jitter came to, as RFC 3550 estimates it, in microseconds.
    pub jitter_us: u64,
}

/// Follows frames over the wire. Takes no memory, however long a call lasts.
#[derive(Clone, Debug)]
pub struct Wire {
    cushion: Duration,
    report: WireReport,
    speaking: Option<Speaking>,
    gaps: Duration,
}

/// A turn that speaks.
#[derive(Clone, Copy, Debug)]
struct Speaking {
    turn: TurnNumber,
    /// When the newest frame came, and what it lasts.
    came: Duration,
    lasts: Duration,
    /// When all that has come has been played.
    played: Duration,
    /// The running estimate, in microseconds.
    jitter: i64,
}

impl Wire {
    /// A wire to a player that waits for `cushion` before it begins.
    pub fn new(cushion: Duration) -> Self {
        Self {
            cushion,
            report: WireReport::default(),
            speaking: None,
            gaps: Duration::ZERO,
        }
    }

    /// A frame of a turn came at `at`.
    pub fn frame(&mut self, turn: TurnNumber, at: Duration, lasts: Duration) {
        self.report.frames += 1;
        let Some(speaking) = self.speaking.filter(|speaking| speaking.turn == turn) else {
            self.speaking = Some(Speaking {
                turn,
                came: at,
                lasts,
                played: at + self.cushion + lasts,
                jitter: 0,
            });
            return;
        };
        let mut starts = speaking.played;
        if at > speaking.played {
            // A player that has run out begins anew, and waits as long again.
            starts = at + self.cushion;
            let gap = starts.saturating_sub(speaking.played);
            self.gaps += gap;
            self.report.gaps += 1;
            self.report.gap_ms = self.gaps.as_millis() as u64;
            let longest = self.report.longest_gap_ms;
            self.report.longest_gap_ms = longest.max(gap.as_millis() as u64);
        }
        let apart = at.saturating_sub(speaking.came).as_micros() as i64;
        let off = (apart - speaking.lasts.as_micros() as i64).abs();
        let jitter = speaking.jitter + (off - speaking.jitter) / 16;
        self.report.jitter_us = self.report.jitter_us.max(jitter.unsigned_abs());
        self.speaking = Some(Speaking {
            turn,
            came: at,
            lasts,
            played: starts + lasts,
            jitter,
        });
    }

    /// What comes next does not join what came before: a pause that is meant.
    pub fn pause(&mut self) {
        self.speaking = None;
    }

    /// A turn, and all before it, has no more to say, or is not to be heard any more.
    pub fn over(&mut self, turn: TurnNumber) {
        self.speaking.take_if(|speaking| speaking.turn <= turn);
    }

    /// How it went so far.
    pub fn report(&self) -> WireReport {
        self.report
    }
}

/// Records both directions of a wire with the time that each frame crossed it, as whoever plays what comes,
/// when it comes, would have heard it. What comes too late leaves a gap.
#[derive(Debug)]
pub struct Tape {
    rate: SampleRate,
    user: Playback,
    agent: Playback,
    to_agents_rate: Resampler,
    heard: Recorded,
}

/// Most audio that may wait on a tape for its time; what comes faster than it is heard is left out.
const AHEAD: Duration = Duration::from_secs(30);

impl Tape {
    /// A recording at the rate of the agent's audio.
    pub fn new(user: SampleRate, agent: SampleRate) -> Result<Self, UnsupportedRate> {
        Ok(Self {
            rate: agent,
            user: Playback::new(user, AHEAD, CUSHION),
            agent: Playback::new(agent, AHEAD, CUSHION),
            to_agents_rate: Resampler::new(user, agent)?,
            heard: Recorded::default(),
        })
    }

    /// Samples per second of what is recorded.
    pub fn rate(&self) -> SampleRate {
        self.rate
    }

    /// Audio of the user's came.
    pub fn came(&mut self, at: Duration, pcm: Bytes) {
        // To a tape a microphone is one turn that never ends.
        let _left_out = self.user.play(at, at, TurnNumber::FIRST, pcm);
    }

    /// Audio of the agent's left.
    pub fn left(&mut self, turn: TurnNumber, at: Duration, pcm: Bytes) {
        let _left_out = self.agent.play(at, at, turn, pcm);
    }

    /// The client was told to forget what it has not played of a turn and all before it.
    pub fn cleared(&mut self, turn: TurnNumber, at: Duration) {
        self.agent.clear(at, turn);
    }

    /// Takes what was recorded until `now` and not taken yet. Call it now and then: what is not taken stays
    /// in memory.
    pub fn take(&mut self, now: Duration) -> Recorded {
        self.advance(now);
        self.heard.take()
    }

    /// Takes the rest once the call is over; the shorter side is filled up with silence.
    pub fn take_rest(&mut self, now: Duration) -> Recorded {
        self.advance(now);
        self.heard.take_rest(&mut self.to_agents_rate)
    }

    fn advance(&mut self, now: Duration) {
        self.user.advance(now);
        self.agent.advance(now);
        let user = self.user.take_heard();
        self.to_agents_rate.push(&user, &mut self.heard.user);
        self.heard.agent.extend(self.agent.take_heard());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::{FRAME, to_bytes};

    const FIRST: TurnNumber = TurnNumber::FIRST;

    /// Lengths of sound and silence in turn.
    fn stretches(samples: &[i16]) -> Vec<(bool, usize)> {
        let runs = samples.chunk_by(|a, b| (*a != 0) == (*b != 0));
        runs.map(|run| (run[0] != 0, run.len())).collect()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn over(late: impl Fn(u64) -> u64) -> WireReport {
        let mut wire = Wire::new(CUSHION);
        for n in 0..50 {
            wire.frame(FIRST, ms(n * 20 + late(n)), FRAME);
        }
        wire.report()
    }

    /// P29: frames that come when they are due, or within the player's cushion, leave no gap; what comes
    /// later does, once, for as long as it was late: the player waits for its cushion again.
    #[test]
    fn what_comes_too_late_is_a_gap() {
        let report = over(|_| 0);
        assert_eq!((report.gaps, report.jitter_us), (0, 0));
        let report = over(|n| if n >= 25 { 40 } else { 0 });
        assert_eq!((report.frames, report.gaps), (50, 0));
        assert!(report.jitter_us > 0);
        let report = over(|n| if n >= 25 { 110 } else { 0 });
        assert_eq!(
            (report.gaps, report.gap_ms, report.longest_gap_ms),
            (1, 110, 110)
        );
        // A frame every 25 ms uses the cushion up, again and again.
        let report = over(|n| n * 5);
        assert_eq!(
            (report.gaps, report.gap_ms, report.longest_gap_ms),
            (5, 225, 45)
        );
    }

    /// P29: what is between two turns is no gap.
    #[test]
    fn a_pause_between_turns_is_none() {
        let mut wire = Wire::new(CUSHION);
        wire.frame(FIRST, ms(0), FRAME);
        wire.frame(FIRST.next(), ms(500), FRAME);
        wire.over(FIRST.next());
        // The same turn goes on after it was held.
        wire.frame(FIRST.next(), ms(2_000), FRAME);
        assert_eq!(wire.report().gaps, 0);
    }

    /// P29: the tape has the gap where it was heard, and what was taken back is not on it.
    #[test]
    fn a_tape_has_the_gaps_in_it() {
        let rate = SampleRate::HZ_8000;
        let mut tape = Tape::new(rate, rate).unwrap();
        let frame = to_bytes(&[7; 160]);
        for at in [0, 20, 120, 140] {
            tape.left(FIRST, ms(at), frame.clone());
        }
        tape.cleared(FIRST, ms(190));
        tape.came(ms(100), frame.clone());
        let Recorded { user, agent } = tape.take(ms(300));
        assert_eq!((user.len(), agent.len()), (2_400, 2_400));
        // 40 ms of cushion, two frames, 80 ms of nothing, and 30 ms until it was taken back.
        let heard = stretches(&agent);
        let expected = [
            (false, 320),
            (true, 320),
            (false, 640),
            (true, 240),
            (false, 880),
        ];
        assert_eq!(heard, expected);
        let heard = stretches(&user);
        assert_eq!(heard, [(false, 1_120), (true, 160), (false, 1_120)]);
    }
}
