//! Later segments go elsewhere once a provider had to be given up (F-047).

use std::{collections::BTreeMap, time::Duration};

use rspp_proto::{Monotonic, ProviderId, spec::Modality};

use super::Candidate;

/// Who had to be given up lately, in one session.
///
/// A circuit needs many calls to judge a provider for everybody. One call is enough for a
/// conversation: the listener shall not wait again for the one that was just too slow.
#[derive(Clone, Debug, Default)]
pub struct Overruns {
    until: BTreeMap<(Modality, ProviderId), Monotonic>,
}

impl Overruns {
    /// A provider had to be given up for another: others come first for that long.
    pub fn note(
        &mut self,
        now: Monotonic,
        modality: Modality,
        provider: &ProviderId,
        stay_away: Duration,
    ) {
        if !stay_away.is_zero() {
            self.until
                .insert((modality, provider.clone()), now + stay_away);
        }
    }

    /// Puts those that were given up behind the others, and says whom the first takes the place of.
    pub fn order(
        &mut self,
        now: Monotonic,
        modality: Modality,
        candidates: &mut [Candidate],
    ) -> Option<ProviderId> {
        self.until.retain(|_, until| now < *until);
        let preferred = candidates.first()?.provider.clone();
        // Stable: among equals the plan's order holds.
        candidates.sort_by_key(|candidate| {
            self.until
                .contains_key(&(modality, candidate.provider.clone()))
        });
        (candidates[0].provider != preferred).then_some(preferred)
    }
}
