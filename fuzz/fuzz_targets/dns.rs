//! Any bytes as a DNS message: an answer is a message, and gives no address to a refused name.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mayfly::egress::dns::message::answer;
use mayfly::egress::names::Names;
use mayfly::egress::policy::Policy;
use mayfly::egress::verdict::Verdict;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let draft = toml::from_str("allow = [{ host = \"*.example\" }]").unwrap();
    Policy::check(Path::new("fuzz"), "ci", &draft).unwrap()
});

fuzz_target!(|bytes: &[u8]| {
    let Some(answer) = answer(bytes, &POLICY, &mut Names::default()) else { return };
    // The number of answers is in the seventh and eighth byte of the header.
    let answers = u16::from_be_bytes([answer.bytes[6], answer.bytes[7]]);
    assert!(answers == 0 || answer.verdict == Verdict::Allowed);
});
