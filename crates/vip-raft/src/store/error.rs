//! Why a store does not open.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vip_core::{ClusterName, NodeId};

/// The store cannot be used. Nothing of it was changed.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process, or another store of this one, uses it.
    #[error(
        "cannot open the store in {}: another vipd runs on it; stop that one, or give this one its own data directory",
        dir.display()
    )]
    Locked {
        /// The data directory.
        dir: PathBuf,
    },
    /// It belongs to another node.
    #[error(
        "cannot open {}: it is the store of node {found}, but this is node {configured}; correct the node id or the data directory",
        path.display()
    )]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// The node that it belongs to.
        found: NodeId,
        /// The node that asked.
        configured: NodeId,
    },
    /// It belongs to another cluster.
    #[error(
        "cannot open {}: it is a store of cluster {found}, but this node is of cluster {configured}; correct the cluster's name or the data directory",
        path.display()
    )]
    OtherCluster {
        /// The file.
        path: PathBuf,
        /// The cluster that it belongs to.
        found: ClusterName,
        /// The cluster that asked.
        configured: ClusterName,
    },
    /// It was written by another version.
    #[error(
        "cannot open {}: it has format {found}, but this vipd reads format {supported}; run the version that wrote it",
        path.display()
    )]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format that this version reads and writes.
        supported: u32,
    },
    /// It is damaged.
    #[error(
        "cannot trust {}: {found}. Keep the file for a look at it, and do not start this node id on an empty or older \
         one: it could vote twice. Remove the node from the cluster, then let it join with a new node id and an empty \
         data directory",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        found: String,
    },
    /// The disk is full.
    #[error(
        "cannot {attempted} {}: no space is left: {source}; free some (a few MiB are enough) and start again",
        path.display()
    )]
    Full {
        /// What was tried.
        attempted: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused.
    #[error(
        "cannot {attempted} {}: {source}; the data directory must exist, and this user must be able to read and write it",
        path.display()
    )]
    Io {
        /// What was tried.
        attempted: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenError {
    pub(super) fn corrupt(path: &Path, found: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), found: found.into() }
    }

    pub(super) fn io(attempted: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { attempted, path, source },
            _ => Self::Io { attempted, path, source },
        }
    }

    pub(super) fn redb(attempted: &'static str, path: &Path, error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen => {
                Self::Locked { dir: path.parent().map_or_else(PathBuf::new, Path::to_owned) }
            }
            // These two kinds are how redb says that the content is wrong, and how a short file shows.
            redb::Error::Io(source)
                if !matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                Self::io(attempted, path, source)
            }
            other => Self::corrupt(path, format!("it cannot be read ({other})")),
        }
    }
}
