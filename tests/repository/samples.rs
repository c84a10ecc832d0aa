//! Every sample in `deploy/` is a good one.

use std::path::Path;

use rspp_proto::spec::{Mode, PipelineSpec, PolicyBundle};

use crate::tree;

/// Reads a sample strictly: `Err` says what is wrong with it, warnings included.
fn load(path: &str, text: &str) -> Result<(), String> {
    let warnings = if path.contains("/policies/") {
        PolicyBundle::parse(path, text, Mode::Strict).map(|parsed| parsed.warnings)
    } else {
        PipelineSpec::parse(path, text, Mode::Strict).map(|parsed| parsed.warnings)
    };
    match warnings {
        Ok(warnings) if warnings.is_empty() => Ok(()),
        Ok(warnings) => Err(warnings.iter().map(ToString::to_string).collect()),
        Err(errors) => Err(errors.to_string()),
    }
}

#[test]
fn samples_pass_strict_mode_without_a_warning() {
    let is_sample = |path: &str| {
        let is_spec = ["deploy/pipelines/", "deploy/policies/"];
        let is_yaml = Path::new(path).extension().is_some_and(|end| end == "yaml");
        is_yaml && is_spec.iter().any(|dir| path.starts_with(dir))
    };
    for (path, text) in tree::tracked() {
        if is_sample(&path) {
            assert_eq!(load(&path, &text), Ok(()), "{path}");
        }
    }
}

/// A newcomer copies it from there.
#[test]
fn the_pipeline_in_the_readme_is_a_good_one() {
    let readme = std::fs::read_to_string(tree::root().join("README.md")).expect("the README");
    let (_, block) = readme.split_once("```yaml\n").expect("it shows a pipeline");
    let (pipeline, _) = block.split_once("```").expect("the block ends");
    assert_eq!(load("README.md", pipeline), Ok(()));
}

#[test]
fn a_bad_sample_would_be_noticed() {
    let good = PipelineSpec::simple_template();
    assert_eq!(load("deploy/pipelines/good.yaml", good), Ok(()));
    let bad = good.replacen("kind: vad", "kind: vat", 1);
    let error = load("deploy/pipelines/bad.yaml", &bad).unwrap_err();
    assert!(error.contains("deploy/pipelines/bad.yaml"), "{error}");
    assert!(
        load("deploy/policies/bad.yaml", good).is_err(),
        "a pipeline is no policy"
    );
}
