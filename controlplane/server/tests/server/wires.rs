//! What any gRPC client finds: health, reflection, deadlines, an orderly end.

use std::{collections::BTreeMap, time::Duration};

use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor,
    prost_types::{FileDescriptorProto, FileDescriptorSet},
};
use rspp_controlplane::access::{Principal, Role, Tenants};
use rspp_controlplane_api::{Client, ControlError, wire};
use rspp_proto::Actor;
use tokio_stream::StreamExt as _;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Endpoint,
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::rig::{Rig, access, key};

/// Issue 4: health and reflection answer, so that a client that knows nothing can look around.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_can_look_around() {
    let rig = Rig::start().await;
    let url = format!("http://{}", rig.plain);
    let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
    let health = async |service: &str| {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = HealthClient::new(channel.clone()).check(request).await;
        answer.map(|it| it.into_inner().status)
    };
    for service in ["", "rspp.v1"] {
        assert_eq!(health(service).await.unwrap(), 1, "serving");
    }
    let unknown = health("rspp.v1.Nothing").await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel.clone());
    let answers = client
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap();
    let answer = answers.into_inner().next().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<_> = list.service.iter().map(|it| it.name.as_str()).collect();
    for service in [
        "Registry",
        "Rollouts",
        "Admission",
        "Placements",
        "Fleet",
        "Sessions",
        "SessionState",
        "Snapshots",
        "Audit",
        "Keys",
        "Backup",
    ] {
        assert!(
            names.contains(&&*format!("rspp.v1.{service}")),
            "{service}: {names:?}"
        );
    }
    // Each service that is served has a health of its own.
    for service in names.iter().filter(|it| it.starts_with("rspp.v1.")) {
        assert_eq!(health(service).await.unwrap(), 1, "{service} is serving");
    }
}

/// Issue 4: the same services within the process, without a socket, as whoever embeds it says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_calls_its_own_control_plane() {
    let rig = Rig::start().await;
    let principal = |role| Principal {
        actor: Actor::new("here").unwrap(),
        role,
        tenants: Tenants::All,
    };
    let viewer = Client::within(rig.server.dial(principal(Role::Viewer)));
    viewer
        .list_regions(wire::ListRegionsRequest {})
        .await
        .unwrap();
    let denied = viewer.get_governance(wire::GetGovernanceRequest {}).await;
    assert!(
        matches!(denied, Err(ControlError::Denied { .. })),
        "{denied:?}"
    );
    let admin = Client::within(rig.server.dial(principal(Role::Admin)));
    admin
        .get_governance(wire::GetGovernanceRequest {})
        .await
        .unwrap();
}

/// Issue 4: who waits for a control plane that is not there is told in time, and served once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_finds_its_control_plane_again() {
    let rig = Rig::start().await;
    let viewer = rig.client("viewer/vera");
    viewer.list_keys(wire::ListKeysRequest {}).await.unwrap();
    let mut snapshots = {
        use rspp_controlplane_api::ControlPlane as _;
        viewer.snapshots(Vec::new())
    };
    snapshots.next().await.unwrap().unwrap();
    let Rig {
        dir,
        store,
        server,
        plain,
        ..
    } = rig;
    let asked = tokio::time::Instant::now();
    server.stop(Duration::from_secs(2)).await;
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "what is watched is ended"
    );
    while let Some(Ok(_)) = snapshots.next().await {}
    let began = tokio::time::Instant::now();
    let gone = viewer
        .list_keys(wire::ListKeysRequest {})
        .await
        .unwrap_err();
    assert!(gone.is_transient(), "{gone:?}");
    assert!(began.elapsed() < Duration::from_secs(3), "by its deadline");
    // Another one on the same store: all is still there.
    let again = Rig::on(dir, store).await;
    assert_ne!(again.plain, plain);
    again
        .client("viewer/vera")
        .list_keys(wire::ListKeysRequest {})
        .await
        .unwrap();
}

/// Issue 4: what `grpcurl` does. Somebody who knows an address and a token asks which services there are,
/// how their messages are built, and calls one by that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_calls_what_it_was_told_of() {
    let rig = Rig::start().await;
    let url = format!("http://{}", rig.plain);
    let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
    let mut found: BTreeMap<String, FileDescriptorProto> = BTreeMap::new();
    let mut asked = vec![MessageRequest::FileContainingSymbol(
        "rspp.v1.Keys".to_owned(),
    )];
    while let Some(message) = asked.pop() {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message),
        };
        let answers = ServerReflectionClient::new(channel.clone())
            .server_reflection_info(tokio_stream::once(request))
            .await
            .unwrap();
        let answer = answers.into_inner().next().await.unwrap().unwrap();
        let Some(MessageResponse::FileDescriptorResponse(files)) = answer.message_response else {
            panic!("{answer:?}");
        };
        for file in files.file_descriptor_proto {
            let file = FileDescriptorProto::decode(&*file).unwrap();
            let news = file.dependency.iter().filter(|it| !found.contains_key(*it));
            asked.extend(news.cloned().map(MessageRequest::FileByFilename));
            found.insert(file.name().to_owned(), file);
        }
    }
    let files = FileDescriptorSet {
        file: found.into_values().collect(),
    };
    let pool = DescriptorPool::from_file_descriptor_set(files).unwrap();
    let service = pool.get_service_by_name("rspp.v1.Keys").unwrap();
    let method = service
        .methods()
        .find(|it| it.name() == "ListKeys")
        .unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let mut request = tonic::Request::new(DynamicMessage::new(method.input()));
    let token = access(&key("k1", 1), Role::Viewer, None, 0);
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {token}").parse().unwrap());
    let answer = client
        .unary(
            request,
            "/rspp.v1.Keys/ListKeys".parse().unwrap(),
            Described(method.output()),
        )
        .await
        .unwrap()
        .into_inner();
    let keys = answer.get_field_by_name("keys").unwrap();
    let keys = keys.as_list().unwrap();
    let first = keys[0].as_message().unwrap();
    let kid = first.get_field_by_name("kid").unwrap();
    assert_eq!(kid.as_str(), Some("k1"));
}

/// Reads messages as they are described.
struct Described(MessageDescriptor);

impl Codec for Described {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(self.0.clone())
    }

    fn decoder(&mut self) -> Self {
        Self(self.0.clone())
    }
}

impl Encoder for Described {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(into)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Described {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        DynamicMessage::decode(self.0.clone(), from)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}
