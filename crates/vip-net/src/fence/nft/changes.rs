//! What the kernel tells of changes to the table, for kernels on which it cannot belong to the daemon.

use std::fmt;
use std::io;

use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;

use super::rules;
use super::wire::{Kind, messages, text, type_of};

/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;

/// More than one transaction of a renewal makes; a flush of all rules may be cut off behind it, which is told too.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// A subscription to what takes parts of the fence away. Elements of its sets are not told of: it changes them itself
/// all the time.
pub struct FenceChanges(TokioSocket);

impl fmt::Debug for FenceChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FenceChanges").finish_non_exhaustive()
    }
}

impl FenceChanges {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(GROUP)?;
        Ok(Self(socket))
    }

    /// Waits until something of the fence may have been removed, by whomever, or changes were lost. Cancel safe.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn next(&self) -> io::Result<()> {
        let mut received = Vec::with_capacity(RECEIVE_BUFFER);
        loop {
            received.clear();
            match self.0.recv(&mut received).await {
                Ok(()) if removes_of_ours(&received) => return Ok(()),
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn removes_of_ours(datagram: &[u8]) -> bool {
    let mut found = false;
    messages(datagram, |kind, _, _, payload| {
        let removal = [Kind::DelTable, Kind::DelChain, Kind::DelRule, Kind::DelSet].map(type_of).contains(&kind);
        // The name of the table is attribute 1 of all of them.
        let ours = payload.get(4..).and_then(|attributes| text(attributes, rules::TABLE_NAME)) == Some(rules::TABLE);
        found |= removal && ours;
    });
    found
}
