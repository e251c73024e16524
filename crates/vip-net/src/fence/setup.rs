//! What the fence needs around it: one owner, a BPF filesystem, a directory for its maps.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::FenceError;
use super::maps::MAP_NAMES;

/// The version of the map layout: a daemon with another layout must not take these for its own.
const LAYOUT: &str = "v1";

/// Abstract socket names belong to a network namespace, just as the fence does, and vanish with the process.
const LOCK_NAME: &str = "vipd-fence";

/// Held while this process has the fence of its network namespace.
#[derive(Debug)]
pub(super) struct Lock {
    _socket: UnixDatagram,
}

impl Lock {
    pub(super) fn take() -> Result<Self, FenceError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => FenceError::InUse { name: LOCK_NAME },
            _ => FenceError::Lock { name: LOCK_NAME, source },
        };
        let address = SocketAddr::from_abstract_name(LOCK_NAME).map_err(failed)?;
        let socket = UnixDatagram::bind_addr(&address).map_err(failed)?;
        Ok(Self { _socket: socket })
    }
}

/// Makes sure that a BPF filesystem is at `path`.
pub(super) fn mount_bpf(path: &Path) -> Result<(), FenceError> {
    if is_bpf(path) {
        return Ok(());
    }
    let failed = |source| FenceError::Mount { path: path.to_owned(), source };
    if !path.exists() {
        fs::create_dir_all(path).map_err(failed)?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700")).map_err(|errno| failed(errno.into()))
}

fn is_bpf(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// The directory of the pinned maps of one network namespace.
#[derive(Debug)]
pub(super) struct PinDirectory {
    path: PathBuf,
}

impl PinDirectory {
    /// Of the namespace of the calling thread. An inode number may come back for a later namespace; what it then
    /// finds is emptied like the leftovers of any predecessor.
    pub(super) fn of_this_namespace(root: &Path) -> Result<Self, FenceError> {
        let namespace = Path::new("/proc/thread-self/ns/net");
        let inode = fs::metadata(namespace).map_err(pin("reading the network namespace", namespace))?.ino();
        Ok(Self { path: root.join("vipd").join(format!("{inode}-{LAYOUT}")) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn create(&self) -> Result<(), FenceError> {
        fs::create_dir_all(&self.path).map_err(pin("creating the directory for pinned maps", &self.path))
    }

    /// Unpins the maps; false where there were none. The kernel frees them with the last filter that uses them.
    pub(super) fn remove(&self) -> Result<bool, FenceError> {
        if !self.path.exists() {
            return Ok(false);
        }
        for name in MAP_NAMES {
            let map = self.map(name);
            if map.exists() {
                fs::remove_file(&map).map_err(pin("removing the pinned map", &map))?;
            }
        }
        fs::remove_dir(&self.path).map_err(pin("removing the directory for pinned maps", &self.path))?;
        Ok(true)
    }
}

fn pin(attempted: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FenceError {
    let path = path.to_owned();
    move |source| FenceError::Pin { attempted, path, source }
}
