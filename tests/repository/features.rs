//! `FEATURES.md` tells the truth.

use rspp_tests::features::{Tests, complaints, rows};

use crate::tree;

#[test]
fn every_feature_is_listed_and_every_mark_is_backed_by_a_test() {
    let packages = tree::packages();
    let packages: Vec<_> = packages.into_iter().map(|p| (p.name, p.dir)).collect();
    let tests = Tests::of(&packages).expect("our sources are Rust");
    assert!(tests.len() > 400, "{} tests found", tests.len());
    let file = tree::root().join("tests/FEATURES.md");
    let document = std::fs::read_to_string(&file).expect("the table is there");
    let found = complaints(&document, &tests);
    assert!(found.is_empty(), "tests/FEATURES.md:\n{}", found.join("\n"));
}

#[test]
fn the_summary_counts_what_the_tables_say() {
    let file = tree::root().join("tests/FEATURES.md");
    let document = std::fs::read_to_string(&file).expect("the table is there");
    let rows = rows(&document);
    let count = |is_feature: bool, state: &str| {
        let counted = rows.iter().filter(|row| row.phase.is_some() == is_feature);
        counted.filter(|row| row.state == state).count()
    };
    for (what, is_feature) in [("features", true), ("promises and cases", false)] {
        let [done, part, open] = ["done", "part", ""].map(|state| count(is_feature, state));
        let all = done + part + open;
        let line = format!("{all} {what}: {done} done, {part} in part, {open} open.");
        assert!(document.contains(&line), "the summary should say: {line}");
    }
}
