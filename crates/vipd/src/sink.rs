//! Where the lease takes effect: the fence.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vip_core::{BootInstant, Input, KillPoint, Leadership};
use vip_net::fence::{Fence, LeaseSlot};
use vip_raft::LeaseSink;

use crate::mailbox::Mailbox;

/// The fence as the lease sees it.
pub(crate) struct FenceSink {
    pub(crate) fence: Arc<Fence>,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl LeaseSink for FenceSink {
    fn arm(&self, deadline: BootInstant) -> io::Result<()> {
        KillPoint::LeaseComputed.reach();
        let result = self.fence.arm(LeaseSlot::LEADER, deadline);
        KillPoint::LeaseWritten.reach();
        result.map_err(io::Error::other)
    }

    fn disarm(&self) -> io::Result<()> {
        let result = self.fence.disarm(LeaseSlot::LEADER);
        KillPoint::ReleaseLeaseEnded.reach();
        result.map_err(io::Error::other)
    }

    fn slack(&self) -> Duration {
        self.fence.slack()
    }

    fn renewed(&self, leadership: Leadership, result: Result<BootInstant, io::Error>) {
        match result {
            Ok(deadline) => self.mailbox.lease(leadership, deadline),
            Err(error) => {
                // R14: doubt means drop first.
                tracing::error!(%error, %leadership, "cannot renew the lease in the kernel");
                self.mailbox.other(Input::Fence(false));
            }
        }
    }
}
