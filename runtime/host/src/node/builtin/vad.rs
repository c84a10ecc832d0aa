//! Voice activity: audio in, speech marks out.

use rspp_proto::{AudioChunk, Payload, SampleIndex, SpeechMark};
use rspp_provider_api::{Cost, VoiceDetector};
use rspp_transport_api::audio::FRAME;

use crate::{
    connection::INGRESS_RATE,
    event::{Event, Port},
    node::{Node, NodeContext, NodeError, NodeReport, Step},
};

/// Probability from which a window counts as speech while nobody speaks.
const SPEECH_FROM: f64 = 0.5;
/// Probability from which a window counts as speech while somebody speaks.
const SPEECH_WHILE: f64 = 0.35;
/// Speech shorter than this is a click, in milliseconds.
const MIN_SPEECH_MS: f64 = 60.0;

/// The node. Positions are samples of the user's audio as it entered.
#[derive(Default)]
pub(super) struct Vad {
    detector: Option<Box<dyn VoiceDetector>>,
    /// Samples that do not fill a window yet.
    pending: Vec<i16>,
    /// Position of the first pending sample.
    position: u64,
    activity: Activity,
    /// Where the speech in progress began.
    since: u64,
    limits: Limits,
}

#[derive(Clone, Copy, Debug, Default)]
struct Limits {
    speech_from: f32,
    speech_while: f32,
    min_speech: u64,
    hangover: u64,
    max_speech: u64,
}

/// What the windows so far add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Activity {
    #[default]
    Silent,
    /// Speech since `since`, not long enough to count.
    Rising {
        since: u64,
    },
    Speaking,
    /// Speech until `until`, not silent long enough to count as stopped.
    Falling {
        until: u64,
    },
    /// Speech beyond all measure: noise, until it pauses.
    Overlong,
}

impl Activity {
    /// Takes in one window from `start` to `end`.
    fn step(self, start: u64, end: u64, p: f32, limits: Limits) -> (Self, Option<SpeechMark>) {
        match self {
            Self::Silent if p >= limits.speech_from => {
                Self::Rising { since: start }.step(start, end, p, limits)
            }
            Self::Silent => (Self::Silent, None),
            // Too short: a click. Or too long, and over at last.
            Self::Rising { .. } | Self::Overlong if p < limits.speech_while => (Self::Silent, None),
            Self::Rising { since } if end - since >= limits.min_speech => {
                let at = SampleIndex(since);
                (Self::Speaking, Some(SpeechMark::Started { at }))
            }
            Self::Rising { since } => (Self::Rising { since }, None),
            Self::Speaking if p < limits.speech_while => {
                Self::Falling { until: start }.step(start, end, p, limits)
            }
            Self::Speaking => (Self::Speaking, None),
            Self::Falling { .. } if p >= limits.speech_from => (Self::Speaking, None),
            Self::Falling { until } if end - until >= limits.hangover => {
                let at = SampleIndex(until);
                (Self::Silent, Some(SpeechMark::Stopped { at }))
            }
            Self::Falling { until } => (Self::Falling { until }, None),
            Self::Overlong => (Self::Overlong, None),
        }
    }

    fn is_speech(self) -> bool {
        match self {
            Self::Speaking | Self::Falling { .. } => true,
            Self::Silent | Self::Rising { .. } | Self::Overlong => false,
        }
    }

    /// What a step to `next` says about a pause in what may still be speech.
    fn pause(self, next: Self, at: SampleIndex) -> Option<NodeReport> {
        match (self, next) {
            (Self::Speaking, Self::Falling { .. }) => Some(NodeReport::SpeechPaused { at }),
            (Self::Falling { .. }, Self::Speaking) => Some(NodeReport::SpeechResumed { at }),
            (
                Self::Silent
                | Self::Rising { .. }
                | Self::Speaking
                | Self::Falling { .. }
                | Self::Overlong,
                Self::Silent
                | Self::Rising { .. }
                | Self::Speaking
                | Self::Falling { .. }
                | Self::Overlong,
            ) => None,
        }
    }
}

impl Vad {
    fn detector(&mut self, cx: &NodeContext) -> Result<(), NodeError> {
        if self.detector.is_some() {
            return Ok(());
        }
        let settings = cx.settings();
        let id = settings.provider()?;
        let provider = settings
            .registry
            .voice(id)
            .map_err(|error| NodeError::new(error.to_string()))?;
        let detector = provider
            .detector()
            .map_err(|fault| NodeError::provider(fault.to_string()))?;
        let detector = match &settings.capture {
            Some(capture) => capture.detector(id, detector),
            None => detector,
        };
        let rate = f64::from(detector.sample_rate().hertz());
        let samples = |ms: f64| (ms * rate / 1e3) as u64;
        self.limits = Limits {
            speech_from: settings.number("speech_from", SPEECH_FROM) as f32,
            speech_while: settings.number("speech_while", SPEECH_WHILE) as f32,
            min_speech: samples(settings.number("min_speech_ms", MIN_SPEECH_MS)),
            hangover: samples(settings.turns.vad_hangover_ms as f64),
            max_speech: samples(settings.budgets.max_turn_duration_ms as f64),
        };
        self.detector = Some(detector);
        Ok(())
    }

    fn take(&mut self, chunk: &AudioChunk, at: SampleIndex) {
        let expected = self.position + self.pending.len() as u64;
        if expected != at.0 {
            // Frames were lost on the way: what is pending does not join up with this.
            self.pending.clear();
            self.position = at.0;
        }
        let samples = chunk.data.chunks_exact(2);
        self.pending
            .extend(samples.map(|b| i16::from_le_bytes([b[0], b[1]])));
    }

    /// Takes complete windows out of what is pending.
    fn windows(&mut self, window: usize) -> Vec<i16> {
        let whole = self.pending.len() / window * window;
        let rest = self.pending.split_off(whole);
        std::mem::replace(&mut self.pending, rest)
    }

    fn conclude(&mut self, cx: &mut NodeContext, window: usize, probabilities: &[f32]) {
        for p in probabilities {
            let start = self.position;
            self.position += window as u64;
            let before = self.activity;
            let (mut activity, mut mark) = before.step(start, self.position, *p, self.limits);
            if let Some(SpeechMark::Started { at }) = mark {
                self.since = at.0;
            } else if mark.is_none() && activity.is_speech() && self.is_overlong() {
                // Nobody talks that long without a breath, and everybody waits for an end.
                activity = Activity::Overlong;
                let at = SampleIndex(self.position);
                mark = Some(SpeechMark::Stopped { at });
            }
            self.activity = activity;
            if let Some(report) = before.pause(activity, SampleIndex(start)) {
                cx.report(report);
            }
            if let Some(mark) = mark {
                cx.report(NodeReport::Speech(mark));
                cx.emit_at(Payload::Speech(mark), SampleIndex(start), 0);
            }
        }
    }

    fn is_overlong(&self) -> bool {
        self.position - self.since > self.limits.max_speech
    }

    async fn analyse(&mut self, cx: &mut NodeContext, window: usize) -> Result<(), NodeError> {
        let Some(mut detector) = self.detector.take() else {
            return Ok(());
        };
        let samples = self.windows(window);
        let (detector, probabilities) = cx
            .pool()
            .run(move || {
                let probabilities = run(detector.as_mut(), &samples, window);
                (detector, probabilities)
            })
            .await
            .map_err(|error| NodeError::provider(error.to_string()))?;
        self.detector = Some(detector);
        self.conclude(cx, window, &probabilities);
        Ok(())
    }
}

fn run(detector: &mut dyn VoiceDetector, samples: &[i16], window: usize) -> Vec<f32> {
    samples
        .chunks_exact(window)
        .map(|window| detector.probability(window))
        .collect()
}

impl Node for Vad {
    /// What does not fill the detector's window says nothing yet.
    fn rests(&self) -> usize {
        let window = self
            .detector
            .as_ref()
            .map_or(0, |detector| detector.window());
        let missing = window.saturating_sub(self.pending.len());
        let frame = INGRESS_RATE.samples_in(FRAME) as usize;
        missing.saturating_sub(1) / frame
    }

    fn start<'a>(&'a mut self, cx: &'a mut NodeContext) -> Step<'a> {
        Step::Done(self.detector(cx))
    }

    fn on_event<'a>(&'a mut self, cx: &'a mut NodeContext, _port: Port, event: Event) -> Step<'a> {
        let Payload::AudioChunk(chunk) = &event.payload else {
            return Step::OK;
        };
        if let Err(error) = self.detector(cx) {
            return Step::Done(Err(error));
        }
        self.take(chunk, event.stamp.media);
        let Some(detector) = &mut self.detector else {
            return Step::OK;
        };
        let window = detector.window();
        if self.pending.len() < window {
            return Step::OK;
        }
        match detector.cost() {
            Cost::Inline => {
                let whole = self.pending.len() / window * window;
                for at in (0..whole).step_by(window) {
                    let p = self.detector.as_mut().map_or(0.0, |detector| {
                        detector.probability(&self.pending[at..at + window])
                    });
                    self.conclude(cx, window, &[p]);
                }
                self.pending.drain(..whole);
                Step::OK
            }
            Cost::Offload => Step::Wait(Box::pin(self.analyse(cx, window))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        speech_from: 0.5,
        speech_while: 0.35,
        min_speech: 20,
        hangover: 30,
        max_speech: 1_000,
    };

    fn marks(probabilities: &[f32]) -> Vec<SpeechMark> {
        let mut activity = Activity::default();
        let mut marks = Vec::new();
        for (n, p) in probabilities.iter().enumerate() {
            let start = n as u64 * 10;
            let (next, mark) = activity.step(start, start + 10, *p, LIMITS);
            activity = next;
            marks.extend(mark);
        }
        marks
    }

    #[test]
    fn speech_is_marked_from_its_first_window_to_its_last() {
        let found = marks(&[0.0, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.0]);
        let (from, to) = (SampleIndex(10), SampleIndex(40));
        assert_eq!(
            found,
            [
                SpeechMark::Started { at: from },
                SpeechMark::Stopped { at: to }
            ]
        );
    }

    #[test]
    fn clicks_and_short_pauses_change_nothing() {
        assert_eq!(marks(&[0.9, 0.0, 0.9, 0.0]), []);
        let pause = marks(&[0.9, 0.9, 0.1, 0.1, 0.9, 0.9, 0.1, 0.1, 0.1]);
        assert_eq!(pause.len(), 2, "{pause:?}");
    }

    /// design §7: speech without end is over once it has lasted as long as a turn may; what goes on is
    /// noise until it pauses.
    #[test]
    fn only_what_counts_as_speech_can_be_overlong() {
        let (overlong, mark) = Activity::Overlong.step(0, 10, 0.9, LIMITS);
        assert_eq!((overlong, mark), (Activity::Overlong, None));
        assert_eq!(overlong.step(10, 20, 0.1, LIMITS).0, Activity::Silent);
        assert!(Activity::Falling { until: 5 }.is_speech() && !overlong.is_speech());
    }
}
