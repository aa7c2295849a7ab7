//! Any first bytes, in one piece and byte by byte: what they are found to be is the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly::egress::opening::{Opening, Watcher};

fn find<'a>(mut pieces: impl Iterator<Item = &'a [u8]>) -> Option<Opening> {
    let mut watcher = Watcher::new();
    pieces.find_map(|piece| watcher.feed(piece))
}

fuzz_target!(|bytes: &[u8]| {
    let whole = find(std::iter::once(bytes));
    let split = find(bytes.chunks(1));
    // In pieces a hello may be whole before what spoils it has come; a name that is found in both
    // must be the same.
    if let (Some(Opening::Tls(one)), Some(Opening::Tls(other))) = (whole, split) {
        assert_eq!(one, other);
    }
});
