//! What sessions run: the runtime's own pipeline, and published ones by their version.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Mutex, MutexGuard},
};

use rspp_host::PlaneHandle;
use rspp_proto::{
    PipelineVersion,
    control::Kind,
    spec::{Diagnostics, Mode, PipelineSpec},
};
use rspp_transport_api::Refusal;

use crate::Problem;

/// Published versions that are remembered; a version never changes.
const MOST: usize = 64;

/// The pipeline in a file, or the built-in one: for clients that ask for none.
pub(crate) fn own(file: Option<&Path>) -> Result<PipelineSpec, Problem> {
    let Some(path) = file else {
        return Ok(PipelineSpec::simple());
    };
    let name = path.display().to_string();
    let text = fs::read_to_string(path)
        .map_err(|error| Problem::input(format!("pipeline: {name}: {error}")))?;
    parse(&name, &text).map_err(Problem::Input)
}

/// Published pipelines by version.
pub(crate) struct Published {
    plane: PlaneHandle,
    known: Mutex<BTreeMap<PipelineVersion, PipelineSpec>>,
}

impl Published {
    pub(crate) fn new(plane: PlaneHandle) -> Self {
        Self {
            plane,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<PipelineVersion, PipelineSpec>> {
        self.known.lock().expect("no code panics while locked")
    }

    /// A version, asked for once.
    pub(crate) async fn find(&self, version: PipelineVersion) -> Result<PipelineSpec, Refusal> {
        if let Some(spec) = self.known().get(&version) {
            return Ok(spec.clone());
        }
        let artifact = self.plane.artifact(Kind::Pipeline, version.to_string());
        let artifact = artifact.await.map_err(|error| {
            let message = format!("pipeline `{version}`: {error}");
            if error.is_transient() {
                Refusal::Busy(message)
            } else {
                Refusal::NotHere(message)
            }
        })?;
        let spec = parse(version.as_str(), &artifact.source).map_err(Refusal::Failed)?;
        let mut known = self.known();
        if known.len() == MOST {
            known.pop_first();
        }
        known.insert(version, spec.clone());
        Ok(spec)
    }
}

fn parse(name: &str, text: &str) -> Result<PipelineSpec, String> {
    let parsed = PipelineSpec::parse(name, text, Mode::Strict);
    let parsed = parsed.map_err(|Diagnostics(found)| {
        let found = found.iter().map(ToString::to_string);
        found.collect::<Vec<_>>().join("; ")
    })?;
    Ok(parsed.spec)
}
