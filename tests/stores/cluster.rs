//! A real cluster of three members passes the suite of all stores; certificates and users.

use std::{path::Path, sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rspp_controlplane::store::{Key, Store, StoreError, Txn};
use rspp_controlplane_storage::{Etcd, EtcdConfig, EtcdIdentity, EtcdLogin, EtcdTls, conformance};
use rspp_tests::etcd::{Cluster, Setup, Tls};
use serde_json::json;

fn key(name: &str) -> Key {
    Key::of(["rspp", "test", name])
}

async fn put(store: &dyn Store, name: &str) -> Result<(), StoreError> {
    let txn = Txn::default().put(key(name), "1");
    store.commit(txn).await.map(|_| ())
}

/// F-166, NF-016: the very suite that the file passes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_are_a_store() {
    let cluster = Cluster::start(3).await;
    let store: Arc<dyn Store> = Arc::new(cluster.store());
    conformance::all(&store).await;
}

/// The cluster has users: who gives no password, or a wrong one, gets nothing; a token that has ended
/// is replaced without anybody noticing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_users_lets_in_whom_it_knows() {
    let cluster = Cluster::start(1).await;
    for (path, body) in [
        ("user/add", json!({ "name": "root", "password": "r" })),
        ("role/add", json!({ "name": "root" })),
        ("user/grant", json!({ "user": "root", "role": "root" })),
        ("user/add", json!({ "name": "rspp", "password": "secret" })),
        ("role/add", json!({ "name": "rspp" })),
        ("role/grant", grant("/rspp/", "/rspp0")),
        ("role/grant", grant("rspp-receipts/", "rspp-receipts0")),
        ("user/grant", json!({ "user": "rspp", "role": "rspp" })),
        ("enable", json!({})),
    ] {
        let answer = cluster.post(0, &format!("/v3/auth/{path}"), &body).await;
        assert!(answer.get("error").is_none(), "{path}: {answer}");
    }
    let with = |login: Option<(&str, &str)>| {
        let login = login.map(|(user, password)| EtcdLogin {
            user: user.to_owned(),
            password: password.to_owned(),
        });
        Etcd::new(&EtcdConfig {
            login,
            give_up_ms: 2_000,
            ..cluster.config()
        })
        .unwrap()
    };
    let known = with(Some(("rspp", "secret")));
    put(&known, "a").await.unwrap();
    for refused in [None, Some(("rspp", "guess"))] {
        let error = put(&with(refused), "a").await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    }
    // Whatever lies outside of our place is not ours.
    let elsewhere = Txn::default().put(Key::of(["other"]), "1");
    let error = known.commit(elsewhere).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    // Changing its password ends the tokens that were given for the old one; so the token is of no use
    // and a new one is asked for.
    let change = json!({ "name": "rspp", "password": "secret" });
    let token = cluster
        .post(
            0,
            "/v3/auth/authenticate",
            &json!({ "name": "root", "password": "r" }),
        )
        .await;
    cluster
        .post_as(
            0,
            "/v3/auth/user/changepw",
            &change,
            token["token"].as_str().unwrap(),
        )
        .await;
    put(&known, "b").await.unwrap();
}

fn grant(begin: &str, end: &str) -> serde_json::Value {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    json!({
        "name": "rspp",
        "perm": {
            "permType": "READWRITE",
            "key": STANDARD.encode(begin),
            "range_end": STANDARD.encode(end),
        },
    })
}

/// The members show certificates and want to see ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_certificates_trusts_whom_its_issuer_vouches_for() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::new("issuer");
    let stranger = Issuer::new("stranger");
    let (certificate, secret) = issuer.issue("member");
    let file = |name: &str, text: &str| write(dir.path(), name, text);
    let tls = Tls {
        ca: file("ca.pem", &issuer.certificate()),
        certificate: file("member.pem", &certificate),
        key: file("member.key", &secret),
    };
    let cluster = Cluster::start_as(&Setup {
        members: 1,
        tls: Some(tls),
        ..Setup::default()
    })
    .await;
    let with = |identity: Option<(String, String)>, ca: String| {
        Etcd::new(&EtcdConfig {
            tls: Some(EtcdTls {
                ca,
                identity: identity.map(|(certificate, key)| EtcdIdentity { certificate, key }),
                domain: Some("localhost".to_owned()),
            }),
            give_up_ms: 1_500,
            ..cluster.config()
        })
        .unwrap()
    };
    let known = with(Some(issuer.issue("replica")), issuer.certificate());
    put(&known, "a").await.unwrap();
    for refused in [
        with(None, issuer.certificate()),
        with(Some(stranger.issue("replica")), issuer.certificate()),
        with(Some(issuer.issue("replica")), stranger.certificate()),
    ] {
        assert!(put(&refused, "a").await.is_err());
    }
}

struct Issuer(CertifiedIssuer<'static, KeyPair>);

impl Issuer {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn certificate(&self) -> String {
        self.0.pem()
    }

    fn issue(&self, name: &str) -> (String, String) {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

fn write(dir: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Nobody waits for a cluster that is not there longer than was said.
#[tokio::test]
async fn a_cluster_that_is_not_there_is_given_up_in_time() {
    let store = Etcd::new(&EtcdConfig {
        timeout_ms: 200,
        give_up_ms: 600,
        ..EtcdConfig::at(["http://127.0.0.1:9", "http://127.0.0.1:7"])
    })
    .unwrap();
    let begun = tokio::time::Instant::now();
    let error = put(&store, "a").await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}
