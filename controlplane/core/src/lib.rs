//! What a control plane decides: who may speak for a session, with which version, where, and whether at all.
//!
//! Values in, values out: no tokio, no clock, no randomness, no sockets. What is stored comes in as it
//! was read, the time as an argument; what is to be stored comes out. The one interface to the world
//! is the [`store::Store`] trait, which this crate defines and others implement.

pub mod access;
pub mod account;
pub mod admission;
pub mod audit;
pub mod authority;
pub mod failover;
pub mod fleet;
pub mod governance;
mod hash;
pub mod keeping;
pub mod keys;
pub mod outage;
pub mod registry;
pub mod retention;
pub mod rollout;
pub mod routing;
pub mod status;
pub mod store;
pub mod token;

pub use hash::ContentHash;
