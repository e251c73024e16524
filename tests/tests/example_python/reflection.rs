//! `generic.py`: the calls by reflection alone, in both of its versions, without our protocol's files.

use std::fs;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vip_lab::HostId;
use vip_tests::TestResult;

use crate::python::{Bench, bench, generic, number};

/// Runs it on the client's host, and returns its exit code with what it prints, on standard output and otherwise.
fn run(bench: &Bench, host: HostId, args: &[&str]) -> Result<(Option<i32>, String, String)> {
    let elsewhere = tempfile::tempdir()?;
    let mut command = bench.cluster.lab.client().command();
    // -I: no variables, and nothing from where it lies or runs, but what pip installed.
    command.arg(&bench.python.program).arg("-I").arg(generic()).arg(Bench::endpoint(host)).args(args);
    let output = command.current_dir(elsewhere.path()).stdin(Stdio::null()).output().context("start generic.py")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

fn answer(bench: &Bench, host: HostId, args: &[&str]) -> Result<Value> {
    let (code, out, err) = run(bench, host, args)?;
    ensure!(code == Some(0) && err.is_empty(), "{args:?}: {code:?}: {err}{out}");
    serde_json::from_str(&out).with_context(|| format!("{args:?} prints {out:?}"))
}

/// 64-bit numbers are text in protobuf's JSON.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

#[test]
fn list_and_get_need_nothing_but_reflection() -> TestResult {
    let Some(bench) = bench()? else { return Ok(()) };
    let source = fs::read_to_string(generic())?;
    ensure!(
        !source.contains("vip_pb2") && !source.contains("vip.v1 import"),
        "it uses what was generated from our files"
    );
    let owner = bench.cluster.owner;
    for version in ["v1", "v1alpha"] {
        let with = |args: &[&'static str]| [&["--reflection", version], args].concat();
        let (code, methods, err) = run(&bench, owner, &with(&[]))?;
        ensure!(code == Some(0), "{version}: {code:?}: {err}");
        for method in ["vip.v1.VipService/Watch", "vip.v1.ClusterService/Status", "grpc.health.v1.Health/Check"] {
            assert!(methods.lines().any(|line| line == method), "{version}: {method} is not in\n{methods}");
        }
        for host in [owner, bench.cluster.others(owner)[0]] {
            let listed = answer(&bench, host, &with(&["vip.v1.VipService/List"]))?;
            assert_eq!(text(&listed["header"]["nodeId"]), number(host).to_string(), "{version}: {listed}");
            let told = bench.cluster.vipctl_json(host, &["vip", "list"])?;
            let told = told["vips"].as_array().context("the VIPs")?;
            let vips = listed["vips"].as_array().context("the VIPs")?;
            assert_eq!(vips.len(), told.len(), "{version}: {listed}");
            for (vip, told) in vips.iter().zip(told) {
                assert_eq!(vip["spec"]["address"], told["address"], "{version}: {vip}");
                assert_eq!(vip["assignment"]["owner"]["name"], owner.to_string(), "{version}: {vip}");
                for key in ["epoch", "term"] {
                    assert_eq!(text(&vip["assignment"][key]), told["assignment"][key].to_string(), "{version}: {vip}");
                }
            }
            let request = "{\"name\": \"web6\", \"consistency\": \"CONSISTENCY_LOCAL\"}";
            let got = answer(&bench, host, &with(&["vip.v1.VipService/Get", request]))?;
            assert_eq!(got["vip"]["spec"], vips[1]["spec"], "{version}: {got}");
            assert_eq!(got["header"]["consistency"], "CONSISTENCY_LOCAL", "{version}: {got}");
            let lease = got["vip"]["leaseRemaining"].as_str();
            assert_eq!(lease.is_some(), host == owner, "a duration, of the holder only: {got}");
        }
    }
    Ok(())
}

#[test]
fn what_is_not_there_is_named() -> TestResult {
    let Some(bench) = bench()? else { return Ok(()) };
    for (args, says) in [
        (&["vip.v1.VipService/Rename"][..], "Rename"),
        (&["vip.v2.VipService/List"], "vip.v2.VipService"),
        (&["vip.v1.VipService/Watch"], "stream"),
        (&["vip.v1.VipService/Get", "{\"nmae\": \"web4\"}"], "nmae"),
        (&["vip.v1.VipService/Get", "{\"name\": \"nope\"}"], "NOT_FOUND"),
    ] {
        let (code, out, err) = run(&bench, bench.cluster.owner, args)?;
        assert_eq!((code, out.as_str()), (Some(1), ""), "{args:?}: {err}");
        assert!(err.contains(says) && !err.contains("Traceback"), "{args:?}: {says:?} is not in {err}");
    }
    Ok(())
}
