//! The published JSON Schemas, generated from the types.
//!
//! They are committed under `proto/schema`; a test regenerates and compares them.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;

use crate::{
    abi::{ControlSignal, DecisionOutcome, EventRecord, TurnTransition},
    spec::{LimitsSpec, PipelineSpec, PolicyBundle},
};

/// A schema that others may rely on (F-032).
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Its name, also of its file: `<name>.json`.
    pub name: &'static str,
    /// The schema, JSON Schema draft 2020-12.
    pub schema: Value,
}

/// Every published schema.
pub fn published() -> Vec<Published> {
    vec![
        publish::<EventRecord>("event"),
        publish::<ControlSignal>("control_signal"),
        publish::<TurnTransition>("turn_transition"),
        publish::<DecisionOutcome>("decision_outcome"),
        publish::<PipelineSpec>("pipeline"),
        publish::<PolicyBundle>("policy"),
        publish::<LimitsSpec>("limits"),
    ]
}

fn publish<T: JsonSchema>(name: &'static str) -> Published {
    let mut schema = of::<T>();
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("$id".into(), format!("urn:rspp:schema:{name}:v1").into());
    }
    Published { name, schema }
}

/// The schema of one type.
pub(crate) fn of<T: JsonSchema>() -> Value {
    SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value()
}
