//! The files of this repository.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A text file of the repository.
#[derive(Debug, Clone)]
pub struct TextFile {
    /// Relative to the root.
    pub path: PathBuf,
    /// What is in it.
    pub text: String,
}

impl TextFile {
    /// Whether its name ends in `.extension`.
    #[must_use]
    pub fn is(&self, extension: &str) -> bool {
        self.path.extension().is_some_and(|found| found == extension)
    }

    /// Lines with their numbers, from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }
}

/// The root of the repository.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies below the root")
}

/// Every text file that is under version control, or would be with the next commit.
///
/// # Errors
/// When this is not a git checkout.
pub fn text_files() -> Result<Vec<TextFile>> {
    let listed = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .context("run git")?;
    if !listed.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    }
    let names = String::from_utf8(listed.stdout).context("a file name is not UTF-8")?;
    let mut files = Vec::new();
    for name in names.split_terminator('\0') {
        // Deleted and not committed yet, or binary: nothing to read.
        if let Ok(text) = std::fs::read_to_string(root().join(name)) {
            files.push(TextFile { path: PathBuf::from(name), text });
        }
    }
    Ok(files)
}
