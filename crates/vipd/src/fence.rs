//! Which fence this host gets, and whether the timing leaves it enough.

use std::path::Path;

use anyhow::{anyhow, bail};
use vip_net::fence::{Fence, FenceError, FenceKind, NftablesFigures};

use crate::config::{Config, FenceChoice, HEARTBEATS_IN_LEASE};

impl FenceChoice {
    /// What to try, in this order.
    const fn kinds(self) -> &'static [FenceKind] {
        match self {
            Self::Auto => &[FenceKind::Bpf, FenceKind::Nftables],
            Self::Bpf => &[FenceKind::Bpf],
            Self::Nftables => &[FenceKind::Nftables],
        }
    }
}

/// Makes something of the first kind of fence that it can be made of. `make` is told why the kind before it was not.
pub(crate) fn first_that_works<T>(
    choice: FenceChoice,
    mut make: impl FnMut(FenceKind, Option<&str>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut reasons: Vec<String> = Vec::new();
    for &kind in choice.kinds() {
        match make(kind, reasons.last().map(String::as_str)) {
            Ok(made) => return Ok(made),
            // That is no matter of kinds.
            Err(error) if matches!(error.downcast_ref(), Some(FenceError::InUse { .. })) => return Err(error),
            Err(error) => reasons.push(format!("{kind}: {error:#}")),
        }
    }
    Err(anyhow!("no fence can be put in place (fence.backend)\n  {}", reasons.join("\n  ")))
}

/// Opens the fence to take it down.
pub(crate) fn open(choice: FenceChoice, pin_root: &Path) -> anyhow::Result<Fence> {
    first_that_works(choice, |kind, _| Ok(Fence::open(kind, pin_root)?))
}

/// Whether the heartbeats fit into what a fence of nftables leaves of the lease.
pub(crate) fn check_timing_for_nftables(config: &Config) -> anyhow::Result<()> {
    check_timing(config, NftablesFigures::of_this_kernel())
}

fn check_timing(config: &Config, figures: NftablesFigures) -> anyhow::Result<()> {
    let (lease, heartbeat) = (config.lease.lease, config.heartbeat);
    let (margin, slack, early) = (config.lease.margin(), figures.slack(), figures.early());
    let taken = margin + slack + early;
    if heartbeat * HEARTBEATS_IN_LEASE > lease.saturating_sub(taken) {
        let least = heartbeat * HEARTBEATS_IN_LEASE + taken;
        // One percent more, for the drift over a longer lease; whole milliseconds.
        let least = (least.as_micros() * 101).div_ceil(100_000);
        bail!(
            "timing.lease {lease:?} is too short for the nftables fence on this host: the kernel counts in ticks of {:?}, which takes {slack:?} more margin and ends leases up to {early:?} early; with the margin of {margin:?} that leaves {:?}, and {HEARTBEATS_IN_LEASE} heartbeats of {heartbeat:?} must fit; set timing.lease to {least}ms or more on all nodes, or see to it that BPF can be loaded here",
            figures.tick,
            lease.saturating_sub(taken),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::parse;

    fn config(sections: &str) -> Config {
        let minimal =
            "insecure = true\n[cluster]\nname = \"web\"\n[node]\nid = 1\n[peer]\nlisten = \"10.0.0.1:7400\"\n";
        parse(&format!("{minimal}{sections}")).unwrap().config
    }

    #[test]
    fn the_timing_must_leave_room_for_the_heartbeats() {
        let at = |hz: u32| NftablesFigures { tick: Duration::from_secs(1) / hz };
        let with = |lease: u32, heartbeat: u32| {
            config(&format!("[timing]\nlease = \"{lease}ms\"\nheartbeat = \"{heartbeat}ms\"\n"))
        };
        for hz in [100, 250, 300, 1000] {
            check_timing(&with(500, 100), at(hz)).unwrap();
        }
        // Profile fast.
        check_timing(&with(100, 20), at(1000)).unwrap();
        let error = check_timing(&with(100, 20), at(250)).unwrap_err().to_string();
        for part in
            ["100ms", "ticks of 4ms", "24ms more margin", "21ms early", "leaves 49.8ms", "20ms", "112ms or more"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
        check_timing(&with(112, 20), at(250)).unwrap();
        assert!(check_timing(&with(100, 20), at(100)).is_err());
    }

    #[test]
    fn kinds_are_tried_in_order_and_every_reason_is_told() {
        let tried = |choice, working: &[FenceKind]| {
            first_that_works(choice, |kind, before| {
                if working.contains(&kind) { Ok((kind, before.map(str::to_owned))) } else { Err(anyhow!("not {kind}")) }
            })
        };
        let both = [FenceKind::Nftables, FenceKind::Bpf];
        assert_eq!(tried(FenceChoice::Auto, &both).unwrap(), (FenceKind::Bpf, None));
        let fallback = tried(FenceChoice::Auto, &[FenceKind::Nftables]).unwrap();
        assert_eq!(fallback, (FenceKind::Nftables, Some("bpf: not bpf".to_owned())));
        assert_eq!(tried(FenceChoice::Nftables, &both).unwrap(), (FenceKind::Nftables, None));
        assert!(tried(FenceChoice::Bpf, &[FenceKind::Nftables]).is_err());
        let error = tried(FenceChoice::Auto, &[]).unwrap_err().to_string();
        assert!(error.contains("not bpf") && error.contains("not nftables"), "{error}");

        let mut times = 0;
        let in_use = first_that_works::<()>(FenceChoice::Auto, |_, _| {
            times += 1;
            Err(FenceError::InUse { name: "x" }.into())
        });
        assert!(in_use.is_err() && times == 1, "another daemon is no reason to try another kind");
    }
}
