//! Server-sent events, as far as chat completions use them (WHATWG HTML §9.2).
//!
//! Bytes in, whole `data` texts out; other fields and comments carry nothing for us. Bounded: a
//! peer that never ends a line is refused, not buffered.

use std::{collections::VecDeque, mem};

use thiserror::Error;

/// Why a stream is no longer read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum SseError {
    /// A line or an event's data is longer than allowed.
    #[error("a line or event of more than {0} bytes")]
    TooLong(usize),
    /// An event is not text.
    #[error("an event that is not UTF-8")]
    NotUtf8,
}

/// Cuts a byte stream into events, however its chunks fall.
#[derive(Debug)]
pub(super) struct SseParser {
    most: usize,
    line: Vec<u8>,
    /// The data lines of the event being read.
    data: Option<Vec<u8>>,
    /// The last byte ended a line by CR, so that an LF now ends nothing.
    after_cr: bool,
    at_start: bool,
    events: VecDeque<String>,
    broken: Option<SseError>,
}

impl SseParser {
    /// Refuses lines and events longer than `most` bytes.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            line: Vec::new(),
            data: None,
            after_cr: false,
            at_start: true,
            events: VecDeque::new(),
            broken: None,
        }
    }

    /// Takes in the next bytes; nothing more once the stream has broken.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.broken.is_none() {
            self.broken = self.read(bytes).err();
        }
    }

    /// The stream has ended; a last event without its blank line counts, as some servers send it.
    pub(super) fn finish(&mut self) {
        if self.broken.is_none() {
            self.broken = self.read_end().err();
        }
    }

    /// The data of the next whole event; an error only after all that was good before it.
    pub(super) fn next_event(&mut self) -> Result<Option<String>, SseError> {
        match (self.events.pop_front(), self.broken) {
            (None, Some(error)) => Err(error),
            (event, _) => Ok(event),
        }
    }

    fn read(&mut self, bytes: &[u8]) -> Result<(), SseError> {
        for &byte in bytes {
            match byte {
                b'\n' if mem::take(&mut self.after_cr) => {}
                b'\n' => self.end_line()?,
                b'\r' => {
                    self.after_cr = true;
                    self.end_line()?;
                }
                other => {
                    self.after_cr = false;
                    if self.line.len() == self.most {
                        return Err(SseError::TooLong(self.most));
                    }
                    self.line.push(other);
                }
            }
        }
        Ok(())
    }

    fn read_end(&mut self) -> Result<(), SseError> {
        if !self.line.is_empty() {
            self.end_line()?;
        }
        self.end_event()
    }

    fn end_line(&mut self) -> Result<(), SseError> {
        let line = mem::take(&mut self.line);
        let line = if mem::take(&mut self.at_start) {
            line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line)
        } else {
            &line[..]
        };
        if line.is_empty() {
            return self.end_event();
        }
        let Some(rest) = line.strip_prefix(b"data") else {
            return Ok(());
        };
        let value = match rest.split_first() {
            None => rest,
            Some((b':', value)) => value.strip_prefix(b" ").unwrap_or(value),
            // Some other field whose name begins with `data`.
            Some(_) => return Ok(()),
        };
        let data = match &mut self.data {
            Some(data) => {
                data.push(b'\n');
                data
            }
            None => self.data.insert(Vec::new()),
        };
        if data.len() + value.len() > self.most {
            return Err(SseError::TooLong(self.most));
        }
        data.extend_from_slice(value);
        Ok(())
    }

    fn end_event(&mut self) -> Result<(), SseError> {
        if let Some(data) = self.data.take() {
            let text = String::from_utf8(data).map_err(|_| SseError::NotUtf8)?;
            self.events.push_back(text);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(chunks: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::new(1_000);
        for chunk in chunks {
            parser.push(chunk);
        }
        parser.finish();
        std::iter::from_fn(|| parser.next_event().unwrap()).collect()
    }

    #[test]
    fn events_are_read_as_the_format_says() {
        #[track_caller]
        fn check(stream: &str, expected: &[&str]) {
            assert_eq!(events(&[stream.as_bytes()]), expected, "{stream:?}");
        }
        check("data: a\n\ndata: b\n\n", &["a", "b"]);
        check("data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]);
        check("data: a\r\rdata: b\r\r", &["a", "b"]);
        check("data:a\n\n", &["a"]);
        check("data:  a\n\n", &[" a"]);
        check("data: a\ndata: b\n\n", &["a\nb"]);
        check(": keep-alive\n\ndata: a\n\n", &["a"]);
        check("event: delta\nid: 7\nretry: 10\ndata: a\n\n", &["a"]);
        check("database: a\n\n", &[]);
        check("data\n\n", &[""]);
        check("\u{feff}data: a\n\n", &["a"]);
        check("data: a", &["a"]);
        check("\n\n\n", &[]);
    }

    #[test]
    fn what_cannot_be_read_is_refused_after_what_could() {
        for (stream, expected) in [
            (&b"data: a\n\nxxxxxxxxxxx"[..], SseError::TooLong(10)),
            (
                b"data: a\n\ndata: 1234\ndata: 1234\ndata: 12\n",
                SseError::TooLong(10),
            ),
            (b"data: a\n\ndata: \xff\n\ndata: b\n\n", SseError::NotUtf8),
        ] {
            let mut parser = SseParser::new(10);
            parser.push(stream);
            parser.push(b"data: c\n\n");
            assert_eq!(parser.next_event(), Ok(Some("a".to_owned())));
            assert_eq!(parser.next_event(), Err(expected));
        }
    }

    proptest! {
        /// Where the chunks fall changes nothing, also inside CRLF and inside a character.
        #[test]
        fn chunk_boundaries_do_not_matter(
            texts in prop::collection::vec("[a-zé漢🙂 ]{0,12}", 1..6),
            end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
            size in 1_usize..9,
        ) {
            let stream = texts.iter().flat_map(|text| ["data: ", text, end, end]);
            let stream: String = stream.collect();
            let chunks: Vec<&[u8]> = stream.as_bytes().chunks(size).collect();
            prop_assert_eq!(events(&chunks), texts);
        }
    }
}
