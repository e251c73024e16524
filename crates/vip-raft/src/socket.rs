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
use tokio::net::TcpStream;

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

/// What the kernel does unasked, and the most that it takes.
const LONGEST: Duration = Duration::from_millis(200);

/// The kernel takes no less than two ticks: 20 ms where it ticks a hundred times a second.
const LEAST_ANYWHERE: Duration = Duration::from_millis(20);

/// Makes a socket repeat what was lost several times within `lease`. What a listener is told holds for the connections that
/// it accepts.
///
/// A kernel before 6.15 knows only to repeat at even intervals, of 200 ms and more.
///
/// # Errors
///
/// Where `socket` is no TCP socket.
pub fn repeat_within(socket: &impl AsFd, lease: Duration) -> io::Result<()> {
    setsockopt(socket, RepeatEvenly, &true)?;
    let after = (lease / 20).max(Duration::from_millis(10));
    let told = match repeat_after(socket, after) {
        Err(Errno::EINVAL) => repeat_after(socket, LEAST_ANYWHERE.max(after)),
        told => told,
    };
    match told {
        Err(Errno::ENOPROTOOPT) => Ok(()),
        told => Ok(told?),
    }
}

/// An acknowledgement must not wait as long as that, else everything is sent twice.
fn repeat_after(socket: &impl AsFd, time: Duration) -> nix::Result<()> {
    let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    let time = time.min(LONGEST);
    setsockopt(socket, RepeatAfter, &micros(time))?;
    setsockopt(socket, AcknowledgeAfter, &micros(time / 2))
}

/// Connects to the host and port of `uri`.
pub(crate) async fn connect(uri: Uri, lease: Duration) -> io::Result<TokioIo<TcpStream>> {
    let authority = uri.authority().ok_or_else(|| io::Error::other(format!("{uri} names no host")))?;
    let stream = TcpStream::connect(authority.as_str()).await?;
    stream.set_nodelay(true)?;
    repeat_within(&stream, lease)?;
    Ok(TokioIo::new(stream))
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;
    use tokio::net::TcpListener;

    use super::*;

    /// The values of both ends of a connection, or `None` where the kernel is older than them.
    async fn both_ends(lease: Duration) -> Option<[(u32, u32, bool); 2]> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        repeat_within(&listener, lease).unwrap();
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
}
