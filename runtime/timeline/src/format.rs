//! The bytes of a timeline file: a preamble, then frames, each with its own checksums.
//!
//! ```text
//! file     = preamble frame*
//! preamble = magic[8]  major u16  minor u16  crc32(the 12 bytes before) u32
//! frame    = length u32  kind u8  check u24  crc32 u32  payload[length]
//! ```
//! Integers are little-endian. `check` is the low 24 bits of the CRC-32 of length and kind, so that
//! a damaged length is told apart from a cut file; `crc32` covers the eight bytes before it and the
//! payload. A payload is one MessagePack map with its field names: a file explains itself without
//! this crate. What a payload means is not decided here, see [`crate::Entry`].

use thiserror::Error;

/// First bytes of every timeline. Not text, and line-ending conversion breaks it visibly.
pub const MAGIC: [u8; 8] = *b"\x89RSPTL\r\n";

/// The format this crate writes. A reader refuses another major and skips unknown frames of a
/// newer minor.
pub const VERSION: FormatVersion = FormatVersion { major: 1, minor: 1 };

/// Bytes before the first frame.
pub const PREAMBLE_BYTES: usize = 16;

/// Bytes before a frame's payload.
pub const FRAME_HEADER_BYTES: usize = 12;

/// Largest payload; longer is damage when read and an error when written.
pub const MAX_PAYLOAD_BYTES: usize = 16 << 20;

/// A file format's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FormatVersion {
    /// Incompatible with any other.
    pub major: u16,
    /// Adds frame kinds and fields.
    pub minor: u16,
}

/// Why bytes are not a timeline that this build can read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PreambleError {
    /// The magic is wrong.
    #[error(
        "not a timeline: byte {offset} is {found:#04x}, a timeline has {expected:#04x} there; \
         pass a file that `rspp` recorded"
    )]
    NotATimeline {
        /// First byte that differs.
        offset: u64,
        /// The byte there.
        found: u8,
        /// The byte that belongs there.
        expected: u8,
    },
    /// The version was damaged.
    #[error(
        "the preamble (bytes {offset} to {}) is damaged: its checksum does not match; restore the \
         file from a copy", PREAMBLE_BYTES - 1
    )]
    Damaged {
        /// Where the damaged part begins.
        offset: u64,
    },
    /// Another major.
    #[error(
        "the timeline has format {found_major}.{found_minor}, this build reads {}.x; use the \
         `rspp` release that wrote it", VERSION.major
    )]
    UnsupportedMajor {
        /// The file's major.
        found_major: u16,
        /// The file's minor.
        found_minor: u16,
    },
    /// Fewer bytes than a preamble; what there is fits.
    #[error("the file ends after {have} of the preamble's {PREAMBLE_BYTES} bytes")]
    Cut {
        /// Bytes there are.
        have: u64,
    },
}

/// Why a payload cannot be a frame.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "an entry of {length} bytes does not fit into a frame of at most {MAX_PAYLOAD_BYTES}; record \
     it in pieces"
)]
pub struct FrameTooLong {
    /// The payload's length.
    pub length: usize,
}

/// The sixteen bytes at the start of a file of `version`.
pub fn preamble(version: FormatVersion) -> [u8; PREAMBLE_BYTES] {
    let mut bytes = [0; PREAMBLE_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&version.major.to_le_bytes());
    bytes[10..12].copy_from_slice(&version.minor.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..12]);
    bytes[12..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Reads a preamble from the first bytes of a file; more bytes than that are ignored.
pub(crate) fn parse_preamble(bytes: &[u8]) -> Result<FormatVersion, PreambleError> {
    let wrong = bytes
        .iter()
        .zip(&MAGIC)
        .position(|(have, want)| have != want);
    if let Some(at) = wrong {
        return Err(PreambleError::NotATimeline {
            offset: at as u64,
            found: bytes[at],
            expected: MAGIC[at],
        });
    }
    let Some(bytes) = bytes.first_chunk::<PREAMBLE_BYTES>() else {
        return Err(PreambleError::Cut {
            have: bytes.len() as u64,
        });
    };
    let [.., a, b, c, d] = *bytes;
    if crc32fast::hash(&bytes[..12]) != u32::from_le_bytes([a, b, c, d]) {
        return Err(PreambleError::Damaged {
            offset: MAGIC.len() as u64,
        });
    }
    let version = FormatVersion {
        major: u16::from_le_bytes([bytes[8], bytes[9]]),
        minor: u16::from_le_bytes([bytes[10], bytes[11]]),
    };
    if version.major != VERSION.major {
        return Err(PreambleError::UnsupportedMajor {
            found_major: version.major,
            found_minor: version.minor,
        });
    }
    Ok(version)
}

/// Appends one frame to `out`.
pub fn write_frame(out: &mut Vec<u8>, kind: u8, payload: &[u8]) -> Result<(), FrameTooLong> {
    let length = payload.len();
    if length > MAX_PAYLOAD_BYTES {
        return Err(FrameTooLong { length });
    }
    let mut head = [0; 8];
    head[..4].copy_from_slice(&(length as u32).to_le_bytes());
    head[4] = kind;
    let check = head_check(head);
    head[5..].copy_from_slice(&check);
    let crc = frame_crc(head, payload);
    out.reserve(FRAME_HEADER_BYTES + length);
    out.extend_from_slice(&head);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// A frame's header, as read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) kind: u8,
    pub(crate) length: usize,
    head: [u8; 8],
    crc: u32,
}

impl FrameHeader {
    /// Reads a header; `None` if its own check does not match.
    pub(crate) fn parse(bytes: &[u8; FRAME_HEADER_BYTES]) -> Option<Self> {
        let [l0, l1, l2, l3, kind, k0, k1, k2, c0, c1, c2, c3] = *bytes;
        let head = [l0, l1, l2, l3, kind, k0, k1, k2];
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let sound = head_check(head) == [k0, k1, k2] && length <= MAX_PAYLOAD_BYTES;
        sound.then_some(Self {
            kind,
            length,
            head,
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
        })
    }

    /// Whether `payload` is what was written.
    pub(crate) fn matches(&self, payload: &[u8]) -> bool {
        frame_crc(self.head, payload) == self.crc
    }
}

fn head_check(head: [u8; 8]) -> [u8; 3] {
    let [a, b, c, _] = crc32fast::hash(&head[..5]).to_le_bytes();
    [a, b, c]
}

fn frame_crc(head: [u8; 8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preamble_reads_back() {
        assert_eq!(parse_preamble(&preamble(VERSION)), Ok(VERSION));
    }

    #[test]
    fn a_newer_minor_is_read_and_another_major_is_refused() {
        let newer = FormatVersion {
            major: VERSION.major,
            minor: VERSION.minor + 7,
        };
        assert_eq!(parse_preamble(&preamble(newer)), Ok(newer));
        let other = FormatVersion {
            major: VERSION.major + 1,
            minor: 3,
        };
        let error = parse_preamble(&preamble(other)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the timeline has format 2.3, this build reads 1.x; use the `rspp` release that wrote it"
        );
    }

    #[test]
    fn every_flipped_bit_of_the_preamble_is_found() {
        for bit in 0..PREAMBLE_BYTES * 8 {
            let mut bytes = preamble(VERSION);
            bytes[bit / 8] ^= 1 << (bit % 8);
            match parse_preamble(&bytes).unwrap_err() {
                PreambleError::NotATimeline { offset, .. } => assert_eq!(offset, bit as u64 / 8),
                PreambleError::Damaged { offset } => {
                    assert_eq!(offset, 8);
                    assert!(bit / 8 >= 8);
                }
                error @ (PreambleError::UnsupportedMajor { .. } | PreambleError::Cut { .. }) => {
                    panic!("bit {bit}: {error}")
                }
            }
        }
    }

    #[test]
    fn zeroes_are_no_frame() {
        // What a file system leaves at the end of a file after a power cut.
        assert_eq!(FrameHeader::parse(&[0; FRAME_HEADER_BYTES]), None);
    }

    #[test]
    fn a_frame_too_long_is_refused() {
        let mut out = Vec::new();
        let error = write_frame(&mut out, 1, &vec![0; MAX_PAYLOAD_BYTES + 1]).unwrap_err();
        assert_eq!(error.length, MAX_PAYLOAD_BYTES + 1);
        assert!(out.is_empty());
    }
}
