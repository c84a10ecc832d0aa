//! `rspp timeline summary`: what sessions came to, for their tenant.

use std::{
    io::{Cursor, Read, Seek},
    path::PathBuf,
};

use clap::Args;
use rspp_archive::Place;
use rspp_proto::TenantId;
use rspp_timeline::{
    Account, Entry, Prices, Timeline,
    export::{fetch, list},
};

use super::archive::{runtime, sealed};
use crate::{call::export::KeyOptions, problem::Problem, specs, terminal};

/// Sum up sessions for the tenant that is accounted for them: turns, tokens, audio, characters, cost.
///
/// Answers for one tenant and refuses every recording of another. With a list of prices, by provider, it
/// estimates what the provider calls cost.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp timeline summary call.rspp --tenant acme                      One session
  rspp timeline summary --archive s3://calls/eu --tenant acme --json   All that an archive has of a tenant
  rspp timeline summary call.rspp --tenant acme --prices prices.yaml

A list of prices: { llm-large: { million_tokens_read: 2.5, million_tokens_written: 10 },
                    ears: { audio_minute: 0.006 }, mouth: { million_characters: 15 } }

Exit code 2 if a recording is another tenant's.")]
pub(crate) struct Summary {
    /// Recordings
    #[arg(value_name = "FILE", required_unless_present = "archive")]
    files: Vec<PathBuf>,
    /// All that an archive has of the tenant: a directory, `s3://bucket/prefix` or `http://host/bucket/prefix`
    #[arg(long, value_name = "PLACE", conflicts_with = "files")]
    archive: Option<Place>,
    /// Who asks
    #[arg(long, value_name = "TENANT")]
    tenant: TenantId,
    #[command(flatten)]
    keys: KeyOptions,
    /// What providers charge
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Print JSON, an object a line
    #[arg(long)]
    json: bool,
}

impl Summary {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let prices = self.prices()?;
        for (name, entries) in self.recordings()? {
            let account = Account::of(&entries, &self.tenant, prices.as_ref())
                .map_err(|error| Problem::input(format!("{name}: {error}")))?;
            if self.json {
                let line = serde_json::to_string(&account).map_err(Problem::failure)?;
                terminal::print(line)?;
            } else {
                terminal::print(account.to_string())?;
            }
        }
        Ok(())
    }

    fn prices(&self) -> Result<Option<Prices>, Problem> {
        let Some(path) = &self.prices else {
            return Ok(None);
        };
        let name = path.display();
        let text = specs::read(path).map_err(|refused| refused.into_problem(""))?;
        let prices = rspp_service::yaml::read(&text)
            .map_err(|error| Problem::input(format!("{name}: {error}")))?;
        Ok(Some(prices))
    }

    fn recordings(&self) -> Result<Vec<(String, Vec<Entry>)>, Problem> {
        if let Some(place) = &self.archive {
            return archived(place, &self.tenant, &self.keys);
        }
        let read = |path: &PathBuf| {
            let name = path.display().to_string();
            let timeline =
                Timeline::open(path).map_err(|error| Problem::input(format!("{name}: {error}")))?;
            Ok((name.clone(), entries(&name, timeline)?))
        };
        self.files.iter().map(read).collect()
    }
}

fn entries<R: Read + Seek>(name: &str, mut timeline: Timeline<R>) -> Result<Vec<Entry>, Problem> {
    timeline
        .entries()
        .map_err(|error| Problem::failure(format!("{name}: {error}")))
}

/// What an archive has under the tenant's name; the recordings themselves have the last word.
fn archived(
    place: &Place,
    tenant: &TenantId,
    keys: &KeyOptions,
) -> Result<Vec<(String, Vec<Entry>)>, Problem> {
    let archive = sealed(place, keys)?;
    runtime()?.block_on(async {
        let found = list(&archive, tenant.as_str())
            .await
            .map_err(Problem::failure)?;
        let mut recordings = Vec::new();
        for archived in found {
            let name = archived.recording;
            let fetched = fetch(&archive, &name).await.map_err(Problem::failure)?;
            if !fetched.is_complete {
                terminal::note(format!(
                    "{name}: the archive is behind; this is its beginning"
                ));
            }
            let timeline = Timeline::read(Cursor::new(fetched.bytes))
                .map_err(|error| Problem::input(format!("{name}: {error}")))?;
            recordings.push((name.clone(), entries(&name, timeline)?));
        }
        Ok(recordings)
    })
}
