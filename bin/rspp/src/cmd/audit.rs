//! `rspp audit`: who did what.

use std::{fs, path::PathBuf, time::SystemTime};

use clap::{Args, Subcommand};
use futures::StreamExt as _;
use rspp_controlplane::{
    audit,
    token::{KeyId, Keyring, PublicKey},
};
use rspp_controlplane_api::{Client, wire};
use rspp_proto::{WallClock, parse_age};
use serde_json::json;

use crate::{
    control::{Remote, artifacts, json_of, refused, table, when},
    problem::Problem,
    terminal,
};

/// See who did what, and prove that nobody altered it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp audit list --actor ana --outcome denied   What ana tried and may not
  rspp audit list --since 2h                     What was done in the last two hours, the newest first
  rspp audit list --since '2026-11-01 08:00:00' --until '2026-11-01 09:00:00'
                                                 What was done in that hour, in UTC
  rspp audit list --after 1200                   What came since entry 1200, the oldest first
  rspp audit verify                              Follow the chain of hashes to its end
  rspp audit export --out audit.jsonl            Everything, its end signed
  rspp audit verify audit.jsonl                  Check such a file against the keys in use")]
pub(crate) struct Audit {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List entries, the newest first
    List {
        /// Only after this number, the oldest first
        #[arg(long, value_name = "NR", conflicts_with = "before")]
        after: Option<u64>,
        /// Only before this number
        #[arg(
            long,
            default_value_t = 0,
            hide_default_value = true,
            value_name = "NR"
        )]
        before: u64,
        /// Only what was done since then: so long ago, e.g. 2h, 30d, or a time as the list shows it
        #[arg(long, value_name = "TIME", value_parser = moment)]
        since: Option<WallClock>,
        /// Only what was done until then
        #[arg(long, value_name = "TIME", value_parser = moment)]
        until: Option<WallClock>,
        /// Most entries
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Only by this actor
        #[arg(long, default_value = "", hide_default_value = true)]
        actor: String,
        /// Only of this operation, e.g. `publish`
        #[arg(long, default_value = "", hide_default_value = true)]
        operation: String,
        /// Only about this version, session or runtime
        #[arg(long, default_value = "", hide_default_value = true)]
        subject: String,
        /// Only of this tenant
        #[arg(long, default_value = "", hide_default_value = true)]
        tenant: String,
        /// Only with this outcome
        #[arg(long, value_parser = audit::Outcome::ALL.map(audit::Outcome::as_str))]
        outcome: Option<String>,
    },
    /// Check that no entry was altered, removed or inserted
    Verify {
        /// An export; without, what the control plane keeps
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Write everything as JSON lines
    Export {
        /// Into this file instead of standard output
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

impl Audit {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let remote = &self.remote;
        match self.what {
            What::List {
                after,
                before,
                since,
                until,
                limit,
                actor,
                operation,
                subject,
                tenant,
                outcome,
            } => {
                let request = wire::ListEntriesRequest {
                    newest_first: after.is_none(),
                    after: after.unwrap_or_default(),
                    before,
                    since_ms: since.map_or(0, |it| it.0),
                    until_ms: until.map_or(0, |it| it.0),
                    page_size: limit,
                    actor,
                    operation,
                    subject,
                    tenant,
                    outcome: outcome.unwrap_or_default(),
                };
                remote.run(|client| list(remote, client, request))
            }
            What::Verify { file: None } => remote.run(|client| verify(remote, client)),
            What::Verify { file: Some(file) } => {
                let text = artifacts::read(&file)?;
                remote.run(|client| verify_file(remote, client, text))
            }
            What::Export { out } => remote.run(|client| export(client, out)),
        }
    }
}

async fn list(
    remote: &Remote,
    client: Client,
    request: wire::ListEntriesRequest,
) -> Result<(), Problem> {
    let page = client.list_entries(request).await.map_err(refused)?;
    remote.print(
        || {
            let rows: Vec<_> = page
                .entries
                .iter()
                .map(|it| {
                    let actor = if it.actor.is_empty() { "-" } else { &it.actor };
                    [
                        it.sequence.to_string(),
                        when(it.at_ms),
                        actor.to_owned(),
                        it.operation.clone(),
                        it.subject.clone(),
                        it.outcome.clone(),
                    ]
                })
                .collect();
            table(["nr", "at", "who", "what", "to", "outcome"], &rows)
        },
        || {
            json!({
                "entries": json_of(&page.entries),
                "next_after": page.next_after,
                "next_before": page.next_before,
            })
        },
    )?;
    for (flag, next) in [("after", page.next_after), ("before", page.next_before)] {
        if next > 0 && !remote.json {
            terminal::note(format!("there are more: --{flag} {next}"));
        }
    }
    Ok(())
}

/// A moment: so long ago, or date and time in UTC.
fn moment(text: &str) -> Result<WallClock, String> {
    let age = parse_age(text).and_then(|age| u64::try_from(age.as_millis()).ok());
    if let Some(age) = age {
        let now: WallClock = SystemTime::now().into();
        return Ok(WallClock(now.0.saturating_sub(age)));
    }
    let moment = humantime::parse_rfc3339_weak(text).map(WallClock::from);
    moment
        .map_err(|_| "write it as 30d, 12h, 15m or 90s, or as 2026-11-01 08:00:00 (UTC)".to_owned())
}

fn verdict(remote: &Remote, entries: u64, broken: &str) -> Result<(), Problem> {
    remote.print(
        || match broken {
            "" => format!("{entries} entries, none altered"),
            broken => format!("broken: {broken}"),
        },
        || json!({ "entries": entries, "broken": broken }),
    )?;
    if broken.is_empty() {
        Ok(())
    } else {
        Err(Problem::Reported)
    }
}

async fn verify(remote: &Remote, client: Client) -> Result<(), Problem> {
    let found = client
        .verify_trail(wire::VerifyTrailRequest {})
        .await
        .map_err(refused)?;
    verdict(remote, found.entries, &found.broken)
}

async fn verify_file(remote: &Remote, client: Client, text: String) -> Result<(), Problem> {
    let answer = client
        .list_keys(wire::ListKeysRequest {})
        .await
        .map_err(refused)?;
    let mut ring = Keyring::default();
    for key in answer.keys {
        let public: Result<[u8; 32], _> = key.public.as_ref().try_into();
        if let (Ok(id), Ok(public)) = (KeyId::new(key.kid), public) {
            let added = ring.add(id, PublicKey::new(public), WallClock(key.added_ms));
            added.map_err(Problem::failure)?;
        }
    }
    match audit::verify_export(&text, &ring) {
        Ok(entries) => verdict(remote, entries, ""),
        Err(broken) => verdict(remote, 0, &broken.to_string()),
    }
}

async fn export(client: Client, out: Option<PathBuf>) -> Result<(), Problem> {
    let chunks = client.export_trail().await.map_err(refused)?;
    let mut chunks = std::pin::pin!(chunks);
    let mut file: Box<dyn std::io::Write> = match &out {
        Some(path) => {
            let file = fs::File::create(path);
            Box::new(file.map_err(|error| cannot_write(path, &error))?)
        }
        None => Box::new(std::io::stdout().lock()),
    };
    let mut lines = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(refused)?;
        lines += chunk.lines().count();
        file.write_all(chunk.as_bytes())?;
    }
    file.flush()?;
    if let Some(path) = out {
        // The last line is the seal.
        let entries = lines.saturating_sub(1);
        terminal::note(format!("{entries} entries in {}", path.display()));
    }
    Ok(())
}

fn cannot_write(path: &std::path::Path, error: &std::io::Error) -> Problem {
    Problem::input(format!("cannot write {}: {error}", path.display()))
}
