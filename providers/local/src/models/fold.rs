//! Moonshine's decoder, rewritten once at set-up: 12 ms a token instead of 100.
//!
//! ONNX Runtime's own Python package does it, installed into a directory of its own that is
//! deleted afterwards; see `fold_moonshine.py` for what it does.

use std::{fs, path::Path};

use super::{
    ModelId, StoreError,
    manifest::{DECODER_FIRST, DECODER_NEXT, ENCODER, MERGED_DECODER},
    pip::Pip,
    store::{DerivedEntry, Receipt},
    wheel,
};

const SCRIPT: &str = include_str!("fold_moonshine.py");

/// Everything the script needs, dependencies included, so that the result does not drift.
const REQUIREMENTS: [&str; 8] = [
    "flatbuffers==25.12.19",
    "ml_dtypes==0.6.0",
    "numpy==2.4.6",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "packaging==26.3",
    "protobuf==7.36.2",
    "typing_extensions==4.16.0",
];

/// How far a file's size may be from the expected one, in percent.
const TOLERANCE: u64 = 5;

/// Makes the derived files of `id` in `dir`, where its published files are; `scratch` is for
/// packages and may hold those of an earlier try.
pub(super) fn prepare(
    id: ModelId,
    pip: &Pip,
    dir: &Path,
    scratch: &Path,
    look: &mut dyn FnMut(),
) -> Result<(), StoreError> {
    pip.check_can_prepare(id)?;
    let site = scratch.join("site-packages");
    // Half an installation is worse than none.
    remove(&site)?;
    fs::create_dir_all(&site).map_err(StoreError::io(&site))?;
    pip.install(&REQUIREMENTS, &site, look)?;

    let script = scratch.join("fold_moonshine.py");
    fs::write(&script, SCRIPT).map_err(StoreError::io(&script))?;
    let files = [ENCODER, MERGED_DECODER, DECODER_FIRST, DECODER_NEXT].map(|name| dir.join(name));
    let args: Vec<_> = files.iter().map(AsRef::as_ref).collect();
    pip.script(&script, &site, &args, look)?
        .map_err(|detail| StoreError::Prepare {
            id,
            detail: detail.lines().last().unwrap_or("no message").to_owned(),
        })?;

    write_receipt(id, dir)?;
    for file in id.model().files.iter().filter(|file| !file.kept) {
        let path = dir.join(file.name);
        fs::remove_file(&path).map_err(StoreError::io(&path))?;
    }
    remove(&site)
}

fn write_receipt(id: ModelId, dir: &Path) -> Result<(), StoreError> {
    let mut receipt = Receipt::default();
    for file in id.model().derived {
        let path = dir.join(file.name);
        let bytes = fs::metadata(&path).map_err(StoreError::io(&path))?.len();
        if bytes.abs_diff(file.bytes) > file.bytes * TOLERANCE / 100 {
            let detail = format!(
                "{} has {bytes} bytes, expected about {}",
                file.name, file.bytes
            );
            return Err(StoreError::Prepare { id, detail });
        }
        let sha256 = wheel::sha256(&path)?;
        receipt
            .derived
            .insert(file.name.to_owned(), DerivedEntry { bytes, sha256 });
    }
    receipt.write(dir)
}

fn remove(dir: &Path) -> Result<(), StoreError> {
    if fs::exists(dir).map_err(StoreError::io(dir))? {
        fs::remove_dir_all(dir).map_err(StoreError::io(dir))?;
    }
    Ok(())
}
