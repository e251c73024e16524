//! vipctl
fn main() {}
