//! What a transport promises the runtime: frames in, paced and fenced audio out.

pub mod audio;
pub mod loopback;
mod transport;
pub mod wav;

pub use transport::{Ingress, Outgoing, Sink, SinkError, Source, Transport, TransportKind};
