//! Published versions of whatever kind: publish, list, get, diff.

use std::{collections::BTreeMap, fmt::Write as _, fs, io::Read as _, path::Path};

use rspp_controlplane_api::{Client, wire};
use serde_json::json;
use similar::{Algorithm, DiffTag};

use super::{Remote, json_of, pages, refused, request_id, shape::Shape as _, table, when};
use crate::problem::Problem;

/// `key=value`, as labels are given.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("write it as key=value".to_owned()),
    }
}

/// A file's text; `-` is standard input.
pub(crate) fn read(file: &Path) -> Result<String, Problem> {
    let read = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(file)
    };
    read.map_err(|error| Problem::input(format!("cannot read {}: {error}", file.display())))
}

/// What is to be published.
pub(crate) struct Draft {
    pub(crate) kind: wire::Kind,
    pub(crate) version: String,
    pub(crate) source: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) dry_run: bool,
}

pub(crate) async fn publish(remote: &Remote, client: Client, draft: Draft) -> Result<(), Problem> {
    let request = wire::PublishRequest {
        kind: draft.kind.into(),
        version: draft.version,
        source: draft.source,
        labels: draft.labels.into_iter().collect(),
        request_id: request_id(),
        dry_run: draft.dry_run,
    };
    let answer = client.publish(request).await.map_err(refused)?;
    let artifact = answer.artifact.unwrap_or_default();
    let what = match (draft.dry_run, answer.already) {
        (true, _) => "would be published",
        (false, true) => "was published before, the very same",
        (false, false) => "published",
    };
    remote.print(
        || format!("{} {what}\nhash {}", artifact.version, artifact.hash),
        || {
            let mut value = artifact.shape();
            value["already"] = json!(answer.already);
            value["dry_run"] = json!(draft.dry_run);
            value
        },
    )
}

pub(crate) async fn list(
    remote: &Remote,
    client: Client,
    kind: wire::Kind,
    line: &str,
    labels: BTreeMap<String, String>,
) -> Result<(), Problem> {
    let found = pages(async |page_token| {
        let request = wire::ListArtifactsRequest {
            kind: kind.into(),
            line: line.to_owned(),
            labels: labels.clone(),
            page_token,
            ..wire::ListArtifactsRequest::default()
        };
        let page = client.list_artifacts(request).await?;
        Ok((page.artifacts, page.next_page_token))
    })
    .await?;
    remote.print(
        || {
            let rows: Vec<_> = found
                .iter()
                .map(|it| {
                    let labels = it
                        .labels
                        .iter()
                        .map(|(key, value)| format!("{key}={value}"));
                    [
                        it.version.clone(),
                        when(it.created_at_ms),
                        it.author.clone(),
                        it.hash.chars().take(12).collect(),
                        labels.collect::<Vec<_>>().join(","),
                    ]
                })
                .collect();
            table(["version", "published", "author", "hash", "labels"], &rows)
        },
        || json_of(&found),
    )
}

async fn fetch(
    client: &Client,
    kind: wire::Kind,
    version: &str,
) -> Result<wire::Artifact, Problem> {
    let request = wire::GetArtifactRequest {
        kind: kind.into(),
        version: version.to_owned(),
    };
    client.get_artifact(request).await.map_err(refused)
}

/// Prints the text as it was published.
pub(crate) async fn get(
    remote: &Remote,
    client: Client,
    kind: wire::Kind,
    version: &str,
) -> Result<(), Problem> {
    let artifact = fetch(&client, kind, version).await?;
    remote.print(|| artifact.source.clone(), || artifact.shape())
}

/// Prints what changed, line by line.
pub(crate) async fn diff(
    remote: &Remote,
    client: Client,
    kind: wire::Kind,
    old: &str,
    new: &str,
) -> Result<(), Problem> {
    let (before, after) = (
        fetch(&client, kind, old).await?,
        fetch(&client, kind, new).await?,
    );
    changed(remote, (old, &before.source), (new, &after.source))
}

/// Prints what changed from one text to another, each with its name.
pub(crate) fn changed(
    remote: &Remote,
    (old_name, old): (&str, &str),
    (new_name, new): (&str, &str),
) -> Result<(), Problem> {
    let text = unified(old_name, old, new_name, new);
    remote.print(
        || text.clone(),
        || json!({ "old": old_name, "new": new_name, "same": old == new, "diff": text }),
    )
}

/// Lines around a change that are shown with it.
const AROUND: usize = 3;

/// What changed from one text to another, line by line.
fn unified(old_name: &str, old: &str, new_name: &str, new: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let ops = similar::capture_diff_slices(Algorithm::Myers, &old, &new);
    let mut text = format!("--- {old_name}\n+++ {new_name}\n");
    for group in similar::group_diff_ops(ops, AROUND) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            continue;
        };
        let span = |from: usize, to: usize| format!("{},{}", from + 1, to - from);
        let before = span(first.old_range().start, last.old_range().end);
        let after = span(first.new_range().start, last.new_range().end);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "@@ -{before} +{after} @@");
        for op in group {
            let mut add = |mark: char, lines: &[&str]| {
                for line in lines {
                    text.push(mark);
                    text += line;
                    text.push('\n');
                }
            };
            match op.tag() {
                DiffTag::Equal => add(' ', &old[op.old_range()]),
                DiffTag::Delete => add('-', &old[op.old_range()]),
                DiffTag::Insert => add('+', &new[op.new_range()]),
                DiffTag::Replace => {
                    add('-', &old[op.old_range()]);
                    add('+', &new[op.new_range()]);
                }
            }
        }
    }
    text
}
