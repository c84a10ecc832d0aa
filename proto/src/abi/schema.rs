//! The JSON Schema of records: fields from the types, rules from the same table that validates.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{
    ControlSignal, EventRecord, Field, MAX_MERGE_SOURCES, Record, ScopeRule, Signal,
    record::{FlatEvent, FlatSignal},
};

impl JsonSchema for EventRecord {
    fn schema_name() -> Cow<'static, str> {
        "EventRecord".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut rules = envelope_rules();
        rules.push(json!({
            "properties": { "lane": { "enum": ["DataLane", "TelemetryLane"] } }
        }));
        with_rules(FlatEvent::json_schema(generator), rules)
    }
}

impl JsonSchema for ControlSignal {
    fn schema_name() -> Cow<'static, str> {
        "ControlSignal".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut rules = envelope_rules();
        rules.push(json!({
            "properties": {
                "lane": { "const": "ControlLane" },
                "payload_class": { "const": "metadata" },
            }
        }));
        rules.push(needs(&["authority_epoch"]));
        rules.push(json!({
            "properties": { "amount": { "anyOf": [{ "minimum": 1 }, { "type": "null" }] } }
        }));
        rules.extend(Signal::ALL.iter().map(|signal| signal_rule(*signal)));
        with_rules(FlatSignal::json_schema(generator), rules)
    }
}

impl JsonSchema for Record {
    fn schema_name() -> Cow<'static, str> {
        "Record".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let event = generator.subschema_for::<EventRecord>();
        let signal = generator.subschema_for::<ControlSignal>();
        json_schema!({ "oneOf": [event, signal] })
    }
}

fn with_rules(mut schema: Schema, rules: Vec<Value>) -> Schema {
    schema.insert("allOf".into(), rules.into());
    schema
}

/// Demands fields that are there and not null.
fn needs(fields: &[&str]) -> Value {
    let present: serde_json::Map<String, Value> = fields
        .iter()
        .map(|field| ((*field).to_owned(), json!({ "not": { "type": "null" } })))
        .collect();
    json!({ "required": fields, "properties": present })
}

/// What holds for every record (event-abi §2).
fn envelope_rules() -> Vec<Value> {
    let given = |field: &str| json!({ "required": [field], "properties": { field: { "not": { "type": "null" } } } });
    let is = |field: &str, value: Value| json!({ "required": [field], "properties": { field: { "const": value } } });
    vec![
        json!({ "if": is("event_scope", "turn".into()), "then": needs(&["turn_id", "authority_epoch"]) }),
        json!({ "if": is("payload_class", "audio_raw".into()), "then": needs(&["media_time"]) }),
        json!({ "if": given("discontinuity_id"), "then": needs(&["sync_domain"]) }),
        json!({ "if": given("merged_from_event_ids"), "then": needs(&["merge_group_id"]) }),
        json!({
            "if": is("late_after_cancel", true.into()),
            "then": {
                "required": ["turn_id"],
                "properties": {
                    "event_scope": { "const": "turn" },
                    "turn_id": { "not": { "type": "null" } },
                },
            },
        }),
        json!({
            "properties": {
                "merged_from_event_ids": {
                    "minItems": 1, "maxItems": MAX_MERGE_SOURCES, "uniqueItems": true,
                }
            }
        }),
    ]
}

/// One row of event-abi §4.
fn signal_rule(signal: Signal) -> Value {
    let row = signal.rule();
    let fields: Vec<&str> = row.requires.iter().map(|field| field.as_str()).collect();
    let mut then = needs(&fields);
    then["properties"]["emitted_by"] = json!({ "enum": row.emitters });
    match row.scope {
        ScopeRule::Session => then["properties"]["event_scope"] = json!({ "const": "session" }),
        ScopeRule::Turn => then["properties"]["event_scope"] = json!({ "const": "turn" }),
        ScopeRule::Any => {}
    }
    for field in [Field::Amount, Field::SeqRange] {
        if !row.requires.contains(&field) {
            then["properties"][field.as_str()] = json!({ "type": "null" });
        }
    }
    json!({
        "if": { "required": ["signal"], "properties": { "signal": { "const": signal } } },
        "then": then,
    })
}
