//! Where a program can be reached, as a file: for whoever started it with ports that the system chose.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// The file could not be written.
#[derive(Debug)]
pub struct AnnounceError {
    path: PathBuf,
    source: io::Error,
}

impl fmt::Display for AnnounceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "announce: {}: {}", self.path.display(), self.source)
    }
}

impl std::error::Error for AnnounceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Writes where the program can be reached; who looks finds all of it or nothing.
pub fn announce(path: &Path, addresses: &Value) -> Result<(), AnnounceError> {
    let failed = |source| AnnounceError {
        path: path.to_owned(),
        source,
    };
    let beside = path.with_extension("new");
    fs::write(&beside, addresses.to_string()).map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)
}
