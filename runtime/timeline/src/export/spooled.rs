//! A recording's file that the export follows.

use std::{
    fs::File,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::{Pace, Storage};

/// Bytes that wait for the archive, of all recordings together.
#[derive(Debug)]
pub(super) struct Room {
    used: AtomicU64,
    most: u64,
}

impl Room {
    pub(super) fn new(most: u64) -> Self {
        Self {
            used: AtomicU64::new(0),
            most,
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    pub(super) fn take(&self, bytes: u64) {
        self.used.fetch_add(bytes, Relaxed);
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
    }
}

/// What the writer says to the exporter; never waits.
pub(super) trait Follower: Send + 'static {
    /// The file is whole up to here.
    fn grew(&self, length: u64);
    /// No more is written.
    fn closed(&self);
}

/// A file whose growth somebody follows.
pub(super) struct Spooled<F: Follower> {
    file: File,
    follower: F,
    room: Arc<Room>,
    written: u64,
    told: u64,
}

impl<F: Follower> Spooled<F> {
    pub(super) fn new(file: File, follower: F, room: Arc<Room>) -> Self {
        Self {
            file,
            follower,
            room,
            written: 0,
            told: 0,
        }
    }
}

impl<F: Follower> Write for Spooled<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let ahead = self.written - self.told + bytes.len() as u64;
        if self.room.used().saturating_add(ahead) > self.room.most {
            let most = self.room.most;
            let message = format!(
                "the spool is full: {most} bytes wait for the archive; bring it back, or raise spool_reserve_bytes"
            );
            return Err(io::Error::new(io::ErrorKind::StorageFull, message));
        }
        let taken = self.file.write(bytes)?;
        self.written += taken as u64;
        Ok(taken)
    }

    /// Called between whole frames only.
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()?;
        if self.written > self.told {
            self.room.take(self.written - self.told);
            self.told = self.written;
            self.follower.grew(self.told);
        }
        Ok(())
    }
}

impl<F: Follower> Storage for Spooled<F> {
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn pace(&self) -> Pace {
        Pace::Blocking
    }
}

impl<F: Follower> Drop for Spooled<F> {
    fn drop(&mut self) {
        self.follower.closed();
    }
}
