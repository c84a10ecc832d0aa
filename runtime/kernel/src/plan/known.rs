//! Policies that were resolved before, for inputs that come again: turn after turn, session after session.

use std::{collections::VecDeque, sync::Arc};

use rspp_proto::spec::{Bindings, ChoicePolicy};

use super::{
    Catalogue, PlanError, PlanInputs, ProviderInputs, ProviderSignals, ResolvedPolicy,
    SnapshotProvenance, resolve,
};

/// Most policies that are kept for one pipeline.
const KEPT: usize = 16;

/// What was resolved before for one pipeline under one set of settings and one policy bundle. Equal
/// inputs give equal plans, to the byte; so they are resolved once.
#[derive(Debug, Default)]
pub struct KnownPolicies(VecDeque<Known>);

#[derive(Debug)]
struct Known {
    snapshots: SnapshotProvenance,
    degraded: bool,
    signals: ProviderSignals,
    is_fresh: bool,
    catalogue: Catalogue,
    /// Those of tenant, language, region and cost tier that held for the session.
    rules: [Option<Bindings>; 4],
    policy: Arc<ResolvedPolicy>,
}

impl Known {
    fn fits(&self, inputs: &PlanInputs<'_>) -> bool {
        let choice = &self.policy.provider_policy.choice;
        let providers = &inputs.providers;
        let rules = providers.rules(choice).map(|(_, rule)| rule);
        self.degraded == inputs.degraded
            && self.is_fresh == is_fresh(providers, choice)
            && self.rules.each_ref().map(Option::as_ref) == rules
            && self.signals == *providers.signals
            && self.snapshots == *inputs.snapshots
            && self.catalogue == *providers.catalogue
    }
}

/// Whether there is news, and it counts.
fn is_fresh(providers: &ProviderInputs<'_>, choice: &ChoicePolicy) -> bool {
    let since = providers.signals.news.as_ref().map(|(since, _)| *since);
    since.is_some_and(|since| providers.trusts(choice, since))
}

impl KnownPolicies {
    /// The policy for these inputs. Spec, graph, settings and policy bundle must be the same for all
    /// that one value is asked for.
    pub fn resolve(&mut self, inputs: &PlanInputs<'_>) -> Result<Arc<ResolvedPolicy>, PlanError> {
        resolve::check_versions(inputs)?;
        if let Some(at) = self.0.iter().position(|known| known.fits(inputs)) {
            return Ok(Arc::clone(&self.0[at].policy));
        }
        let policy = Arc::new(resolve::resolve_policy(inputs)?);
        let choice = &policy.provider_policy.choice;
        let providers = &inputs.providers;
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(Known {
            snapshots: inputs.snapshots.clone(),
            degraded: inputs.degraded,
            signals: providers.signals.clone(),
            is_fresh: is_fresh(providers, choice),
            catalogue: providers.catalogue.clone(),
            rules: providers.rules(choice).map(|(_, rule)| rule.cloned()),
            policy: Arc::clone(&policy),
        });
        Ok(policy)
    }
}
