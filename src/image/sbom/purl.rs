//! Package URLs, by which scanners identify packages (<https://github.com/package-url/purl-spec>).

/// Returns `pkg:KIND/PATH@VERSION?QUALIFIERS`. The components of `path`, separated by slashes, and
/// all other parts are encoded here; `qualifiers` must be sorted by key.
pub(super) fn purl(
    kind: &str,
    path: &str,
    version: Option<&str>,
    qualifiers: &[(&str, &str)],
) -> String {
    let path: Vec<String> = path.split('/').map(encoded).collect();
    let version = version.map(|version| format!("@{}", encoded(version))).unwrap_or_default();
    let pairs: Vec<String> =
        qualifiers.iter().map(|(key, value)| format!("{key}={}", encoded(value))).collect();
    let mark = if pairs.is_empty() { "" } else { "?" };
    format!("pkg:{kind}/{}{version}{mark}{}", path.join("/"), pairs.join("&"))
}

/// Percent-encodes all characters that are not literal in package URLs.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_of_urls_are_encoded() {
        let qualifiers = [("arch", "amd64"), ("upstream", "gcc@14/x&y")];
        assert_eq!(
            purl("deb", "debian/libstdc++6", Some("1:14.2.0-19+b1~x"), &qualifiers),
            "pkg:deb/debian/libstdc%2B%2B6@1:14.2.0-19%2Bb1~x?arch=amd64&upstream=gcc%4014%2Fx%26y",
        );
        assert_eq!(purl("cargo", "nix", None, &[]), "pkg:cargo/nix");
    }
}
