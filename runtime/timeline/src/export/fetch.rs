//! Puts a recording together again from what an archive has of it.

use std::collections::BTreeMap;

use rspp_proto::Hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::archive::{Archive, ArchiveFault, Kept};

/// The object that is there once all others are.
pub(super) const MANIFEST: &str = "manifest.json";
const SEGMENT: &str = "part";

/// What the archive is told last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// Under which key a segment is, by where in the file it begins: the same bytes go to the same place again.
pub(super) fn segment_key(recording: &str, from: u64) -> String {
    format!("{recording}/{from:015}.{SEGMENT}")
}

/// A recording, as an archive has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Archived {
    /// What its keys begin with: tenant, session, when and under which epoch it was recorded.
    pub recording: String,
    /// Its segments.
    pub segments: usize,
    /// How long they are together.
    pub bytes: u64,
    /// Whether that is all of it. Until then the export is behind.
    pub is_complete: bool,
}

/// The bytes of a recording.
#[derive(Clone, PartialEq, Eq)]
pub struct Fetched {
    /// A timeline file, or the beginning of one.
    pub bytes: Vec<u8>,
    /// Whether that is all of it. Until then the export is behind.
    pub is_complete: bool,
}

/// Why a recording cannot be had.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The archive did not do what it was asked for.
    #[error(transparent)]
    Archive(#[from] ArchiveFault),
    /// It has nothing under that name.
    #[error("there is no recording `{0}`")]
    Unknown(String),
    /// It says that it has all, and does not.
    #[error("{recording}: bytes are missing at {at}")]
    Missing {
        /// The recording.
        recording: String,
        /// Where.
        at: u64,
    },
    /// What it has is not what it was given.
    #[error("{recording}: does not match its checksum")]
    Corrupt {
        /// The recording.
        recording: String,
    },
}

/// The recordings of an archive whose keys begin with these parts: all, of a tenant, or of one session.
pub async fn list(archive: &dyn Archive, under: &str) -> Result<Vec<Archived>, ArchiveFault> {
    let mut found: BTreeMap<String, Archived> = BTreeMap::new();
    for Kept { key, bytes } in archive.list(under).await? {
        let Some((recording, object)) = key.rsplit_once('/') else {
            continue;
        };
        let is_manifest = object == MANIFEST;
        if !is_manifest && segment_start(object).is_none() {
            continue;
        }
        let entry = found.entry(recording.to_owned());
        let archived = entry.or_insert_with(|| Archived {
            recording: recording.to_owned(),
            segments: 0,
            bytes: 0,
            is_complete: false,
        });
        if is_manifest {
            archived.is_complete = true;
        } else {
            archived.segments += 1;
            archived.bytes += bytes;
        }
    }
    Ok(found.into_values().collect())
}

/// A recording; as far as the archive has it without a gap, if its export is behind.
pub async fn fetch(archive: &dyn Archive, recording: &str) -> Result<Fetched, FetchError> {
    let manifest = archive.get(&format!("{recording}/{MANIFEST}")).await?;
    let corrupt = || FetchError::Corrupt {
        recording: recording.to_owned(),
    };
    let manifest: Option<Manifest> = match manifest {
        Some(bytes) => Some(serde_json::from_slice(&bytes).map_err(|_| corrupt())?),
        None => None,
    };
    let mut starts: Vec<u64> = archive
        .list(recording)
        .await?
        .iter()
        .filter_map(|kept| segment_start(kept.key.rsplit('/').next()?))
        .collect();
    if starts.is_empty() {
        return Err(FetchError::Unknown(recording.to_owned()));
    }
    starts.sort_unstable();
    let mut bytes: Vec<u8> = Vec::new();
    for start in starts {
        let at = bytes.len() as u64;
        if start > at {
            break;
        }
        let segment = archive.get(&segment_key(recording, start)).await?;
        let segment = segment.unwrap_or_default();
        // After a power cut a longer one may have been sent from the same place on: the same bytes, twice.
        let known = (at - start) as usize;
        bytes.extend_from_slice(segment.get(known..).unwrap_or_default());
    }
    if let Some(manifest) = &manifest {
        if (bytes.len() as u64) < manifest.bytes {
            return Err(FetchError::Missing {
                recording: recording.to_owned(),
                at: bytes.len() as u64,
            });
        }
        bytes.truncate(manifest.bytes as usize);
        if Hex(&Sha256::digest(&bytes)).to_string() != manifest.sha256 {
            return Err(corrupt());
        }
    }
    Ok(Fetched {
        bytes,
        is_complete: manifest.is_some(),
    })
}

pub(super) fn segment_start(object: &str) -> Option<u64> {
    object.strip_suffix(&format!(".{SEGMENT}"))?.parse().ok()
}
