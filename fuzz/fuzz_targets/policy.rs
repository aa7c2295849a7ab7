//! Any text as a pattern and a host: both read back as themselves, and a match is one by suffix.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly::egress::host::Host;
use mayfly::egress::policy::Pattern;

fuzz_target!(|text: (&str, &str)| {
    let (Ok(pattern), Ok(host)) = (Pattern::parse(text.0), Host::parse(text.1)) else { return };
    assert_eq!(Pattern::parse(&pattern.to_string()).as_ref(), Ok(&pattern));
    assert_eq!(Host::parse(&host.to_string()).as_ref(), Ok(&host));
    if let Some(name) = host.name() {
        let expected = match pattern.to_string().strip_prefix("*.") {
            Some(suffix) => name.as_str().ends_with(&format!(".{suffix}")),
            None => pattern == Pattern::Any || pattern.to_string() == name.as_str(),
        };
        assert_eq!(pattern.matches(name), expected);
    }
});
