//! The committed schemas against those that were released (F-028).
//!
//! `proto/released/<version>/` holds the schemas of each release as they were then; a release adds a folder
//! and changes none. Whatever was good under one of them stays good, or the schema has the next number in its
//! `$id`.

use std::{collections::BTreeMap, fs, path::Path};

use rspp_controlplane::registry::breaks_of_release;
use serde_json::Value;

/// The schemas of a folder below `proto`, by name.
fn schemas(folder: &Path) -> BTreeMap<String, Value> {
    let files =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = files.map(|file| file.expect("it is listed").path());
    let schemas = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
    let schemas = schemas.map(|path| {
        let name = path.file_stem().expect("a file").to_string_lossy();
        let text = fs::read_to_string(&path).expect("it can be read");
        (
            name.into_owned(),
            serde_json::from_str(&text).expect("it is JSON"),
        )
    });
    schemas.collect()
}

/// What of the present schemas breaks those who rely on a release.
fn breaks(released: &BTreeMap<String, Value>, now: &BTreeMap<String, Value>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, schema) in released {
        match now.get(name) {
            None => found.push(format!("{name}: the schema is gone")),
            Some(now) => {
                let breaks = breaks_of_release(schema, now).into_iter();
                found.extend(breaks.map(|(path, what)| format!("{name}, `{path}`: {what}")));
            }
        }
    }
    found
}

fn proto() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto"))
}

/// F-028, NF-010: no schema breaks those of a release.
#[test]
fn no_schema_breaks_a_release() {
    let now = schemas(&proto().join("schema"));
    let releases = fs::read_dir(proto().join("released")).expect("there are releases");
    let mut compared = 0;
    for release in releases {
        let folder = release.expect("it is listed").path();
        let found = breaks(&schemas(&folder), &now);
        assert!(
            found.is_empty(),
            "these break who relies on {}; undo them, or give the schema the next number:\n  {}",
            folder.display(),
            found.join("\n  ")
        );
        compared += 1;
    }
    assert!(compared > 0);
}

/// F-028: the check sees a field that was dropped and says which; a schema of the next number passes.
#[test]
fn a_dropped_field_is_told_and_the_next_number_passes() {
    let now = schemas(&proto().join("schema"));
    assert_eq!(breaks(&now, &now), Vec::<String>::new());
    let mut dropped = now.clone();
    let event = dropped.get_mut("event").expect("there is one");
    let fields = event["properties"].as_object_mut().expect("it has fields");
    fields.remove("turn_id").expect("it is there");
    assert_eq!(
        breaks(&now, &dropped),
        ["event, `turn_id`: the field is gone"]
    );
    let mut bumped = dropped.clone();
    bumped.get_mut("event").expect("there is one")["$id"] = "urn:rspp:schema:event:v2".into();
    assert_eq!(breaks(&now, &bumped), Vec::<String>::new());
    // What is deep inside, and what a word may be.
    for (name, at, gone) in [
        (
            "pipeline",
            "/$defs/BudgetsSpec/properties",
            "turn_budget_ms",
        ),
        ("policy", "/properties", "providers"),
    ] {
        let mut dropped = now.clone();
        let schema = dropped.get_mut(name).expect("there is one");
        let fields = schema.pointer_mut(at).and_then(Value::as_object_mut);
        let Some(fields) = fields.filter(|fields| fields.contains_key(gone)) else {
            panic!("{name} has no {at}/{gone}");
        };
        fields.remove(gone);
        let found = breaks(&now, &dropped);
        assert!(
            found
                .iter()
                .any(|it| it.starts_with(name)
                    && it.ends_with(&format!("{gone}`: the field is gone"))),
            "{found:?}"
        );
    }
    let mut fewer = now.clone();
    fewer.remove("limits");
    assert_eq!(breaks(&now, &fewer), ["limits: the schema is gone"]);
}
