//! From what was recorded to a policy that allows exactly that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use serde::Deserialize;

/// What learning needs of a line; other lines and keys don't matter.
#[derive(Debug, Deserialize)]
struct Line {
    event: String,
    #[serde(default)]
    via: String,
    #[serde(default)]
    host: String,
    #[serde(default)]
    port: u16,
    #[serde(default)]
    verdict: String,
    #[serde(default)]
    cause: String,
}

/// Causes that say that a connection was no TLS for its name, so that a rule must not want it.
const NOT_TLS_FOR_NAME: [&str; 5] =
    ["not-tls", "client-hello", "sni-missing", "sni-mismatch", "host-mismatch"];

/// A line that is no line of a record.
#[derive(Debug, thiserror::Error)]
#[error("line {number} is no line of an egress record")]
pub struct LearnError {
    /// Which, counted from 1.
    number: usize,
    source: serde_json::Error,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Learned {
    /// Names, their ports, and whether something else than TLS for the name was spoken there.
    names: BTreeMap<String, BTreeMap<u16, bool>>,
    /// Addresses that were reached by number: no rule can be for them.
    addresses: BTreeSet<String>,
}

impl Learned {
    /// Takes the lines of an `egress.jsonl`.
    pub fn add(&mut self, text: &str) -> Result<(), LearnError> {
        for (index, line) in text.lines().enumerate() {
            let line = serde_json::from_str(line)
                .map_err(|source| LearnError { number: index + 1, source })?;
            self.add_line(line);
        }
        Ok(())
    }

    fn add_line(&mut self, line: Line) {
        let passed = matches!(&*line.verdict, "allowed" | "would-refuse");
        let connected = matches!(&*line.via, "transparent" | "proxy") && line.port != 0;
        if line.event != "verdict" || !passed || !connected {
            return;
        }
        let bare = line.host.trim_start_matches('[').trim_end_matches(']');
        if bare.parse::<IpAddr>().is_ok() {
            self.addresses.insert(format!("{}:{}", line.host, line.port));
            return;
        }
        let ports = self.names.entry(line.host).or_default();
        *ports.entry(line.port).or_default() |= NOT_TLS_FOR_NAME.contains(&&*line.cause);
    }

    /// The policy as it is written in a settings file.
    pub fn policy(&self, name: &str) -> String {
        let mut text = format!("[egress.policy.{name}]\nmode = \"enforce\"\nallow = [\n");
        for (host, ports) in &self.names {
            for (any, tls) in [(false, ""), (true, ", tls = \"any\"")] {
                let chosen: Vec<_> = ports
                    .iter()
                    .filter(|(_, not_tls)| **not_tls == any)
                    .map(|(port, _)| port.to_string())
                    .collect();
                if !chosen.is_empty() {
                    let ports = chosen.join(", ");
                    _ = writeln!(text, "    {{ host = {host:?}, ports = [{ports}]{tls} }},");
                }
            }
        }
        text.push_str("]\n");
        for address in &self.addresses {
            _ = writeln!(text, "# {address} was reached by its address; rules are for names");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::egress::host::Host;
    use crate::egress::policy::{Policy, PolicyDraft};
    use crate::egress::record::{Identity, Rate, Recorder, Subject, Via};
    use crate::egress::verdict::{Cause, Verdict};

    fn record(seen: &[(&str, u16, Verdict)]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let identity =
            Identity { microvm: "vm1".into(), policy: "ci".into(), guest: [172, 31, 0, 2].into() };
        let recorder = Recorder::create(directory.path(), identity, Rate::default()).unwrap();
        for (host, port, verdict) in seen {
            let subject = Subject {
                via: Via::Transparent,
                host: (*host).into(),
                port: *port,
                original: None,
                method: "CONNECT".into(),
                url: None,
            };
            recorder.verdict(subject, verdict, None);
        }
        std::fs::read_to_string(directory.path().join("egress.jsonl")).unwrap()
    }

    #[test]
    fn the_policy_allows_exactly_what_was_seen() {
        let would = |cause| Verdict::WouldRefuse(cause);
        let mut learned = Learned::default();
        let text = record(&[
            ("a.example", 443, Verdict::Allowed),
            ("a.example", 80, would(Cause::NoRule)),
            ("b.example", 443, would(Cause::NoRule)),
            ("b.example", 443, would(Cause::NotTls)),
            ("1.1.1.1", 443, would(Cause::Literal)),
            ("evil.example", 443, Verdict::Refused(Cause::NoRule)),
            ("lookup.example", 0, would(Cause::NoRule)),
        ]);
        learned.add(&text).unwrap();
        let policy = learned.policy("learned");
        assert_eq!(
            policy,
            "[egress.policy.learned]\n\
             mode = \"enforce\"\n\
             allow = [\n    \
                 { host = \"a.example\", ports = [80, 443] },\n    \
                 { host = \"b.example\", ports = [443], tls = \"any\" },\n\
             ]\n\
             # 1.1.1.1:443 was reached by its address; rules are for names\n"
        );
        let table: toml::Table = toml::from_str(&policy).unwrap();
        let draft: PolicyDraft = table["egress"]["policy"]["learned"].clone().try_into().unwrap();
        let policy = Policy::check(Path::new("f"), "learned", &draft).unwrap();
        for (host, port, passes) in
            [("a.example", 80, true), ("b.example", 443, true), ("evil.example", 443, false)]
        {
            let verdict = policy.decide(&Host::parse(host).unwrap(), port).verdict;
            assert_eq!(verdict.passes(), passes, "{host}:{port}");
        }
    }

    #[test]
    fn what_is_no_record_is_told_with_its_line() {
        let error = Learned::default().add("{\"event\":\"unrecorded\"}\nx").unwrap_err();
        assert_eq!(error.to_string(), "line 2 is no line of an egress record");
    }
}
