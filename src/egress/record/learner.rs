//! Generates a policy that allows exactly the recorded traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use serde::Deserialize;

/// The keys of a record line that learning uses; others are ignored.
#[derive(Debug, Deserialize)]
struct RecordLine {
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

/// Causes of connections without TLS for their name; their rules must not require it.
const NOT_TLS_FOR_NAME: [&str; 5] =
    ["not-tls", "client-hello", "sni-missing", "sni-mismatch", "host-mismatch"];

/// An invalid line of a record.
#[derive(Debug, thiserror::Error)]
#[error("line {number} is not a line of an egress record")]
pub struct LearnError {
    /// The line number, from 1.
    number: usize,
    source: serde_json::Error,
}

/// The destinations read so far.
#[derive(Debug, Default)]
pub struct PolicyLearner {
    /// Names, their ports, and whether anything but TLS for the name was used there.
    names: BTreeMap<String, BTreeMap<u16, bool>>,
    /// Addresses that were reached directly: no rule can match them.
    addresses: BTreeSet<String>,
}

impl PolicyLearner {
    /// Adds the lines of an `egress.jsonl`.
    pub fn add(&mut self, text: &str) -> Result<(), LearnError> {
        for (index, line) in text.lines().enumerate() {
            let line = serde_json::from_str(line)
                .map_err(|source| LearnError { number: index + 1, source })?;
            self.add_line(line);
        }
        Ok(())
    }

    fn add_line(&mut self, line: RecordLine) {
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

    /// Returns the policy as text for a settings file.
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
            _ = writeln!(text, "# {address} was reached by its address; rules match names only");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::host::Host;
    use crate::policy::{Policy, PolicyDraft};
    use crate::record::{EgressRecorder, RecordIdentity, RecordLimits, Subject, Via};
    use crate::verdict::{RefusalCause, Verdict};

    fn record(seen: &[(&str, u16, Verdict)]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let identity = RecordIdentity {
            microvm: "vm1".into(),
            policy: "ci".into(),
            guest: [172, 31, 0, 2].into(),
        };
        let recorder =
            EgressRecorder::create(directory.path(), identity, RecordLimits::default()).unwrap();
        for (host, port, verdict) in seen {
            let subject = Subject {
                via: Via::Transparent,
                host: (*host).into(),
                port: *port,
                original: None,
                method: "CONNECT".into(),
                url: None,
            };
            recorder.record_verdict(subject, verdict, None);
        }
        std::fs::read_to_string(directory.path().join("egress.jsonl")).unwrap()
    }

    #[test]
    fn the_policy_allows_exactly_the_recorded_traffic() {
        let would = |cause| Verdict::WouldRefuse(cause);
        let mut learned = PolicyLearner::default();
        let text = record(&[
            ("a.example", 443, Verdict::Allowed),
            ("a.example", 80, would(RefusalCause::NoRule)),
            ("b.example", 443, would(RefusalCause::NoRule)),
            ("b.example", 443, would(RefusalCause::NotTls)),
            ("1.1.1.1", 443, would(RefusalCause::Literal)),
            ("evil.example", 443, Verdict::Refused(RefusalCause::NoRule)),
            ("lookup.example", 0, would(RefusalCause::NoRule)),
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
             # 1.1.1.1:443 was reached by its address; rules match names only\n"
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
    fn an_invalid_line_is_reported_with_its_number() {
        let error = PolicyLearner::default().add("{\"event\":\"unrecorded\"}\nx").unwrap_err();
        assert_eq!(error.to_string(), "line 2 is not a line of an egress record");
    }
}
