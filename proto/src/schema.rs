//! The registry of schemas: what each version of the Event ABI, and of what people author, consists of
//! (F-032).
//!
//! Definitions are generated from the types, so that lint, replay, SDKs and the runtime cannot differ about
//! them. They are committed under `proto/schema` with their digest; a test regenerates and compares them.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    abi::{
        AbiViolation, ControlSignal, DecisionOutcome, EventRecord, SchemaVersion, TurnTransition,
        VersionWindow,
    },
    canonical,
    spec::{LimitsSpec, PackageSpec, PipelineSpec, PolicyBundle, most},
};

/// The digest of all that this build writes, as recordings name it: known without making the schemas.
pub const DIGEST: &str = include_str!("../schema/digest").trim_ascii_end();

/// A schema that others may rely on (F-032).
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// Its name, also of its file: `<name>.json`.
    pub name: &'static str,
    /// The schema, JSON Schema draft 2020-12.
    pub schema: Value,
}

/// A field of what a schema defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// What it holds: a type of JSON, or one that the schema names.
    pub holds: String,
    /// Whether it must be there.
    pub is_required: bool,
    /// What it means.
    pub about: String,
}

impl Published {
    /// SHA-256 of the definition, whatever order it is written in.
    ///
    /// # Panics
    /// Never: a schema is JSON.
    pub fn digest(&self) -> String {
        canonical::hash(&self.schema).expect("it is JSON")
    }

    /// What it is.
    pub fn about(&self) -> &str {
        self.schema["description"].as_str().unwrap_or_default()
    }

    /// Its fields, by name.
    pub fn fields(&self) -> Vec<Field> {
        let required = self.schema["required"].as_array();
        let required = required.map_or(&[][..], Vec::as_slice);
        let fields = self.schema["properties"].as_object();
        let fields = fields.into_iter().flatten();
        fields
            .map(|(name, schema)| Field {
                name: name.clone(),
                holds: holds(schema),
                is_required: required.iter().any(|it| it == name),
                about: schema["description"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            })
            .collect()
    }
}

/// What a part of a schema lets something hold, in a word.
fn holds(schema: &Value) -> String {
    if let Some(named) = schema["$ref"].as_str() {
        return named.rsplit('/').next().unwrap_or(named).to_owned();
    }
    for several in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[several].as_array() {
            let some = choices.iter().filter(|it| it["type"] != "null");
            return some.map(holds).collect::<Vec<_>>().join(" or ");
        }
    }
    let one = |word: &str| match word {
        "array" => format!("list of {}", holds(&schema["items"])),
        other => other.to_owned(),
    };
    match &schema["type"] {
        Value::String(word) => one(word),
        Value::Array(words) => {
            let some = words.iter().filter_map(Value::as_str);
            let some = some.filter(|it| *it != "null");
            some.map(one).collect::<Vec<_>>().join(" or ")
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            let one = schema.get("const");
            one.map_or_else(|| "anything".to_owned(), ToString::to_string)
        }
    }
}

/// All definitions of one version.
#[derive(Clone, Debug, PartialEq)]
pub struct Registry {
    /// The version of the Event ABI.
    pub version: SchemaVersion,
    /// What it consists of.
    pub definitions: Vec<Published>,
}

impl Registry {
    /// The versions whose definitions are served, newest first.
    pub fn versions() -> Vec<SchemaVersion> {
        // A higher minor only adds to a lower one; there is one so far.
        vec![SchemaVersion::CURRENT]
    }

    /// The definitions of a version; those that this build reads, which are all that there are.
    pub fn of(version: SchemaVersion) -> Result<Self, AbiViolation> {
        VersionWindow::CURRENT.check(version)?;
        Ok(Self {
            version,
            definitions: published(),
        })
    }

    /// The definition of that name.
    pub fn find(&self, name: &str) -> Option<&Published> {
        self.definitions.iter().find(|it| it.name == name)
    }

    /// SHA-256 over the digests of all definitions, by name.
    ///
    /// # Panics
    /// Never: names and digests are texts.
    pub fn digest(&self) -> String {
        let each = self.definitions.iter();
        let each: Map<_, _> = each
            .map(|it| (it.name.to_owned(), it.digest().into()))
            .collect();
        canonical::hash(&each).expect("texts become JSON")
    }

    /// All of it as one document, for programs that make code of it.
    pub fn bundle(&self) -> Value {
        let definitions = self.definitions.iter();
        let definitions: Map<_, _> = definitions
            .map(|it| (it.name.to_owned(), it.schema.clone()))
            .collect();
        json!({
            "schema_version": self.version,
            "digest": self.digest(),
            "definitions": definitions,
        })
    }
}

/// Every published schema.
pub fn published() -> Vec<Published> {
    vec![
        publish("event", of::<EventRecord>()),
        publish("control_signal", of::<ControlSignal>()),
        publish("turn_transition", of::<TurnTransition>()),
        publish("decision_outcome", of::<DecisionOutcome>()),
        publish("pipeline", authored::<PipelineSpec>()),
        publish("policy", authored::<PolicyBundle>()),
        publish("limits", authored::<LimitsSpec>()),
        publish("package", authored::<PackageSpec>()),
    ]
}

fn publish(name: &'static str, mut schema: Value) -> Published {
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("$id".into(), format!("urn:rspp:schema:{name}:v1").into());
    }
    Published { name, schema }
}

/// The schema of what people author: each of its numbers has a largest value.
pub(crate) fn authored<T: JsonSchema>() -> Value {
    let mut schema = of::<T>();
    most::bound(&mut schema);
    schema
}

/// The schema of one type.
pub(crate) fn of<T: JsonSchema>() -> Value {
    SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value()
}
