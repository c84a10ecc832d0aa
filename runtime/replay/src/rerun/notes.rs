//! What a replay notices on its way.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard},
};

use rspp_proto::TurnId;
use rspp_timeline::CallRef;

use crate::{Divergence, DivergenceClass};

/// Most that is noted: what follows from a divergence is no news.
const MOST: usize = 256;

/// Notes that all providers of one replay write; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    divergences: Vec<Divergence>,
    used: BTreeSet<CallRef>,
}

impl Notes {
    pub(super) fn used(&self, call: &CallRef) {
        self.lock().used.insert(call.clone());
    }

    pub(super) fn was_used(&self, call: &CallRef) -> bool {
        self.lock().used.contains(call)
    }

    pub(super) fn note(
        &self,
        class: DivergenceClass,
        turn: Option<&TurnId>,
        baseline: impl Into<String>,
        candidate: impl Into<String>,
    ) {
        let mut noted = self.lock();
        if noted.divergences.len() < MOST {
            noted.divergences.push(Divergence {
                class,
                scope: turn.map_or_else(|| "trace".to_owned(), |turn| format!("turn:{turn}")),
                baseline: baseline.into(),
                candidate: candidate.into(),
                diff_ms: None,
            });
        }
    }

    pub(super) fn take(&self) -> Vec<Divergence> {
        std::mem::take(&mut self.lock().divergences)
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().expect("no code panics while locked")
    }
}
