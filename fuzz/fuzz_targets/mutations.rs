//! Real manifests, changed as the bytes say.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| palisade_fuzz::mutations(data));
