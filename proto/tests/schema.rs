//! The committed schemas are the generated ones.

use std::{fs, path::Path};

use rspp_proto::{
    schema,
    spec::{Diagnostics, Mode, PipelineSpec},
};
use serde_json::{Value, json};

/// F-001, F-032. After an intended change, run with `UPDATE_SCHEMAS=1` and commit the files.
#[test]
fn committed_schemas_are_the_generated_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    let published = schema::published();
    for schema in &published {
        let file = folder.join(format!("{}.json", schema.name));
        let generated = serde_json::to_string_pretty(&schema.schema).unwrap() + "\n";
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            fs::write(&file, &generated).unwrap();
        }
        let committed = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            committed == generated,
            "{} differs from the types; run `UPDATE_SCHEMAS=1 cargo test -p rspp-proto --test \
             schema` and see whether the change may break readers",
            file.display()
        );
    }
    let files = fs::read_dir(&folder).unwrap().count();
    assert_eq!(files, published.len(), "a file without a type");
}

#[test]
fn every_schema_is_a_schema() {
    for schema in schema::published() {
        assert!(
            jsonschema::meta::is_valid(&schema.schema),
            "{} is no JSON Schema",
            schema.name
        );
    }
}

/// F-001: the published schema takes what the parser takes, and refuses what it refuses by its shape.
#[test]
fn the_published_schema_and_the_parser_agree_on_pipelines() {
    let published = schema::published();
    let pipeline = published.iter().find(|it| it.name == "pipeline").unwrap();
    let schema = jsonschema::validator_for(&pipeline.schema).unwrap();
    let good = serde_json::to_value(PipelineSpec::simple()).unwrap();
    assert!(schema.is_valid(&good));
    for (what, at, value) in [
        ("a field too many", "/colour", json!("blue")),
        ("a field too few", "/nodes/0/kind", Value::Null),
        (
            "a text for a number",
            "/budgets/turn_budget_ms",
            json!("soon"),
        ),
        ("an unknown word", "/edges/0/carries", json!("smoke")),
    ] {
        let mut bad = good.clone();
        let (of, field) = at.rsplit_once('/').unwrap();
        let fields = bad.pointer_mut(of).unwrap().as_object_mut().unwrap();
        match value {
            Value::Null => fields.remove(field),
            value => fields.insert(field.to_owned(), value),
        };
        assert!(!schema.is_valid(&bad), "{what}");
        let parsed = PipelineSpec::parse("bad.json", &bad.to_string(), Mode::Strict);
        let Diagnostics(found) = parsed.unwrap_err();
        assert!(
            !found.is_empty() && found.iter().all(|it| !it.path.is_empty()),
            "{what}"
        );
    }
}
