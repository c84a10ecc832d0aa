//! What a transport promises the runtime: frames in, paced and fenced audio out.

pub mod audio;
pub mod loopback;
mod transport;
pub mod wav;

pub use transport::{
    Frame, Ingress, Link, Outgoing, Sink, SinkError, Source, Stamped, Transport, TransportKind,
};
