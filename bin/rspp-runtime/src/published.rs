//! What sessions run: the runtime's own pipeline, and what is published, by versions.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Mutex, MutexGuard},
};

use rspp_host::{PlaneHandle, Published};
use rspp_kernel::plan::ProviderSettings;
use rspp_proto::{
    PipelineVersion,
    control::{Kind, Versions},
    spec::{Diagnostics, Mode, PipelineSpec, PolicyBundle},
};
use rspp_transport_api::Refusal;

use crate::Problem;

/// Published versions of a kind that are remembered; a version never changes.
const MOST: usize = 64;

/// The pipeline in a file, or the built-in one: for clients that ask for none.
pub(crate) fn own(file: Option<&Path>) -> Result<PipelineSpec, Problem> {
    let Some(path) = file else {
        return Ok(PipelineSpec::simple());
    };
    let name = path.display().to_string();
    let text = fs::read_to_string(path)
        .map_err(|error| Problem::input(format!("pipeline: {name}: {error}")))?;
    pipeline(&name, &text).map_err(Problem::Input)
}

/// What the control plane's registry holds, as far as sessions here have run it.
pub(crate) struct Registry {
    plane: PlaneHandle,
    pipelines: Shelf<PipelineSpec>,
    policies: Shelf<PolicyBundle>,
    providers: Shelf<ProviderSettings>,
}

impl Registry {
    pub(crate) fn new(plane: PlaneHandle) -> Self {
        Self {
            plane,
            pipelines: Shelf::new(Kind::Pipeline, pipeline),
            policies: Shelf::new(Kind::Policy, policy),
            providers: Shelf::new(Kind::Providers, providers),
        }
    }

    /// A version of a pipeline, and the versions that go with it.
    pub(crate) async fn find(
        &self,
        pipeline: &PipelineVersion,
        versions: &Versions,
    ) -> Result<Published, Refusal> {
        let Versions { policy, providers } = versions;
        Ok(Published {
            pipeline: self.pipelines.find(&self.plane, pipeline.as_str()).await?,
            policy: match policy {
                Some(version) => Some(self.policies.find(&self.plane, version).await?),
                None => None,
            },
            providers: match providers {
                Some(version) => Some(self.providers.find(&self.plane, version).await?),
                None => None,
            },
        })
    }
}

/// What is published of a kind, each version asked for once.
struct Shelf<T> {
    kind: Kind,
    /// Reads a version's text; what is wrong with it is the error.
    read: fn(&str, &str) -> Result<T, String>,
    known: Mutex<BTreeMap<String, T>>,
}

impl<T: Clone> Shelf<T> {
    fn new(kind: Kind, read: fn(&str, &str) -> Result<T, String>) -> Self {
        Self {
            kind,
            read,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, T>> {
        self.known.lock().expect("no code panics while locked")
    }

    async fn find(&self, plane: &PlaneHandle, version: &str) -> Result<T, Refusal> {
        if let Some(found) = self.known().get(version) {
            return Ok(found.clone());
        }
        let artifact = plane.artifact(self.kind, version.to_owned());
        let artifact = artifact.await.map_err(|error| {
            let message = format!("{} `{version}`: {error}", self.kind.as_str());
            if error.is_transient() {
                Refusal::Busy(message)
            } else {
                Refusal::NotHere(message)
            }
        })?;
        let found = (self.read)(version, &artifact.source).map_err(Refusal::Failed)?;
        let mut known = self.known();
        if known.len() == MOST {
            known.pop_first();
        }
        known.insert(version.to_owned(), found.clone());
        Ok(found)
    }
}

fn pipeline(name: &str, text: &str) -> Result<PipelineSpec, String> {
    let parsed = PipelineSpec::parse(name, text, Mode::Strict);
    Ok(parsed.map_err(wrong)?.spec)
}

/// A policy under the name that it is published by: that is what plans and recordings cite.
fn policy(version: &str, text: &str) -> Result<PolicyBundle, String> {
    let parsed = PolicyBundle::parse(version, text, Mode::Strict);
    Ok(PolicyBundle {
        policy_resolution_snapshot: format!("policy/{version}"),
        ..parsed.map_err(wrong)?.spec
    })
}

fn providers(version: &str, text: &str) -> Result<ProviderSettings, String> {
    let parsed = PolicyBundle::parse(version, text, Mode::Strict);
    Ok(ProviderSettings {
        version: version.to_owned(),
        providers: parsed.map_err(wrong)?.spec.providers,
    })
}

fn wrong(Diagnostics(found): Diagnostics) -> String {
    let found = found.iter().map(ToString::to_string);
    found.collect::<Vec<_>>().join("; ")
}
