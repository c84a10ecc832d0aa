//! WAV files: reading what people have, writing a call as it happens.
//!
//! A reader's error says what is wrong with the file and what to do about it, because whoever reads
//! it has only a file name in hand.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use rspp_proto::SampleRate;
use thiserror::Error;

use self::header::{Header, HeaderError};
use crate::audio::{RATES, mix_to_mono};

mod header;

/// Longest file that is read.
pub const LONGEST: Duration = Duration::from_mins(10);

/// How much audio may be lost when the process is killed outright.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// Mono audio out of a file, at the file's own rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clip {
    /// Samples per second.
    pub rate: SampleRate,
    /// The samples; at least one.
    pub samples: Vec<i16>,
}

impl Clip {
    /// How long it plays.
    pub fn duration(&self) -> Duration {
        self.rate.duration_of(self.samples.len() as u64)
    }
}

/// Why a file cannot be read as audio, or written.
#[derive(Debug, Error)]
pub enum WavError {
    /// No such file.
    #[error("{}: no such file", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A directory, or something else that holds no bytes.
    #[error("{}: is a directory, not a WAV file", path.display())]
    Directory {
        /// The file.
        path: PathBuf,
    },
    /// Nothing in it at all.
    #[error("{}: the file is empty (0 bytes); record or export it again", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A header, but no samples.
    #[error("{}: the WAV file holds no audio (0 samples); record or export it again", path.display())]
    NoAudio {
        /// The file.
        path: PathBuf,
    },
    /// Audio of another format, whatever its name says.
    #[error(
        "{}: is {format}, not WAV; convert it: ffmpeg -i {} -ar 16000 {}",
        path.display(), path.display(), path.with_extension(converted_extension(path)).display()
    )]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// What it is, with its article: `an MP3 file`.
        format: &'static str,
    },
    /// No format that we know.
    #[error("{}: is not a WAV file (it does not start with RIFF/WAVE)", path.display())]
    NotWav {
        /// The file.
        path: PathBuf,
    },
    /// A WAV file with an encoding or shape that we do not read.
    #[error(
        "{}: {problem}; convert it: ffmpeg -i {} -c:a pcm_s16le -ar 16000 {}",
        path.display(), path.display(), path.with_extension(converted_extension(path)).display()
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// It ends before its header says it does.
    #[error(
        "{}: is cut off: the header promises {promised:.1?} of audio, the file holds {held:.1?}; record or export it again",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What the header says.
        promised: Duration,
        /// What is there.
        held: Duration,
    },
    /// Longer than [`LONGEST`].
    #[error(
        "{}: is longer than {} minutes; cut it: ffmpeg -i {} -t {} {}",
        path.display(), LONGEST.as_secs() / 60, path.display(), LONGEST.as_secs(),
        path.with_extension(converted_extension(path)).display()
    )]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The operating system does not give it to us.
    #[error("{}: cannot be read: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// It cannot be written.
    #[error("{}: cannot be written: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
}

/// The extension that advice gives the converted file: never that of the file itself, which would
/// be overwritten while it is read.
fn converted_extension(path: &Path) -> &'static str {
    match path.extension() {
        Some(extension) if extension.eq_ignore_ascii_case("wav") => "16k.wav",
        Some(_) | None => "wav",
    }
}

/// Reads a WAV file: any usual rate, any number of channels (mixed to one), 8, 16, 24 or 32-bit
/// integer or 32-bit float samples, at most [`LONGEST`].
pub fn read(path: &Path) -> Result<Clip, WavError> {
    let io_error = |error: io::Error| WavError::Io {
        path: path.to_owned(),
        error,
    };
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => WavError::Missing {
            path: path.to_owned(),
        },
        _ => io_error(error),
    })?;
    if metadata.is_dir() {
        return Err(WavError::Directory {
            path: path.to_owned(),
        });
    }
    decode_from(path, File::open(path).map_err(io_error)?)
}

/// Reads a WAV file from bytes that are there already; `path` is what errors call it.
pub fn decode_from(path: &Path, mut bytes: impl Read) -> Result<Clip, WavError> {
    let mut start = Vec::new();
    bytes
        .by_ref()
        .take(16)
        .read_to_end(&mut start)
        .map_err(|error| WavError::Io {
            path: path.to_owned(),
            error,
        })?;
    if start.is_empty() {
        return Err(WavError::Empty {
            path: path.to_owned(),
        });
    }
    if let Some(format) = other_format(&start) {
        return Err(WavError::OtherFormat {
            path: path.to_owned(),
            format,
        });
    }
    if !start.starts_with(b"RIFF") || start.get(8..12) != Some(b"WAVE") {
        return Err(WavError::NotWav {
            path: path.to_owned(),
        });
    }
    decode(path, BufReader::new(start.chain(bytes)))
}

fn decode(path: &Path, mut reader: impl Read) -> Result<Clip, WavError> {
    let path = || path.to_owned();
    let unsupported = |problem: String| WavError::Unsupported {
        path: path(),
        problem,
    };
    let header = header::read(&mut reader).map_err(|error| match error {
        HeaderError::NoData => WavError::NoAudio { path: path() },
        HeaderError::Damaged(what) => unsupported(format!("is a damaged WAV file: {what}")),
        HeaderError::Io(error) => WavError::Io {
            path: path(),
            error,
        },
    })?;
    let encoding = Encoding::of(&header).map_err(unsupported)?;
    let rate = SampleRate::new(header.rate)
        .filter(|rate| RATES.contains(&rate.hertz()))
        .ok_or_else(|| {
            let (low, high) = RATES.into_inner();
            unsupported(format!(
                "has a sample rate of {} Hz; {low} to {high} Hz are read",
                header.rate
            ))
        })?;
    let block = u64::from(header.block);
    let lasts = |bytes: u64| rate.duration_of(bytes / block);
    let promised = u64::from(header.data_bytes);
    let most = rate.samples_in(LONGEST) * block;
    let open_ended = header.data_bytes >= OPEN_ENDED;
    if promised > most && !open_ended {
        return Err(WavError::TooLong { path: path() });
    }
    let mut data = Vec::new();
    let read = reader
        .by_ref()
        .take(promised.min(most))
        .read_to_end(&mut data)
        .and_then(|_| io::copy(&mut reader.take(block), &mut io::sink()));
    let beyond = read.map_err(|error| WavError::Io {
        path: path(),
        error,
    })?;
    let held = data.len() as u64;
    if held < block {
        return Err(WavError::NoAudio { path: path() });
    }
    if open_ended && beyond > 0 {
        return Err(WavError::TooLong { path: path() });
    }
    if !open_ended && held < promised {
        return Err(WavError::Truncated {
            path: path(),
            promised: lasts(promised),
            held: lasts(held),
        });
    }
    let sample_bytes = usize::from(header.block / header.channels);
    let interleaved: Vec<i16> = data
        .chunks_exact(sample_bytes)
        .map(|bytes| encoding.sample(bytes))
        .collect();
    Ok(Clip {
        rate,
        samples: mix_to_mono(&interleaved, header.channels),
    })
}

/// Data lengths from here on mean "to the end of the file": a program that wrote into a pipe could
/// not know the length, and left one of several values close to the largest.
const OPEN_ENDED: u32 = 0x7fff_0000;

/// How a WAV file writes one sample.
#[derive(Clone, Copy)]
enum Encoding {
    Unsigned8,
    /// Signed little-endian integers; the two highest bytes hold all that 16 bits can tell.
    Signed,
    Float32,
}

impl Encoding {
    /// The encoding, or what is unusual about it.
    fn of(header: &Header) -> Result<Self, String> {
        match (header.format, header.block / header.channels, header.bits) {
            (header::PCM, 1, 8) => Ok(Self::Unsigned8),
            (header::PCM, 2, 16) | (header::PCM, 3, 24) | (header::PCM, 4, 24 | 32) => {
                Ok(Self::Signed)
            }
            (header::FLOAT, 4, 32) => Ok(Self::Float32),
            (header::PCM, _, bits) => Err(format!(
                "has {bits}-bit samples; 8, 16, 24 and 32 bits are read"
            )),
            (header::FLOAT, _, bits) => Err(format!("has {bits}-bit floats; 32 bits are read")),
            (code, _, _) => Err(format!(
                "holds compressed audio (format {code:#06x}); PCM and float are read"
            )),
        }
    }

    fn sample(self, bytes: &[u8]) -> i16 {
        match (self, bytes) {
            (Self::Unsigned8, &[byte]) => (i16::from(byte) - 128) << 8,
            (Self::Signed, &[.., low, high]) => i16::from_le_bytes([low, high]),
            (Self::Float32, &[a, b, c, d]) => {
                // `as` saturates, and makes silence of a NaN.
                (f32::from_le_bytes([a, b, c, d]) * 32_768.0) as i16
            }
            (Self::Unsigned8 | Self::Signed | Self::Float32, _) => {
                unreachable!("`of` matched the encoding with its width")
            }
        }
    }
}

/// What a file is by its first bytes, if it is audio of another kind.
fn other_format(start: &[u8]) -> Option<&'static str> {
    match start {
        [b'I', b'D', b'3', ..] => Some("an MP3 file"),
        // An MPEG frame: eleven set bits, a layer that exists, a version that exists.
        [0xff, second, ..] if second & 0xe0 == 0xe0 => match second & 0x06 {
            0x00 => Some("an AAC file"),
            _ => Some("an MP3 file"),
        },
        [b'O', b'g', b'g', b'S', ..] => Some("an Ogg file"),
        [b'f', b'L', b'a', b'C', ..] => Some("a FLAC file"),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => Some("an MP4 or M4A file"),
        [0x1a, 0x45, 0xdf, 0xa3, ..] => Some("a WebM or Matroska file"),
        [b'F', b'O', b'R', b'M', ..] => Some("an AIFF file"),
        [b'R', b'F', b'6', b'4', ..] => Some("an RF64 file (a WAV of more than 4 GiB)"),
        [b'#', b'!', b'A', b'M', b'R', ..] => Some("an AMR file"),
        _ => None,
    }
}

/// Writes a conversation as it happens: the user left, the agent right.
///
/// The file is a valid WAV file at all times but the last second, and complete once this is
/// finished or dropped.
pub struct StereoWriter {
    path: PathBuf,
    inner: Option<hound::WavWriter<BufWriter<File>>>,
    flush_every: u64,
    unflushed: u64,
}

impl StereoWriter {
    /// Creates or replaces `path`.
    pub fn create(path: &Path, rate: SampleRate) -> Result<Self, WavError> {
        let spec = hound::WavSpec {
            channels: 2,
            sample_rate: rate.hertz(),
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut writer = Self {
            path: path.to_owned(),
            inner: None,
            flush_every: rate.samples_in(FLUSH_EVERY),
            unflushed: 0,
        };
        let mut inner =
            hound::WavWriter::create(path, spec).map_err(|error| writer.write_error(error))?;
        inner.flush().map_err(|error| writer.write_error(error))?;
        writer.inner = Some(inner);
        Ok(writer)
    }

    /// Appends samples of both channels; the shorter one is filled up with silence.
    pub fn write(&mut self, user: &[i16], agent: &[i16]) -> Result<(), WavError> {
        let length = user.len().max(agent.len());
        let Some(inner) = &mut self.inner else {
            return Ok(());
        };
        let written = (0..length).try_for_each(|n| {
            inner.write_sample(user.get(n).copied().unwrap_or(0))?;
            inner.write_sample(agent.get(n).copied().unwrap_or(0))
        });
        self.unflushed += length as u64;
        let written = written.and_then(|()| {
            if self.unflushed < self.flush_every {
                return Ok(());
            }
            self.unflushed = 0;
            inner.flush()
        });
        written.map_err(|error| self.write_error(error))
    }

    /// How much has been written.
    pub fn duration(&self) -> Duration {
        self.inner.as_ref().map_or(Duration::ZERO, |inner| {
            let rate = SampleRate::new(inner.spec().sample_rate).expect("created with a rate");
            rate.duration_of(inner.duration().into())
        })
    }

    /// Completes the file and says whether that worked, which dropping cannot.
    pub fn finish(mut self) -> Result<(), WavError> {
        match self.inner.take() {
            Some(inner) => inner.finalize().map_err(|error| self.write_error(error)),
            None => Ok(()),
        }
    }

    fn write_error(&self, error: hound::Error) -> WavError {
        let error = match error {
            hound::Error::IoError(error) => error,
            other => io::Error::other(other.to_string()),
        };
        WavError::Write {
            path: self.path.clone(),
            error,
        }
    }
}

impl Drop for StereoWriter {
    fn drop(&mut self) {
        if let Some(mut inner) = self.inner.take() {
            // Nobody is left to tell; `finish` is for those who want to know.
            let _ = inner.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.path(name);
            std::fs::write(&path, bytes).unwrap();
            path
        }

        /// The error's text, with the directory left out.
        #[track_caller]
        fn refusal(&self, path: &Path) -> String {
            let error = read(path).unwrap_err().to_string();
            error.replace(&format!("{}/", self.0.path().display()), "")
        }
    }

    /// A WAV file by hand: `data_bytes` is what the header says, `data` what follows.
    fn wav(
        format: u16,
        channels: u16,
        rate: u32,
        bits: u16,
        data_bytes: u32,
        data: &[u8],
    ) -> Vec<u8> {
        let block = channels * bits.div_ceil(8);
        let mut file = Vec::new();
        file.extend_from_slice(b"RIFF");
        file.extend_from_slice(&data_bytes.saturating_add(36).to_le_bytes());
        file.extend_from_slice(b"WAVEfmt ");
        file.extend_from_slice(&16u32.to_le_bytes());
        file.extend_from_slice(&format.to_le_bytes());
        file.extend_from_slice(&channels.to_le_bytes());
        file.extend_from_slice(&rate.to_le_bytes());
        file.extend_from_slice(&(rate.wrapping_mul(block.into())).to_le_bytes());
        file.extend_from_slice(&block.to_le_bytes());
        file.extend_from_slice(&bits.to_le_bytes());
        file.extend_from_slice(b"data");
        file.extend_from_slice(&data_bytes.to_le_bytes());
        file.extend_from_slice(data);
        file
    }

    const WAVE: [i16; 6] = [0, 1_000, -1_000, 32_512, -32_512, 256];

    fn bytes<const N: usize>(encode: impl Fn(i16) -> [u8; N]) -> Vec<u8> {
        WAVE.iter().flat_map(|&sample| encode(sample)).collect()
    }

    #[test]
    fn every_usual_encoding_is_read() {
        let dir = Dir::new();
        for (name, format, bits, data) in [
            ("16.wav", 1, 16, bytes(i16::to_le_bytes)),
            (
                "24.wav",
                1,
                24,
                bytes(|s| {
                    let [low, high] = s.to_le_bytes();
                    [0x7f, low, high]
                }),
            ),
            (
                "32.wav",
                1,
                32,
                bytes(|s| (i32::from(s) << 16).to_le_bytes()),
            ),
            (
                "float.wav",
                3,
                32,
                bytes(|s| (f32::from(s) / 32_768.0).to_le_bytes()),
            ),
        ] {
            let file = wav(format, 1, 22_050, bits, data.len() as u32, &data);
            let clip = read(&dir.file(name, &file)).unwrap();
            assert_eq!(clip.rate, SampleRate::HZ_22050, "{name}");
            assert_eq!(clip.samples, WAVE, "{name}");
        }
        let file = wav(1, 1, 8_000, 8, 3, &[128, 255, 0]);
        let clip = read(&dir.file("8.wav", &file)).unwrap();
        assert_eq!(clip.samples, [0, 127 << 8, i16::MIN]);
    }

    #[test]
    fn float_samples_saturate_and_nan_is_silence() {
        let dir = Dir::new();
        let data: Vec<u8> = [2.0f32, -2.0, f32::NAN]
            .into_iter()
            .flat_map(f32::to_le_bytes)
            .collect();
        let clip = read(&dir.file("loud.wav", &wav(3, 1, 16_000, 32, 12, &data))).unwrap();
        assert_eq!(clip.samples, [i16::MAX, i16::MIN, 0]);
    }

    #[test]
    fn channels_are_mixed() {
        let dir = Dir::new();
        let data: Vec<u8> = [100i16, 300, -50, 50]
            .into_iter()
            .flat_map(i16::to_le_bytes)
            .collect();
        let clip = read(&dir.file("stereo.wav", &wav(1, 2, 16_000, 16, 8, &data))).unwrap();
        assert_eq!(clip.samples, [200, 0]);
    }

    /// What `ffmpeg … -` and `sox … -` write into a pipe.
    #[test]
    fn a_length_that_was_never_known_reads_to_the_end() {
        let dir = Dir::new();
        let file = wav(1, 1, 16_000, 16, u32::MAX, &bytes(i16::to_le_bytes));
        assert_eq!(read(&dir.file("piped.wav", &file)).unwrap().samples, WAVE);
    }

    #[track_caller]
    fn check(dir: &Dir, name: &str, content: &[u8], refusal: &str) {
        assert_eq!(dir.refusal(&dir.file(name, content)), refusal);
    }

    /// Every refusal names the file, what is wrong and, where there is one, the fix.
    #[test]
    fn bad_files_are_refused_with_the_fix() {
        let dir = Dir::new();
        assert_eq!(dir.refusal(&dir.path("gone.wav")), "gone.wav: no such file");
        let directory = dir.path("folder.wav");
        std::fs::create_dir(&directory).unwrap();
        assert_eq!(
            dir.refusal(&directory),
            "folder.wav: is a directory, not a WAV file"
        );
        check(
            &dir,
            "empty.wav",
            b"",
            "empty.wav: the file is empty (0 bytes); record or export it again",
        );
        let none = "none.wav: the WAV file holds no audio (0 samples); record or export it again";
        check(&dir, "none.wav", &wav(1, 1, 16_000, 16, 0, &[]), none);
        check(&dir, "none.wav", &wav(1, 1, 16_000, 16, 0, &[])[..40], none);
        check(&dir, "none.wav", &wav(1, 1, 16_000, 16, 0, &[])[..12], none);
        check(
            &dir,
            "none.wav",
            &wav(1, 1, 16_000, 16, u32::MAX, &[]),
            none,
        );
        let mp3 = "song.wav: is an MP3 file, not WAV; convert it: ffmpeg -i song.wav -ar 16000 song.16k.wav";
        check(&dir, "song.wav", b"ID3\x04\0\0\0\0\0\0", mp3);
        check(&dir, "song.wav", &[0xff, 0xfb, 0x90, 0x64, 0, 0], mp3);
        check(
            &dir,
            "x.mp3",
            &[0xff, 0xf3, 0x90, 0x64],
            "x.mp3: is an MP3 file, not WAV; convert it: ffmpeg -i x.mp3 -ar 16000 x.wav",
        );
        check(
            &dir,
            "x.ogg",
            b"OggS\0\x02",
            "x.ogg: is an Ogg file, not WAV; convert it: ffmpeg -i x.ogg -ar 16000 x.wav",
        );
        check(
            &dir,
            "x.flac",
            b"fLaC\0\0\0\x22",
            "x.flac: is a FLAC file, not WAV; convert it: ffmpeg -i x.flac -ar 16000 x.wav",
        );
        check(
            &dir,
            "x.m4a",
            b"\0\0\0\x20ftypM4A ",
            "x.m4a: is an MP4 or M4A file, not WAV; convert it: ffmpeg -i x.m4a -ar 16000 x.wav",
        );
        check(
            &dir,
            "note.wav",
            b"hello, world",
            "note.wav: is not a WAV file (it does not start with RIFF/WAVE)",
        );
        check(
            &dir,
            "fast.wav",
            &wav(1, 1, 4_000_000, 16, 2, &[0, 0]),
            "fast.wav: has a sample rate of 4000000 Hz; 1000 to 384000 Hz are read; convert it: ffmpeg -i fast.wav -c:a pcm_s16le -ar 16000 fast.16k.wav",
        );
        check(
            &dir,
            "still.wav",
            &wav(1, 1, 0, 16, 2, &[0, 0]),
            "still.wav: has a sample rate of 0 Hz; 1000 to 384000 Hz are read; convert it: ffmpeg -i still.wav -c:a pcm_s16le -ar 16000 still.16k.wav",
        );
        check(
            &dir,
            "gsm.wav",
            &wav(0x31, 1, 8_000, 16, 2, &[0, 0]),
            "gsm.wav: holds compressed audio (format 0x0031); PCM and float are read; convert it: ffmpeg -i gsm.wav -c:a pcm_s16le -ar 16000 gsm.16k.wav",
        );
        check(
            &dir,
            "cut.wav",
            &wav(1, 1, 16_000, 16, 64_000, &[0; 16_000]),
            "cut.wav: is cut off: the header promises 2.0s of audio, the file holds 500.0ms; record or export it again",
        );
        check(
            &dir,
            "long.wav",
            &wav(1, 1, 8_000, 8, 8_000 * 1_200, &[128]),
            "long.wav: is longer than 10 minutes; cut it: ffmpeg -i long.wav -t 600 long.16k.wav",
        );
    }

    /// A process that is killed leaves a file that opens.
    #[test]
    fn a_file_under_way_is_already_valid() {
        let dir = Dir::new();
        let path = dir.path("call.wav");
        let mut writer = StereoWriter::create(&path, SampleRate::HZ_16000).unwrap();
        assert_eq!(hound::WavReader::open(&path).unwrap().duration(), 0);
        writer
            .write(&vec![1_000; 16_000], &vec![-1_000; 8_000])
            .unwrap();
        writer.write(&vec![1_000; 4_000], &[]).unwrap();
        // The second piece is not due to be flushed yet: a copy taken now holds the first.
        let copy = dir.path("copy.wav");
        std::fs::copy(&path, &copy).unwrap();
        assert_eq!(hound::WavReader::open(&copy).unwrap().duration(), 16_000);
        drop(writer);
        let mut reader = hound::WavReader::open(&path).unwrap();
        assert_eq!((reader.duration(), reader.spec().channels), (20_000, 2));
        let samples: Vec<i16> = reader.samples().map(Result::unwrap).collect();
        assert_eq!(samples[..2], [1_000, -1_000]);
        assert_eq!(samples[39_998..], [1_000, 0]);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let dir = Dir::new();
        let path = dir.path("no/such/place.wav");
        let error = StereoWriter::create(&path, SampleRate::HZ_16000)
            .err()
            .unwrap();
        assert!(
            error
                .to_string()
                .contains("no/such/place.wav: cannot be written: No such file")
        );
    }

    proptest::proptest! {
        /// Bytes that we did not write never panic and never make memory of their own.
        #[test]
        fn any_bytes_are_an_answer(
            mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
            header in proptest::prelude::any::<bool>(),
        ) {
            if header && bytes.len() >= 16 {
                bytes[..4].copy_from_slice(b"RIFF");
                bytes[8..16].copy_from_slice(b"WAVEfmt ");
            }
            let dir = Dir::new();
            let _ = read(&dir.file("x.wav", &bytes));
        }
    }
}
