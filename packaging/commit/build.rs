//! The build script of every program: which commit `--version` names.
//!
//! `VIPD_COMMIT` of the environment comes first, for builds that have neither the repository nor an archive of it, as in a
//! container. A debug build names none: otherwise each commit would compile the programs and their tests anew.

use std::path::Path;

mod commit;

fn main() {
    println!("cargo:rerun-if-env-changed=VIPD_COMMIT");
    let given = std::env::var("VIPD_COMMIT").ok().filter(|text| !text.is_empty());
    let commit = if let Some(given) = given {
        given
    } else if std::env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        "debug build".to_owned()
    } else {
        // A crate lies in `crates`, in the workspace.
        let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        let root = Path::new(&here).join("../..");
        for path in commit::watched(&root) {
            println!("cargo:rerun-if-changed={}", path.display());
        }
        commit::of(&root).unwrap_or_else(|| "unknown commit".to_owned())
    };
    println!("cargo:rustc-env=VIPD_COMMIT={commit}");
}
