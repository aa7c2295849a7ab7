//! The audit: one script with every probe of an image's controls, and the judgement of its output.
//!
//! The script runs once, as root, in a guest of the image, and prints blocks:
//!
//! ```text
//! probe accounts.root-locked probe     the control and which of its looks
//!  root:*                              what the look printed, a space before each line
//! end
//! ```
//!
//! An audit is of an image that was just built: root of the guest may print what it likes, so an
//! image whose builder is the enemy can't be found out from inside.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

use mayfly_protocol::settings::Settings;
use serde::{Deserialize, Serialize};

use super::expect::{self, Verdict};
use super::{By, CONTROLS, Control, Measure};
use crate::image::hash;
use crate::image::manifest::Manifest;

/// Prints what a look prints, as a block of a bounded length. In a subshell, so
/// that none changes the next one's world; with few programs, because each costs time.
const LOOK: &str = "look() {
    echo \"probe $1 $2\"
    ( $3 \"$4\" </dev/null 2>&1 ) | head -c 16384 | sed 's/^/ /'
    printf '\\nend\\n'
}
";

/// Executes a program as the job's user.
const AS_JOB: &str = "setpriv --reuid runner --regid runner --init-groups env HOME=/home/runner";

/// The most bytes that the script prints: whoever runs it need not keep more.
pub const MOST_OUTPUT: usize = 4 << 20;

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// A row for each control, in the order of the table.
    pub rows: Vec<Row>,
}

/// How one control fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The control's name.
    pub control: Cow<'static, str>,
    /// What it does.
    pub title: Cow<'static, str>,
    /// Where others ask for the same.
    pub reference: Cow<'static, str>,
    /// How it fares.
    pub result: Outcome,
    /// What was seen.
    pub evidence: String,
}

/// How a control fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it should be.
    Pass,
    /// Not as it should be, or nothing was seen of it.
    Fail,
    /// The recipe has switched it off, or it does not fit.
    Off,
}

impl Report {
    /// Whether no control failed.
    pub fn passed(&self) -> bool {
        self.rows.iter().all(|row| row.result != Outcome::Fail)
    }

    /// How many controls fared so.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.rows.iter().filter(|row| row.result == outcome).count()
    }
}

/// Says what a look's output means, in an image with these settings.
type Judge = Box<dyn Fn(&Settings, &str) -> Verdict>;

/// One look at the guest.
struct Look {
    /// Which of its control's.
    kind: &'static str,
    by: By,
    script: String,
    judge: Judge,
}

/// What an audit goes by.
#[derive(Debug, Clone, Copy)]
struct Subject<'a> {
    controls: &'a BTreeMap<String, bool>,
    settings: &'a Settings,
}

impl<'a> Subject<'a> {
    fn of(manifest: &'a Manifest) -> Self {
        Self { controls: &manifest.hardening, settings: &manifest.settings }
    }

    fn has(self, control: &Control) -> bool {
        self.controls.get(control.name) == Some(&true)
    }
}

/// The script that looks at everything that is on in the image. To be run by `sh` as root.
pub fn script(manifest: &Manifest) -> Vec<u8> {
    script_of(Subject::of(manifest))
}

fn script_of(subject: Subject<'_>) -> Vec<u8> {
    let mut script = format!("{LOOK}job='{AS_JOB}'\ncd /\n");
    let all = CONTROLS.iter().copied().flatten();
    for control in all.filter(|control| subject.has(control)) {
        for look in looks(control) {
            let by = if look.by == By::Job { "$job sh -c" } else { "eval" };
            let (name, kind, looked) = (control.name, look.kind, quote(&look.script));
            // Writing to a string can't fail.
            let _ = writeln!(script, "look {name} {kind} \"{by}\" {looked}");
        }
    }
    script.into_bytes()
}

/// What the script's output says of the image.
pub fn judge(manifest: &Manifest, output: &[u8]) -> Report {
    judge_by(Subject::of(manifest), output)
}

fn judge_by(subject: Subject<'_>, output: &[u8]) -> Report {
    let blocks = blocks(output);
    let row = |control: &&Control| {
        let (result, evidence) = if subject.has(control) {
            let verdict = verdict(control, subject.settings, &blocks);
            (if verdict.pass { Outcome::Pass } else { Outcome::Fail }, verdict.evidence)
        } else {
            (Outcome::Off, "switched off".to_owned())
        };
        Row {
            control: control.name.into(),
            title: control.title.into(),
            reference: control.reference.into(),
            result,
            evidence,
        }
    };
    Report { rows: CONTROLS.iter().copied().flatten().map(|control| row(&control)).collect() }
}

fn verdict(
    control: &Control,
    settings: &Settings,
    blocks: &BTreeMap<(String, String), String>,
) -> Verdict {
    let verdicts = looks(control).into_iter().map(|look| {
        match blocks.get(&(control.name.to_owned(), look.kind.to_owned())) {
            Some(output) => (look.judge)(settings, output),
            None => Verdict::fail("the probe did not run"),
        }
    });
    verdicts.reduce(Verdict::and).unwrap_or_else(|| Verdict::fail("there is no probe"))
}

/// Everything by which one sees whether a control is in place.
fn looks(control: &Control) -> Vec<Look> {
    let mut looks = Vec::new();
    let collect = |of: fn(&'static Measure) -> Option<(&'static str, &'static str)>,
                   measures: &'static [Measure]|
     -> Vec<_> { measures.iter().filter_map(of).collect() };
    let parameters = collect(Measure::parameter, control.measures);
    if !parameters.is_empty() {
        looks.push(parameters_look(&parameters));
    }
    let arguments = collect(Measure::argument, control.measures);
    if !arguments.is_empty() {
        looks.push(arguments_look(&arguments));
    }
    let files = collect(Measure::file, control.measures);
    if !files.is_empty() {
        looks.push(files_look(&files));
    }
    if let Some(probe) = &control.probe {
        let expect = probe.expect;
        looks.push(Look {
            kind: "probe",
            by: probe.by,
            script: probe.script.to_owned(),
            judge: Box::new(move |settings, output| expect.judge(settings, output)),
        });
    }
    looks
}

fn parameters_look(parameters: &[(&'static str, &'static str)]) -> Look {
    let paths: Vec<String> =
        parameters.iter().map(|(path, _)| format!("/proc/sys/{path}")).collect();
    let wanted: Vec<String> =
        parameters.iter().map(|(path, value)| format!("{path} = {value}")).collect();
    Look {
        kind: "parameters",
        by: By::Root,
        // A line `PATH:VALUE` for each; a shell's own `read` would take the first digit only.
        script: format!("grep -H '' {}", paths.join(" ")),
        judge: Box::new(move |_, output| {
            let found: Vec<String> = expect::lines(output).into_iter().map(parameter).collect();
            let found: Vec<&str> = found.iter().map(String::as_str).collect();
            expect::equal(&wanted, &found)
        }),
    }
}

/// A parameter's line, with one space where the kernel has tabs.
fn parameter(line: &str) -> String {
    let found = line.strip_prefix("/proc/sys/").and_then(|line| line.split_once(':'));
    let Some((path, value)) = found else { return line.to_owned() };
    let words: Vec<&str> = value.split_whitespace().collect();
    format!("{path} = {}", words.join(" "))
}

fn arguments_look(arguments: &[(&'static str, &'static str)]) -> Look {
    let wanted: Vec<&str> = arguments.iter().map(|(argument, _)| *argument).collect();
    Look {
        kind: "arguments",
        by: By::Root,
        script: "cat /proc/cmdline".to_owned(),
        judge: Box::new(move |_, output| {
            let given: Vec<&str> = output.split_whitespace().collect();
            match wanted.iter().find(|argument| !given.contains(argument)) {
                None => Verdict::pass(wanted.join(" ")),
                Some(missing) => Verdict::fail(format!("the kernel was not given {missing}")),
            }
        }),
    }
}

fn files_look(files: &[(&'static str, &'static str)]) -> Look {
    let paths: Vec<&str> = files.iter().map(|(path, _)| *path).collect();
    let wanted: Vec<String> = files
        .iter()
        .map(|(path, content)| format!("{} {path} 644 root", hash::of_bytes(content.as_bytes())))
        .collect();
    let found = paths.join(", ");
    Look {
        kind: "files",
        by: By::Root,
        script: format!(
            "for path in {}; do echo $(sha256sum $path) $(stat -c '%a %U' $path); done",
            paths.join(" ")
        ),
        judge: Box::new(move |_, output| {
            let verdict = expect::equal(&wanted, &expect::lines(output));
            if verdict.pass { Verdict::pass(&found) } else { verdict }
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

/// A script as one word of another.
fn quote(script: &str) -> String {
    format!("'{}'", script.replace('\'', "'\\''"))
}

/// The blocks of an output, by control and kind. What is in none is passed over; of two with one
/// name the first counts; one without an end is none.
fn blocks(output: &[u8]) -> BTreeMap<(String, String), String> {
    let output = &output[..output.len().min(MOST_OUTPUT)];
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
