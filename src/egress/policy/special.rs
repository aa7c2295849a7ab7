//! Names that the public DNS never has, and what that means for a policy.
//!
//! A name service of this host, or a parent proxy, may well know such a name: as its own loopback,
//! as a machine of its network, as a cloud's metadata service. So a mode that allows any public
//! name doesn't allow these.

use crate::egress::host::HostName;

/// Why a name is not public.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    /// It means whoever resolves it, a cloud's metadata service, or nothing at all: no rule makes
    /// it reachable, only `resolve` says where it is.
    Never,
    /// It belongs to a network of somebody's own: a rule that names it, or `allow_private`, allows
    /// it.
    Private,
}

/// Ends of names that never lead outside: RFC 6761 (`localhost`, `invalid`), RFC 7686 (`onion`),
/// what resolvers call the host itself, and services of clouds and container engines that answer
/// whoever asks from the host.
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

/// Ends of names of networks of one's own: RFC 6761 (`test`), RFC 6762 with its appendix G, RFC
/// 8375 (`home.arpa`), RFC 9476 (`alt`), ICANN's `internal`, and what routers and directories use
/// without asking.
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

/// Whether a name is special, and how. A name without a dot is never public.
pub fn special(name: &HostName) -> Option<Special> {
    let name = name.as_str();
    let below = |ends: &[&str]| {
        ends.iter().any(|end| {
            name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    };
    if below(NEVER) {
        return Some(Special::Never);
    }
    (below(PRIVATE) || !name.contains('.')).then_some(Special::Private)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_its_kind() {
        for (name, kind) in [
            ("localhost", Some(Special::Never)),
            ("LOCALHOST.", Some(Special::Never)),
            ("a.localhost", Some(Special::Never)),
            ("localhost.localdomain", Some(Special::Never)),
            ("ip6-loopback", Some(Special::Never)),
            ("no-such-name.invalid", Some(Special::Never)),
            ("invalid", Some(Special::Never)),
            ("abc.onion", Some(Special::Never)),
            ("metadata", Some(Special::Never)),
            ("metadata.google.internal", Some(Special::Never)),
            ("x.metadata.google.internal", Some(Special::Never)),
            ("instance-data.ec2.internal", Some(Special::Never)),
            ("host.docker.internal", Some(Special::Never)),
            ("host.containers.internal", Some(Special::Never)),
            ("web.test", Some(Special::Private)),
            ("printer.local", Some(Special::Private)),
            ("router.home.arpa", Some(Special::Private)),
            ("db.internal", Some(Special::Private)),
            ("ip-10-0-0-1.ec2.internal", Some(Special::Private)),
            ("nas.lan", Some(Special::Private)),
            ("wiki.corp", Some(Special::Private)),
            ("db", Some(Special::Private)),
            ("com", Some(Special::Private)),
            ("1.0.0.127.in-addr.arpa", Some(Special::Private)),
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
            assert_eq!(special(&HostName::parse(name).unwrap()), kind, "{name}");
        }
    }
}
