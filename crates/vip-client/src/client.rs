//! Unary calls: one deadline, several attempts.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Status};
use vip_api::v1::cluster_service_client::ClusterServiceClient;
use vip_api::v1::vip_service_client::VipServiceClient;
use vip_api::{Consistency, Header, Vip, convert, v1};
use vip_core::{VipName, VipSpec};

use crate::endpoint::Endpoint;
use crate::error::{Error, Verdict, explain, judge, timed_out};
use crate::pool::{Order, Pool};

const BACKOFF_FIRST: Duration = Duration::from_millis(20);
const BACKOFF_LONGEST: Duration = Duration::from_millis(500);
/// An attempt gets no less than this, so that many endpoints do not make each of them hopeless.
const ATTEMPT_SHORTEST: Duration = Duration::from_millis(250);

/// How a client goes about its calls.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a call may take, with all its attempts.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5) }
    }
}

/// A client of one cluster. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    pool: Arc<Mutex<Pool>>,
    options: Options,
}

/// What a change came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Who answered; its revision stands after the change.
    pub header: Header,
    /// False where everything was so already. After a repeated attempt this can also mean that an earlier one got through.
    pub changed: bool,
}

/// An answer that tells who leads.
pub(crate) trait Answer {
    fn header(&self) -> Option<&v1::ResponseHeader>;
}

macro_rules! answers {
    ($($name:ident),*) => {
        $(impl Answer for v1::$name {
            fn header(&self) -> Option<&v1::ResponseHeader> {
                self.header.as_ref()
            }
        })*
    };
}
answers!(ListResponse, GetResponse, DeclareResponse, DeleteResponse, StatusResponse);

impl<T> Answer for tonic::Streaming<T> {
    fn header(&self) -> Option<&v1::ResponseHeader> {
        None
    }
}

impl Client {
    /// A client that connects when it is used. To be called within a tokio runtime.
    ///
    /// # Errors
    /// Without any endpoint.
    pub fn new(endpoints: Vec<Endpoint>, options: Options) -> Result<Self, Error> {
        if endpoints.is_empty() {
            return Err(Error::NoEndpoint);
        }
        Ok(Self { pool: Arc::new(Mutex::new(Pool::new(endpoints)?)), options })
    }

    /// A client with default options that has found a node which answers.
    ///
    /// # Errors
    /// If none does.
    pub async fn connect(endpoints: Vec<Endpoint>) -> Result<Self, Error> {
        let client = Self::new(endpoints, Options::default())?;
        client.status(Consistency::Local).await?;
        Ok(client)
    }

    /// All VIPs, in order of their names.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(&self, consistency: Consistency) -> Result<(Header, Vec<Vip>), Error> {
        let request = v1::ListRequest { consistency: v1::Consistency::from(consistency).into() };
        let call = async |channel, time| vips(channel).list(timed(request, time)).await;
        let answer = self.unary(order(consistency), call).await?;
        let vips = answer.vips.into_iter().map(Vip::try_from).collect::<Result<_, _>>()?;
        Ok((convert::header(answer.header)?, vips))
    }

    /// One VIP; [`crate::Refusal::NotFound`] if there is none of that name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&self, name: &VipName, consistency: Consistency) -> Result<(Header, Vip), Error> {
        let consistency_field = v1::Consistency::from(consistency).into();
        let request = v1::GetRequest { name: name.to_string(), consistency: consistency_field };
        let call = async |channel, time| vips(channel).get(timed(request.clone(), time)).await;
        let answer = self.unary(order(consistency), call).await?;
        let vip = answer.vip.ok_or_else(|| vip_api::FieldError::new("vip", "is missing"))?;
        Ok((convert::header(answer.header)?, vip.try_into()?))
    }

    /// Declares a VIP. The same declaration again changes nothing.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn declare(&self, spec: VipSpec) -> Result<Changed, Error> {
        let request = v1::DeclareRequest { spec: Some(spec.into()) };
        let call = async |channel, time| vips(channel).declare(timed(request.clone(), time)).await;
        let answer = self.unary(Order::LeaderFirst, call).await?;
        Ok(Changed { header: convert::header(answer.header)?, changed: answer.created })
    }

    /// Deletes a VIP. Deleting what is not there changes nothing.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, name: &VipName) -> Result<Changed, Error> {
        let request = v1::DeleteRequest { name: name.to_string() };
        let call = async |channel, time| vips(channel).delete(timed(request.clone(), time)).await;
        let answer = self.unary(Order::LeaderFirst, call).await?;
        Ok(Changed { header: convert::header(answer.header)?, changed: answer.deleted })
    }

    /// The cluster, as the node sees it that answers.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self, consistency: Consistency) -> Result<vip_api::Status, Error> {
        let request = v1::StatusRequest { consistency: v1::Consistency::from(consistency).into() };
        let call = async |channel, time| {
            let client = ClusterServiceClient::new(channel);
            client.max_decoding_message_size(vip_api::MAX_ANSWER_BYTES).status(timed(request, time)).await
        };
        Ok(self.unary(Order::AsGiven, call).await?.try_into()?)
    }

    async fn unary<T, F, R>(&self, order: Order, call: F) -> Result<T, Error>
    where
        T: Answer,
        F: Fn(Channel, Duration) -> R,
        R: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        Ok(self.attempts(order, call).await?.0)
    }

    /// Makes attempts until one succeeds, one fails for good, or time is up. Gives the index of the node, too.
    pub(crate) async fn attempts<T, F, R>(&self, order: Order, call: F) -> Result<(T, usize), Error>
    where
        T: Answer,
        F: Fn(Channel, Duration) -> R,
        R: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let deadline = Instant::now() + self.options.timeout;
        let mut last = None;
        for round in 0.. {
            let mut asked = Vec::new();
            let mut candidates = VecDeque::from(self.pool().candidates(order));
            while let Some(candidate) = candidates.pop_front() {
                if asked.contains(&candidate.index) {
                    continue;
                }
                asked.push(candidate.index);
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                // A node that hangs must leave time for the others.
                let share = if candidates.is_empty() { left } else { self.share(candidates.len()).min(left) };
                let result = tokio::time::timeout(share, call(candidate.channel, share)).await;
                let (status, text) = match result {
                    Ok(Ok(response)) => {
                        let answer = response.into_inner();
                        self.pool().answered(candidate.index, answer.header());
                        return Ok((answer, candidate.index));
                    }
                    Ok(Err(status)) if !timed_out(&status) => {
                        let text = explain(&status);
                        (status, Some(text))
                    }
                    Ok(Err(_)) | Err(_) => {
                        // The last moments before the deadline say nothing about the node.
                        let tells = share >= ATTEMPT_SHORTEST || last.is_none();
                        let text = tells.then(|| format!("no answer in {:.1} s", share.as_secs_f64()));
                        (Status::deadline_exceeded(""), text)
                    }
                };
                if let Verdict::Final(error) = judge(&status, &candidate.name) {
                    return Err(error);
                }
                tracing::debug!(endpoint = candidate.name, code = ?status.code(), error = text, "attempt failed");
                last = text.map(|text| format!("{}: {text}", candidate.name)).or(last);
                let mut pool = self.pool();
                if let Some(leader) = pool.failed(candidate.index, Some(&status)) {
                    candidates.push_front(pool.candidate(leader));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let pause = backoff(round);
            if left <= pause {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        let last = last.unwrap_or_else(|| "no attempt was made".to_owned());
        Err(Error::Unavailable { timeout: self.options.timeout, last })
    }

    fn share(&self, others: usize) -> Duration {
        let parts = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1);
        (self.options.timeout / parts).max(ATTEMPT_SHORTEST)
    }

    pub(crate) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pause after round `round`, from half of it to all of it, so that clients do not come back in step.
pub(crate) fn backoff(round: u32) -> Duration {
    let pause = BACKOFF_FIRST.saturating_mul(2_u32.saturating_pow(round)).min(BACKOFF_LONGEST);
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// A local read speaks of the node that answers, so the caller's order counts.
pub(crate) fn order(consistency: Consistency) -> Order {
    if consistency == Consistency::Local { Order::AsGiven } else { Order::LeaderFirst }
}

pub(crate) fn vips(channel: Channel) -> VipServiceClient<Channel> {
    VipServiceClient::new(channel).max_decoding_message_size(vip_api::MAX_ANSWER_BYTES)
}

/// The server learns how long anyone will wait.
fn timed<T>(message: T, time: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(time);
    request
}
