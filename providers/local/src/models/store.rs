//! Where models are kept, and whether they are there and whole.

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    ModelId, StoreError,
    manifest::{self, ModelFile},
    wheel,
};

/// What was made on this machine, written beside it.
const RECEIPT: &str = "receipt.json";

/// A directory of models, one sub-directory each.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    pub(super) python: Option<PathBuf>,
}

/// A model's place in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelStatus {
    /// Which model.
    pub id: ModelId,
    /// Whether it can be used.
    pub state: ModelState,
}

/// Whether a model can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelState {
    /// All its files are there.
    Ready {
        /// What they take on disk.
        bytes: u64,
    },
    /// Nothing of it is there.
    Missing,
    /// It is there but cannot be used.
    Broken {
        /// What is wrong, with the fix.
        problem: String,
    },
}

/// Checksums of the files that were made on this machine, by name.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Receipt {
    pub(super) derived: BTreeMap<String, DerivedEntry>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DerivedEntry {
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

impl Store {
    /// The store in `dir`; without one, in `$RSPP_MODEL_DIR`, else `$XDG_CACHE_HOME/rspp/models`,
    /// else `~/.cache/rspp/models`. Nothing is created until a model is pulled.
    pub fn open(dir: Option<&Path>) -> Result<Self, StoreError> {
        let root = match dir {
            Some(dir) => dir.to_owned(),
            None => default_dir(|name| env::var_os(name).map(PathBuf::from))
                .ok_or(StoreError::NoDirectory)?,
        };
        Ok(Self { root, python: None })
    }

    /// Fetches with this Python rather than the first `python3` of `PATH`.
    #[must_use]
    pub fn with_python(mut self, python: impl Into<PathBuf>) -> Self {
        self.python = Some(python.into());
        self
    }

    /// Where the models are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a model's files are, whether or not they exist.
    pub fn dir(&self, id: ModelId) -> PathBuf {
        self.root.join(id.as_str())
    }

    /// ONNX Runtime's library: `$ORT_DYLIB_PATH` where set, else the store's.
    pub fn onnxruntime(&self) -> PathBuf {
        env::var_os("ORT_DYLIB_PATH").map_or_else(
            || self.dir(ModelId::OnnxRuntime).join(manifest::LIBRARY),
            PathBuf::from,
        )
    }

    /// Whether each model can be used, judged by its files' sizes.
    pub fn status(&self) -> Vec<ModelStatus> {
        let status = |id| ModelStatus {
            id,
            state: self.state(id),
        };
        ModelId::ALL.map(status).into()
    }

    /// Whether one model can be used, judged by its files' sizes.
    pub fn state(&self, id: ModelId) -> ModelState {
        if matches!(fs::exists(self.dir(id)), Ok(false)) {
            return ModelState::Missing;
        }
        match self.check(id, Depth::Sizes) {
            Ok(bytes) => ModelState::Ready { bytes },
            Err(error) => ModelState::Broken {
                problem: error.to_string(),
            },
        }
    }

    /// Whether a model is there, judged by its files' sizes.
    pub fn has(&self, id: ModelId) -> bool {
        matches!(self.state(id), ModelState::Ready { .. })
    }

    /// Reads all files of a model and compares their checksums; returns their size.
    pub fn verify(&self, id: ModelId) -> Result<u64, StoreError> {
        self.check(id, Depth::Checksums)
    }

    fn check(&self, id: ModelId, depth: Depth) -> Result<u64, StoreError> {
        check_in(id, &self.dir(id), depth)
    }
}

/// Whether `dir` holds all of a model; returns its size.
pub(super) fn check_in(id: ModelId, dir: &Path, depth: Depth) -> Result<u64, StoreError> {
    let model = id.model();
    let mut total = 0;
    for file in model.files.iter().filter(|file| file.kept) {
        total += check_file(id, &dir.join(file.name), file.bytes, file.sha256, depth)?;
    }
    if model.derived.is_empty() {
        return Ok(total);
    }
    let receipt = read_receipt(id, dir)?;
    for file in model.derived {
        let path = dir.join(file.name);
        let Some(made) = receipt.derived.get(file.name) else {
            return Err(StoreError::Missing { id, path });
        };
        total += check_file(id, &path, made.bytes, &made.sha256, depth)?;
    }
    Ok(total)
}

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    Sizes,
    Checksums,
}

fn check_file(
    id: ModelId,
    path: &Path,
    bytes: u64,
    sha256: &str,
    depth: Depth,
) -> Result<u64, StoreError> {
    let missing = || StoreError::Missing {
        id,
        path: path.to_owned(),
    };
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
        Err(error) => return Err(StoreError::io(path)(error)),
    };
    if found.len() != bytes {
        return Err(missing());
    }
    match depth {
        Depth::Sizes => {}
        Depth::Checksums => wheel::expect_sha256(path, sha256)?,
    }
    Ok(bytes)
}

fn read_receipt(id: ModelId, dir: &Path) -> Result<Receipt, StoreError> {
    let path = dir.join(RECEIPT);
    let missing = || StoreError::Missing {
        id,
        path: path.clone(),
    };
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
        Err(error) => return Err(StoreError::io(&path)(error)),
    };
    serde_json::from_slice(&text).map_err(|_| missing())
}

impl Receipt {
    pub(super) fn write(&self, dir: &Path) -> Result<(), StoreError> {
        let path = dir.join(RECEIPT);
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        text.and_then(|text| fs::write(&path, text))
            .map_err(StoreError::io(path))
    }
}

impl ModelFile {
    /// Whether `path` holds this file, byte for byte.
    pub(super) fn matches(&self, path: &Path) -> Result<(), StoreError> {
        wheel::expect_sha256(path, self.sha256)
    }
}

fn default_dir(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let set = |name| var(name).filter(|path| !path.as_os_str().is_empty());
    if let Some(dir) = set("RSPP_MODEL_DIR") {
        return Some(dir);
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    cache.map(|cache| cache.join("rspp").join("models"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_follows_the_environment() {
        #[track_caller]
        fn check(vars: &[(&str, &str)], expected: Option<&str>) {
            let var = |name: &str| {
                vars.iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| PathBuf::from(value))
            };
            assert_eq!(default_dir(var), expected.map(PathBuf::from));
        }
        let all = [
            ("RSPP_MODEL_DIR", "/models"),
            ("XDG_CACHE_HOME", "/cache"),
            ("HOME", "/home/joe"),
        ];
        check(&all, Some("/models"));
        check(&all[1..], Some("/cache/rspp/models"));
        check(&all[2..], Some("/home/joe/.cache/rspp/models"));
        check(
            &[("RSPP_MODEL_DIR", ""), all[2]],
            Some("/home/joe/.cache/rspp/models"),
        );
        check(&[], None);
    }

    #[test]
    fn a_cut_file_is_broken_and_says_what_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Some(dir.path())).unwrap();
        assert_eq!(store.state(ModelId::SileroVad), ModelState::Missing);

        fs::create_dir(store.dir(ModelId::SileroVad)).unwrap();
        fs::write(store.dir(ModelId::SileroVad).join(manifest::SILERO), b"cut").unwrap();
        let ModelState::Broken { problem } = store.state(ModelId::SileroVad) else {
            panic!("a cut file was taken for a model");
        };
        assert!(problem.contains("rspp models pull silero-vad"), "{problem}");
        assert!(!store.has(ModelId::SileroVad));
    }

    #[test]
    fn a_file_of_the_right_size_but_wrong_content_fails_verification() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Some(dir.path())).unwrap();
        let id = ModelId::SileroVad;
        fs::create_dir(store.dir(id)).unwrap();
        for file in id.model().files {
            fs::write(store.dir(id).join(file.name), vec![0; file.bytes as usize]).unwrap();
        }
        assert!(store.has(id), "sizes are right");
        let error = store.verify(id).unwrap_err();
        assert!(matches!(error, StoreError::Checksum { .. }), "{error}");
    }
}
