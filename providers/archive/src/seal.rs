//! What a sealed object is made of (F-169).
//!
//! Each object has a fresh key of its own, which seals its bytes in frames with AES-256-GCM; that key lies in the
//! object's head, wrapped under a key of the ring that the head names. So a ring's key is used once an object, an
//! object is rewrapped without its bytes, and a key that is taken away takes all under it.
//!
//! ```text
//! "RSPPSEAL" 1  kid: u8 length, text  name: u16 length, text  frame: u32   <- sealed to what follows
//! nonce: 12  wrapped key: 32 + 16
//! frames: `frame` bytes + 16 each, the last one shorter or as long, and marked as the last by its nonce
//! ```
//!
//! Numbers are big-endian. The head's name is the object's key in the archive: an object that is put under
//! another one is not taken for it. A file that was cut opens up to its last whole frame.

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use thiserror::Error;

const MAGIC: &[u8; 8] = b"RSPPSEAL";
const VERSION: u8 = 1;
/// Bytes of a frame before it is sealed.
const FRAME: usize = 64 * 1024;
/// Most that a head may ask for.
const MOST_FRAME: usize = 16 * 1024 * 1024;
/// What sealing adds to a frame.
const TAG: usize = 16;
/// Bytes of a key.
pub(crate) const KEY: usize = 32;
/// First bytes of an object that hold all of its head: names of keys and of objects are short.
pub const HEAD_BYTES: u64 = 1_024;

/// Why a sealed object does not open.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SealError {
    /// It is not one.
    #[error("is not sealed")]
    NotSealed,
    /// It comes from a later build.
    #[error("is sealed in version {0}, which this build does not read")]
    Version(u8),
    /// It was cut before there was anything to open.
    #[error("is cut within its head")]
    Cut,
    /// The key does not fit: it is another one under that name, or the head was altered.
    #[error(
        "does not open with key `{kid}`: that key is not the one it was sealed with, or its head was altered"
    )]
    WrongKey {
        /// The key's name.
        kid: String,
    },
    /// Its bytes are not those that were sealed.
    #[error("was altered at {at}")]
    Altered {
        /// Where, in bytes of what was sealed.
        at: usize,
    },
    /// The system has no randomness to make a key of.
    #[error("no key could be made: the system gives no random bytes")]
    NoRandomness,
}

/// A key that wraps the keys of objects.
pub(crate) struct Wrapping(LessSafeKey);

impl Wrapping {
    pub(crate) fn new(bytes: &[u8; KEY]) -> Self {
        Self(key(bytes))
    }
}

fn key(bytes: &[u8; KEY]) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, bytes).expect("the algorithm takes 32 bytes");
    LessSafeKey::new(key)
}

/// What stands before an object's frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head<'a> {
    /// The name of the key that wraps.
    pub(crate) kid: &'a str,
    /// The object's key in the archive.
    pub(crate) name: &'a str,
    frame: usize,
    /// What wrapping vouches for.
    vouched: &'a [u8],
    nonce: [u8; NONCE_LEN],
    wrapped: &'a [u8],
    frames: &'a [u8],
}

/// Whether an object is sealed, as far as its beginning shows.
pub(crate) fn is_sealed(object: &[u8]) -> bool {
    object.starts_with(MAGIC)
}

impl<'a> Head<'a> {
    pub(crate) fn read(object: &'a [u8]) -> Result<Self, SealError> {
        let mut rest = object.strip_prefix(MAGIC).ok_or(SealError::NotSealed)?;
        let version = take(&mut rest, 1)?[0];
        if version != VERSION {
            return Err(SealError::Version(version));
        }
        let length = usize::from(take(&mut rest, 1)?[0]);
        let kid = text(take(&mut rest, length)?)?;
        let length = u16::from_be_bytes(array(take(&mut rest, 2)?));
        let name = text(take(&mut rest, length.into())?)?;
        let frame = u32::from_be_bytes(array(take(&mut rest, 4)?)) as usize;
        let vouched = &object[..object.len() - rest.len()];
        if !(1..=MOST_FRAME).contains(&frame) {
            return Err(SealError::Altered { at: 0 });
        }
        let nonce = array(take(&mut rest, NONCE_LEN)?);
        let wrapped = take(&mut rest, KEY + TAG)?;
        Ok(Self {
            kid,
            name,
            frame,
            vouched,
            nonce,
            wrapped,
            frames: rest,
        })
    }

    /// What was sealed, and whether that is all of it.
    pub(crate) fn open(&self, wrapping: &Wrapping) -> Result<(Vec<u8>, bool), SealError> {
        let mut unwrapped = self.wrapped.to_vec();
        let nonce = Nonce::assume_unique_for_key(self.nonce);
        let opened = wrapping
            .0
            .open_in_place(nonce, Aad::from(self.vouched), &mut unwrapped);
        let opened = opened.map_err(|_| SealError::WrongKey {
            kid: self.kid.to_owned(),
        })?;
        let data = key(&array(opened));
        let mut plain = Vec::with_capacity(self.frames.len());
        let mut frames = self.frames.chunks(self.frame + TAG).zip(0..).peekable();
        while let Some((frame, number)) = frames.next() {
            let at = plain.len();
            if frames.peek().is_some() {
                let opened = opened_frame(&data, frame, number, false);
                plain.extend(opened.ok_or(SealError::Altered { at })?);
                continue;
            }
            if let Some(last) = opened_frame(&data, frame, number, true) {
                plain.extend(last);
                return Ok((plain, true));
            }
            // Cut behind a frame, or within one: how a shorter one should have gone on nobody knows.
            match opened_frame(&data, frame, number, false) {
                Some(opened) => plain.extend(opened),
                None if frame.len() == self.frame + TAG => return Err(SealError::Altered { at }),
                None => {}
            }
        }
        Ok((plain, false))
    }
}

/// Seals an object that the archive is to keep under `name`.
pub(crate) fn seal(
    wrapping: &Wrapping,
    kid: &str,
    name: &str,
    plain: &[u8],
) -> Result<Vec<u8>, SealError> {
    let (mut fresh, mut nonce) = ([0; KEY], [0; NONCE_LEN]);
    let random = SystemRandom::new();
    random
        .fill(&mut fresh)
        .and_then(|()| random.fill(&mut nonce))
        .map_err(|_| SealError::NoRandomness)?;
    let frames = plain.len().div_ceil(FRAME).max(1);
    let mut object = Vec::with_capacity(512 + plain.len() + frames * TAG);
    object.extend(MAGIC);
    object.push(VERSION);
    object.push(u8::try_from(kid.len()).expect("names of keys are short"));
    object.extend(kid.as_bytes());
    let length = u16::try_from(name.len()).expect("keys of objects are short");
    object.extend(length.to_be_bytes());
    object.extend(name.as_bytes());
    object.extend((FRAME as u32).to_be_bytes());
    let mut wrapped = fresh.to_vec();
    let vouched = Aad::from(&object[..]);
    wrapping
        .0
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), vouched, &mut wrapped)
        .expect("a key is short enough to be sealed");
    object.extend(nonce);
    object.extend(wrapped);
    let data = key(&fresh);
    for number in 0..frames {
        let from = number * FRAME;
        let frame = &plain[from..plain.len().min(from + FRAME)];
        let at = object.len();
        object.extend(frame);
        let nonce = frame_nonce(number as u64, number + 1 == frames);
        let tag = data
            .seal_in_place_separate_tag(nonce, Aad::empty(), &mut object[at..])
            .expect("a frame is short enough to be sealed");
        object.extend(tag.as_ref());
    }
    Ok(object)
}

fn opened_frame(data: &LessSafeKey, frame: &[u8], number: u64, is_last: bool) -> Option<Vec<u8>> {
    let mut bytes = frame.to_vec();
    let nonce = frame_nonce(number, is_last);
    let plain = data.open_in_place(nonce, Aad::empty(), &mut bytes).ok()?;
    let length = plain.len();
    bytes.truncate(length);
    Some(bytes)
}

/// Never the same twice under one object's key.
fn frame_nonce(number: u64, is_last: bool) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[..8].copy_from_slice(&number.to_be_bytes());
    nonce[8] = is_last.into();
    Nonce::assume_unique_for_key(nonce)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], SealError> {
    let (taken, left) = rest.split_at_checked(length).ok_or(SealError::Cut)?;
    *rest = left;
    Ok(taken)
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("so many were taken")
}

fn text(bytes: &[u8]) -> Result<&str, SealError> {
    str::from_utf8(bytes).map_err(|_| SealError::Altered { at: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapping(byte: u8) -> Wrapping {
        Wrapping::new(&[byte; KEY])
    }

    fn plain(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 31 % 251) as u8).collect()
    }

    #[track_caller]
    fn opened(object: &[u8]) -> Result<(Vec<u8>, bool), SealError> {
        Head::read(object)?.open(&wrapping(1))
    }

    /// F-169: whatever its length, an object opens with its key and shows nothing without it.
    #[test]
    fn what_is_sealed_opens_with_its_key_and_no_other() {
        for length in [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME] {
            let plain = plain(length);
            let object = seal(&wrapping(1), "k1", "acme/a/1-1/0.part", &plain).unwrap();
            let head = Head::read(&object).unwrap();
            assert_eq!((head.kid, head.name), ("k1", "acme/a/1-1/0.part"));
            assert_eq!(head.open(&wrapping(1)), Ok((plain.clone(), true)));
            let kid = "k1".to_owned();
            assert_eq!(head.open(&wrapping(2)), Err(SealError::WrongKey { kid }));
            assert!(length < 64 || !object.windows(64).any(|it| it == &plain[..64]));
            let again = seal(&wrapping(1), "k1", "acme/a/1-1/0.part", &plain).unwrap();
            assert!(again != object, "each object has a key of its own");
        }
    }

    /// F-169: a file that was cut anywhere opens up to the cut, and never says that it is whole.
    #[test]
    fn a_cut_object_opens_up_to_the_cut() {
        let plain = plain(2 * FRAME + 100);
        let object = seal(&wrapping(1), "k1", "n", &plain).unwrap();
        let head = object.len() - (plain.len() + 3 * TAG);
        for cut in 0..head {
            let error = opened(&object[..cut]).unwrap_err();
            let is_told = matches!(error, SealError::NotSealed | SealError::Cut);
            assert!(is_told, "{cut}: {error}");
        }
        let sealed_frame = FRAME + TAG;
        for cut in [0, 1, sealed_frame - 1, sealed_frame, sealed_frame + 1]
            .into_iter()
            .chain([2 * sealed_frame, 2 * sealed_frame + 50])
        {
            let (found, is_whole) = opened(&object[..head + cut]).unwrap();
            assert!(!is_whole, "{cut}");
            assert!(found == plain[..cut / sealed_frame * FRAME], "{cut}");
        }
    }

    /// F-169: a flipped bit is noticed wherever it is.
    #[test]
    fn an_altered_object_does_not_open() {
        let plain = plain(FRAME + 40);
        let object = seal(&wrapping(1), "k1", "name", &plain).unwrap();
        let frames = object.len() - (plain.len() + 2 * TAG);
        for at in (0..frames).chain([frames, frames + FRAME]) {
            let mut altered = object.clone();
            altered[at] ^= 1;
            assert!(opened(&altered).is_err(), "{at}");
        }
        let mut altered = object.clone();
        *altered.last_mut().unwrap() ^= 1;
        let (found, is_whole) = opened(&altered).unwrap();
        assert!(
            !is_whole && found == plain[..FRAME],
            "as if it were cut there"
        );
        // Two frames that changed places.
        let plain = plain_of_frames(3);
        let object = seal(&wrapping(1), "k1", "name", &plain).unwrap();
        let frames = object.len() - (plain.len() + 3 * TAG);
        let (one, other) = (frames, frames + FRAME + TAG);
        let mut altered = object[..frames].to_vec();
        altered.extend(&object[other..other + FRAME + TAG]);
        altered.extend(&object[one..other]);
        altered.extend(&object[other + FRAME + TAG..]);
        assert_eq!(opened(&altered), Err(SealError::Altered { at: 0 }));
    }

    fn plain_of_frames(frames: usize) -> Vec<u8> {
        plain(frames * FRAME)
    }
}
