//! The library that shows a process another time of day than it is (libfaketime).

use std::path::PathBuf;

use crate::debian;

/// The library: the one that is installed, or else Debian's, unpacked below `target`.
///
/// # Panics
/// If there is none.
pub fn library() -> PathBuf {
    let file = format!(
        "usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1",
        std::env::consts::ARCH
    );
    let installed = PathBuf::from("/").join(&file);
    if installed.exists() {
        return installed;
    }
    let unpacked = debian::unpacked("libfaketime", &file);
    assert!(
        unpacked.exists(),
        "this test sets clocks, there is no libfaketime, and Debian's could not be fetched: install it \
         (apt-get install libfaketime)"
    );
    unpacked
}
