//! A store whose records are anything: refused, or such that it can be worked with.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| vip_raft::fuzzing::records(text));
