//! Scripted calls, fixtures and helpers that the suites share.

pub mod call;
