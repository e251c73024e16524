//! VipService.

use std::sync::Arc;
use std::time::Duration;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use vip_api::v1::{self, vip_service_server::VipService};
use vip_api::{Consistency, Header, convert};
use vip_core::{Command, Outcome, Refusal};

use super::Backend;
use super::door::Door;
use super::watch_stream;

pub(super) struct VipApi<B>(pub(super) Arc<Door<B>>);

impl<B: Backend> VipApi<B> {
    /// Proposes `command`; gives the header of the answer and whether anything changed.
    async fn change(&self, time: Duration, command: Command) -> Result<(Header, bool), Status> {
        let outcome = Door::<B>::in_time(time, self.0.backend().propose(command)).await?;
        let (revision, changed) = match outcome {
            Outcome::Changed { revision } => (revision, true),
            Outcome::Unchanged { revision } => (revision, false),
            Outcome::Refused(refusal) => return Err(refused(&refusal)),
        };
        // This node may not have applied it yet: the leader's word counts.
        Ok((self.0.answer(Consistency::Linearizable).header_at(revision), changed))
    }
}

#[tonic::async_trait]
impl<B: Backend> VipService for VipApi<B> {
    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let answer = self.0.read(self.0.time_for(&request), request.into_inner().consistency).await?;
        let vips = answer.state.cluster.vips.values().map(|record| answer.vip(record).into()).collect();
        Ok(Response::new(v1::ListResponse { header: Some(answer.header().into()), vips }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let time = self.0.time_for(&request);
        let v1::GetRequest { name, consistency } = request.into_inner();
        let name = convert::vip_name("name", name)?;
        let answer = self.0.read(time, consistency).await?;
        let record = answer.state.cluster.vips.get(&name);
        let record = record.ok_or_else(|| Status::not_found(format!("no VIP is named {name}")))?;
        let vip = answer.vip(record).into();
        Ok(Response::new(v1::GetResponse { header: Some(answer.header().into()), vip: Some(vip) }))
    }

    type WatchStream = ReceiverStream<watch_stream::Message>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(watch_stream::open(&self.0, request.into_inner()).await?))
    }

    async fn declare(&self, request: Request<v1::DeclareRequest>) -> Result<Response<v1::DeclareResponse>, Status> {
        let time = self.0.time_for(&request);
        let spec = convert::declared(request.into_inner().spec)?;
        if let Some(node) = self.0.answer(Consistency::Local).member_at(spec.address) {
            return Err(Status::failed_precondition(format!(
                "the address {} is the peer address of {node}; a VIP moves, a node's own address must not",
                spec.address
            )));
        }
        let (header, created) = self.change(time, Command::DeclareVip(spec)).await?;
        Ok(Response::new(v1::DeclareResponse { header: Some(header.into()), created }))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let time = self.0.time_for(&request);
        let name = convert::vip_name("name", request.into_inner().name)?;
        let (header, deleted) = self.change(time, Command::DeleteVip(name)).await?;
        Ok(Response::new(v1::DeleteResponse { header: Some(header.into()), deleted }))
    }
}

fn refused(refusal: &Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::NameTaken { .. } | Refusal::AddressTaken { .. } => Status::already_exists(text),
        Refusal::TooMany { .. } => Status::resource_exhausted(text),
        Refusal::OtherInstance { .. } | Refusal::OtherLeadership { .. } => Status::failed_precondition(text),
    }
}
