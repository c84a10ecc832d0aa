//! Published versions (F-015, F-028, F-082, F-092, F-102).

use prost::Message as _;
use rspp_controlplane::{
    access::Operation,
    keys,
    registry::{self, Artifact, Draft, Kind, Published, VersionName},
    store::{Compare, Prefix, Txn, bytes},
};
use rspp_controlplane_api::{
    text,
    wire::{self, registry_server::Registry},
};
use serde_json::json;
use tonic::{Request, Response, Status};

use crate::{
    audit::done,
    commit::{Asked, Decided},
    failure::Failure,
    plane::{Plane, wall_clock},
    wire as to,
};

pub(crate) struct RegistryService(pub(crate) Plane);

#[tonic::async_trait]
impl Registry for RegistryService {
    async fn publish(
        &self,
        request: Request<wire::PublishRequest>,
    ) -> Result<Response<wire::PublishResponse>, Status> {
        let plane = &self.0;
        let subject = request.get_ref().version.clone();
        let by = plane.admit(&request, Operation::Publish, None, &subject)?;
        let message = request.into_inner();
        let draft = Draft {
            kind: message.kind().try_into().map_err(Failure::from)?,
            version: text("version", &message.version).map_err(Failure::from)?,
            source: message.source.clone(),
            labels: message.labels.clone(),
            author: by.actor.clone(),
        };
        if message.dry_run {
            let decided = plane.publication(&by, draft).await?;
            return Ok(Response::new(decided.answer));
        }
        let encoded = message.encode_to_vec();
        let asked = Asked {
            by: &by,
            operation: Operation::Publish.as_str(),
            subject: &subject,
            id: &message.request_id,
            message: &encoded,
        };
        let answer = plane
            .change(asked, || plane.publication(&by, draft.clone()))
            .await?;
        Ok(Response::new(answer))
    }

    async fn get_artifact(
        &self,
        request: Request<wire::GetArtifactRequest>,
    ) -> Result<Response<wire::Artifact>, Status> {
        let name = request.get_ref().version.clone();
        self.0
            .admit(&request, Operation::ReadArtifacts, None, &name)?;
        let kind: Kind = request.get_ref().kind().try_into().map_err(Failure::from)?;
        let artifact = self.0.artifact(kind, &name).await?;
        Ok(Response::new(to::artifact(artifact, true)))
    }

    async fn list_artifacts(
        &self,
        request: Request<wire::ListArtifactsRequest>,
    ) -> Result<Response<wire::ListArtifactsResponse>, Status> {
        self.0
            .admit(&request, Operation::ReadArtifacts, None, "artifacts")?;
        let message = request.into_inner();
        let kind: Kind = message.kind().try_into().map_err(Failure::from)?;
        let prefix = keys::artifacts(kind);
        let page = self
            .0
            .page::<Artifact>(prefix, &message.page_token, message.page_size);
        let (artifacts, next_page_token) = page.await?;
        let is_wanted = |artifact: &Artifact| {
            let of_line = message.line.is_empty() || artifact.version.line() == message.line;
            let mut labels = message.labels.iter();
            of_line && labels.all(|(name, value)| artifact.labels.get(name) == Some(value))
        };
        let artifacts = artifacts.into_iter().filter(is_wanted);
        Ok(Response::new(wire::ListArtifactsResponse {
            artifacts: artifacts.map(|it| to::artifact(it, false)).collect(),
            next_page_token,
        }))
    }
}

impl Plane {
    /// What publishing a draft leads to, as things are.
    async fn publication(
        &self,
        by: &rspp_controlplane::access::Principal,
        draft: Draft,
    ) -> Result<Decided<wire::PublishResponse>, Failure> {
        let key = keys::artifact(draft.kind, draft.version.as_str());
        let (existing, entry) = self.read::<Artifact>(&key).await?;
        // Of its line, and perhaps of others whose names begin alike.
        let of_line = Prefix::of(&keys::artifact(draft.kind, draft.version.line()));
        let published: Vec<Artifact> = self.all(of_line).await?;
        let before = registry::predecessor(&published, &draft.version);
        let subject = draft.version.to_string();
        let published = registry::publish(existing.as_ref(), before, draft, wall_clock())?;
        let (artifact, already) = match published {
            Published::New(artifact) => (artifact, false),
            Published::Already(artifact) => (artifact, true),
        };
        let detail = json!({
            "kind": artifact.kind.as_str(),
            "hash": artifact.hash.as_str(),
            "already": already,
        });
        let mut txn = Txn::default().when(Compare::unchanged(&key, entry.as_ref()));
        if !already {
            txn = txn.put(key, bytes(&artifact));
        }
        let operation = Operation::Publish.as_str();
        Ok(Decided {
            txn,
            record: done(wall_clock(), by, operation, &subject, detail),
            answer: wire::PublishResponse {
                artifact: Some(to::artifact(artifact, false)),
                already,
            },
        })
    }

    /// A published version.
    pub(crate) async fn artifact(&self, kind: Kind, name: &str) -> Result<Artifact, Failure> {
        let version: VersionName = text("version", name)?;
        let key = keys::artifact(kind, version.as_str());
        let (found, _) = self.read::<Artifact>(&key).await?;
        found.ok_or_else(|| Failure::NotFound {
            what: kind.as_str(),
            name: name.to_owned(),
        })
    }
}
