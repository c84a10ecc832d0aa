//! An archive whose objects only the holders of keys read.

use std::sync::Arc;

use bytes::Bytes;
use rspp_timeline::export::{Answer, Archive, ArchiveFault, Kept};

use crate::{
    ObjectArchive, Place, PlaceError,
    keys::{KeyError, KeyRing},
    seal::{Head, is_sealed},
};

/// Seals what is put into an archive, and opens what is got out of it (F-169).
///
/// What was put there before there were keys is got as it is. Without keys nothing is sealed, and what is sealed
/// is refused by the name of its key.
pub struct SealedArchive {
    archive: Arc<dyn Archive>,
    keys: Option<Arc<KeyRing>>,
}

impl SealedArchive {
    /// An archive that these keys are for.
    pub fn new(archive: Arc<dyn Archive>, keys: Option<Arc<KeyRing>>) -> Self {
        Self { archive, keys }
    }

    /// The archive at a place, which these keys are for.
    pub fn open(place: &Place, keys: Option<Arc<KeyRing>>) -> Result<Self, PlaceError> {
        let archive = ObjectArchive::open(place)?;
        Ok(Self::new(Arc::new(archive), keys))
    }

    fn opened(&self, key: &str, object: Bytes) -> Result<Bytes, KeyError> {
        if !is_sealed(&object) {
            return Ok(object);
        }
        let head = Head::read(&object)?;
        if head.name != key {
            return Err(KeyError::Misplaced {
                name: head.name.to_owned(),
            });
        }
        let Some(keys) = &self.keys else {
            let kid = head.kid.to_owned();
            return Err(KeyError::NoKeys { kid });
        };
        // One that was cut is as long as what is left of it: whoever puts parts together misses the rest.
        let (plain, _is_whole) = keys.unseal(&object)?;
        Ok(plain.into())
    }
}

/// Nothing that waiting helps: somebody has to see to the keys.
fn fault(key: &str, error: &KeyError) -> ArchiveFault {
    ArchiveFault::refused(format!("{key}: {error}"))
}

impl Archive for SealedArchive {
    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        let bytes = match &self.keys {
            Some(keys) => keys.seal(key, &bytes).map(Bytes::from),
            None => Ok(bytes),
        };
        Box::pin(async move {
            let bytes = bytes.map_err(|error| fault(key, &error))?;
            self.archive.put(key, bytes).await
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Bytes>> {
        Box::pin(async move {
            let object = self.archive.get(key).await?;
            let opened = object.map(|object| self.opened(key, object)).transpose();
            opened.map_err(|error| fault(key, &error))
        })
    }

    fn list<'a>(&'a self, under: &'a str) -> Answer<'a, Vec<Kept>> {
        self.archive.list(under)
    }

    fn place(&self) -> &str {
        self.archive.place()
    }
}
