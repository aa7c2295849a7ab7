//! The front end of one microVM: gives the orders, shows the events, passes on signals.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use mayfly_protocol::message::{Job, JobStatus, NotStarted};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::arguments::CopyOut;
use super::copy::{Copied, Copies};
use super::progress::Progress;
use super::terminal::{self, RawMode};
use super::timings::Timings;
use crate::cli::microvm::MicrovmArguments;
use crate::cli::output::tell;
use crate::cli::report::{self, Problem};
use crate::egress::record::Report;
use crate::failure::Code;
use crate::host::state::StateDirectory;
use crate::machine::console;
use crate::shepherd::event::{Event, Happened, Outcome, Phase, out_of_memory};
use crate::shepherd::plan::{Farewell, Order, Plan};
use crate::shepherd::runner::{Conclusion, Heard};
use crate::shepherd::{Descriptors, Handle, HandleError, check_job, record};

/// Lines of the console that are shown after a failure.
const CONSOLE_LINES: usize = 8;

/// The causes of ends that come from this host.
const ENDED_BY_HOST: [&str; 6] =
    ["ended", "abandoned", "machine", "qemu_ended", "vsock_ended", "channel_closed"];

/// One job in one microVM, as a verb wants it.
pub(crate) struct Errand<'a> {
    /// The microVM.
    pub(crate) plan: Plan,
    /// The job.
    pub(crate) job: Job,
    /// What a person calls the job's program.
    pub(crate) command: String,
    /// The arguments that are common to all verbs.
    pub(crate) microvm: &'a MicrovmArguments,
    /// Where the trees go that the job has copied out, in its order.
    pub(crate) copy_out: &'a [CopyOut],
    /// Whether a tree that is not copied out fails it.
    pub(crate) must_copy: bool,
    /// Of a job that is a runner: how long it may take to end once it was interrupted.
    pub(crate) runner: Option<Duration>,
    /// What there is to say about what it was refused.
    pub(crate) judge_egress: fn(&Report) -> Option<String>,
}

/// Carries it out, from the start of a shepherd to its end.
pub(crate) fn carry_out(errand: &Errand<'_>, state: &StateDirectory) -> Result<ExitCode, Problem> {
    // What does not fit is found out before anything is started.
    check_job(&errand.job)?;
    let start = Order::Start(Box::new(errand.job.clone()));
    let copies = Copies::begin(&errand.microvm.copy_in, errand.copy_out, errand.plan.disk.0)?;
    // Old evidence makes room for new; that it could not is no reason not to run.
    let _ = record::prune(&state.microvms());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
            Problem::file(format!("can't wait for events: {error}"), Code::Internal)
        })?;
    runtime.block_on(follow(errand, start, copies))
}

#[allow(clippy::needless_pass_by_value)] // As `map_err` wants it.
fn refused(error: io::Error) -> Problem {
    Problem::file(format!("can't take the standard streams: {error}"), Code::Internal)
}

#[allow(clippy::needless_pass_by_value)] // As `map_err` wants it.
fn unbounded(error: io::Error) -> Problem {
    Problem::file(format!("can't bound the memory of this process: {error}"), Code::Internal)
}

/// Starts the shepherd and gives it what it is to do.
fn give(errand: &Errand<'_>, start: &Order, copies: &mut Copies) -> Result<Handle, Problem> {
    let descriptors = descriptors(&errand.job, copies.descriptors()).map_err(refused)?;
    let mut shepherd = Handle::spawn(&descriptors)?;
    // Only now: the shepherd must not inherit it.
    copies.bound_memory().map_err(unbounded)?;
    // The ends are the shepherd's now; an archive ends when the last of its writers is gone.
    drop(descriptors);
    shepherd.order(&Order::Prepare(Box::new(errand.plan.clone())))?;
    shepherd.order(start)?;
    Ok(shepherd)
}

/// From the order to the end.
async fn follow(
    errand: &Errand<'_>,
    start: Order,
    mut copies: Copies,
) -> Result<ExitCode, Problem> {
    let (plan, json) = (&errand.plan, errand.microvm.json);
    let mut signals = Signals::take().map_err(refused)?;
    let mut shepherd = give(errand, &start, &mut copies)?;
    let (mut timings, progress) = (Timings::default(), Progress::begin(json));
    let (mut running, mut raw, mut heard) = (false, None, Heard::default());
    let outcome = loop {
        tokio::select! {
            event = shepherd.event() => match event {
                None => break None,
                Some(event) => {
                    timings.note(&event);
                    progress.note(&event);
                    heard.hear(&event.happened);
                    judge_egress(errand, &event.happened);
                    if event.happened == Happened::Phase(Phase::Running) {
                        running = true;
                        // Until now Ctrl-C was for this program; from here on it is a key.
                        raw = raw_mode(&errand.job).map_err(refused)?;
                    }
                    if let Some(outcome) = show(event, json) {
                        break Some(outcome);
                    }
                }
            },
            number = signals.next() => {
                shepherd.order(&signals.order(number, running, errand.runner)).map(drop)?;
            }
        }
    };
    let signal = signals.that_ended(outcome.as_ref()).await;
    let ended = shepherd.ended().await?;
    drop(raw);
    if errand.microvm.timings {
        tell(timings.table().trim_end());
    }
    let copied = copies.end();
    match outcome {
        None => {
            copied.warn();
            report::evidence(&plan.directory);
            match signal {
                Some(number) => Ok(by_signal(number)),
                None => Err(HandleError::Vanished(ended).into()),
            }
        }
        Some(Outcome::Failed(failure)) => {
            copied.warn();
            for host in &copied.nothing_for {
                report::warning(&format!("nothing was copied out to {}", host.display()));
            }
            let lines = console::tail(&plan.directory.join("console.log"), CONSOLE_LINES);
            let code = report::failed(&failure, &lines);
            Ok(signal.map_or(code, by_signal))
        }
        Some(Outcome::Job { status, not_copied, oom_kills }) => {
            warn_of_memory(&status, oom_kills);
            finish(&status, &not_copied, copied, errand, heard)
        }
    }
}

/// Says that memory was short, where that may be why the job did not end well.
fn warn_of_memory(status: &JobStatus, kills: u64) {
    if let Some(cause) = out_of_memory(status, kills) {
        report::warning(&format!("{cause}; give it more with --memory"));
    }
}

/// Says what the job needs and was refused.
fn judge_egress(errand: &Errand<'_>, happened: &Happened) {
    if let Happened::Egress(report) = happened
        && let Some(warning) = (errand.judge_egress)(report)
    {
        report::warning(&warning);
    }
}

/// The exit status of a shell's command that a signal ended.
fn by_signal(number: i32) -> ExitCode {
    ExitCode::from(128_u8.saturating_add(u8::try_from(number).unwrap_or_default()))
}

fn raw_mode(job: &Job) -> io::Result<Option<RawMode>> {
    if job.terminal.is_some() && job.stdin { RawMode::enter() } else { Ok(None) }
}

/// The command's own exit status, unless it is 0 and something else went wrong.
fn finish(
    status: &JobStatus,
    not_copied: &[String],
    copied: Copied,
    errand: &Errand<'_>,
    heard: Heard,
) -> Result<ExitCode, Problem> {
    match status {
        JobStatus::Code(0) if errand.must_copy => {
            if let Some(first) = not_copied.first() {
                return Err(Problem::file(format!("can't copy out {first}"), Code::NotFound));
            }
            match copied.not_unpacked.into_iter().next() {
                Some(error) => Err(error.into()),
                None => Ok(ExitCode::SUCCESS),
            }
        }
        JobStatus::Code(code) => {
            warn(not_copied, &copied);
            conclude(*code, errand, heard);
            Ok(ExitCode::from(*code))
        }
        JobStatus::Signal(number) => {
            warn(not_copied, &copied);
            conclude(128_u8.saturating_add(*number), errand, heard);
            Ok(by_signal((*number).into()))
        }
        // A tree that could not be unpacked is often one that could not be packed.
        JobStatus::NotStarted(NotStarted::CopyInFailed(index, why)) => {
            copied.packed?;
            let copy = errand.microvm.copy_in.get(usize::from(*index));
            let path = copy.map_or_else(String::new, |copy| copy.host.display().to_string());
            Err(Problem::file(format!("can't copy {path} in: {why}"), Code::CannotWrite))
        }
        JobStatus::NotStarted(why) => Err(not_started(why, &errand.command)),
    }
}

/// Says how a runner ended, where it did not end well.
fn conclude(status: u8, errand: &Errand<'_>, heard: Heard) {
    if errand.runner.is_some() {
        let conclusion = Conclusion::of(status, heard);
        if !conclusion.is_regular() {
            report::warning(&conclusion.to_string());
        }
    }
}

/// Says what was not copied out, where the command's own status is the run's.
fn warn(not_copied: &[String], copied: &Copied) {
    for what in not_copied {
        report::warning(&format!("can't copy out {what}"));
    }
    copied.warn();
}

fn not_started(why: &NotStarted, command: &str) -> Problem {
    match why {
        NotStarted::CommandNotFound => {
            Problem::file(format!("{command}: no such command in the image"), Code::CommandNotFound)
        }
        NotStarted::CommandNotExecutable(why) => {
            Problem::file(format!("can't execute {command}: {why}"), Code::CommandNotExecutable)
        }
        NotStarted::UserNotFound(user) => {
            Problem::file(format!("there is no user {user:?} in the image"), Code::NotFound)
        }
        NotStarted::DirectoryNotEntered(why) => {
            Problem::file(format!("can't start in the working directory: {why}"), Code::NotFound)
        }
        NotStarted::CopyInFailed(_, why) | NotStarted::Other(why) => {
            Problem::file(format!("the command did not start: {why}"), Code::MachineFailed)
        }
    }
}

/// Shows an event, if asked to; gives the outcome, if it is that.
fn show(event: Event, json: bool) -> Option<Outcome> {
    if json && let Ok(line) = serde_json::to_string(&event) {
        tell(line);
    }
    match event.happened {
        Happened::Ended(outcome) => Some(outcome),
        _ => None,
    }
}

fn descriptors(job: &Job, copies: Vec<OwnedFd>) -> io::Result<Descriptors> {
    let stdin = if job.stdin {
        io::stdin().as_fd().try_clone_to_owned()?
    } else {
        std::fs::File::open("/dev/null")?.into()
    };
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    Ok(Descriptors { standard: [stdin, stdout, stderr], copies })
}

/// The signals that reach this process, as orders for the shepherd.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
    window: Signal,
    // The first that asked for the end.
    asked_to_end: Option<i32>,
}

/// How long a signal may take to reach this process after it has ended QEMU.
const STRAGGLER: Duration = Duration::from_millis(500);

impl Signals {
    fn take() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            window: signal(SignalKind::window_change())?,
            asked_to_end: None,
        })
    }

    /// The next signal, by its number. Nothing is lost where the wait is given up.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.window.recv() => libc::SIGWINCH,
            _ = self.interrupt.recv() => libc::SIGINT,
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = self.hang_up.recv() => libc::SIGHUP,
            _ = self.quit.recv() => libc::SIGQUIT,
        }
    }

    /// What a signal means: the first of those that end a process is for the command if there is
    /// one yet, the second ends the microVM.
    fn order(&mut self, number: i32, running: bool, runner: Option<Duration>) -> Order {
        if number == libc::SIGWINCH {
            return Order::Resize(terminal::size());
        }
        let again = self.asked_to_end.replace(self.asked_to_end.unwrap_or(number)).is_some();
        match runner {
            _ if again || !running => Order::End,
            None => Order::Signal(number),
            // SIGTERM kills a runner on .NET 10 and leaves its job hanging at GitHub; SIGINT is
            // orderly on every version.
            Some(within) => {
                let name = nix::sys::signal::Signal::try_from(number);
                let name = name.map_or_else(|_| number.to_string(), |signal| signal.to_string());
                Order::Farewell(Farewell { within, why: format!("mayfly once got {name}") })
            }
        }
    }

    /// The signal that is behind the microVM's end, if one is. One that was sent to all processes
    /// ends QEMU, too, and what is heard of that can be faster.
    async fn that_ended(&mut self, outcome: Option<&Outcome>) -> Option<i32> {
        let by_host = match outcome {
            None => true,
            Some(Outcome::Failed(failure)) => ENDED_BY_HOST.contains(&failure.cause.as_str()),
            Some(Outcome::Job { .. }) => false,
        };
        if !by_host {
            return None;
        }
        let waiting = async {
            while self.asked_to_end.is_none() {
                let number = self.next().await;
                if number != libc::SIGWINCH {
                    self.asked_to_end = Some(number);
                }
            }
        };
        // Without one nobody has sent any.
        let _ = tokio::time::timeout(STRAGGLER, waiting).await;
        self.asked_to_end
    }
}
