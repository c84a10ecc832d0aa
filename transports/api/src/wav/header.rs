//! The head of a WAV file, up to its first sample.
//!
//! Read here and not by a library because lengths that were never known (a program wrote into a
//! pipe) are common, and libraries refuse them.

use std::io::{self, Read};

/// What the samples are like, and how many bytes of them are promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) format: u16,
    pub(super) channels: u16,
    pub(super) rate: u32,
    /// Bytes of one sample of every channel.
    pub(super) block: u16,
    pub(super) bits: u16,
    pub(super) data_bytes: u32,
}

/// Integer samples.
pub(super) const PCM: u16 = 1;
/// Floating-point samples.
pub(super) const FLOAT: u16 = 3;
/// The real format stands in the extension.
const EXTENSIBLE: u16 = 0xfffe;

/// Why there is no header.
#[derive(Debug)]
pub(super) enum HeaderError {
    /// The file ends before any sample.
    NoData,
    /// It contradicts itself.
    Damaged(&'static str),
    Io(io::Error),
}

impl From<io::Error> for HeaderError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::NoData,
            _ => Self::Io(error),
        }
    }
}

/// Reads from the start of a RIFF/WAVE file to where the samples begin.
pub(super) fn read(reader: &mut impl Read) -> Result<Header, HeaderError> {
    let mut riff = [0; 12];
    reader.read_exact(&mut riff)?;
    let mut header = None;
    loop {
        let mut chunk = [0; 8];
        reader.read_exact(&mut chunk)?;
        let [a, b, c, d, length @ ..] = chunk;
        let length = u32::from_le_bytes(length);
        match &[a, b, c, d] {
            b"fmt " => header = Some(format(reader, length)?),
            b"data" => {
                let header = header.ok_or(HeaderError::Damaged("its samples are not described"))?;
                return Ok(Header {
                    data_bytes: length,
                    ..header
                });
            }
            _ => skip(reader, padded(length))?,
        }
    }
}

fn format(reader: &mut impl Read, length: u32) -> Result<Header, HeaderError> {
    let mut bytes = [0; 26];
    let there = bytes.len().min(length as usize);
    if there < 16 {
        return Err(HeaderError::Damaged("its description is too short"));
    }
    reader.read_exact(&mut bytes[..there])?;
    skip(reader, padded(length) - there as u64)?;
    let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let rate = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let header = Header {
        format: if short(0) == EXTENSIBLE {
            short(24)
        } else {
            short(0)
        },
        channels: short(2),
        rate,
        block: short(12),
        bits: short(14),
        data_bytes: 0,
    };
    if header.channels == 0 {
        return Err(HeaderError::Damaged("it has no channels"));
    }
    if header.block == 0 || !header.block.is_multiple_of(header.channels) {
        return Err(HeaderError::Damaged("its sample size is wrong"));
    }
    Ok(header)
}

/// Chunks are padded to an even length.
fn padded(length: u32) -> u64 {
    u64::from(length) + u64::from(length % 2)
}

fn skip(reader: &mut impl Read, bytes: u64) -> io::Result<()> {
    let skipped = io::copy(&mut reader.by_ref().take(bytes), &mut io::sink())?;
    if skipped < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
