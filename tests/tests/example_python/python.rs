//! Python with gRPC, and the example run on the client's host.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vip_lab::{HostId, Profile};
use vip_tests::cluster::{Cluster, cluster};
use vip_tests::repository;

/// A cluster, and a Python on its client's host.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) cluster: Cluster,
    pub(crate) python: &'static Python,
}

/// Python with what the example imports.
#[derive(Debug)]
pub(crate) struct Python {
    /// The interpreter of a virtual environment with gRPC.
    pub(crate) program: PathBuf,
    /// Where the generated modules are.
    pub(crate) protos: PathBuf,
}

/// Where the example is.
pub(crate) fn script() -> PathBuf {
    repository::root().join("examples/python/ownership.py")
}

/// Where the generic client is.
pub(crate) fn generic() -> PathBuf {
    script().with_file_name("generic.py")
}

/// A cluster and a Python; `None`, and a word about it, where one of them cannot be had.
pub(crate) fn bench() -> Result<Option<Bench>> {
    let Some(python) = python()? else { return Ok(None) };
    Ok(cluster(Profile::Default)?.map(|cluster| Bench { cluster, python }))
}

/// Installs gRPC once for all runs, below `target`; later runs need no network.
fn python() -> Result<Option<&'static Python>> {
    static READY: OnceLock<Result<Python, String>> = OnceLock::new();
    match READY.get_or_init(|| prepare().map_err(|error| format!("{error:#}"))) {
        Ok(python) => Ok(Some(python)),
        Err(why) if env::var_os("VIPD_TEST_REQUIRE_PYTHON").is_some() => {
            bail!("VIPD_TEST_REQUIRE_PYTHON is set, and Python with gRPC cannot be had: {why}")
        }
        Err(why) => {
            // Past the harness, which keeps what a test prints that passes. On a line of its own, beside the harness's name of
            // the test, so that it can be counted.
            let why = why.lines().last().unwrap_or_default();
            let line =
                format!("\nSKIPPED: the examples in Python were not tried, for want of Python with gRPC: {why}\n");
            io::stderr().write_all(line.as_bytes())?;
            Ok(None)
        }
    }
}

fn prepare() -> Result<Python> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("example-python");
    let (venv, protos, stamp) = (dir.join("venv"), dir.join("protos"), dir.join("installed"));
    let example = script();
    let requirements = example.with_file_name("requirements.txt");
    let wanted = fs::read_to_string(&requirements)?;
    let program = venv.join("bin/python");
    if fs::read_to_string(&stamp).ok().as_ref() != Some(&wanted) {
        let _ = fs::remove_file(&stamp);
        finish(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        let mut pip = Command::new(&program);
        pip.args(["-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--requirement"]);
        finish(pip.arg(&requirements))?;
        fs::write(&stamp, &wanted)?;
    }
    // As the example says, from nothing: modules that are left over would hide that one is missing.
    if protos.exists() {
        fs::remove_dir_all(&protos)?;
    }
    fs::create_dir_all(&protos)?;
    let mut protoc = Command::new(&program);
    protoc.args(["-m", "grpc_tools.protoc", "-I", "proto"]).current_dir(repository::root());
    for option in ["--python_out", "--pyi_out", "--grpc_python_out"] {
        protoc.arg(format!("{option}={}", protos.display()));
    }
    for entry in fs::read_dir(repository::root().join("proto/vip/v1"))? {
        protoc.arg(Path::new("proto/vip/v1").join(entry?.file_name()));
    }
    finish(&mut protoc)?;
    Ok(Python { program, protos })
}

/// Runs a command to its end; an error with what it said unless it succeeds.
fn finish(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}: {}{}", output.status, out.trim(), err.trim());
    Ok(())
}

impl Bench {
    /// The API's address of a node.
    pub(crate) fn endpoint(host: HostId) -> String {
        format!("{}:7401", host.ipv4())
    }

    /// The example with these endpoints, on the client's host.
    pub(crate) fn command(&self, endpoints: &[String], args: &[&str]) -> Command {
        let mut command = self.cluster.lab.client().command();
        command.arg(&self.python.program).arg(script()).env("PYTHONPATH", &self.python.protos);
        command.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null());
        for endpoint in endpoints {
            command.args(["--endpoint", endpoint]);
        }
        command.args(args);
        command
    }

    /// What the example prints when it is done.
    pub(crate) fn run(&self, endpoints: &[String], args: &[&str]) -> Result<String> {
        let output = self.command(endpoints, args).output().context("start the example")?;
        let (out, err) = texts(&output);
        ensure!(output.status.success() && err.is_empty(), "{args:?}: {}: {err}{out}", output.status);
        Ok(out)
    }

    /// The JSON that the example prints.
    pub(crate) fn json(&self, endpoints: &[String], args: &[&str]) -> Result<Value> {
        let out = self.run(endpoints, &[&["--json"], args].concat())?;
        serde_json::from_str(&out).with_context(|| format!("{args:?} prints {out:?}"))
    }

    /// With which code the example fails, and the one line that it says.
    pub(crate) fn failure(&self, endpoints: &[String], args: &[&str]) -> Result<(Option<i32>, String)> {
        let output = self.command(endpoints, args).output().context("start the example")?;
        let (out, err) = texts(&output);
        ensure!(out.is_empty() && err.lines().count() == 1, "{args:?} prints {out:?}, and on standard error {err:?}");
        Ok((output.status.code(), err.trim().to_owned()))
    }
}

fn texts(output: &Output) -> (String, String) {
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The id by which the cluster knows a host.
pub(crate) fn number(host: HostId) -> u64 {
    match host {
        HostId::Node(n) => n.into(),
        other => panic!("{other} is no node"),
    }
}
