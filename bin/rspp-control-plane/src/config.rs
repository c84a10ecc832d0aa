//! The program's settings.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rspp_archive::{ObjectArchive, Place, PlaceError};
use rspp_controlplane::{
    authority::Term,
    retention::Retention,
    token::{KeyId, SigningKey},
};
use rspp_controlplane_api::tls::TlsFiles;
use rspp_controlplane_server::{KeptIn, Listen, MAX_FINISH, Settings, Transport};
use rspp_controlplane_storage::{EtcdConfig, EtcdIdentity, EtcdLogin, EtcdTls};
use rspp_proto::Region;
use rspp_service::{logs::Logs, settings, span::Span};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most keys of a directory.
const MOST_KEYS: usize = 64;

/// How a control plane runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Names this replica, in logs and as leader.
    pub(crate) replica: String,
    /// Whose certificates name callers: `spiffe://<domain>/<role>/<name>`.
    pub(crate) domain: String,
    pub(crate) listen: Addresses,
    /// Without it callers show tokens only, and nobody but this machine may be listened to.
    pub(crate) tls: Option<Tls>,
    /// Keys that tokens are signed with; the first one signs, the others are still believed.
    pub(crate) keys: Vec<Key>,
    /// A directory of more of them, each in a file `<id>.seed`; it is read anew when it changes.
    pub(crate) more_keys: Option<PathBuf>,
    pub(crate) store: Store,
    /// The region that the store lies in: session data of tenants whose residency does not allow it is not kept.
    pub(crate) region: Option<String>,
    /// How long a runtime's leases last, whole seconds.
    pub(crate) lease: Span,
    /// How long a session that is told to go elsewhere may take to finish what it says.
    pub(crate) finish_within: Span,
    /// How often runtimes say how busy they are.
    pub(crate) heartbeat: Span,
    /// How long a session token is valid.
    pub(crate) session_token: Span,
    /// How old what is known of the fleet may be to route by it.
    pub(crate) max_view_age: Span,
    /// How long calls may take to end when the program is asked to.
    pub(crate) grace: Span,
    pub(crate) retention: Kept,
    /// Where tenants' timelines are: what is over of them, by `rspp rules retention`, is removed there.
    pub(crate) archives: Vec<ArchiveAt>,
    /// How often there is looked for what is over in them.
    pub(crate) expire_every: Span,
    /// Where the addresses are written once it serves, as JSON.
    pub(crate) announce: Option<PathBuf>,
    pub(crate) log: Logs,
}

/// How long records of what is over are kept, 15 minutes at least.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Kept {
    /// A session that has ended.
    pub(crate) ended: Span,
    /// A session that nobody speaks for, before it is ended.
    pub(crate) abandoned: Span,
    /// A runtime that is gone.
    pub(crate) runtimes: Span,
}

/// An archive of tenants' timelines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ArchiveAt {
    /// A directory, `s3://bucket/prefix` or `http://host/bucket/prefix`.
    pub(crate) place: String,
    /// The region that it lies in.
    pub(crate) region: String,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Addresses {
    /// For gRPC.
    pub(crate) grpc: String,
    /// For `/livez`, `/readyz` and `/status`.
    pub(crate) health: String,
}

/// Files of certificates, as PEM; they are read anew when they change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tls {
    pub(crate) authorities: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// A key to sign tokens with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Key {
    /// Its name, the `kid` of tokens.
    pub(crate) id: String,
    /// A file with its 32 bytes in hexadecimal digits.
    pub(crate) file: PathBuf,
}

/// Where records are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Store {
    /// A file, for one replica; not looked at with `etcd`.
    pub(crate) file: PathBuf,
    /// A cluster, for several.
    pub(crate) etcd: Option<Etcd>,
    /// How long it may take to answer when the program starts: a cluster may just be electing a leader.
    pub(crate) wait: Span,
}

/// A cluster of etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Etcd {
    /// All members.
    pub(crate) endpoints: Vec<String>,
    /// Who signed their certificates, if they have any.
    #[serde(default)]
    pub(crate) ca: Option<PathBuf>,
    /// Our certificate, if they ask for one.
    #[serde(default)]
    pub(crate) certificate: Option<PathBuf>,
    /// Its key.
    #[serde(default)]
    pub(crate) key: Option<PathBuf>,
    /// Our user, if they have users.
    #[serde(default)]
    pub(crate) user: Option<String>,
    /// A file with the user's password.
    #[serde(default)]
    pub(crate) password_file: Option<PathBuf>,
}

/// Why the settings cannot be used.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    /// A file that a setting names.
    #[error("{setting}: {}: {source}", path.display())]
    File {
        setting: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// A value.
    #[error("{setting}: {message}")]
    Value {
        setting: &'static str,
        message: String,
    },
}

impl Default for Config {
    fn default() -> Self {
        let settings = Settings::default();
        Self {
            replica: settings.replica,
            domain: settings.domain,
            listen: Addresses::default(),
            tls: None,
            keys: Vec::new(),
            more_keys: None,
            store: Store::default(),
            region: None,
            lease: Span(settings.term.told()),
            finish_within: Span(settings.finish_within),
            heartbeat: Span(settings.heartbeat),
            session_token: Span(settings.token_ttl),
            max_view_age: Span(settings.max_view_age),
            grace: Span::seconds(10),
            retention: Kept::default(),
            archives: Vec::new(),
            expire_every: Span(settings.expire_every),
            announce: None,
            log: Logs::default(),
        }
    }
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            grpc: "127.0.0.1:7400".to_owned(),
            health: "127.0.0.1:7401".to_owned(),
        }
    }
}

impl Default for Kept {
    fn default() -> Self {
        let kept = Retention::default();
        Self {
            ended: Span(kept.ended),
            abandoned: Span(kept.abandoned),
            runtimes: Span(kept.runtimes),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            file: PathBuf::from("rspp-control-plane.db"),
            etcd: None,
            wait: Span::seconds(60),
        }
    }
}

impl Store {
    /// Where it is, for people.
    pub(crate) fn place(&self) -> String {
        match &self.etcd {
            Some(etcd) => etcd.endpoints.join(", "),
            None => self.file.display().to_string(),
        }
    }
}

impl settings::Settings for Config {
    const PREFIX: &'static str = "RSPP_CONTROL_PLANE_";
    const FREE: &'static [&'static str] = &["tls", "store.etcd"];
}

fn wrong(setting: &'static str, message: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        setting,
        message: message.into(),
    }
}

fn read(setting: &'static str, path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::File {
        setting,
        path: path.to_owned(),
        source,
    })
}

impl Config {
    /// How the control plane behaves.
    pub(crate) fn behaviour(&self) -> Result<Settings, ConfigError> {
        Ok(Settings {
            replica: self.replica.clone(),
            domain: self.domain.clone(),
            term: Term::new(self.lease.0).map_err(|error| wrong("lease", error.to_string()))?,
            finish_within: self.finish_within()?,
            heartbeat: self.heartbeat.0,
            token_ttl: self.session_token.0,
            max_view_age: self.max_view_age.0,
            retention: self.retention()?,
            region: self
                .region
                .as_deref()
                .map(Region::new)
                .transpose()
                .map_err(|error| wrong("region", error.to_string()))?,
            archives: self.archives()?,
            expire_every: self.expire_every.0,
        })
    }

    fn finish_within(&self) -> Result<Duration, ConfigError> {
        let within = self.finish_within.0;
        if within > MAX_FINISH {
            let most = Span(MAX_FINISH);
            return Err(wrong("finish_within", format!("is at most {most}")));
        }
        Ok(within)
    }

    fn retention(&self) -> Result<Retention, ConfigError> {
        let kept = Retention {
            ended: self.retention.ended.0,
            abandoned: self.retention.abandoned.0,
            runtimes: self.retention.runtimes.0,
        };
        kept.checked()
            .map_err(|error| wrong("retention", error.to_string()))
    }

    fn archives(&self) -> Result<Vec<KeptIn>, ConfigError> {
        let open = |at: &ArchiveAt| {
            let place: Place = at
                .place
                .parse()
                .map_err(|error: PlaceError| wrong("archives.place", error.to_string()))?;
            let region = Region::new(at.region.as_str());
            let archive = ObjectArchive::open(&place)
                .map_err(|error| wrong("archives.place", format!("{place}: {error}")))?;
            Ok(KeptIn {
                region: region.map_err(|error| wrong("archives.region", error.to_string()))?,
                archive: Arc::new(archive),
            })
        };
        self.archives.iter().map(open).collect()
    }

    /// Where it is called.
    pub(crate) fn door(&self) -> Result<Listen, ConfigError> {
        let address = address("listen.grpc", &self.listen.grpc)?;
        let transport = match &self.tls {
            Some(tls) => Transport::Tls(TlsFiles {
                authorities: tls.authorities.clone(),
                certificate: tls.certificate.clone(),
                key: tls.key.clone(),
            }),
            None if address.ip().is_loopback() => Transport::Plain,
            None => {
                return Err(wrong(
                    "listen.grpc",
                    format!(
                        "{address} can be reached from elsewhere, and tokens in the clear can be read there: \
                         set `tls`, or listen on 127.0.0.1"
                    ),
                ));
            }
        };
        Ok(Listen { address, transport })
    }

    /// The keys that tokens are signed with, as their files hold them now; those that are named one by one first.
    pub(crate) fn signers(&self) -> Result<Vec<SigningKey>, ConfigError> {
        let mut files: Vec<(String, PathBuf)> = Vec::new();
        files.extend(self.keys.iter().map(|it| (it.id.clone(), it.file.clone())));
        files.extend(self.more_keys()?);
        if files.is_empty() {
            return Err(wrong(
                "keys",
                "there is none, and no default secret exists: name one as `{id: k1, file: k1.seed}`, made with \
                 `openssl rand -hex 32 > k1.seed`, or begin with --dev DIR, which makes all that is needed",
            ));
        }
        let mut signers: Vec<SigningKey> = Vec::new();
        for (id, file) in files {
            let id =
                KeyId::new(id.as_str()).map_err(|error| wrong("keys.id", error.to_string()))?;
            if signers.iter().any(|it| *it.id() == id) {
                let twice = format!("`{id}` is there twice; {} is the second", file.display());
                return Err(wrong("keys.id", twice));
            }
            let seed = seed(&read("keys.file", &file)?).ok_or_else(|| {
                let path = file.display();
                wrong(
                    "keys.file",
                    format!("{path} does not hold 64 hexadecimal digits"),
                )
            })?;
            signers.push(SigningKey::from_seed(id, &seed));
        }
        Ok(signers)
    }

    /// The files of the directory of keys, by their names.
    fn more_keys(&self) -> Result<Vec<(String, PathBuf)>, ConfigError> {
        let Some(dir) = &self.more_keys else {
            return Ok(Vec::new());
        };
        let unread = |source| ConfigError::File {
            setting: "more_keys",
            path: dir.clone(),
            source,
        };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(unread)? {
            let path = entry.map_err(unread)?.path();
            let id = path.file_stem().and_then(OsStr::to_str);
            if path.extension() == Some(OsStr::new("seed"))
                && let Some(id) = id
            {
                files.push((id.to_owned(), path));
            }
            if files.len() > MOST_KEYS {
                let dir = dir.display();
                return Err(wrong(
                    "more_keys",
                    format!("{dir} has more than {MOST_KEYS} keys"),
                ));
            }
        }
        files.sort();
        Ok(files)
    }

    /// How its cluster is reached, if it has one.
    pub(crate) fn cluster(&self) -> Result<Option<EtcdConfig>, ConfigError> {
        let Some(etcd) = &self.store.etcd else {
            return Ok(None);
        };
        let identity = match (&etcd.certificate, &etcd.key) {
            (Some(certificate), Some(key)) => Some(EtcdIdentity {
                certificate: read("store.etcd.certificate", certificate)?,
                key: read("store.etcd.key", key)?,
            }),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                return Err(wrong("store.etcd", "a certificate goes with its key"));
            }
        };
        let tls = match &etcd.ca {
            Some(ca) => Some(EtcdTls {
                ca: read("store.etcd.ca", ca)?,
                identity,
                domain: None,
            }),
            None if identity.is_some() => {
                return Err(wrong(
                    "store.etcd.ca",
                    "a certificate is of no use without it",
                ));
            }
            None => None,
        };
        let login = match (&etcd.user, &etcd.password_file) {
            (Some(user), Some(file)) => Some(EtcdLogin {
                user: user.clone(),
                password: read("store.etcd.password_file", file)?.trim().to_owned(),
            }),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                return Err(wrong("store.etcd", "`user` goes with `password_file`"));
            }
        };
        Ok(Some(EtcdConfig {
            endpoints: etcd.endpoints.clone(),
            tls,
            login,
            ..EtcdConfig::default()
        }))
    }
}

/// An address to listen on.
pub(crate) fn address(
    setting: &'static str,
    text: &str,
) -> Result<std::net::SocketAddr, ConfigError> {
    text.parse().map_err(|_| {
        wrong(
            setting,
            format!("`{text}` is no address: write it as 127.0.0.1:7400"),
        )
    })
}

fn seed(text: &str) -> Option<[u8; 32]> {
    let digits = text.trim().as_bytes();
    let mut seed = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in seed.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_64_digits() {
        let mut wanted = [0; 32];
        wanted[31] = 0xa5;
        assert_eq!(seed(&format!("{}A5\n", "00".repeat(31))), Some(wanted));
        for bad in ["", "00", &"0g".repeat(32), &"0".repeat(66)] {
            assert_eq!(seed(bad), None, "{bad}");
        }
    }

    /// Nobody is listened to in the clear from elsewhere.
    #[test]
    fn tokens_are_not_shown_to_a_network() {
        let mut config = Config::default();
        assert!(config.door().is_ok());
        config.listen.grpc = "0.0.0.0:7400".to_owned();
        let error = config.door().unwrap_err().to_string();
        assert!(error.contains("set `tls`"), "{error}");
    }

    /// No default secret exists.
    #[test]
    fn a_key_has_to_be_named() {
        let error = Config::default().signers().unwrap_err().to_string();
        assert!(error.contains("--dev"), "{error}");
    }
}
