use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use vip_api::v1::vip_service_server::VipService;
use vip_api::{HolderState, Vip, v1};
use vip_core::{Command, NodeId};

use super::fake::{Api, Fake, serve, spec};
use crate::api::door::Door;
use crate::api::vip_service::VipApi;
use crate::api::{BackendError, Limits};

const LOCAL: i32 = v1::Consistency::Local as i32;

async fn start() -> (Arc<Fake>, Api) {
    let fake = Fake::new();
    let api = serve(&fake, Limits { request_timeout: Duration::from_millis(300), ..Limits::default() }).await;
    (fake, api)
}

async fn declare(api: &mut Api, name: &str, address: &str) -> Result<bool, Status> {
    let spec = v1::VipSpec { prefix_len: 0, ..spec(name, address).into() };
    let answer = api.vips.declare(v1::DeclareRequest { spec: Some(spec) }).await?;
    Ok(answer.into_inner().created)
}

#[tokio::test]
async fn a_vip_is_declared_read_and_deleted() {
    let (fake, mut api) = start().await;
    assert!(declare(&mut api, "web", "10.0.0.1").await.unwrap());
    assert!(!declare(&mut api, "web", "10.0.0.1").await.unwrap(), "idempotent");
    fake.assign("web", 1);
    fake.holders.lock().unwrap().insert("web".parse().unwrap(), HolderState::Active);

    let answer = api.vips.get(v1::GetRequest { name: "web".to_owned(), consistency: 0 }).await.unwrap().into_inner();
    let header = answer.header.unwrap();
    assert_eq!((header.cluster.as_str(), header.node_id, header.term, header.leader_id), ("test", 1, 7, Some(1)));
    assert_eq!(header.consistency, v1::Consistency::Linearizable as i32);
    let vip = Vip::try_from(answer.vip.unwrap()).unwrap();
    let assigned = vip.assignment.unwrap();
    assert_eq!((assigned.owner.id, assigned.owner.name.as_str(), assigned.term), (NodeId(1), "n1", 7));
    assert_eq!((assigned.epoch.0, vip.revision, header.revision), (3, 3, 3));
    assert_eq!(vip.lease_remaining, Some(Duration::from_millis(400)));
    assert_eq!(vip.holder_state, HolderState::Active);

    let delete = || v1::DeleteRequest { name: "web".to_owned() };
    assert!(api.vips.delete(delete()).await.unwrap().into_inner().deleted);
    assert!(!api.vips.delete(delete()).await.unwrap().into_inner().deleted);
    assert!(api.vips.list(v1::ListRequest::default()).await.unwrap().into_inner().vips.is_empty());
}

#[tokio::test]
async fn what_another_node_holds_is_unknown_here() {
    let (fake, mut api) = start().await;
    fake.declare("mine", "10.0.0.1");
    fake.declare("theirs", "10.0.0.2");
    fake.assign("mine", 1);
    fake.assign("theirs", 2);
    let vips = api.vips.list(v1::ListRequest { consistency: LOCAL }).await.unwrap().into_inner().vips;
    let vips: Vec<_> = vips.into_iter().map(|vip| Vip::try_from(vip).unwrap()).collect();
    assert_eq!(vips[0].holder_state, HolderState::Standby);
    assert_eq!(vips[1].holder_state, HolderState::Unknown);
    assert_eq!(vips[1].lease_remaining, None);
}

#[tokio::test]
async fn malformed_requests_name_the_field() {
    let (_fake, mut api) = start().await;
    let refused = |status: Status, field: &str| {
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().starts_with(field), "{status}");
    };
    refused(api.vips.declare(v1::DeclareRequest::default()).await.unwrap_err(), "spec");
    refused(api.vips.get(v1::GetRequest::default()).await.unwrap_err(), "name");
    refused(api.vips.delete(v1::DeleteRequest { name: "a b".to_owned() }).await.unwrap_err(), "name");
    refused(api.vips.list(v1::ListRequest { consistency: 9 }).await.unwrap_err(), "consistency");
    refused(api.cluster.status(v1::StatusRequest { consistency: -1 }).await.unwrap_err(), "consistency");
    let watch = |names: Vec<String>| v1::WatchRequest { names, ..v1::WatchRequest::default() };
    refused(api.vips.watch(watch(vec![String::new()])).await.unwrap_err(), "names");
    refused(api.vips.watch(watch(vec!["a".to_owned(); 10_001])).await.unwrap_err(), "names");
    let spec = v1::VipSpec { interface: "lo".to_owned(), ..spec("a", "10.0.0.1").into() };
    refused(api.vips.declare(v1::DeclareRequest { spec: Some(spec) }).await.unwrap_err(), "spec.interface");
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused() {
    let (_fake, mut api) = start().await;
    let names = vec!["a".repeat(vip_api::MAX_REQUEST_BYTES)];
    let status = api.vips.watch(v1::WatchRequest { names, ..v1::WatchRequest::default() }).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
}

#[tokio::test]
async fn refusals_have_their_codes() {
    let (fake, mut api) = start().await;
    assert!(declare(&mut api, "web", "10.0.0.1").await.unwrap());
    let code = |result: Result<bool, Status>| result.unwrap_err().code();
    assert_eq!(code(declare(&mut api, "web", "10.0.0.2").await), Code::AlreadyExists);
    assert_eq!(code(declare(&mut api, "www", "10.0.0.1").await), Code::AlreadyExists);
    let status = declare(&mut api, "own", "192.0.2.2").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("n2"), "{status}");
    let status = api.vips.get(v1::GetRequest { name: "none".to_owned(), consistency: 0 }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);

    let fill = (0..vip_core::cluster::MAX_VIPS - 1)
        .map(|n| Command::DeclareVip(spec(&format!("v{n}"), &format!("10.1.{}.{}", n / 200, n % 200 + 1))));
    fake.apply(fill);
    assert_eq!(code(declare(&mut api, "more", "10.0.0.9").await), Code::ResourceExhausted);
    // The largest list that there can be fits through a client with default limits.
    let list = api.vips.list(v1::ListRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.vips.len(), vip_core::cluster::MAX_VIPS);
}

#[tokio::test]
async fn without_a_leader_only_local_reads_are_answered() {
    let (fake, mut api) = start().await;
    fake.declare("web", "10.0.0.1");
    fake.set_leader(None);
    fake.fail(Some(BackendError::NoLeader { leader: Some("192.0.2.2:7401".to_owned()) }));

    let status = api.vips.list(v1::ListRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.metadata().get(vip_api::LEADER_METADATA).unwrap(), "192.0.2.2:7401");
    assert_eq!(declare(&mut api, "b", "10.0.0.2").await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(api.cluster.status(v1::StatusRequest::default()).await.unwrap_err().code(), Code::Unavailable);

    let list = api.vips.list(v1::ListRequest { consistency: LOCAL }).await.unwrap().into_inner();
    assert_eq!((list.vips.len(), list.header.unwrap().leader_id), (1, None));
    assert!(api.cluster.status(v1::StatusRequest { consistency: LOCAL }).await.is_ok());

    fake.fail(Some(BackendError::NotReady));
    assert_eq!(declare(&mut api, "b", "10.0.0.2").await.unwrap_err().code(), Code::Unavailable);
    fake.fail(Some(BackendError::Internal("disk".to_owned())));
    assert_eq!(declare(&mut api, "b", "10.0.0.2").await.unwrap_err().code(), Code::Internal);
}

#[tokio::test]
async fn a_hanging_node_ends_requests_in_time() {
    let (fake, mut api) = start().await;
    fake.hangs.store(true, Ordering::Relaxed);
    assert_eq!(declare(&mut api, "b", "10.0.0.2").await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(api.vips.list(v1::ListRequest::default()).await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_deadline_that_passes_here_is_told_as_one() {
    let fake = Fake::new();
    fake.hangs.store(true, Ordering::Relaxed);
    let api = VipApi(Arc::new(Door::new(fake, Limits::default())));
    let asked = Duration::from_millis(50);
    let mut read = Request::new(v1::ListRequest::default());
    read.set_timeout(asked);
    // As the transport has it, which answers CANCELLED when its own clock is the first.
    let status = tokio::time::timeout(asked, api.list(read)).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    let mut change = Request::new(v1::DeleteRequest { name: "web".to_owned() });
    change.set_timeout(asked);
    let status = tokio::time::timeout(asked, api.delete(change)).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
}

#[tokio::test]
async fn a_request_has_the_time_that_its_client_gives_it() {
    let limits = Limits { request_timeout: Duration::from_secs(5), ..Limits::default() };
    let door = Door::new(Fake::new(), limits);
    let time = |text: &'static str| {
        let mut request = Request::new(());
        request.metadata_mut().insert("grpc-timeout", text.parse().unwrap());
        door.time_for(&request)
    };
    assert_eq!(door.time_for(&Request::new(())), Duration::from_secs(5));
    let some = Duration::from_millis(1998);
    assert_eq!([time("2S"), time("2000m"), time("2000000u")], [some; 3]);
    assert_eq!(time("99999999n"), Duration::from_nanos(97_999_999));
    assert_eq!([time("1m"), time("0S")], [Duration::ZERO; 2]);
    for most in ["6S", "1M", "99999999H", "", "S", "2", "2s", "x2S", "-2S", "999999999m"] {
        assert_eq!(time(most), Duration::from_secs(5), "{most:?}");
    }
}

#[tokio::test]
async fn status_tells_the_cluster_and_this_node() {
    let (fake, mut api) = start().await;
    fake.declare("a", "10.0.0.1");
    fake.declare("b", "10.0.0.2");
    fake.assign("a", 2);
    fake.apply([Command::RegisterNode { node: NodeId(2), instance: "store-2".to_owned() }]);
    fake.holders.lock().unwrap().insert("a".parse().unwrap(), HolderState::Releasing);
    let status = api.cluster.status(v1::StatusRequest::default()).await.unwrap().into_inner();
    let status = vip_api::Status::try_from(status).unwrap();
    assert_eq!(status.leader.unwrap().name, "n1");
    assert_eq!((status.vips_declared, status.vips_assigned, status.applied_index), (2, 1, 4));
    assert_eq!(status.nodes.iter().map(|node| node.vips_owned).collect::<Vec<_>>(), [0, 1, 0]);
    assert_eq!(status.nodes[1].instance.as_deref(), Some("store-2"));
    assert_eq!(status.nodes[2].reachable, Some(false));
    assert_eq!(status.local.warnings.len(), 1);
    assert_eq!(status.local.holders, [vip_api::HolderCount { state: HolderState::Releasing, vips: 1 }]);
}

#[tokio::test]
async fn health_follows_the_leader() {
    let (fake, api) = start().await;
    let mut health = HealthClient::new(api.channel.clone());
    let service = "vip.v1.VipService".to_owned();
    let mut stream = health.watch(HealthCheckRequest { service }).await.unwrap().into_inner();
    let mut wait_for = async |wanted: ServingStatus| {
        while stream.message().await.unwrap().unwrap().status() != wanted {}
    };
    wait_for(ServingStatus::Serving).await;
    fake.set_leader(None);
    wait_for(ServingStatus::NotServing).await;
    fake.set_leader(Some(NodeId(2)));
    wait_for(ServingStatus::Serving).await;
}

#[tokio::test]
async fn reflection_lists_the_services() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let (_fake, api) = start().await;
    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    let mut reflection = ServerReflectionClient::new(api.channel.clone());
    let mut answers = reflection.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("not a list");
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["vip.v1.VipService", "vip.v1.ClusterService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|found| found == name), "{name} is not in {names:?}");
    }
}
