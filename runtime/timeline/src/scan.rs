//! Walks the frames of a file that may be cut or damaged anywhere.
//!
//! Leaves the meaning of a frame to [`crate::Timeline`].

use std::io::{self, Read, Seek, SeekFrom};

use crate::format::{
    self, FRAME_HEADER_BYTES, FormatVersion, FrameHeader, PREAMBLE_BYTES, PreambleError,
};

/// Bytes looked at together while searching for the next sound frame.
const SEARCH_BYTES: usize = 64 << 10;

/// Bytes that a checksum does not vouch for; reading went on behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where the damaged frame begins.
    pub offset: u64,
    /// First byte behind the damage.
    pub end: u64,
    /// What of the frame is wrong.
    pub part: DamagedPart,
}

/// Which checksum failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DamagedPart {
    /// Length or kind, so that it is unknown how many frames are lost.
    Header,
    /// The content of exactly one frame.
    Payload,
}

/// A frame without its end: the writer was stopped, or the file was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Where the last whole frame ends.
    pub offset: u64,
    /// Bytes after it, which are lost.
    pub lost: u64,
    /// How many more bytes the frame would have had; `None` if not even its header is whole.
    pub missing: Option<u64>,
}

/// What the next bytes of a file are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scanned {
    Frame {
        offset: u64,
        kind: u8,
        payload: Vec<u8>,
    },
    Damage(Damage),
    Torn(Torn),
}

/// The frames of `input`, from the first.
#[derive(Debug)]
pub(crate) struct Scan<R> {
    input: R,
    at: u64,
    length: u64,
}

impl<R: Read + Seek> Scan<R> {
    /// Reads the preamble. A file cut inside its preamble has no frames and is torn at 0.
    pub(crate) fn open(mut input: R) -> io::Result<Result<(Self, FormatVersion), PreambleError>> {
        let length = input.seek(SeekFrom::End(0))?;
        input.seek(SeekFrom::Start(0))?;
        let mut start = Vec::with_capacity(PREAMBLE_BYTES);
        input
            .by_ref()
            .take(PREAMBLE_BYTES as u64)
            .read_to_end(&mut start)?;
        Ok(match format::parse_preamble(&start) {
            Ok(version) => Ok((
                Self {
                    input,
                    at: PREAMBLE_BYTES as u64,
                    length,
                },
                version,
            )),
            Err(PreambleError::Cut { .. }) => Ok((
                Self {
                    input,
                    at: 0,
                    length,
                },
                format::VERSION,
            )),
            Err(
                error @ (PreambleError::NotATimeline { .. }
                | PreambleError::Damaged { .. }
                | PreambleError::UnsupportedMajor { .. }),
            ) => Err(error),
        })
    }

    /// What comes next; `None` at the end of the file.
    pub(crate) fn next(&mut self) -> io::Result<Option<Scanned>> {
        let left = self.length - self.at;
        if left == 0 {
            return Ok(None);
        }
        let offset = self.at;
        if left < FRAME_HEADER_BYTES as u64 || self.at < PREAMBLE_BYTES as u64 {
            return Ok(Some(self.torn(left, None)));
        }
        let mut head = [0; FRAME_HEADER_BYTES];
        self.input.read_exact(&mut head)?;
        let Some(header) = FrameHeader::parse(&head) else {
            let end = self.find_frame(offset + 1)?;
            self.input.seek(SeekFrom::Start(end))?;
            self.at = end;
            let part = DamagedPart::Header;
            return Ok(Some(Scanned::Damage(Damage { offset, end, part })));
        };
        let whole = (FRAME_HEADER_BYTES + header.length) as u64;
        if whole > left {
            return Ok(Some(self.torn(left, Some(whole - left))));
        }
        let mut payload = vec![0; header.length];
        self.input.read_exact(&mut payload)?;
        self.at = offset + whole;
        Ok(Some(if header.matches(&payload) {
            Scanned::Frame {
                offset,
                kind: header.kind,
                payload,
            }
        } else {
            let part = DamagedPart::Payload;
            Scanned::Damage(Damage {
                offset,
                end: self.at,
                part,
            })
        }))
    }

    /// Where the walk stands: behind what `next` returned last.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    fn torn(&mut self, lost: u64, missing: Option<u64>) -> Scanned {
        let offset = self.at;
        self.at = self.length;
        Scanned::Torn(Torn {
            offset,
            lost,
            missing,
        })
    }

    /// The first sound frame at or behind `from`; the file's end if there is none.
    fn find_frame(&mut self, from: u64) -> io::Result<u64> {
        let mut start = from;
        let mut window = Vec::with_capacity(SEARCH_BYTES);
        while start + FRAME_HEADER_BYTES as u64 <= self.length {
            window.clear();
            self.input.seek(SeekFrom::Start(start))?;
            self.input
                .by_ref()
                .take(SEARCH_BYTES as u64)
                .read_to_end(&mut window)?;
            for (shift, head) in window.windows(FRAME_HEADER_BYTES).enumerate() {
                let head = head.try_into().expect("a window has its length");
                let at = start + shift as u64;
                if let Some(header) = FrameHeader::parse(head)
                    && self.is_sound(at, header)?
                {
                    return Ok(at);
                }
            }
            // The next window begins with the bytes that were too few for a header here.
            start += (window.len() - (FRAME_HEADER_BYTES - 1)) as u64;
        }
        Ok(self.length)
    }

    fn is_sound(&mut self, at: u64, header: FrameHeader) -> io::Result<bool> {
        let payload_at = at + FRAME_HEADER_BYTES as u64;
        if header.length as u64 > self.length - payload_at {
            return Ok(false);
        }
        let mut payload = vec![0; header.length];
        self.input.seek(SeekFrom::Start(payload_at))?;
        self.input.read_exact(&mut payload)?;
        Ok(header.matches(&payload))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;
    use crate::format::{VERSION, preamble, write_frame};

    fn file(payloads: &[Vec<u8>]) -> (Vec<u8>, Vec<u64>) {
        let mut bytes = preamble(VERSION).to_vec();
        let mut ends = vec![bytes.len() as u64];
        for (index, payload) in payloads.iter().enumerate() {
            write_frame(&mut bytes, index as u8, payload).unwrap();
            ends.push(bytes.len() as u64);
        }
        (bytes, ends)
    }

    fn walk(bytes: &[u8]) -> Result<Vec<Scanned>, PreambleError> {
        let (mut scan, _) = Scan::open(Cursor::new(bytes)).unwrap()?;
        let mut all = Vec::new();
        while let Some(scanned) = scan.next().unwrap() {
            all.push(scanned);
        }
        Ok(all)
    }

    fn frames(all: &[Scanned]) -> Vec<Vec<u8>> {
        all.iter()
            .filter_map(|scanned| match scanned {
                Scanned::Frame { payload, .. } => Some(payload.clone()),
                Scanned::Damage(_) | Scanned::Torn(_) => None,
            })
            .collect()
    }

    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..8)
    }

    proptest! {
        /// A file cut at any byte opens up to its last whole frame and says what was lost.
        #[test]
        fn a_cut_file_keeps_its_whole_frames(payloads in payloads(), cut in any::<prop::sample::Index>()) {
            let (bytes, ends) = file(&payloads);
            let cut = cut.index(bytes.len() + 1);
            let all = walk(&bytes[..cut]).unwrap();
            let last_end = ends.iter().copied().filter(|end| *end <= cut as u64).max().unwrap_or(0);
            let whole = ends.iter().filter(|end| **end <= cut as u64).count().saturating_sub(1);
            prop_assert_eq!(frames(&all), &payloads[..whole]);
            if last_end == cut as u64 {
                prop_assert_eq!(all.len(), whole);
            } else {
                let Some(Scanned::Torn(torn)) = all.last() else {
                    panic!("no loss reported: {all:?}");
                };
                prop_assert_eq!((torn.offset, torn.lost), (last_end, cut as u64 - last_end));
                if let Some(missing) = torn.missing {
                    prop_assert!(ends.contains(&(cut as u64 + missing)));
                }
            }
        }

        /// One flipped bit costs at most the frame it is in, and that frame's offset is named.
        #[test]
        fn a_flipped_bit_is_found_where_it_is(
            payloads in payloads(),
            byte in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let (mut bytes, ends) = file(&payloads);
            let byte = byte.index(bytes.len());
            bytes[byte] ^= 1 << bit;
            if byte < PREAMBLE_BYTES {
                prop_assert!(walk(&bytes).is_err());
                return Ok(());
            }
            let all = walk(&bytes).unwrap();
            let hit = ends.iter().position(|end| *end > byte as u64).unwrap() - 1;
            let mut others = payloads.clone();
            others.remove(hit);
            prop_assert_eq!(frames(&all), others);
            let found = all.iter().find_map(|scanned| match scanned {
                Scanned::Damage(damage) => Some(*damage),
                Scanned::Frame { .. } | Scanned::Torn(_) => None,
            });
            let part = if byte as u64 - ends[hit] < 8 { DamagedPart::Header } else { DamagedPart::Payload };
            prop_assert_eq!(found, Some(Damage { offset: ends[hit], end: ends[hit + 1], part }));
        }

        /// Garbage is never read as frames and never panics.
        #[test]
        fn garbage_is_only_damage(garbage in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = preamble(VERSION).to_vec();
            bytes.extend(&garbage);
            prop_assert_eq!(frames(&walk(&bytes).unwrap()), Vec::<Vec<u8>>::new());
        }
    }

    #[test]
    fn the_search_finds_a_frame_behind_several_windows_of_damage() {
        let mut bytes = preamble(VERSION).to_vec();
        bytes.extend(std::iter::repeat_n(0xA5, 3 * SEARCH_BYTES + 5));
        let end = bytes.len() as u64;
        write_frame(&mut bytes, 9, b"found").unwrap();
        let all = walk(&bytes).unwrap();
        let offset = PREAMBLE_BYTES as u64;
        assert_eq!(
            all,
            [
                Scanned::Damage(Damage {
                    offset,
                    end,
                    part: DamagedPart::Header
                }),
                Scanned::Frame {
                    offset: end,
                    kind: 9,
                    payload: b"found".to_vec()
                },
            ]
        );
    }
}
