//! Compiles the peers' protocol with protox, so that no `protoc` is needed on the system.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../proto";
    println!("cargo::rerun-if-changed={root}/vip/raft/v1");
    let files = protox::compile(["vip/raft/v1/raft.proto"], [root])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
