//! The two senders: echo requests of an ordinary client, and the question "who has this VIP?" to everybody.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

use crate::capture::FrameSender;
use crate::clock::Stamp;
use crate::frame::{echo_request, question};
use crate::netns::Netns;
use crate::topology::HostId;

/// Time between two echo requests to one VIP.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(1);
/// Time between two questions for a probed VIP.
pub const ASK_INTERVAL: Duration = Duration::from_millis(5);
/// Time in which each of the other VIPs, however many, is asked about once.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(200);

/// Above ordinary threads, below every real-time priority that a daemon would choose.
const OBSERVER_PRIORITY: u8 = 1;

/// Sends echo requests to one VIP through the host's own neighbour cache.
#[derive(Debug)]
pub struct EchoSender {
    socket: Socket,
    vip: IpAddr,
    sequence: u16,
}

impl EchoSender {
    /// Opens a datagram ICMP socket in the client's namespace.
    ///
    /// # Errors
    /// When the namespace does not permit them, or has no route to the VIP.
    pub fn open(netns: &Netns, vip: IpAddr) -> Result<Self> {
        let (domain, protocol) = match vip {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = netns.enter(|| {
            let socket = Socket::new(domain, Type::DGRAM, Some(protocol)).context("open an ICMP socket")?;
            socket.connect(&SocketAddr::new(vip, 0).into()).with_context(|| format!("connect to {vip}"))?;
            Ok(socket)
        })?;
        // The answers are read from the packet socket: here they may be dropped.
        socket.set_recv_buffer_size(1).context("shrink the receive buffer")?;
        socket.set_nonblocking(true).context("set non-blocking")?;
        Ok(Self { socket, vip, sequence: 0 })
    }

    /// Sends one request and returns the time that it carries.
    pub fn send(&mut self) -> Stamp {
        self.sequence = self.sequence.wrapping_add(1);
        let sent = Stamp::now();
        let packet = echo_request(self.vip, self.sequence, sent);
        // The first attempt may only report the failure of an earlier packet.
        if self.socket.send(&packet).is_err() {
            let _ = self.socket.send(&packet);
        }
        sent
    }
}

/// Asks everybody for VIPs: the probed ones at each turn, a share of the others at each turn.
#[derive(Debug)]
pub struct Asker {
    sender: FrameSender,
    probed: Vec<Vec<u8>>,
    swept: Vec<Vec<u8>>,
    next: usize,
}

impl Asker {
    /// Prepares the questions, as coming from the watcher.
    ///
    /// # Errors
    /// As [`FrameSender::open`].
    pub fn open(netns: &Netns, probed: &[IpAddr], swept: &[IpAddr]) -> Result<Self> {
        let from = HostId::Watch;
        let ask =
            |vips: &[IpAddr]| vips.iter().map(|&vip| question(from.mac(), from.ipv4(), from.ipv6(), vip)).collect();
        Ok(Self { sender: FrameSender::open(netns)?, probed: ask(probed), swept: ask(swept), next: 0 })
    }

    /// One turn: call it every [`ASK_INTERVAL`].
    pub fn turn(&mut self) {
        let turns = (SWEEP_INTERVAL.as_micros() / ASK_INTERVAL.as_micros()).try_into().unwrap_or(1);
        let share = self.swept.len().div_ceil(turns);
        for frame in &self.probed {
            self.sender.send(frame);
        }
        for _ in 0..share {
            self.sender.send(&self.swept[self.next]);
            self.next = (self.next + 1) % self.swept.len();
        }
    }
}

/// Calls `turn` every `interval` until `stop`; turns that were missed are left out, not made up for.
pub(crate) fn every(interval: Duration, stop: &Arc<AtomicBool>, mut turn: impl FnMut()) {
    become_punctual();
    let mut next = Stamp::now();
    while !stop.load(Ordering::Relaxed) {
        turn();
        next = next.max(Stamp::now() - interval) + interval;
        next.sleep_until();
    }
}

/// Real-time scheduling where it is permitted. Where it is not, the prober's pauses show in the report.
fn become_punctual() {
    let Ok(value) = ThreadPriorityValue::try_from(OBSERVER_PRIORITY) else { return };
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(value), policy);
}
