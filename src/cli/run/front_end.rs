//! The front end of one microVM: sends commands, shows events, forwards signals.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use mayfly_protocol::message::{Job, JobExit, StartFailure};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::arguments::CopyOut;
use super::copy::{Copied, Copies};
use super::progress::Progress;
use super::terminal::{self, RawMode};
use super::timings::Timings;
use crate::microvm::MicrovmArguments;
use crate::output::print_stderr;
use crate::report::{self, CliError};
use mayfly_egress::policy::explain_missing;
use mayfly_failure::Code;
use mayfly_host::state::StateDirectory;
use mayfly_machine::console;
use mayfly_shepherd::event::{
    Event, EventKind, JobOutcome, Phase, describe_start_failure, out_of_memory_note,
};
use mayfly_shepherd::plan::{InterruptRequest, MicrovmPlan, ShepherdCommand};
use mayfly_shepherd::runner::{RunnerObservations, RunnerOutcome};
use mayfly_shepherd::{HandleError, JobDescriptors, ShepherdHandle, check_job, record};

/// The number of console lines that are shown after a failure.
const CONSOLE_LINES: usize = 8;

/// The failure causes that originate on this host.
const ENDED_BY_HOST: [&str; 6] =
    ["ended", "abandoned", "machine", "qemu_ended", "vsock_ended", "channel_closed"];

/// One job in one microVM, as a command requests it.
pub(crate) struct MicrovmTask<'a> {
    /// The microVM.
    pub(crate) plan: MicrovmPlan,
    /// The job.
    pub(crate) job: Job,
    /// The name of the job's program in messages.
    pub(crate) program: String,
    /// The arguments that are common to all commands.
    pub(crate) microvm: &'a MicrovmArguments,
    /// The destinations of the trees that the job copies out, in its order.
    pub(crate) copy_out: &'a [CopyOut],
    /// Whether a tree that can't be copied out is an error.
    pub(crate) must_copy: bool,
    /// For a runner: how long it may take to end after an interrupt.
    pub(crate) runner: Option<Duration>,
    /// For a runner: the URL of its GitHub server, whose hosts it needs.
    pub(crate) github: Option<String>,
}

/// Runs a task from the start of the shepherd to its end.
pub(crate) fn run_task(
    task: &MicrovmTask<'_>,
    state: &StateDirectory,
) -> Result<ExitCode, CliError> {
    // Fails early if the job does not fit into a message.
    check_job(&task.job)?;
    let start = ShepherdCommand::Start(Box::new(task.job.clone()));
    let copies = Copies::start(&task.microvm.copy_in, task.copy_out, task.plan.disk.0)?;
    // Prunes old black boxes. A failure to prune must not prevent the run.
    let _ = record::prune(&state.microvms());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
            CliError::file(format!("can't start the async runtime: {error}"), Code::Internal)
        })?;
    runtime.block_on(run_to_end(task, start, copies))
}

#[allow(clippy::needless_pass_by_value)] // The signature that `map_err` needs.
fn stream_error(error: io::Error) -> CliError {
    CliError::file(format!("can't set up signals and standard streams: {error}"), Code::Internal)
}

#[allow(clippy::needless_pass_by_value)] // The signature that `map_err` needs.
fn memory_error(error: io::Error) -> CliError {
    CliError::file(format!("can't limit the memory of this process: {error}"), Code::Internal)
}

/// Starts the shepherd and sends it the plan and the job.
fn start_shepherd(
    task: &MicrovmTask<'_>,
    start: &ShepherdCommand,
    copies: &mut Copies,
) -> Result<ShepherdHandle, CliError> {
    let descriptors = descriptors(&task.job, copies.descriptors()).map_err(stream_error)?;
    let mut shepherd = ShepherdHandle::spawn(&descriptors)?;
    // After the start of the shepherd, which must not inherit the limit.
    copies.limit_memory().map_err(memory_error)?;
    // The shepherd owns these ends now. An archive ends when its last writer is closed.
    drop(descriptors);
    shepherd.send_command(&ShepherdCommand::Prepare(Box::new(task.plan.clone())))?;
    shepherd.send_command(start)?;
    Ok(shepherd)
}

/// Starts the shepherd and handles events and signals until the microVM has ended.
async fn run_to_end(
    task: &MicrovmTask<'_>,
    start: ShepherdCommand,
    mut copies: Copies,
) -> Result<ExitCode, CliError> {
    let (plan, json) = (&task.plan, task.microvm.json);
    let mut signals = Signals::listen().map_err(stream_error)?;
    let mut shepherd = start_shepherd(task, &start, &mut copies)?;
    let (mut timings, progress) = (Timings::default(), Progress::start(json));
    let (mut running, mut raw, mut observations) = (false, None, RunnerObservations::default());
    let outcome = loop {
        tokio::select! {
            event = shepherd.next_event() => match event {
                None => break None,
                Some(event) => {
                    timings.note(&event);
                    progress.note(&event);
                    observations.observe(&event.kind);
                    warn_of_egress(task, &event.kind);
                    if event.kind == EventKind::Phase(Phase::Running) {
                        running = true;
                        // From here on, Ctrl-C is a key for the command, not a signal.
                        raw = raw_mode(&task.job).map_err(stream_error)?;
                    }
                    if let Some(outcome) = show(event, json) {
                        break Some(outcome);
                    }
                }
            },
            number = signals.next() => {
                shepherd.send_command(&signals.command(number, running, task.runner)).map(drop)?;
            }
        }
    };
    let signal = signals.ending_signal(outcome.as_ref()).await;
    let ended = shepherd.wait().await?;
    drop(raw);
    if task.microvm.timings {
        print_stderr(timings.table().trim_end());
    }
    let copied = copies.end();
    match outcome {
        None => {
            copied.warn();
            report::print_evidence(&plan.directory);
            match signal {
                Some(number) => Ok(signal_exit_code(number)),
                None => Err(HandleError::Exited(ended).into()),
            }
        }
        Some(JobOutcome::Failed(failure)) => {
            copied.warn();
            for host in &copied.empty {
                report::warning(&format!("nothing was copied out to {}", host.display()));
            }
            let lines = console::tail(&plan.directory.join("console.log"), CONSOLE_LINES);
            let code = report::microvm_failure(&failure, &lines);
            Ok(signal.map_or(code, signal_exit_code))
        }
        Some(JobOutcome::Job { status, not_copied, oom_kills }) => {
            warn_of_memory(&status, oom_kills);
            finish(&status, &not_copied, copied, task, observations)
        }
    }
}

/// Prints a warning if the job may have failed because of too little memory.
fn warn_of_memory(status: &JobExit, kills: u64) {
    if let Some(cause) = out_of_memory_note(status, kills) {
        report::warning(&format!("{cause}; use a larger --memory"));
    }
}

/// Prints a warning about refused connections that the job needs.
fn warn_of_egress(task: &MicrovmTask<'_>, event: &EventKind) {
    if let EventKind::Egress(report) = event
        && let Some(warning) = task.github.as_ref().and_then(|url| explain_missing(url, report))
    {
        report::warning(&warning);
    }
}

/// Returns the exit code that shells use for a command that a signal ended.
fn signal_exit_code(number: i32) -> ExitCode {
    ExitCode::from(128_u8.saturating_add(u8::try_from(number).unwrap_or_default()))
}

fn raw_mode(job: &Job) -> io::Result<Option<RawMode>> {
    if job.terminal.is_some() && job.stdin { RawMode::enter() } else { Ok(None) }
}

/// Returns the command's exit status, or an error if that is 0 and something else failed.
fn finish(
    status: &JobExit,
    not_copied: &[String],
    copied: Copied,
    task: &MicrovmTask<'_>,
    observations: RunnerObservations,
) -> Result<ExitCode, CliError> {
    match status {
        JobExit::Code(0) if task.must_copy => {
            if let Some(first) = not_copied.first() {
                return Err(CliError::file(format!("can't copy out {first}"), Code::NotFound));
            }
            match copied.not_unpacked.into_iter().next() {
                Some(error) => Err(error.into()),
                None => Ok(ExitCode::SUCCESS),
            }
        }
        JobExit::Code(code) => {
            warn_not_copied(not_copied, &copied);
            warn_of_runner_outcome(*code, task, observations);
            Ok(ExitCode::from(*code))
        }
        JobExit::Signal(number) => {
            warn_not_copied(not_copied, &copied);
            warn_of_runner_outcome(128_u8.saturating_add(*number), task, observations);
            Ok(signal_exit_code((*number).into()))
        }
        // If the guest can't unpack a tree, the cause is often that it could not be packed.
        JobExit::NotStarted(StartFailure::CopyInFailed(index, why)) => {
            copied.packed?;
            let copy = task.microvm.copy_in.get(usize::from(*index));
            let path = copy.map_or_else(String::new, |copy| copy.host.display().to_string());
            Err(CliError::file(format!("can't copy {path} in: {why}"), Code::CannotWrite))
        }
        JobExit::NotStarted(why) => {
            let (code, why) = describe_start_failure(why, &task.program);
            Err(CliError::file(why, code))
        }
    }
}

/// Prints a warning if a runner did not end regularly.
fn warn_of_runner_outcome(status: u8, task: &MicrovmTask<'_>, observations: RunnerObservations) {
    if task.runner.is_some() {
        let outcome = RunnerOutcome::new(status, observations);
        if !outcome.is_regular() {
            report::warning(&outcome.to_string());
        }
    }
}

/// Prints warnings about trees that were not copied out.
fn warn_not_copied(not_copied: &[String], copied: &Copied) {
    for what in not_copied {
        report::warning(&format!("can't copy out {what}"));
    }
    copied.warn();
}

/// Prints an event as JSON if requested, and returns the outcome if the event has one.
fn show(event: Event, json: bool) -> Option<JobOutcome> {
    if json && let Ok(line) = serde_json::to_string(&event) {
        print_stderr(line);
    }
    match event.kind {
        EventKind::Ended(outcome) => Some(outcome),
        _ => None,
    }
}

fn descriptors(job: &Job, copies: Vec<OwnedFd>) -> io::Result<JobDescriptors> {
    let stdin = if job.stdin {
        io::stdin().as_fd().try_clone_to_owned()?
    } else {
        std::fs::File::open("/dev/null")?.into()
    };
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    Ok(JobDescriptors { standard: [stdin, stdout, stderr], copies })
}

/// The signals of this process, translated into commands for the shepherd.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
    window: Signal,
    // The first signal that requested the end.
    end_signal: Option<i32>,
}

/// How long to wait for a signal that may already have ended QEMU.
const SIGNAL_DELAY: Duration = Duration::from_millis(500);

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            window: signal(SignalKind::window_change())?,
            end_signal: None,
        })
    }

    /// Waits for the next signal and returns its number. Cancel safe.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.window.recv() => libc::SIGWINCH,
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = self.hang_up.recv() => libc::SIGHUP,
            _ = self.quit.recv() => libc::SIGQUIT,
        }
    }

    /// Translates a signal into a command. The first signal to end goes to the job's command if
    /// that runs already; the second one ends the microVM.
    fn command(&mut self, number: i32, running: bool, runner: Option<Duration>) -> ShepherdCommand {
        if number == libc::SIGWINCH {
            return ShepherdCommand::Resize(terminal::size());
        }
        let again = self.end_signal.replace(self.end_signal.unwrap_or(number)).is_some();
        match runner {
            _ if again || !running => ShepherdCommand::End,
            None => ShepherdCommand::Signal(number),
            // SIGTERM kills a runner on .NET 10 and leaves its job hanging at GitHub; SIGINT is
            // orderly on every version.
            Some(within) => {
                let name = nix::sys::signal::Signal::try_from(number);
                let name = name.map_or_else(|_| number.to_string(), |signal| signal.to_string());
                ShepherdCommand::Interrupt(InterruptRequest {
                    grace: within,
                    reason: format!("mayfly once received {name}"),
                })
            }
        }
    }

    /// Returns the signal that caused the microVM's end, if any. A signal to the whole process
    /// group also ends QEMU, and that event can arrive first.
    async fn ending_signal(&mut self, outcome: Option<&JobOutcome>) -> Option<i32> {
        let by_host = match outcome {
            None => true,
            Some(JobOutcome::Failed(failure)) => ENDED_BY_HOST.contains(&failure.cause.as_str()),
            Some(JobOutcome::Job { .. }) => false,
        };
        if !by_host {
            return None;
        }
        let waiting = async {
            while self.end_signal.is_none() {
                let number = self.next().await;
                if number != libc::SIGWINCH {
                    self.end_signal = Some(number);
                }
            }
        };
        // A timeout means that no signal was sent.
        let _ = tokio::time::timeout(SIGNAL_DELAY, waiting).await;
        self.end_signal
    }
}
