//! Parses any bytes as a runner's output, at once and byte by byte: the progress is the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_shepherd::runner::ProgressParser;

fuzz_target!(|bytes: &[u8]| {
    let whole = ProgressParser::default().read(bytes);
    let mut parser = ProgressParser::default();
    let split: Vec<_> = bytes.chunks(1).flat_map(|byte| parser.read(byte)).collect();
    assert_eq!(whole, split);
});
