//! The program: what `make soak` prints, and that what it prints to repeat a finding does repeat it.

use std::process::{Command, Output};

fn simulate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vip-simulation")).args(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// What stands between `before` and the next space or end of line.
fn field<'a>(text: &'a str, before: &str) -> &'a str {
    let (_, after) = text.split_once(before).unwrap_or_else(|| panic!("no {before:?} in:\n{text}"));
    after.split_whitespace().next().unwrap_or("")
}

#[test]
fn a_soak_ends_with_one_line_and_takes_seeds_that_no_test_runs() {
    let soaks = [simulate(&["--seconds", "1"]), simulate(&["--seconds", "1", "--threads", "1"])];
    let mut starts = Vec::new();
    for soak in &soaks {
        let (out, said) = (text(&soak.stdout), text(&soak.stderr));
        assert!(soak.status.success(), "{out}{said}");
        let fields: Vec<_> = out.lines().flat_map(|line| line.split(' ')).map(|at| at.split_once('=')).collect();
        let names: Vec<_> = fields.iter().flatten().map(|(name, _)| *name).collect();
        assert_eq!(names, ["runs", "events", "virtual_hours", "violations"], "{out}");
        assert_eq!(out.lines().count(), 1);
        assert!(out.ends_with(" violations=0\n"));
        assert!(field(&out, "runs=").parse::<u64>().is_ok_and(|runs| runs > 0), "{out}");
        starts.push(field(&said, "--from ").parse::<u64>().expect("a seed"));
    }
    assert!(starts.iter().all(|from| *from > 1_000_000_000), "{starts:?}");
    assert_ne!(starts[0], starts[1]);
}

/// Soaks without a rule, and then twice what that says to repeat its finding.
fn assert_repeats(without: &str, says: &str) {
    let soak = simulate(&["--seconds", "60", "--without", without]);
    let (out, said) = (text(&soak.stdout), text(&soak.stderr));
    assert!(!soak.status.success(), "{out}{said}");
    assert_eq!(out.lines().count(), 1, "it ends with its line whatever is found: {out}");
    assert!(!out.ends_with(" violations=0\n"));
    let found = said.lines().find(|line| line.starts_with("FOUND at ")).expect("what was found");
    assert!(found.contains(says), "{found}");
    // Several threads may find something before all have stopped; the first has the line after it.
    let repeat = said.lines().find_map(|line| line.strip_prefix("repeat: ")).expect("how to repeat it");
    let (cargo, arguments) = repeat.split_once(" -- ").expect("arguments");
    assert_eq!(cargo, "cargo run --manifest-path tests/simulation/Cargo.toml");
    let arguments: Vec<_> = arguments.split(' ').collect();
    let again = [simulate(&arguments), simulate(&arguments)];
    for again in &again {
        assert!(!again.status.success());
        let out = text(&again.stdout);
        assert!(out.lines().any(|line| line == found), "not found again: {found}\n{out}");
        assert!(out.lines().count() > 20, "no words:\n{out}");
    }
    assert!(again[0].stdout == again[1].stdout && again[0].stderr == again[1].stderr, "two runs of one seed differ");
}

#[test]
fn a_finding_is_repeated_by_the_line_that_it_prints() {
    assert_repeats("RestartSilence", "");
}

#[test]
fn a_panic_is_a_finding_with_its_seed_and_the_soak_goes_on_to_its_end() {
    assert_repeats("NoPanic", "panics, as was asked for");
    // And further seeds are run after it.
    let soak = simulate(&["--from", "0", "--runs", "20", "--threads", "1", "--keep-going", "--without", "NoPanic"]);
    let out = text(&soak.stdout);
    assert_eq!(field(&out, "runs="), "20", "{out}");
    assert!(field(&out, "violations=").parse::<u64>().is_ok_and(|found| found > 1), "{out}");
}
