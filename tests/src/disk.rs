//! A disk of a chosen size, to be filled.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A filesystem in memory, unmounted when dropped.
#[derive(Debug)]
pub struct TinyDisk {
    path: PathBuf,
}

impl TinyDisk {
    /// Mounts a disk with room for `kib` at `path`, which is made.
    ///
    /// # Errors
    /// When not root.
    pub fn mount(path: PathBuf, kib: u32) -> Result<Self> {
        fs::create_dir_all(&path)?;
        let options = format!("size={kib}k,mode=0700");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::MS_NOSUID, Some(options.as_str()))
            .with_context(|| format!("mount a tmpfs at {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes all the room that is left.
    ///
    /// # Errors
    /// When writing fails for another reason than that.
    pub fn fill(&self) -> Result<()> {
        let mut file = fs::File::create(self.path.join("ballast"))?;
        loop {
            match file.write_all(&[0xff; 4096]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => bail!("fill {}: {error}", self.path.display()),
            }
        }
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        // A daemon may still have a file open there; the mount goes when it has ended.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
