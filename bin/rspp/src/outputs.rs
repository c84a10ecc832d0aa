//! Files that commands write: what is there already is replaced only where it is of the same kind.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rspp_timeline::Timeline;

use crate::problem::Problem;

/// Whether both name one file.
pub(crate) fn is_same_file(one: &Path, other: &Path) -> bool {
    one == other
        || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Makes room for a timeline: an older one is replaced, anything else is left alone.
pub(crate) fn make_room(path: &Path) -> Result<(), Problem> {
    let name = path.display();
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    // A device, a pipe or a link to nothing.
    let Some(file) = fs::metadata(path).ok().filter(fs::Metadata::is_file) else {
        return Err(no_file(path));
    };
    if file.len() > 0 && Timeline::open(path).is_err() {
        return Err(Problem::input(format!(
            "{name}: exists and is no timeline; choose another name"
        )));
    }
    fs::remove_file(path).map_err(|error| Problem::input(format!("{name}: {error}")))
}

/// What is there is a device, a pipe, a link or a directory, and would become a file.
pub(crate) fn no_file(path: &Path) -> Problem {
    let name = path.display();
    Problem::input(format!(
        "{name}: exists and is no file; choose another name"
    ))
}

/// The name that a file has until it is whole.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    beside.into()
}

/// Writes a file whole or not at all. A link, a device or a pipe, such as `/dev/stdout`, stays what it is and is
/// written to.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if path.symlink_metadata().is_ok_and(|it| !it.is_file()) {
        return fs::write(path, bytes);
    }
    let beside = unfinished(path);
    fs::write(&beside, bytes)?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_timeline_makes_room_for_a_timeline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("call.rspp");
        make_room(&path).unwrap();
        fs::write(&path, "").unwrap();
        make_room(&path).unwrap();
        assert!(!path.exists());
        fs::write(&path, "somebody's own").unwrap();
        make_room(&path).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "somebody's own");
        make_room(dir.path()).unwrap_err();
    }

    #[cfg(unix)]
    #[test]
    fn links_and_what_is_no_file_stay_what_they_are() {
        use std::os::unix::{fs::symlink, net::UnixListener};

        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("call.json"), dir.path().join("link"));
        symlink(&file, &link).unwrap();
        // It leads nowhere yet.
        make_room(&link).unwrap_err();
        write_whole(&link, b"one").unwrap();
        write_whole(&link, b"two").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");

        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        make_room(&socket).unwrap_err();
        write_whole(&socket, b"three").unwrap_err();
        assert!(!fs::metadata(&socket).unwrap().is_file());
    }
}
