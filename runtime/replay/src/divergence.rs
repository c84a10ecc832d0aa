//! How two runs can differ, and which differences are accepted (observability.md §6).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Scope of a provider call whose last attempt took too long.
pub(crate) const FINAL_LATENCY: &str = "invocation_latency_final:";
/// Scope of a provider call that took too long over all its attempts.
pub(crate) const TOTAL_LATENCY: &str = "invocation_latency_total:";

/// The kind of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DivergenceClass {
    /// Another plan, or other snapshots behind it.
    PlanDivergence,
    /// Something was decided in one run and not in the other.
    OutcomeDivergence,
    /// Another provider answered.
    ProviderChoiceDivergence,
    /// The same decisions in another order.
    OrderingDivergence,
    /// The same at another time, beyond the tolerance.
    TimingDivergence,
    /// Under another authority.
    AuthorityDivergence,
}

impl DivergenceClass {
    /// The class as reports write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PlanDivergence => "PLAN_DIVERGENCE",
            Self::OutcomeDivergence => "OUTCOME_DIVERGENCE",
            Self::ProviderChoiceDivergence => "PROVIDER_CHOICE_DIVERGENCE",
            Self::OrderingDivergence => "ORDERING_DIVERGENCE",
            Self::TimingDivergence => "TIMING_DIVERGENCE",
            Self::AuthorityDivergence => "AUTHORITY_DIVERGENCE",
        }
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Its kind.
    pub class: DivergenceClass,
    /// What it is about: `turn:<id>`, `session:<id>` or `trace`.
    pub scope: String,
    /// What the baseline says.
    pub baseline: String,
    /// What the candidate says.
    pub candidate: String,
    /// How far apart, in milliseconds; of times only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_ms: Option<f64>,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            class,
            scope,
            baseline,
            candidate,
            diff_ms,
        } = self;
        write!(f, "{}  {scope}  {baseline} -> {candidate}", class.as_str())?;
        if let Some(diff) = diff_ms {
            write!(f, " ({diff:+.1} ms)")?;
        }
        Ok(())
    }
}

/// A difference that is known and accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// Its kind.
    pub class: DivergenceClass,
    /// What it is about.
    pub scope: String,
    /// Whether somebody approved it; differences in order need that.
    #[serde(default)]
    pub approved: bool,
}

/// What is left when accepted differences are taken away.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Verdict {
    /// Differences that nobody accepted.
    pub unexplained: Vec<Divergence>,
    /// Differences that were accepted.
    pub explained: Vec<Divergence>,
    /// Accepted differences that did not show: what they excuse is gone.
    pub missing: Vec<Expected>,
}

impl Verdict {
    /// Whether nothing is left to explain.
    pub fn passed(&self) -> bool {
        self.unexplained.is_empty() && self.missing.is_empty()
    }
}

/// Sets differences against what is accepted. Each accepted one excuses one difference of its class and
/// scope; authority and slow provider calls are never excused, order only if approved.
pub fn judge(found: Vec<Divergence>, expected: &[Expected]) -> Verdict {
    let mut left: Vec<&Expected> = expected.iter().collect();
    let mut verdict = Verdict::default();
    for divergence in found {
        let excusable = |it: &Expected| match divergence.class {
            DivergenceClass::AuthorityDivergence => false,
            DivergenceClass::OrderingDivergence => it.approved,
            DivergenceClass::TimingDivergence => {
                let scope = divergence.scope.as_str();
                !scope.starts_with(FINAL_LATENCY) && !scope.starts_with(TOTAL_LATENCY)
            }
            DivergenceClass::PlanDivergence
            | DivergenceClass::OutcomeDivergence
            | DivergenceClass::ProviderChoiceDivergence => true,
        };
        let excuse = left.iter().position(|it| {
            it.class == divergence.class && it.scope == divergence.scope && excusable(it)
        });
        match excuse {
            Some(at) => {
                left.remove(at);
                verdict.explained.push(divergence);
            }
            None => verdict.unexplained.push(divergence),
        }
    }
    verdict.missing = left.into_iter().cloned().collect();
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(class: DivergenceClass) -> Divergence {
        Divergence {
            class,
            scope: "turn:turn-0001".into(),
            baseline: "a".into(),
            candidate: "b".into(),
            diff_ms: None,
        }
    }

    fn excuse(class: DivergenceClass, approved: bool) -> Expected {
        Expected {
            class,
            scope: "turn:turn-0001".into(),
            approved,
        }
    }

    /// RD-004, observability.md §6: what excuses what, once each.
    #[test]
    fn accepted_differences_are_taken_away_once() {
        use DivergenceClass as C;
        #[track_caller]
        fn check(class: DivergenceClass, expected: &[Expected], passes: bool) {
            let verdict = judge(vec![found(class)], expected);
            assert_eq!(verdict.passed(), passes, "{verdict:?}");
        }
        check(C::PlanDivergence, &[], false);
        check(C::PlanDivergence, &[excuse(C::PlanDivergence, false)], true);
        check(
            C::PlanDivergence,
            &[excuse(C::OutcomeDivergence, true)],
            false,
        );
        check(
            C::OrderingDivergence,
            &[excuse(C::OrderingDivergence, false)],
            false,
        );
        check(
            C::OrderingDivergence,
            &[excuse(C::OrderingDivergence, true)],
            true,
        );
        check(
            C::AuthorityDivergence,
            &[excuse(C::AuthorityDivergence, true)],
            false,
        );
        let twice = vec![found(C::PlanDivergence), found(C::PlanDivergence)];
        let verdict = judge(twice, &[excuse(C::PlanDivergence, false)]);
        assert_eq!((verdict.explained.len(), verdict.unexplained.len()), (1, 1));
        let gone = judge(Vec::new(), &[excuse(C::PlanDivergence, false)]);
        assert!(!gone.passed() && gone.missing.len() == 1);
    }
}
