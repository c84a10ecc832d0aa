//! What all that speaks HTTP to a server has in common.
//!
//! Which is a client that goes where it was told to and nowhere else, what it counts, and secrets by
//! reference.

mod connections;
mod secret;
#[cfg(feature = "testing")]
pub mod testing;

use std::net::IpAddr;

use reqwest::{Client, ClientBuilder, Url, redirect};

pub use connections::{ConnectionCounts, Connections};
pub use secret::{REDACTED, Secret, SecretError, SecretRef, SecretStore};

/// A client that follows no redirect, since what is sent is for the named server and no other, and that
/// waits for no more to send. What it connects is counted.
pub fn client(connections: &Connections) -> ClientBuilder {
    // Whoever came first has chosen a provider that will do as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .redirect(redirect::Policy::none())
        .tcp_nodelay(true)
        .connector_layer(connections.layer())
}

/// Whether an address is this machine, which no proxy stands before.
pub fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    address.map_or(host == "localhost", |address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_by_name_and_address() {
        let check = |url: &str| is_loopback(&Url::parse(url).unwrap());
        assert!(check("http://localhost/") && check("http://127.9.9.9/") && check("http://[::1]/"));
        assert!(!check("http://10.0.0.1/") && !check("http://localhost.example/"));
    }
}
