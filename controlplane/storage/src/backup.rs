//! Everything that is stored, as a file, and back (F-166, NF-031).
//!
//! JSON lines: what it is, then each record by key, then how many there were and their hash. It shows
//! one moment. Records that hang on leases are left out: they say who is alive, and that has to be
//! found out anew.

use std::io::{BufRead, Write};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rspp_controlplane::{
    authority, keys,
    store::{Compare, Key, MAX_TXN_BYTES, MAX_TXN_OPS, Query, Revision, Store, StoreError, Txn},
};
use rspp_proto::Hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// What backups are written in.
pub const SCHEMA: &str = "rspp.backup.v1";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Begin {
        schema: String,
        layout: String,
        revision: u64,
        at_ms: u64,
    },
    Record {
        key: String,
        value: Value,
    },
    End {
        records: u64,
        sha256: String,
    },
}

/// Text where it is text, so that people can read and search it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Value {
    Text(String),
    Base64(String),
}

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How many records.
    pub records: u64,
    /// What it shows the state of.
    pub revision: Revision,
    /// When that was, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// Why there is no backup, or nothing was restored from it.
#[derive(Debug, Error)]
pub enum BackupError {
    /// The store does not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file cannot be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The file is no backup, or not all of it.
    #[error("line {line}: {what}; nothing was restored: name a whole file of `rspp backup`")]
    Malformed {
        /// Its number, from 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// Something is there already.
    #[error("the store is not empty; start a control plane on a new store and restore into that")]
    NotEmpty,
}

/// Writes everything that is there now.
pub async fn write(
    store: &dyn Store,
    now_ms: u64,
    out: &mut (dyn Write + Send),
) -> Result<Summary, BackupError> {
    let mut query = Query::first(keys::all());
    let mut hash = Sha256::new();
    let mut records = 0;
    loop {
        let page = store.list(query.clone()).await?;
        if query.at.is_none() {
            let begin = Line::Begin {
                schema: SCHEMA.to_owned(),
                layout: keys::LAYOUT.to_owned(),
                revision: page.revision.0,
                at_ms: now_ms,
            };
            put_line(out, &begin, None)?;
        }
        query.at = Some(page.revision);
        query.after = page.entries.last().map(|entry| entry.key.clone());
        for entry in page.entries.into_iter().filter(|it| it.lease.is_none()) {
            let value = match String::from_utf8(entry.value.to_vec()) {
                Ok(text) => Value::Text(text),
                Err(error) => Value::Base64(STANDARD.encode(error.as_bytes())),
            };
            let key = entry.key.as_str().to_owned();
            put_line(out, &Line::Record { key, value }, Some(&mut hash))?;
            records += 1;
        }
        if !page.more {
            let sha256 = Hex(&hash.finalize()).to_string();
            put_line(out, &Line::End { records, sha256 }, None)?;
            out.flush()?;
            return Ok(Summary {
                records,
                revision: page.revision,
                at_ms: now_ms,
            });
        }
    }
}

fn put_line(
    out: &mut (dyn Write + Send),
    line: &Line,
    hash: Option<&mut Sha256>,
) -> std::io::Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    if let Some(hash) = hash {
        hash.update(text.as_bytes());
    }
    out.write_all(text.as_bytes())
}

/// What a backup holds, by key.
pub type Records = Vec<(Key, Vec<u8>)>;

/// Reads a backup to its end and checks it whole, before anything is written.
pub fn read(input: &mut dyn BufRead) -> Result<(Summary, Records), BackupError> {
    let mut found: Option<Summary> = None;
    let mut records = Records::new();
    let mut hash = Sha256::new();
    let mut number = 0;
    let mut text = String::new();
    loop {
        text.clear();
        number += 1;
        let malformed = |what: &str| BackupError::Malformed {
            line: number,
            what: what.to_owned(),
        };
        if input.read_line(&mut text)? == 0 {
            return Err(malformed("the backup is cut short"));
        }
        let line: Line =
            serde_json::from_str(&text).map_err(|error| malformed(&error.to_string()))?;
        match (line, &mut found) {
            (
                Line::Begin {
                    schema,
                    layout,
                    revision,
                    at_ms,
                },
                None,
            ) => {
                if schema != SCHEMA || layout != keys::LAYOUT {
                    let what = format!("{schema} of {layout}, not {SCHEMA} of {}", keys::LAYOUT);
                    return Err(malformed(&what));
                }
                found = Some(Summary {
                    records: 0,
                    revision: Revision(revision),
                    at_ms,
                });
            }
            (Line::Record { key, value }, Some(summary)) => {
                hash.update(text.as_bytes());
                let value = match value {
                    Value::Text(text) => text.into_bytes(),
                    Value::Base64(text) => {
                        let decoded = STANDARD.decode(text);
                        decoded.map_err(|error| malformed(&error.to_string()))?
                    }
                };
                records.push((Key::stored(key), value));
                summary.records += 1;
            }
            (
                Line::End {
                    records: count,
                    sha256,
                },
                Some(summary),
            ) => {
                if count != summary.records || sha256 != Hex(&hash.finalize()).to_string() {
                    return Err(malformed(
                        "the backup's records are not those that were written",
                    ));
                }
                return Ok((*summary, records));
            }
            (Line::Begin { .. }, Some(_)) => return Err(malformed("it begins twice")),
            (Line::Record { .. } | Line::End { .. }, None) => {
                return Err(malformed("it does not begin with what it is"));
            }
        }
    }
}

/// Puts a backup into an empty store.
///
/// What happened after the backup is lost, and among it may have been leases. So every session comes
/// back without a holder and with an epoch far above any that can have been granted since.
pub async fn restore(
    store: &dyn Store,
    input: &mut (dyn BufRead + Send),
) -> Result<Summary, BackupError> {
    let (summary, records) = read(input)?;
    put(store, records).await?;
    Ok(summary)
}

/// Puts what was [read] into an empty store, as [`restore`] does.
pub async fn put(store: &dyn Store, records: Records) -> Result<(), BackupError> {
    let first = Query {
        limit: 1,
        ..Query::first(keys::all())
    };
    if !store.list(first).await?.entries.is_empty() {
        return Err(BackupError::NotEmpty);
    }
    let placements = keys::placements();
    let mut txn = Txn::default();
    let mut bytes = 0;
    for (key, value) in records {
        let value = if placements.holds(&key) {
            let placement = serde_json::from_slice(&value);
            let placement = placement.map_err(|error| StoreError::Corrupt(error.to_string()))?;
            let after = authority::after_restore(placement);
            serde_json::to_vec(&after).map_err(|error| StoreError::Corrupt(error.to_string()))?
        } else {
            value
        };
        let size = key.as_str().len() + value.len();
        if txn.then.len() == MAX_TXN_OPS || bytes + size > MAX_TXN_BYTES {
            store.commit(std::mem::take(&mut txn)).await?;
            bytes = 0;
        }
        bytes += size;
        txn = txn.when(Compare::Absent(key.clone())).put(key, value);
    }
    if !txn.then.is_empty() {
        store.commit(txn).await?;
    }
    Ok(())
}
