//! Which commit `--version` names: that of the checkout or of the archive that the programs are built from, and never that
//! of a repository which they happen to lie in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use vip_tests::TestResult;
use vip_tests::repository;

// The build scripts' own.
#[path = "../../packaging/commit/commit.rs"]
mod commit;

const ARCHIVED: &str = "packaging/commit/archived";

fn git(directory: &Path, arguments: &[&str]) -> Result<String> {
    let mut git = Command::new("git");
    git.args(["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]);
    git.args(arguments).current_dir(directory).env("GIT_CONFIG_GLOBAL", "/dev/null").stdin(Stdio::null());
    let output = git.output().context("run git")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {arguments:?}: {}: {said}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A repository with what of ours the commit depends on, in one commit; and that commit as it is named.
fn checkout(at: &Path) -> Result<String> {
    for file in [".gitattributes", ARCHIVED] {
        let copy = at.join(file);
        fs::create_dir_all(copy.parent().context("a directory")?)?;
        fs::copy(repository::root().join(file), copy)?;
    }
    fs::create_dir_all(at.join("crates/one"))?;
    fs::write(at.join("crates/one/lib.rs"), "")?;
    fs::write(at.join("README.md"), "")?;
    commit_all(at)
}

fn commit_all(at: &Path) -> Result<String> {
    git(at, &["init", "--quiet"])?;
    git(at, &["add", "--all"])?;
    git(at, &["commit", "--quiet", "--message", &at.display().to_string()])?;
    git(at, &["rev-parse", "--short=12", "HEAD"])
}

/// What `git archive` makes of a repository, unpacked.
fn unpacked(repository: &Path, at: &Path) -> TestResult {
    fs::create_dir_all(at)?;
    let archive = at.with_extension("tar");
    git(repository, &["archive", "--output", archive.to_str().context("UTF-8")?, "HEAD"])?;
    let status = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(at).status().context("run tar")?;
    ensure!(status.success(), "tar: {status}");
    Ok(())
}

#[test]
fn a_checkout_names_its_commit_and_whether_it_was_modified() -> TestResult {
    let dir = tempfile::tempdir()?;
    let head = checkout(dir.path())?;
    assert_eq!(commit::of(dir.path()).as_deref(), Some(head.as_str()));
    // As the build scripts say it, from a crate.
    assert_eq!(commit::of(&dir.path().join("crates/one/../..")).as_deref(), Some(head.as_str()));

    fs::write(dir.path().join("README.md"), "of this nothing goes into a program")?;
    assert_eq!(commit::of(dir.path()).as_deref(), Some(head.as_str()));
    let modified = format!("{head}, modified");
    fs::write(dir.path().join("crates/one/new.rs"), "")?;
    assert_eq!(commit::of(dir.path()), Some(modified.clone()), "a new file");
    fs::remove_file(dir.path().join("crates/one/new.rs"))?;
    fs::write(dir.path().join("crates/one/lib.rs"), "//")?;
    assert_eq!(commit::of(dir.path()), Some(modified), "a file that was changed");

    let next = commit_all(dir.path())?;
    assert_ne!(next, head);
    assert_eq!(commit::of(dir.path()), Some(next));
    Ok(())
}

#[test]
fn an_archive_names_its_commit_also_below_another_repository() -> TestResult {
    let dir = tempfile::tempdir()?;
    let (ours, around) = (dir.path().join("ours"), dir.path().join("around"));
    let head = checkout(&ours)?;
    let alone = dir.path().join("alone");
    unpacked(&ours, &alone)?;
    assert_eq!(commit::of(&alone).as_deref(), Some(head.as_str()));

    fs::create_dir_all(&around)?;
    fs::write(around.join("file"), "another project's")?;
    let other = commit_all(&around)?;
    assert_ne!(other, head);
    let below = around.join("vendor/vipd");
    unpacked(&ours, &below)?;
    assert_eq!(commit::of(&below).as_deref(), Some(head.as_str()));
    commit_all(&around)?;
    assert_eq!(commit::of(&below), Some(head), "also as a part of it");

    // A copy of the files alone: nothing tells.
    fs::write(below.join(ARCHIVED), fs::read(ours.join(ARCHIVED))?)?;
    assert_eq!(commit::of(&below), None);
    fs::remove_file(below.join(ARCHIVED))?;
    assert_eq!(commit::of(&below), None);
    Ok(())
}

#[test]
fn a_build_looks_again_when_a_source_or_the_commit_changes() -> TestResult {
    let dir = tempfile::tempdir()?;
    checkout(dir.path())?;
    let watched = commit::watched(dir.path());
    assert!(watched.iter().all(|path| path.exists()), "{watched:?}");
    for path in ["crates", ".git/HEAD", ".git/logs/HEAD", "packaging/commit"] {
        assert!(watched.contains(&dir.path().join(path)), "{path} is not in {watched:?}");
    }
    let outside: Vec<PathBuf> = commit::watched(&dir.path().join("crates"));
    assert_eq!(outside, Vec::<PathBuf>::new(), "of a directory that is no checkout's root");
    Ok(())
}

/// `git archive` fills in nothing but what stands there so.
#[test]
fn the_file_for_archives_is_as_git_wants_it() -> TestResult {
    let root = repository::root();
    assert_eq!(fs::read_to_string(root.join(ARCHIVED))?.trim(), "$Format:%H$");
    let attribute = git(root, &["-c", "safe.directory=*", "check-attr", "export-subst", "--", ARCHIVED])?;
    assert!(attribute.ends_with("export-subst: set"), "{attribute}");
    Ok(())
}
