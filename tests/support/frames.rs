//! Output frames that carry their numbers, so that what was heard can be told to the frame.

use std::{ops::RangeInclusive, time::Duration};

use rspp_host::{
    Event,
    node::{NodeContext, Step},
};
use rspp_proto::{
    AudioChunk, Payload,
    spec::{BufferSpec, DataHandling, PipelineSpec, PortType},
};
use rspp_transport_api::audio::{FRAME, to_bytes};

use crate::{
    call::{Builder, Cast, Ended},
    nodes::{Probes, custom, insert},
};

/// Has each frame of a turn carry its number in place of its sound.
pub fn numbered(builder: Builder) -> Builder {
    let mut probes = Probes::default();
    probes.add("counter", |nth, cx: &mut NodeContext, event: Event| {
        let Payload::AudioChunk(chunk) = &event.payload else {
            cx.forward(event);
            return Step::OK;
        };
        let frame = vec![nth as i16; chunk.data.len() / 2];
        let chunk = AudioChunk::pcm16(chunk.format.sample_rate, to_bytes(&frame));
        cx.forward(Event {
            payload: Payload::AudioChunk(chunk),
            ..event
        });
        Step::OK
    });
    builder
        .pipeline(|spec| {
            insert(spec, "tts", custom("counter"), "egress");
            let counter = spec
                .nodes
                .iter()
                .position(|node| node.id.as_str() == "counter");
            let speaker = spec.nodes.iter().find(|node| node.id.as_str() == "tts");
            let mode = speaker.map(|tts| tts.cancel).unwrap_or_default();
            if let Some(counter) = counter {
                spec.nodes[counter].cancel = mode;
            }
            buffers(spec, 150, 2_000);
        })
        .configure(probes.install())
}

/// Bounds the edges that the agent's audio takes; nothing is dropped on them, senders wait.
pub fn buffers(spec: &mut PipelineSpec, items: u64, patience_ms: u64) {
    for edge in &mut spec.edges {
        if edge.carries == PortType::Audio && edge.from.as_str() != "ingress" {
            edge.buffer = Some(BufferSpec {
                strategy: Some(DataHandling::Block),
                max_queue_items: Some(items),
                max_queue_ms: Some(3_000),
                max_queue_bytes: Some(1_048_576),
                max_latency_contribution_ms: Some(3_000),
                max_block_time_ms: Some(patience_ms),
                ..BufferSpec::default()
            });
        }
    }
}

/// The agent's side of a call: each silence (number 0) and each numbered frame, and how long it was.
pub fn stretches(ended: &Ended) -> Vec<(i16, Duration)> {
    let heard = ended.line.take_rest().agent;
    heard
        .chunk_by(|a, b| a == b)
        .map(|piece| (piece[0], Duration::from_millis(piece.len() as u64 / 16)))
        .collect()
}

/// Demands that these frames were heard, each once and whole; tells the silences between them.
#[track_caller]
pub fn assert_heard(ended: &Ended, frames: RangeInclusive<i16>) -> Vec<Duration> {
    let stretches = stretches(ended);
    let heard: Vec<_> = stretches.iter().filter(|(n, _)| *n != 0).collect();
    let numbers: Vec<i16> = heard.iter().map(|(n, _)| *n).collect();
    assert_eq!(numbers, frames.collect::<Vec<_>>());
    assert!(
        heard.iter().all(|(_, length)| *length == FRAME),
        "{heard:?}"
    );
    let silences = stretches.split(|(n, _)| *n != 0);
    let mut between: Vec<Duration> = silences.flatten().map(|(_, length)| *length).collect();
    // Before the first frame and after the last it is no silence of the reply's.
    between.pop();
    if !between.is_empty() {
        between.remove(0);
    }
    between
}

/// How many frames a text takes, which is spoken sentence by sentence.
pub fn frames_of(cast: &Cast, text: &str) -> i16 {
    let clauses = text.split_inclusive(". ").map(str::trim);
    let length: Duration = clauses.map(|clause| cast.tts.duration_of(clause)).sum();
    (length.as_millis() / FRAME.as_millis()) as i16
}
