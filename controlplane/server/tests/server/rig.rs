//! A control plane that listens on loopback, and callers with certificates of its authority.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd,
};
use rspp_controlplane::{
    access::Role,
    authority::Term,
    store::Store,
    token::{AccessClaims, KeyId, SigningKey},
};
use rspp_controlplane_api::{
    Acquire, Client, ClientConfig, ControlError, ControlPlane as _, Granted, Joined, Wanted,
    Writer, tls::TlsFiles, wire,
};
use rspp_controlplane_server::{Listen, Plane, Server, Settings, Transport};
use rspp_proto::{
    Actor, Region, RuntimeId, SessionId, TenantId,
    control::{Attempt, Description, Endpoint, Holder, Load, PROTOCOL},
    spec::PipelineSpec,
};
use tempfile::TempDir;

/// Whose certificates count.
pub(crate) const DOMAIN: &str = "rspp.test";
/// What holders are told.
pub(crate) const TTL: Duration = Duration::from_secs(2);

/// Issues certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Writes credentials into `dir`, for the server's address and for a caller's name.
    pub(crate) fn issue(&self, dir: &Path, path: &str, expired: bool) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let name = format!("spiffe://{DOMAIN}/{path}");
        params
            .subject_alt_names
            .push(SanType::URI(name.try_into().unwrap()));
        if expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let certificate = params.signed_by(&key, &*self.0).unwrap();
        let stem = path.replace('/', "-");
        let files = TlsFiles {
            authorities: dir.join(format!("{stem}.ca.pem")),
            certificate: dir.join(format!("{stem}.pem")),
            key: dir.join(format!("{stem}.key")),
        };
        std::fs::write(&files.authorities, self.0.pem()).unwrap();
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}

pub(crate) fn key(name: &str, seed: u8) -> SigningKey {
    SigningKey::from_seed(KeyId::new(name).unwrap(), &[seed; 32])
}

/// How control planes of tests behave.
pub(crate) fn settings() -> Settings {
    Settings {
        domain: DOMAIN.to_owned(),
        term: Term::new(TTL).unwrap(),
        ..Settings::default()
    }
}

/// A control plane, as tests meet it.
pub(crate) struct Rig {
    pub(crate) dir: TempDir,
    pub(crate) authority: Authority,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) server: Server,
    pub(crate) plane: Plane,
    /// Under TLS.
    pub(crate) address: SocketAddr,
    /// In the clear.
    pub(crate) plain: SocketAddr,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::start_as(settings()).await
    }

    /// On an empty store.
    pub(crate) async fn start_as(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = crate::ground::fresh(dir.path()).await;
        Self::with(dir, store, settings).await
    }

    pub(crate) async fn on(dir: TempDir, store: Arc<dyn Store>) -> Self {
        Self::with(dir, store, settings()).await
    }

    pub(crate) async fn with(dir: TempDir, store: Arc<dyn Store>, settings: Settings) -> Self {
        Self::signing(dir, store, settings, vec![key("k1", 1), key("k2", 2)]).await
    }

    /// With these private keys.
    pub(crate) async fn signing(
        dir: TempDir,
        store: Arc<dyn Store>,
        settings: Settings,
        keys: Vec<SigningKey>,
    ) -> Self {
        let authority = Authority::new();
        let plane = Plane::open(Arc::clone(&store), settings, keys)
            .await
            .unwrap();
        let files = authority.issue(dir.path(), "server", false);
        let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listen = [Transport::Tls(files), Transport::Plain];
        let listen = listen.map(|transport| Listen {
            address: loopback,
            transport,
        });
        let server = Server::start(plane.clone(), listen.into()).await.unwrap();
        let [address, plain] = *server.addresses() else {
            panic!("two sockets");
        };
        Self {
            dir,
            authority,
            store,
            server,
            plane,
            address,
            plain,
        }
    }

    /// A caller whose certificate says `path`, e.g. `admin/ana`.
    pub(crate) fn client(&self, path: &str) -> Client {
        self.client_of(&self.authority, path, false)
    }

    pub(crate) fn client_of(&self, authority: &Authority, path: &str, expired: bool) -> Client {
        let mut tls = authority.issue(self.dir.path(), path, expired);
        // It believes the server, whoever issued its own certificate.
        tls.authorities = self.trusted();
        Client::new(ClientConfig {
            addresses: vec![format!("https://{}", self.address)],
            tls: Some(tls),
            ..ClientConfig::default()
        })
        .unwrap()
    }

    fn trusted(&self) -> PathBuf {
        let path = self.dir.path().join("trusted.pem");
        std::fs::write(&path, self.authority.0.pem()).unwrap();
        path
    }

    pub(crate) fn admin(&self) -> Client {
        self.client("admin/ana")
    }

    /// A caller without a certificate, who shows a token.
    pub(crate) fn with_token(&self, token: Option<String>) -> Client {
        let client = Client::new(ClientConfig {
            addresses: vec![format!("http://{}", self.plain)],
            ..ClientConfig::default()
        });
        let bearer = token.map(|token| -> rspp_controlplane_api::Bearer {
            Arc::new(move || Some(token.clone()))
        });
        client.unwrap().with_bearer(bearer)
    }

    /// A runtime that has joined.
    pub(crate) async fn node(&self, name: &str) -> Node {
        self.node_in(name, "eu").await
    }

    pub(crate) async fn node_in(&self, name: &str, region: &str) -> Node {
        self.node_as(name, description(name, region)).await
    }

    /// A runtime that says of itself what it is.
    pub(crate) async fn node_as(&self, name: &str, description: Description) -> Node {
        let client = self.client(&format!("runtime/{name}"));
        let id = RuntimeId::new(name).unwrap();
        let joined = client.register(id, description).await.unwrap();
        let mut node = Node {
            client,
            joined,
            load: Arc::default(),
            keeper: None,
        };
        node.ready().await;
        node.keep();
        // Until everybody knows.
        for _ in 0..200 {
            let fleet = self
                .admin()
                .list_runtimes(wire::ListRuntimesRequest {})
                .await;
            let fleet = fleet.unwrap().runtimes;
            let is_ready = |it: &wire::Runtime| {
                it.holder.as_ref().unwrap().runtime == name && it.load.as_ref().unwrap().ready
            };
            if fleet.iter().any(is_ready) {
                return node;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} never showed");
    }

    /// A pipeline that is published and rolled out.
    pub(crate) async fn pipeline(&self, version: &str) {
        publish(&self.admin(), version).await;
        direct(&self.admin(), version).await;
        let line = version.split('-').next().unwrap().to_owned();
        // Until it is followed.
        for _ in 0..200 {
            let resolved = self.route("warm-up", &line).await;
            match resolved {
                Err(ControlError::Refused { .. }) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Ok(_) | Err(_) => return,
            }
        }
        panic!("{version} was never rolled out");
    }

    /// Asks where a session of `acme` goes.
    pub(crate) async fn route(
        &self,
        session: &str,
        pipeline: &str,
    ) -> Result<wire::Route, ControlError> {
        let request = wire::RouteRequest {
            tenant: "acme".to_owned(),
            session: session.to_owned(),
            transport: "websocket".to_owned(),
            pipeline: pipeline.to_owned(),
            ..wire::RouteRequest::default()
        };
        self.client("operator/otto").route_session(request).await
    }
}

pub(crate) fn description(name: &str, region: &str) -> Description {
    Description {
        region: Region::new(region).unwrap(),
        endpoints: vec![Endpoint {
            transport: "websocket".to_owned(),
            url: format!("ws://{name}.test/call"),
        }],
        capacity: 100,
        build: "test".to_owned(),
        protocol: PROTOCOL,
        events: "v1.0".to_owned(),
        labels: BTreeMap::new(),
    }
}

/// A runtime that has joined and renews, and its client.
pub(crate) struct Node {
    pub(crate) client: Client,
    pub(crate) joined: Joined,
    /// What it says of itself.
    load: Arc<Mutex<Load>>,
    keeper: Option<tokio::task::JoinHandle<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.fall_silent();
    }
}

impl Node {
    pub(crate) fn holder(&self) -> Holder {
        self.joined.holder.clone()
    }

    pub(crate) async fn ready(&self) {
        self.fares(Load {
            ready: true,
            ..Load::default()
        })
        .await;
    }

    /// It fares like this from now on, and says so.
    pub(crate) async fn fares(&self, load: Load) {
        *self.load.lock().unwrap() = load.clone();
        self.client
            .heartbeat(&self.joined.holder, load)
            .await
            .unwrap();
    }

    /// Renews, whatever it holds, until it falls silent or is replaced.
    fn keep(&mut self) {
        let (client, holder) = (self.client.clone(), self.holder());
        let load = Arc::clone(&self.load);
        self.keeper = Some(tokio::spawn(async move {
            loop {
                tokio::time::sleep(TTL / 5).await;
                let renewed = client.renew(&holder, Vec::new()).await;
                if matches!(renewed, Err(ControlError::HolderGone { .. })) {
                    return;
                }
                let load = load.lock().unwrap().clone();
                let _ = client.heartbeat(&holder, load).await;
            }
        }));
    }

    /// Renews no more.
    pub(crate) fn fall_silent(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.abort();
        }
    }

    pub(crate) fn ask(&self, session: &str, attempt: u64) -> Acquire {
        Acquire {
            by: self.holder(),
            attempt: Attempt(attempt),
            session: SessionId::new(session).unwrap(),
            wanted: Wanted {
                tenant: TenantId::new("acme").unwrap(),
                pipeline: None,
                policy: None,
                providers: None,
            },
        }
    }

    pub(crate) async fn acquire(
        &self,
        session: &str,
        attempt: u64,
    ) -> Result<Granted, ControlError> {
        self.client.acquire(self.ask(session, attempt)).await
    }

    pub(crate) fn writer(&self, granted: &Granted) -> Writer {
        Writer {
            by: self.holder(),
            session: granted.session.clone(),
            epoch: granted.epoch,
        }
    }
}

pub(crate) fn source(version: &str) -> String {
    let line = format!("version: {version}");
    PipelineSpec::simple_template().replace("version: simple-1", &line)
}

pub(crate) fn publication(version: &str) -> wire::PublishRequest {
    wire::PublishRequest {
        kind: wire::Kind::Pipeline.into(),
        version: version.to_owned(),
        source: source(version),
        ..wire::PublishRequest::default()
    }
}

pub(crate) async fn publish(client: &Client, version: &str) -> wire::PublishResponse {
    client.publish(publication(version)).await.unwrap()
}

pub(crate) fn change(line: &str, change: wire::change::Change) -> wire::ChangeRolloutRequest {
    wire::ChangeRolloutRequest {
        kind: wire::Kind::Pipeline.into(),
        line: line.to_owned(),
        change: Some(wire::Change {
            change: Some(change),
        }),
        ..wire::ChangeRolloutRequest::default()
    }
}

/// Some tenants get a version that others do not.
pub(crate) fn only_for(version: &str, tenants: &[&str]) -> wire::change::Change {
    let list = wire::TenantList {
        tenants: tenants.iter().map(|it| (*it).to_owned()).collect(),
    };
    wire::change::Change::Try(wire::Try {
        version: version.to_owned(),
        strategy: Some(wire::Strategy {
            strategy: Some(wire::strategy::Strategy::Allowlist(list)),
        }),
    })
}

pub(crate) async fn direct(client: &Client, version: &str) -> wire::ChangeRolloutResponse {
    let line = version.split('-').next().unwrap();
    let direct = wire::change::Change::Direct(version.to_owned());
    client.change_rollout(change(line, direct)).await.unwrap()
}

/// An order to empty a runtime, whose sessions wait for their users to go.
pub(crate) fn emptied(runtime: &str) -> wire::DrainRuntimeRequest {
    wire::DrainRuntimeRequest {
        runtime: runtime.to_owned(),
        ..wire::DrainRuntimeRequest::default()
    }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{what} never came to be");
}

/// A signed token of somebody.
pub(crate) fn access(
    signer: &SigningKey,
    role: Role,
    tenants: Option<&[&str]>,
    age: i64,
) -> String {
    let now = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs();
    let issued = now.saturating_add_signed(-age);
    let tenants = tenants.map(|names| names.iter().map(|it| TenantId::new(*it).unwrap()).collect());
    signer.sign(&AccessClaims {
        sub: Actor::new("bob").unwrap(),
        role,
        tenants,
        iat: issued,
        exp: issued + 60,
    })
}
