//! Any bytes as a runner's output, in one piece and byte by byte: the marks are the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly::shepherd::runner::Marks;

fuzz_target!(|bytes: &[u8]| {
    let whole = Marks::default().read(bytes);
    let mut marks = Marks::default();
    let split: Vec<_> = bytes.chunks(1).flat_map(|byte| marks.read(byte)).collect();
    assert_eq!(whole, split);
});
