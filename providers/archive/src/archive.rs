//! An archive over whatever `object_store` speaks to.

use std::{fs, path::Path as Directory, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{
    ClientOptions, Error, ObjectStore, ObjectStoreExt, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    local::LocalFileSystem,
    path::Path,
    prefix::PrefixStore,
};
use rspp_timeline::export::{Answer, Archive, ArchiveFault, Kept};

use crate::{Place, PlaceError};

/// How long a connection may take; how long an answer may take is the exporter's to say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// An archive in a directory or in an object store.
pub struct ObjectArchive {
    store: Arc<dyn ObjectStore>,
    place: String,
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
        })
    }
}

/// A directory whose objects survive a power cut once they are acknowledged.
fn directory(path: &Directory) -> Result<LocalFileSystem, PlaceError> {
    let unusable = |error: &dyn std::error::Error| PlaceError::Unusable(error.to_string());
    fs::create_dir_all(path).map_err(|error| unusable(&error))?;
    let store = LocalFileSystem::new_with_prefix(path).map_err(|error| unusable(&error))?;
    Ok(store.with_fsync(true))
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
