//! Treats any text as a pattern and a host: both survive a round trip, and a match agrees with a
//! comparison of suffixes, or of the parts around the digits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_egress::host::Host;
use mayfly_egress::policy::Pattern;

fuzz_target!(|text: (&str, &str)| {
    let (Ok(pattern), Ok(host)) = (Pattern::parse(text.0), Host::parse(text.1)) else { return };
    assert_eq!(Pattern::parse(&pattern.to_string()).as_ref(), Ok(&pattern));
    assert_eq!(Host::parse(&host.to_string()).as_ref(), Ok(&host));
    if let Some(name) = host.name() {
        assert_eq!(pattern.matches(name), expected(&pattern, name.as_str()));
    }
});

fn expected(pattern: &Pattern, name: &str) -> bool {
    let text = pattern.to_string();
    if let Some(suffix) = text.strip_prefix("*.") {
        return name.ends_with(&format!(".{suffix}"));
    }
    let Some((before, after)) = text.split_once("[0-9]*") else {
        return *pattern == Pattern::Any || text == name;
    };
    let digits = name.len().saturating_sub(before.len() + after.len());
    let mut middle = name.bytes().skip(before.len()).take(digits);
    digits > 0
        && name.starts_with(before)
        && name.ends_with(after)
        && middle.all(|byte| byte.is_ascii_digit())
}
