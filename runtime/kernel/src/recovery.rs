//! What the user gets when a turn has failed for good: an apology, and a session that goes on in
//! text while its voice is gone (F-135, F-137).

use std::time::Duration;

use rspp_proto::{Monotonic, spec::FailurePolicy};

use crate::turn::AbortReason;

/// What a turn is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Answering the user.
    Answer {
        /// The user's words.
        user_text: String,
    },
    /// Saying something that is known beforehand, by the session's voice.
    Say {
        /// The words.
        words: String,
    },
    /// Playing a recording of the runtime's, since there is no voice to say it.
    Play {
        /// The recording's name.
        recording: String,
        /// What it says.
        words: String,
    },
}

impl Task {
    /// The user's words, if it is they that are answered.
    pub fn user_text(&self) -> &str {
        match self {
            Self::Answer { user_text } => user_text,
            Self::Say { .. } | Self::Play { .. } => "",
        }
    }

    /// What follows when a turn with this task was aborted: at most one apology by voice and one by
    /// recording, and none for a turn that somebody wanted to end.
    pub fn apology(
        &self,
        aborted: AbortReason,
        voice_failed: bool,
        policy: &FailurePolicy,
    ) -> Option<Self> {
        let failed = match aborted {
            AbortReason::ProviderFailure
            | AbortReason::NodeTimeoutOrFailure
            | AbortReason::BudgetExhausted => true,
            AbortReason::Cancelled
            | AbortReason::AuthorityLoss
            | AbortReason::RecordingEvidenceUnavailable
            | AbortReason::TransportDisconnectOrStall => false,
        };
        let words = policy.reply.as_ref().filter(|_| failed)?;
        let recorded = || {
            Some(Self::Play {
                recording: policy.recording.clone()?,
                words: words.clone(),
            })
        };
        match self {
            // In text it can be said all the same.
            Self::Answer { .. } if voice_failed && !policy.text_only => recorded(),
            Self::Answer { .. } => Some(Self::Say {
                words: words.clone(),
            }),
            Self::Say { .. } => recorded(),
            Self::Play { .. } => None,
        }
    }
}

/// What a turn is for, and how far it has come with it.
#[derive(Clone, Debug)]
pub(crate) struct Course {
    pub(crate) task: Task,
    /// What the user gets when it fails.
    pub(crate) policy: FailurePolicy,
    /// Nothing of it is to be spoken.
    pub(crate) mute: bool,
    pub(crate) voice_failed: bool,
    /// Something was sent as text.
    pub(crate) shown: bool,
    pub(crate) aborted: Option<AbortReason>,
}

impl Course {
    pub(crate) fn new(task: Task) -> Self {
        Self {
            task,
            policy: FailurePolicy::default(),
            mute: false,
            voice_failed: false,
            shown: false,
            aborted: None,
        }
    }

    /// What follows it, if it was aborted.
    pub(crate) fn apology(&self) -> Option<Task> {
        let aborted = self.aborted?;
        self.task.apology(aborted, self.voice_failed, &self.policy)
    }
}

/// Whether a session has its voice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Voice {
    /// It has.
    #[default]
    Speaking,
    /// It goes on in text; the voice is tried again by the first turn from then on.
    TextOnly {
        /// When.
        until: Monotonic,
    },
}

impl Voice {
    /// The voice has failed for good at `now`. Whether that is news.
    pub fn lose(&mut self, now: Monotonic, policy: &FailurePolicy) -> bool {
        let before = std::mem::replace(
            self,
            Self::TextOnly {
                until: now + Duration::from_millis(policy.voice_retry_ms),
            },
        );
        before == Self::Speaking
    }

    /// The voice was heard. Whether that is news.
    pub fn regain(&mut self) -> bool {
        std::mem::take(self) != Self::Speaking
    }

    /// Whether a turn that opens at `now` shall not even try to speak.
    pub fn is_mute(self, now: Monotonic) -> bool {
        match self {
            Self::Speaking => false,
            Self::TextOnly { until } => now < until,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(recording: Option<&str>) -> FailurePolicy {
        FailurePolicy {
            reply: Some("Sorry.".into()),
            recording: recording.map(ToOwned::to_owned),
            ..FailurePolicy::default()
        }
    }

    /// F-135: who says sorry, by what failed and what was tried already.
    #[test]
    fn an_apology_is_made_by_whatever_still_works() {
        use AbortReason as R;
        let answer = Task::Answer {
            user_text: "hello".into(),
        };
        let say = Task::Say {
            words: "Sorry.".into(),
        };
        let play = Task::Play {
            recording: "sorry".into(),
            words: "Sorry.".into(),
        };
        let recorded = policy(Some("sorry"));
        let spoken = policy(None);
        let check = |task: &Task, voice_failed, policy: &FailurePolicy, expected: Option<&Task>| {
            let apology = task.apology(R::ProviderFailure, voice_failed, policy);
            assert_eq!(apology.as_ref(), expected);
        };
        check(&answer, false, &recorded, Some(&say));
        check(&answer, true, &recorded, Some(&play));
        check(&answer, true, &spoken, None);
        let in_text = FailurePolicy {
            text_only: true,
            ..policy(None)
        };
        check(&answer, true, &in_text, Some(&say));
        check(&say, true, &recorded, Some(&play));
        check(&say, false, &recorded, Some(&play));
        check(&say, true, &spoken, None);
        check(&play, false, &recorded, None);
        check(&answer, false, &FailurePolicy::default(), None);
        for (reason, apologises) in [
            (R::ProviderFailure, true),
            (R::NodeTimeoutOrFailure, true),
            (R::BudgetExhausted, true),
            (R::Cancelled, false),
            (R::AuthorityLoss, false),
            (R::RecordingEvidenceUnavailable, false),
            (R::TransportDisconnectOrStall, false),
        ] {
            assert_eq!(answer.apology(reason, false, &spoken).is_some(), apologises);
        }
    }

    /// F-137: the voice is left alone for a while, then tried, and each change is news once.
    #[test]
    fn a_voice_is_lost_and_regained_once() {
        let at = Monotonic::from_millis;
        let policy = FailurePolicy::default();
        let mut voice = Voice::default();
        assert!(!voice.is_mute(at(0)) && !voice.regain());
        assert!(voice.lose(at(1_000), &policy));
        assert!(voice.is_mute(at(15_999)) && !voice.is_mute(at(16_000)));
        assert!(!voice.lose(at(16_500), &policy), "it was lost before");
        assert!(voice.is_mute(at(31_499)));
        assert!(voice.regain() && !voice.regain());
        assert!(!voice.is_mute(at(31_500)));
    }
}
