//! Which attempt goes how.

use std::sync::Arc;

use crate::Attempt;

use super::Conduct;

/// The conduct of a provider, attempt by attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    steps: Steps,
    otherwise: Conduct,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Steps {
    /// By the call's own attempt number: each call meets the same sequence.
    Attempts(Arc<[Conduct]>),
    /// By the calls this provider has seen, over all sessions.
    Calls(Arc<[Conduct]>),
}

impl Script {
    /// Every attempt goes like this.
    pub fn always(conduct: Conduct) -> Self {
        Self::attempts([]).then(conduct)
    }

    /// The first attempt of each call goes like the first of `steps`, and so on; later ones go well.
    pub fn attempts(steps: impl IntoIterator<Item = Conduct>) -> Self {
        Self {
            steps: Steps::Attempts(steps.into_iter().collect()),
            otherwise: Conduct::good(),
        }
    }

    /// The first call to the provider goes like the first of `steps`, and so on; later ones go well.
    pub fn calls(steps: impl IntoIterator<Item = Conduct>) -> Self {
        Self {
            steps: Steps::Calls(steps.into_iter().collect()),
            otherwise: Conduct::good(),
        }
    }

    /// How attempts go once the steps are used up.
    #[must_use]
    pub fn then(mut self, conduct: Conduct) -> Self {
        self.otherwise = conduct;
        self
    }

    /// The conduct of this attempt, the provider's `call`-th call from 0.
    pub(super) fn conduct(&self, attempt: Attempt, call: u64) -> Conduct {
        let step = match &self.steps {
            Steps::Attempts(steps) => steps.get(attempt.get() as usize - 1),
            Steps::Calls(steps) => usize::try_from(call).ok().and_then(|call| steps.get(call)),
        };
        step.unwrap_or(&self.otherwise).clone()
    }
}

impl Default for Script {
    fn default() -> Self {
        Self::always(Conduct::good())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn late(millis: u64) -> Conduct {
        Conduct::good().late(Duration::from_millis(millis))
    }

    #[test]
    fn attempts_are_counted_per_call_and_calls_over_all() {
        let second = Attempt::FIRST.next();
        let by_attempt = Script::attempts([late(1), late(2)]);
        assert_eq!(by_attempt.conduct(Attempt::FIRST, 9), late(1));
        assert_eq!(by_attempt.conduct(second, 9), late(2));
        assert_eq!(by_attempt.conduct(second.next(), 9), Conduct::good());

        let by_call = Script::calls([late(1), late(2)]).then(late(3));
        assert_eq!(by_call.conduct(second, 0), late(1));
        assert_eq!(by_call.conduct(Attempt::FIRST, 1), late(2));
        assert_eq!(by_call.conduct(Attempt::FIRST, 2), late(3));
    }
}
