//! What a peer sends, of any kind (the first byte says which): admitted only if it fits, converted or refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vip_raft::fuzzing::peer_message(bytes));
