//! `rspp timeline keys`: what archives are sealed with, and what is sealed with it.

use std::{collections::BTreeMap, path::PathBuf, time::SystemTime};

use clap::Args;
use rspp_archive::{HEAD_BYTES, KeyDuty, KeyState, Place, sealed_under};
use rspp_proto::WallClock;
use rspp_timeline::export::{Patrol, Stored};
use serde_json::json;

use super::archive::{archive, runtime};
use crate::{call::export::ring, control::table, problem::Problem, terminal};

/// See the keys that archives are sealed with, and how much of an archive is sealed with each.
///
/// A file of keys names them and holds none. The newest whose time has come seals, the others open what they have
/// sealed. To rotate, put the next one down everywhere with the day from which on it seals; to retire one, wait
/// until nothing is sealed with it. The file is read anew when it changes, by programs that run too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  rspp timeline keys keys.yaml                       Which key seals, and how old it is
  rspp timeline keys keys.yaml s3://acme-calls/eu    What is sealed with each; 0 may be retired

A file of keys:
  max_age: 90d                                       # older ones seal nothing more; without, none is too old
  keys:
    - { id: k1, secret: file://CALLS_K1, from: 2026-09-01 }
    - { id: k2, secret: file://CALLS_K2, from: 2026-11-20 }

`file://NAME` is a file beside it (or in `folder`), `env://NAME` a variable; each holds 64 hexadecimal digits,
as `openssl rand -hex 32` prints them.

Exit code 1 if a key is missing, or none seals.")]
pub(crate) struct Keys {
    /// The file of keys
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// An archive: a directory, `s3://bucket/prefix` or `http://host/bucket/prefix`
    #[arg(value_name = "PLACE")]
    place: Option<Place>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Objects by the key that they are sealed under; those in the clear under none.
type Counts = BTreeMap<Option<String>, u64>;

impl Keys {
    pub(crate) fn run(self) -> Result<(), Problem> {
        let states = ring(&self.file)?.states();
        let counts = self.place.as_ref().map(counted).transpose()?;
        let now = WallClock::from(SystemTime::now());
        let mut rows: Vec<_> = states
            .iter()
            .map(|state| Row {
                key: Some(state.kid.clone()),
                state: Some(state),
                objects: counts.as_ref().map(|counts| of(counts, Some(&state.kid))),
            })
            .collect();
        let known = |kid: &Option<String>| states.iter().any(|it| Some(&it.kid) == kid.as_ref());
        for (kid, objects) in counts.iter().flatten().filter(|(kid, _)| !known(kid)) {
            rows.push(Row {
                key: kid.clone(),
                state: None,
                objects: Some(*objects),
            });
        }
        if self.json {
            let rows: Vec<_> = rows.iter().map(|row| row.json(now)).collect();
            terminal::print_json(&rows)?;
        } else {
            let lines: Vec<_> = rows.iter().map(|row| row.line(now)).collect();
            let text = table(["key", "from", "age", "state", "objects"], &lines);
            terminal::print(text.trim_end())?;
        }
        let seals = states.iter().any(|it| it.duty == KeyDuty::Seals);
        let all_there = states.iter().all(|it| it.fault.is_none());
        let all_known = rows
            .iter()
            .all(|row| row.state.is_some() || row.key.is_none());
        for state in &states {
            if let Some(fault) = &state.fault {
                terminal::note(fault);
            }
        }
        if !seals {
            terminal::note("no key seals: what is to be exported waits in the spool");
        }
        if seals && all_there && all_known {
            Ok(())
        } else {
            Err(Problem::Reported)
        }
    }
}

struct Row<'a> {
    /// `None` for what is in the clear.
    key: Option<String>,
    state: Option<&'a KeyState>,
    objects: Option<u64>,
}

impl Row<'_> {
    fn line(&self, now: WallClock) -> [String; 5] {
        let dash = || "-".to_owned();
        let state = match (&self.key, self.state) {
            (None, _) => "in the clear".to_owned(),
            (Some(_), None) => "missing".to_owned(),
            (Some(_), Some(state)) => state.duty.as_str().to_owned(),
        };
        [
            self.key.clone().unwrap_or_else(dash),
            self.state.map_or_else(dash, |it| it.from.to_utc()),
            self.age_ms(now)
                .map_or_else(dash, |age| format!("{} d", age / 86_400_000)),
            state,
            self.objects.map_or_else(dash, |it| it.to_string()),
        ]
    }

    fn json(&self, now: WallClock) -> serde_json::Value {
        json!({
            "key": self.key,
            "from": self.state.map(|it| it.from.to_utc()),
            "age_ms": self.age_ms(now),
            "state": self.state.map(|it| it.duty.as_str()),
            "fault": self.state.and_then(|it| it.fault.as_deref()),
            "objects": self.objects,
        })
    }

    fn age_ms(&self, now: WallClock) -> Option<u64> {
        let from = self.state?.from;
        (from <= now).then(|| now.0 - from.0)
    }
}

fn of(counts: &Counts, kid: Option<&str>) -> u64 {
    let found = counts.iter().find(|(it, _)| it.as_deref() == kid);
    found.map_or(0, |(_, count)| *count)
}

/// What of an archive is sealed with what, by the objects' first bytes.
fn counted(place: &Place) -> Result<Counts, Problem> {
    let archive = archive(place)?;
    runtime()?.block_on(async {
        let (mut patrol, mut counts) = (Patrol::default(), Counts::new());
        loop {
            let look = patrol.look(&archive).await.map_err(Problem::failure)?;
            let objects = look
                .recordings
                .iter()
                .flat_map(|Stored { objects, .. }| objects);
            for key in objects {
                let beginning = archive.beginning(key, HEAD_BYTES).await;
                // It may have gone meanwhile.
                let Some(beginning) = beginning.map_err(Problem::failure)? else {
                    continue;
                };
                let kid = sealed_under(&beginning)
                    .map_err(|error| Problem::failure(format!("{key}: it {error}")))?;
                *counts.entry(kid).or_default() += 1;
            }
            if look.is_last {
                return Ok(counts);
            }
        }
    })
}
