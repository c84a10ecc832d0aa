//! Who calls: as their certificate says, as a signed token says, or as whoever embeds us says.

use std::{collections::BTreeSet, fmt, net::SocketAddr};

use rspp_controlplane::access::{Principal, Role, Tenants};
use rspp_proto::{Actor, TenantId};
use thiserror::Error;
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

/// Who a certificate was issued to: the path of its URI name,
/// `spiffe://<domain>/<role>/<actor>[/tenant/<tenant>]…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(pub Principal);

/// A certificate that names nobody we know.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// It cannot be read.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// It names nobody of this domain.
    #[error(
        "the certificate names nobody of `{domain}`: issue it to `spiffe://{domain}/<role>/<name>`"
    )]
    Nobody {
        /// Whose certificates count.
        domain: String,
    },
}

impl Identity {
    /// Who a certificate was issued to. That it is good has been checked.
    pub fn of_certificate(der: &[u8], domain: &str) -> Result<Self, IdentityError> {
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der)
            .map_err(|_| IdentityError::Unreadable)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| IdentityError::Unreadable)?;
        let names = names.into_iter().flat_map(|it| &it.value.general_names);
        let mut uris = names.filter_map(|name| match name {
            GeneralName::URI(uri) => Self::of_uri(uri, domain),
            _another_name => None,
        });
        let nobody = IdentityError::Nobody {
            domain: domain.to_owned(),
        };
        // Two names are one too many to know who calls.
        match (uris.next(), uris.next()) {
            (Some(identity), None) => Ok(identity),
            (Some(_), Some(_)) | (None, _) => Err(nobody),
        }
    }

    fn of_uri(uri: &str, domain: &str) -> Option<Self> {
        let path = uri.strip_prefix("spiffe://")?.strip_prefix(domain)?;
        let mut parts = path.strip_prefix('/')?.split('/');
        let role = parts.next()?;
        let role = Role::ALL.into_iter().find(|it| it.as_str() == role)?;
        let actor = Actor::new(parts.next()?).ok()?;
        let mut tenants = BTreeSet::new();
        while let Some(word) = parts.next() {
            if word != "tenant" {
                return None;
            }
            tenants.insert(TenantId::new(parts.next()?).ok()?);
        }
        let tenants = if tenants.is_empty() {
            Tenants::All
        } else {
            Tenants::Only(tenants)
        };
        Some(Self(Principal {
            actor,
            role,
            tenants,
        }))
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// From where; `None` within the process.
    pub(crate) address: Option<SocketAddr>,
    /// Who, by the connection alone; or what is wrong with the certificate that it showed, if it showed one.
    pub(crate) identity: Result<Principal, Option<IdentityError>>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{address}"),
            None => f.write_str("this process"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-115: what a certificate's name says, and which names say nothing.
    #[test]
    fn a_name_says_role_actor_and_tenants() {
        let of = |uri: &str| Identity::of_uri(uri, "rspp.test").map(|it| it.0);
        let ana = of("spiffe://rspp.test/operator/ana/tenant/acme/tenant/other").unwrap();
        assert_eq!((ana.role, ana.actor.as_str()), (Role::Operator, "ana"));
        let tenants = ["acme", "other"].map(|name| TenantId::new(name).unwrap());
        assert_eq!(ana.tenants, Tenants::Only(tenants.into()));
        let all = of("spiffe://rspp.test/runtime/node-1").unwrap();
        assert_eq!((all.role, all.tenants), (Role::Runtime, Tenants::All));
        for nobody in [
            "spiffe://elsewhere/runtime/node-1",
            "spiffe://rspp.test.evil/runtime/node-1",
            "spiffe://rspp.test/king/ana",
            "spiffe://rspp.test/viewer",
            "spiffe://rspp.test/viewer/",
            "spiffe://rspp.test/viewer/ana/tenant",
            "spiffe://rspp.test/viewer/ana/tenants/acme",
            "https://rspp.test/viewer/ana",
        ] {
            assert_eq!(of(nobody), None, "{nobody}");
        }
    }
}
