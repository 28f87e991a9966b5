#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| prism_fuzz::token::run(input));
