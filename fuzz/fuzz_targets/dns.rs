//! Treats any bytes as a DNS message: the response is valid, and contains no address for a refused
//! name.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mayfly_egress::dns::message::respond;
use mayfly_egress::names::NameTable;
use mayfly_egress::policy::Policy;
use mayfly_egress::verdict::Verdict;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let draft = toml::from_str("allow = [{ host = \"*.example\" }]").unwrap();
    Policy::check(Path::new("fuzz"), "ci", &draft).unwrap()
});

fuzz_target!(|bytes: &[u8]| {
    let Some(response) = respond(bytes, &POLICY, &mut NameTable::default()) else { return };
    // Bytes 6 and 7 of the header are the number of answers.
    let answers = u16::from_be_bytes([response.bytes[6], response.bytes[7]]);
    assert!(answers == 0 || response.verdict == Verdict::Allowed);
});
