//! Time left for a turn and its parts, and what follows when it runs out (F-045 to F-047).
//!
//! Decides from the frozen plan. Who the fallback is, and what degrading means, is for others.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rspp_proto::{
    Monotonic,
    abi::Signal,
    spec::{AdaptiveAction, Budgets},
};

use crate::{graph::NodeIx, invocation::TurnDeadlines};

/// What a budget is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BudgetKey {
    /// From turn open to the first output heard. Hard.
    Turn,
    /// The whole turn, speech included. Hard.
    Duration,
    /// Silence in the middle of a reply. Nothing else is held to it, but it ends the turn.
    Output,
    /// From the user's words to the first that is heard or shown of the answer. Soft.
    Path,
    /// A node's work on one event or turn. Soft.
    Node(NodeIx),
    /// An event's wait on an edge. Soft; measured by whoever takes it off.
    Edge,
    /// A node's call to a provider, up to its first chunk. Soft; measured by the call.
    Provider,
}

impl BudgetKey {
    /// The reason as signals carry it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Turn => "turn_budget",
            Self::Duration => "max_turn_duration",
            Self::Output => "output_gap",
            Self::Path => "path_budget",
            Self::Node(_) => "node_budget_threshold_exceeded",
            Self::Edge => "edge_budget",
            Self::Provider => "provider_budget",
        }
    }

    /// Whether the parts of the turn are held to it.
    pub fn is_hard(self) -> bool {
        match self {
            Self::Turn | Self::Duration => true,
            Self::Output | Self::Path | Self::Node(_) | Self::Edge | Self::Provider => false,
        }
    }

    /// Whether running out of it ends the turn when nothing else is left.
    pub fn ends_turn(self) -> bool {
        match self {
            Self::Turn | Self::Duration | Self::Output => true,
            Self::Path | Self::Node(_) | Self::Edge | Self::Provider => false,
        }
    }
}

/// What to do about a budget that runs low or out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BudgetVerdict {
    /// Go on.
    Continue,
    /// Go on at lower quality.
    Degrade,
    /// Take the alternative path.
    Fallback,
    /// Abort the turn: nothing legal is left.
    Terminate,
}

/// Which threshold was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Threshold {
    /// Four fifths are spent.
    Warn,
    /// All is spent.
    Exhaust,
}

/// A budget passed a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetEvent {
    /// Which budget.
    pub key: BudgetKey,
    /// Which threshold.
    pub threshold: Threshold,
    /// What follows.
    pub verdict: BudgetVerdict,
    /// What is spent.
    pub spent: Duration,
    /// What there was.
    pub limit: Duration,
}

/// How much of a limit may be spent before it is told that it runs low.
pub(crate) fn warns_after(limit: Duration) -> Duration {
    limit * 4 / 5
}

impl BudgetEvent {
    /// What follows from a part of a turn that has spent so much of its budget; `None` if there is enough
    /// left. For whoever measures a part when it is over, and need not be woken for it.
    pub fn of_part(
        key: BudgetKey,
        spent: Duration,
        limit: Duration,
        actions: &BTreeSet<AdaptiveAction>,
    ) -> Option<Self> {
        let threshold = if spent >= limit {
            Threshold::Exhaust
        } else if spent >= warns_after(limit) {
            Threshold::Warn
        } else {
            return None;
        };
        let may_degrade = actions.contains(&AdaptiveAction::Degrade);
        let verdict = match threshold {
            Threshold::Exhaust if may_degrade => BudgetVerdict::Degrade,
            Threshold::Exhaust | Threshold::Warn => BudgetVerdict::Continue,
        };
        Some(Self {
            key,
            threshold,
            verdict,
            spent,
            limit,
        })
    }

    /// The signals that tell of it, in order; each carries the budget's reason.
    pub fn signals(&self) -> impl Iterator<Item = Signal> + use<> {
        let crossing = match self.threshold {
            Threshold::Warn => Signal::BudgetWarning,
            Threshold::Exhaust => Signal::BudgetExhausted,
        };
        let action = match self.verdict {
            BudgetVerdict::Degrade => Some(Signal::Degrade),
            BudgetVerdict::Fallback => Some(Signal::Fallback),
            // The abort itself is the turn's to say.
            BudgetVerdict::Continue | BudgetVerdict::Terminate => None,
        };
        std::iter::once(crossing).chain(action)
    }
}

/// The budgets of one turn.
#[derive(Clone, Debug)]
pub struct BudgetManager {
    actions: BTreeSet<AdaptiveAction>,
    running: BTreeMap<BudgetKey, Running>,
    degraded: bool,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    began: Monotonic,
    limit: Duration,
    warned: bool,
    exhausted: bool,
}

impl Running {
    fn warns_at(&self) -> Monotonic {
        self.began + warns_after(self.limit)
    }

    fn ends_at(&self) -> Monotonic {
        self.began + self.limit
    }

    fn next(&self) -> Option<Monotonic> {
        if self.exhausted {
            None
        } else if self.warned {
            Some(self.ends_at())
        } else {
            Some(self.warns_at())
        }
    }
}

impl BudgetManager {
    /// Starts a turn's hard budgets at `now`, and that of its path to the user.
    pub fn new(budgets: &Budgets, actions: BTreeSet<AdaptiveAction>, now: Monotonic) -> Self {
        let mut manager = Self {
            actions,
            running: BTreeMap::new(),
            degraded: false,
        };
        let turn = Duration::from_millis(budgets.turn_budget_ms);
        let duration = Duration::from_millis(budgets.max_turn_duration_ms);
        let path = Duration::from_millis(budgets.path_budget_ms_default);
        manager.start(now, BudgetKey::Turn, turn);
        // One that is spent after the turn's own warning has nothing to add to it.
        if path < warns_after(turn) {
            manager.start(now, BudgetKey::Path, path);
        }
        manager.start(now, BudgetKey::Duration, duration);
        manager
    }

    /// Starts a budget, or starts it again.
    pub fn start(&mut self, now: Monotonic, key: BudgetKey, limit: Duration) {
        let running = Running {
            began: now,
            limit,
            warned: false,
            exhausted: false,
        };
        self.running.insert(key, running);
    }

    /// The clock stood still for `pause`: every budget has so much more time.
    pub fn postpone(&mut self, pause: Duration) {
        for running in self.running.values_mut() {
            running.began = running.began + pause;
        }
    }

    /// Whether a threshold of this budget has been passed and not been told.
    pub fn is_due(&self, now: Monotonic, key: BudgetKey) -> bool {
        let running = self.running.get(&key);
        running.and_then(Running::next).is_some_and(|at| at <= now)
    }

    /// Ends a budget and tells what was spent of it.
    pub fn finish(&mut self, now: Monotonic, key: BudgetKey) -> Option<Duration> {
        let running = self.running.remove(&key)?;
        Some(now.since(running.began))
    }

    /// The first output was heard: what counts up to it is over. Tells how long that took.
    pub fn first_output(&mut self, now: Monotonic) -> Option<Duration> {
        self.finish(now, BudgetKey::Path);
        self.finish(now, BudgetKey::Turn)
    }

    /// The next threshold that was passed; call until `None`. `has_fallback` says whether there is
    /// an alternative for what the budget is about.
    pub fn poll(
        &mut self,
        now: Monotonic,
        has_fallback: impl Fn(BudgetKey) -> bool,
    ) -> Option<BudgetEvent> {
        // The one that was due first, ties in the order of keys: the turn before its parts.
        let due = self
            .running
            .iter()
            .filter_map(|(key, r)| r.next().map(|at| (at, *key)));
        let (_, key) = due.filter(|(at, _)| *at <= now).min()?;
        let running = self.running.get_mut(&key)?;
        let threshold = if running.ends_at() <= now {
            running.exhausted = true;
            Threshold::Exhaust
        } else {
            running.warned = true;
            Threshold::Warn
        };
        let (spent, limit) = (now.since(running.began), running.limit);
        let verdict = self.judge(key, threshold, has_fallback(key));
        if verdict == BudgetVerdict::Degrade {
            self.degraded = true;
        }
        Some(BudgetEvent {
            key,
            threshold,
            verdict,
            spent,
            limit,
        })
    }

    /// When to [`Self::poll`] at the latest.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        self.running.values().filter_map(Running::next).min()
    }

    /// When work under `key` has to be done: its own end or, if earlier, that of what it is part
    /// of. This is the one deadline that is passed down.
    pub fn deadline(&self, key: BudgetKey) -> Option<Monotonic> {
        let own = self.running.get(&key);
        let hard = self
            .running
            .iter()
            .filter(|(key, _)| key.is_hard())
            .map(|(_, r)| r);
        own.into_iter().chain(hard).map(Running::ends_at).min()
    }

    /// What the turn's nodes and their provider calls are given to go by. `None` once the first
    /// output was heard: then they have been given it.
    pub fn deadlines(&self) -> Option<TurnDeadlines> {
        let ends_at = |key: &BudgetKey| Some(self.running.get(key)?.ends_at());
        Some(TurnDeadlines {
            first_output: ends_at(&BudgetKey::Turn)?,
            end: ends_at(&BudgetKey::Duration)?,
        })
    }

    /// What is left of the turn.
    pub fn remaining(&self, now: Monotonic) -> Duration {
        let hard = self.running.iter().filter(|(key, _)| key.is_hard());
        let end = hard.map(|(_, running)| running.ends_at()).min();
        end.map_or(Duration::ZERO, |end| end.since(now))
    }

    /// A warning may degrade, once a turn; what is spent is made up for by a fallback, else by
    /// degrading, else it ends the turn if it was hard.
    fn judge(&self, key: BudgetKey, threshold: Threshold, has_fallback: bool) -> BudgetVerdict {
        let may_degrade = self.actions.contains(&AdaptiveAction::Degrade) && !self.degraded;
        let may_fall_back = self.actions.contains(&AdaptiveAction::Fallback) && has_fallback;
        let out = match threshold {
            Threshold::Warn => false,
            Threshold::Exhaust => true,
        };
        // Nothing makes a turn shorter that has already run too long.
        if out && key == BudgetKey::Duration {
            BudgetVerdict::Terminate
        } else if out && may_fall_back {
            BudgetVerdict::Fallback
        } else if may_degrade {
            BudgetVerdict::Degrade
        } else if out && key.ends_turn() {
            BudgetVerdict::Terminate
        } else {
            BudgetVerdict::Continue
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::profile;

    const NODE: BudgetKey = BudgetKey::Node(NodeIx(0));

    fn ms(ms: u64) -> Monotonic {
        Monotonic::from_millis(ms)
    }

    fn manager(actions: &[AdaptiveAction]) -> BudgetManager {
        let actions = actions.iter().copied().collect();
        BudgetManager::new(&profile::budgets(), actions, Monotonic::ZERO)
    }

    /// F-045, T10: the verdict by threshold, by what the plan allows and by what there is.
    #[test]
    fn the_verdict_is_the_mildest_that_is_legal() {
        use AdaptiveAction::{Degrade, Fallback};
        use BudgetVerdict as V;
        #[track_caller]
        fn check(
            key: BudgetKey,
            actions: &[AdaptiveAction],
            has_fallback: bool,
            expected: [BudgetVerdict; 2],
        ) {
            let mut manager = manager(actions);
            manager.running.clear();
            manager.start(ms(0), key, Duration::from_millis(800));
            let verdicts = [640, 800].map(|at| {
                assert_eq!(manager.next_deadline(), Some(ms(at)));
                assert_eq!(manager.poll(ms(at - 1), |_| has_fallback), None);
                let event = manager.poll(ms(at), |_| has_fallback).expect("a threshold");
                assert_eq!(event.spent, Duration::from_millis(at));
                assert_eq!(manager.poll(ms(at), |_| has_fallback), None, "told once");
                event.verdict
            });
            assert_eq!(verdicts, expected);
            assert_eq!(manager.next_deadline(), None);
        }
        check(NODE, &[], true, [V::Continue, V::Continue]);
        check(NODE, &[Fallback], true, [V::Continue, V::Fallback]);
        check(NODE, &[Fallback], false, [V::Continue, V::Continue]);
        check(NODE, &[Degrade], false, [V::Degrade, V::Continue]);
        check(NODE, &[Degrade, Fallback], true, [V::Degrade, V::Fallback]);
        check(BudgetKey::Turn, &[], true, [V::Continue, V::Terminate]);
        check(
            BudgetKey::Turn,
            &[Fallback],
            true,
            [V::Continue, V::Fallback],
        );
        check(
            BudgetKey::Turn,
            &[Fallback],
            false,
            [V::Continue, V::Terminate],
        );
        check(
            BudgetKey::Duration,
            &[Degrade, Fallback],
            true,
            [V::Degrade, V::Terminate],
        );
    }

    /// F-045: a part that is measured when it is over is warned of, then spent, then made up for by less if
    /// that is allowed; it never ends the turn.
    #[test]
    fn a_part_of_a_turn_is_judged_by_what_it_took() {
        use BudgetVerdict::{Continue, Degrade};
        use Threshold::{Exhaust, Warn};
        #[track_caller]
        fn check(
            spent: u64,
            actions: &[AdaptiveAction],
            expected: Option<(Threshold, BudgetVerdict)>,
        ) {
            let actions = actions.iter().copied().collect();
            let [spent, limit] = [spent, 100].map(Duration::from_millis);
            let event = BudgetEvent::of_part(BudgetKey::Edge, spent, limit, &actions);
            assert_eq!(
                event.map(|event| (event.threshold, event.verdict)),
                expected
            );
        }
        let less = [AdaptiveAction::Degrade];
        check(79, &less, None);
        check(80, &less, Some((Warn, Continue)));
        check(100, &less, Some((Exhaust, Degrade)));
        check(300, &[], Some((Exhaust, Continue)));
    }

    /// F-045: the signals of each verdict.
    #[test]
    fn a_crossing_is_told_with_what_follows() {
        let mut manager = manager(&[AdaptiveAction::Fallback]);
        manager.start(ms(0), NODE, Duration::from_millis(100));
        let warn = manager.poll(ms(80), |_| true).unwrap();
        assert_eq!(warn.signals().collect::<Vec<_>>(), [Signal::BudgetWarning]);
        let exhaust = manager.poll(ms(100), |_| true).unwrap();
        let signals: Vec<_> = exhaust.signals().collect();
        assert_eq!(signals, [Signal::BudgetExhausted, Signal::Fallback]);
        assert_eq!(exhaust.key.as_str(), "node_budget_threshold_exceeded");
    }

    /// F-045, turn-plan §3: the path of an answer has a budget of its own where that is tighter than the
    /// turn's; it ends nothing, and is over with the first output.
    #[test]
    fn a_tighter_budget_of_the_path_is_told_of() {
        let tight = Budgets {
            path_budget_ms_default: 500,
            ..profile::budgets()
        };
        let mut manager = BudgetManager::new(&tight, BTreeSet::new(), Monotonic::ZERO);
        let told: Vec<_> = [400, 500]
            .into_iter()
            .filter_map(|at| manager.poll(ms(at), |_| false))
            .map(|event| (event.key, event.threshold, event.verdict))
            .collect();
        let path = |threshold| (BudgetKey::Path, threshold, BudgetVerdict::Continue);
        assert_eq!(told, [path(Threshold::Warn), path(Threshold::Exhaust)]);
        let mut prompt = BudgetManager::new(&tight, BTreeSet::new(), Monotonic::ZERO);
        prompt.first_output(ms(300));
        assert_eq!(prompt.poll(ms(1_500), |_| false), None);
    }

    /// F-046: what is part of the turn ends with it.
    #[test]
    fn one_deadline_is_passed_down() {
        let mut manager = manager(&[]);
        manager.start(ms(500), NODE, Duration::from_millis(800));
        let passed_down = TurnDeadlines {
            first_output: ms(2_000),
            end: ms(60_000),
        };
        assert_eq!(manager.deadlines(), Some(passed_down));
        assert_eq!(manager.deadline(NODE), Some(ms(1_300)));
        manager.start(ms(1_500), NODE, Duration::from_millis(800));
        assert_eq!(manager.deadline(NODE), Some(ms(2_000)));
        assert_eq!(manager.remaining(ms(1_500)), Duration::from_millis(500));
        // Once something was heard, only the length of the turn bounds it.
        assert_eq!(
            manager.first_output(ms(1_600)),
            Some(Duration::from_millis(1_600))
        );
        assert_eq!(manager.deadline(NODE), Some(ms(2_300)));
        assert_eq!(manager.remaining(ms(1_600)), Duration::from_millis(58_400));
    }

    /// Thresholds passed together are told in the order in which they fell due.
    #[test]
    fn a_late_poll_misses_nothing() {
        let mut manager = manager(&[]);
        manager.start(ms(0), NODE, Duration::from_millis(800));
        let keys: Vec<_> = std::iter::from_fn(|| manager.poll(ms(2_000), |_| false))
            .map(|event| (event.key, event.threshold))
            .collect();
        // What has run out needs no warning any more.
        assert_eq!(
            keys,
            [
                (NODE, Threshold::Exhaust),
                (BudgetKey::Turn, Threshold::Exhaust)
            ]
        );
    }

    proptest! {
        /// Every budget warns at most once and exhausts at most once, never the other way round,
        /// and polling up to the deadline never leaves anything due.
        #[test]
        fn thresholds_come_once_and_in_order(
            limits in prop::collection::vec(1u64..3_000, 1..8),
            steps in prop::collection::vec(0u64..400, 1..40),
        ) {
            let mut manager = manager(&[AdaptiveAction::Degrade]);
            for (at, limit) in limits.iter().enumerate() {
                let key = BudgetKey::Node(NodeIx(at as u16));
                manager.start(ms(0), key, Duration::from_millis(*limit));
            }
            let mut seen: BTreeMap<BudgetKey, Vec<Threshold>> = BTreeMap::new();
            let (mut now, mut degraded) = (0, 0);
            for step in steps {
                now += step;
                while let Some(event) = manager.poll(ms(now), |_| false) {
                    degraded += u32::from(event.verdict == BudgetVerdict::Degrade);
                    seen.entry(event.key).or_default().push(event.threshold);
                }
                prop_assert!(manager.next_deadline().is_none_or(|due| due > ms(now)));
            }
            prop_assert!(degraded <= 1);
            for thresholds in seen.values() {
                prop_assert!(thresholds.is_sorted_by(|a, b| a < b), "{thresholds:?}");
            }
            for (at, limit) in limits.iter().enumerate() {
                let told = seen.get(&BudgetKey::Node(NodeIx(at as u16)));
                let exhausted = told.is_some_and(|t| t.contains(&Threshold::Exhaust));
                prop_assert_eq!(exhausted, *limit <= now);
            }
        }
    }
}
