//! A disk in memory that misbehaves on time.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use rspp_timeline::{Pace, Storage};

use super::DiskFault;

/// What is on the disk, for whoever reads it back.
#[derive(Clone, Debug, Default)]
pub(super) struct Platter(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    failed: bool,
}

/// The disk as a recording writes to it.
#[derive(Debug)]
pub(super) struct Disk {
    platter: Platter,
    fault: DiskFault,
}

impl Platter {
    pub(super) fn disk(&self, fault: DiskFault) -> Disk {
        Disk {
            platter: self.clone(),
            fault,
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("nobody panics here").bytes.clone()
    }

    /// Whether a write was refused.
    pub(super) fn has_failed(&self) -> bool {
        self.0.lock().expect("nobody panics here").failed
    }
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut content = self.platter.0.lock().expect("nobody panics here");
        match self.fault {
            DiskFault::Full { bytes: room } if content.bytes.len() + bytes.len() > room => {
                // As a file system does: what still fits is written.
                let fits = room.saturating_sub(content.bytes.len());
                if fits == 0 {
                    content.failed = true;
                    return Err(io::ErrorKind::StorageFull.into());
                }
                content.bytes.extend_from_slice(&bytes[..fits]);
                return Ok(fits);
            }
            DiskFault::Fails { bytes: good }
                if !content.failed && content.bytes.len() + bytes.len() > good =>
            {
                content.failed = true;
                return Err(io::Error::other("the disk had a bad moment"));
            }
            DiskFault::None
            | DiskFault::Slow { .. }
            | DiskFault::Full { .. }
            | DiskFault::Fails { .. } => {}
        }
        content.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Storage for Disk {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn pace(&self) -> Pace {
        Pace::Takes(match self.fault {
            DiskFault::Slow { ms } => Duration::from_millis(ms),
            DiskFault::None | DiskFault::Full { .. } | DiskFault::Fails { .. } => Duration::ZERO,
        })
    }
}
