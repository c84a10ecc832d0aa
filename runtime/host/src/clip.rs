//! Recordings that can be played when there is no voice to say something (F-135).

use std::sync::Arc;

use bytes::Bytes;
use rspp_proto::SampleRate;
use rspp_transport_api::audio::Framer;

/// A recording, cut into frames once for all sessions.
#[derive(Clone, Debug)]
pub struct Clip {
    rate: SampleRate,
    frames: Arc<[Bytes]>,
}

impl Clip {
    /// A recording of 16-bit little-endian mono samples; its last frame is filled with silence.
    pub fn new(rate: SampleRate, pcm: Bytes) -> Self {
        let mut framer = Framer::new(rate);
        let mut frames = Vec::new();
        framer.push(pcm, |frame| frames.push(frame));
        frames.extend(framer.finish());
        Self {
            rate,
            frames: frames.into(),
        }
    }

    pub(crate) fn rate(&self) -> SampleRate {
        self.rate
    }

    pub(crate) fn frames(&self) -> &Arc<[Bytes]> {
        &self.frames
    }
}
