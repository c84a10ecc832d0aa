//! What it costs to carry audio smaller than samples, frame by frame, and how much later it is heard.
//!
//! `cargo bench -p rspp-tests --bench codec` prints a table, with `-- --json` JSON, with `-- --quick`
//! hastily. One thread, real time.
//!
//! As a socket does it: frames of 20 ms of a voice of sorts, written and read again by the transport's own
//! encoder and decoder.

use std::time::Duration;

use rspp_tests::bench::{Aim, Args, Table, histogram, us};
use rspp_websocket::{
    protocol::{AudioCodec, Format},
    testing::{Coded, coded, voice},
};

fn main() {
    let args = Args::read();
    let mut table = Table::new(
        "codec",
        "a voice in frames of 20 ms, written and read; 1 thread",
    );
    let seconds = args.pick(60, 2);
    report(&mut table, "pcmu", AudioCodec::Pcmu, 8_000, seconds);
    for rate in [8_000, 16_000, 24_000, 48_000] {
        report(&mut table, "opus", AudioCodec::Opus, rate, seconds);
    }
    table.print(args);
}

fn sorted(took: &[Duration]) -> hdrhistogram::Histogram<u64> {
    let mut histogram = histogram();
    for took in took {
        histogram.saturating_record(took.as_nanos() as u64);
    }
    histogram
}

fn report(table: &mut Table, name: &str, codec: AudioCodec, rate: u32, seconds: usize) {
    let Coded {
        written,
        read,
        wire_bytes,
        delay,
    } = coded(Format { rate, codec }, &voice(rate, seconds));
    let frames = written.len().max(1) as f64;
    let (written, read) = (sorted(&written), sorted(&read));
    let of = |what: &str| format!("{name} at {rate} Hz: {what}");
    table.note(
        "write_p50_us",
        of("a frame written, p50"),
        us(&written, 0.5),
        "us",
    );
    // A twentieth of a core for each direction of a socket.
    let most = Aim::AtMost(1_000.0);
    table.aim(
        "write_p99_us",
        of("a frame written, p99"),
        us(&written, 0.99),
        "us",
        most,
    );
    table.note("read_p50_us", of("a frame read, p50"), us(&read, 0.5), "us");
    table.aim(
        "read_p99_us",
        of("a frame read, p99"),
        us(&read, 0.99),
        "us",
        most,
    );
    table.note(
        "bytes",
        of("bytes a frame"),
        wire_bytes as f64 / frames,
        "bytes",
    );
    let ms = delay as f64 * 1e3 / f64::from(rate);
    table.aim(
        "delay_ms",
        of("heard later by"),
        ms,
        "ms",
        Aim::AtMost(15.0),
    );
}
