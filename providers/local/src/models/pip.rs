//! The user's own `pip`, run as a program, so that their index, proxy and certificates hold.

use std::{
    ffi::OsString,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use super::{ModelId, Package, StoreError};

/// How often a running download is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Oldest Python that the pinned packages of `fold` run on.
const PREPARE_PYTHON: (u32, u32) = (3, 11);

/// A Python with a pip that works.
#[derive(Debug)]
pub(super) struct Pip {
    python: PathBuf,
    version: (u32, u32),
    command: Vec<OsString>,
}

impl Pip {
    /// Looks for Python and pip.
    pub(super) fn find(chosen: Option<&Path>) -> Result<Self, StoreError> {
        let candidates = match chosen {
            Some(python) => vec![python.to_owned()],
            None => vec![PathBuf::from("python3"), PathBuf::from("python")],
        };
        let found = candidates
            .iter()
            .find_map(|python| Some((python.clone(), version(python)?)));
        let Some((python, version)) = found else {
            let tried: Vec<_> = candidates.iter().map(|p| p.display().to_string()).collect();
            return Err(StoreError::NoPython {
                tried: tried.join(", "),
            });
        };
        let mut pips = vec![vec![python.clone().into(), "-m".into(), "pip".into()]];
        if chosen.is_none() {
            pips.extend([vec!["pip3".into()], vec!["pip".into()]]);
        }
        let Some(pip) = pips.into_iter().find(|pip| works(pip)) else {
            return Err(StoreError::NoPip {
                python: python.display().to_string(),
            });
        };
        Ok(Self {
            python,
            version,
            command: pip,
        })
    }

    /// Fetches `package`'s wheel into `dir`. `look` is called while it runs.
    pub(super) fn download(
        &self,
        package: &Package,
        dir: &Path,
        look: &mut dyn FnMut(),
    ) -> Result<(), StoreError> {
        let mut command = self.pip("download");
        command.arg("--dest").arg(dir);
        command.args(["--no-deps", "--only-binary=:all:", "--progress-bar=off"]);
        if let Some(platform) = package.platform {
            command.args(["--python-version", "3.11", "--platform", platform]);
        }
        command.arg(package.requirement());
        command.env("TMPDIR", dir);
        run(command, look)?.map_err(|said| failure(package.requirement(), &said))
    }

    /// Installs packages into `dir`, apart from everything else on the machine.
    pub(super) fn install(
        &self,
        requirements: &[&str],
        dir: &Path,
        look: &mut dyn FnMut(),
    ) -> Result<(), StoreError> {
        let mut command = self.pip("install");
        command.arg("--target").arg(dir);
        command.args(["--only-binary=:all:", "--progress-bar=off"]);
        command.args(requirements);
        command.env("TMPDIR", dir);
        run(command, look)?.map_err(|said| failure(requirements.join(" "), &said))
    }

    /// Fails where this Python is too old to prepare `id`.
    pub(super) fn check_can_prepare(&self, id: ModelId) -> Result<(), StoreError> {
        if self.version >= PREPARE_PYTHON {
            return Ok(());
        }
        let (major, minor) = self.version;
        Err(StoreError::OldPython {
            id,
            python: self.python.display().to_string(),
            version: format!("{major}.{minor}"),
        })
    }

    /// Runs a script with only the packages in `site`; an error is what it said.
    pub(super) fn script(
        &self,
        script: &Path,
        site: &Path,
        args: &[&Path],
        look: &mut dyn FnMut(),
    ) -> Result<Result<(), String>, StoreError> {
        let mut command = Command::new(&self.python);
        command.arg(script).args(args);
        command.env("PYTHONPATH", site).env("PYTHONNOUSERSITE", "1");
        run(command, look)
    }

    fn pip(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).arg(verb);
        command.arg("--disable-pip-version-check");
        command.env("PYTHONUNBUFFERED", "1");
        command
    }
}

/// Runs to the end; the inner error is the last lines of what the program said.
fn run(mut command: Command, look: &mut dyn FnMut()) -> Result<Result<(), String>, StoreError> {
    let program = PathBuf::from(command.get_program());
    let failed = |error| StoreError::io(&program)(error);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let stderr = child.stderr.take();
    let (said, ended) = mpsc::channel();
    let reader = thread::spawn(move || {
        let text = stderr.map_or_else(|| Ok(Vec::new()), read_tail);
        // The receiver is gone only if the wait below failed, and then nobody asks.
        let _ = said.send(text);
    });
    let text = loop {
        match ended.recv_timeout(LOOK_EVERY) {
            Ok(text) => break text,
            Err(RecvTimeoutError::Timeout) => look(),
            Err(RecvTimeoutError::Disconnected) => break Ok(Vec::new()),
        }
    };
    let status = child.wait().map_err(failed)?;
    let _ = reader.join();
    look();
    if status.success() {
        return Ok(Ok(()));
    }
    let text = text.map_err(failed)?;
    Ok(Err(String::from_utf8_lossy(&text).trim().to_owned()))
}

/// All of `from`, of which the last part is kept.
fn read_tail(mut from: impl Read) -> io::Result<Vec<u8>> {
    const KEEP: usize = 16 * 1024;
    let mut kept = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = from.read(&mut piece)?;
        if read == 0 {
            return Ok(kept);
        }
        kept.extend_from_slice(&piece[..read]);
        let surplus = kept.len().saturating_sub(KEEP);
        kept.drain(..surplus);
    }
}

/// What pip's complaint means.
fn failure(requirement: String, said: &str) -> StoreError {
    const UNREACHABLE: [&str; 6] = [
        "NewConnectionError",
        "NameResolutionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ProxyError",
        "SSLError",
    ];
    let is_error = |line: &&str| line.starts_with("ERROR:") || line.starts_with("OSError");
    let errors: Vec<_> = said.lines().filter(is_error).collect();
    let detail = match errors.as_slice() {
        [] => said.lines().last().unwrap_or("no message").to_owned(),
        errors => errors.join("; "),
    };
    if UNREACHABLE.iter().any(|sign| said.contains(sign)) {
        StoreError::Network {
            requirement,
            detail,
        }
    } else if said.contains("No space left on device") {
        StoreError::Io {
            path: PathBuf::from("pip"),
            source: io::Error::from(io::ErrorKind::StorageFull),
        }
    } else if said.contains("No matching distribution") {
        StoreError::NotInIndex {
            requirement,
            detail,
        }
    } else {
        StoreError::Pip {
            requirement,
            detail,
        }
    }
}

fn version(python: &Path) -> Option<(u32, u32)> {
    let out = Command::new(python)
        .args(["-c", "import sys; print(*sys.version_info[:2])"])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let (major, minor) = text.trim().split_once(' ')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    (out.status.success() && major >= 3).then_some((major, minor))
}

fn works(pip: &[OsString]) -> bool {
    let status = Command::new(&pip[0])
        .args(&pip[1..])
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pip_says_becomes_an_error_with_its_fix() {
        #[track_caller]
        fn check(said: &str, fix: &str) {
            let error = failure("silero-vad==6.2.3".into(), said).to_string();
            assert!(error.contains(fix), "{error}");
        }
        let refused = "WARNING: Retrying after connection broken by 'NewConnectionError(\"refused\")'\n\
                       ERROR: No matching distribution found for silero-vad==6.2.3";
        check(refused, "check the network");
        check(
            "ERROR: No matching distribution found for silero-vad==6.2.3",
            "pip config list",
        );
        check("Traceback\nValueError: what", "ValueError: what");
        check("", "no message");
    }

    #[test]
    fn no_python_and_no_pip_are_told_apart() {
        let error = Pip::find(Some(Path::new("/nonexistent/python3"))).unwrap_err();
        assert!(matches!(error, StoreError::NoPython { .. }), "{error}");
    }
}
