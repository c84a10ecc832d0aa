//! Where a turn's time went: canonical anchors, contiguous segments between them, and a chart.
//!
//! The anchors are those of gates.md §1 and observability.md §5. Segments are cut from the anchors
//! that a turn has, in the order of time, so that each begins where the last one ended and all
//! together are exactly the turn (P30): no stage can hide time between two spans.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use rspp_proto::Monotonic;
use serde::{Deserialize, Serialize};

/// Width of the chart, in columns.
pub const CHART_COLUMNS: usize = 80;

macro_rules! anchors {
    ($($(#[$doc:meta])* $field:ident, $variant:ident = $label:literal;)*) => {
        /// When each thing of a turn happened; `None` for what did not, or is not known.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Anchors {
            /// First user audio frame of the utterance; reported beside gate 7, outside the
            /// segments, since it measures how long the user spoke.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub audio_first_input_ingress_ts: Option<Monotonic>,
            $(
                $(#[$doc])*
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $field: Option<Monotonic>,
            )*
        }

        /// The anchors that cut a turn into segments, in their usual order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Anchor {
            $($(#[$doc])* $variant,)*
        }

        impl Anchor {
            /// All anchors, in their usual order.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The anchor's name in reports and gates.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($field),)* }
            }

            /// What a segment that ends here was, in a chart's few columns.
            pub fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }

        impl Anchors {
            /// When `anchor` happened.
            pub fn get(&self, anchor: Anchor) -> Option<Monotonic> {
                match anchor { $(Anchor::$variant => self.$field,)* }
            }

            /// Notes that `anchor` happened `at`; the first time counts.
            pub fn mark(&mut self, anchor: Anchor, at: Monotonic) {
                let slot = match anchor { $(Anchor::$variant => &mut self.$field,)* };
                slot.get_or_insert(at);
            }
        }
    };
}

anchors! {
    /// Last user audio frame of the utterance, accepted at ingress (gate 7, start).
    audio_input_ingress_ts, AudioInputIngress = "user audio in";
    /// Voice activity found that the user stopped speaking.
    speech_end_ts, SpeechEnd = "speech end found";
    /// Turn detection found that the user has finished.
    end_of_turn_ts, EndOfTurn = "end of turn found";
    /// The utterance's final transcript.
    transcript_final_ts, TranscriptFinal = "final transcript";
    /// The proposal to open a turn was accepted (gate 1, start).
    turn_open_proposed_ingress_accepted_ts, TurnOpenProposed = "turn proposed";
    /// `turn_open` was emitted (gates 1 and 2).
    turn_open_emitted_ts, TurnOpenEmitted = "turn opened";
    /// First token of the language model.
    llm_first_token_ts, LlmFirstToken = "LLM first token";
    /// First piece of text that speech synthesis may start on.
    first_clause_ts, FirstClause = "first clause";
    /// First synthesized audio.
    tts_first_audio_ts, TtsFirstAudio = "TTS first audio";
    /// First output on the data lane (gate 2, end).
    first_datalane_output_emitted_ts, FirstOutput = "first output";
    /// Playback of the reply was accepted at transport egress (gate 7, end).
    assistant_audio_playback_started_ts, PlaybackStarted = "playback started";
    /// A cancel was accepted (gate 3, start).
    cancel_accepted_ts, CancelAccepted = "cancel accepted";
    /// Nothing more of the turn comes out (gate 3, end).
    cancel_fence_applied_ts, CancelFence = "cancel fence";
    /// The last of the reply was played.
    playback_completed_ts, PlaybackCompleted = "playback completed";
}

impl Anchors {
    /// Gate 1: from accepted proposal to `turn_open`.
    pub fn turn_open_decision(&self) -> Option<Duration> {
        span(
            self.turn_open_proposed_ingress_accepted_ts,
            self.turn_open_emitted_ts,
        )
    }

    /// Gate 2: from `turn_open` to the first output.
    pub fn first_output(&self) -> Option<Duration> {
        span(
            self.turn_open_emitted_ts,
            self.first_datalane_output_emitted_ts,
        )
    }

    /// Gate 3: from the accepted cancel to the fence.
    pub fn cancel_fence(&self) -> Option<Duration> {
        span(self.cancel_accepted_ts, self.cancel_fence_applied_ts)
    }

    /// Gate 7: from the last user audio frame to the start of playback.
    pub fn end_to_end(&self) -> Option<Duration> {
        span(
            self.audio_input_ingress_ts,
            self.assistant_audio_playback_started_ts,
        )
    }

    /// Gate 7 from the first user audio frame: longer by the user's own speech.
    pub fn end_to_end_from_first_frame(&self) -> Option<Duration> {
        span(
            self.audio_first_input_ingress_ts,
            self.assistant_audio_playback_started_ts,
        )
    }

    /// The turn cut at its anchors, in the order of time.
    ///
    /// Each segment begins where the one before ended, so the durations add up to
    /// [`Waterfall::total`] exactly. Fewer than two anchors cut nothing.
    pub fn segments(&self) -> Vec<Segment> {
        let mut cuts: Vec<(Monotonic, Anchor)> = Anchor::ALL
            .iter()
            .filter_map(|anchor| self.get(*anchor).map(|at| (at, *anchor)))
            .collect();
        cuts.sort();
        cuts.windows(2)
            .map(|pair| Segment {
                from: pair[0].1,
                until: pair[1].1,
                start: pair[0].0,
                end: pair[1].0,
            })
            .collect()
    }

    /// The turn's waterfall.
    pub fn waterfall(&self) -> Waterfall {
        Waterfall {
            segments: self.segments(),
        }
    }
}

/// The time between two neighbouring anchors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// What it begins with.
    pub from: Anchor,
    /// What it waited for.
    pub until: Anchor,
    /// When it began.
    pub start: Monotonic,
    /// When it ended.
    pub end: Monotonic,
}

impl Segment {
    /// How long it took.
    pub fn duration(&self) -> Duration {
        self.end.since(self.start)
    }
}

/// A turn's segments. Its `Display` is a chart for a terminal of [`CHART_COLUMNS`] columns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waterfall {
    /// Contiguous, in the order of time.
    pub segments: Vec<Segment>,
}

impl Waterfall {
    /// From the first anchor to the last.
    pub fn total(&self) -> Duration {
        self.segments.iter().map(Segment::duration).sum()
    }
}

/// Columns of a segment's name.
const LABEL_COLUMNS: usize = 19;
/// Columns of a duration: `12345.6 ms`.
const TIME_COLUMNS: usize = 10;
/// Columns of the bars.
const BAR_COLUMNS: usize = CHART_COLUMNS - LABEL_COLUMNS - TIME_COLUMNS - 3;

impl fmt::Display for Waterfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(first), total) = (self.segments.first(), self.total()) else {
            return writeln!(f, "no two anchors of this turn are known");
        };
        for segment in &self.segments {
            let (label, time) = (segment.until.label(), millis(segment.duration()));
            let bar = bar(segment.start.since(first.start), segment.duration(), total);
            writeln!(
                f,
                "{label:<LABEL_COLUMNS$} {time:>TIME_COLUMNS$}  {}",
                bar.trim_end()
            )?;
        }
        let from = format!("from {}", first.from.label());
        writeln!(
            f,
            "{:<LABEL_COLUMNS$} {:>TIME_COLUMNS$}  {from}",
            "total",
            millis(total)
        )
    }
}

/// Eighths of a cell, so that a bar is exact to an eighth of a column.
const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];

fn bar(start: Duration, length: Duration, total: Duration) -> String {
    if total.is_zero() {
        return String::new();
    }
    let scale = BAR_COLUMNS as f64 * 8.0 / total.as_secs_f64();
    let columns = (start.as_secs_f64() * scale / 8.0) as usize;
    // Whole cells before it; what is short still shows, as a sliver.
    let eighths = ((length.as_secs_f64() * scale).round() as usize).max(1);
    let columns = columns.min(BAR_COLUMNS - 1);
    let eighths = eighths.min((BAR_COLUMNS - columns) * 8);
    let mut bar = " ".repeat(columns);
    bar.extend(std::iter::repeat_n('█', eighths / 8));
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8]);
    }
    bar
}

fn millis(duration: Duration) -> String {
    let mut text = String::new();
    write!(text, "{:.1} ms", duration.as_secs_f64() * 1e3).expect("a String takes everything");
    text
}

/// `None` too if the end lies before the start: such a pair is a fault, not a zero.
fn span(start: Option<Monotonic>, end: Option<Monotonic>) -> Option<Duration> {
    let (start, end) = (start?, end?);
    (end >= start).then(|| end.since(start))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn turn() -> Anchors {
        let mut anchors = Anchors {
            audio_first_input_ingress_ts: Some(Monotonic::from_millis(100)),
            ..Anchors::default()
        };
        for (anchor, ms) in [
            (Anchor::AudioInputIngress, 2_000),
            (Anchor::SpeechEnd, 2_240),
            (Anchor::EndOfTurn, 2_265),
            (Anchor::TranscriptFinal, 2_310),
            (Anchor::TurnOpenProposed, 2_311),
            (Anchor::TurnOpenEmitted, 2_314),
            (Anchor::LlmFirstToken, 2_520),
            (Anchor::FirstClause, 2_640),
            (Anchor::TtsFirstAudio, 2_790),
            (Anchor::FirstOutput, 2_791),
            (Anchor::PlaybackStarted, 2_811),
            (Anchor::PlaybackCompleted, 3_900),
        ] {
            anchors.mark(anchor, Monotonic::from_millis(ms));
        }
        anchors
    }

    /// Gates 1, 2 and 7.
    #[test]
    fn gates_are_measured_between_their_anchors() {
        let ms = |ms| Some(Duration::from_millis(ms));
        let turn = turn();
        assert_eq!(turn.turn_open_decision(), ms(3));
        assert_eq!(turn.first_output(), ms(477));
        assert_eq!(turn.cancel_fence(), None);
        assert_eq!(turn.end_to_end(), ms(811));
        assert_eq!(turn.end_to_end_from_first_frame(), ms(2_711));
    }

    #[test]
    fn a_gate_whose_end_lies_before_its_start_is_missing_not_zero() {
        let anchors = Anchors {
            cancel_accepted_ts: Some(Monotonic::from_millis(5)),
            cancel_fence_applied_ts: Some(Monotonic::from_millis(4)),
            ..Anchors::default()
        };
        assert_eq!(anchors.cancel_fence(), None);
    }

    #[test]
    fn the_first_mark_counts() {
        let mut anchors = Anchors::default();
        anchors.mark(Anchor::FirstClause, Monotonic::from_millis(7));
        anchors.mark(Anchor::FirstClause, Monotonic::from_millis(9));
        assert_eq!(anchors.first_clause_ts, Some(Monotonic::from_millis(7)));
    }

    #[test]
    fn the_chart_reads_well() {
        insta::assert_snapshot!(turn().waterfall());
    }

    #[test]
    fn a_cancelled_turn_ends_at_its_fence() {
        let mut anchors = Anchors::default();
        anchors.mark(Anchor::TurnOpenEmitted, Monotonic::from_millis(10));
        anchors.mark(Anchor::CancelAccepted, Monotonic::from_millis(400));
        anchors.mark(Anchor::CancelFence, Monotonic::from_millis(401));
        insta::assert_snapshot!(anchors.waterfall());
    }

    #[test]
    fn nothing_known_is_said_so() {
        assert_eq!(
            Anchors::default().waterfall().to_string(),
            "no two anchors of this turn are known\n"
        );
    }

    fn any_anchors() -> impl Strategy<Value = Anchors> {
        prop::collection::vec(prop::option::of(0_u64..5_000_000), Anchor::ALL.len()).prop_map(
            |times| {
                let mut anchors = Anchors::default();
                for (anchor, us) in Anchor::ALL.iter().zip(times) {
                    if let Some(us) = us {
                        anchors.mark(*anchor, Monotonic::from_duration(Duration::from_micros(us)));
                    }
                }
                anchors
            },
        )
    }

    proptest! {
        /// P30: per-turn latency is contiguous segments that add up.
        #[test]
        fn segments_are_contiguous_and_add_up(anchors in any_anchors()) {
            let waterfall = anchors.waterfall();
            for pair in waterfall.segments.windows(2) {
                prop_assert_eq!((pair[0].end, pair[0].until), (pair[1].start, pair[1].from));
            }
            let times = Anchor::ALL.iter().filter_map(|anchor| anchors.get(*anchor));
            let whole = match (times.clone().min(), times.clone().max()) {
                (Some(first), Some(last)) => last.since(first),
                (None, _) | (_, None) => Duration::ZERO,
            };
            prop_assert_eq!(waterfall.total(), whole);
            prop_assert_eq!(waterfall.segments.len(), times.count().saturating_sub(1));
        }

        #[test]
        fn the_chart_fits_its_columns(anchors in any_anchors()) {
            for line in anchors.waterfall().to_string().lines() {
                prop_assert!(line.chars().count() <= CHART_COLUMNS, "{}", line);
            }
        }

        #[test]
        fn anchors_survive_json(anchors in any_anchors()) {
            let json = serde_json::to_string(&anchors).unwrap();
            prop_assert_eq!(serde_json::from_str::<Anchors>(&json).unwrap(), anchors);
        }
    }
}
