//! Treats any bytes as a client's first bytes, in one piece and byte by byte: both give the same
//! result.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_egress::opening::{ClientOpening, OpeningReader};

fn find<'a>(mut pieces: impl Iterator<Item = &'a [u8]>) -> Option<ClientOpening> {
    let mut reader = OpeningReader::new();
    pieces.find_map(|piece| reader.feed(piece))
}

fuzz_target!(|bytes: &[u8]| {
    let whole = find(std::iter::once(bytes));
    let split = find(bytes.chunks(1));
    // In pieces a hello may be complete before a later error arrives; if both find a name, it must
    // be the same.
    if let (Some(ClientOpening::Tls(one)), Some(ClientOpening::Tls(other))) = (whole, split) {
        assert_eq!(one, other);
    }
});
