//! What a session's transport can do now: its connection says so, and whoever makes a plan reads it
//! (F-161).

use std::sync::{Arc, Mutex};

use rspp_kernel::plan::{TransportCapabilities, TransportSays};
use rspp_proto::SampleRate;
use rspp_transport_api::{Sink, Transport, TransportKind};

/// Shared by a session and its connection.
#[derive(Debug)]
pub(crate) struct Carriage(Mutex<Arc<TransportCapabilities>>);

impl Carriage {
    pub(crate) fn of(transport: &Transport) -> Self {
        let Transport {
            kind,
            source_rate,
            source: _,
            sink,
            caller: _,
        } = transport;
        Self(Mutex::new(capabilities(*kind, *source_rate, sink.as_ref())))
    }

    /// The transport says otherwise from now on.
    pub(crate) fn changes(&self, kind: TransportKind, source_rate: SampleRate, sink: &dyn Sink) {
        let now = capabilities(kind, source_rate, sink);
        *self.0.lock().expect("no code panics while locked") = now;
    }

    pub(crate) fn now(&self) -> Arc<TransportCapabilities> {
        Arc::clone(&self.0.lock().expect("no code panics while locked"))
    }
}

fn capabilities(
    kind: TransportKind,
    source_rate: SampleRate,
    sink: &dyn Sink,
) -> Arc<TransportCapabilities> {
    let says = TransportSays {
        transport: kind.as_str(),
        source_rate,
        sink_rate: sink.sample_rate(),
        sink_codec: sink.codec(),
        sink_lead_us: sink.lead().as_micros() as u64,
        reconnects: kind.reconnects(),
    };
    Arc::new(TransportCapabilities::of(says))
}
