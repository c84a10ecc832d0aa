//! An archive over whatever `object_store` speaks to.

use std::{collections::BTreeMap, fs, path::Path as Directory, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{
    ClientOptions, Error, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    local::LocalFileSystem,
    path::Path,
    prefix::PrefixStore,
};
use rspp_proto::WallClock;
use rspp_timeline::export::{Aged, Answer, Archive, ArchiveFault, Kept, Perishable};

use crate::{Place, PlaceError};

/// How long a connection may take; how long an answer may take is the exporter's to say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// An archive in a directory or in an object store.
pub struct ObjectArchive {
    store: Arc<dyn ObjectStore>,
    place: String,
    /// Whether it lists its objects in the order of their keys.
    lists_in_order: bool,
}

impl ObjectArchive {
    /// The archive at `place`. A directory is made if there is none; nothing is asked over a network yet.
    ///
    /// Credentials, region and the like come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_REGION`, …). A
    /// server that is named by its address is spoken to without a signature if there are none.
    pub fn open(place: &Place) -> Result<Self, PlaceError> {
        let store: Arc<dyn ObjectStore> = match place {
            Place::Directory(path) => Arc::new(directory(path)?),
            Place::Bucket { bucket, prefix } => {
                let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
                connect(builder, prefix)?
            }
            Place::Server {
                endpoint,
                bucket,
                prefix,
            } => {
                let mut builder = AmazonS3Builder::from_env()
                    .with_bucket_name(bucket)
                    .with_endpoint(endpoint)
                    .with_virtual_hosted_style_request(false);
                let key = AmazonS3ConfigKey::AccessKeyId;
                if builder.get_config_value(&key).is_none() {
                    builder = builder.with_skip_signature(true);
                }
                connect(builder, prefix)?
            }
        };
        Ok(Self {
            store,
            place: place.to_string(),
            lists_in_order: place.is_networked(),
        })
    }

    /// An object's first bytes, at most so many; `None` if there is none.
    pub async fn beginning(&self, key: &str, most: u64) -> Result<Option<Bytes>, ArchiveFault> {
        match self.store.get_range(&Path::from(key), 0..most).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(fault(&error)),
        }
    }
}

/// A directory whose objects survive a power cut once they are acknowledged.
fn directory(path: &Directory) -> Result<LocalFileSystem, PlaceError> {
    let unusable = |error: &dyn std::error::Error| PlaceError::Unusable(error.to_string());
    fs::create_dir_all(path).map_err(|error| unusable(&error))?;
    let store = LocalFileSystem::new_with_prefix(path).map_err(|error| unusable(&error))?;
    // A directory's name is a tenant's or a session's: it goes with the last object under it.
    Ok(store.with_fsync(true).with_automatic_cleanup(true))
}

fn connect(builder: AmazonS3Builder, prefix: &str) -> Result<Arc<dyn ObjectStore>, PlaceError> {
    // Whoever came first has chosen a provider that will do as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = ClientOptions::new()
        .with_allow_http(true)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout_disabled();
    // One place decides when to try again.
    let never = RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    };
    let store = builder
        .with_client_options(client)
        .with_retry(never)
        // One at a time is in the core of the protocol, which all its servers speak.
        .with_disable_bulk_delete(true)
        .build()
        .map_err(|error| PlaceError::Unusable(error.to_string()))?;
    Ok(if prefix.is_empty() {
        Arc::new(store)
    } else {
        Arc::new(PrefixStore::new(store, Path::from(prefix)))
    })
}

impl Archive for ObjectArchive {
    fn put<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        Box::pin(async move {
            self.store
                .put(&Path::from(key), bytes.into())
                .await
                .map_err(|error| fault(&error))?;
            Ok(())
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Bytes>> {
        Box::pin(async move {
            match self.store.get(&Path::from(key)).await {
                Ok(found) => Ok(Some(found.bytes().await.map_err(|error| fault(&error))?)),
                Err(Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(fault(&error)),
            }
        })
    }

    fn list<'a>(&'a self, under: &'a str) -> Answer<'a, Vec<Kept>> {
        Box::pin(async move {
            let under = Path::from(under);
            self.store
                .list(Some(&under))
                .map_ok(|found| Kept {
                    key: found.location.to_string(),
                    bytes: found.size,
                })
                .try_collect()
                .await
                .map_err(|error| fault(&error))
        })
    }

    fn place(&self) -> &str {
        &self.place
    }
}

impl Perishable for ObjectArchive {
    fn page<'a>(&'a self, after: &'a str, most: usize) -> Answer<'a, Vec<Aged>> {
        Box::pin(async move {
            let mut found = if after.is_empty() {
                self.store.list(None)
            } else {
                self.store.list_with_offset(None, &Path::from(after))
            };
            let mut page: BTreeMap<Path, ObjectMeta> = BTreeMap::new();
            while let Some(next) = found.try_next().await.map_err(|error| fault(&error))? {
                if page.len() == most {
                    if self.lists_in_order {
                        break;
                    }
                    let is_behind = page
                        .last_key_value()
                        .is_some_and(|(last, _)| next.location > *last);
                    if is_behind {
                        continue;
                    }
                    page.pop_last();
                }
                page.insert(next.location.clone(), next);
            }
            Ok(page.values().map(aged).collect())
        })
    }

    fn remove<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            match self.store.delete(&Path::from(key)).await {
                Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(fault(&error)),
            }
        })
    }

    fn place(&self) -> &str {
        &self.place
    }
}

fn aged(found: &ObjectMeta) -> Aged {
    let taken = found.last_modified.timestamp_millis();
    Aged {
        key: found.location.to_string(),
        bytes: found.size,
        taken: WallClock(taken.try_into().unwrap_or_default()),
    }
}

/// Whether waiting may help.
fn fault(error: &Error) -> ArchiveFault {
    let message = whole(error);
    match error {
        Error::PermissionDenied { .. }
        | Error::Unauthenticated { .. }
        | Error::NotFound { .. }
        | Error::InvalidPath { .. }
        | Error::NotSupported { .. }
        | Error::NotImplemented { .. }
        | Error::UnknownConfigurationKey { .. }
        | Error::AlreadyExists { .. }
        | Error::Precondition { .. }
        | Error::NotModified { .. } => ArchiveFault::refused(message),
        // Of the library's own enum, which may grow: what it cannot name is mostly the network.
        _ => ArchiveFault::unavailable(message),
    }
}

/// What an error says with all that caused it; causes that an error repeats are said once.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let further = error.to_string();
        if !text.contains(&further) {
            text = format!("{text}: {further}");
        }
        cause = error.source();
    }
    // One line, of a length for a log.
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(400)
        .collect()
}
