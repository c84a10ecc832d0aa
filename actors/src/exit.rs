//! Why an actor ended.

use std::any::Any;
use std::fmt;

/// Why an actor ended. Restart policy is a match on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// Its work was done.
    Finished,
    /// It was asked to stop, for this reason.
    Stopped(String),
    /// It returned this error.
    Failed(String),
    /// It panicked with this message.
    Panicked(String),
    /// It did not end within its grace, or its parent ended under it.
    Killed,
}

impl ExitReason {
    /// Whether it ended as intended: finished, or stopped when asked to.
    pub fn is_orderly(&self) -> bool {
        match self {
            Self::Finished | Self::Stopped(_) => true,
            Self::Failed(_) | Self::Panicked(_) | Self::Killed => false,
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("finished"),
            Self::Stopped(why) => write!(f, "stopped: {why}"),
            Self::Failed(error) => write!(f, "failed: {error}"),
            Self::Panicked(message) => write!(f, "panicked: {message}"),
            Self::Killed => f.write_str("killed"),
        }
    }
}

/// What a handler returns when its actor cannot go on; the actor ends as [`ExitReason::Failed`].
///
/// Any error becomes one by `?`, its sources included. It is not an error itself, so that this conversion can exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong, for people.
    pub message: String,
}

impl Failure {
    /// A failure that began here.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self { message }
    }
}

/// The message a panic was raised with.
pub(crate) fn panic_message(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => match payload.downcast::<&'static str>() {
            Ok(message) => (*message).to_owned(),
            Err(_) => "a panic without a message".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("could not open the stream")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn a_failure_names_its_sources() {
        let cause = "x".parse::<u8>().unwrap_err();
        assert_eq!(
            Failure::from(Outer(cause)).message,
            "could not open the stream: invalid digit found in string"
        );
    }

    #[test]
    fn a_panic_keeps_its_message() {
        assert_eq!(panic_message(Box::new("plain")), "plain");
        assert_eq!(panic_message(Box::new("owned".to_owned())), "owned");
        assert_eq!(panic_message(Box::new(7)), "a panic without a message");
    }
}
