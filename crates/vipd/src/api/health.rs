//! gRPC health: a node that knows a leader serves; one that knows none answers local reads only and says NOT_SERVING.

use std::sync::Arc;

use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use vip_api::v1::cluster_service_server::SERVICE_NAME as CLUSTER_SERVICE;
use vip_api::v1::vip_service_server::SERVICE_NAME as VIP_SERVICE;

use super::StateView;

/// The health service, following `states` until their sender is gone.
pub(super) fn service(mut states: watch::Receiver<Arc<StateView>>) -> HealthServer<impl Health> {
    let (reporter, service) = tonic_health::server::health_reporter();
    tokio::spawn(async move {
        let mut told = None;
        loop {
            let serves = states.borrow_and_update().leader.is_some();
            if told.replace(serves) != Some(serves) {
                let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
                for name in ["", VIP_SERVICE, CLUSTER_SERVICE] {
                    reporter.set_service_status(name, status).await;
                }
            }
            if states.changed().await.is_err() {
                return;
            }
        }
    });
    service
}
