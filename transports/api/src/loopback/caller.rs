//! Decides what the scripted user does next: speak, listen or hang up.

use std::time::Duration;

use bytes::Bytes;
use rspp_proto::{SampleRate, TurnNumber};

use super::{Moment, Script, Start, playback::Reply};
use crate::audio::{self, FRAME};

/// Silence in the middle of a reply that is taken for its end when nobody says that it has ended.
const DEAD_AIR: Duration = Duration::from_secs(3);

/// What the user does in one 20 ms frame.
pub(super) enum Step {
    Frame(Bytes),
    HangUp,
}

/// The user: a script and where it stands.
pub(super) struct Caller {
    script: Script,
    /// Which utterance is being or will be spoken.
    next: usize,
    /// How many of its samples have been sent; `None` while listening.
    sent: Option<usize>,
    /// Since when the user waits for a reply: when the last utterance was over, by its sound.
    waiting_since: Duration,
    /// The newest turn heard when the last utterance began: what it says is no reply to it.
    floor: Option<TurnNumber>,
    silence: Bytes,
}

impl Caller {
    pub(super) fn new(script: Script) -> Self {
        Self {
            script,
            next: 0,
            sent: None,
            waiting_since: Duration::ZERO,
            floor: None,
            silence: Bytes::from(vec![0; FRAME_SAMPLES * 2]),
        }
    }

    /// The frame that is sent at `now`, after hearing `reply` so far.
    pub(super) fn step(
        &mut self,
        now: Duration,
        reply: Option<Reply>,
        mut moment: impl FnMut(Moment),
    ) -> Step {
        if self.sent.is_none() {
            match self.script.utterances.get(self.next) {
                Some(utterance) if self.is_due(utterance.start, now, reply) => {
                    let sounds_for = sounding(&utterance.audio);
                    moment(Moment::UserBegan {
                        utterance: self.next,
                        at: now,
                    });
                    moment(Moment::UserEnded {
                        utterance: self.next,
                        at: now + sounds_for,
                    });
                    self.waiting_since = now + sounds_for;
                    self.floor = reply.map(|reply| reply.turn);
                    self.sent = Some(0);
                }
                Some(_) => {}
                None => {
                    let pause = self.script.hang_up_after;
                    if self.is_due(Start::AfterReply { pause }, now, reply) {
                        return Step::HangUp;
                    }
                }
            }
        }
        Step::Frame(self.frame())
    }

    fn frame(&mut self) -> Bytes {
        let Some(sent) = self.sent else {
            return self.silence.clone();
        };
        let samples = &self.script.utterances[self.next].audio;
        let end = (sent + FRAME_SAMPLES).min(samples.len());
        let mut frame = samples[sent..end].to_vec();
        frame.resize(FRAME_SAMPLES, 0);
        self.sent = Some(end);
        if end == samples.len() {
            self.sent = None;
            self.next += 1;
        }
        audio::to_bytes(&frame)
    }

    fn is_due(&self, start: Start, now: Duration, reply: Option<Reply>) -> bool {
        // A turn that ended while the user still spoke was a false start, not the reply.
        let reply = reply.filter(|reply| {
            let newer = self.floor.is_none_or(|floor| reply.turn > floor);
            let over = reply.closed.map(|closed| closed.max(reply.audible_until));
            newer && over.is_none_or(|over| over >= self.waiting_since)
        });
        let nobody_answers = now >= self.waiting_since + self.script.reply_timeout;
        match (start, reply) {
            (Start::At(at), _) => now >= at,
            (Start::AfterReply { .. } | Start::BargeIn { .. }, None) => nobody_answers,
            (Start::AfterReply { pause }, Some(reply)) => {
                let silent_since = match reply.closed {
                    Some(_) => reply.audible_until,
                    None => reply.audible_until + DEAD_AIR,
                };
                now >= silent_since.max(self.waiting_since) + pause
            }
            (Start::BargeIn { after_reply_audio }, Some(reply)) => match reply.began {
                Some(began) => now >= began + after_reply_audio,
                None => reply.closed.is_some(),
            },
        }
    }
}

const FRAME_SAMPLES: usize =
    (SampleRate::HZ_16000.hertz() as u128 * FRAME.as_millis() / 1_000) as usize;

/// How long an utterance sounds: to its last 10 ms that are not quiet beside its loudest.
fn sounding(samples: &[i16]) -> Duration {
    const WINDOW: usize = FRAME_SAMPLES / 2;
    let energy = |window: &[i16]| -> u64 {
        window
            .iter()
            .map(|&sample| u64::from(sample.unsigned_abs()).pow(2))
            .sum()
    };
    let loudest = samples.chunks(WINDOW).map(energy).max().unwrap_or(0);
    // 30 dB below the loudest is a breath or the room.
    let last = samples
        .chunks(WINDOW)
        .rposition(|window| energy(window) > loudest / 1_000);
    let end = last.map_or(0, |last| ((last + 1) * WINDOW).min(samples.len()));
    SampleRate::HZ_16000.duration_of(end as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_silence_is_not_part_of_what_was_said() {
        let mut samples = vec![8_000; 16_000];
        samples.extend(vec![20; 16_000]);
        assert_eq!(sounding(&samples), Duration::from_secs(1));
        assert_eq!(sounding(&[0; 500]), Duration::ZERO);
        assert_eq!(sounding(&[]), Duration::ZERO);
    }
}
