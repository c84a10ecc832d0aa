//! Where a control plane keeps its records: a file of its own, or etcd; one suite that every store passes.
//!
//! What a store promises is said by [`rspp_controlplane::store::Store`]; [`conformance`] holds every
//! implementation to it.

pub mod backup;
pub mod conformance;
pub mod counters;
pub mod election;
mod embedded;
mod etcd;
pub mod recovery;
pub mod sweep;
pub mod trail;

pub use embedded::{Embedded, OpenError};
pub use etcd::{Etcd, EtcdConfig, EtcdConfigError, EtcdIdentity, EtcdLogin, EtcdTls};
