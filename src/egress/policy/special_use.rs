//! Special-use names: names that the public DNS never has, and how policies treat them.
//!
//! This host's resolver or a parent proxy may know such a name: as its own loopback, as a machine
//! of its network, as a cloud's metadata service. So a mode that allows any public name does not
//! allow these.

use crate::host::HostName;

/// The kind of a special-use name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpecialUse {
    /// The resolving host itself, a cloud's metadata service, or nothing at all: no rule makes it
    /// reachable, only `resolve` sets its address.
    Never,
    /// A name in a private network: allowed by a rule that names it, or by `allow_private`.
    Private,
}

/// Suffixes of names that are never public: RFC 6761 (`localhost`, `invalid`), RFC 7686 (`onion`),
/// names of the host itself, and services of clouds and container engines that the host answers for
/// any client.
const NEVER: &[&str] = &[
    "localhost",
    "localhost.localdomain",
    "localhost4",
    "localhost6",
    "localhost4.localdomain4",
    "localhost6.localdomain6",
    "ip6-localhost",
    "ip6-loopback",
    "invalid",
    "onion",
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "metadata.azure.internal",
    "metadata.tencentyun.com",
    "instance-data",
    "instance-data.ec2.internal",
    "docker.internal",
    "containers.internal",
    "lima.internal",
];

/// Suffixes of names in private networks: RFC 6761 (`test`), RFC 6762 with its appendix G, RFC 8375
/// (`home.arpa`), RFC 9476 (`alt`), ICANN's `internal`, and suffixes that routers and directories
/// use without registration.
const PRIVATE: &[&str] = &[
    "test",
    "local",
    "home.arpa",
    "internal",
    "alt",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "mail",
    "localdomain",
    "svc.cluster",
    "ipv4only.arpa",
    "resolver.arpa",
    "in-addr.arpa",
    "ip6.arpa",
];

/// Returns the kind of a special-use name. A name without a dot is never public.
pub fn special_use(name: &HostName) -> Option<SpecialUse> {
    let name = name.as_str();
    let below = |ends: &[&str]| {
        ends.iter().any(|end| {
            name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    };
    if below(NEVER) {
        return Some(SpecialUse::Never);
    }
    (below(PRIVATE) || !name.contains('.')).then_some(SpecialUse::Private)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_its_kind() {
        for (name, kind) in [
            ("localhost", Some(SpecialUse::Never)),
            ("LOCALHOST.", Some(SpecialUse::Never)),
            ("a.localhost", Some(SpecialUse::Never)),
            ("localhost.localdomain", Some(SpecialUse::Never)),
            ("ip6-loopback", Some(SpecialUse::Never)),
            ("no-such-name.invalid", Some(SpecialUse::Never)),
            ("invalid", Some(SpecialUse::Never)),
            ("abc.onion", Some(SpecialUse::Never)),
            ("metadata", Some(SpecialUse::Never)),
            ("metadata.google.internal", Some(SpecialUse::Never)),
            ("x.metadata.google.internal", Some(SpecialUse::Never)),
            ("instance-data.ec2.internal", Some(SpecialUse::Never)),
            ("host.docker.internal", Some(SpecialUse::Never)),
            ("host.containers.internal", Some(SpecialUse::Never)),
            ("web.test", Some(SpecialUse::Private)),
            ("printer.local", Some(SpecialUse::Private)),
            ("router.home.arpa", Some(SpecialUse::Private)),
            ("db.internal", Some(SpecialUse::Private)),
            ("ip-10-0-0-1.ec2.internal", Some(SpecialUse::Private)),
            ("nas.lan", Some(SpecialUse::Private)),
            ("wiki.corp", Some(SpecialUse::Private)),
            ("db", Some(SpecialUse::Private)),
            ("com", Some(SpecialUse::Private)),
            ("1.0.0.127.in-addr.arpa", Some(SpecialUse::Private)),
            ("example.com", None),
            ("localhost.example.com", None),
            ("local.example.com", None),
            ("notlocalhost.example", None),
            ("mylocal.org", None),
            ("xinternal.net", None),
            ("internal.example.com", None),
            ("metadata.google.com", None),
            ("test.example.org", None),
            ("as112.arpa", None),
        ] {
            assert_eq!(special_use(&HostName::parse(name).unwrap()), kind, "{name}");
        }
    }
}
