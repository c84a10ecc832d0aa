//! The committed schemas are the generated ones.

use std::{fs, path::Path};

use rspp_proto::{
    abi::SchemaVersion,
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
    let current = schema::Registry::of(SchemaVersion::CURRENT).unwrap();
    let file = folder.join("digest");
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        fs::write(&file, current.digest() + "\n").unwrap();
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(
        committed.trim_end(),
        current.digest(),
        "run with UPDATE_SCHEMAS=1"
    );
    let files = fs::read_dir(&folder).unwrap().count();
    assert_eq!(files, published.len() + 1, "a file without a type");
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

/// F-032: a version is served by its name, with what each field holds and means; another is refused with what to do;
/// and a digest is of what is defined.
#[test]
fn a_version_is_served_with_its_documents_and_types() {
    let registry = schema::Registry::of("v1.0".parse().unwrap()).unwrap();
    assert!(schema::Registry::versions().contains(&registry.version));
    assert_eq!(schema::DIGEST, registry.digest());
    for definition in &registry.definitions {
        assert!(!definition.about().is_empty(), "{}", definition.name);
        for field in definition.fields() {
            let place = format!("{}.{}", definition.name, field.name);
            assert!(!field.about.is_empty(), "{place} means nothing");
            assert!(!field.holds.is_empty(), "{place} holds nothing");
        }
    }
    let fields = registry.find("control_signal").unwrap().fields();
    let field = |name: &str| {
        let field = fields.iter().find(|it| it.name == name).unwrap();
        (field.holds.clone(), field.is_required)
    };
    assert_eq!(field("turn_id"), ("TurnId".to_owned(), false));
    assert_eq!(field("session_id"), ("SessionId".to_owned(), true));
    let refused = schema::Registry::of("v2.0".parse().unwrap()).unwrap_err();
    assert!(
        refused.to_string().contains("upgrade this reader"),
        "{refused}"
    );

    let mut other = registry.clone();
    assert_eq!(other.digest(), registry.digest());
    other.definitions[0].schema["title"] = json!("another");
    assert_ne!(other.digest(), registry.digest());
}
