//! Writes the manual pages and completions of vipd; `packaging/build-deb` runs it.

#[allow(dead_code, reason = "only the command line is asked for, not what it was given")]
#[path = "../src/args.rs"]
mod args;
#[path = "../../../packaging/manual.rs"]
mod manual;

fn main() -> std::io::Result<()> {
    manual::main(<args::Args as clap::CommandFactory>::command(), "8")
}
