//! The build script of every program: which commit `--version` names.
//!
//! `VIPD_COMMIT` of the environment comes first, for builds without a repository around them. A debug build names none:
//! otherwise each commit would compile the programs and their tests anew.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=VIPD_COMMIT");
    let given = std::env::var("VIPD_COMMIT").ok().filter(|text| !text.is_empty());
    let commit = if let Some(given) = given {
        given
    } else if std::env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        "debug build".to_owned()
    } else {
        watch_head();
        git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown commit".to_owned())
    };
    println!("cargo:rustc-env=VIPD_COMMIT={commit}");
}

/// Has cargo run this again when another commit is checked out, or one is made.
fn watch_head() {
    let branch = git(&["symbolic-ref", "-q", "HEAD"]).unwrap_or_default();
    // The log of HEAD tells also of a branch that was packed before and has a file of its own now.
    for name in ["HEAD", "logs/HEAD", &branch, "packed-refs"].into_iter().filter(|name| !name.is_empty()) {
        // Cargo would take a file that is not there for one that has changed.
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
}

/// One line of output; none where git is missing or this is no repository.
fn git(arguments: &[&str]) -> Option<String> {
    // A build as another user than the owner, as in a container, reads the name of a commit and no more.
    let output = Command::new("git").args(["-c", "safe.directory=*"]).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
