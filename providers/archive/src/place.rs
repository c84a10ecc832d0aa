//! Where an archive is, as people write it.

use std::{fmt, path::PathBuf, str::FromStr};

use thiserror::Error;

/// Where an archive is.
///
/// Written as `s3://bucket/prefix`; as `http://host:port/bucket/prefix` (or `https`) of a server that speaks
/// the same protocol; or as a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory of this machine.
    Directory(PathBuf),
    /// A bucket of the protocol's own service, or of the server that the environment names.
    Bucket {
        /// Its name.
        bucket: String,
        /// What keys begin with; may be empty.
        prefix: String,
    },
    /// A bucket of a server.
    Server {
        /// Scheme, host and port.
        endpoint: String,
        /// The bucket's name.
        bucket: String,
        /// What keys begin with; may be empty.
        prefix: String,
    },
}

/// Why a text names no place.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlaceError {
    /// There is nothing.
    #[error(
        "names no place; give a directory, `s3://bucket/prefix` or `http://host/bucket/prefix`"
    )]
    Blank,
    /// The bucket is missing.
    #[error("`{0}` names no bucket; write `{0}bucket/prefix`")]
    NoBucket(String),
    /// A place of a sort that is not known.
    #[error("`{0}://` is not supported; use a directory, `s3://`, `http://` or `https://`")]
    Scheme(String),
    /// A password would be written into logs and process lists.
    #[error(
        "leave out what is before `@`: credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )]
    Credentials,
    /// The archive's library does not accept it.
    #[error("cannot be used as an archive: {0}")]
    Unusable(String),
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(PlaceError::Blank);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Directory(text.into()));
        };
        match scheme {
            "file" => Ok(Self::Directory(rest.into())),
            "s3" => {
                let (bucket, prefix) = bucket(rest).ok_or_else(|| no_bucket(text))?;
                Ok(Self::Bucket { bucket, prefix })
            }
            "http" | "https" => {
                let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
                if host.contains('@') {
                    return Err(PlaceError::Credentials);
                }
                let (bucket, prefix) = bucket(path).ok_or_else(|| no_bucket(text))?;
                let endpoint = format!("{scheme}://{host}");
                Ok(Self::Server {
                    endpoint,
                    bucket,
                    prefix,
                })
            }
            other => Err(PlaceError::Scheme(other.to_owned())),
        }
    }
}

/// A path's bucket and what is behind it.
fn bucket(path: &str) -> Option<(String, String)> {
    let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
    let prefix = prefix.trim_matches('/');
    (!bucket.is_empty()).then(|| (bucket.to_owned(), prefix.to_owned()))
}

fn no_bucket(text: &str) -> PlaceError {
    let end = if text.ends_with('/') { "" } else { "/" };
    PlaceError::NoBucket(format!("{text}{end}"))
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let under = |f: &mut fmt::Formatter<'_>, prefix: &str| match prefix {
            "" => Ok(()),
            prefix => write!(f, "/{prefix}"),
        };
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Bucket { bucket, prefix } => {
                write!(f, "s3://{bucket}")?;
                under(f, prefix)
            }
            Self::Server {
                endpoint,
                bucket,
                prefix,
            } => {
                write!(f, "{endpoint}/{bucket}")?;
                under(f, prefix)
            }
        }
    }
}

impl Place {
    /// Whether it is reached over a network, where virtual time means nothing.
    pub fn is_networked(&self) -> bool {
        match self {
            Self::Directory(_) => false,
            Self::Bucket { .. } | Self::Server { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, written: &str) {
        let place: Place = text.parse().unwrap();
        assert_eq!(place.to_string(), written);
        assert_eq!(written.parse(), Ok(place));
    }

    #[test]
    fn places_read_as_they_are_written() {
        check("s3://calls", "s3://calls");
        check("s3://calls/eu/", "s3://calls/eu");
        check(
            "http://127.0.0.1:9000/calls/a/b",
            "http://127.0.0.1:9000/calls/a/b",
        );
        check(
            "https://store.example/calls/",
            "https://store.example/calls",
        );
        check("file:///var/calls", "/var/calls");
        check("archive/calls", "archive/calls");
        let server: Place = "http://127.0.0.1:9000/calls/a/b".parse().unwrap();
        assert_eq!(
            server,
            Place::Server {
                endpoint: "http://127.0.0.1:9000".to_owned(),
                bucket: "calls".to_owned(),
                prefix: "a/b".to_owned(),
            }
        );
        assert!(server.is_networked());
    }

    #[track_caller]
    fn refused(text: &str, error: &str) {
        let found = text.parse::<Place>().unwrap_err();
        assert!(found.to_string().contains(error), "{found}");
    }

    #[test]
    fn what_is_no_place_is_told_with_what_would_be() {
        refused(" ", "names no place");
        refused("s3://", "write `s3://bucket/prefix`");
        refused(
            "http://127.0.0.1:9000",
            "write `http://127.0.0.1:9000/bucket/prefix`",
        );
        refused(
            "http://127.0.0.1:9000/",
            "write `http://127.0.0.1:9000/bucket/prefix`",
        );
        refused("ftp://host/calls", "`ftp://` is not supported");
        refused(
            "http://key:secret@host/calls",
            "leave out what is before `@`",
        );
    }
}
