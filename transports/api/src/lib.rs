//! What a transport promises the runtime: frames in, paced and fenced audio out.

pub mod audio;
mod bootstrap;
#[cfg(feature = "testing")]
pub mod conformance;
pub mod g711;
mod guard;
pub mod loopback;
mod sessions;
mod transport;
pub mod wav;
pub mod wire;
mod wishes;

pub use bootstrap::{BootstrapError, Capabilities, CapabilityError, SessionBootstrap};
pub use guard::{
    Admitted, Grant, Guard, MAX_TOKEN_BYTES, TokenValidator, Unauthorized, UsedTokens, is_same,
};
pub use sessions::{Elsewhere, Farewell, News, Opened, Refusal, Sessions, TurnNews};
pub use transport::{
    ClientCall, ClientResult, Frame, Ingress, Link, Outgoing, Receipt, Sink, SinkError, Source,
    Stamped, Transport, TransportKind,
};
pub use wishes::{Interruption, TurnEnd, Wishes};
