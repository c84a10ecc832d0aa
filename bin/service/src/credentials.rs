//! Credentials of a fleet on one machine: an authority of its own and what it vouches for, as files.
//! Beyond one machine certificates come from elsewhere.

use std::{
    fmt::Display,
    fmt::Write as _,
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use thiserror::Error;

/// Why there are no credentials.
#[derive(Debug, Error)]
pub enum CredentialsError {
    /// A file.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A certificate.
    #[error("no certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate, as PEM.
    pub certificate: PathBuf,
    /// Its private key, as PEM, for its owner only.
    pub key: PathBuf,
}

/// What to type so that commands ask a control plane at these addresses as the owner of `files`.
pub fn exports(addresses: &str, authorities: &Path, files: &Files) -> String {
    format!(
        "export RSPP_CONTROL_PLANE={addresses} RSPP_TLS_CA={} RSPP_TLS_CERT={} RSPP_TLS_KEY={}",
        authorities.display(),
        files.certificate.display(),
        files.key.display(),
    )
}

/// An authority whose files lie in one directory.
pub struct Authority {
    dir: PathBuf,
    domain: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// Makes an authority in a directory, or takes up the one that is there.
    pub fn open(dir: &Path, domain: &str) -> Result<Self, CredentialsError> {
        fs::create_dir_all(dir).map_err(failed(dir))?;
        let dir = fs::canonicalize(dir).map_err(failed(dir))?;
        let (certificate, key) = (dir.join("authority.pem"), dir.join("authority.key"));
        let pair = if key.exists() {
            KeyPair::from_pem(&fs::read_to_string(&key).map_err(failed(&key))?)?
        } else {
            let pair = KeyPair::generate()?;
            secret(&key, &pair.serialize_pem())?;
            pair
        };
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "rspp on this machine");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, pair)?;
        if !certificate.exists() {
            fs::write(&certificate, issuer.pem()).map_err(failed(&certificate))?;
        }
        Ok(Self {
            dir,
            domain: domain.to_owned(),
            issuer,
        })
    }

    /// The authority's own certificate, as PEM.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("authority.pem")
    }

    /// A certificate for a control plane of this machine.
    pub fn server(&self, name: &str) -> Result<Files, CredentialsError> {
        self.issue(name, &["localhost", "127.0.0.1", "::1"], None)
    }

    /// A certificate for a runtime.
    pub fn runtime(&self, name: &str) -> Result<Files, CredentialsError> {
        let uri = format!("spiffe://{}/runtime/{name}", self.domain);
        self.issue(name, &[], Some(&uri))
    }

    /// A certificate for somebody with a role, for all tenants.
    pub fn person(&self, name: &str, role: &str) -> Result<Files, CredentialsError> {
        self.person_of(name, role, [""; 0])
    }

    /// A certificate for somebody with a role, for these tenants; for all if there are none.
    pub fn person_of(
        &self,
        name: &str,
        role: &str,
        tenants: impl IntoIterator<Item = impl Display>,
    ) -> Result<Files, CredentialsError> {
        let mut uri = format!("spiffe://{}/{role}/{name}", self.domain);
        for tenant in tenants {
            write!(uri, "/tenant/{tenant}").expect("a string takes what is written");
        }
        self.issue(name, &[], Some(&uri))
    }

    /// Takes up the authority of a directory.
    pub fn existing(dir: &Path, domain: &str) -> Result<Self, CredentialsError> {
        let key = dir.join("authority.key");
        if !key.is_file() {
            let missing = io::Error::new(
                io::ErrorKind::NotFound,
                "no authority is there: `rspp up --nodes` and `rspp-control-plane --dev` make one",
            );
            return Err(failed(&key)(missing));
        }
        Self::open(dir, domain)
    }

    /// A key to sign tokens with: 64 hex digits.
    pub fn signing_key(&self, name: &str) -> Result<PathBuf, CredentialsError> {
        let path = self.dir.join(format!("{name}.seed"));
        if !path.exists() {
            // The secret part of a fresh key of the library that TLS uses is as good as any 32 bytes.
            let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
            let der = pair.serialize_der();
            // PKCS#8 of Ed25519 (RFC 8410): the 32 bytes follow `04 22 04 20`.
            let at = der.windows(4).position(|it| it == [0x04, 0x22, 0x04, 0x20]);
            let at = at.expect("that is how such keys are written") + 4;
            let mut digits = String::with_capacity(64);
            for byte in &der[at..at + 32] {
                write!(digits, "{byte:02x}").expect("a string takes what is written");
            }
            secret(&path, &digits)?;
        }
        Ok(path)
    }

    /// The directory for keys that are to sign later (F-169): they are put there by hand.
    pub fn more_keys(&self) -> Result<PathBuf, CredentialsError> {
        let path = self.dir.join("more-keys");
        fs::create_dir_all(&path).map_err(failed(&path))?;
        Ok(path)
    }

    fn issue(
        &self,
        name: &str,
        hosts: &[&str],
        uri: Option<&str>,
    ) -> Result<Files, CredentialsError> {
        let files = Files {
            certificate: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}.key")),
        };
        if files.certificate.exists() && files.key.exists() {
            return Ok(files);
        }
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(uri) = uri {
            params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        }
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        secret(&files.key, &key.serialize_pem())?;
        fs::write(&files.certificate, certificate.pem()).map_err(failed(&files.certificate))?;
        Ok(files)
    }
}

/// Writes what only its owner may read.
fn secret(path: &Path, text: &str) -> Result<(), CredentialsError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(failed(path))?;
    file.write_all(text.as_bytes()).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CredentialsError + '_ {
    |source| CredentialsError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// What is there is kept, and secrets are for their owner only.
    #[test]
    fn credentials_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let make = || {
            let authority = Authority::open(dir.path(), "rspp.test").unwrap();
            let files = authority.runtime("a").unwrap();
            let key = authority.signing_key("k1").unwrap();
            [authority.certificate(), files.certificate, files.key, key]
                .map(|path| (fs::read_to_string(&path).unwrap(), path))
        };
        let first = make();
        assert_eq!(first, make());
        assert_eq!(first[3].0.len(), 64);
        for (_, path) in &first[2..] {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", path.display());
        }
    }
}
