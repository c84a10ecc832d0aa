//! Why a command did not succeed, and what the shell is told.

use std::{fmt::Display, process::ExitCode};

/// One message, with the fix in it where there is one.
#[derive(Debug)]
pub(crate) enum Problem {
    /// The user gave something that cannot work: exit code 2.
    Input(String),
    /// It could have worked and did not: exit code 1.
    Failure(String),
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
        Self::Input(message.to_string())
    }

    /// A failure, in the words of `message`.
    pub(crate) fn failure(message: impl Display) -> Self {
        Self::Failure(message.to_string())
    }

    /// Prints the message and says how the process ends.
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Self::Input(message) => {
                eprintln!("error: {message}");
                ExitCode::from(2)
            }
            Self::Failure(message) => {
                eprintln!("error: {message}");
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
            _ => Self::Failure(format!("the output cannot be written: {error}")),
        }
    }
}
