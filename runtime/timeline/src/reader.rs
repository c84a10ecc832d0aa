//! Opens a timeline and walks its entries, whatever state the file is in.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek},
    path::Path,
};

use rspp_proto::Monotonic;
use thiserror::Error;

use crate::{
    Damage, Entry, EntryKind, FileHeader, FormatVersion, PreambleError, Summary, Torn,
    format::PREAMBLE_BYTES,
    scan::{Scan, Scanned},
};

/// Why a timeline cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The system said no.
    #[error("could not read the timeline")]
    Io(#[from] io::Error),
    /// The bytes are no timeline of this format.
    #[error(transparent)]
    Preamble(#[from] PreambleError),
}

/// An entry and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Where its frame begins.
    pub offset: u64,
    /// Counts the entries of the file, from 0.
    pub index: u64,
    /// The entry.
    pub entry: Entry,
}

/// Most damages and unreadable entries that are listed one by one.
const MAX_LISTED: usize = 64;

/// What was not read, and how the file ends. Complete once the walk is at its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Frames whose checksum does not match, in order.
    pub damages: Vec<Damage>,
    /// Damages beyond the first ones.
    pub damages_not_listed: u64,
    /// Frames of kinds that this build does not know: a newer minor wrote them.
    pub skipped_unknown: u64,
    /// Frames that are whole but say something this build cannot read: offset and reason.
    pub unreadable: Vec<(u64, String)>,
    /// Unreadable frames beyond the first ones.
    pub unreadable_not_listed: u64,
    /// The frame without an end, if the file was cut.
    pub torn: Option<Torn>,
    /// Where the last whole frame ends.
    pub whole_bytes: u64,
    /// What the recorder wrote last, if the recording was closed properly.
    pub footer: Option<Summary>,
}

impl Report {
    /// Whether the recording was closed and every byte of it was read.
    pub fn is_whole(&self) -> bool {
        self.footer.is_some()
            && self.torn.is_none()
            && self.damages.is_empty()
            && self.unreadable.is_empty()
    }

    /// What is wrong with the file, one line a fact; empty if it is whole.
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = Vec::new();
        for damage in &self.damages {
            let Damage { offset, end, .. } = damage;
            let bytes = end - offset;
            problems.push(format!(
                "damaged: the frame at byte {offset} does not match its checksum; {bytes} bytes skipped"
            ));
        }
        if self.damages_not_listed > 0 {
            problems.push(format!("damaged: {} more frames", self.damages_not_listed));
        }
        for (offset, reason) in &self.unreadable {
            problems.push(format!("unreadable: the entry at byte {offset}: {reason}"));
        }
        if self.unreadable_not_listed > 0 {
            problems.push(format!(
                "unreadable: {} more entries",
                self.unreadable_not_listed
            ));
        }
        if self.skipped_unknown > 0 {
            let skipped = self.skipped_unknown;
            problems.push(format!(
                "newer: {skipped} entries of kinds that this build does not know were skipped"
            ));
        }
        if let Some(Torn {
            offset,
            lost,
            missing,
        }) = self.torn
        {
            let of = match missing {
                Some(missing) => format!("; the frame lacks {missing} more"),
                None => String::new(),
            };
            problems.push(format!(
                "cut: {lost} bytes after byte {offset} are lost{of}"
            ));
        }
        if self.footer.is_none() {
            problems.push("open: the recording was not closed, or is still being written".into());
        }
        problems
    }
}

/// A timeline file, read entry by entry.
///
/// Iterating yields every entry that can be read, the header and footer among them; what cannot is
/// in the [`report`](Self::report). Only reading itself can fail.
#[derive(Debug)]
pub struct Timeline<R = BufReader<File>> {
    scan: Scan<R>,
    version: FormatVersion,
    header: Option<FileHeader>,
    /// The entry that was read to find the header.
    first: Option<Item>,
    read: u64,
    report: Report,
}

impl Timeline {
    /// Opens the timeline at `path`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ReadError> {
        Self::read(BufReader::new(File::open(path)?))
    }
}

impl<R: Read + Seek> Timeline<R> {
    /// Reads a timeline from anything that can be read and sought.
    pub fn read(input: R) -> Result<Self, ReadError> {
        let (scan, version) = Scan::open(input)??;
        let mut timeline = Self {
            scan,
            version,
            header: None,
            first: None,
            read: 0,
            report: Report::default(),
        };
        timeline.report.whole_bytes = timeline.scan.position().min(PREAMBLE_BYTES as u64);
        timeline.first = timeline.advance()?;
        if let Some(Item {
            entry: Entry::Header(header),
            ..
        }) = &timeline.first
        {
            timeline.header = Some((**header).clone());
        }
        Ok(timeline)
    }

    /// The file's format.
    pub fn version(&self) -> FormatVersion {
        self.version
    }

    /// Who recorded what; `None` if the file was cut or damaged there.
    pub fn header(&self) -> Option<&FileHeader> {
        self.header.as_ref()
    }

    /// What was not read so far; complete once the walk is at its end.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Reads everything that is left, in order.
    pub fn entries(&mut self) -> io::Result<Vec<Entry>> {
        self.map(|item| item.map(|item| item.entry)).collect()
    }

    fn advance(&mut self) -> io::Result<Option<Item>> {
        loop {
            let Some(scanned) = self.scan.next()? else {
                return Ok(None);
            };
            let (offset, kind, payload) = match scanned {
                Scanned::Frame {
                    offset,
                    kind,
                    payload,
                } => (offset, kind, payload),
                Scanned::Damage(damage) => {
                    self.note_damage(damage);
                    continue;
                }
                Scanned::Torn(torn) => {
                    self.report.torn = Some(torn);
                    continue;
                }
            };
            self.report.whole_bytes = self.scan.position();
            self.report.footer = None;
            let Some(kind) = EntryKind::from_number(kind) else {
                self.report.skipped_unknown += 1;
                continue;
            };
            match Entry::decode(kind, &payload) {
                Ok(entry) => {
                    if let Entry::Footer(summary) = &entry {
                        self.report.footer = Some(*summary);
                    }
                    let index = self.read;
                    self.read += 1;
                    return Ok(Some(Item {
                        offset,
                        index,
                        entry,
                    }));
                }
                Err(error) => self.note_unreadable(offset, format!("{}: {error}", kind.as_str())),
            }
        }
    }

    fn note_damage(&mut self, damage: Damage) {
        if self.report.damages.len() < MAX_LISTED {
            self.report.damages.push(damage);
        } else {
            self.report.damages_not_listed += 1;
        }
    }

    fn note_unreadable(&mut self, offset: u64, reason: String) {
        if self.report.unreadable.len() < MAX_LISTED {
            self.report.unreadable.push((offset, reason));
        } else {
            self.report.unreadable_not_listed += 1;
        }
    }
}

impl<R: Read + Seek> Iterator for Timeline<R> {
    type Item = io::Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        self.advance().transpose()
    }
}

/// Which entries to look at; an empty list means all (F-074).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Kinds of entries.
    pub kinds: Vec<EntryKind>,
    /// Types of events; other entries do not pass.
    pub event_types: Vec<rspp_proto::EventType>,
    /// Control signals; other entries do not pass.
    pub signals: Vec<rspp_proto::abi::Signal>,
    /// Graph nodes.
    pub nodes: Vec<rspp_proto::NodeId>,
    /// Turns.
    pub turns: Vec<rspp_proto::TurnId>,
    /// Lanes; entries that ride none do not pass.
    pub lanes: Vec<rspp_proto::Lane>,
    /// Not before this time.
    pub since: Option<Monotonic>,
    /// Not at or after this time.
    pub until: Option<Monotonic>,
}

impl Filter {
    /// Whether `entry` is one to look at.
    pub fn passes(&self, entry: &Entry) -> bool {
        fn one_of<T: PartialEq>(list: &[T], value: Option<&T>) -> bool {
            list.is_empty() || value.is_some_and(|value| list.contains(value))
        }
        let at = entry.at();
        one_of(&self.kinds, Some(&entry.kind()))
            && one_of(&self.event_types, entry.event_type().as_ref())
            && one_of(&self.signals, entry.signal().as_ref())
            && one_of(&self.nodes, entry.node_id())
            && one_of(&self.turns, entry.turn_id())
            && one_of(&self.lanes, entry.lane().as_ref())
            && self.since.is_none_or(|since| at >= since)
            && self.until.is_none_or(|until| at < until)
    }
}
