//! What a timeline can be exported to.

use std::{fmt, pin::Pin};

use bytes::Bytes;
use thiserror::Error;

/// What an archive answers, in its time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ArchiveFault>> + Send + 'a>>;

/// Keeps objects under keys.
///
/// A key is made of parts of letters, digits, `-`, `_`, `.` and `=`, with `/` between them.
pub trait Archive: Send + Sync + 'static {
    /// Keeps an object, in the place of one that has the key. Answers once the object will not be lost; an
    /// object is there whole or not at all.
    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()>;

    /// An object; `None` if there is none.
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Bytes>>;

    /// The objects whose keys begin with these parts, in any order; all of them if it is empty.
    fn list<'a>(&'a self, under: &'a str) -> Answer<'a, Vec<Kept>>;

    /// Where it is, for people.
    fn place(&self) -> &str;
}

/// An object, as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kept {
    /// Its key.
    pub key: String,
    /// Its length.
    pub bytes: u64,
}

/// An archive did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{kind}: {message}")]
pub struct ArchiveFault {
    /// Whether waiting may help.
    pub kind: FaultKind,
    /// What it said.
    pub message: String,
}

/// Whether waiting may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// It cannot be reached, is overloaded, or was too slow: later it may work by itself.
    Unavailable,
    /// It does not want to: somebody has to change a right, a name or a limit.
    Refused,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unavailable => "the archive is unavailable",
            Self::Refused => "the archive refuses",
        })
    }
}

impl ArchiveFault {
    /// It is not there, or too slow.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            kind: FaultKind::Unavailable,
            message: message.into(),
        }
    }

    /// It does not want to.
    pub fn refused(message: impl Into<String>) -> Self {
        Self {
            kind: FaultKind::Refused,
            message: message.into(),
        }
    }
}
