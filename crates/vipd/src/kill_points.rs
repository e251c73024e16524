//! Kills or freezes this process at a point that a test named. Of no effect, and not called, in what is shipped: see
//! [`vip_core::kill_point`].
//!
//! A test writes a file beside the configuration, with the ending `kill-point`: the name of a point, `kill` or `freeze`,
//! and the path of another file, each on a line of its own. It is read at start and on SIGUSR1, and removed when what it
//! says is in force. Whoever of several daemons then reaches the point first removes the other file, and is the one to
//! whom it happens.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use nix::sys::signal::{Signal, raise};
use tokio::signal::unix::{SignalKind, signal};
use vip_core::{KillPoint, kill_point};

/// What is to happen where.
#[derive(Debug, PartialEq, Eq)]
struct Armed {
    point: KillPoint,
    deed: Signal,
    /// There as long as it has happened to nobody.
    token: PathBuf,
}

static ARMED: Mutex<Option<Armed>> = Mutex::new(None);

/// Takes in what was written before the start.
pub(crate) fn begin(config: &Path) -> anyhow::Result<()> {
    kill_point::on_reach(reached);
    read(&file(config))
}

/// Takes in what is written later.
pub(crate) async fn follow(config: PathBuf) {
    let file = file(&config);
    let Ok(mut told) = signal(SignalKind::user_defined1()) else { return };
    while told.recv().await.is_some() {
        if let Err(error) = read(&file) {
            tracing::error!(error = format!("{error:#}"), "kill point");
        }
    }
}

fn file(config: &Path) -> PathBuf {
    config.with_extension("kill-point")
}

fn read(file: &Path) -> anyhow::Result<()> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        text => text.with_context(|| file.display().to_string())?,
    };
    let armed = parse(&text).with_context(|| format!("{}: {text:?} is no kill point", file.display()))?;
    tracing::info!(?armed, "kill point");
    *ARMED.lock().unwrap_or_else(PoisonError::into_inner) = Some(armed);
    fs::remove_file(file).with_context(|| file.display().to_string())
}

fn parse(text: &str) -> Option<Armed> {
    let mut lines = text.lines();
    let name = lines.next()?;
    let point = KillPoint::ALL.iter().copied().find(|point| point.name() == name)?;
    let deed = match lines.next()? {
        "kill" => Signal::SIGKILL,
        "freeze" => Signal::SIGSTOP,
        _ => return None,
    };
    Some(Armed { point, deed, token: PathBuf::from(lines.next()?) })
}

/// In whichever thread reached it, which goes no further: a signal to itself ends or stops it here, and the others.
fn reached(point: KillPoint) {
    let taken = {
        let mut armed = ARMED.lock().unwrap_or_else(PoisonError::into_inner);
        armed.take_if(|armed| armed.point == point)
    };
    if let Some(armed) = taken
        && fs::remove_file(&armed.token).is_ok()
    {
        let _ = raise(armed.deed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_test_writes_is_understood() {
        let armed = Armed { point: KillPoint::VoteGranted, deed: Signal::SIGSTOP, token: PathBuf::from("/tmp/x") };
        assert_eq!(parse("vote.granted\nfreeze\n/tmp/x\n"), Some(armed));
        for wrong in
            ["", "vote.granted\n", "vote.granted\nkill\n", "vote.granted\nhold\n/tmp/x\n", "vote\nkill\n/tmp/x\n"]
        {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
