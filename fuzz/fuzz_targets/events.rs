//! A table that follows events against the table from scratch, on events made of the bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| palisade_fuzz::events(data));
