//! What of an archive is over, told by names and ages: nothing of a recording is opened (F-116).
//!
//! Whoever removes has a view of the archive of its own, [`Perishable`], so that an exporter cannot remove and
//! whoever removes cannot read. How long what is kept, and whose it is to say, is decided elsewhere.

use std::collections::BTreeMap;

use rspp_proto::WallClock;

use super::{
    archive::{Answer, ArchiveFault},
    fetch::{MANIFEST, segment_start},
};

/// Objects of one look at an archive.
const PAGE: usize = 1_000;

/// An archive, as whoever removes what is over sees it.
pub trait Perishable: Send + Sync + 'static {
    /// The objects whose keys come after `after`, in the order of keys and at most `most`; fewer only at the end.
    fn page<'a>(&'a self, after: &'a str, most: usize) -> Answer<'a, Vec<Aged>>;

    /// Removes an object. One that is not there is removed already.
    fn remove<'a>(&'a self, key: &'a str) -> Answer<'a, ()>;

    /// Where it is, for people.
    fn place(&self) -> &str;
}

/// An object, and since when the archive has had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aged {
    /// Its key.
    pub key: String,
    /// Its length.
    pub bytes: u64,
    /// When the archive took it, by the archive's clock.
    pub taken: WallClock,
}

/// A recording, as far as its objects' names tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// What its keys begin with.
    pub recording: String,
    /// Whose it is, as keys write it.
    pub tenant: String,
    /// Which session's it is, as keys write it.
    pub session: String,
    /// Keys of its objects, the word that it is whole last.
    pub objects: Vec<String>,
    /// How long they are together.
    pub bytes: u64,
    /// When the archive took the newest of them: what is still written is never old.
    pub last: WallClock,
}

impl Stored {
    /// Removes it. What a fault leaves is still found under its name.
    pub async fn remove(&self, archive: &dyn Perishable) -> Result<(), ArchiveFault> {
        for key in &self.objects {
            archive.remove(key).await?;
        }
        Ok(())
    }
}

/// Goes through an archive from end to end, a page at a time.
#[derive(Clone, Debug, Default)]
pub struct Patrol {
    after: String,
}

/// Recordings of one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Each with all of its objects.
    pub recordings: Vec<Stored>,
    /// Whether there are no others behind them.
    pub is_last: bool,
}

impl Patrol {
    /// The next recordings. What is no recording of ours is passed over.
    pub async fn look(&mut self, archive: &dyn Perishable) -> Result<Look, ArchiveFault> {
        let mut objects = archive.page(&self.after, PAGE).await?;
        let mut is_last = objects.len() < PAGE;
        // The last one may go on behind the page: it is looked at whole, now or with the next page.
        while !is_last {
            let last = objects.last().map(|it| recording_of(&it.key).to_owned());
            let whole =
                objects.partition_point(|it| Some(recording_of(&it.key)) != last.as_deref());
            if whole > 0 {
                objects.truncate(whole);
                break;
            }
            let after = objects.last().map_or("", |it| &it.key);
            let more = archive.page(after, PAGE).await?;
            is_last = more.len() < PAGE;
            objects.extend(more);
        }
        if let Some(last) = objects.last() {
            self.after.clone_from(&last.key);
        }
        Ok(Look {
            recordings: gathered(objects),
            is_last,
        })
    }
}

fn recording_of(key: &str) -> &str {
    key.rsplit_once('/').map_or(key, |(recording, _)| recording)
}

fn gathered(objects: Vec<Aged>) -> Vec<Stored> {
    let mut found: BTreeMap<String, Stored> = BTreeMap::new();
    for Aged { key, bytes, taken } in objects {
        let Some((recording, object)) = key.rsplit_once('/') else {
            continue;
        };
        let is_manifest = object == MANIFEST;
        let mut parts = recording.split('/');
        let (Some(tenant), Some(session), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if !is_manifest && segment_start(object).is_none() {
            continue;
        }
        let stored = found.entry(recording.to_owned()).or_insert_with(|| Stored {
            recording: recording.to_owned(),
            tenant: tenant.to_owned(),
            session: session.to_owned(),
            objects: Vec::new(),
            bytes: 0,
            last: WallClock(0),
        });
        stored.bytes += bytes;
        stored.last = stored.last.max(taken);
        // Segments have digits for names, so that the manifest sorts behind them.
        stored.objects.push(key);
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::{super::progress::tenant_of, *};

    fn aged(key: &str, taken: u64) -> Aged {
        Aged {
            key: key.to_owned(),
            bytes: 10,
            taken: WallClock(taken),
        }
    }

    /// F-116: a recording is as old as its newest part, and what is not ours is not touched.
    #[test]
    fn a_recording_is_as_old_as_its_newest_part() {
        let found = gathered(vec![
            aged("acme/call=2F7/0001-1/000000000000000.part", 5),
            aged("acme/call=2F7/0001-1/000000000000100.part", 9),
            aged("acme/call=2F7/0001-1/manifest.json", 7),
            aged("acme/call=2F7/0001-1/notes.txt", 1),
            aged("acme/0001-1/000000000000000.part", 1),
            aged("top.part", 1),
        ]);
        assert_eq!(found.len(), 1, "{found:?}");
        let stored = &found[0];
        assert_eq!((stored.last, stored.bytes), (WallClock(9), 30));
        assert_eq!(stored.session, "call=2F7");
        assert_eq!(tenant_of(&stored.tenant).unwrap().as_str(), "acme");
        assert!(stored.objects[2].ends_with(MANIFEST), "{stored:?}");
    }

    #[test]
    fn tenants_are_read_from_their_keys() {
        let read = |part: &str| tenant_of(part).map(|it| it.as_str().to_owned());
        assert_eq!(read("gr=C3=B6=C3=9Fe").as_deref(), Some("größe"));
        assert_eq!(read("=none"), None);
        assert_eq!(
            read(&format!("{}==0123456789abcdef", "a".repeat(102))),
            None
        );
        assert_eq!(read("x=G1"), None);
    }
}
