//! Who is asked, in which order, and why (F-056, F-060, F-066; providers.md §5).
//!
//! A rule names candidates; news of health and price orders them. What was known is frozen with the
//! plan: what becomes known later counts from the next turn on.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rspp_proto::{
    Monotonic, ProviderId,
    spec::{Bindings, ChoicePolicy, Modality},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use rspp_proto::canonical;

/// What a provider can do; frozen with the plan (F-161).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    /// Results arrive before the input is complete.
    pub streaming: bool,
    /// It is reached over a network, not run on this machine.
    pub networked: bool,
}

/// The providers that there are, by modality.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue(pub BTreeMap<Modality, BTreeMap<ProviderId, Capabilities>>);

/// Whether a provider is well.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// A probe says so.
    Healthy,
    /// Nothing speaks against it.
    #[default]
    Unknown,
    /// A probe says that it is not, or its circuit is open.
    Unhealthy,
}

/// News of one provider, from a probe or a price feed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProviderNews {
    /// Whether it is well.
    pub health: Health,
    /// What it costs, in millionths; comparable within a modality.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_micros: Option<u64>,
}

/// News of providers, by modality and id.
pub type News = BTreeMap<(Modality, ProviderId), ProviderNews>;

/// What is known of the providers at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProviderSignals {
    /// The last news, and since when they hold.
    pub news: Option<(Monotonic, News)>,
    /// Those whose circuits let no call pass.
    pub resting: BTreeSet<(Modality, ProviderId)>,
}

impl ProviderSignals {
    /// Names the news by their content (providers.md §5); `None` if there are none.
    pub fn snapshot_ref(&self) -> Option<String> {
        let (_, news) = self.news.as_ref()?;
        let entries: Vec<_> = news
            .iter()
            .map(|((modality, provider), news)| (modality.as_str(), provider, news))
            .collect();
        let hash = canonical::hash(&entries).expect("news is JSON");
        Some(format!("provider-capability/{}", &hash[..12]))
    }
}

/// What the choice of providers follows from, beside the policy.
#[derive(Clone, Copy, Debug)]
pub struct ProviderInputs<'a> {
    /// Who the session is accounted to.
    pub tenant: &'a str,
    /// The session's attributes; `language`, `region` and `cost_tier` have rules.
    pub attributes: &'a BTreeMap<String, Value>,
    /// The providers that there are; a modality without any is not looked into.
    pub catalogue: &'a Catalogue,
    /// What is known of them.
    pub signals: &'a ProviderSignals,
    /// When.
    pub now: Monotonic,
}

impl ProviderInputs<'static> {
    /// Nothing is known: of the session, of the providers that there are, or how they are.
    pub fn unknown() -> Self {
        static ATTRIBUTES: BTreeMap<String, Value> = BTreeMap::new();
        static CATALOGUE: Catalogue = Catalogue(BTreeMap::new());
        static SIGNALS: ProviderSignals = ProviderSignals {
            news: None,
            resting: BTreeSet::new(),
        };
        Self {
            tenant: "",
            attributes: &ATTRIBUTES,
            catalogue: &CATALOGUE,
            signals: &SIGNALS,
            now: Monotonic::ZERO,
        }
    }
}

/// Why these candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChoiceReason {
    /// The node names its own.
    #[serde(rename = "pinned")]
    Pinned,
    /// The tenant's rule.
    #[serde(rename = "rule:tenant")]
    Tenant,
    /// The language's rule.
    #[serde(rename = "rule:language")]
    Language,
    /// The region's rule.
    #[serde(rename = "rule:region")]
    Region,
    /// The cost tier's rule.
    #[serde(rename = "rule:cost_tier")]
    CostTier,
    /// The binding of the modality.
    #[serde(rename = "rule:default")]
    Default,
    /// A rule named only providers that are not there: whatever there is.
    #[serde(rename = "fallback:catalog_default")]
    CatalogDefault,
}

impl ChoiceReason {
    /// The reason as evidence carries it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::Tenant => "rule:tenant",
            Self::Language => "rule:language",
            Self::Region => "rule:region",
            Self::CostTier => "rule:cost_tier",
            Self::Default => "rule:default",
            Self::CatalogDefault => "fallback:catalog_default",
        }
    }
}

/// Whether news had a part in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SignalSource {
    /// Fresh news.
    #[serde(rename = "capability_snapshot")]
    CapabilitySnapshot,
    /// There was none: the default order.
    #[serde(rename = "fallback_default:missing")]
    Missing,
    /// It was too old: the default order.
    #[serde(rename = "fallback_default:stale")]
    Stale,
}

impl SignalSource {
    /// The source as evidence carries it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CapabilitySnapshot => "capability_snapshot",
            Self::Missing => "fallback_default:missing",
            Self::Stale => "fallback_default:stale",
        }
    }
}

/// A candidate, with what was known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChosenProvider {
    /// Who.
    pub provider: ProviderId,
    /// Whether it was well.
    pub health: Health,
    /// What it cost, if that was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_micros: Option<u64>,
}

/// How the providers of one node were chosen (F-056).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderChoice {
    /// What they do.
    pub modality: Modality,
    /// Why these.
    pub reason: ChoiceReason,
    /// Why in this order.
    pub signal_source: SignalSource,
    /// Preferred first.
    pub candidates: Vec<ChosenProvider>,
}

impl ProviderInputs<'_> {
    /// The rules that hold for the session, the first first.
    pub(super) fn rules<'r>(
        &self,
        choice: &'r ChoicePolicy,
    ) -> [(ChoiceReason, Option<&'r Bindings>); 4] {
        [
            (ChoiceReason::Tenant, choice.tenant.get(self.tenant)),
            (
                ChoiceReason::Language,
                self.rule(&choice.language, "language"),
            ),
            (ChoiceReason::Region, self.rule(&choice.region, "region")),
            (
                ChoiceReason::CostTier,
                self.rule(&choice.cost_tier, "cost_tier"),
            ),
        ]
    }

    /// Whether news from `since` counts yet.
    pub(super) fn trusts(&self, choice: &ChoicePolicy, since: Monotonic) -> bool {
        self.now.since(since) <= Duration::from_millis(choice.max_signal_age_ms)
    }

    /// The candidates that the policy names for `modality`, `bound` being those of its binding;
    /// `None` if neither names any.
    pub(super) fn named(
        &self,
        choice: &ChoicePolicy,
        modality: Modality,
        bound: Option<&Vec<ProviderId>>,
    ) -> Option<(ChoiceReason, Vec<ProviderId>)> {
        let mut asked = false;
        for (reason, bindings) in self.rules(choice) {
            let Some(named) = bindings.and_then(|bindings| bindings.get(&modality)) else {
                continue;
            };
            asked = true;
            let there = named.iter().filter(|id| self.is_there(modality, id));
            let there: Vec<_> = there.cloned().collect();
            if !there.is_empty() {
                return Some((reason, there));
            }
        }
        if let Some(bound) = bound {
            // What is bound has to be there: who opens the session sees to that.
            return Some((ChoiceReason::Default, bound.clone()));
        }
        let all = self.catalogue.0.get(&modality).filter(|_| asked)?;
        Some((ChoiceReason::CatalogDefault, all.keys().cloned().collect()))
    }

    /// Orders candidates by what is known of them: health, then price, then as they were named.
    pub(super) fn order(
        &self,
        choice: &ChoicePolicy,
        modality: Modality,
        named: Vec<ProviderId>,
    ) -> (SignalSource, Vec<ChosenProvider>) {
        let (source, news) = match &self.signals.news {
            None => (SignalSource::Missing, None),
            Some((since, _)) if !self.trusts(choice, *since) => (SignalSource::Stale, None),
            Some((_, news)) => (SignalSource::CapabilitySnapshot, Some(news)),
        };
        let known = |provider: ProviderId| {
            let key = (modality, provider);
            let news = news.and_then(|news| news.get(&key)).copied();
            let ProviderNews {
                health,
                price_micros,
            } = news.unwrap_or_default();
            ChosenProvider {
                health: if self.signals.resting.contains(&key) {
                    Health::Unhealthy
                } else {
                    health
                },
                provider: key.1,
                price_micros,
            }
        };
        let mut candidates: Vec<_> = named.into_iter().map(known).collect();
        // One without a price is not cheap: it comes after those that have one.
        candidates.sort_by_key(|candidate| {
            let price = candidate.price_micros.unwrap_or(u64::MAX);
            (candidate.health, price)
        });
        (source, candidates)
    }

    /// What a provider can do, where that is known.
    pub(super) fn capabilities(&self, modality: Modality, id: &ProviderId) -> Option<Capabilities> {
        self.catalogue.0.get(&modality)?.get(id).copied()
    }

    fn is_there(&self, modality: Modality, id: &ProviderId) -> bool {
        let there = self.catalogue.0.get(&modality);
        there.is_none_or(|there| there.contains_key(id))
    }

    /// The rule for the session's value of an attribute; `de` also holds for `de-AT`.
    fn rule<'r>(
        &self,
        rules: &'r BTreeMap<String, Bindings>,
        attribute: &str,
    ) -> Option<&'r Bindings> {
        let value = self.attributes.get(attribute)?.as_str()?;
        let family = value.split('-').next().unwrap_or(value);
        rules.get(value).or_else(|| rules.get(family))
    }
}
