//! The expected output of a probe, and its evaluation.

use mayfly_common::text::replace_deceptive;
use mayfly_protocol::settings::GuestSettings;

/// The most characters of evidence.
const MAX_EVIDENCE: usize = 240;

/// The expected output of a probe. Lines are compared without surrounding space; empty ones are
/// ignored.
#[derive(Debug, Clone, Copy)]
pub enum Expectation {
    /// No output: the probe prints violations.
    Nothing,
    /// These lines, in this order.
    Lines(&'static [&'static str]),
    /// Each of these lines, possibly among others.
    Contains(&'static [&'static str]),
    /// No other lines than these.
    Only(&'static [&'static str]),
    /// The result of a function of the image's settings and the lines.
    Custom(fn(&GuestSettings, &[&str]) -> CheckResult),
}

/// The result of a check, and its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckResult {
    /// Whether the check passed.
    pub pass: bool,
    /// The evidence.
    pub evidence: String,
}

impl CheckResult {
    /// Returns a passed check.
    pub(super) fn pass(evidence: impl AsRef<str>) -> Self {
        Self { pass: true, evidence: clean(evidence.as_ref()) }
    }

    /// Returns a failed check.
    pub(super) fn fail(evidence: impl AsRef<str>) -> Self {
        Self { pass: false, evidence: clean(evidence.as_ref()) }
    }

    /// Combines two checks; the evidence is that of the first failure.
    pub(super) fn and(self, other: Self) -> Self {
        match (self.pass, other.pass) {
            (true, true) => Self::pass(format!("{}; {}", self.evidence, other.evidence)),
            (true, false) => other,
            (false, _) => self,
        }
    }
}

impl Expectation {
    /// Evaluates the output of a probe.
    pub(super) fn evaluate(&self, settings: &GuestSettings, output: &str) -> CheckResult {
        let lines = lines(output);
        let printed = || if lines.is_empty() { "nothing".to_owned() } else { lines.join(", ") };
        match self {
            Self::Nothing if lines.is_empty() => CheckResult::pass("none"),
            Self::Nothing => CheckResult::fail(printed()),
            Self::Lines(expected) => equal(expected, &lines),
            Self::Contains(expected) => {
                let missing: Vec<_> =
                    expected.iter().filter(|line| !lines.contains(line)).collect();
                match missing.first() {
                    None => CheckResult::pass(expected.join(", ")),
                    Some(line) => {
                        CheckResult::fail(format!("`{line}` is missing in: {}", printed()))
                    }
                }
            }
            Self::Only(allowed) => {
                let others: Vec<&str> =
                    lines.iter().copied().filter(|line| !allowed.contains(line)).collect();
                if others.is_empty() {
                    CheckResult::pass(printed())
                } else {
                    CheckResult::fail(others.join(", "))
                }
            }
            Self::Custom(evaluate) => evaluate(settings, &lines),
        }
    }
}

/// Checks that exactly these lines were printed.
pub(super) fn equal<T: AsRef<str>>(expected: &[T], lines: &[&str]) -> CheckResult {
    let expected: Vec<&str> = expected.iter().map(AsRef::as_ref).collect();
    if expected == lines {
        return CheckResult::pass(lines.join(", "));
    }
    let other = lines.iter().zip(&expected).find(|(line, expected)| line != expected);
    match other {
        Some((line, expected)) => CheckResult::fail(format!("`{line}`, expected `{expected}`")),
        None if lines.len() < expected.len() => {
            CheckResult::fail(format!("`{}` is missing", expected[lines.len()]))
        }
        None => CheckResult::fail(format!("unexpected `{}`", lines[expected.len()])),
    }
}

/// Returns the lines of an output, without surrounding space and empty lines.
pub(super) fn lines(output: &str) -> Vec<&str> {
    output.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
}

/// Returns a text for display: short and on one line.
fn clean(text: &str) -> String {
    let text = replace_deceptive(text, ' ');
    let shown: String = text.chars().take(MAX_EVIDENCE).collect();
    if shown.len() < text.len() { format!("{shown}…") } else { shown }
}
