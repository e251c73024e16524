//! A store file that was damaged: refused, or nothing of it is missing.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use vip_raft::fuzzing::StoreFiles;

static FILES: LazyLock<(StoreFiles, TempDir)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory for the store");
    (StoreFiles::make(dir.path()), dir)
});

fuzz_target!(
    init: {
        expect_panics_of_redb();
        LazyLock::force(&FILES);
    },
    |recipe: &[u8]| FILES.0.damage(recipe)
);

/// The store takes redb's panics on what it believes impossible for damage. libFuzzer's hook would end the process.
fn expect_panics_of_redb() {
    let abort = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|location| location.file().contains("/redb-")) {
            abort(panic);
        }
    }));
}
