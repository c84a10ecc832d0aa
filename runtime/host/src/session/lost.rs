//! Whether what the user is saying is lost (P5).

use rspp_kernel::Unrecognised;

/// What became of the words of the utterance in progress.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// What the user gets instead of an answer; from the plan that the session listens by.
    pub(super) apology: Option<String>,
    why: Option<Unrecognised>,
    /// It was given up before recognition came to its end.
    is_given_up: bool,
    /// Whoever listens is told already: a cancel took it.
    is_told: bool,
}

impl Lost {
    /// The user begins to speak, or was understood.
    pub(super) fn begins(&mut self) {
        self.why = None;
        self.is_given_up = false;
        self.is_told = false;
    }

    /// It was lost, and that is told.
    pub(super) fn told(&mut self) {
        self.is_told = true;
    }

    /// Recognition has failed, or was refused.
    pub(super) fn note(&mut self, why: Unrecognised) {
        if !self.is_given_up {
            self.why = Some(why);
        }
    }

    /// Why nothing is known of what the user has said; `None` if there was nothing to be understood.
    pub(super) fn why(&mut self, is_overdue: bool) -> Option<Unrecognised> {
        self.is_given_up = is_overdue;
        let overdue = is_overdue.then_some(Unrecognised::Overdue);
        let why = self.why.take().or(overdue);
        why.filter(|_| !self.is_told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P5: an utterance is given up once, for what came first, and noise never.
    #[test]
    fn an_utterance_is_lost_once() {
        let mut lost = Lost::default();
        assert_eq!(lost.why(false), None);
        lost.note(Unrecognised::Failed);
        assert_eq!(lost.why(false), Some(Unrecognised::Failed));
        assert_eq!(lost.why(false), None);
        assert_eq!(lost.why(true), Some(Unrecognised::Overdue));
        lost.note(Unrecognised::Failed);
        assert_eq!(lost.why(false), None, "it was told");
        lost.begins();
        lost.note(Unrecognised::Refused);
        assert_eq!(lost.why(true), Some(Unrecognised::Refused));
        lost.begins();
        lost.told();
        assert_eq!(lost.why(true), None, "a cancel took it");
    }
}
