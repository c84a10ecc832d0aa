//! The primitives the wake protocol is built on: the standard ones, or loom's when the protocol is model-checked.

#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic::AtomicUsize};
#[cfg(not(loom))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic::AtomicUsize};
