//! A GitHub Actions runner as a job: the command that starts it, what it says on its console, and
//! what its exit status means.
//!
//! The names and texts are those of `actions/runner` 2.336. They are the runner's word and, once a
//! job has run beside it as the same user, perhaps that of the job: good for progress and
//! diagnosis, never for a decision about trust.

use std::fmt;

use mayfly_protocol::message::{Bytes, Job};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::event::Happened;

/// The variable that the runner takes its just-in-time configuration from.
pub const JIT_CONFIG: &str = "ACTIONS_RUNNER_INPUT_JITCONFIG";

/// Where the runner lies in an image.
pub const DIRECTORY: &str = "/home/runner/actions-runner";

/// Replaces itself by the listener, so that no process is left that has its environment; `run.sh`
/// is for runners that are laid out otherwise.
const START: &str = "[ -x bin/Runner.Listener ] && exec bin/Runner.Listener run; exec ./run.sh";

/// Variables for the runner: `run.sh` passes signals on, and a version that is too old has an exit
/// status of its own.
const SETTINGS: [(&str, &str); 2] = [
    ("RUNNER_MANUALLY_TRAP_SIG", "1"),
    ("ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE", "1"),
];

/// The job that is a runner, for one job of GitHub's, in `directory` of the guest. Variables of
/// `environment` win over Mayfly's own. At the end the runner's logs are copied out.
///
/// The configuration, which holds a private key, reaches the runner in the environment of its process:
/// Mayfly writes it to no disk of the host, into no arguments, and into no environment of a process
/// that outlives the start. The runner itself writes it to the guest's disk at once, as `.runner`,
/// `.credentials` and `.credentials_rsaparams` beside its programs, where its job, the same user,
/// can read it until the runner ends. What that is worth is this one registration, for this one
/// job; it ends with the job, the disk with the microVM. Only `_diag` is copied out, which holds
/// none of these files.
pub fn job(
    jit_config: &SecretString,
    environment: impl IntoIterator<Item = (Bytes, Bytes)>,
    directory: &str,
) -> Job {
    let bytes = |text: &str| Bytes::from(text.as_bytes().to_vec());
    let settings = SETTINGS.into_iter().map(|(name, value)| (bytes(name), bytes(value)));
    let secret = (bytes(JIT_CONFIG), bytes(jit_config.expose_secret()));
    Job {
        arguments: ["sh", "-c", START].map(bytes).to_vec(),
        environment: settings.chain(environment).chain([secret]).collect(),
        directory: Some(bytes(directory)),
        user: None,
        terminal: None,
        stdin: false,
        copy_in: Vec::new(),
        copy_out: vec![bytes(&format!("{directory}/_diag"))],
        follow: None,
    }
}

/// Where a runner in `directory` keeps the lines of its job's steps until they were sent. They come
/// with its standard error, in which no marks are looked for: a step can print none.
pub fn pages(directory: &str) -> Bytes {
    format!("{directory}/_diag/pages").into_bytes().into()
}

/// Whether a job is a runner.
pub(super) fn is_runner(job: &Job) -> bool {
    job.environment.iter().any(|(name, _)| name.as_slice() == JIT_CONFIG.as_bytes())
}

/// What a runner said of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunnerMark {
    /// It found its configuration. Said before it was in touch with anybody: no proof of anything.
    Connected,
    /// It waits for a job.
    Listening,
    /// It can't reach GitHub, and tries again without end.
    Retrying,
    /// It has a job.
    Running {
        /// The job's name, as the workflow's author wrote it.
        job: String,
    },
    /// Its job is over.
    Completed {
        /// The job's name.
        job: String,
        /// How it went.
        result: JobResult,
    },
}

/// How a job of GitHub's went (`TaskResult` of the runner).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobResult {
    /// Well.
    Succeeded,
    /// Well, but for steps that may fail.
    SucceededWithIssues,
    /// A step failed.
    Failed,
    /// Somebody ended it.
    Canceled,
    /// It was not to run.
    Skipped,
    /// The runner lost it.
    Abandoned,
}

impl JobResult {
    /// All, in the order of the runner's own numbers.
    const ALL: [(Self, &str); 6] = [
        (Self::Succeeded, "Succeeded"),
        (Self::SucceededWithIssues, "SucceededWithIssues"),
        (Self::Failed, "Failed"),
        (Self::Canceled, "Canceled"),
        (Self::Skipped, "Skipped"),
        (Self::Abandoned, "Abandoned"),
    ];

    fn named(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == word).map(|(result, _)| *result)
    }
}

/// The longest line that can be a mark, in bytes. The names of jobs are shorter.
const LINE: usize = 4096;

/// Marks that are taken of one runner, which in its life has four to say, beside those of lost
/// connections.
const MARKS: usize = 32;

/// Marks that are taken of lost connections.
const RETRIES: usize = 32;

/// Finds marks in a runner's output, however it is cut into pieces. Holds one line at the most.
#[derive(Debug, Default)]
pub struct Marks {
    line: Vec<u8>,
    // The line is longer than one that is a mark.
    long: bool,
    found: usize,
    retries: usize,
}

impl Marks {
    /// The marks that these bytes complete.
    pub fn read(&mut self, bytes: &[u8]) -> Vec<RunnerMark> {
        let mut marks = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            self.long |= self.line.len() + text.len() > LINE;
            if !self.long {
                self.line.extend_from_slice(text);
            }
            if ends {
                if !self.long {
                    marks.extend(mark(&self.line).filter(|mark| self.is_taken(mark)));
                }
                self.line.clear();
                self.long = false;
            }
        }
        marks
    }

    /// Whether there were not too many of a mark's kind.
    fn is_taken(&mut self, mark: &RunnerMark) -> bool {
        let (found, most) = match mark {
            RunnerMark::Retrying => (&mut self.retries, RETRIES),
            _ => (&mut self.found, MARKS),
        };
        *found += 1;
        *found <= most
    }
}

/// The mark that a line is, if it is one.
fn mark(line: &[u8]) -> Option<RunnerMark> {
    let line = std::str::from_utf8(line).ok()?;
    let line = without_time(line.strip_suffix('\r').unwrap_or(line));
    match line {
        "√ Connected to GitHub" | "Connected to GitHub" => return Some(RunnerMark::Connected),
        "Listening for Jobs" => return Some(RunnerMark::Listening),
        _ if is_reconnected(line) => return Some(RunnerMark::Listening),
        _ if line.starts_with("Runner connect error") => return Some(RunnerMark::Retrying),
        _ => {}
    }
    if let Some(job) = line.strip_prefix("Running job: ") {
        return Some(RunnerMark::Running { job: printable(job) });
    }
    // A name may have the words in it, too; the last are the runner's.
    let (job, result) = line.strip_prefix("Job ")?.rsplit_once(" completed with result: ")?;
    Some(RunnerMark::Completed { job: printable(job), result: JobResult::named(result)? })
}

/// Whether a runner says that it found GitHub again, with a tick before the time.
fn is_reconnected(line: &str) -> bool {
    line.strip_prefix("√ ").is_some_and(|line| without_time(line) == "Runner reconnected.")
}

/// The line without the time that the listener puts before it: `2026-01-02 03:04:05Z: `.
fn without_time(line: &str) -> &str {
    const SHAPE: &[u8] = b"dddd-dd-dd dd:dd:ddZ: ";
    let alike = |(byte, shape): (u8, &u8)| match shape {
        b'd' => byte.is_ascii_digit(),
        _ => byte == *shape,
    };
    let fits = line.len() >= SHAPE.len() && line.bytes().zip(SHAPE).all(alike);
    if fits { &line[SHAPE.len()..] } else { line }
}

/// A text that does nothing to the terminal on which it is shown.
fn printable(text: &str) -> String {
    text.chars().map(|each| if each.is_control() { '\u{fffd}' } else { each }).collect()
}

/// What the exit status of `Runner.Listener run` means. That of `run.sh` is 0 for nearly all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Its job is over, however it went; or it was told to end, or GitHub dropped its registration
    /// while it waited.
    Done,
    /// It can't go on and never will: a bad configuration, a registration that is gone, a refusal.
    Terminal,
    /// Something unexpected, or GitHub could not be reached for long.
    Retryable,
    /// It wants to update itself first, which a runner for one job has no use for.
    Updating,
    /// Another runner has its session.
    SessionConflict,
    /// Its configuration was renewed and it wants to start again.
    Refreshed,
    /// GitHub no longer takes its version: the image needs a newer one.
    VersionDeprecated,
    /// A runner that was told to say how its job went
    /// (`ACTIONS_RUNNER_RETURN_JOB_RESULT_FOR_HOSTED`) says so.
    Job(JobResult),
    /// None of those that are known.
    Unknown(u8),
}

impl Meaning {
    /// The meaning of an exit status: the constants of the runner's `Constants.Runner.ReturnCode`.
    pub fn of(status: u8) -> Self {
        match status {
            0 => Self::Done,
            1 => Self::Terminal,
            2 => Self::Retryable,
            3 | 4 => Self::Updating,
            5 => Self::SessionConflict,
            6 => Self::Refreshed,
            7 => Self::VersionDeprecated,
            _ => status
                .checked_sub(100)
                .and_then(|number| JobResult::ALL.get(usize::from(number)))
                .map_or(Self::Unknown(status), |(result, _)| Self::Job(*result)),
        }
    }

    /// Whether the runner came to a regular end. Never that its job went well.
    pub fn is_regular(self) -> bool {
        matches!(self, Self::Done | Self::Job(_))
    }
}

/// How a runner ended, from all that is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conclusion {
    /// It said how its job went. A failure may also be a success whose report GitHub refused.
    Completed(JobResult),
    /// It had no job and ended as it should: its registration was removed, or it was told to go.
    Idle,
    /// It was interrupted, and ended before it said how its job went.
    Interrupted,
    /// It had a job, and ended as if all were well without saying how the job went: GitHub took the
    /// job back, or it died in between. Never a success.
    TakenBack,
    /// It ended with a job as it should not: the job is lost.
    Lost(Meaning),
    /// It ended without a job as it should not: the demand remains.
    Refused(Meaning),
}

/// What is known of a runner beside its exit status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    /// It said that it has a job.
    pub running: bool,
    /// It said how the job went.
    pub completed: Option<JobResult>,
    /// It was interrupted by Mayfly.
    pub interrupted: bool,
}

impl Heard {
    /// Takes in what happened to its microVM.
    pub fn hear(&mut self, happened: &Happened) {
        match happened {
            Happened::Runner(mark) => self.note(mark),
            Happened::Interrupted(_) => self.interrupted = true,
            _ => {}
        }
    }

    /// Takes in what a runner said.
    pub fn note(&mut self, mark: &RunnerMark) {
        match mark {
            RunnerMark::Running { .. } => self.running = true,
            RunnerMark::Completed { result, .. } => self.completed = Some(*result),
            RunnerMark::Connected | RunnerMark::Listening | RunnerMark::Retrying => {}
        }
    }
}

impl Conclusion {
    /// Decides by the exit status, as a shell gives it (128 and more for a signal), and what was
    /// heard.
    pub fn of(status: u8, heard: Heard) -> Self {
        const INTERRUPTED: [u8; 2] = [128 + 2, 128 + 15];
        let meaning = Meaning::of(status);
        let interrupted = heard.interrupted && INTERRUPTED.contains(&status);
        match (heard.completed, meaning) {
            (Some(result), _) | (None, Meaning::Job(result)) => Self::Completed(result),
            (None, Meaning::Done) if heard.running && heard.interrupted => Self::Interrupted,
            (None, _) if interrupted && heard.running => Self::Interrupted,
            (None, _) if interrupted => Self::Idle,
            (None, Meaning::Done) if heard.running => Self::TakenBack,
            (None, Meaning::Done) => Self::Idle,
            (None, meaning) if heard.running => Self::Lost(meaning),
            (None, meaning) => Self::Refused(meaning),
        }
    }

    /// Whether the next runner of the pool has to wait for a back-off, so that an outage of GitHub
    /// costs a few registrations and no storm of them.
    pub fn backs_off(self) -> bool {
        matches!(self, Self::Refused(_) | Self::Lost(_))
    }

    /// Whether there is nothing to say about it.
    pub fn is_regular(self) -> bool {
        matches!(self, Self::Completed(_) | Self::Idle | Self::Interrupted)
    }
}

impl fmt::Display for Conclusion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completed(_) => formatter.write_str("the runner said how its job went"),
            Self::Idle => formatter.write_str("the runner ended without a job"),
            Self::Interrupted => formatter.write_str("the runner was interrupted with its job"),
            Self::TakenBack => formatter.write_str(
                "the runner ended without saying how its job went: GitHub took the job back, or the \
                 runner died",
            ),
            Self::Lost(meaning) => write!(formatter, "{meaning}; its job is lost"),
            Self::Refused(meaning) => meaning.fmt(formatter),
        }
    }
}

impl fmt::Display for Meaning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Done => "the runner is done",
            Self::Terminal => {
                "the runner can't go on: its configuration or registration is not valid"
            }
            Self::Retryable => "the runner failed, or could not reach GitHub for long",
            Self::Updating => "the runner wants to update itself: build the image again",
            Self::SessionConflict => "another runner has this runner's session",
            Self::Refreshed => "the runner's configuration was renewed",
            Self::VersionDeprecated => {
                "GitHub no longer takes this version of the runner: build the image again"
            }
            Self::Job(_) => "the runner is done, and says how its job went",
            Self::Unknown(status) => {
                return write!(
                    formatter,
                    "the runner ended with status {status}, which means nothing known"
                );
            }
        })
    }
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
