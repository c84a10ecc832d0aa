//! Programs and libraries of Debian's that tests need, fetched without being installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A file of a package that is unpacked below `target`, which is done now unless it was done before. It is
/// not there if the package could not be fetched.
pub(crate) fn unpacked(package: &str, file: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("a test is a program");
    let target = tests
        .ancestors()
        .nth(3)
        .expect("it lies in target/debug/deps");
    let home = target.join("debian").join(package);
    let found = home.join(file);
    if found.exists() {
        return found;
    }
    // Two tests may do this at once: the first to be ready wins.
    let own = home.with_extension(std::process::id().to_string());
    if fetch(package, &own) {
        let _the_other_won = fs::rename(&own, &home);
    }
    let _it_moved = fs::remove_dir_all(&own);
    found
}

fn fetch(package: &str, to: &Path) -> bool {
    let download = format!("apt-get download -qq {package}");
    let script = format!(
        "mkdir -p {0} && cd {0} && ({download} || {{ apt-get update -qq && {download}; }}) \
         && dpkg-deb -x *.deb . && rm *.deb",
        to.display()
    );
    succeeds(Command::new("sh").args(["-c", &script]))
}

pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}
