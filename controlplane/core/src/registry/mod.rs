//! Published versions of pipelines, policies and provider configurations: each is written once and
//! never again (F-015, F-092, F-102).

mod compatibility;
mod version;

use std::collections::BTreeMap;

pub use rspp_proto::control::Kind;
use rspp_proto::{
    Actor, WallClock,
    spec::{Diagnostics, LimitsSpec, Mode, PipelineSpec, PolicyBundle},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

pub use compatibility::{
    Break, SchemaBreak, breaks_of_pipeline, breaks_of_release, breaks_of_schema,
};
pub use version::{VersionName, VersionNameError};

use crate::ContentHash;

/// Largest text that is published, in bytes; it has to fit into one value of the store beside its metadata.
pub const MAX_SOURCE_BYTES: usize = 256 * 1024;
/// Most labels of a version.
pub const MAX_LABELS: usize = 64;

/// A published version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Of what.
    pub kind: Kind,
    /// Its name, unique within the kind.
    pub version: VersionName,
    /// The SHA-256 of what it means: comments and order do not count, metadata does.
    pub hash: ContentHash,
    /// Who published it.
    pub author: Actor,
    /// When.
    pub created_at: WallClock,
    /// For people and searches, a pipeline's own metadata among them; never alters execution (F-082).
    pub labels: BTreeMap<String, String>,
    /// The text as it was published, comments included.
    pub source: String,
}

/// What is to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Of what.
    pub kind: Kind,
    /// Its name. A pipeline's must be the one that it says itself.
    pub version: VersionName,
    /// YAML or JSON.
    pub source: String,
    /// For people and searches.
    pub labels: BTreeMap<String, String>,
    /// Who publishes.
    pub author: Actor,
}

/// What publishing led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// It is to be stored, if still nothing is there.
    New(Artifact),
    /// The very same was published before.
    Already(Artifact),
}

/// Why nothing was published.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PublishError {
    /// Something else has that name (F-015).
    #[error("{} `{version}` is published and never changes; publish the next version instead", kind.as_str())]
    Immutable {
        /// Of what.
        kind: Kind,
        /// Its name.
        version: VersionName,
        /// What is there.
        published: ContentHash,
        /// What was to be.
        offered: ContentHash,
    },
    /// It says that it is another version.
    #[error("the spec calls itself `{says}`, not `{version}`")]
    OtherVersion {
        /// What it says.
        says: String,
        /// What it was to be published as.
        version: VersionName,
    },
    /// It is wrong in itself.
    #[error("{0}")]
    Invalid(Diagnostics),
    /// Provider settings that say something else, which nobody would follow (F-102).
    #[error(
        "provider settings decide `providers` alone, and `{version}` says {}: publish that as a policy, \
         or leave it out",
        named(surfaces)
    )]
    OtherSurfaces {
        /// Its name.
        version: VersionName,
        /// What it says besides.
        surfaces: Vec<&'static str>,
    },
    /// It breaks who uses the version before (F-028, NF-010).
    #[error(
        "`{version}` breaks what uses `{before}`; publish it as `{}`, or undo: {}",
        before.next_major(),
        list(breaks)
    )]
    Breaking {
        /// Its name.
        version: VersionName,
        /// The version that it follows.
        before: VersionName,
        /// How.
        breaks: Vec<Break>,
    },
    /// Nothing of that size is published.
    #[error("the {what} is larger than {limit}")]
    TooLarge {
        /// `source` or `labels`.
        what: &'static str,
        /// What is taken.
        limit: usize,
    },
}

fn list(breaks: &[Break]) -> String {
    let texts: Vec<_> = breaks.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

fn named(surfaces: &[&str]) -> String {
    let names: Vec<_> = surfaces.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

/// What a bundle decides besides how providers are chosen and called.
fn other_surfaces(bundle: &PolicyBundle) -> Vec<&'static str> {
    // Each part by name, so that a new one is thought of here.
    let PolicyBundle {
        schema: _,
        policy_resolution_snapshot: _,
        allowed_adaptive_actions,
        budgets,
        provider_bindings,
        edge_buffer_policies,
        flow_control,
        recording_policy,
        node_execution_policies,
        insert_nodes,
        providers: _,
    } = bundle;
    let said = [
        (
            "allowed_adaptive_actions",
            !allowed_adaptive_actions.is_empty(),
        ),
        ("budgets", budgets.is_some()),
        ("provider_bindings", provider_bindings.is_some()),
        ("edge_buffer_policies", edge_buffer_policies.is_some()),
        ("flow_control", flow_control.is_some()),
        ("recording_policy", recording_policy.is_some()),
        (
            "node_execution_policies",
            !node_execution_policies.is_empty(),
        ),
        ("insert_nodes", !insert_nodes.is_empty()),
    ];
    let said = said.into_iter().filter(|(_, is_said)| *is_said);
    said.map(|(name, _)| name).collect()
}

/// What a draft means, as JSON without comments, and what it says of itself for searches; refuses one that is
/// wrong in itself.
fn meaning(draft: &Draft) -> Result<(Value, BTreeMap<String, String>), PublishError> {
    let file = draft.version.as_str();
    let to_json = |value: serde_json::Result<Value>| value.expect("specs are plain data");
    let parsed = match draft.kind {
        Kind::Pipeline => {
            let spec = PipelineSpec::parse(file, &draft.source, Mode::Strict);
            let spec = spec.map_err(PublishError::Invalid)?.spec;
            if spec.version.as_str() != draft.version.as_str() {
                return Err(PublishError::OtherVersion {
                    says: spec.version.to_string(),
                    version: draft.version.clone(),
                });
            }
            let metadata = spec.metadata.clone();
            return Ok((to_json(serde_json::to_value(spec)), metadata));
        }
        Kind::Policy | Kind::Providers => {
            let spec = PolicyBundle::parse(file, &draft.source, Mode::Strict);
            let spec = spec.map_err(PublishError::Invalid)?.spec;
            let surfaces = match draft.kind {
                Kind::Providers => other_surfaces(&spec),
                Kind::Pipeline | Kind::Policy | Kind::Limits => Vec::new(),
            };
            if !surfaces.is_empty() {
                return Err(PublishError::OtherSurfaces {
                    version: draft.version.clone(),
                    surfaces,
                });
            }
            to_json(serde_json::to_value(spec))
        }
        Kind::Limits => {
            let spec = LimitsSpec::parse(file, &draft.source, Mode::Strict);
            to_json(serde_json::to_value(
                spec.map_err(PublishError::Invalid)?.spec,
            ))
        }
    };
    Ok((parsed, BTreeMap::new()))
}

/// Publishes a draft. `existing` is what has its name, `before` the newest version of the same line
/// that is lower: what its users use now.
pub fn publish(
    existing: Option<&Artifact>,
    before: Option<&Artifact>,
    draft: Draft,
    now: WallClock,
) -> Result<Published, PublishError> {
    if draft.source.len() > MAX_SOURCE_BYTES {
        return Err(PublishError::TooLarge {
            what: "source",
            limit: MAX_SOURCE_BYTES,
        });
    }
    let (meaning, mut labels) = meaning(&draft)?;
    // What somebody says when publishing stands over what the text says.
    labels.extend(draft.labels.clone());
    let label_bytes: usize = labels.iter().map(|(k, v)| k.len() + v.len()).sum();
    if labels.len() > MAX_LABELS || label_bytes > 16 * 1024 {
        return Err(PublishError::TooLarge {
            what: "labels",
            limit: MAX_LABELS,
        });
    }
    let hash = ContentHash::of_value(&meaning);
    if let Some(existing) = existing {
        return if existing.hash == hash {
            Ok(Published::Already(existing.clone()))
        } else {
            Err(PublishError::Immutable {
                kind: draft.kind,
                version: draft.version,
                published: existing.hash.clone(),
                offered: hash,
            })
        };
    }
    if let Some(before) = before
        && draft.kind == Kind::Pipeline
        && draft.version.major() == before.version.major()
    {
        let breaks = breaks_between(&before.source, &draft);
        if !breaks.is_empty() {
            return Err(PublishError::Breaking {
                version: draft.version,
                before: before.version.clone(),
                breaks,
            });
        }
    }
    Ok(Published::New(Artifact {
        kind: draft.kind,
        version: draft.version,
        hash,
        author: draft.author,
        created_at: now,
        labels,
        source: draft.source,
    }))
}

fn breaks_between(before: &str, draft: &Draft) -> Vec<Break> {
    // What was published under older rules may be unreadable now; nobody can rely on it then.
    let Ok(old) = PipelineSpec::parse("published", before, Mode::Relaxed) else {
        return Vec::new();
    };
    let new = PipelineSpec::parse(draft.version.as_str(), &draft.source, Mode::Strict);
    new.map_or_else(
        |_| Vec::new(),
        |new| breaks_of_pipeline(&old.spec, &new.spec),
    )
}

/// The newest of `published` that is below `version` in its line: what it is compared with.
pub fn predecessor<'a>(
    published: impl IntoIterator<Item = &'a Artifact>,
    version: &VersionName,
) -> Option<&'a Artifact> {
    let same_line = |artifact: &&Artifact| artifact.version.line() == version.line();
    let is_below = |artifact: &&Artifact| artifact.version.number() < version.number();
    published
        .into_iter()
        .filter(same_line)
        .filter(is_below)
        .max_by(|a, b| a.version.number().cmp(b.version.number()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(version: &str, source: &str) -> Draft {
        Draft {
            kind: Kind::Pipeline,
            version: VersionName::new(version).unwrap(),
            source: source.to_owned(),
            labels: BTreeMap::from([("team".to_owned(), "desk".to_owned())]),
            author: Actor::new("ana").unwrap(),
        }
    }

    fn simple(version: &str) -> String {
        let line = format!("version: {version}");
        PipelineSpec::simple_template().replace("version: simple-1", &line)
    }

    fn published(version: &str, source: &str) -> Artifact {
        match publish(None, None, draft(version, source), WallClock(5)).unwrap() {
            Published::New(artifact) => artifact,
            Published::Already(_) => unreachable!("nothing was there"),
        }
    }

    /// F-102: what provider settings would say in vain is refused by name.
    #[test]
    fn provider_settings_say_nothing_that_nobody_follows() {
        let publish_as = |kind, more: &str| {
            let source = format!(
                "schema: rspp.policy.bundle.v1\npolicy_resolution_snapshot: policy/desk-1\n{more}"
            );
            let draft = Draft {
                kind,
                ..draft("desk-1", &source)
            };
            publish(None, None, draft, WallClock(0))
        };
        let caps = "providers: {caps: {turn: {tts_characters: 9}, action: refuse}}\n";
        let alone = format!("allowed_adaptive_actions: []\n{caps}");
        let more = format!(
            "allowed_adaptive_actions: [provider_switch]\nnode_execution_policies: {{llm: {{concurrency_limit: 2}}}}\n{caps}"
        );
        assert!(publish_as(Kind::Providers, &alone).is_ok());
        let policy = publish_as(Kind::Policy, &more);
        assert!(policy.is_ok(), "{policy:?}");
        let refused = publish_as(Kind::Providers, &more).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "provider settings decide `providers` alone, and `desk-1` says `allowed_adaptive_actions`, \
             `node_execution_policies`: publish that as a policy, or leave it out"
        );
    }

    /// F-015, F-092: v1 stays what it is, v2 stands beside it; publishing the same again is no change.
    #[test]
    fn a_published_version_never_changes() {
        let v1 = published("desk-1", &simple("desk-1"));
        assert_eq!((v1.author.as_str(), v1.created_at), ("ana", WallClock(5)));
        assert_eq!(v1.labels["team"], "desk");
        let changed = simple("desk-1").replace("barge_in: true", "barge_in: false");
        let refused = publish(Some(&v1), None, draft("desk-1", &changed), WallClock(6));
        assert!(
            matches!(refused, Err(PublishError::Immutable { .. })),
            "{refused:?}"
        );
        // Comments are no change, and are kept as they were first published.
        let commented = format!("# a word\n{}", simple("desk-1"));
        let again = publish(Some(&v1), None, draft("desk-1", &commented), WallClock(6));
        assert_eq!(again, Ok(Published::Already(v1.clone())));
        let v2 = publish(
            None,
            Some(&v1),
            draft("desk-2", &simple("desk-2")),
            WallClock(7),
        );
        assert!(matches!(v2, Ok(Published::New(_))));
    }

    #[test]
    fn a_spec_is_published_under_its_own_name_and_only_if_it_is_right() {
        let other = publish(None, None, draft("desk-2", &simple("desk-1")), WallClock(0));
        assert!(matches!(other, Err(PublishError::OtherVersion { .. })));
        let wrong = publish(None, None, draft("desk-1", "nodes: 3"), WallClock(0));
        assert!(matches!(wrong, Err(PublishError::Invalid(_))));
        let giant = "#".repeat(MAX_SOURCE_BYTES + 1);
        let giant = publish(None, None, draft("desk-1", &giant), WallClock(0));
        assert!(matches!(giant, Err(PublishError::TooLarge { .. })));
    }

    /// F-028, NF-010: a break is refused with its details, and passes with the next major version.
    #[test]
    fn a_break_needs_a_new_major_version() {
        let v1 = published("desk-1.0", &simple("desk-1.0"));
        let without_text = |version: &str| {
            let mut spec = PipelineSpec::simple();
            spec.version = version.parse().unwrap();
            spec.edges.retain(|edge| {
                let ends = (edge.from.as_str(), edge.to.as_str());
                ends.1 != rspp_proto::spec::EGRESS
                    || edge.carries != rspp_proto::spec::PortType::Text
            });
            serde_json::to_string(&spec).unwrap()
        };
        let minor = draft("desk-1.1", &without_text("desk-1.1"));
        let refused = publish(None, Some(&v1), minor, WallClock(0)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "`desk-1.1` breaks what uses `desk-1.0`; publish it as `desk-2`, or undo: \
             it gives clients no text any more"
        );
        let major = publish(
            None,
            Some(&v1),
            draft("desk-2", &without_text("desk-2")),
            WallClock(0),
        );
        assert!(matches!(major, Ok(Published::New(_))), "{major:?}");
    }

    #[test]
    fn a_version_follows_the_newest_below_it_in_its_line() {
        let all: Vec<_> = ["desk-1", "desk-1.2", "desk-3", "shop-2"]
            .map(|version| published(version, &simple(version)))
            .into();
        let of = |version: &str| {
            let version = VersionName::new(version).unwrap();
            predecessor(&all, &version).map(|found| found.version.as_str().to_owned())
        };
        assert_eq!(of("desk-2").as_deref(), Some("desk-1.2"));
        assert_eq!(of("desk-1.10").as_deref(), Some("desk-1.2"));
        assert_eq!(of("desk-10").as_deref(), Some("desk-3"));
        assert_eq!(of("desk-1"), None);
        assert_eq!(of("new-1"), None);
    }
}
