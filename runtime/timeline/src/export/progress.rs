//! How far a file's export has come, remembered beside the file.
//!
//! Written anew for each segment, before it is sent and once it is acknowledged, by renaming. That is enough
//! to survive a process that is killed. A power cut may cost the newest word: then bytes are sent a second
//! time, under keys and with a content that do no harm.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use rspp_proto::{Epoch, Hex, TenantId};
use serde::{Deserialize, Serialize};

use super::agenda::Standing;
use crate::FileHeader;

/// How far a file's export has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// What the recording's keys begin with.
    pub(super) recording: String,
    /// Bytes that the archive has: the watermark.
    pub(super) acknowledged: u64,
    /// Where the segment ends that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sealed: Option<u64>,
    /// The archive has everything, and knows it.
    #[serde(default)]
    pub(super) is_complete: bool,
    /// The file stays once the archive has it.
    #[serde(default)]
    pub(super) keep: bool,
}

impl Progress {
    pub(super) fn new(recording: String, keep: bool) -> Self {
        Self {
            recording,
            acknowledged: 0,
            sealed: None,
            is_complete: false,
            keep,
        }
    }

    /// Where it is kept.
    pub(super) fn path(file: &Path) -> PathBuf {
        let mut path = OsString::from(file);
        path.push(".export");
        path.into()
    }

    /// The file that a path keeps the progress of; `None` if it is no such path.
    pub(super) fn file(path: &Path) -> Option<PathBuf> {
        let is_it = path.extension().is_some_and(|it| it == "export");
        is_it.then(|| path.with_extension(""))
    }

    pub(super) fn read(file: &Path) -> io::Result<Option<Self>> {
        match fs::read(Self::path(file)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn write(&self, file: &Path) -> io::Result<()> {
        // Of two at once, as one exporter follows another, none takes the other's draft away.
        static DRAFTS: AtomicU64 = AtomicU64::new(0);
        let path = Self::path(file);
        let mut draft = OsString::from(&path);
        draft.push(format!("~{}", DRAFTS.fetch_add(1, Relaxed)));
        fs::write(&draft, serde_json::to_vec(self)?)?;
        fs::rename(&draft, path)
    }

    pub(super) fn standing(&self, length: u64, is_closed: bool) -> Standing {
        let acknowledged = self.acknowledged.min(length);
        Standing {
            acknowledged,
            sealed: self
                .sealed
                .filter(|to| (acknowledged + 1..=length).contains(to)),
            length,
            is_closed,
        }
    }
}

/// What of a file the archive is known to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// Its first bytes, so many.
    pub bytes: u64,
    /// Whether the archive has all there will be. Until then it is behind, and will be even.
    pub is_complete: bool,
}

/// What of a file the archive is known to have; `None` if it is not exported.
pub fn exported(file: &Path) -> io::Result<Option<Exported>> {
    Ok(Progress::read(file)?.map(|progress| Exported {
        bytes: progress.acknowledged,
        is_complete: progress.is_complete,
    }))
}

/// What the keys of a recording begin with: whose it is, which conversation, and which part of it, since each
/// of its placements records for itself.
pub(super) fn recording(header: &FileHeader) -> String {
    let tenant = header
        .tenant_id
        .as_ref()
        .map_or_else(|| "=none".to_owned(), |it| part(it.as_str()));
    let epoch = header.authority_epoch.map_or(0, Epoch::get);
    format!(
        "{}/{}/{:013}-{epoch}",
        tenant,
        part(header.session_id.as_str()),
        header.started_wall.0
    )
}

/// A recording's file name, which has no `/`.
pub(super) fn file_name(recording: &str) -> String {
    // A file system takes 255 bytes; the key has two parts of up to 120, and a short one.
    let mut parts = recording.split('/').rev();
    let (instance, session) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    format!("{session}.{instance}.rspp")
}

/// Whose a key's first part says that it is; `None` if nobody's, or if the name was too long to be kept whole.
pub fn tenant_of(part: &str) -> Option<TenantId> {
    let mut bytes = part.bytes();
    let mut id = Vec::with_capacity(part.len());
    while let Some(byte) = bytes.next() {
        if byte == b'=' {
            let digits = [bytes.next()?, bytes.next()?];
            let digits = str::from_utf8(&digits).ok()?;
            id.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            id.push(byte);
        }
    }
    TenantId::new(String::from_utf8(id).ok()?).ok()
}

/// An identifier as a part of a key: nothing in it that a store or a file system takes for something else.
pub fn part(id: &str) -> String {
    const LONGEST: usize = 120;
    let mut out = String::new();
    for byte in id.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => out.push(char::from(byte)),
            b'.' if !out.is_empty() => out.push('.'),
            other => write!(out, "={other:02X}").expect("a string takes everything"),
        }
    }
    if out.len() > LONGEST {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(id.as_bytes());
        out.truncate(LONGEST - 18);
        write!(out, "=={}", Hex(&digest[..8])).expect("a string takes everything");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_become_parts_of_keys_that_no_store_misunderstands() {
        assert_eq!(part("call-17.b"), "call-17.b");
        assert_eq!(part("../etc/x"), "=2E.=2Fetc=2Fx");
        assert_eq!(part("größe"), "gr=C3=B6=C3=9Fe");
        let (one, other) = (part(&"a".repeat(256)), part(&"a".repeat(255)));
        assert!(one.len() == 120 && other.len() == 120 && one != other);
    }

    #[test]
    fn progress_belongs_to_its_file() {
        let file = Path::new("/spool/a.1-0.rspp");
        let path = Progress::path(file);
        assert_eq!(path, Path::new("/spool/a.1-0.rspp.export"));
        assert_eq!(Progress::file(&path).as_deref(), Some(file));
        assert_eq!(Progress::file(file), None);
    }

    #[test]
    fn a_watermark_never_points_behind_the_file() {
        let progress = Progress {
            acknowledged: 100,
            sealed: Some(150),
            ..Progress::new("r".to_owned(), false)
        };
        let standing = |length| {
            let standing = progress.standing(length, true);
            (standing.acknowledged, standing.sealed)
        };
        assert_eq!(standing(200), (100, Some(150)));
        assert_eq!(standing(150), (100, Some(150)));
        assert_eq!(standing(120), (100, None));
        assert_eq!(standing(70), (70, None));
    }
}
