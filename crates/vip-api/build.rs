//! Compiles the public protocol in Rust, so that no `protoc` has to be installed.

use std::path::PathBuf;
use std::{env, error, fs};

fn main() -> Result<(), Box<dyn error::Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.join("vip/v1").display());

    let files = ["vip/v1/types.proto", "vip/v1/vip.proto", "vip/v1/cluster.proto"];
    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).include_source_info(true).open_files(files)?;

    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("vip.v1.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().emit_rerun_if_changed(false).compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
