//! TLS between services: both sides show a certificate of one authority, read from files that may be
//! replaced at any time (F-120).

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use thiserror::Error;
use tokio::time::Instant;

/// How often files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const ALPN: &[u8] = b"h2";

/// Where a side's credentials are, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities whose certificates the other side may show.
    pub authorities: PathBuf,
    /// Our certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why there is no TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} holds no usable PEM {what}")]
    Pem {
        /// Which.
        path: PathBuf,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// Certificate and key do not belong together, or the like.
    #[error("the credentials cannot be used: {0}")]
    Unusable(String),
}

struct Credentials {
    authorities: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(TlsError::Pem {
            path: path.to_owned(),
            what: "certificate",
        }),
    }
}

fn unusable(error: impl std::fmt::Display) -> TlsError {
    TlsError::Unusable(error.to_string())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl TlsFiles {
    fn read(&self) -> Result<Credentials, TlsError> {
        let mut authorities = RootCertStore::empty();
        for certificate in certificates(&self.authorities)? {
            authorities.add(certificate).map_err(unusable)?;
        }
        let pem = read(&self.key)?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsError::Pem {
            path: self.key.clone(),
            what: "private key",
        })?;
        Ok(Credentials {
            authorities,
            chain: certificates(&self.certificate)?,
            key,
        })
    }

    /// When each was last written; `None` while one is missing, as it is for a moment when it is replaced.
    fn written(&self) -> Option<[SystemTime; 3]> {
        let at = |path: &Path| fs::metadata(path).and_then(|it| it.modified()).ok();
        Some([
            at(&self.authorities)?,
            at(&self.certificate)?,
            at(&self.key)?,
        ])
    }
}

/// What one side needs to begin a connection.
pub trait Side: Sized {
    /// From what is in the files now.
    fn from_files(files: &TlsFiles) -> Result<Self, TlsError>;
}

impl Side for ClientConfig {
    fn from_files(files: &TlsFiles) -> Result<Self, TlsError> {
        let credentials = files.read()?;
        let mut config = Self::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(credentials.authorities)
            .with_client_auth_cert(credentials.chain, credentials.key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(config)
    }
}

impl Side for ServerConfig {
    fn from_files(files: &TlsFiles) -> Result<Self, TlsError> {
        let credentials = files.read()?;
        // Nobody is let in without a certificate: there is no half-open mode to forget about.
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::new(credentials.authorities),
            provider(),
        )
        .build()
        .map_err(unusable)?;
        let mut config = Self::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(credentials.chain, credentials.key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed connection would be believed by a certificate that was replaced or has expired since.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// Credentials that follow their files: a connection begins with what is there then, and those that are
/// open go on.
#[derive(Debug)]
pub struct Reloading<C> {
    files: TlsFiles,
    state: Mutex<Loaded<C>>,
}

#[derive(Debug)]
struct Loaded<C> {
    config: Arc<C>,
    written: Option<[SystemTime; 3]>,
    looked: Instant,
}

impl<C: Side> Reloading<C> {
    /// Reads the files once; what is wrong with them is told at once.
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let written = files.written();
        let config = Arc::new(C::from_files(&files)?);
        let state = Loaded {
            config,
            written,
            looked: Instant::now(),
        };
        Ok(Self {
            files,
            state: Mutex::new(state),
        })
    }

    /// What the files hold; what they held before, while they make no sense.
    pub fn current(&self) -> Arc<C> {
        let mut state = self.state.lock().expect("no code panics while locked");
        if state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            let written = self.files.written();
            if written.is_some() && written != state.written {
                match C::from_files(&self.files) {
                    Ok(config) => {
                        tracing::info!(certificate = %self.files.certificate.display(), "credentials replaced");
                        state.config = Arc::new(config);
                        state.written = written;
                    }
                    // A pair that is half replaced; the other half comes.
                    Err(error) => tracing::warn!(%error, "new credentials cannot be used yet"),
                }
            }
        }
        Arc::clone(&state.config)
    }
}
