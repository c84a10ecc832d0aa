//! What one vendor counts of a call and another does not (F-065).

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Names that one attempt may count under.
const MOST: usize = 8;

/// Counts of one attempt beside those that all adapters have. They are told under one metric, by name,
/// so that whatever a vendor adds breaks nobody's dashboard.
#[derive(Debug, Default)]
pub struct Extras(Mutex<BTreeMap<&'static str, f64>>);

impl Extras {
    /// Counts `amount` under `name`. A ninth name is not counted: names become labels.
    pub fn add(&self, name: &'static str, amount: f64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() < MOST || counts.contains_key(name) {
            *counts.entry(name).or_default() += amount;
        }
    }

    /// What was counted.
    pub fn counts(&self) -> BTreeMap<&'static str, f64> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_an_end() {
        let extras = Extras::default();
        for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "a"] {
            extras.add(name, 2.0);
        }
        let counts = extras.counts();
        assert_eq!((counts.len(), counts["a"], counts.get("i")), (8, 4.0, None));
    }
}
