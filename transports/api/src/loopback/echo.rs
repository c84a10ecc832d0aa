//! The way from the agent's loudspeaker back into the user's microphone.

use std::{collections::VecDeque, time::Duration};

use rspp_proto::SampleRate;

use super::{EchoPath, USER_RATE};
use crate::audio::{FRAME, Resampler, UnsupportedRate};

/// What was heard of the agent, on its way back.
pub(super) struct Echo {
    gain: f32,
    delay: Duration,
    resampler: Resampler,
    /// On the call's clock from `first` on, at the rate of the microphone.
    heard: VecDeque<i16>,
    /// Samples since the call began before those in `heard`.
    first: u64,
}

impl Echo {
    pub(super) fn new(path: EchoPath, sink_rate: SampleRate) -> Result<Self, UnsupportedRate> {
        Ok(Self {
            gain: path.gain,
            delay: path.delay.max(FRAME),
            resampler: Resampler::new(sink_rate, USER_RATE)?,
            heard: VecDeque::new(),
            first: 0,
        })
    }

    /// The next stretch of the call, as the user heard the agent.
    pub(super) fn heard(&mut self, samples: &[i16]) {
        let mut converted = Vec::new();
        self.resampler.push(samples, &mut converted);
        self.heard.extend(converted);
    }

    /// Adds what comes back to a frame that the microphone takes at `at`.
    pub(super) fn mix_into(&mut self, frame: &mut [i16], at: Duration) {
        let now = USER_RATE.samples_in(at);
        let delay = USER_RATE.samples_in(self.delay);
        for (sample, n) in frame.iter_mut().zip(now..) {
            let Some(from) = n.checked_sub(delay) else {
                continue;
            };
            while self.first < from && self.heard.pop_front().is_some() {
                self.first += 1;
            }
            let echo = self.heard.front().copied().unwrap_or(0);
            *sample = sample.saturating_add((f32::from(echo) * self.gain) as i16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_comes_back_later_and_softer() {
        let path = EchoPath {
            gain: 0.5,
            delay: Duration::from_millis(40),
        };
        let mut echo = Echo::new(path, USER_RATE).unwrap();
        let mut quiet = [0; 320];
        echo.heard(&[1_000; 320]);
        echo.mix_into(&mut quiet, Duration::from_millis(20));
        assert_eq!(quiet, [0; 320]);
        echo.heard(&[0; 320]);
        let mut spoken = [7; 320];
        echo.mix_into(&mut spoken, Duration::from_millis(40));
        assert!(spoken.iter().all(|sample| *sample == 507), "{spoken:?}");
        echo.heard(&[0; 320]);
        let mut after = [7; 320];
        echo.mix_into(&mut after, Duration::from_millis(60));
        assert!(after.iter().all(|sample| *sample == 7), "{after:?}");
    }
}
