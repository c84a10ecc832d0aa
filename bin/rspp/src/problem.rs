//! Why a command did not succeed, and what the shell is told.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    process::ExitCode,
    time::Duration,
};

use rspp_controlplane_api::millis;
use serde_json::{Value, json};

/// Who reads what a command has to say when it does not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// A line of text.
    Person,
    /// One JSON object, as the results of commands with `--json` are.
    Program,
}

/// What is told of one that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// One stable word that programs match: a reason of the control plane, or [`INPUT`], [`FAILED`], [`USAGE`].
    code: String,
    message: String,
    /// What to do about it, where the message does not say so itself.
    fix: Option<String>,
    /// When the same may be tried again.
    retry_after: Option<Duration>,
    /// What it is about, by name.
    details: BTreeMap<String, String>,
}

/// What was given cannot work.
pub(crate) const INPUT: &str = "INPUT";
/// It could have worked.
pub(crate) const FAILED: &str = "FAILED";
/// The command line makes no sense.
pub(crate) const USAGE: &str = "USAGE";

impl Told {
    pub(crate) fn new(code: impl Into<String>, message: impl Display) -> Self {
        Self {
            code: code.into(),
            message: message.to_string(),
            fix: None,
            retry_after: None,
            details: BTreeMap::new(),
        }
    }

    pub(crate) fn with_fix(mut self, fix: Option<impl Into<String>>) -> Self {
        self.fix = fix.map(Into::into);
        self
    }

    pub(crate) fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    pub(crate) fn with_details(mut self, details: BTreeMap<String, String>) -> Self {
        self.details = details;
        self
    }

    fn shape(&self) -> Value {
        let mut error = json!({ "code": self.code, "message": self.message });
        if let Some(fix) = &self.fix {
            error["fix"] = json!(fix);
        }
        if let Some(after) = self.retry_after {
            error["retry_after_ms"] = json!(millis(after));
        }
        if !self.details.is_empty() {
            error["details"] = json!(self.details);
        }
        json!({ "error": error })
    }

    /// Prints it to standard error, where results are not.
    pub(crate) fn print(&self, reader: Reader) {
        match reader {
            Reader::Person => eprintln!("error: {self}"),
            Reader::Program => eprintln!("{}", self.shape()),
        }
    }
}

impl Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.fix {
            Some(fix) => write!(f, "; {fix}"),
            None => Ok(()),
        }
    }
}

/// One message, with the fix in it where there is one.
#[derive(Debug)]
pub(crate) enum Problem {
    /// The user gave something that cannot work: exit code 2.
    Input(Box<Told>),
    /// It could have worked and did not: exit code 1.
    Failure(Box<Told>),
    /// What was found has been printed already and is not good: exit code 1.
    Reported,
    /// What is wrong with the input has been printed already: exit code 2.
    InputReported,
    /// Ctrl-C, after everything was kept: exit code 130, as shells expect.
    Interrupted,
    /// Whoever read our output wants no more of it, which is no fault.
    PipeClosed,
}

impl Problem {
    /// Bad input, in the words of `message`.
    pub(crate) fn input(message: impl Display) -> Self {
        Self::Input(Box::new(Told::new(INPUT, message)))
    }

    /// A failure, in the words of `message`.
    pub(crate) fn failure(message: impl Display) -> Self {
        Self::Failure(Box::new(Told::new(FAILED, message)))
    }

    /// The same, with what it is about in front.
    pub(crate) fn of(mut self, name: impl Display) -> Self {
        if let Self::Input(told) | Self::Failure(told) = &mut self {
            told.message = format!("{name}: {}", told.message);
        }
        self
    }

    /// Prints the message and says how the process ends.
    pub(crate) fn report(self, reader: Reader) -> ExitCode {
        match self {
            Self::Input(told) => {
                told.print(reader);
                ExitCode::from(2)
            }
            Self::Failure(told) => {
                told.print(reader);
                ExitCode::FAILURE
            }
            Self::Reported => ExitCode::FAILURE,
            Self::InputReported => ExitCode::from(2),
            Self::Interrupted => ExitCode::from(130),
            Self::PipeClosed => ExitCode::SUCCESS,
        }
    }
}

impl From<std::io::Error> for Problem {
    /// Writing to our own output failed.
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::PipeClosed,
            _ => Self::failure(format!("the output cannot be written: {error}")),
        }
    }
}
