//! `docs/api.md`: it names everything that is in the protocol, and what it shows is what the programs print.
//!
//! A block after `<!-- tried -->` is run line by line as it stands there, on the client's host of a laboratory whose
//! node 1 owns the VIPs, and compared but for numbers and spaces. `VIPD_TEST_REFRESH=1` writes what came instead.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use vip_lab::HostId;
use vip_tests::repository::{root, text_files};
use vip_tests::{TestResult, programs};

use crate::python::{Bench, bench, generic, script};

const MARK: &str = "<!-- tried -->";
const INDENT: &str = "    ";
const PROMPT: &str = "    $ ";

fn document() -> PathBuf {
    root().join("docs/api.md")
}

/// Digits as one `#`, spaces as one, so that times, revisions and the widths of columns do not count.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for c in text.trim().chars() {
        let c = if c.is_ascii_digit() { '#' } else { c };
        if !("# ".contains(c) && shape.ends_with(c)) {
            shape.push(c);
        }
    }
    shape
}

/// The document with the outputs that `run` gives for its commands, and the commands whose output was another.
fn retried(text: &str, mut run: impl FnMut(&str) -> Result<String>) -> Result<(String, Vec<String>)> {
    let (mut new, mut wrong) = (String::new(), Vec::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        writeln!(new, "{line}")?;
        if line != MARK {
            continue;
        }
        writeln!(new)?;
        let mut block = Vec::new();
        while let Some(line) = lines.next_if(|line| line.is_empty() || line.starts_with(INDENT)) {
            block.push(line);
        }
        for (command, shown) in examples(&block) {
            let printed = run(command)?;
            // Lines without anything in them are lost at the ends of a block.
            let full = |line: &&str| !line.trim().is_empty();
            if !printed.lines().filter(full).map(shape).eq(shown.iter().copied().filter(full).map(shape)) {
                wrong.push(format!("$ {command}\nis shown with\n{}\nand prints\n{printed}", shown.join("\n")));
            }
            writeln!(new, "{PROMPT}{command}")?;
            printed.lines().try_for_each(|line| writeln!(new, "{}", format!("{INDENT}{line}").trim_end()))?;
        }
        writeln!(new)?;
    }
    Ok((new, wrong))
}

/// The commands of a block, each with the lines that are shown as its output.
fn examples<'a>(block: &[&'a str]) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut examples = Vec::<(&str, Vec<&str>)>::new();
    for line in block {
        match (line.strip_prefix(PROMPT), examples.last_mut()) {
            (Some(command), _) => examples.push((command, Vec::new())),
            (None, Some((_, shown))) => shown.push(line),
            (None, None) => {}
        }
    }
    examples
}

/// A cluster whose first node is the owner, as in the document.
fn bench_of_the_document() -> Result<Option<Bench>> {
    for _ in 0..5 {
        match bench()? {
            Some(bench) if bench.cluster.owner != HostId::Node(1) => {}
            found => return Ok(found),
        }
    }
    bail!("node 1 stands for election first, and yet was not the first owner in five clusters")
}

/// A directory for the path: `vipctl`, and the examples as `ownership` and `generic`.
fn commands(bench: &Bench, dir: &Path) -> TestResult {
    symlink(programs::vipctl()?, dir.join("vipctl"))?;
    let (protos, python) = (bench.python.protos.display(), bench.python.program.display());
    // What is generic gets nothing that was generated.
    let ownership = format!("PYTHONPATH='{protos}' exec '{python}' '{}'", script().display());
    let generic = format!("exec '{python}' -I '{}'", generic().display());
    for (name, call) in [("ownership", ownership), ("generic", generic)] {
        let wrapper = dir.join(name);
        fs::write(&wrapper, format!("#!/bin/sh\n{call} \"$@\"\n"))?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[test]
fn what_the_document_shows_is_what_is_printed() -> TestResult {
    let Some(bench) = bench_of_the_document()? else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    commands(&bench, dir.path())?;
    let path = std::env::join_paths(
        [dir.path().to_owned()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").context("PATH")?)),
    )?;
    let mut commands = 0;
    let text = fs::read_to_string(document())?;
    let (new, wrong) = retried(&text, |command| {
        commands += 1;
        let mut shell = bench.cluster.lab.client().command();
        let output = shell.args(["bash", "-c", &format!("exec 2>&1; {command}")]).env("PATH", &path).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    })?;
    ensure!(commands >= 5, "only {commands} commands are tried in {}", document().display());
    if std::env::var_os("VIPD_TEST_REFRESH").is_some() {
        fs::write(document(), new)?;
        return Ok(());
    }
    assert!(wrong.is_empty(), "docs/api.md (VIPD_TEST_REFRESH=1 corrects it):\n{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn the_document_names_everything_in_the_protocol() -> TestResult {
    let text = fs::read_to_string(document())?;
    let mut missing = Vec::new();
    let mut names = 0;
    for file in text_files()?.iter().filter(|file| file.is("proto") && file.path.starts_with("proto/vip/v1")) {
        for (_, line) in file.lines() {
            let code = line.split("//").next().unwrap_or_default().trim();
            let name = match code.split_once(" = ") {
                // A field or a value.
                Some((left, right)) if right.starts_with(|c: char| c.is_ascii_digit()) => {
                    left.split_whitespace().last()
                }
                Some(_) => None,
                None => ["rpc ", "service ", "message ", "enum "].iter().find_map(|word| code.strip_prefix(word)),
            };
            let Some(name) = name else { continue };
            let name = name.split(['(', ' ']).next().unwrap_or_default();
            names += 1;
            // As a whole word: `name` would be found in every other sentence.
            let mut words = text
                .split('`')
                .skip(1)
                .step_by(2)
                .flat_map(|code| code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
            if !words.any(|word| word == name) {
                missing.push(format!("{}: {name}", file.path.display()));
            }
        }
    }
    assert!(names > 80, "only {names} names were found in the protocol");
    assert!(missing.is_empty(), "docs/api.md does not name\n{}", missing.join("\n"));
    Ok(())
}

#[test]
fn a_shape_is_free_of_numbers_and_widths() {
    assert_eq!(shape("  web4  10.77.0.100/32   epoch 3 "), shape("web4 1.2.3.4/8 epoch 112"));
    assert_ne!(shape("owner n1"), shape("owner -"));
    let text = format!("a\n{MARK}\n\n{PROMPT}x\n{INDENT}left 12 ms\n\n{INDENT}z\n{PROMPT}y\n\nb\n{PROMPT}not tried\n");
    let (new, wrong) = retried(&text, |command| Ok(format!("left 7 ms\n\n{}\n", command.replace('x', "z")))).unwrap();
    let x = format!("{PROMPT}x\n{INDENT}left 7 ms\n\n{INDENT}z\n");
    let y = format!("{PROMPT}y\n{INDENT}left 7 ms\n\n{INDENT}y\n");
    assert_eq!(new, format!("a\n{MARK}\n\n{x}{y}\nb\n{PROMPT}not tried\n"));
    assert_eq!(wrong.len(), 1, "{wrong:?}");
}
