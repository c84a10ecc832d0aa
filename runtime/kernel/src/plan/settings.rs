//! Settings by layer: defaults, environment, tenant, session; later wins (F-080).

use std::collections::BTreeMap;

use rspp_proto::{
    ProviderId,
    spec::{
        BudgetsSpec, BufferSpec, FlowControl, Modality, NodeExecutionPolicy, ObserveSpec, Priority,
        ProvidersSpec, RecordingPolicy, most,
    },
};
use serde::{Deserialize, Serialize};

use super::{PlanError, StreamingHandoff};

/// Who decided a value, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// The execution profile.
    ExecutionProfile,
    /// The product's own settings, such as which providers it comes with.
    Defaults,
    /// The pipeline as authored.
    Pipeline,
    /// The process's environment.
    Environment,
    /// The tenant.
    Tenant,
    /// The session.
    Session,
    /// A policy that overrides all surfaces at once.
    PolicyBundle,
    /// Provider settings with a version of their own (F-102).
    ProviderSettings,
    /// The pipeline's degrade posture, while it is in force (F-048).
    Posture,
}

/// One layer's settings: what is absent is left to the layer before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Time budgets.
    pub budgets: BudgetsSpec,
    /// Providers by modality, preferred first.
    pub provider_bindings: BTreeMap<Modality, Vec<ProviderId>>,
    /// Buffers by edge id; `default` stands for every edge that this layer does not name.
    pub edge_buffers: BTreeMap<String, BufferSpec>,
    /// Concurrency and fairness by node id.
    pub node_execution: BTreeMap<String, NodeExecutionPolicy>,
    /// Flow control, as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow_control: Option<FlowControl>,
    /// What is recorded, as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recording_policy: Option<RecordingPolicy>,
    /// When stages overlap, as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streaming_handoff: Option<StreamingHandoff>,
    /// What a session says about itself. Not part of a plan: it decides nothing.
    #[serde(skip_serializing_if = "ObserveSpec::is_silent")]
    pub observe: ObserveSpec,
    /// How providers are chosen, called and paid for, part by part.
    #[serde(skip_serializing_if = "ProvidersSpec::is_empty")]
    pub providers: ProvidersSpec,
    /// Who comes first when there is not enough for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
}

/// The settings of the four layers. The pipeline's own come between defaults and environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LayeredSettings {
    /// The product's.
    pub defaults: Settings,
    /// The process's.
    pub environment: Settings,
    /// The tenant's.
    pub tenant: Settings,
    /// The session's.
    pub session: Settings,
    /// Those of its own version, over all of these and over a policy bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published: Option<ProviderSettings>,
}

/// How providers are chosen, called and paid for, as published: with a version of its own, so that it
/// rolls forward and back without pipeline or policy (F-102).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderSettings {
    /// Its name in the registry.
    pub version: String,
    /// What it says, part by part.
    pub providers: ProvidersSpec,
}

impl LayeredSettings {
    /// Whether each number in them is one that pipelines and policies may have too: no schema has been
    /// asked about settings.
    ///
    /// # Panics
    /// Never: settings are written as they are read.
    pub fn check(&self) -> Result<(), PlanError> {
        let written = serde_json::to_value(self).expect("settings are written as they are read");
        match most::beyond(&written) {
            Some((path, found, most)) => Err(PlanError::Beyond { path, found, most }),
            None => Ok(()),
        }
    }

    /// What a session of `pipeline` says about itself.
    pub fn observe(&self, pipeline: ObserveSpec) -> ObserveSpec {
        let stronger = [
            pipeline,
            self.environment.observe,
            self.tenant.observe,
            self.session.observe,
        ];
        stronger
            .into_iter()
            .fold(self.defaults.observe, |weaker, layer| layer.over(weaker))
    }
}
