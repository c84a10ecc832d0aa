//! What is wrong with connections, as far as the one who makes them can tell: somebody is there, and still
//! nothing can be said (F-120).

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use rustls::{AlertDescription, CertificateError, Error as TlsError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{ControlError, link::Link, reason};

/// Why somebody who is there is not spoken with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The server's certificate is of no authority that is believed here.
    ServerUntrusted,
    /// The server's certificate is for other names.
    ServerMisnamed,
    /// The server's certificate has expired, or is not valid yet.
    ServerExpired,
    /// The server does not believe who issued our certificate.
    ClientUntrusted,
    /// Our certificate has expired, or is not valid yet.
    ClientExpired,
    /// The server speaks TLS and was called in the clear.
    TlsExpected,
    /// The server was called with TLS and speaks something else.
    TlsNotSpoken,
}

impl Fault {
    /// What an error of a connection means, if it means one of these.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        let error = error.get_ref()?.downcast_ref::<TlsError>()?;
        match error {
            TlsError::InvalidCertificate(why) => Some(match why {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::ServerExpired,
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => Self::ServerMisnamed,
                _otherwise_not_good => Self::ServerUntrusted,
            }),
            TlsError::AlertReceived(alert) => match alert {
                AlertDescription::CertificateExpired => Some(Self::ClientExpired),
                AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::CertificateRevoked
                | AlertDescription::UnsupportedCertificate
                // What a certificate leads to that another key of the same name has signed.
                | AlertDescription::DecryptError
                | AlertDescription::AccessDenied => Some(Self::ClientUntrusted),
                _of_no_certificate => None,
            },
            TlsError::InvalidMessage(_) => Some(Self::TlsNotSpoken),
            _of_the_protocol => None,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::ServerUntrusted => reason::TLS_SERVER_UNTRUSTED,
            Self::ServerMisnamed => reason::TLS_SERVER_MISNAMED,
            Self::ServerExpired => reason::TLS_SERVER_EXPIRED,
            Self::ClientUntrusted => reason::TLS_CLIENT_UNTRUSTED,
            Self::ClientExpired => reason::TLS_CLIENT_EXPIRED,
            Self::TlsExpected => reason::TLS_EXPECTED,
            Self::TlsNotSpoken => reason::TLS_NOT_SPOKEN,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ServerUntrusted => {
                "its certificate is of no authority that is trusted on this side"
            }
            Self::ServerMisnamed => "its certificate is for other names than this one",
            Self::ServerExpired => {
                "its certificate has expired or is not valid yet, or a clock is wrong"
            }
            Self::ClientUntrusted => "it does not trust who issued the certificate of this side",
            Self::ClientExpired => {
                "the certificate of this side has expired or is not valid yet, or a clock is wrong"
            }
            Self::TlsExpected => "it speaks TLS, and was called in the clear",
            Self::TlsNotSpoken => "it was called with TLS, and speaks something else",
        })
    }
}

/// What was wrong with a client's last connection; nothing once somebody has spoken with it.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults(Arc<Mutex<Option<(Fault, String)>>>);

impl Faults {
    pub(super) fn note(&self, fault: Fault, address: &str) {
        *self.0.lock().expect("no code panics while locked") = Some((fault, address.to_owned()));
    }

    fn clear(&self) {
        *self.0.lock().expect("no code panics while locked") = None;
    }

    /// What has to be told instead of an error that only says that nobody was reached.
    pub(super) fn behind(&self) -> Option<ControlError> {
        let fault = self.0.lock().expect("no code panics while locked");
        let (fault, address) = fault.as_ref()?;
        Some(ControlError::Unavailable {
            reason: fault.reason().to_owned(),
            retry_after: None,
            message: told(address, fault),
        })
    }
}

/// That nobody was reached at an address, and why.
pub(super) fn told(address: impl fmt::Display, why: impl fmt::Display) -> String {
    format!("cannot reach the control plane at {address}: {why}")
}

/// A connection whose faults are noted.
#[derive(Debug)]
pub(super) struct Watched {
    link: Link,
    address: String,
    faults: Faults,
    /// Whether the other side has said something.
    begun: bool,
}

/// How records of TLS begin that say what is wrong, or that a connection is to be made. A frame of HTTP/2
/// that begins so is longer than any may be.
const TLS_RECORDS: [u8; 2] = [0x15, 0x16];

impl Watched {
    pub(super) fn new(link: Link, address: String, faults: Faults) -> Self {
        Self {
            link,
            address,
            faults,
            begun: false,
        }
    }

    /// Looks at what came first.
    fn begin(&mut self, came: &[u8]) -> io::Result<()> {
        let Some(first) = came.first() else {
            return Ok(());
        };
        self.begun = true;
        if matches!(self.link, Link::Plain(_)) && TLS_RECORDS.contains(first) {
            let fault = Fault::TlsExpected;
            self.faults.note(fault, &self.address);
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                fault.to_string(),
            ));
        }
        self.faults.clear();
        Ok(())
    }

    fn look(&self, error: &io::Error) {
        if let Some(fault) = Fault::of(error) {
            self.faults.note(fault, &self.address);
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.link).poll_read(cx, buf);
        match &read {
            Poll::Ready(Ok(())) if !this.begun => Poll::Ready(this.begin(&buf.filled()[before..])),
            Poll::Ready(Err(error)) => {
                this.look(error);
                read
            }
            Poll::Ready(Ok(())) | Poll::Pending => read,
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().link).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().link).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().link).poll_shutdown(cx)
    }
}
