//! The audit: one script with all probes of an image, and the evaluation of its output.
//!
//! The script runs once, as root, in a guest of the image, and prints blocks:
//!
//! ```text
//! probe accounts.root-locked probe     the control and the kind of the check
//!  root:*                              the output of the check, each line after a space
//! end
//! ```
//!
//! An audit is meant for a freshly built image: root of the guest can print anything, so it can't
//! detect a malicious builder.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

use mayfly_protocol::settings::GuestSettings;
use serde::{Deserialize, Serialize};

use super::expect::{self, CheckResult};
use super::{CONTROLS, Control, Measure, ProbeUser};
use crate::hash;
use crate::manifest::Manifest;

/// Runs a probe and prints its output as a block of limited length. Each probe runs in a subshell,
/// so that it can't affect the next; few programs are started, because each takes time.
const RUN_PROBE: &str = "run_probe() {
    echo \"probe $1 $2\"
    ( $3 \"$4\" </dev/null 2>&1 ) | head -c 16384 | sed 's/^/ /'
    printf '\\nend\\n'
}
";

/// The command prefix that runs a program as the job's user.
const AS_JOB: &str = "setpriv --reuid runner --regid runner --init-groups env HOME=/home/runner";

/// The most output of the script that is evaluated, in bytes.
pub const MAX_OUTPUT: usize = 4 << 20;

/// The result of an audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    /// A row for each control, in the order of [`CONTROLS`].
    pub rows: Vec<AuditRow>,
}

/// The result of one control.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// The control's name.
    pub control: Cow<'static, str>,
    /// Its effect.
    pub title: Cow<'static, str>,
    /// External references.
    pub reference: Cow<'static, str>,
    /// The outcome.
    pub result: AuditOutcome,
    /// The evidence.
    pub evidence: String,
}

/// The outcome of a control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditOutcome {
    /// The control is in effect.
    Pass,
    /// The control is not in effect, or its check did not run.
    Fail,
    /// The recipe disables it, or it conflicts with the recipe.
    Off,
}

impl AuditReport {
    /// Returns whether no control failed.
    pub fn passed(&self) -> bool {
        self.rows.iter().all(|row| row.result != AuditOutcome::Fail)
    }

    /// Returns the number of controls with this outcome.
    pub fn count(&self, outcome: AuditOutcome) -> usize {
        self.rows.iter().filter(|row| row.result == outcome).count()
    }
}

/// Evaluates the output of a check, given the image's settings.
type Evaluate = Box<dyn Fn(&GuestSettings, &str) -> CheckResult>;

/// One check in the guest.
struct Check {
    /// The kind of the check, unique within its control.
    kind: &'static str,
    user: ProbeUser,
    script: String,
    evaluate: Evaluate,
}

/// The input of an audit.
#[derive(Debug, Clone, Copy)]
struct AuditSubject<'a> {
    controls: &'a BTreeMap<String, bool>,
    settings: &'a GuestSettings,
}

impl<'a> AuditSubject<'a> {
    fn of(manifest: &'a Manifest) -> Self {
        Self { controls: &manifest.hardening, settings: &manifest.settings }
    }

    fn has(self, control: &Control) -> bool {
        self.controls.get(control.name) == Some(&true)
    }
}

/// Returns the script that checks every enabled control of the image, to be run by `sh` as root.
pub fn script(manifest: &Manifest) -> Vec<u8> {
    script_of(AuditSubject::of(manifest))
}

fn script_of(subject: AuditSubject<'_>) -> Vec<u8> {
    let mut script = format!("{RUN_PROBE}job='{AS_JOB}'\ncd /\n");
    let all = CONTROLS.iter().copied().flatten();
    for control in all.filter(|control| subject.has(control)) {
        for check in checks(control) {
            let by = if check.user == ProbeUser::Job { "$job sh -c" } else { "eval" };
            let (name, kind, script_word) = (control.name, check.kind, quote(&check.script));
            // Writing to a string can't fail.
            let _ = writeln!(script, "run_probe {name} {kind} \"{by}\" {script_word}");
        }
    }
    script.into_bytes()
}

/// Evaluates the output of the script.
pub fn evaluate(manifest: &Manifest, output: &[u8]) -> AuditReport {
    evaluate_subject(AuditSubject::of(manifest), output)
}

fn evaluate_subject(subject: AuditSubject<'_>, output: &[u8]) -> AuditReport {
    let blocks = blocks(output);
    let row = |control: &&Control| {
        let (result, evidence) = if subject.has(control) {
            let checked = evaluate_control(control, subject.settings, &blocks);
            (if checked.pass { AuditOutcome::Pass } else { AuditOutcome::Fail }, checked.evidence)
        } else {
            (AuditOutcome::Off, "switched off".to_owned())
        };
        AuditRow {
            control: control.name.into(),
            title: control.title.into(),
            reference: control.reference.into(),
            result,
            evidence,
        }
    };
    AuditReport { rows: CONTROLS.iter().copied().flatten().map(|control| row(&control)).collect() }
}

fn evaluate_control(
    control: &Control,
    settings: &GuestSettings,
    blocks: &BTreeMap<(String, String), String>,
) -> CheckResult {
    let results = checks(control).into_iter().map(|check| {
        match blocks.get(&(control.name.to_owned(), check.kind.to_owned())) {
            Some(output) => (check.evaluate)(settings, output),
            None => CheckResult::fail("the probe did not run"),
        }
    });
    results.reduce(CheckResult::and).unwrap_or_else(|| CheckResult::fail("no probe defined"))
}

/// Returns all checks of a control.
fn checks(control: &Control) -> Vec<Check> {
    let mut checks = Vec::new();
    let collect = |of: fn(&'static Measure) -> Option<(&'static str, &'static str)>,
                   measures: &'static [Measure]|
     -> Vec<_> { measures.iter().filter_map(of).collect() };
    let parameters = collect(Measure::parameter, control.measures);
    if !parameters.is_empty() {
        checks.push(parameters_check(&parameters));
    }
    let arguments = collect(Measure::argument, control.measures);
    if !arguments.is_empty() {
        checks.push(arguments_check(&arguments));
    }
    let files = collect(Measure::file, control.measures);
    if !files.is_empty() {
        checks.push(files_check(&files));
    }
    if let Some(probe) = &control.probe {
        let expect = probe.expect;
        checks.push(Check {
            kind: "probe",
            user: probe.user,
            script: probe.script.to_owned(),
            evaluate: Box::new(move |settings, output| expect.evaluate(settings, output)),
        });
    }
    checks
}

fn parameters_check(parameters: &[(&'static str, &'static str)]) -> Check {
    let paths: Vec<String> =
        parameters.iter().map(|(path, _)| format!("/proc/sys/{path}")).collect();
    let expected: Vec<String> =
        parameters.iter().map(|(path, value)| format!("{path} = {value}")).collect();
    Check {
        kind: "parameters",
        user: ProbeUser::Root,
        // Prints a line `PATH:VALUE` for each; the shell's `read` would take only the first digit.
        script: format!("grep -H '' {}", paths.join(" ")),
        evaluate: Box::new(move |_, output| {
            let found: Vec<String> = expect::lines(output).into_iter().map(parameter).collect();
            let found: Vec<&str> = found.iter().map(String::as_str).collect();
            expect::equal(&expected, &found)
        }),
    }
}

/// Normalizes a parameter's line: single spaces instead of the kernel's tabs.
fn parameter(line: &str) -> String {
    let found = line.strip_prefix("/proc/sys/").and_then(|line| line.split_once(':'));
    let Some((path, value)) = found else { return line.to_owned() };
    let words: Vec<&str> = value.split_whitespace().collect();
    format!("{path} = {}", words.join(" "))
}

fn arguments_check(arguments: &[(&'static str, &'static str)]) -> Check {
    let expected: Vec<&str> = arguments.iter().map(|(argument, _)| *argument).collect();
    Check {
        kind: "arguments",
        user: ProbeUser::Root,
        script: "cat /proc/cmdline".to_owned(),
        evaluate: Box::new(move |_, output| {
            let given: Vec<&str> = output.split_whitespace().collect();
            match expected.iter().find(|argument| !given.contains(argument)) {
                None => CheckResult::pass(expected.join(" ")),
                Some(missing) => CheckResult::fail(format!("missing kernel argument {missing}")),
            }
        }),
    }
}

fn files_check(files: &[(&'static str, &'static str)]) -> Check {
    let paths: Vec<&str> = files.iter().map(|(path, _)| *path).collect();
    let expected: Vec<String> = files
        .iter()
        .map(|(path, content)| format!("{} {path} 644 root", hash::of_bytes(content.as_bytes())))
        .collect();
    let found = paths.join(", ");
    Check {
        kind: "files",
        user: ProbeUser::Root,
        script: format!(
            "for path in {}; do echo $(sha256sum $path) $(stat -c '%a %U' $path); done",
            paths.join(" ")
        ),
        evaluate: Box::new(move |_, output| {
            let result = expect::equal(&expected, &expect::lines(output));
            if result.pass { CheckResult::pass(&found) } else { result }
        }),
    }
}

impl Measure {
    fn parameter(&'static self) -> Option<(&'static str, &'static str)> {
        if let Self::Parameter(path, value) = self { Some((path, value)) } else { None }
    }

    fn argument(&'static self) -> Option<(&'static str, &'static str)> {
        if let Self::Argument(argument) = self { Some((argument, "")) } else { None }
    }

    fn file(&'static self) -> Option<(&'static str, &'static str)> {
        if let Self::File(path, content) = self { Some((path, content)) } else { None }
    }
}

/// Quotes a script as one word of a shell script.
fn quote(script: &str) -> String {
    format!("'{}'", script.replace('\'', "'\\''"))
}

/// Parses the blocks of an output, by control and kind. Text outside of blocks and blocks without
/// an end are ignored; of duplicate blocks, the first counts.
fn blocks(output: &[u8]) -> BTreeMap<(String, String), String> {
    let output = &output[..output.len().min(MAX_OUTPUT)];
    let text = String::from_utf8_lossy(output);
    let mut blocks = BTreeMap::new();
    let mut open: Option<((String, String), String)> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("probe ") {
            let key = rest.split_once(' ').map(|(name, kind)| (name.to_owned(), kind.to_owned()));
            open = key.map(|key| (key, String::new()));
        } else if line == "end" {
            if let Some((key, body)) = open.take() {
                blocks.entry(key).or_insert(body);
            }
        } else if let (Some((_, body)), Some(printed)) = (&mut open, line.strip_prefix(' ')) {
            body.push_str(printed);
            body.push('\n');
        }
    }
    blocks
}

#[cfg(test)]
mod tests;
