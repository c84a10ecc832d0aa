//! The committed schemas are the generated ones.

use std::{fs, path::Path};

use rspp_proto::schema;

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
