//! Egress from real guests: real clients, real packets, and their effects outside.
//!
//! Tests that need no guest are in `tests/egress`, in namespaces. Here, a script in a guest runs
//! many probes in one boot and prints a line for each; the test checks these lines and the record.

mod apt;
mod attempts;
mod bypass;
mod canary;
mod clients;
mod frames;
mod network;
mod pressure;
mod rebinding;

#[allow(unreachable_pub, reason = "the tests of egress have it in a module of their own")]
#[path = "../../egress/support/servers.rs"]
pub(crate) mod servers;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::{CommandOutput, Host, TIMEOUT};

/// Shell functions for a guest's script. `probe NAME COMMAND…` runs a command and prints its exit
/// status, its duration in milliseconds, and its output, in one line.
const PRELUDE: &str = r#"
probe() {
    name=$1; shift
    start=$(date +%s%N)
    output=$("$@" 2>&1 </dev/null); status=$?
    ended=$(date +%s%N)
    printf 'probe\t%s\t%s\t%s\t%s\n' "$name" "$status" $(((ended - start) / 1000000)) \
        "$(printf %s "$output" | tr '\n\t' '  ')"
}
proxied() { curl -sS -m 20 -w ' after %{time_total} s' "$@"; }
direct() { proxied --noproxy '*' "$@"; }
# Connects to a name and port, sends a line, and prints the response.
line() {
    exec 3<>"/dev/tcp/$1/$2" || return
    printf '%s\n' "$3" >&3
    timeout 20 cat <&3
}
"#;

/// The settings of a guest: its policy, the copied-in files, and its host.
struct Guest<'a> {
    host: &'a Host,
    policy: String,
    copies: Vec<(PathBuf, &'static str)>,
}

impl<'a> Guest<'a> {
    /// Returns a guest with this policy: the lines under `[egress.policy.ci]`.
    fn new(host: &'a Host, policy: &str) -> Self {
        let policy = format!("[egress.policy.ci]\n{policy}\n");
        Self { host, policy, copies: Vec::new() }
    }

    /// Adds a file to copy in.
    fn copy(mut self, from: impl Into<PathBuf>, to: &'static str) -> Self {
        self.copies.push((from.into(), to));
        self
    }

    /// Returns the arguments of `mayfly run` up to the command, as root in the guest.
    fn arguments(&self) -> Vec<String> {
        let settings = self.host.state().join("mayfly.toml");
        fs::write(&settings, &self.policy).unwrap();
        let copies = self.copies.iter();
        let copies = copies.map(|(from, to)| format!("--copy-in={}:{to}", from.display()));
        let fixed = [
            "--json".to_owned(),
            "--user=root".to_owned(),
            "--egress=ci".to_owned(),
            format!("--config={}", settings.display()),
            format!("--egress-record={}", self.record().display()),
        ];
        fixed.into_iter().chain(copies).collect()
    }

    /// Returns the path of the record.
    fn record(&self) -> PathBuf {
        self.host.state().join("record")
    }

    /// Runs a script, which must succeed.
    fn run(&self, script: &str) -> Outcome {
        let script = format!("{PRELUDE}{script}");
        let command = ["--", "bash", "-c", &script].map(str::to_owned);
        let arguments = self.arguments().into_iter().chain(command);
        let ending = self.host.start(arguments).finish(3 * TIMEOUT);
        ending.assert_code(0);
        Outcome::new(ending, &self.record())
    }
}

/// The result of a probe.
#[derive(Debug)]
struct Probe {
    status: i32,
    milliseconds: u64,
    output: String,
}

/// The result of a run.
struct Outcome {
    ending: CommandOutput,
    probes: BTreeMap<String, Probe>,
    lines: Vec<Value>,
}

impl Outcome {
    fn new(ending: CommandOutput, record: &std::path::Path) -> Self {
        let text = ending.text();
        let probes = text.lines().filter_map(|line| {
            let mut fields = line.strip_prefix("probe\t")?.splitn(4, '\t');
            let name = fields.next()?.to_owned();
            let status = fields.next()?.parse().ok()?;
            let milliseconds = fields.next()?.parse().ok()?;
            Some((name, Probe { status, milliseconds, output: fields.next()?.to_owned() }))
        });
        let probes = probes.collect();
        let record = fs::read_to_string(record.join("egress.jsonl")).unwrap();
        let lines = record.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        Self { ending, probes, lines }
    }

    fn probe(&self, name: &str) -> &Probe {
        self.probes.get(name).unwrap_or_else(|| panic!("no probe {name}: {:?}", self.ending))
    }

    /// Checks that a probe succeeded with this output.
    #[track_caller]
    fn assert_works(&self, name: &str, expected: &str) {
        let probe = self.probe(name);
        assert!(probe.status == 0 && probe.output.contains(expected), "{name}: {probe:?}");
    }

    /// Checks that a probe failed with this output.
    #[track_caller]
    fn assert_fails(&self, name: &str, expected: &str) {
        let probe = self.probe(name);
        assert!(probe.status != 0 && probe.output.contains(expected), "{name}: {probe:?}");
    }

    /// Checks that the record has a line that begins with `VIA HOST:PORT VERDICT CAUSE`.
    #[track_caller]
    fn assert_recorded(&self, line: &str) {
        let recorded = self.recorded();
        assert!(recorded.iter().any(|found| found.starts_with(line)), "{line}: {recorded:#?}");
    }

    /// Returns the distinct verdicts of the record, as `VIA HOST:PORT VERDICT CAUSE`.
    fn recorded(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.lines.iter().map(summary).collect();
        lines.sort();
        lines.dedup();
        lines
    }

    /// Returns the rows of the egress report in the events.
    fn report(&self) -> Vec<Value> {
        let events = self.ending.events();
        let mut reports = events.iter().filter_map(|event| event.pointer("/happened/egress/rows"));
        let rows = reports.next().unwrap_or_else(|| panic!("no report: {:?}", self.ending));
        assert!(reports.next().is_none(), "more than one report: {:?}", self.ending);
        rows.as_array().unwrap().clone()
    }

    /// Prints the durations of the refused probes.
    fn print_refusals(&self) {
        let refused = self.probes.iter().filter(|(_, probe)| probe.status != 0);
        for (name, probe) in refused {
            eprintln!("refused in {:>5} ms: {name}: {}", probe.milliseconds, probe.output);
        }
    }
}

/// Formats a line of the record as `VIA HOST:PORT VERDICT CAUSE`.
fn summary(line: &Value) -> String {
    let text = |key: &str| line[key].as_str().unwrap_or_default();
    let [via, host, verdict, cause] = ["via", "host", "verdict", "cause"].map(text);
    format!("{via} {host}:{} {verdict} {cause}", line["port"])
}
