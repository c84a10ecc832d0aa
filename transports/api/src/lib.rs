//! What a transport promises the runtime: frames in, paced and fenced audio out.

mod transport;

pub use transport::{Ingress, Outgoing, Sink, SinkError, Source, Transport, TransportKind};
