#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rspp_tests::fuzz::wav_file(bytes));
