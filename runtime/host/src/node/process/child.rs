//! A child process: started within its limits, told and heard frame by frame, ended for certain.

use std::{fmt, io, os::unix::process::ExitStatusExt, process::Stdio, time::Duration};

use rspp_proto::external::{Down, Up, decode, encode};
use rustix::{
    param::clock_ticks_per_second,
    process::{Pid, Resource, Rlimit, Signal, kill_process_group, prlimit},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{self, ChildStderr, ChildStdin, ChildStdout, Command},
};

use tokio_util::task::AbortOnDropHandle;

use super::{ProcessCommand, Sandbox, SandboxError};

/// How long a process that has hung up may take to be gone, so that its exit can be told.
const EXIT_WAIT: Duration = Duration::from_millis(50);
/// Most bytes of a line of standard error that reach the log.
const LOG_LINE: u64 = 4_096;

/// What is wrong with a process.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It cannot be started.
    Start(io::Error),
    /// It cannot be kept in its sandbox, so it was not started.
    Sandbox(SandboxError),
    /// It was given up in the middle of a frame, and can be told nothing more.
    Torn,
    /// It was not ready in time.
    NotReady(Duration),
    /// It speaks another protocol.
    Protocol(String),
    /// It did not deal with an event in time.
    Late(Duration),
    /// It answered what it was not asked.
    OutOfTurn,
    /// It emitted more than this.
    TooMuch(usize),
    /// It sent what is no frame, or too long a one.
    Frame(io::Error),
    /// It hung up; once known, with how it ended.
    Gone(Option<std::process::ExitStatus>),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(error) => write!(f, "cannot be started: {error}"),
            Self::Sandbox(error) => error.fmt(f),
            Self::Torn => f.write_str("did not take what it was told"),
            Self::NotReady(limit) => write!(f, "was not ready after {} ms", limit.as_millis()),
            Self::Protocol(other) => write!(f, "speaks `{other}`"),
            Self::Late(limit) => {
                write!(f, "took longer than {} ms for an event", limit.as_millis())
            }
            Self::OutOfTurn => f.write_str("answered what it was not asked"),
            Self::TooMuch(most) => write!(f, "emitted more than {most} events for one"),
            Self::Frame(error) => write!(f, "sent what cannot be read: {error}"),
            Self::Gone(None) => f.write_str("hung up"),
            Self::Gone(Some(status)) => match (status.signal(), status.code()) {
                (Some(signal), _) if signal == Signal::XCPU.as_raw() => {
                    f.write_str("used up its processor time")
                }
                (Some(signal), _) => write!(f, "was ended by signal {signal}"),
                (None, Some(code)) => write!(f, "exited with code {code}"),
                (None, None) => f.write_str("exited"),
            },
        }
    }
}

/// A running process. Dropped, it is killed with all that it has started.
pub(super) struct Child {
    process: process::Child,
    group: Option<Pid>,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// A frame that is being read: kept here, so that a wait that is given up loses nothing.
    partial: Vec<u8>,
    /// Whether a frame that was being sent was given up.
    torn: bool,
    frame_bytes: usize,
    _errors: Option<AbortOnDropHandle<()>>,
}

impl Child {
    /// Starts the program, in a process group of its own, with an environment of its own, within its
    /// limits.
    pub(super) async fn start(
        command: &ProcessCommand,
        memory: Option<u64>,
        sandbox: Option<Sandbox>,
    ) -> Result<Self, Trouble> {
        let mut process = Command::new(&command.program);
        process
            .args(&command.arguments)
            .env_clear()
            .envs(&command.environment)
            .current_dir(&command.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let open_files = sandbox.as_ref().map(|sandbox| sandbox.open_files);
        let started = match sandbox {
            Some(sandbox) => {
                let program = command.program.clone();
                let spawned = sandbox.spawn(process, program).await;
                spawned.map_err(Trouble::Sandbox)?
            }
            None => process.spawn(),
        };
        let mut process = started.map_err(Trouble::Start)?;
        let group = process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let pipes = (process.stdin.take(), process.stdout.take());
        let (Some(input), Some(output)) = pipes else {
            return Err(Trouble::Start(io::Error::other("it has no pipes")));
        };
        let errors = process.stderr.take().map(|errors| {
            let program = command.program.display().to_string();
            AbortOnDropHandle::new(tokio::spawn(tracing::Instrument::in_current_span(listen(
                program, errors,
            ))))
        });
        let child = Self {
            process,
            group,
            input,
            output: BufReader::new(output),
            partial: Vec::new(),
            torn: false,
            frame_bytes: command.frame_bytes,
            _errors: errors,
        };
        // It has been told nothing yet, so it has had nothing to do.
        let limited = child.limit(command, memory, open_files);
        limited.map_err(Trouble::Start)?;
        Ok(child)
    }

    fn limit(
        &self,
        command: &ProcessCommand,
        memory: Option<u64>,
        open_files: Option<u64>,
    ) -> io::Result<()> {
        let set = |resource, most| {
            let limit = Rlimit {
                current: Some(most),
                maximum: Some(most),
            };
            prlimit(self.group, resource, limit)
        };
        // The operator's limit or the pipeline's, whichever is less.
        if let Some(bytes) = command.memory.into_iter().chain(memory).min() {
            set(Resource::As, bytes)?;
        }
        if let Some(seconds) = command.cpu_seconds {
            let seconds = u64::from(seconds.get());
            // A second between the signal that says so and the one that cannot be ignored.
            let limit = Rlimit {
                current: Some(seconds),
                maximum: Some(seconds + 1),
            };
            prlimit(self.group, Resource::Cpu, limit)?;
        }
        if let Some(files) = open_files {
            set(Resource::Nofile, files)?;
        }
        // What it would leave behind when it crashes is nobody's to read.
        set(Resource::Core, 0)?;
        Ok(())
    }

    /// The processor time that the process has taken so far; a hundredth of a second may be missing.
    /// `None` where the system does not say.
    pub(super) fn processor_time(&self) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()?)).ok()?;
        // Its name is in brackets, and may hold anything; what follows is numbers.
        let (_, numbers) = stat.rsplit_once(')')?;
        let mut numbers = numbers.split_whitespace().skip(11);
        let mut ticks = || numbers.next()?.parse::<u64>().ok();
        let ticks = ticks()? + ticks()?;
        Some(Duration::from_millis(
            ticks * 1_000 / clock_ticks_per_second(),
        ))
    }

    /// Sends a frame. Given up in the middle of it, the process can be told nothing more.
    pub(super) async fn tell(&mut self, frame: &Down) -> Result<(), Trouble> {
        if self.torn {
            return Err(Trouble::Torn);
        }
        let bytes = encode(frame).map_err(Trouble::Frame)?;
        self.torn = true;
        let sent = self.input.write_all(&bytes).await;
        self.torn = false;
        sent.map_err(|_| Trouble::Gone(None))
    }

    /// The next frame. Cancel safe: what was read of it is kept.
    pub(super) async fn hear(&mut self) -> Result<Up, Trouble> {
        loop {
            let length = match self.partial.first_chunk::<4>() {
                Some(length) => u32::from_be_bytes(*length) as usize,
                None => 0,
            };
            if length > self.frame_bytes {
                let message = format!("a frame of {length} bytes; at most {}", self.frame_bytes);
                return Err(Trouble::Frame(io::Error::other(message)));
            }
            let wanted = 4 + length;
            if self.partial.len() >= 4 && self.partial.len() == wanted {
                let frame = decode(&self.partial[4..]).map_err(Trouble::Frame);
                self.partial.clear();
                return frame;
            }
            let wanted = if self.partial.len() < 4 { 4 } else { wanted };
            let missing = (wanted - self.partial.len()) as u64;
            let mut rest = (&mut self.output).take(missing);
            match rest.read_buf(&mut self.partial).await {
                Ok(0) | Err(_) => return Err(Trouble::Gone(None)),
                Ok(_) => {}
            }
        }
    }

    /// Ends what is in trouble, and says how it ended if that is the trouble.
    pub(super) async fn explain(&mut self, trouble: Trouble) -> Trouble {
        let explained = match trouble {
            Trouble::Gone(None) => {
                let exited = tokio::time::timeout(EXIT_WAIT, self.process.wait()).await;
                Trouble::Gone(exited.ok().and_then(Result::ok))
            }
            other => other,
        };
        self.kill().await;
        explained
    }

    /// Asks the process to end, and kills it after `grace`.
    pub(super) async fn end(mut self, grace: Duration) {
        let asked = async {
            self.tell(&Down::Stop).await.ok()?;
            self.input.shutdown().await.ok()?;
            self.process.wait().await.ok()
        };
        let _killed_below_if_late = tokio::time::timeout(grace, asked).await;
        self.kill().await;
    }

    /// Kills the process, with all that it has started, and waits until it is gone.
    pub(super) async fn kill(&mut self) {
        self.kill_group();
        if let Err(error) = self.process.wait().await {
            tracing::warn!(%error, "a process could not be waited for");
        }
    }

    fn kill_group(&self) {
        if let Some(group) = self.group {
            // Fails if all of it is gone already.
            let _gone = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Until it is waited for, its id, and so its group's, is not given to another.
        if self.process.id().is_some() {
            self.kill_group();
        }
    }
}

/// Passes on what the process has to complain about.
async fn listen(program: String, errors: ChildStderr) {
    let mut errors = BufReader::new(errors);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut errors).take(LOG_LINE);
        match bounded.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let line = String::from_utf8_lossy(&line);
                tracing::info!(program, line = line.trim_end(), "external node");
            }
        }
    }
}
