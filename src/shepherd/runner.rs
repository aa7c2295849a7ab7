//! A GitHub Actions runner as a job: its start command, its console output and its exit statuses.
//!
//! Names and texts are those of `actions/runner` 2.336. The output comes from the runner, but once
//! a job runs as the same user it may come from the job. Use it for progress and diagnosis, never
//! for trust decisions.

use std::fmt;

use data_encoding::BASE64;
use mayfly_protocol::message::{Bytes, Job};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::{Deserialize, Serialize};

use super::event::EventKind;
use mayfly_common::text::replace_deceptive;

/// The variable with the runner's just-in-time configuration.
pub const JIT_CONFIG: &str = "ACTIONS_RUNNER_INPUT_JITCONFIG";

/// The program of a runner's job.
pub const PROGRAM: &str = "sh";

/// The runner's directory in an image.
pub const DIRECTORY: &str = "/home/runner/actions-runner";

/// Replaces the shell by the listener, so that no other process keeps the environment. `run.sh` is
/// for runners with another layout.
const START_SCRIPT: &str =
    "[ -x bin/Runner.Listener ] && exec bin/Runner.Listener run; exec ./run.sh";

/// Variables of the runner: `run.sh` forwards signals, and a deprecated version has its own exit
/// status.
const VARIABLES: [(&str, &str); 2] = [
    ("RUNNER_MANUALLY_TRAP_SIG", "1"),
    ("ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE", "1"),
];

/// Returns the job that runs a runner for one GitHub job in `directory` of the guest. Variables of
/// `environment` take precedence over Mayfly's own. The runner's logs are copied out at the end.
///
/// The configuration, which contains a private key, reaches the runner in its environment. Mayfly
/// writes it to no disk of the host, no argument, and no environment of a process that outlives the
/// start. The runner itself writes it to the guest's disk at once, as `.runner`, `.credentials` and
/// `.credentials_rsaparams` beside its programs. Its job, which runs as the same user, can read it
/// there until the runner ends. It is only valid for this one registration and this one job; it
/// ends with the job, and the disk ends with the microVM. Only `_diag` is copied out, which
/// contains none of these files.
pub fn job(
    jit_config: &SecretString,
    environment: impl IntoIterator<Item = (Bytes, Bytes)>,
    directory: &str,
) -> Job {
    let bytes = |text: &str| Bytes::from(text.as_bytes().to_vec());
    let settings = VARIABLES.into_iter().map(|(name, value)| (bytes(name), bytes(value)));
    let secret = (bytes(JIT_CONFIG), bytes(jit_config.expose_secret()));
    Job {
        arguments: [PROGRAM, "-c", START_SCRIPT].map(bytes).to_vec(),
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

/// Returns the URL of the runner's scope from its configuration: the key `GitHubUrl` of its file
/// `.runner`. `None` if it has none. Unchecked, so only for messages.
pub fn github_url(jit_config: &SecretString) -> Option<String> {
    #[derive(Deserialize)]
    struct Files {
        #[serde(rename = ".runner")]
        runner: SecretString,
    }
    #[derive(Deserialize)]
    struct RunnerFile {
        #[serde(rename = "GitHubUrl")]
        url: String,
    }
    let decode = |text: &SecretString| {
        Some(SecretSlice::from(BASE64.decode(text.expose_secret().as_bytes()).ok()?))
    };
    let files: Files = serde_json::from_slice(decode(jit_config)?.expose_secret()).ok()?;
    let file: RunnerFile = serde_json::from_slice(decode(&files.runner)?.expose_secret()).ok()?;
    Some(file.url)
}

/// Returns the directory in which a runner in `directory` stores its steps' log lines until they
/// are uploaded. They are sent as standard error, which is not parsed for progress, so a step can't
/// fake any.
pub fn log_pages(directory: &str) -> Bytes {
    format!("{directory}/_diag/pages").into_bytes().into()
}

/// Whether a job is a runner.
pub(super) fn is_runner(job: &Job) -> bool {
    job.environment.iter().any(|(name, _)| name.as_slice() == JIT_CONFIG.as_bytes())
}

/// A runner's progress, from its output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunnerProgress {
    /// It found its configuration. Printed before any connection, so it proves nothing.
    Connected,
    /// It waits for a job.
    Listening,
    /// It can't reach GitHub and keeps trying.
    Retrying,
    /// It has a job.
    Running {
        /// The job's name, as the workflow's author wrote it.
        job: String,
    },
    /// Its job ended.
    Completed {
        /// The job's name.
        job: String,
        /// The job's result.
        result: RunnerResult,
    },
}

/// The result of a GitHub job (`TaskResult` of the runner).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunnerResult {
    /// All steps succeeded.
    Succeeded,
    /// Succeeded, except for steps that may fail.
    SucceededWithIssues,
    /// A step failed.
    Failed,
    /// It was canceled.
    Canceled,
    /// It was skipped.
    Skipped,
    /// The runner lost it.
    Abandoned,
}

impl RunnerResult {
    /// All results, in the order of the runner's numbers.
    const ALL: [(Self, &str); 6] = [
        (Self::Succeeded, "Succeeded"),
        (Self::SucceededWithIssues, "SucceededWithIssues"),
        (Self::Failed, "Failed"),
        (Self::Canceled, "Canceled"),
        (Self::Skipped, "Skipped"),
        (Self::Abandoned, "Abandoned"),
    ];

    fn from_name(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == word).map(|(result, _)| *result)
    }
}

/// Maximum length, in bytes, of a line with progress. Job names are shorter.
const MAX_LINE: usize = 4096;

/// Maximum number of progress lines of one runner of each of three kinds: those on its connection,
/// those on lost connections, and those on its job. A runner usually prints two of the first and
/// two of the last. Each kind has its own limit, so that a flapping network can't hide a job's
/// result.
const MAX_OF_A_KIND: usize = 32;

/// Parses progress from a runner's output in chunks of any size. Buffers at most one line.
#[derive(Debug, Default)]
pub struct ProgressParser {
    line: Vec<u8>,
    // The line is too long to be progress.
    long: bool,
    connections: usize,
    retries: usize,
    jobs: usize,
}

impl ProgressParser {
    /// Parses a chunk and returns the progress of all lines that it completes.
    pub fn read(&mut self, bytes: &[u8]) -> Vec<RunnerProgress> {
        let mut progress = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            self.long |= self.line.len() + text.len() > MAX_LINE;
            if !self.long {
                self.line.extend_from_slice(text);
            }
            if ends {
                if !self.long {
                    progress.extend(parse_line(&self.line).filter(|one| self.is_within_limit(one)));
                }
                self.line.clear();
                self.long = false;
            }
        }
        progress
    }

    /// Counts a line of progress and checks the limit of its kind.
    fn is_within_limit(&mut self, progress: &RunnerProgress) -> bool {
        let found = match progress {
            RunnerProgress::Connected | RunnerProgress::Listening => &mut self.connections,
            RunnerProgress::Retrying => &mut self.retries,
            RunnerProgress::Running { .. } | RunnerProgress::Completed { .. } => &mut self.jobs,
        };
        *found += 1;
        *found <= MAX_OF_A_KIND
    }
}

/// Parses a line of progress.
fn parse_line(line: &[u8]) -> Option<RunnerProgress> {
    let line = std::str::from_utf8(line).ok()?;
    let line = without_time(line.strip_suffix('\r').unwrap_or(line));
    match line {
        "√ Connected to GitHub" | "Connected to GitHub" => {
            return Some(RunnerProgress::Connected);
        }
        "Listening for Jobs" => return Some(RunnerProgress::Listening),
        _ if is_reconnected(line) => return Some(RunnerProgress::Listening),
        _ if line.starts_with("Runner connect error") => return Some(RunnerProgress::Retrying),
        _ => {}
    }
    if let Some(job) = line.strip_prefix("Running job: ") {
        return Some(RunnerProgress::Running { job: shown_name(job) });
    }
    // A job's name may contain this text, too; the last occurrence is the runner's.
    let (job, result) = line.strip_prefix("Job ")?.rsplit_once(" completed with result: ")?;
    Some(RunnerProgress::Completed {
        job: shown_name(job),
        result: RunnerResult::from_name(result)?,
    })
}

/// Whether a line reports a restored connection; the check mark comes before the time.
fn is_reconnected(line: &str) -> bool {
    line.strip_prefix("√ ").is_some_and(|line| without_time(line) == "Runner reconnected.")
}

/// Strips the time that the listener prints first: `2026-01-02 03:04:05Z: `.
fn without_time(line: &str) -> &str {
    const SHAPE: &[u8] = b"dddd-dd-dd dd:dd:ddZ: ";
    let alike = |(byte, shape): (u8, &u8)| match shape {
        b'd' => byte.is_ascii_digit(),
        _ => byte == *shape,
    };
    let fits = line.len() >= SHAPE.len() && line.bytes().zip(SHAPE).all(alike);
    if fits { &line[SHAPE.len()..] } else { line }
}

/// Returns a job's name, safe to show on a terminal.
fn shown_name(job: &str) -> String {
    replace_deceptive(job, char::REPLACEMENT_CHARACTER)
}

/// The meaning of the exit status of `Runner.Listener run`. `run.sh` mostly exits with 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerExit {
    /// Its job ended, with any result; or it was told to end; or GitHub removed its registration
    /// while it waited.
    Done,
    /// A permanent error: a bad configuration, a missing registration, a refusal.
    Terminal,
    /// An unexpected error, or GitHub could not be reached for a long time.
    Retryable,
    /// It wants to update itself first, which is useless for a single job.
    Updating,
    /// Another runner uses its session.
    SessionConflict,
    /// Its configuration was renewed and it wants to restart.
    Refreshed,
    /// GitHub no longer accepts its version: the image needs a newer one.
    VersionDeprecated,
    /// The result of its job, if the runner is set to return it
    /// (`ACTIONS_RUNNER_RETURN_JOB_RESULT_FOR_HOSTED`).
    Job(RunnerResult),
    /// An unknown status.
    Unknown(u8),
}

impl RunnerExit {
    /// Decodes an exit status (`Constants.Runner.ReturnCode` of the runner).
    pub fn from_status(status: u8) -> Self {
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
                .and_then(|number| RunnerResult::ALL.get(usize::from(number)))
                .map_or(Self::Unknown(status), |(result, _)| Self::Job(*result)),
        }
    }

    /// Whether the runner ended regularly. Does not mean that its job succeeded.
    pub fn is_regular(self) -> bool {
        matches!(self, Self::Done | Self::Job(_))
    }
}

/// How a runner ended, from everything that is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerOutcome {
    /// It reported its job's result. A failure may be a success that GitHub did not accept.
    Completed(RunnerResult),
    /// It had no job and ended regularly: its registration was removed, or it was told to end.
    Idle,
    /// It was interrupted and ended before it reported its job's result.
    Interrupted,
    /// It had a job and ended regularly without reporting a result: GitHub took the job back, or
    /// the runner died in between. Never a success.
    TakenBack,
    /// It failed with a job: the job is lost.
    Lost(RunnerExit),
    /// It failed without a job: the demand remains.
    Refused(RunnerExit),
}

/// What is known of a runner besides its exit status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunnerObservations {
    /// It reported that it has a job.
    pub running: bool,
    /// The result of its job, if it reported one.
    pub completed: Option<RunnerResult>,
    /// Mayfly interrupted it.
    pub interrupted: bool,
}

impl RunnerObservations {
    /// Records an event of its microVM.
    pub fn observe(&mut self, kind: &EventKind) {
        match kind {
            EventKind::Runner(progress) => self.observe_progress(progress),
            EventKind::Interrupted(_) => self.interrupted = true,
            _ => {}
        }
    }

    /// Records its progress.
    pub fn observe_progress(&mut self, progress: &RunnerProgress) {
        match progress {
            RunnerProgress::Running { .. } => self.running = true,
            RunnerProgress::Completed { result, .. } => self.completed = Some(*result),
            RunnerProgress::Connected | RunnerProgress::Listening | RunnerProgress::Retrying => {}
        }
    }
}

impl RunnerOutcome {
    /// Derives the outcome from what was observed and the exit status, as a shell reports it (128
    /// and more for a signal).
    pub fn new(status: u8, observed: RunnerObservations) -> Self {
        const INTERRUPTED: [u8; 2] = [128 + 2, 128 + 15];
        let exit = RunnerExit::from_status(status);
        let interrupted = observed.interrupted && INTERRUPTED.contains(&status);
        match (observed.completed, exit) {
            (Some(result), _) | (None, RunnerExit::Job(result)) => Self::Completed(result),
            (None, RunnerExit::Done) if observed.running && observed.interrupted => {
                Self::Interrupted
            }
            (None, _) if interrupted && observed.running => Self::Interrupted,
            (None, _) if interrupted => Self::Idle,
            (None, RunnerExit::Done) if observed.running => Self::TakenBack,
            (None, RunnerExit::Done) => Self::Idle,
            (None, exit) if observed.running => Self::Lost(exit),
            (None, exit) => Self::Refused(exit),
        }
    }

    /// Whether the pool's next runner must wait for a back-off, so that an outage of GitHub does
    /// not cause a flood of registrations.
    pub fn needs_backoff(self) -> bool {
        matches!(self, Self::Refused(_) | Self::Lost(_))
    }

    /// Whether the runner ended regularly.
    pub fn is_regular(self) -> bool {
        matches!(self, Self::Completed(_) | Self::Idle | Self::Interrupted)
    }
}

impl fmt::Display for RunnerOutcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completed(_) => formatter.write_str("the runner reported its job's result"),
            Self::Idle => formatter.write_str("the runner ended without a job"),
            Self::Interrupted => {
                formatter.write_str("the runner was interrupted while it ran a job")
            }
            Self::TakenBack => formatter.write_str(
                "the runner ended without a result for its job: GitHub took the job back, or the \
                 runner died",
            ),
            Self::Lost(exit) => write!(formatter, "{exit}; its job is lost"),
            Self::Refused(exit) => exit.fmt(formatter),
        }
    }
}

impl fmt::Display for RunnerExit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Done => "the runner is done",
            Self::Terminal => "the runner's configuration or registration is not valid",
            Self::Retryable => "the runner failed or could not reach GitHub for a long time",
            Self::Updating => "the runner wants to update itself: rebuild the image",
            Self::SessionConflict => "another runner uses this runner's session",
            Self::Refreshed => "the runner's configuration was renewed",
            Self::VersionDeprecated => {
                "GitHub no longer accepts this runner version: rebuild the image"
            }
            Self::Job(_) => "the runner is done and reported its job's result",
            Self::Unknown(status) => {
                return write!(formatter, "the runner ended with the unknown exit status {status}");
            }
        })
    }
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
