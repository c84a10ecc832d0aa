//! How audio is written on a socket: as samples, or smaller (F-031).
//!
//! Nodes never see it: what comes is PCM before it leaves the transport, and what goes is PCM until it is sent.
//! Each socket begins both directions anew, and what the agent says begins anew with each turn, so that
//! nothing of a turn that was taken back is left in an encoder.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use opus_pure::{Application, MAX_PACKET_BYTES, MAX_PACKET_SAMPLES, OpusDecoder, OpusEncoder};
use rspp_proto::SampleRate;
use rspp_transport_api::{
    audio::{FRAME, samples, to_bytes},
    g711,
};
use serde::Serialize;

use crate::{
    outbox::Item,
    protocol::{AudioCodec, ErrorCode, Format},
};

/// Rates that Opus is coded at.
pub(crate) const OPUS_RATES: [u32; 5] = [8_000, 12_000, 16_000, 24_000, 48_000];
/// Bits a second that speech is coded with: as good as it was, to a listener.
const OPUS_BITRATE: i32 = 32_000;
/// How hard the encoder tries, of 10: beyond this speech gains little and costs much.
const OPUS_COMPLEXITY: i32 = 5;

/// What coding has saved so far, and what it has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CodecTally {
    /// Bytes of audio on the wire, both ways.
    pub wire_bytes: u64,
    /// Bytes of the same audio as samples.
    pub pcm_bytes: u64,
    /// Processor time that coding took, in microseconds.
    pub cpu_us: u64,
}

#[derive(Debug, Default)]
pub(crate) struct CodecCounts {
    wire_bytes: AtomicU64,
    pcm_bytes: AtomicU64,
    cpu_ns: AtomicU64,
}

impl CodecCounts {
    pub(crate) fn tally(&self) -> CodecTally {
        CodecTally {
            wire_bytes: self.wire_bytes.load(Ordering::Relaxed),
            pcm_bytes: self.pcm_bytes.load(Ordering::Relaxed),
            cpu_us: self.cpu_ns.load(Ordering::Relaxed) / 1_000,
        }
    }

    fn coded(&self, wire: usize, pcm: usize, took: Duration) {
        self.wire_bytes.fetch_add(wire as u64, Ordering::Relaxed);
        self.pcm_bytes.fetch_add(pcm as u64, Ordering::Relaxed);
        // A frame may take less than a microsecond.
        let took = took.as_nanos() as u64;
        self.cpu_ns.fetch_add(took, Ordering::Relaxed);
    }
}

/// Why a piece of audio is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unheard(pub(crate) ErrorCode, pub(crate) String);

/// Reads what a client says.
pub(crate) enum Decoder {
    Pcm16(SampleRate),
    Pcmu(SampleRate),
    Opus {
        rate: SampleRate,
        decoder: Box<OpusDecoder>,
        pcm: Vec<i16>,
    },
}

impl Decoder {
    pub(crate) fn new(format: Format, rate: SampleRate) -> Self {
        match format.codec {
            AudioCodec::Pcm16 => Self::Pcm16(rate),
            AudioCodec::Pcmu => Self::Pcmu(rate),
            AudioCodec::Opus => Self::Opus {
                rate,
                decoder: fresh_decoder(rate),
                pcm: vec![0; MAX_PACKET_SAMPLES],
            },
        }
    }

    /// How long a piece sounds, which can be told before the work of reading it.
    pub(crate) fn lasts(&self, piece: &[u8]) -> Result<Duration, Unheard> {
        match self {
            Self::Pcm16(rate) if piece.len().is_multiple_of(2) => {
                Ok(rate.duration_of(piece.len() as u64 / 2))
            }
            Self::Pcm16(_) => Err(Unheard(
                ErrorCode::OddLength,
                format!("{} bytes are no whole 16-bit samples", piece.len()),
            )),
            Self::Pcmu(rate) => Ok(rate.duration_of(piece.len() as u64)),
            Self::Opus { rate, .. } => match opus_pure::packet::samples(piece, hertz(*rate)) {
                Ok(samples) if samples <= MAX_PACKET_SAMPLES => {
                    Ok(rate.duration_of(samples as u64))
                }
                Ok(samples) => Err(not_opus(piece, &format!("{samples} samples"))),
                Err(error) => Err(not_opus(piece, &error.to_string())),
            },
        }
    }

    /// A piece as samples.
    pub(crate) fn decode(&mut self, piece: Bytes, counts: &CodecCounts) -> Result<Bytes, Unheard> {
        let began = real_time();
        let heard = match self {
            Self::Pcm16(_) => return Ok(piece),
            Self::Pcmu(_) => {
                let heard: Vec<i16> = piece.iter().map(|byte| g711::from_ulaw(*byte)).collect();
                to_bytes(&heard)
            }
            Self::Opus { rate, decoder, pcm } => {
                let most = (hertz(*rate) / 1_000 * 120) as usize;
                // Whoever sends garbage may find what its authors did not.
                let decoded = catch_unwind(AssertUnwindSafe(|| {
                    decoder.decode_s16(&piece, most, pcm.as_mut_slice())
                }));
                match decoded {
                    Ok(Ok(samples)) => to_bytes(&pcm[..samples.min(pcm.len())]),
                    Ok(Err(error)) => return Err(not_opus(&piece, &error.to_string())),
                    Err(_panic) => {
                        *decoder = fresh_decoder(*rate);
                        return Err(not_opus(&piece, "it cannot be decoded"));
                    }
                }
            }
        };
        counts.coded(piece.len(), heard.len(), began.elapsed());
        Ok(heard)
    }
}

/// Writes what the agent says.
pub(crate) enum Encoder {
    Pcm16,
    Pcmu,
    Opus {
        rate: SampleRate,
        encoder: Box<OpusEncoder>,
        packet: Vec<u8>,
    },
}

impl Encoder {
    pub(crate) fn new(format: Format, rate: SampleRate) -> Self {
        match format.codec {
            AudioCodec::Pcm16 => Self::Pcm16,
            AudioCodec::Pcmu => Self::Pcmu,
            AudioCodec::Opus => Self::Opus {
                rate,
                encoder: fresh_encoder(rate),
                packet: vec![0; MAX_PACKET_BYTES],
            },
        }
    }

    /// A message as it is sent.
    pub(crate) fn encode(&mut self, item: Item, counts: &CodecCounts) -> Item {
        match item {
            Item::Frame { turn, pcm } => Item::Frame {
                turn,
                pcm: self.write(pcm, counts),
            },
            Item::Start(turn) => {
                if let Self::Opus { rate, encoder, .. } = self {
                    *encoder = fresh_encoder(*rate);
                }
                Item::Start(turn)
            }
            Item::End(_) | Item::Clear(_) | Item::Message(_) => item,
        }
    }

    fn write(&mut self, pcm: Bytes, counts: &CodecCounts) -> Bytes {
        let began = real_time();
        let written = match self {
            Self::Pcm16 => return pcm,
            Self::Pcmu => samples(&pcm).map(g711::to_ulaw).collect(),
            Self::Opus {
                rate,
                encoder,
                packet,
            } => {
                let frame = rate.samples_in(FRAME) as usize;
                let mut spoken: Vec<i16> = samples(&pcm).collect();
                // The last frame of a turn may be shorter than the others.
                spoken.resize(frame, 0);
                let length = encoder
                    .encode_s16(&spoken, frame, packet)
                    .expect("the rate is one of Opus's, and so is a frame of 20 ms");
                Bytes::copy_from_slice(&packet[..length])
            }
        };
        counts.coded(written.len(), pcm.len(), began.elapsed());
        written
    }
}

/// What measures work, which takes real time whatever the clock of a test says.
#[expect(clippy::disallowed_methods, reason = "measures real work")]
pub(crate) fn real_time() -> Instant {
    Instant::now()
}

fn fresh_decoder(rate: SampleRate) -> Box<OpusDecoder> {
    let decoder = OpusDecoder::new(hertz(rate), 1);
    Box::new(decoder.expect("the rate was checked to be one of Opus's"))
}

fn fresh_encoder(rate: SampleRate) -> Box<OpusEncoder> {
    let encoder = OpusEncoder::new(hertz(rate), 1, Application::Voip);
    let mut encoder = encoder.expect("the rate was checked to be one of Opus's");
    encoder.bitrate_bps = OPUS_BITRATE;
    encoder.complexity = OPUS_COMPLEXITY;
    Box::new(encoder)
}

fn hertz(rate: SampleRate) -> i32 {
    i32::try_from(rate.hertz()).expect("at most 48000")
}

fn not_opus(piece: &[u8], why: &str) -> Unheard {
    let says = format!("{} bytes are no Opus packet: {why}", piece.len());
    Unheard(ErrorCode::BadAudio, says)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rspp_proto::TurnNumber;

    use super::*;

    fn format(codec: AudioCodec, rate: u32) -> (Format, SampleRate) {
        let format = Format { rate, codec };
        (format, SampleRate::new(rate).unwrap())
    }

    fn tone(rate: u32, frames: usize) -> Vec<i16> {
        let samples = rate as usize / 50 * frames;
        let wave = |n: usize| (n as f64 * 300.0 * std::f64::consts::TAU / f64::from(rate)).sin();
        (0..samples).map(|n| (wave(n) * 8_000.0) as i16).collect()
    }

    fn power(samples: &[i16]) -> f64 {
        let sum: f64 = samples.iter().map(|it| f64::from(*it).powi(2)).sum();
        sum / samples.len() as f64
    }

    /// F-031, F-090: at each of its rates what is written is read again, nearly as it was and far smaller.
    #[test]
    fn what_is_written_smaller_is_read_again() {
        for (codec, rates, smaller) in [
            (AudioCodec::Pcmu, &[8_000, 16_000][..], 2),
            (AudioCodec::Opus, &OPUS_RATES[..], 3),
        ] {
            for rate in rates {
                let (format, hertz) = format(codec, *rate);
                let counts = CodecCounts::default();
                let mut encoder = Encoder::new(format, hertz);
                let mut decoder = Decoder::new(format, hertz);
                let spoken = tone(*rate, 50);
                let mut heard = Vec::new();
                for frame in spoken.chunks(*rate as usize / 50) {
                    let pcm = to_bytes(frame);
                    let item = Item::Frame {
                        turn: TurnNumber::FIRST,
                        pcm,
                    };
                    let Item::Frame { pcm: packet, .. } = encoder.encode(item, &counts) else {
                        panic!("a frame stays one")
                    };
                    assert_eq!(decoder.lasts(&packet), Ok(FRAME), "{codec:?} {rate}");
                    heard.extend(samples(&decoder.decode(packet, &counts).unwrap()));
                }
                assert_eq!(heard.len(), spoken.len());
                // What the encoder looks ahead is late by a few milliseconds, so powers are compared.
                let off = power(&heard[heard.len() / 2..]) / power(&spoken);
                assert!((0.8..1.25).contains(&off), "{codec:?} {rate}: {off}");
                let tally = counts.tally();
                let most = tally.pcm_bytes / smaller;
                assert!(tally.wire_bytes <= most, "{codec:?} {rate}: {tally:?}");
            }
        }
    }

    /// P1, P5: nothing of a turn is left in the encoder when the next one begins.
    #[test]
    fn a_turn_begins_anew() {
        let (format, rate) = format(AudioCodec::Opus, 16_000);
        let counts = CodecCounts::default();
        let frame = |pcm: &[i16]| Item::Frame {
            turn: TurnNumber::FIRST,
            pcm: to_bytes(pcm),
        };
        let first_of = |spoken: bool| {
            let mut encoder = Encoder::new(format, rate);
            if spoken {
                let _sent = encoder.encode(frame(&tone(16_000, 1)), &counts);
            }
            let _told = encoder.encode(Item::Start(TurnNumber(2)), &counts);
            encoder.encode(frame(&[0; 320]), &counts)
        };
        assert_eq!(first_of(true), first_of(false));
    }

    /// NF-013: what is no packet is said to be none, with what is wrong.
    #[test]
    fn what_is_no_packet_is_told() {
        let (format, rate) = format(AudioCodec::Opus, 16_000);
        let decoder = Decoder::new(format, rate);
        for (piece, says) in [
            // Two frames of equal length in an odd number of bytes; 63 frames of 20 ms; no frame at all.
            (&[0x09, 1, 2, 3, 4, 5][..], "6 bytes are no Opus packet"),
            (&[0x0b, 0x3f, 1][..], "no Opus packet"),
            (&[0x0b, 0x00][..], "no Opus packet"),
        ] {
            let mut decoder = Decoder::new(format, rate);
            let wrong = decoder.lasts(piece).and_then(|_| {
                decoder.decode(Bytes::copy_from_slice(piece), &CodecCounts::default())
            });
            let Err(Unheard(code, message)) = wrong else {
                panic!("{piece:?} is audio")
            };
            assert_eq!(code, ErrorCode::BadAudio);
            assert!(message.contains(says), "{message}");
        }
        assert!(decoder.lasts(&[0x08, 1, 2]).is_ok());
    }

    proptest! {
        /// NF-013: whatever comes, packet after packet, is audio or told to be none.
        #[test]
        fn noise_is_audio_or_none(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 1..12),
            at in 0usize..5,
        ) {
            let (format, rate) = format(AudioCodec::Opus, OPUS_RATES[at]);
            let counts = CodecCounts::default();
            let mut decoder = Decoder::new(format, rate);
            for piece in pieces {
                let Ok(lasts) = decoder.lasts(&piece) else { continue };
                prop_assert!(lasts <= Duration::from_millis(120));
                if let Ok(pcm) = decoder.decode(piece.into(), &counts) {
                    prop_assert_eq!(rate.duration_of(pcm.len() as u64 / 2), lasts);
                }
            }
        }
    }
}
