//! A scripted voice activity detector.

use std::{ops::Range, sync::Arc, time::Duration};

use rspp_proto::SampleRate;

use crate::{Cost, Description, Fault, VoiceActivity, VoiceDetector};

use super::{VoiceTally, describe, tally::VoiceCounters};

/// A detector that goes by loudness, or by a timetable whatever it hears.
#[derive(Debug)]
pub struct ScriptedVoice {
    description: Description,
    rule: Rule,
    sample_rate: SampleRate,
    window: usize,
    refusal: Option<Fault>,
    panic_after: Option<u64>,
    counters: Arc<VoiceCounters>,
}

#[derive(Clone, Debug)]
enum Rule {
    /// Speech is what has at least this root mean square, of 32 767.
    Energy(i16),
    /// Speech is within these stretches, from the last reset.
    Timeline(Arc<[Range<Duration>]>),
}

impl ScriptedVoice {
    /// Louder than a root mean square of 300 (about -40 dBFS) is speech.
    pub fn by_energy(id: &str) -> Self {
        Self::new(id, Rule::Energy(300))
    }

    /// Speech is within `speech`, counted in audio from the last reset.
    pub fn by_timeline(id: &str, speech: impl IntoIterator<Item = Range<Duration>>) -> Self {
        Self::new(id, Rule::Timeline(speech.into_iter().collect()))
    }

    fn new(id: &str, rule: Rule) -> Self {
        Self {
            description: describe(id, true),
            rule,
            sample_rate: SampleRate::HZ_16000,
            window: 320,
            refusal: None,
            panic_after: None,
            counters: Arc::default(),
        }
    }

    /// The root mean square, of 32 767, from which sound is speech; goes by loudness from now on.
    #[must_use]
    pub fn threshold(mut self, rms: i16) -> Self {
        self.rule = Rule::Energy(rms.max(0));
        self
    }

    /// The rate it wants; 16 kHz by default.
    #[must_use]
    pub fn sample_rate(mut self, rate: SampleRate) -> Self {
        self.sample_rate = rate;
        self
    }

    /// The samples it wants at a time; 320 by default, at least 1.
    #[must_use]
    pub fn window(mut self, samples: usize) -> Self {
        self.window = samples.max(1);
        self
    }

    /// Makes no detectors.
    #[must_use]
    pub fn refusing(mut self, fault: Fault) -> Self {
        self.refusal = Some(fault);
        self
    }

    /// Each detector panics after that many windows.
    #[must_use]
    pub fn panicking_after(mut self, windows: u64) -> Self {
        self.panic_after = Some(windows);
        self
    }

    /// What became of the detectors.
    pub fn tally(&self) -> VoiceTally {
        self.counters.tally()
    }
}

impl VoiceActivity for ScriptedVoice {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn detector(&self) -> Result<Box<dyn VoiceDetector>, Fault> {
        if let Some(fault) = &self.refusal {
            return Err(fault.clone());
        }
        self.counters.made.add();
        Ok(Box::new(Detector {
            rule: self.rule.clone(),
            sample_rate: self.sample_rate,
            window: self.window,
            panic_after: self.panic_after,
            counters: Arc::clone(&self.counters),
            heard: 0,
        }))
    }
}

struct Detector {
    rule: Rule,
    sample_rate: SampleRate,
    window: usize,
    panic_after: Option<u64>,
    counters: Arc<VoiceCounters>,
    /// Windows since the last reset.
    heard: u64,
}

impl VoiceDetector for Detector {
    fn sample_rate(&self) -> SampleRate {
        self.sample_rate
    }

    fn window(&self) -> usize {
        self.window
    }

    fn cost(&self) -> Cost {
        Cost::Inline
    }

    fn probability(&mut self, window: &[i16]) -> f32 {
        assert!(
            self.panic_after.is_none_or(|windows| self.heard < windows),
            "scripted panic after {} windows",
            self.heard
        );
        let from = self
            .sample_rate
            .duration_of(self.heard * self.window as u64);
        self.heard += 1;
        self.counters.answered.add();
        let speech = match &self.rule {
            Rule::Energy(threshold) => {
                let square = |sample: &i16| u64::from(sample.unsigned_abs()).pow(2);
                let squares: u64 = window.iter().map(square).sum();
                let least = u64::from(threshold.unsigned_abs()).pow(2) * window.len() as u64;
                squares > 0 && squares >= least
            }
            Rule::Timeline(stretches) => stretches.iter().any(|stretch| stretch.contains(&from)),
        };
        if speech { 1.0 } else { 0.0 }
    }

    fn reset(&mut self) {
        self.heard = 0;
        self.counters.resets.add();
    }
}

impl Drop for Detector {
    fn drop(&mut self) {
        self.counters.gone.add();
    }
}
