//! Treats any bytes as requests, in one piece and byte by byte: the verdict is the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_egress::http::StrictChecker;

fuzz_target!(|bytes: &[u8]| {
    let whole = StrictChecker::default().feed(bytes);
    let mut strict = StrictChecker::default();
    let split = bytes.chunks(1).try_for_each(|byte| strict.feed(byte));
    assert_eq!(whole, split);
});
