//! What a node knows of its providers, and what a session goes by when it calls them.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::Duration,
};

use rspp_actors::{CancellationToken, Clock};
use rspp_kernel::{
    cost::Meter,
    invocation::{Candidate, Overruns, Patience, TurnDeadlines},
    plan::{
        Capabilities, Catalogue, ChoiceReason, News, ProviderSignals, ResolvedTurnPlan,
        SignalSource,
    },
};
use rspp_proto::{
    InvocationId, Monotonic, ProviderId,
    spec::{AdaptiveAction, CallPolicy, CircuitPolicy, CostCaps, Modality, NodeSpec},
};
use rspp_provider_api::Providers;

use crate::circuits::Circuits;

/// What is known of a node's providers, for all its sessions: the circuits of what they did, and the
/// news that a probe or a price feed brings. It counts from the next turn on (F-060, F-066).
#[derive(Debug)]
pub struct ProviderBoard {
    clock: Clock,
    pub(crate) circuits: Circuits,
    news: Mutex<Option<(Monotonic, News)>>,
}

impl ProviderBoard {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            circuits: Circuits::default(),
            news: Mutex::default(),
        }
    }

    /// Publishes all that is known now, in place of what was known before. News that is not renewed
    /// grows stale by the policy of whoever asks.
    pub fn publish(&self, news: News) {
        let now = Monotonic::from_duration(self.clock.now());
        *self.news() = Some((now, news));
    }

    fn news(&self) -> MutexGuard<'_, Option<(Monotonic, News)>> {
        self.news.lock().expect("no code panics while locked")
    }

    pub(crate) fn now(&self) -> Monotonic {
        Monotonic::from_duration(self.clock.now())
    }

    /// What a plan made now may go by.
    pub(crate) fn signals(&self, circuit: CircuitPolicy) -> ProviderSignals {
        ProviderSignals {
            news: self.news().clone(),
            resting: self.circuits.resting(circuit, self.now()),
        }
    }
}

/// The providers that there are, as they describe themselves now.
pub(crate) fn catalogue(providers: &Providers) -> Catalogue {
    let modalities = [
        Modality::Stt,
        Modality::Llm,
        Modality::Tts,
        Modality::Vad,
        Modality::EndOfTurn,
    ];
    let of = |modality| {
        let ids = providers.ids(modality).into_iter();
        ids.filter_map(|id| {
            let description = providers.describe(modality, &id)?;
            let capabilities = Capabilities {
                streaming: description.streaming,
                networked: description.networked,
            };
            Some((id, capabilities))
        })
        .collect()
    };
    Catalogue(modalities.map(|modality| (modality, of(modality))).into())
}

/// What the calls of one turn, or of the nodes that listen, are made under. As little of the plan as
/// that takes: those that listen keep it for as long as the session lives.
#[derive(Debug)]
pub(crate) struct CallRules {
    pub(crate) calls: CallPolicy,
    pub(crate) circuit: CircuitPolicy,
    pub(crate) caps: CostCaps,
    pub(crate) actions: BTreeSet<AdaptiveAction>,
    pub(crate) bound: Bound,
    pub(crate) board: Arc<ProviderBoard>,
    /// Whom this session had to give up.
    pub(crate) overruns: Arc<Mutex<Overruns>>,
    /// Its calls that are at work.
    pub(crate) at_work: Arc<AtWork>,
    /// What this session has spent.
    pub(crate) meter: Arc<Mutex<Meter>>,
}

/// The calls of a session that are at work: what can be cancelled.
#[derive(Debug, Default)]
pub(crate) struct AtWork(Mutex<BTreeSet<InvocationId>>);

impl AtWork {
    /// Lists a call until what is returned is dropped.
    pub(crate) fn list(self: &Arc<Self>, call: InvocationId) -> Listed {
        self.calls().insert(call.clone());
        Listed {
            among: Arc::clone(self),
            call,
        }
    }

    pub(crate) fn knows(&self, call: &InvocationId) -> bool {
        self.calls().contains(call)
    }

    fn calls(&self) -> MutexGuard<'_, BTreeSet<InvocationId>> {
        self.0.lock().expect("no code panics while locked")
    }
}

/// A call's place among those at work.
#[derive(Debug)]
pub(crate) struct Listed {
    among: Arc<AtWork>,
    call: InvocationId,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.among.calls().remove(&self.call);
    }
}

/// What the calls of some nodes are held to.
#[derive(Clone, Debug, Default)]
pub(crate) enum Bound {
    /// Nodes that listen: nobody waits for an answer yet.
    #[default]
    Listening,
    /// A turn.
    Turn(TurnDeadlines),
    /// A guess: nobody waits for it before it is promoted.
    Guess(Arc<Promotion>),
}

/// The moment at which a guess becomes a turn.
#[derive(Debug, Default)]
pub(crate) struct Promotion {
    token: CancellationToken,
    deadlines: OnceLock<TurnDeadlines>,
}

/// Whom one node may ask, and why them, from the frozen plan.
#[derive(Debug)]
pub(crate) struct Candidates {
    pub(crate) all: Vec<Candidate>,
    /// Those whose answers come before their input is complete.
    pub(crate) streaming: Vec<ProviderId>,
    pub(crate) reason: ChoiceReason,
    pub(crate) signal_source: SignalSource,
    /// The node's own time, if it has one.
    pub(crate) budget: Option<Duration>,
}

impl Candidates {
    /// The candidates of a node; `None` if it needs none.
    pub(crate) fn of(plan: &ResolvedTurnPlan, node: &NodeSpec) -> Option<Self> {
        let choice = plan.provider_choices.get(&node.id)?;
        let own = |key: &str| {
            let ms = node.config.get(key).and_then(serde_json::Value::as_f64)?;
            Some(Duration::from_millis(ms as u64))
        };
        let of_plan = Patience::of(&plan.budgets);
        let patience = Patience {
            first_byte: own("first_byte_ms").unwrap_or(of_plan.first_byte),
            inter_chunk: own("inter_chunk_ms").unwrap_or(of_plan.inter_chunk),
        };
        let can = |id: &ProviderId| plan.capabilities(choice.modality, id);
        let ids = || choice.candidates.iter().map(|chosen| &chosen.provider);
        let candidate = |provider: &ProviderId| Candidate {
            provider: provider.clone(),
            patience: if can(provider).networked {
                patience
            } else {
                patience.local(&plan.provider_policy.calls)
            },
        };
        Some(Self {
            all: ids().map(candidate).collect(),
            streaming: ids().filter(|id| can(id).streaming).cloned().collect(),
            reason: choice.reason,
            signal_source: choice.signal_source,
            budget: plan
                .node_budgets_ms
                .get(&node.id)
                .copied()
                .map(Duration::from_millis),
        })
    }
}

impl Bound {
    /// The turn's deadlines, if it is one by now.
    pub(crate) fn deadlines(&self) -> Option<TurnDeadlines> {
        match self {
            Self::Listening => None,
            Self::Turn(deadlines) => Some(*deadlines),
            Self::Guess(promotion) => promotion.deadlines.get().copied(),
        }
    }

    /// When a guess becomes a turn.
    pub(crate) fn promotion(&self) -> Option<Arc<Promotion>> {
        match self {
            Self::Listening | Self::Turn(_) => None,
            Self::Guess(promotion) => Some(Arc::clone(promotion)),
        }
    }
}

impl Promotion {
    /// It is a turn, which has so much time.
    pub(crate) fn promote(&self, deadlines: TurnDeadlines) {
        // A guess is promoted once.
        let _first = self.deadlines.set(deadlines);
        self.token.cancel();
    }

    /// Fires then.
    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }
}

impl CallRules {
    pub(crate) fn overruns(&self) -> MutexGuard<'_, Overruns> {
        self.overruns.lock().expect("no code panics while locked")
    }

    pub(crate) fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock().expect("no code panics while locked")
    }
}
