//! Which commit the sources in a directory are of. Used by the build scripts, and by the test of it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What goes into the programs: where something of it is not as in the commit, the version says so.
const INPUTS: [&str; 5] = ["Cargo.toml", "Cargo.lock", "crates", "proto", "packaging/commit"];

/// `git archive` writes the commit into this file, since `.gitattributes` says so.
const ARCHIVED: &str = "packaging/commit/archived";

/// How many digits of a commit are named.
const DIGITS: usize = 12;

/// The commit of the sources below `root`, the root of the workspace, and whether they were modified since; none where
/// nothing tells. A repository around it is another project's.
pub(crate) fn of(root: &Path) -> Option<String> {
    if !is_checkout(root) {
        return archived(root);
    }
    let head = git(root, &["rev-parse", &format!("--short={DIGITS}"), "HEAD"])?;
    let modified = git(root, &[&["status", "--porcelain", "--"][..], &INPUTS[..]].concat()).is_some();
    Some(if modified { format!("{head}, modified") } else { head })
}

/// The files and directories with which the answer changes.
pub(crate) fn watched(root: &Path) -> Vec<PathBuf> {
    let mut watched: Vec<_> = INPUTS.iter().map(|input| root.join(input)).collect();
    if is_checkout(root) {
        let branch = git(root, &["symbolic-ref", "-q", "HEAD"]).unwrap_or_default();
        // The log of HEAD tells also of a branch that was packed before and has a file of its own now.
        let names = ["HEAD", "logs/HEAD", &branch, "packed-refs"].into_iter().filter(|name| !name.is_empty());
        watched.extend(names.filter_map(|name| Some(root.join(git(root, &["rev-parse", "--git-path", name])?))));
    }
    // Cargo would take a file that is not there for one that has changed.
    watched.retain(|path| path.exists());
    watched
}

/// Whether `root` is the root of a git checkout itself, not somewhere below one.
fn is_checkout(root: &Path) -> bool {
    let top = git(root, &["rev-parse", "--show-toplevel"]).and_then(|top| Path::new(&top).canonicalize().ok());
    top.is_some() && top == root.canonicalize().ok()
}

/// What `git archive` left.
fn archived(root: &Path) -> Option<String> {
    let text = std::fs::read_to_string(root.join(ARCHIVED)).ok()?;
    let commit = text.trim();
    let is_commit = commit.len() >= DIGITS && commit.chars().all(|c| c.is_ascii_hexdigit());
    is_commit.then(|| commit[..DIGITS].to_owned())
}

/// What git prints; none where that is nothing, git is missing, or this is no repository.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    // A build as another user than the owner, as in a container, reads the name of a commit and no more.
    let mut git = Command::new("git");
    git.args(["-c", "safe.directory=*"]).args(arguments).current_dir(root);
    // Set where git itself runs the build, as from a hook of a repository around this one.
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX"] {
        git.env_remove(variable);
    }
    let output = git.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
