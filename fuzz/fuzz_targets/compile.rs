//! The compiler against the reference evaluator, on a cluster made of the bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| palisade_fuzz::compile(data));
