//! A disk of a chosen size, to be filled and broken.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};

/// An ext4 filesystem in a file, unmounted when dropped.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    path: PathBuf,
}

impl Disk {
    /// Makes a disk of `mib` and mounts it at `path`, which is made; the image lies beside it.
    ///
    /// # Errors
    /// When not root, or without loop devices or `mkfs.ext4`.
    pub fn mount(path: PathBuf, mib: u64) -> Result<Self> {
        fs::create_dir_all(&path)?;
        let image = path.with_extension("image");
        fs::File::create(&image)?.set_len(mib << 20)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let disk = Self { image, path };
        disk.attach()?;
        Ok(disk)
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
        let mut file = fs::File::create(self.ballast())?;
        loop {
            match file.write_all(&[0xff; 4096]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => bail!("fill {}: {error}", self.path.display()),
            }
        }
    }

    /// Gives the room back that [`Self::fill`] took.
    ///
    /// # Errors
    /// When there is none to give back.
    pub fn make_room(&self) -> Result<()> {
        fs::remove_file(self.ballast()).context("make room on a full disk")
    }

    /// Lets the filesystem stop as after an error of the medium: it is read-only at once, also for files that are open.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn fail(&self) -> Result<()> {
        run(Command::new("mount").args(["-o", "remount,abort"]).arg(&self.path))
    }

    /// Lets everybody who writes wait, until [`Self::thaw`]: a disk that hangs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn freeze(&self) -> Result<()> {
        run(Command::new("fsfreeze").arg("--freeze").arg(&self.path))
    }

    /// Lets those who wait go on.
    ///
    /// # Errors
    /// When it does not hang.
    pub fn thaw(&self) -> Result<()> {
        run(Command::new("fsfreeze").arg("--unfreeze").arg(&self.path))
    }

    /// Repairs a filesystem that failed. Nobody may have a file open on it.
    ///
    /// # Errors
    /// When it is in use or cannot be mounted.
    pub fn repair(&self) -> Result<()> {
        run(Command::new("umount").arg(&self.path))?;
        // 1: errors were corrected.
        let status =
            Command::new("e2fsck").args(["-p", "-f"]).arg(&self.image).output().context("start e2fsck")?.status;
        ensure!(matches!(status.code(), Some(0 | 1)), "e2fsck: {status}");
        self.attach()
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    fn attach(&self) -> Result<()> {
        run(Command::new("mount").args(["-o", "loop,nosuid"]).args([&self.image, &self.path]))
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, said.trim());
    Ok(())
}

impl Drop for Disk {
    fn drop(&mut self) {
        // One that hangs would keep its writers for ever. It usually does not.
        let _ = self.thaw();
        // A daemon may still have a file open there; the mount goes when it has ended.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
