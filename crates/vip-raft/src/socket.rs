//! TCP between the nodes, made to repeat what was lost within a lease.
//!
//! Out of the box Linux repeats a segment after 200 ms at the earliest, and waits twice as long each time: two heartbeats lost
//! in a row cost a lease of 500 ms. A connection that is told the lease repeats several times in it.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::{getsockopt_impl, libc, setsockopt_impl, sockopt_impl};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// Linux 6.15, include/uapi/linux/tcp.h; newer than the constants of libc.
const TCP_RTO_MIN_US: libc::c_int = 45;
/// The same.
const TCP_DELACK_MAX_US: libc::c_int = 46;

sockopt_impl!(
    /// The least time before a segment is repeated, in microseconds.
    RepeatAfter,
    Both,
    libc::IPPROTO_TCP,
    TCP_RTO_MIN_US,
    u32
);
sockopt_impl!(
    /// The longest time that an acknowledgement waits for something to travel with, in microseconds.
    AcknowledgeAfter,
    Both,
    libc::IPPROTO_TCP,
    TCP_DELACK_MAX_US,
    u32
);
sockopt_impl!(
    /// The waits do not double while few segments are on their way: Documentation/networking/tcp-thin.rst.
    RepeatEvenly,
    Both,
    libc::IPPROTO_TCP,
    libc::TCP_THIN_LINEAR_TIMEOUTS,
    bool
);

/// What the kernel does unasked, and the most that it takes to repeat.
const LONGEST: Duration = Duration::from_millis(200);

/// Makes a socket repeat what was lost several times within `lease`, as far as the kernel can: before Linux 6.15 only at even
/// intervals of 200 ms and more. What a listener is told holds for the connections that it accepts.
pub fn repeat_within(socket: &impl AsFd, lease: Duration) {
    let after = (lease / 20).clamp(Duration::from_millis(10), LONGEST);
    let told = setsockopt(socket, RepeatEvenly, &true).and_then(|()| match repeat_after(socket, after, after / 2) {
        // It takes no less than two ticks for each, which are 20 ms where it ticks a hundred times a second.
        Err(Errno::EINVAL) => repeat_after(socket, Duration::from_millis(30), Duration::from_millis(20)),
        told => told,
    });
    // Nothing depends on it as long as nothing is lost.
    if let Err(error) = told {
        tracing::debug!(%error, "the kernel does not repeat lost segments within a lease");
    }
}

/// An acknowledgement must not wait as long as the other end waits before it repeats, else everything is sent twice.
fn repeat_after(socket: &impl AsFd, repeat: Duration, acknowledge: Duration) -> nix::Result<()> {
    let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    setsockopt(socket, RepeatAfter, &micros(repeat))?;
    setsockopt(socket, AcknowledgeAfter, &micros(acknowledge))
}

/// How long resolving a name may take; what the network says of a connection is known sooner.
const RESOLVE: Duration = Duration::from_secs(2);

/// Connects to the host and port of `uri`: to the first of its addresses that answers within a part of the lease. TCP itself
/// would repeat a lost first frame after a second; it is better to begin anew.
pub(crate) async fn connect(uri: Uri, lease: Duration) -> io::Result<TokioIo<TcpStream>> {
    let authority = uri.authority().ok_or_else(|| io::Error::other(format!("{uri} names no host")))?;
    let limit = (lease / 4).clamp(Duration::from_millis(100), Duration::from_millis(250));
    let mut failure = io::Error::new(io::ErrorKind::NotFound, format!("{authority} has no address"));
    for address in timeout(RESOLVE, lookup_host(authority.as_str())).await?? {
        match timeout(limit, TcpStream::connect(address)).await.unwrap_or_else(|late| Err(late.into())) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                repeat_within(&stream, lease);
                return Ok(TokioIo::new(stream));
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;
    use tokio::net::TcpListener;

    use super::*;

    /// The values of both ends of a connection, or `None` where the kernel is older than them.
    async fn both_ends(lease: Duration) -> Option<[(u32, u32, bool); 2]> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        repeat_within(&listener, lease);
        let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (client, server) = tokio::join!(connect(uri, lease), listener.accept());
        let (client, server) = (client.unwrap().into_inner(), server.unwrap().0);
        assert!(client.nodelay().unwrap());
        let values = |socket: &TcpStream| {
            let repeat = match getsockopt(socket, RepeatAfter) {
                Err(Errno::ENOPROTOOPT) => return None,
                value => value.unwrap(),
            };
            Some((repeat, getsockopt(socket, AcknowledgeAfter).unwrap(), getsockopt(socket, RepeatEvenly).unwrap()))
        };
        Some([values(&client)?, values(&server)?])
    }

    #[tokio::test]
    async fn both_ends_repeat_within_the_lease() {
        // The kernel rounds up to its ticks, of 1 to 10 ms, and takes no less than two.
        for (lease, least, most) in [(500, 25_000, 35_000), (100, 10_000, 20_000)] {
            let Some(ends) = both_ends(Duration::from_millis(lease)).await else { return };
            for (repeat, acknowledge, even) in ends {
                assert!((least..=most).contains(&repeat) && acknowledge < repeat && even, "{lease} ms: {ends:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_long_lease_asks_for_no_more_than_the_kernel_does_by_itself() {
        let Some(ends) = both_ends(Duration::from_secs(60)).await else { return };
        assert_eq!(ends, [(200_000, 100_000, true); 2]);
    }

    #[tokio::test]
    async fn a_name_whose_first_address_is_silent_is_reached_by_another() {
        // "localhost" has an IPv6 address first on most hosts, where nobody listens here.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let uri = |host: &str| format!("http://{host}:{port}").parse().unwrap();
        assert!(connect(uri("localhost"), Duration::from_millis(500)).await.is_ok());
        drop(listener);
        let refused = connect(uri("localhost"), Duration::from_millis(500)).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
