//! Load on the processors of this machine.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Processes that do nothing but use a processor each, at ordinary priority. Ended when dropped.
#[derive(Debug)]
pub struct BusyLoops(Vec<Child>);

impl BusyLoops {
    /// Starts `per_core` of them for each processor.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start(per_core: usize) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut loops = Self(Vec::new());
        for _ in 0..per_core * cores {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
            loops.0.push(command.spawn().context("start a busy loop")?);
        }
        Ok(loops)
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.0.len()
    }
}

impl Drop for BusyLoops {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
