//! What a probe should print, and the judgement of what it did.

use mayfly_protocol::settings::Settings;

/// Characters of evidence that are kept.
const EVIDENCE: usize = 240;

/// What a probe should print. Lines are compared without space around them; empty ones don't count.
#[derive(Debug, Clone, Copy)]
pub enum Expect {
    /// Nothing: the probe looks for what should not be there.
    Nothing,
    /// These lines, in this order.
    Lines(&'static [&'static str]),
    /// Each of these lines, among others.
    Among(&'static [&'static str]),
    /// No other lines than these.
    Only(&'static [&'static str]),
    /// What a function of the image's settings and the lines says.
    Judged(fn(&Settings, &[&str]) -> Verdict),
}

/// How a control fares, and what shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is as it should be.
    pub pass: bool,
    /// What was seen.
    pub evidence: String,
}

impl Verdict {
    /// As it should be.
    pub(super) fn pass(evidence: impl AsRef<str>) -> Self {
        Self { pass: true, evidence: clean(evidence.as_ref()) }
    }

    /// Not as it should be.
    pub(super) fn fail(evidence: impl AsRef<str>) -> Self {
        Self { pass: false, evidence: clean(evidence.as_ref()) }
    }

    /// Both, and whichever fails tells why.
    pub(super) fn and(self, other: Self) -> Self {
        match (self.pass, other.pass) {
            (true, true) => Self::pass(format!("{}; {}", self.evidence, other.evidence)),
            (true, false) => other,
            (false, _) => self,
        }
    }
}

impl Expect {
    /// Judges what a probe printed.
    pub(super) fn judge(&self, settings: &Settings, output: &str) -> Verdict {
        let lines = lines(output);
        let printed = || if lines.is_empty() { "nothing".to_owned() } else { lines.join(", ") };
        match self {
            Self::Nothing if lines.is_empty() => Verdict::pass("none"),
            Self::Nothing => Verdict::fail(printed()),
            Self::Lines(wanted) => equal(wanted, &lines),
            Self::Among(wanted) => {
                let missing: Vec<_> = wanted.iter().filter(|line| !lines.contains(line)).collect();
                match missing.first() {
                    None => Verdict::pass(wanted.join(", ")),
                    Some(line) => Verdict::fail(format!("no `{line}` in: {}", printed())),
                }
            }
            Self::Only(allowed) => {
                let others: Vec<&str> =
                    lines.iter().copied().filter(|line| !allowed.contains(line)).collect();
                if others.is_empty() {
                    Verdict::pass(printed())
                } else {
                    Verdict::fail(others.join(", "))
                }
            }
            Self::Judged(judge) => judge(settings, &lines),
        }
    }
}

/// Whether these lines, and no others, were printed.
pub(super) fn equal<T: AsRef<str>>(wanted: &[T], lines: &[&str]) -> Verdict {
    let wanted: Vec<&str> = wanted.iter().map(AsRef::as_ref).collect();
    if wanted == lines {
        return Verdict::pass(lines.join(", "));
    }
    let other = lines.iter().zip(&wanted).find(|(line, wanted)| line != wanted);
    match other {
        Some((line, wanted)) => Verdict::fail(format!("`{line}` where `{wanted}` should be")),
        None if lines.len() < wanted.len() => {
            Verdict::fail(format!("`{}` is missing", wanted[lines.len()]))
        }
        None => Verdict::fail(format!("`{}` is too much", lines[wanted.len()])),
    }
}

/// The lines of an output, without space around them and without empty ones.
pub(super) fn lines(output: &str) -> Vec<&str> {
    output.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
}

/// A text that may be shown: short, on one line.
fn clean(text: &str) -> String {
    let shown: String = text
        .chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .take(EVIDENCE)
        .collect();
    if shown.len() < text.len() { format!("{shown}…") } else { shown }
}
