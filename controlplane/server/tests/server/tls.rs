//! Who is let in at all (F-120).

use std::time::Duration;

use rspp_controlplane_api::{Client, ClientConfig, ControlError, reason, tls::TlsFiles, wire};
use rspp_controlplane_server::{Listen, Server, Transport};
use tokio::time::Instant;

use crate::rig::{Authority, Rig};

async fn is_let_in(client: &Client) -> bool {
    match client.list_keys(wire::ListKeysRequest {}).await {
        Ok(_) => true,
        Err(ControlError::Unavailable { .. } | ControlError::Uncertain { .. }) => false,
        Err(error) => panic!("{error:?}"),
    }
}

fn hasty(client: Client) -> Client {
    client.with_deadline(Duration::from_millis(300))
}

/// F-120: nobody gets in without a certificate of the authority that is good today, nor in the clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_good_certificates_are_let_in() {
    let rig = Rig::start().await;
    assert!(is_let_in(&rig.client("viewer/vera")).await);
    let elsewhere = Authority::new();
    assert!(!is_let_in(&hasty(rig.client_of(&elsewhere, "viewer/eve", false))).await);
    assert!(!is_let_in(&hasty(rig.client_of(&rig.authority, "viewer/late", true))).await);
    let plain = Client::new(ClientConfig {
        addresses: vec![format!("http://{}", rig.address)],
        ..ClientConfig::default()
    });
    assert!(!is_let_in(&hasty(plain.unwrap())).await);
    // A good certificate that names nobody we know is let in as far as the door.
    let nameless = rig.client("king/ludwig");
    let error = nameless
        .list_keys(wire::ListKeysRequest {})
        .await
        .unwrap_err();
    assert!(
        matches!(error, ControlError::Unauthenticated { .. })
            && error.to_string().contains("issue it to `spiffe://"),
        "{error:?}"
    );
}

/// F-120: who is not let in is told what is wrong, on which side, and need not wait for it to pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_let_in_is_told_why() {
    let rig = Rig::start().await;
    let elsewhere = Authority::new();
    let (here, there) = (rig.dir.path(), tempfile::tempdir().unwrap());
    let listen = Listen {
        address: "127.0.0.1:0".parse().unwrap(),
        transport: Transport::Tls(rig.authority.issue(there.path(), "server", true)),
    };
    let expired = Server::start(rig.plane.clone(), vec![listen])
        .await
        .unwrap();
    let ours = rig.authority.issue(here, "viewer/vera", false);
    let theirs = elsewhere.issue(there.path(), "viewer/vera", false);
    let late = rig.authority.issue(there.path(), "viewer/late", true);
    let of_theirs = TlsFiles {
        authorities: ours.authorities.clone(),
        ..theirs.clone()
    };
    let believing_theirs = TlsFiles {
        authorities: theirs.authorities,
        ..ours.clone()
    };
    let (tls, plain) = (rig.address, rig.plain);
    let cases = [
        (
            format!("https://{tls}"),
            believing_theirs,
            reason::TLS_SERVER_UNTRUSTED,
        ),
        (
            format!("https://{tls}"),
            of_theirs,
            reason::TLS_CLIENT_UNTRUSTED,
        ),
        (format!("https://{tls}"), late, reason::TLS_CLIENT_EXPIRED),
        (
            format!("https://localhost:{}", tls.port()),
            ours.clone(),
            reason::TLS_SERVER_MISNAMED,
        ),
        (
            format!("https://{}", expired.addresses()[0]),
            ours.clone(),
            reason::TLS_SERVER_EXPIRED,
        ),
        (format!("http://{tls}"), ours.clone(), reason::TLS_EXPECTED),
        (format!("https://{plain}"), ours, reason::TLS_NOT_SPOKEN),
    ];
    for (address, files, why) in cases {
        let client = Client::new(ClientConfig {
            addresses: vec![address.clone()],
            tls: Some(files),
            deadline: Duration::from_secs(30),
            ..ClientConfig::default()
        });
        let asked = Instant::now();
        let error = client
            .unwrap()
            .list_keys(wire::ListKeysRequest {})
            .await
            .unwrap_err();
        assert_eq!(error.reason(), why, "{address}: {error:?}");
        assert!(error.to_string().contains(&address), "{error}");
        assert!(error.is_transient(), "a runtime goes on asking: {error:?}");
        assert!(asked.elapsed() < Duration::from_secs(10), "{address}");
    }
}

/// F-120: the authority is replaced while it runs. Who is connected stays so; who comes needs the new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_replaced_without_a_restart() {
    let rig = Rig::start().await;
    let connected = rig.client("viewer/vera");
    assert!(is_let_in(&connected).await);
    let next = Authority::new();
    // Later than what is there, by the file system's clock.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let files = next.issue(rig.dir.path(), "server", false);
    let tls = next.issue(rig.dir.path(), "viewer/nora", false);
    assert_eq!(
        files.authorities.file_name(),
        Some("server.ca.pem".as_ref())
    );
    let renewed = || {
        let config = ClientConfig {
            addresses: vec![format!("https://{}", rig.address)],
            tls: Some(tls.clone()),
            ..ClientConfig::default()
        };
        hasty(Client::new(config).unwrap())
    };
    let mut in_at_last = false;
    for _ in 0..20 {
        in_at_last = is_let_in(&renewed()).await;
        if in_at_last {
            break;
        }
    }
    assert!(in_at_last, "the new authority's certificate is good by now");
    assert!(is_let_in(&connected).await, "an open connection goes on");
    assert!(
        !is_let_in(&hasty(rig.client("viewer/olga"))).await,
        "the old authority's is not"
    );
}
