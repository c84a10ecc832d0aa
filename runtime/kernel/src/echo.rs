//! Tells the agent's own voice, come back through a loudspeaker, from the user's (P28).
//!
//! Works on the loudness of frames, not on samples: cheap, and enough to decide who is speaking. The
//! far end is what the runtime itself played; a frame of the microphone that is no louder than its echo
//! can be is taken for the echo. A user who speaks over the agent is louder than that.

use std::{collections::VecDeque, time::Duration};

use rspp_proto::{Monotonic, spec::EchoGuardPolicy};

/// The loudness of a frame, in decibels over one step of a 16-bit sample.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Loudness(f32);

impl Loudness {
    /// What nobody hears: a quiet room through a usual microphone.
    pub const QUIET: Self = Self(35.0);

    /// The loudness of 16-bit samples.
    pub fn of(samples: impl IntoIterator<Item = i16>) -> Self {
        let (mut power, mut count) = (0u64, 0u64);
        for sample in samples {
            power += u64::from(sample.unsigned_abs()).pow(2);
            count += 1;
        }
        Self(10.0 * (power as f32 / count.max(1) as f32 + 1.0).log10())
    }
}

/// What a frame of the microphone holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Microphone {
    /// The user, or a quiet room: what may be listened to.
    Open,
    /// Nothing but what the agent said.
    Echo,
}

/// Before anything is known, an echo may be as loud as the voice itself.
const UNKNOWN: f32 = 0.0;
/// No loudspeaker is worth listening for below this, in decibels under the voice.
const LEAST: f32 = -40.0;
/// How far one frame may raise the expected echo, in decibels.
const LOUDER: f32 = 0.3;
/// How far one frame may lower it: less than the margin until the first echo can have come back.
const SOFTER: f32 = 0.2;
/// Frames in a row that have to be too loud for an echo: one alone may be a click.
const SURE: u32 = 2;
/// Frames for which the user is believed to go on speaking: a syllable has quiet parts.
const HOLD: u32 = 10;

/// One session's guard.
#[derive(Clone, Debug)]
pub struct EchoGuard {
    reach: Duration,
    margin: f32,
    /// What was played, newest last.
    far: VecDeque<(Monotonic, Loudness)>,
    /// How loud an echo is beside the voice, as far as is known: decibels.
    coupling: f32,
    /// Frames in a row that no echo explains.
    too_loud: u32,
    /// Frames for which the microphone stays open.
    open_for: u32,
    suppressed: u64,
}

impl EchoGuard {
    /// A guard under `policy`; `None` if it is not wanted. `lead` is how long the transport may hold a
    /// frame before it is played.
    pub fn new(policy: &EchoGuardPolicy, lead: Duration) -> Option<Self> {
        policy.enabled.then(|| Self {
            reach: Duration::from_millis(policy.max_delay_ms) + lead,
            margin: policy.margin_db as f32,
            far: VecDeque::new(),
            coupling: UNKNOWN,
            too_loud: 0,
            open_for: 0,
            suppressed: 0,
        })
    }

    /// A frame of the agent's was given to the transport.
    pub fn played(&mut self, at: Monotonic, loudness: Loudness) {
        self.forget(at);
        if loudness > Loudness::QUIET {
            self.far.push_back((at, loudness));
        }
    }

    /// A frame came from the microphone.
    pub fn judge(&mut self, at: Monotonic, near: Loudness) -> Microphone {
        self.forget(at);
        // Whichever delay fits best: the loudest that may be coming back at this moment.
        let far = self.far.iter().map(|(_, far)| far.0);
        let Some(far) = far.max_by(f32::total_cmp) else {
            self.too_loud = 0;
            self.open_for = 0;
            return Microphone::Open;
        };
        let relative = near.0 - far;
        if relative > self.coupling + self.margin && near > Loudness::QUIET {
            self.too_loud += 1;
            if self.too_loud >= SURE {
                self.open_for = HOLD;
            }
        } else {
            self.too_loud = 0;
            // What the user says is no news about the loudspeaker.
            if self.open_for == 0 {
                let learnt = relative.clamp(self.coupling - SOFTER, self.coupling + LOUDER);
                self.coupling = learnt.max(LEAST);
            }
        }
        if self.open_for > 0 {
            self.open_for -= 1;
            return Microphone::Open;
        }
        self.suppressed += 1;
        Microphone::Echo
    }

    /// Frames that were taken for an echo.
    pub fn suppressed(&self) -> u64 {
        self.suppressed
    }

    fn forget(&mut self, now: Monotonic) {
        while self
            .far
            .front()
            .is_some_and(|(at, _)| now.since(*at) > self.reach)
        {
            self.far.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn guard() -> EchoGuard {
        let policy = EchoGuardPolicy {
            enabled: true,
            ..EchoGuardPolicy::default()
        };
        EchoGuard::new(&policy, Duration::from_millis(60)).unwrap()
    }

    fn at(frame: u64) -> Monotonic {
        Monotonic::from_millis(frame * 20)
    }

    /// A tone of this peak.
    fn loud(peak: f32) -> Loudness {
        Loudness(10.0 * (peak * peak / 2.0 + 1.0).log10())
    }

    /// The agent speaks at 8 000 from frame 0 on; the microphone hears `near`.
    fn hear(
        guard: &mut EchoGuard,
        frames: std::ops::Range<u64>,
        near: impl Fn(u64) -> f32,
    ) -> Vec<Microphone> {
        frames
            .map(|frame| {
                guard.played(at(frame), loud(8_000.0));
                guard.judge(at(frame), loud(near(frame)))
            })
            .collect()
    }

    #[test]
    fn loudness_is_that_of_the_samples() {
        let tone = (0..320).map(|n| ((n as f32 * 0.1).sin() * 8_000.0) as i16);
        let difference = Loudness::of(tone).0 - loud(8_000.0).0;
        assert!(difference.abs() < 0.5, "{difference}");
        assert_eq!(Loudness::of([0; 320]), Loudness(0.0));
    }

    /// P28: the agent's own voice at any usual loudness, after any usual delay, opens nothing.
    #[test]
    fn an_echo_is_not_the_user() {
        for gain in [0.05, 0.3, 0.7, 1.0] {
            for delay in [0, 5, 20] {
                let mut guard = guard();
                let heard = hear(&mut guard, 0..500, |frame| {
                    if frame < delay { 3.0 } else { 8_000.0 * gain }
                });
                let opened = heard.iter().filter(|of| **of == Microphone::Open).count();
                assert_eq!(opened, 0, "gain {gain}, delay {delay}");
            }
        }
    }

    /// P28: double talk. Who speaks over the agent is heard within two frames, and so is who speaks
    /// when it is silent.
    #[test]
    fn a_user_who_speaks_over_the_agent_is_heard() {
        let mut guard = guard();
        let echo = 8_000.0 * 0.3;
        hear(&mut guard, 0..100, |_| echo);
        let both = hear(&mut guard, 100..150, |_| {
            (6_000.0f32.powi(2) + echo.powi(2)).sqrt()
        });
        let first = both.iter().position(|of| *of == Microphone::Open);
        assert_eq!(first, Some(1));
        assert!(both[1..].iter().all(|of| *of == Microphone::Open));
        // The agent is silent, and its last sound has died away.
        assert_eq!(guard.judge(at(200), loud(50.0)), Microphone::Open);
    }

    /// P28: with a headset there is no echo, and even a soft voice interrupts.
    #[test]
    fn without_an_echo_a_soft_voice_is_heard() {
        let mut guard = guard();
        hear(&mut guard, 0..200, |_| 10.0);
        let soft = hear(&mut guard, 200..210, |_| 500.0);
        assert!(soft.contains(&Microphone::Open));
    }

    /// P28: one loud frame is a click, not a user.
    #[test]
    fn a_click_is_not_the_user() {
        let mut guard = guard();
        hear(&mut guard, 0..100, |_| 1_000.0);
        let heard = hear(&mut guard, 100..120, |frame| {
            if frame == 105 { 20_000.0 } else { 1_000.0 }
        });
        assert!(!heard.contains(&Microphone::Open));
    }

    proptest! {
        /// Memory is bounded by the reach, and an agent that is silent never closes the microphone.
        #[test]
        fn a_silent_agent_closes_nothing(near in prop::collection::vec(0f32..30_000.0, 1..200)) {
            let mut guard = guard();
            for (frame, peak) in near.into_iter().enumerate() {
                let frame = frame as u64;
                guard.played(at(frame), loud(0.0));
                prop_assert_eq!(guard.judge(at(frame), loud(peak)), Microphone::Open);
                prop_assert!(guard.far.len() <= 24);
            }
            prop_assert_eq!(guard.suppressed(), 0);
        }
    }
}
