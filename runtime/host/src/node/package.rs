//! Nodes that others wrote and packed: a folder with a program and what it says of itself (F-011, F-121).
//!
//! Every file is compared with its digest when the package is loaded, and again before a session that
//! names it opens if it was touched since: what a plan's hash stands for is what runs.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    num::{NonZeroU32, NonZeroUsize},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rspp_proto::{
    Hex,
    spec::{Diagnostics, Mode, PACKAGE_FILE, PackageSpec},
};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::{ProcessCommand, Sandbox};

/// Most bytes of what a package says of itself.
const MOST_BYTES: u64 = 256 * 1024;
/// Most packages of a folder.
const MOST_PACKAGES: usize = 1_024;

/// Why a package is not used.
#[derive(Debug, Error)]
pub enum PackageError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What it says of itself is wrong.
    #[error("{0}")]
    Wrong(Diagnostics),
    /// It does not say what a file of it must be.
    #[error("{}: `{file}` is not among its files; run `rspp package pack`", folder.display())]
    Unlisted {
        /// The package's folder.
        folder: PathBuf,
        /// The file.
        file: String,
    },
    /// A file is another than was packed.
    #[error(
        "{}: is not what was packed: its SHA-256 is {found}, and {listed} was; pack it as another version",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// What it was.
        listed: String,
        /// What it is.
        found: String,
    },
    /// Two folders have one kind.
    #[error("{} and {} are both `{kind}`; a version is one package", first.display(), second.display())]
    Twice {
        /// The kind.
        kind: String,
        /// One folder.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// There are too many.
    #[error("{}: more than {MOST_PACKAGES} packages", .0.display())]
    TooMany(PathBuf),
}

/// A package as it was loaded.
pub struct Package {
    spec: PackageSpec,
    folder: PathBuf,
    digest: String,
    /// When each file was seen to be what it must be, by what would change with it.
    seen: Mutex<BTreeMap<String, Stamp>>,
}

/// What changes with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    node: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self {
            bytes: file.len(),
            modified: file.modified().ok(),
            node: file.ino(),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

impl Package {
    /// Reads what a folder says of itself, without looking at its files.
    pub fn read(folder: &Path) -> Result<PackageSpec, PackageError> {
        let path = folder.join(PACKAGE_FILE);
        let failed = |source| PackageError::File {
            path: path.clone(),
            source,
        };
        if fs::metadata(&path).map_err(failed)?.len() > MOST_BYTES {
            return Err(failed(io::Error::other("is longer than 256 KiB")));
        }
        let text = fs::read_to_string(&path).map_err(failed)?;
        let parsed = PackageSpec::parse(&path.display().to_string(), &text, Mode::Strict);
        Ok(parsed.map_err(PackageError::Wrong)?.spec)
    }

    /// Loads a package, whose files must be those that were packed.
    pub fn load(folder: &Path) -> Result<Self, PackageError> {
        let folder = fs::canonicalize(folder).map_err(|source| PackageError::File {
            path: folder.to_owned(),
            source,
        })?;
        let spec = Self::read(&folder)?;
        if !spec.files.contains_key(&spec.program) {
            return Err(PackageError::Unlisted {
                folder,
                file: spec.program,
            });
        }
        let package = Self {
            digest: spec.digest(),
            spec,
            folder,
            seen: Mutex::default(),
        };
        package.verify()?;
        Ok(package)
    }

    /// All packages whose folders are in `folder`, by kind.
    pub fn load_all(folder: &Path) -> Result<Vec<Self>, PackageError> {
        let failed = |source| PackageError::File {
            path: folder.to_owned(),
            source,
        };
        let mut found = BTreeMap::<String, Self>::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if !path.join(PACKAGE_FILE).is_file() {
                continue;
            }
            let package = Self::load(&path)?;
            if found.len() == MOST_PACKAGES {
                return Err(PackageError::TooMany(folder.to_owned()));
            }
            if let Some(first) = found.get(&package.kind()) {
                return Err(PackageError::Twice {
                    kind: package.kind(),
                    first: first.folder.clone(),
                    second: package.folder,
                });
            }
            found.insert(package.kind(), package);
        }
        Ok(found.into_values().collect())
    }

    /// What pipelines name it.
    pub fn kind(&self) -> String {
        self.spec.kind()
    }

    /// SHA-256 over all that decides what it does.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What it says of itself.
    pub fn spec(&self) -> &PackageSpec {
        &self.spec
    }

    /// Whether its files are still those that were packed. A file that nobody touched is not read again.
    pub fn verify(&self) -> Result<(), PackageError> {
        for (file, listed) in &self.spec.files {
            let path = self.folder.join(file);
            let failed = |source| PackageError::File {
                path: path.clone(),
                source,
            };
            let stamp = Stamp::of(&fs::metadata(&path).map_err(failed)?);
            let seen = self.seen();
            if seen.get(file) == Some(&stamp) {
                continue;
            }
            drop(seen);
            let found = digest_of(&path).map_err(failed)?;
            if found != *listed {
                return Err(PackageError::Changed {
                    path,
                    listed: listed.clone(),
                    found,
                });
            }
            self.seen().insert(file.clone(), stamp);
        }
        Ok(())
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Stamp>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How its processes are started.
    pub(crate) fn command(&self) -> ProcessCommand {
        let spec = &self.spec;
        let program = self.folder.join(&spec.program);
        let mut command = match &spec.interpreter {
            Some(interpreter) => {
                let mut command = ProcessCommand::new(interpreter);
                command.arguments.push(program.display().to_string());
                command
            }
            None => ProcessCommand::new(program),
        };
        command.arguments.extend(spec.arguments.iter().cloned());
        let limits = &spec.limits;
        command.start_timeout = Duration::from_millis(limits.start_timeout_ms);
        command.event_timeout = Duration::from_millis(limits.event_timeout_ms);
        command.memory = Some(limits.memory_mib.saturating_mul(1 << 20));
        command.processes =
            NonZeroUsize::new(limits.processes as usize).unwrap_or(NonZeroUsize::MIN);
        command.cpu_seconds = limits.cpu_seconds.and_then(NonZeroU32::new);
        command.sandbox = Some(Sandbox {
            reads: vec![self.folder.clone()],
            network: spec.sandbox.network,
            ..Sandbox::default()
        });
        command
    }
}

impl fmt::Debug for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Package")
            .field("kind", &self.kind())
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

/// SHA-256 of a file.
pub fn digest_of(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut fs::File::open(path)?, &mut hash)?;
    Ok(Hex(&hash.finalize()).to_string())
}
