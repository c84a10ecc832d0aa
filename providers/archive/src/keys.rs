//! The keys that archives are sealed with: named in a file that holds none of them (F-169, NF-035).
//!
//! The file says from when on each key seals. The newest whose time has come does; all others only open. So the
//! next key is put down in time, everywhere, and takes over by itself; the file is read anew when it changes,
//! while everything goes on. Keys themselves are looked up where they are referred to, each time one is used.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use rspp_proto::WallClock;
use rspp_provider_http::{SecretError, SecretRef, SecretStore};
use serde::Deserialize;
use thiserror::Error;
use tokio::time::Instant;

use crate::{
    seal::{self, Head, KEY, SealError, Wrapping, is_sealed},
    time::{days, parse_date, parse_time},
};

/// How often there is looked whether the file has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Most keys of a ring.
const MOST: usize = 64;
/// Largest file.
const MOST_BYTES: u64 = 256 * 1024;

/// Why something is not sealed or does not open.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file of keys.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What it says.
    #[error("{}: {what}", path.display())]
    Wrong {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// No key's time has come.
    #[error("{}: no key seals yet: give one a `from` that has come", path.display())]
    NoneYet {
        /// The file.
        path: PathBuf,
    },
    /// The newest key is too old.
    #[error(
        "key `{kid}` is {} old, and {} is the most: put a newer one into {}",
        days(*age),
        days(*most),
        path.display()
    )]
    TooOld {
        /// Its name.
        kid: String,
        /// How long it has sealed.
        age: Duration,
        /// How long it may.
        most: Duration,
        /// The file.
        path: PathBuf,
    },
    /// A key that the ring does not have.
    #[error("sealed under key `{kid}`, which {} does not have: add it there", path.display())]
    Unknown {
        /// Its name.
        kid: String,
        /// The file.
        path: PathBuf,
    },
    /// There are no keys at all.
    #[error("sealed under key `{kid}`: name the file of keys that has it")]
    NoKeys {
        /// The key's name.
        kid: String,
    },
    /// Where a key is said to be there is none.
    #[error("key `{kid}`: {source}")]
    Secret {
        /// Its name.
        kid: String,
        /// Why.
        source: SecretError,
    },
    /// What is there is no key.
    #[error(
        "key `{kid}`: `{at}` holds no 64 hexadecimal digits, as `openssl rand -hex 32` prints them"
    )]
    NoKey {
        /// Its name.
        kid: String,
        /// Where it is said to be.
        at: String,
    },
    /// The object itself.
    #[error("it {0}")]
    Seal(#[from] SealError),
    /// The object was sealed to be another one.
    #[error("it was sealed as `{name}`, and lies where another belongs")]
    Misplaced {
        /// Its name.
        name: String,
    },
}

/// A file of keys, as people write it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// How long a key may seal.
    max_age: Option<String>,
    /// Where `file://NAME` is looked up; the file's own directory without.
    folder: Option<PathBuf>,
    keys: Vec<FileKey>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKey {
    id: String,
    /// Where the key is, never the key itself.
    secret: String,
    from: String,
}

/// What a file says.
struct Ring {
    keys: BTreeMap<String, Known>,
    max_age: Option<Duration>,
    secrets: SecretStore,
}

#[derive(Clone, Debug)]
struct Known {
    from: WallClock,
    secret: SecretRef,
}

/// What a key is for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyDuty {
    /// It will seal, once its time has come.
    Next,
    /// It seals, and opens.
    Seals,
    /// It would seal, and is too old to: nothing is sealed.
    TooOld,
    /// It opens what it has sealed.
    Opens,
}

impl KeyDuty {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Seals => "seals",
            Self::TooOld => "too old",
            Self::Opens => "opens",
        }
    }
}

/// A key of a ring, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// Its name.
    pub kid: String,
    /// From when on it seals.
    pub from: WallClock,
    /// What it is for now.
    pub duty: KeyDuty,
    /// Whether it is where it is said to be; else what is wrong.
    pub fault: Option<String>,
}

type Now = dyn Fn() -> WallClock + Send + Sync;

/// A ring of keys that follows its file; cheap to share.
pub struct KeyRing {
    path: PathBuf,
    environment: SecretStore,
    now: Box<Now>,
    state: Mutex<State>,
}

struct State {
    stamp: Option<(SystemTime, u64)>,
    looked: Instant,
    ring: Arc<Ring>,
    /// What was said about the key that seals, so that it is said once.
    told: Option<(String, bool)>,
}

impl KeyRing {
    /// The ring that a file names, with secrets of the process's environment.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        Self::open_with(path, SecretStore::environment(), || {
            SystemTime::now().into()
        })
    }

    /// The same, with other secrets and another clock.
    pub fn open_with(
        path: &Path,
        environment: SecretStore,
        now: impl Fn() -> WallClock + Send + Sync + 'static,
    ) -> Result<Self, KeyError> {
        let stamp = stamp(path).map_err(|source| KeyError::File {
            path: path.to_owned(),
            source,
        })?;
        let ring = read(path, &environment)?;
        Ok(Self {
            path: path.to_owned(),
            environment,
            now: Box::new(now),
            state: Mutex::new(State {
                stamp: Some(stamp),
                looked: Instant::now(),
                ring: Arc::new(ring),
                told: None,
            }),
        })
    }

    /// Every key, the one that seals longest first.
    pub fn states(&self) -> Vec<KeyState> {
        let ring = self.ring(false);
        let now = (self.now)();
        let seals = ring.newest(now).map(|(kid, _)| kid.clone());
        let mut states: Vec<_> = ring
            .keys
            .iter()
            .map(|(kid, known)| KeyState {
                kid: kid.clone(),
                from: known.from,
                duty: if seals.as_ref() == Some(kid) {
                    if ring.is_too_old(known, now) {
                        KeyDuty::TooOld
                    } else {
                        KeyDuty::Seals
                    }
                } else if known.from > now {
                    KeyDuty::Next
                } else {
                    KeyDuty::Opens
                },
                fault: ring.wrapping(kid, known).err().map(|it| it.to_string()),
            })
            .collect();
        states.sort_by_key(|it| it.from);
        states
    }

    /// Seals an object that is to be kept under `name`.
    pub fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, KeyError> {
        let ring = self.ring(false);
        let now = (self.now)();
        let Some((kid, known)) = ring.newest(now) else {
            return Err(KeyError::NoneYet {
                path: self.path.clone(),
            });
        };
        self.tell(&ring, kid, known, now);
        if let Some(most) = ring.max_age.filter(|_| ring.is_too_old(known, now)) {
            return Err(KeyError::TooOld {
                kid: kid.clone(),
                age: age(known, now),
                most,
                path: self.path.clone(),
            });
        }
        let wrapping = ring.wrapping(kid, known)?;
        Ok(seal::seal(&wrapping, kid, name, plain)?)
    }

    /// Opens an object: what was sealed, and whether it is all of it.
    pub fn unseal(&self, object: &[u8]) -> Result<(Vec<u8>, bool), KeyError> {
        let head = Head::read(object)?;
        let mut ring = self.ring(false);
        if !ring.keys.contains_key(head.kid) {
            // Somebody may seal with it since a moment ago.
            ring = self.ring(true);
        }
        let Some(known) = ring.keys.get(head.kid) else {
            return Err(KeyError::Unknown {
                kid: head.kid.to_owned(),
                path: self.path.clone(),
            });
        };
        Ok(head.open(&*ring.wrapping(head.kid, known)?)?)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the file says now. One that cannot be read is complained of, and what it said before goes on.
    fn ring(&self, at_once: bool) -> Arc<Ring> {
        let mut state = self.state();
        if !at_once && state.looked.elapsed() < LOOK_EVERY {
            return Arc::clone(&state.ring);
        }
        state.looked = Instant::now();
        let seen = stamp(&self.path).ok();
        if seen == state.stamp {
            return Arc::clone(&state.ring);
        }
        state.stamp = seen;
        match read(&self.path, &self.environment) {
            Ok(ring) => {
                let file = self.path.display();
                tracing::info!(%file, keys = ring.keys.len(), "the keys of archives were read anew");
                state.ring = Arc::new(ring);
            }
            Err(error) => {
                tracing::error!(%error, "the keys of archives stay as they were");
            }
        }
        Arc::clone(&state.ring)
    }

    /// Says which key seals when that changes, and when it has little time left.
    fn tell(&self, ring: &Ring, kid: &str, known: &Known, now: WallClock) {
        let age = age(known, now);
        let is_late = ring.max_age.is_some_and(|most| age >= most / 10 * 9);
        let told = Some((kid.to_owned(), is_late));
        let before = std::mem::replace(&mut self.state().told, told.clone());
        if before == told {
            return;
        }
        if before.is_none_or(|(before, _)| before != kid) {
            tracing::info!(
                kid,
                from = known.from.to_utc(),
                "archives are sealed under this key"
            );
        }
        let Some(most) = ring.max_age.filter(|_| is_late) else {
            return;
        };
        let has_next = ring.keys.values().any(|it| it.from > now);
        if !has_next {
            tracing::warn!(
                kid,
                age = days(age),
                most = days(most),
                "the key of archives is nearly too old, and none follows it"
            );
        }
    }
}

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyRing")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// The newest key whose time has come.
    fn newest(&self, now: WallClock) -> Option<(&String, &Known)> {
        let has_come = self.keys.iter().filter(|(_, known)| known.from <= now);
        has_come.max_by_key(|(_, known)| known.from)
    }

    fn is_too_old(&self, known: &Known, now: WallClock) -> bool {
        self.max_age.is_some_and(|most| age(known, now) >= most)
    }

    fn wrapping(&self, kid: &str, known: &Known) -> Result<Box<Wrapping>, KeyError> {
        let secret = self.secrets.resolve(&known.secret);
        let secret = secret.map_err(|source| KeyError::Secret {
            kid: kid.to_owned(),
            source,
        })?;
        let bytes = key(secret.expose()).ok_or_else(|| KeyError::NoKey {
            kid: kid.to_owned(),
            at: known.secret.to_string(),
        })?;
        Ok(Box::new(Wrapping::new(&bytes)))
    }
}

/// How long a key has sealed.
fn age(known: &Known, now: WallClock) -> Duration {
    Duration::from_millis(now.0.saturating_sub(known.from.0))
}

fn key(digits: &str) -> Option<[u8; KEY]> {
    let digits = digits.as_bytes();
    let mut key = [0; KEY];
    if digits.len() != 2 * KEY {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

fn stamp(path: &Path) -> io::Result<(SystemTime, u64)> {
    let file = fs::metadata(path)?;
    Ok((file.modified()?, file.len()))
}

fn read(path: &Path, environment: &SecretStore) -> Result<Ring, KeyError> {
    let file_error = |source| KeyError::File {
        path: path.to_owned(),
        source,
    };
    let wrong = |what: String| KeyError::Wrong {
        path: path.to_owned(),
        what,
    };
    if fs::metadata(path).map_err(file_error)?.len() > MOST_BYTES {
        return Err(wrong(format!("is larger than {MOST_BYTES} bytes")));
    }
    let text = fs::read_to_string(path).map_err(file_error)?;
    let file: File = serde_saphyr::from_str(&text).map_err(|error| {
        let error = error.to_string();
        wrong(error.trim_start_matches("error: ").to_owned())
    })?;
    if file.keys.is_empty() || file.keys.len() > MOST {
        return Err(wrong(format!("keys: from 1 to {MOST} can be named")));
    }
    let max_age = match &file.max_age {
        Some(text) => Some(parse_time(text).map_err(|what| wrong(format!("max_age: {what}")))?),
        None => None,
    };
    let mut keys = BTreeMap::new();
    let mut begins = BTreeSet::new();
    for FileKey { id, secret, from } in file.keys {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if id.is_empty() || id.len() > 64 || !id.chars().all(is_name) {
            // Not repeated: it may be the key itself.
            let what = "keys: an `id` has up to 64 letters, digits, `-`, `_` and `.`";
            return Err(wrong(what.to_owned()));
        }
        let secret = SecretRef::parse(&secret)
            .map_err(|error| wrong(format!("key `{id}`: secret: {error}")))?;
        let from = parse_date(&from).map_err(|what| wrong(format!("key `{id}`: from: {what}")))?;
        if !begins.insert(from) {
            let what = format!("key `{id}` seals from the same moment on as another one");
            return Err(wrong(what));
        }
        if keys.insert(id.clone(), Known { from, secret }).is_some() {
            return Err(wrong(format!("key `{id}` is named twice")));
        }
    }
    let own = path.parent().unwrap_or(Path::new("."));
    let folder = file.folder.map_or(own.to_owned(), |it| own.join(it));
    Ok(Ring {
        keys,
        max_age,
        secrets: environment.clone().with_folder(folder),
    })
}

/// The name of the key that an object is sealed under, by its first bytes; `None` if it is in the clear.
pub fn sealed_under(beginning: &[u8]) -> Result<Option<String>, SealError> {
    if !is_sealed(beginning) {
        return Ok(None);
    }
    Ok(Some(Head::read(beginning)?.kid.to_owned()))
}
