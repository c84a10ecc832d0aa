//! What a run of simulations has covered.

use std::{collections::BTreeMap, fmt};

/// Counts by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Scenarios played.
    pub scenarios: u64,
    /// Sessions that opened.
    pub sessions: u64,
    /// Turns that were accepted.
    pub turns: u64,
    /// Times that the invariants were looked at.
    pub checks: u64,
    /// Faults that happened, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// What users and operators did, by kind.
    pub acts: BTreeMap<&'static str, u64>,
    /// How turns and sessions ended, and what was refused, by kind.
    pub outcomes: BTreeMap<String, u64>,
    /// Signals by kind.
    pub signals: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// A fault happened.
    pub fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    /// Somebody did something.
    pub fn act(&mut self, kind: &'static str) {
        *self.acts.entry(kind).or_default() += 1;
    }

    /// Something came out.
    pub fn outcome(&mut self, kind: impl Into<String>) {
        *self.outcomes.entry(kind.into()).or_default() += 1;
    }

    /// Which of these kinds were never seen.
    pub fn missing<'a>(&self, kinds: &[&'a str]) -> Vec<&'a str> {
        let seen = |kind: &str| {
            self.faults.contains_key(kind)
                || self.acts.contains_key(kind)
                || self.outcomes.contains_key(kind)
                || self.signals.contains_key(kind)
        };
        kinds.iter().copied().filter(|kind| !seen(kind)).collect()
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.scenarios += other.scenarios;
        self.sessions += other.sessions;
        self.turns += other.turns;
        self.checks += other.checks;
        add(&mut self.faults, &other.faults);
        add(&mut self.acts, &other.acts);
        add(&mut self.outcomes, &other.outcomes);
        add(&mut self.signals, &other.signals);
    }
}

fn add<K: Ord + Clone>(to: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
    for (kind, count) in from {
        *to.entry(kind.clone()).or_default() += count;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<K: fmt::Display>(counts: &BTreeMap<K, u64>) -> String {
            let counts = counts.iter();
            let each: Vec<_> = counts
                .map(|(kind, count)| format!("{kind} {count}"))
                .collect();
            each.join(", ")
        }
        writeln!(
            f,
            "{} scenarios, {} sessions, {} turns, invariants looked at {} times",
            self.scenarios, self.sessions, self.turns, self.checks
        )?;
        writeln!(f, "faults: {}", list(&self.faults))?;
        writeln!(f, "acts: {}", list(&self.acts))?;
        writeln!(f, "outcomes: {}", list(&self.outcomes))?;
        write!(f, "signals: {}", list(&self.signals))
    }
}
