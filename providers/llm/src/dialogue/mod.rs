//! A conversation partner without a network.
pub(crate) struct Placeholder;
