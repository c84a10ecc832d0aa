//! Who is let in at all (F-120).

use std::time::Duration;

use rspp_controlplane_api::{Client, ClientConfig, ControlError, wire};

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
