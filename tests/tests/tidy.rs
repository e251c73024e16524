//! The rules of the repository that no compiler checks. Each test is one rule, with its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};
use toml::{Table, Value};
use vip_core::KillPoint;
use vip_tests::TestResult;
use vip_tests::repository::{TextFile, root, text_files};

/// This file names what it forbids.
const SELF: &str = "tests/tests/tidy.rs";

fn metadata() -> anyhow::Result<Metadata> {
    Ok(MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec()?)
}

fn read(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(root().join(path)).map_err(|error| anyhow::anyhow!("{path}: {error}"))
}

fn rust_files() -> anyhow::Result<Vec<TextFile>> {
    Ok(text_files()?.into_iter().filter(|file| file.is("rs")).collect())
}

fn assert_none(problems: &[String], rule: &str) {
    assert!(problems.is_empty(), "{rule}\n  {}", problems.join("\n  "));
}

fn is_ours(name: &str) -> bool {
    name.starts_with("vip-") || name == "vipd" || name == "vipctl"
}

/// The names of a package's dependencies, those for tests only or the others.
fn dependencies(package: &Package, for_tests: bool) -> BTreeSet<&str> {
    let of_kind = |kind| (kind == DependencyKind::Development) == for_tests;
    package.dependencies.iter().filter(|dependency| of_kind(dependency.kind)).map(|at| at.name.as_str()).collect()
}

/// Decide in vip-core, agree in vip-raft, act in vip-net, speak in vip-api, join in vipd. The laboratory and these tests
/// share no code with what they judge.
#[test]
fn crates_use_each_other_in_one_direction() -> TestResult {
    const MAY_USE: [(&str, &[&str]); 9] = [
        ("vip-core", &[]),
        ("vip-raft", &["vip-core"]),
        ("vip-net", &["vip-core"]),
        ("vip-api", &["vip-core"]),
        ("vip-client", &["vip-api", "vip-core"]),
        ("vipd", &["vip-core", "vip-raft", "vip-net", "vip-api", "vip-client"]),
        ("vipctl", &["vip-client"]),
        ("vip-lab", &["vip-client", "vip-core"]),
        ("vip-tests", &["vip-client", "vip-core", "vip-lab"]),
    ];
    /// In tests, on top of that.
    const MAY_USE_IN_TESTS: [(&str, &[&str]); 1] = [("vipctl", &["vip-api"])];
    let may_use = BTreeMap::from(MAY_USE);
    let in_tests = BTreeMap::from(MAY_USE_IN_TESTS);
    let metadata = metadata()?;
    let mut problems = Vec::new();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        let Some(&allowed) = may_use.get(name) else {
            problems.push(format!("{name} is a new crate: say here what it may use"));
            continue;
        };
        for (for_tests, more) in [(false, &[][..]), (true, in_tests.get(name).copied().unwrap_or_default())] {
            for used in dependencies(package, for_tests).into_iter().filter(|used| is_ours(used)) {
                if !allowed.contains(&used) && !more.contains(&used) {
                    problems.push(format!("{name} uses {used}"));
                }
            }
        }
    }
    assert_none(&problems, "who may use whom");
    Ok(())
}

/// What moves fast, or speaks to the kernel or the disk, is known to one crate only. Names ending in * are prefixes.
#[test]
fn a_library_that_moves_has_one_user() -> TestResult {
    const SOLE_USERS: [(&str, &[&str]); 15] = [
        ("openraft*", &["vip-raft"]),
        ("redb", &["vip-raft"]),
        ("rtnetlink", &["vip-net"]),
        ("netlink-*", &["vip-net"]),
        ("pnet*", &["vip-net"]),
        ("aya*", &["vip-net"]),
        ("axum*", &["vipd"]),
        ("askama*", &["vipd"]),
        ("prometheus-client*", &["vipd"]),
        ("sd-notify", &["vipd"]),
        ("tonic-health", &["vipd"]),
        ("tonic-reflection", &["vipd"]),
        // One builds the public protocol, the other the one between nodes.
        ("tonic-prost-build", &["vip-api", "vip-raft"]),
        ("protox", &["vip-api", "vip-raft"]),
        ("cargo_metadata", &["vip-tests"]),
    ];
    let metadata = metadata()?;
    let mut problems = Vec::new();
    for package in metadata.workspace_packages() {
        let used = dependencies(package, false).into_iter().chain(dependencies(package, true));
        for used in used.collect::<BTreeSet<_>>() {
            let fits = |pattern: &str| match pattern.strip_suffix('*') {
                Some(prefix) => used.starts_with(prefix),
                None => used == pattern,
            };
            let rule = SOLE_USERS.iter().find(|(pattern, _)| fits(pattern));
            if rule.is_some_and(|(_, users)| !users.contains(&package.name.as_str())) {
                problems.push(format!("{} uses {used}", package.name));
            }
        }
    }
    for file in text_files()?.iter().filter(|file| file.path.ends_with("build.rs")) {
        if file.text.contains("vip/v1/") && !file.path.starts_with("crates/vip-api") {
            problems.push(format!("{} builds the public protocol", file.path.display()));
        }
    }
    assert_none(&problems, "one user for each of these");
    Ok(())
}

/// The core has no clock, no socket, no file and no thread: time and everything else come in as arguments, so that a
/// simulation can stand in for the world.
#[test]
fn the_core_is_pure() -> TestResult {
    const WORDS: [&str; 10] = [
        "std::time::Instant",
        "SystemTime",
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "std::thread",
        "std::process",
        "std::env",
        "Mutex",
        "HashMap",
    ];
    let metadata = metadata()?;
    let core = metadata.packages.iter().find(|package| package.name.as_str() == "vip-core").expect("vip-core");
    let used = dependencies(core, false);
    assert_eq!(used, BTreeSet::from(["ipnet", "serde", "thiserror"]), "the dependencies of vip-core");
    let mut problems = Vec::new();
    for file in rust_files()?.iter().filter(|file| file.path.starts_with("crates/vip-core/src")) {
        if file.path.iter().any(|part| part == "tests" || part == "tests.rs") {
            continue;
        }
        for (number, line) in file.lines().take_while(|(_, line)| !line.starts_with("#[cfg(test)]")) {
            let code = line.split("//").next().unwrap_or_default();
            for word in WORDS.iter().filter(|word| code.contains(**word)) {
                problems.push(format!("{}:{number}: {word}", file.path.display()));
            }
        }
    }
    assert_none(&problems, "nothing of the world in vip-core (a HashMap has a random order)");
    Ok(())
}

/// One version, one edition, one set of lints, and each version of a dependency written once.
#[test]
fn manifests_inherit_from_the_workspace() -> TestResult {
    let mut problems = Vec::new();
    for package in metadata()?.workspace_packages() {
        let manifest: Table = std::fs::read_to_string(&package.manifest_path)?.parse()?;
        let mut problem = |text: String| problems.push(format!("{}: {text}", package.name));
        let folder = package.manifest_path.parent().and_then(|path| path.file_name());
        if folder != Some(package.name.as_str()) && folder != Some("tests") {
            problem(format!("its folder is {folder:?}"));
        }
        let inherited = |value: Option<&Value>| value.and_then(|value| value.get("workspace")).is_some();
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            if !inherited(manifest["package"].get(key)) {
                problem(format!("{key} is not inherited"));
            }
        }
        if manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(Value::as_bool) != Some(true) {
            problem("lints are not inherited".to_owned());
        }
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let entries = manifest.get(section).and_then(Value::as_table);
            for (name, entry) in entries.into_iter().flatten() {
                if !inherited(Some(entry)) {
                    problem(format!("the version of {name} does not stand in the workspace's manifest"));
                }
            }
        }
    }
    assert_none(&problems, "every crate inherits");
    Ok(())
}

/// Unmaintained, or with a better successor; a new one of these comes in by accident only.
#[test]
fn no_crate_is_used_that_nobody_should_use() -> TestResult {
    const FORBIDDEN: [&str; 12] = [
        "backoff",
        "bincode",
        "chrono",
        "failure",
        "humantime",
        "humantime-serde",
        "instant",
        "lazy_static",
        "pickledb",
        "rustls-pemfile",
        "sled",
        "structopt",
    ];
    /// What others bring along, and who. Nothing of it may be a direct dependency all the same.
    const BROUGHT_ALONG: [(&str, &str); 2] =
        [("chrono", "openraft, for times in its messages"), ("lazy_static", "sharded-slab of tracing-subscriber")];
    let mut problems = Vec::new();
    for package in metadata()?.workspace_packages() {
        for used in dependencies(package, false).into_iter().chain(dependencies(package, true)) {
            if FORBIDDEN.contains(&used) {
                problems.push(format!("{} uses {used}", package.name));
            }
        }
    }
    let lock: Table = read("Cargo.lock")?.parse()?;
    for package in lock["package"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("a name");
        if FORBIDDEN.contains(&name) && !BROUGHT_ALONG.iter().any(|(known, _)| *known == name) {
            problems.push(format!("Cargo.lock has {name}; `cargo tree -i {name}` tells why"));
        }
        let source = package.get("source").and_then(Value::as_str);
        if source.is_some_and(|source| source != "registry+https://github.com/rust-lang/crates.io-index") {
            problems.push(format!("Cargo.lock has {name} from {source:?}: everybody can fetch from crates.io only"));
        }
    }
    assert_none(&problems, "stay away from these");
    Ok(())
}

/// The fuzz targets are a workspace of their own; what they try must be what is shipped.
#[test]
fn the_fuzz_targets_use_the_same_versions() -> TestResult {
    let locked = |path: &str| -> anyhow::Result<BTreeSet<(String, String)>> {
        let lock: Table = read(path)?.parse()?;
        let text = |package: &Value, key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let packages = lock["package"].as_array().expect("packages").iter();
        Ok(packages.map(|package| (text(package, "name"), text(package, "version"))).collect())
    };
    let (shipped, fuzzed) = (locked("Cargo.lock")?, locked("fuzz/Cargo.lock")?);
    let known: BTreeSet<&str> = shipped.iter().map(|(name, _)| name.as_str()).collect();
    let other = fuzzed.iter().filter(|locked| known.contains(locked.0.as_str()) && !shipped.contains(*locked));
    let problems: Vec<_> = other.map(|(name, version)| format!("fuzz/Cargo.lock has {name} {version}")).collect();
    assert_none(&problems, "the versions of Cargo.lock; fuzz/README.md says how");
    Ok(())
}

/// openraft's interface and behaviour change between alphas, and the lease rests on what was read in this one.
#[test]
fn openraft_is_pinned() -> TestResult {
    let manifest: Table = read("Cargo.toml")?.parse()?;
    let all = manifest["workspace"]["dependencies"].as_table().expect("dependencies");
    let pinned: Vec<_> = all.iter().filter(|(name, _)| name.starts_with("openraft")).collect();
    assert!(!pinned.is_empty(), "openraft is gone?");
    for (name, entry) in pinned {
        let version = entry.get("version").unwrap_or(entry).as_str();
        assert!(version.is_some_and(|version| version.starts_with('=')), "{name} = {entry}: pin it with =");
    }
    Ok(())
}

/// A file that fits into a head. When one grows beyond, it has two subjects.
#[test]
fn files_are_short() -> TestResult {
    const MOST: usize = 850;
    const MEDIAN: usize = 250;
    let mut lengths = Vec::new();
    let mut problems = Vec::new();
    for file in rust_files()? {
        let lines = file.text.lines().count();
        lengths.push(lines);
        if lines > MOST {
            problems.push(format!("{}: {lines} lines, more than {MOST}", file.path.display()));
        }
    }
    lengths.sort_unstable();
    let median = lengths[lengths.len() / 2];
    assert!(median <= MEDIAN, "the median file has {median} lines, more than {MEDIAN}");
    assert_none(&problems, "files are short");
    Ok(())
}

/// What is not done is in the changelog's list of limits or in an issue, not in the code.
#[test]
fn nothing_is_left_for_later() -> TestResult {
    const MARKERS: [&str; 7] = ["TODO", "FIXME", "XXX", "HACK", "dbg!(", "todo!(", "unimplemented!("];
    let mut problems = Vec::new();
    for file in text_files()?.iter().filter(|file| file.path != Path::new(SELF) && !file.path.ends_with("Cargo.lock")) {
        for (number, line) in file.lines() {
            for marker in MARKERS.iter().filter(|marker| line.contains(**marker)) {
                problems.push(format!("{}:{number}: {marker}", file.path.display()));
            }
        }
    }
    assert_none(&problems, "no markers");
    Ok(())
}

/// A lint is switched off where there is a reason to, and the reason stands beside it.
#[test]
fn an_allowed_lint_says_why() -> TestResult {
    let mut problems = Vec::new();
    for file in rust_files()?.iter().filter(|file| file.path != Path::new(SELF)) {
        let lines: Vec<&str> = file.text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let start = line.trim_start();
            if !["#[allow(", "#![allow(", "#[expect(", "#![expect("]
                .iter()
                .any(|attribute| start.starts_with(attribute))
            {
                continue;
            }
            let end =
                lines[i..].iter().position(|line| line.trim_end().ends_with(']') || line.contains(")] ")).unwrap_or(0);
            let attribute = lines[i..=i + end].join("\n");
            let before = i.checked_sub(1).map_or("", |before| lines[before].trim_start());
            let why_above = before.starts_with("//") || before.starts_with("#![allow(");
            if !attribute.contains("reason =") && !attribute.contains("//") && !why_above {
                problems.push(format!("{}:{}: {start}", file.path.display(), i + 1));
            }
        }
    }
    assert_none(&problems, "say why, by reason = \"...\" or a comment");
    Ok(())
}

/// What is written here is true on every machine.
#[test]
fn no_machine_is_named() -> TestResult {
    const WORDS: [&str; 7] =
        ["/root/", "/home/", "/Users/", "replace-with", "[source.", "CARGO_REGISTRIES_", "sparse+http"];
    let mut problems = Vec::new();
    for file in text_files()?.iter().filter(|file| file.path != Path::new(SELF)) {
        for (number, line) in file.lines() {
            for word in WORDS.iter().filter(|word| line.contains(**word)) {
                problems.push(format!("{}:{number}: {word}", file.path.display()));
            }
        }
    }
    assert_none(&problems, "no paths of a machine, no private registries");
    Ok(())
}

/// A reader can follow every pointer.
#[test]
fn documents_that_are_mentioned_exist() -> TestResult {
    /// Documents of others.
    const ELSEWHERE: [&str; 1] = ["design.md"];
    let files = text_files()?;
    let known: BTreeSet<&str> = files.iter().filter_map(|file| file.path.file_name()?.to_str()).collect();
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.path != Path::new(SELF)) {
        for (number, line) in file.lines() {
            let words = line.split(|c: char| !c.is_ascii_alphanumeric() && !"._-/:".contains(c));
            for word in words.filter(|word| !word.contains("://")) {
                let word = word.trim_end_matches(['.', ':']);
                let name = word.rsplit('/').next().unwrap_or_default();
                let is_document = name.strip_suffix(".md").is_some_and(|stem| !stem.is_empty());
                if is_document && !known.contains(name) && !ELSEWHERE.contains(&name) {
                    problems.push(format!("{}:{number}: {word}", file.path.display()));
                }
            }
        }
    }
    assert_none(&problems, "every document that is mentioned is there");
    Ok(())
}

/// Whoever comes to the repository finds what it is, how it is built, and what changed.
#[test]
fn the_documents_are_there() -> TestResult {
    let mut problems = Vec::new();
    for (name, must_say) in [("README.md", "make demo"), ("ARCHITECTURE.md", "vip-core"), ("CHANGELOG.md", "0.1.0")] {
        match read(name) {
            Ok(text) if text.contains(must_say) => {}
            Ok(_) => problems.push(format!("{name} does not say {must_say:?}")),
            Err(error) => problems.push(format!("{error:#}")),
        }
    }
    assert_none(&problems, "the documents are there");
    Ok(())
}

/// The public protocol is read by people who write clients in other languages: each thing in it says what it is.
#[test]
fn the_public_protocol_is_commented() -> TestResult {
    const DEFINITIONS: [&str; 5] = ["message ", "enum ", "service ", "rpc ", "oneof "];
    let mut problems = Vec::new();
    let mut checked = 0;
    for file in text_files()?.iter().filter(|file| file.is("proto") && file.path.starts_with("proto/vip/v1")) {
        let mut before = "";
        for (number, line) in file.lines() {
            let line = line.trim();
            let field = line.split_once(" = ").is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()));
            if field || DEFINITIONS.iter().any(|word| line.starts_with(word)) {
                checked += 1;
                if !before.starts_with("//") && !line.contains("//") {
                    problems.push(format!("{}:{number}: {line}", file.path.display()));
                }
            }
            before = line;
        }
    }
    assert!(checked > 50, "only {checked} definitions were found");
    assert_none(&problems, "every definition has a comment");
    Ok(())
}

/// `make test` picks files of tests by name: one that it does not name would never run.
#[test]
fn every_file_of_tests_runs() -> TestResult {
    let makefile = read("Makefile")?;
    let named: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| line.starts_with("TESTS") && line.contains(" := "))
        .flat_map(|line| line.split_whitespace().skip(2))
        .collect();
    let mut found = BTreeSet::new();
    let metadata = metadata()?;
    for package in metadata.workspace_packages() {
        found.extend(package.targets.iter().filter(|target| target.is_test()).map(|target| target.name.as_str()));
    }
    assert_eq!(named, found, "left: the Makefile's variables TESTS…, right: what there is");
    Ok(())
}

/// vip-core lets the simulation take rules out, by a feature. Nothing that is shipped may be built with it: the simulation
/// is a workspace of its own, so that cargo cannot unify the feature into another build.
#[test]
fn no_rule_can_be_taken_out_of_what_is_shipped() -> TestResult {
    const FEATURE: &str = "removable-rules";
    let metadata = metadata()?;
    let mut problems = Vec::new();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        for dependency in package.dependencies.iter().filter(|at| at.features.iter().any(|on| on.ends_with(FEATURE))) {
            problems.push(format!("{name} uses {} with {FEATURE}", dependency.name));
        }
        for (feature, others) in &package.features {
            if others.iter().any(|on| on.ends_with(FEATURE)) {
                problems.push(format!("the feature {feature} of {name} switches {FEATURE} on"));
            }
        }
    }
    let core = metadata.packages.iter().find(|package| package.name.as_str() == "vip-core").expect("vip-core");
    assert!(core.features.contains_key(FEATURE), "the feature is called otherwise by now: say so here");
    let simulation: Table = read("tests/simulation/Cargo.toml")?.parse()?;
    if !simulation.contains_key("workspace") {
        problems.push("tests/simulation is no workspace of its own".to_owned());
    }
    let workspace: Table = read("Cargo.toml")?.parse()?;
    for (name, entry) in simulation["dependencies"].as_table().expect("dependencies") {
        let here = entry.get("version").and_then(Value::as_str);
        let there = &workspace["workspace"]["dependencies"][name.as_str()];
        if here.is_some() && here != there.get("version").unwrap_or(there).as_str() {
            problems.push(format!("tests/simulation has {name} {here:?}, the workspace {there}"));
        }
    }
    if read("Makefile")?.contains(FEATURE) {
        problems.push(format!("the Makefile names {FEATURE}"));
    }
    assert_none(&problems, "rules can be taken out in the simulation only");
    Ok(())
}

/// The points at which a daemon can be killed are there for these tests. What is shipped is built without the tests, by
/// packages that do not know of the feature.
#[test]
fn nothing_that_is_shipped_has_kill_points() -> TestResult {
    const FEATURE: &str = "kill-points";
    let metadata = metadata()?;
    let mut problems = Vec::new();
    let mut enabled_here = false;
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        for dependency in package.dependencies.iter().filter(|at| at.features.iter().any(|on| on.ends_with(FEATURE))) {
            // A dependency that is for tests only counts where tests are built.
            if name == "vip-tests" && dependency.kind == DependencyKind::Development {
                enabled_here = true;
            } else {
                problems.push(format!("{name} uses {} with {FEATURE}", dependency.name));
            }
        }
        for (feature, others) in &package.features {
            if others.iter().any(|on| on.ends_with(FEATURE)) {
                problems.push(format!("the feature {feature} of {name} switches {FEATURE} on"));
            }
        }
    }
    let core = metadata.packages.iter().find(|package| package.name.as_str() == "vip-core").expect("vip-core");
    assert!(core.features.contains_key(FEATURE), "the feature is called otherwise by now: say so here");
    assert!(enabled_here, "the tests of the whole do not switch {FEATURE} on");
    for builder in ["Makefile", "packaging/build-deb"] {
        for (number, line) in read(builder)?.lines().enumerate() {
            let builds = line.contains("build --release");
            if line.contains(FEATURE) || builds && (!line.contains("-p vipd") || line.contains("-p vip-tests")) {
                problems.push(format!("{builder}:{}: {line}", number + 1));
            }
        }
    }
    assert_none(&problems, "kill points are in test builds only");
    Ok(())
}

/// A kill point that stands nowhere would be in the list of what is tried, and try nothing.
#[test]
fn every_kill_point_stands_in_the_code() -> TestResult {
    let files = rust_files()?;
    let sites = |point: &KillPoint| -> usize {
        let call = format!("KillPoint::{point:?}.reach()");
        let of_crates = files.iter().filter(|file| file.path.starts_with("crates"));
        of_crates.map(|file| file.text.matches(&call).count()).sum()
    };
    let counts = KillPoint::ALL.iter().map(|point| (point, sites(point))).filter(|(_, sites)| *sites != 1);
    let problems: Vec<_> = counts.map(|(point, sites)| format!("{}: {sites} places", point.name())).collect();
    assert_none(&problems, "each kill point stands in one place");
    Ok(())
}
