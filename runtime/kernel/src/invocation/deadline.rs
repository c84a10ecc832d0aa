//! The one deadline that is passed down: turn, node, provider call, attempt.

use std::time::Duration;

use rspp_proto::{
    Monotonic,
    spec::{Budgets, Modality},
};

/// When a turn has to be heard, and when it has to be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnDeadlines {
    /// Its first output.
    pub first_output: Monotonic,
    /// Its end, speech included.
    pub end: Monotonic,
}

/// When a provider call has to bring its first chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallDeadlines {
    /// No attempt is begun or waited for beyond this.
    pub end: Monotonic,
    /// What the candidates share: while there is somebody else to ask, one that is silent gets half
    /// of what is left until then, so that a fallback fits (F-046).
    pub share: Option<Monotonic>,
    /// What holds once it has begun to answer.
    pub quiet: Quiet,
}

/// How long an answer that has begun may say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet {
    /// While there is somebody else to ask.
    pub gap: Duration,
    /// Even if there is nobody.
    pub most: Duration,
    /// Nobody is waited for beyond this.
    pub last: Monotonic,
}

impl Quiet {
    /// What a voice may be silent for is what is heard; what others write is not.
    fn of(modality: Modality, budgets: &Budgets, last: Monotonic) -> Self {
        let most = Duration::from_millis(budgets.max_silence_ms);
        let gap = match modality {
            Modality::Tts => Duration::from_millis(budgets.output_gap_ms).min(most),
            Modality::Stt
            | Modality::Llm
            | Modality::Vad
            | Modality::EndOfTurn
            | Modality::External => most,
        };
        Self { gap, most, last }
    }
}

impl TurnDeadlines {
    /// The deadlines of a call that begins at `now`.
    ///
    /// The turn's `first` call of a node is on the way to the first output. `node` is the node's own
    /// budget, if it has one; it is soft. So is the turn's for a voice: words that are late but on
    /// their way are waited for.
    pub fn of_call(
        self,
        now: Monotonic,
        modality: Modality,
        first: bool,
        node: Option<Duration>,
        budgets: &Budgets,
    ) -> CallDeadlines {
        let turn_budget = Duration::from_millis(budgets.turn_budget_ms);
        let first_output = if first {
            self.first_output
        } else {
            (now + turn_budget).min(self.end)
        };
        let quiet = Quiet::of(modality, budgets, self.end);
        let end = match modality {
            // Until then nothing is heard.
            Modality::Tts if first => (now + quiet.most).min(self.end),
            // What was said before is being heard meanwhile: whether it is mute is the turn's to notice.
            Modality::Tts | Modality::Stt => self.end,
            Modality::Llm | Modality::Vad | Modality::EndOfTurn | Modality::External => {
                first_output.min(self.end)
            }
        };
        let node = node.map(|budget| now + budget);
        let heard = (first || modality != Modality::Tts).then_some(first_output);
        CallDeadlines {
            end,
            share: [node, heard].into_iter().flatten().min(),
            quiet,
        }
    }
}

impl CallDeadlines {
    /// The same, so much later.
    pub(super) fn later(self, by: Duration) -> Self {
        Self {
            end: self.end + by,
            share: self.share.map(|share| share + by),
            quiet: Quiet {
                last: self.quiet.last + by,
                ..self.quiet
            },
        }
    }

    /// Those of another attempt at an answer that had begun: what was to be heard first has been.
    pub(super) fn resumed(self, now: Monotonic) -> Self {
        Self {
            end: self.end.max((now + self.quiet.most).min(self.quiet.last)),
            share: None,
            ..self
        }
    }

    /// The deadlines of a call that belongs to no turn: an utterance lasts as long as the user
    /// speaks, so it ends with what no turn may outlast.
    pub fn of_session(
        now: Monotonic,
        modality: Modality,
        node: Option<Duration>,
        budgets: &Budgets,
    ) -> Self {
        let end = now + Duration::from_millis(budgets.max_turn_duration_ms) * 2;
        Self {
            end,
            share: node.map(|budget| now + budget),
            quiet: Quiet::of(modality, budgets, end),
        }
    }
}
