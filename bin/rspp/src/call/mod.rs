//! A call on the command line: who says what, with which providers, and what became of it.

pub(crate) mod export;
pub(crate) mod providers;
pub(crate) mod rerun;
pub(crate) mod said;
pub(crate) mod scripted;
pub(crate) mod transcript;
pub(crate) mod voice;
