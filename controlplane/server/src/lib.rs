//! A control plane as others call it: gRPC over TLS, or within one process, on any store.
//!
//! What is decided is decided by `rspp_controlplane`; here it is read, asked, written in one
//! transaction and told. One file a service, one mapping of errors, one place where a caller is made
//! out and let in.

mod about;
mod accounts;
mod audit;
mod commit;
mod duties;
mod expiry;
mod failure;
mod followed;
mod identity;
mod plane;
mod serve;
mod services;
mod tally;
mod wire;

pub use expiry::KeptIn;
pub use identity::{Identity, IdentityError};
pub use plane::{MAX_FINISH, OpenError, Plane, Settings};
pub use serve::{Listen, ServeError, Server, Transport};
