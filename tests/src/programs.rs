//! The programs of this workspace, built from what is in it now.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use cargo_metadata::Message;

use crate::repository;

/// The daemon. `$VIPD_BIN` names another one.
///
/// # Errors
/// When it cannot be built.
pub fn vipd() -> Result<PathBuf> {
    program("vipd", "VIPD_BIN")
}

/// The command line. `$VIPCTL_BIN` names another one.
///
/// # Errors
/// When it cannot be built.
pub fn vipctl() -> Result<PathBuf> {
    program("vipctl", "VIPCTL_BIN")
}

fn program(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable).map(PathBuf::from) {
        // Daemons are started in other directories.
        return path.canonicalize().with_context(|| format!("{variable}={}", path.display()));
    }
    static BUILT: OnceLock<Result<BTreeMap<String, PathBuf>, String>> = OnceLock::new();
    match BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}"))) {
        Ok(built) => built.get(name).cloned().with_context(|| format!("the workspace has no program {name}")),
        Err(error) => bail!("{error}"),
    }
}

/// Builds what is not up to date. Cargo does not build the programs of other packages for a test, and a program that was
/// left from before the last change would be tested in place of the change. The whole workspace, and together with a test,
/// as in the Makefile: else cargo chooses other features, and compiles the same dependencies once more.
fn build() -> Result<BTreeMap<String, PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "build",
        "--workspace",
        "--locked",
        "--bins",
        "--test",
        "tidy",
        "--message-format=json-render-diagnostics",
    ]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command.current_dir(repository::root()).stderr(Stdio::inherit()).output().context("start cargo")?;
    if !output.status.success() {
        bail!("cargo build failed: {}", output.status);
    }
    let mut programs = BTreeMap::new();
    for message in Message::parse_stream(output.stdout.as_slice()) {
        if let Message::CompilerArtifact(artifact) = message.context("read what cargo says")?
            && let Some(path) = artifact.executable
        {
            programs.insert(artifact.target.name, path.into_std_path_buf());
        }
    }
    Ok(programs)
}
