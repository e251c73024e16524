//! The daemon: starts the parts in the order that safety asks for, waits for a reason to end, and ends in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use vip_core::{Agent, Command, Input, KillPoint, Outcome};
use vip_net::address::AddressBook;
use vip_net::clock::boot_now;
use vip_net::fence::{Fence, FenceKind};
use vip_net::link::ethernet_interfaces;
use vip_raft::{ElectionTiming, Formation, NodeConfig, RaftHandle, RaftNode};

use crate::api;
use crate::backend::{NodeBackend, follow_state, state_view};
use crate::config::{Config, Loaded};
use crate::dataplane::{Interfaces, Kernel};
use crate::driver::{Driver, Statuses, agent_config};
use crate::fence;
use crate::host::HostWatch;
use crate::http;
use crate::listen;
use crate::mailbox::Mailbox;
use crate::sink::FenceSink;

/// How long giving everything back may take before the process ends all the same: the lease ends what is left.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a proposal or a read of the API may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs until a signal or a failure ends it.
pub(crate) async fn run(loaded: Loaded, host: Host) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let mut running = Running::start(loaded, host).await?;
    notify(sd_notify::NotifyState::Ready);
    let reason = running.until_reason_to_end(&mut signals).await;
    notify(sd_notify::NotifyState::Stopping);
    let result = match reason {
        Reason::Asked(signal) => {
            tracing::info!(signal, "ending: giving the VIPs back");
            Ok(())
        }
        Reason::Failed(error) => {
            tracing::error!(error = format!("{error:#}"), "ending: giving the VIPs back");
            Err(error)
        }
        Reason::Halted(error) => {
            tracing::error!(error = format!("{error:#}"), "ending: the VIPs stay until the lease runs out");
            // Leadership cannot be handed over, and the others wait for the end of what they granted in any case.
            tokio::time::sleep(running.config.lease.lease).await;
            Err(error)
        }
    };
    running.end().await;
    tracing::info!("ended");
    result
}

/// Why the daemon ends.
enum Reason {
    /// A signal, by its name.
    Asked(&'static str),
    /// Something failed that agreeing does not need.
    Failed(anyhow::Error),
    /// The store or the engine failed: this node agrees on nothing any more, and renews no lease.
    Halted(anyhow::Error),
}

/// The signals that end the daemon in order.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// A lost terminal is no reason to let the VIPs go, and there is nothing to reload: the file is read at start.
    _hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let take = |kind, name| signal(kind).with_context(|| format!("cannot wait for {name}"));
        Ok(Self {
            terminate: take(SignalKind::terminate(), "SIGTERM")?,
            interrupt: take(SignalKind::interrupt(), "SIGINT")?,
            _hangup: take(SignalKind::hangup(), "SIGHUP")?,
        })
    }
}

/// A daemon with all its parts.
struct Running {
    config: Arc<Config>,
    raft: RaftNode,
    mailbox: Arc<Mailbox>,
    /// What serves and watches; none of it should end.
    tasks: JoinSet<anyhow::Error>,
    /// The store failed.
    fatal: mpsc::UnboundedReceiver<String>,
    /// The agent has given everything back.
    finished: oneshot::Receiver<()>,
    /// Whether leadership is being handed over.
    transferring: watch::Receiver<bool>,
}

impl Running {
    async fn start(loaded: Loaded, host: Host) -> anyhow::Result<Self> {
        let started = Instant::now();
        let Loaded { config, warnings } = loaded;
        let config = Arc::new(config);
        let (fatal_tx, fatal) = mpsc::unbounded_channel();
        let mailbox = Arc::clone(&host.mailbox);
        let sink = Arc::new(FenceSink { fence: Arc::clone(&host.fence), mailbox: Arc::clone(&mailbox) });
        let listeners = Listeners::bind(&config).await?;
        let raft = start_raft(&config, sink, fatal_tx).await?;
        let handle = raft.handle();

        let (statuses_tx, statuses) = watch::channel(Statuses::default());
        let (transferring_tx, transferring) = watch::channel(false);
        let (finished_tx, finished) = oneshot::channel();
        Driver {
            agent: Agent::new(agent_config(&config), boot_now()),
            dataplane: host.kernel,
            mailbox: Arc::clone(&mailbox),
            raft: handle.clone(),
            runtime: tokio::runtime::Handle::current(),
            clock: boot_now,
            statuses: statuses_tx,
            transferring: transferring_tx,
            finished: Some(finished_tx),
            not_assigned: watch::Sender::new(None),
            resigned: None,
            failures: BTreeMap::new(),
        }
        .spawn()
        .context("cannot start the agent's thread")?;

        let mut tasks = JoinSet::new();
        tasks.spawn(ends("the watch over this host", host.watch.run()));
        tasks.spawn(ends("feeding the agent", feed_agent(handle.clone(), Arc::clone(&mailbox), raft.reign())));
        tasks.spawn(ends("forming", declare_initial_vips(handle.clone(), raft.reign(), Arc::clone(&config))));
        tasks.spawn(ends("the watchdog", watchdog(Arc::clone(&mailbox))));
        let (state_tx, state) = watch::channel(Arc::new(state_view(&handle)));
        tasks.spawn(ends("following the state", follow_state(handle.clone(), state_tx)));
        let backend = NodeBackend {
            config: Arc::clone(&config),
            config_warnings: warnings,
            raft: handle,
            statuses,
            fence: host.fence,
            fence_fallback: host.fallback,
            fence_trouble: host.trouble,
            state,
            started,
            clock: boot_now,
        };
        listeners.serve(&mut tasks, &raft, backend, Arc::clone(&mailbox))?;
        KillPoint::StartJoined.reach();
        tracing::info!(
            version = crate::VERSION, node = %config.node, name = config.name, cluster = %config.cluster, "running"
        );
        Ok(Self { config, raft, mailbox, tasks, fatal, finished, transferring })
    }

    async fn until_reason_to_end(&mut self, signals: &mut Signals) -> Reason {
        let mut formation = self.raft.formation();
        tokio::select! {
            _ = signals.terminate.recv() => Reason::Asked("SIGTERM"),
            _ = signals.interrupt.recv() => Reason::Asked("SIGINT"),
            error = self.fatal.recv() => {
                Reason::Halted(anyhow!("the store failed: {}", error.unwrap_or_default()))
            }
            why = refused(&mut formation) => Reason::Failed(anyhow!("this node must not join: {why}")),
            why = self.raft.failed() => Reason::Halted(anyhow!("{why}")),
            ended = self.tasks.join_next() => Reason::Failed(ended_error(ended)),
        }
    }

    /// Gives everything back, hands leadership over, and only then stops to answer the peers.
    async fn end(mut self) {
        let handle = self.raft.handle();
        handle.end();
        self.mailbox.other(Input::Shutdown);
        if tokio::time::timeout(RELEASE_PATIENCE, self.finished).await.is_err() {
            tracing::error!("not all was given back in time; the lease and the addresses' lifetime end it");
        }
        // Leadership moves while this node can still answer for its log.
        let handed_over = self.transferring.wait_for(|transferring| !transferring);
        let _ = tokio::time::timeout(RELEASE_PATIENCE, handed_over).await;
        KillPoint::EndHandedOver.reach();
        self.tasks.shutdown().await;
        drop(handle);
        self.raft.shutdown().await;
        KillPoint::EndClosed.reach();
        let _ = std::fs::remove_file(&self.config.api_socket);
    }
}

/// Everything that is listened on, bound before anything else can go wrong.
struct Listeners {
    peers: TcpListener,
    api: Option<TcpListener>,
    http: Option<TcpListener>,
    socket: UnixListener,
}

impl Listeners {
    async fn bind(config: &Config) -> anyhow::Result<Self> {
        let peers = listen::tcp(config.peer_listen, "the peers (peer.listen)").await?;
        vip_raft::repeat_within(&peers, config.lease.lease);
        let api = match config.api_listen {
            Some(address) => Some(listen::tcp(address, "the API (api.listen)").await?),
            None => None,
        };
        let http = match config.http_listen {
            Some(address) => Some(listen::tcp(address, "HTTP (http.listen)").await?),
            None => None,
        };
        Ok(Self { peers, api, http, socket: listen::unix(&config.api_socket).await? })
    }

    fn serve(
        self,
        tasks: &mut JoinSet<anyhow::Error>,
        raft: &RaftNode,
        backend: NodeBackend,
        mailbox: Arc<Mailbox>,
    ) -> anyhow::Result<()> {
        let backend = Arc::new(backend);
        let peers = server().add_service(raft.service());
        let incoming = without_delay(self.peers);
        tasks.spawn(
            async move { anyhow!("the peers' listener ended: {:?}", peers.serve_with_incoming(incoming).await) },
        );
        let routes = api::router(Arc::clone(&backend), api::Limits::default())?;
        if let Some(http) = self.http {
            let ended = http::start(http, backend, mailbox).context("HTTP cannot be served")?;
            tasks.spawn(ends("HTTP", ended));
        }
        if let Some(tcp) = self.api {
            let server = server().add_routes(routes.clone());
            tasks.spawn(async move {
                anyhow!("the API's listener ended: {:?}", server.serve_with_incoming(without_delay(tcp)).await)
            });
        }
        tasks.spawn(async move {
            let server = server().add_routes(routes);
            let incoming = UnixListenerStream::new(self.socket);
            anyhow!("the API's socket ended: {:?}", server.serve_with_incoming(incoming).await)
        });
        Ok(())
    }
}

/// What there is of this host once it is safe to join: the fence in place and shut, nothing of an earlier run left.
pub(crate) struct Host {
    fence: Arc<Fence>,
    /// Why it is not of the kind that was tried before.
    fallback: Option<String>,
    kernel: Kernel,
    watch: HostWatch,
    mailbox: Arc<Mailbox>,
    trouble: watch::Receiver<Option<String>>,
}

impl Host {
    /// With the first kind of fence that can be on every interface.
    pub(crate) fn prepare(config: &Config) -> anyhow::Result<Self> {
        await_predecessor(config);
        fence::first_that_works(config.fence, |kind, why_not_before| {
            let host = Self::prepare_with(config, kind, why_not_before)?;
            if let Some(reason) = why_not_before {
                tracing::warn!(
                    reason,
                    "the fence is {kind}, with a wider margin; what others send through this host from a VIP that it does not hold is stopped too"
                );
            }
            Ok(host)
        })
    }

    /// R7: every deadline zeroed and the fence shut for every VIP that it knows, then the sweep, then the filters.
    fn prepare_with(config: &Config, kind: FenceKind, why_not_before: Option<&str>) -> anyhow::Result<Self> {
        if kind == FenceKind::Nftables {
            fence::check_timing_for_nftables(config)?;
        }
        let fence = Arc::new(Fence::open(kind, &config.pin_root).context("the fence cannot be put in place")?);
        KillPoint::StartFenceShut.reach();
        // Before the filters: should the predecessor's maps be lost, its filters still know its addresses, and its
        // deadline; ours would not know them yet, and let them pass.
        let book = AddressBook::new()?;
        book.check_tags()?;
        let swept = book.sweep().context("addresses of an earlier run cannot be removed")?;
        KillPoint::StartSwept.reach();
        if !swept.is_empty() {
            tracing::info!(count = swept.len(), first = %swept[0].address, "removed addresses of an earlier run");
        }
        let mailbox = Arc::new(Mailbox::default());
        let interfaces = Arc::new(Interfaces::default());
        let (trouble_tx, trouble) = watch::channel(None);
        let mut watch = HostWatch::new(Arc::clone(&fence), Arc::clone(&interfaces), Arc::clone(&mailbox), trouble_tx);
        watch.look().context("the interfaces cannot be listed")?;
        KillPoint::StartFenced.reach();
        if let Some(why) = trouble.borrow().as_ref() {
            bail!("the fence cannot be put on every interface: {why}");
        }
        let removed =
            fence.remove_other_kind().context("the other kind of fence, of an earlier run, cannot be removed")?;
        if removed.filters > 0 {
            tracing::info!(filters = removed.filters, "removed the other kind of fence, of an earlier run");
        }
        let kernel = Kernel::new(Arc::clone(&fence), book, interfaces, config.address_lifetime);
        Ok(Self { fence, fallback: why_not_before.map(str::to_owned), kernel, watch, mailbox, trouble })
    }
}

/// A predecessor that was killed may have left a lease that still runs. Until it ends no other node takes over, so to
/// shut the fence now would only keep the clients waiting: this kernel answers them for as long as it may.
fn await_predecessor(config: &Config) {
    let Some(deadline) = Fence::leftover_deadline(&config.pin_root) else { return };
    let left = deadline.saturating_duration_since(boot_now()).min(config.lease.lease);
    if !left.is_zero() {
        tracing::info!(?left, "the lease of an earlier run is not over; waiting for its end");
        std::thread::sleep(left);
    }
}

async fn start_raft(
    config: &Config,
    sink: Arc<FenceSink>,
    fatal: mpsc::UnboundedSender<String>,
) -> anyhow::Result<RaftNode> {
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot make the data directory {}", config.data_dir.display()))?;
    let node_config = NodeConfig {
        cluster: config.cluster.clone(),
        me: config.node,
        heartbeat: config.heartbeat,
        lease: config.lease,
        election: ElectionTiming::for_lease(config.lease.lease),
        initial_members: config.initial_members.clone(),
        request_timeout: REQUEST_TIMEOUT,
    };
    let on_fatal = Arc::new(move |error: std::io::Error| {
        let _ = fatal.send(error.to_string());
    });
    let raft = RaftNode::start(&config.data_dir, node_config, boot_now, sink, on_fatal).await?;
    let forming = *raft.formation().borrow() != Formation::Formed;
    if forming {
        // Only then: later the VIPs are the cluster's affair, and an interface may come after the daemon.
        check_interfaces(config)?;
    }
    Ok(raft)
}

/// The interfaces that the first VIPs name must be there.
pub(crate) fn check_interfaces(config: &Config) -> anyhow::Result<()> {
    let found = ethernet_interfaces().context("cannot list the interfaces")?;
    let names: Vec<_> = found.iter().map(|interface| interface.name.as_str()).collect();
    for vip in &config.initial_vips {
        let selector = vip.interface.as_str();
        let name = config.interface_map.get(selector).map_or(selector, String::as_str);
        if !names.contains(&name) {
            bail!(
                "initial_vip {}: this host has no Ethernet interface {name}; it has {}; correct the VIP's interface or map it under [interfaces]",
                vip.name,
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            );
        }
    }
    Ok(())
}

/// Names the task when it ends, which none of them should.
async fn ends(what: &'static str, task: impl Future<Output = ()>) -> anyhow::Error {
    task.await;
    anyhow!("{what} ended")
}

fn ended_error(ended: Option<Result<anyhow::Error, tokio::task::JoinError>>) -> anyhow::Error {
    match ended {
        None => anyhow!("nothing is left to do"),
        Some(Ok(error)) => error,
        Some(Err(panic)) => anyhow!("a task failed: {panic}"),
    }
}

async fn refused(formation: &mut watch::Receiver<Formation>) -> String {
    loop {
        if let Formation::Refused(why) = &*formation.borrow_and_update() {
            return why.clone();
        }
        if formation.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Tells the agent what is agreed and whether this node leads.
async fn feed_agent(raft: RaftHandle, mailbox: Arc<Mailbox>, mut reign: watch::Receiver<Option<vip_core::Reign>>) {
    let mut applied = raft.applied();
    mailbox.state(Arc::clone(&applied.borrow_and_update().cluster));
    loop {
        tokio::select! {
            changed = applied.changed() => {
                if changed.is_err() {
                    return;
                }
                mailbox.state(Arc::clone(&applied.borrow_and_update().cluster));
            }
            changed = reign.changed() => {
                if changed.is_err() {
                    return;
                }
                // With the state that goes with it: what the leader decides rests on its own entries being applied.
                mailbox.state(Arc::clone(&applied.borrow_and_update().cluster));
                mailbox.reign(*reign.borrow_and_update());
            }
        }
    }
}

/// As the first leader of a new cluster: declares the VIPs that it begins with.
async fn declare_initial_vips(
    raft: RaftHandle,
    mut reign: watch::Receiver<Option<vip_core::Reign>>,
    config: Arc<Config>,
) {
    const RETRY: Duration = Duration::from_millis(200);
    loop {
        if raft.applied().borrow().cluster.formed {
            break;
        }
        if reign.borrow_and_update().is_some_and(|reign| reign.ready) {
            match raft.propose_here(Command::Form(config.initial_vips.clone())).await {
                Ok(Outcome::Refused(refusal)) => {
                    tracing::error!(%refusal, "the first VIPs were refused; declare them with vipctl");
                    break;
                }
                Ok(_) => {
                    tracing::info!(vips = config.initial_vips.len(), "the cluster is formed");
                    break;
                }
                Err(error) => tracing::warn!(%error, "the first VIPs are not declared yet"),
            }
        }
        let _ = tokio::time::timeout(RETRY, reign.changed()).await;
    }
    std::future::pending::<()>().await;
}

/// A connection whose other end vanished without a word is noticed and closed: over the years they would add up.
fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
}

/// An answer is two small writes; with Nagle's algorithm the second waits 40 ms for the first one's acknowledgement.
fn without_delay(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// Tells systemd's watchdog that the agent lives, but only while it does.
async fn watchdog(mailbox: Arc<Mailbox>) {
    let Some(period) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut interval = tokio::time::interval(period / 3);
    let mut asked = mailbox.ask();
    loop {
        interval.tick().await;
        if mailbox.answered(asked) {
            notify(sd_notify::NotifyState::Watchdog);
        }
        asked = mailbox.ask();
    }
}

fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd was not told");
    }
}
