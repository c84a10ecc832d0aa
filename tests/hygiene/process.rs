//! The programs as processes of their own, whose every word is kept.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rspp_tests::programs;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

/// How long a process may take to be there, or to end.
const PATIENCE: Duration = Duration::from_mins(1);

/// The programs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Program {
    ControlPlane,
    Runtime,
    CommandLine,
}

impl Program {
    pub(crate) fn path(self) -> PathBuf {
        match self {
            Self::ControlPlane => env!("CARGO_BIN_EXE_cluster-control-plane").into(),
            Self::Runtime => env!("CARGO_BIN_EXE_cluster-runtime").into(),
            Self::CommandLine => programs::rspp(),
        }
    }

    /// Runs it to its end, with no environment but this.
    pub(crate) fn run(self, arguments: &[&str], environment: &[(&str, &str)]) -> Said {
        let mut command = Command::new(self.path());
        let home = std::env::temp_dir();
        command.args(arguments).env_clear().env("HOME", home);
        let ran = command
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Said {
            status: ran.status,
            out: String::from_utf8_lossy(&ran.stdout).into_owned(),
            err: String::from_utf8_lossy(&ran.stderr).into_owned(),
        }
    }
}

/// What a program said until it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A program that runs, and is killed when it is dropped.
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
    at: Value,
}

impl Running {
    /// Starts a server below `dir` and waits until it has said where it serves.
    pub(crate) async fn start(
        program: Program,
        dir: &Path,
        name: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let announced = dir.join(format!("{name}.at.json"));
        let log = dir.join(format!("{name}.log"));
        let out = fs::File::create(&log).unwrap();
        let announce = format!("announce={}", announced.display());
        let mut child = Command::new(program.path())
            .args(arguments)
            .args(["--set", &announce])
            .env_clear()
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        let began = Instant::now();
        let at = loop {
            if let Ok(text) = fs::read_to_string(&announced) {
                break serde_json::from_str(&text).unwrap();
            }
            let ended = child.try_wait().unwrap();
            let is_late = began.elapsed() > PATIENCE;
            assert!(
                ended.is_none() && !is_late,
                "{name}: {}",
                fs::read_to_string(&log).unwrap()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        Self { child, log, at }
    }

    /// Where it serves.
    pub(crate) fn at(&self, what: &str) -> SocketAddr {
        self.at[what].as_str().unwrap().parse().unwrap()
    }

    /// All that it has written so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// What its health server says, head and body.
    pub(crate) async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.at("health")).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(&self) {
        let began = Instant::now();
        while !self.get("/readyz").await.starts_with("HTTP/1.1 200") {
            assert!(began.elapsed() < PATIENCE, "{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks it to end, waits until it has in order, and returns all that it wrote.
    pub(crate) async fn end(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}: {}", self.log());
                return self.log();
            }
            assert!(began.elapsed() < PATIENCE, "{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
