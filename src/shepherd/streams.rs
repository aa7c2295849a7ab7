//! The streams of a job, between the channel and either the descriptors of the front end or the
//! files of a detached microVM.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use mayfly_protocol::message::{HostMessage, InputStream, Job, JobExit, OutputStream};
use tokio::sync::mpsc;

use super::cause::FailureCause;
use super::context::Context;
use super::detached::DetachedLimits;
use super::egress;
use super::event::{EventKind, Phase};
use super::output::{self, BoundedFile, OutputLog};
use super::plan::{InterruptRequest, MicrovmPlan, ShepherdCommand};
use super::runner::{self, ProgressParser, RunnerProgress};
use super::timeouts::JobTimeouts;
use mayfly_channel::conversation::{inputs, outputs};
use mayfly_channel::pump::{InputPump, OutputProgress, OutputPump};
use mayfly_channel::{ChannelError, Link, Received, Violation};
use mayfly_machine::Machine;

/// The first descriptor of a copied tree, after the standard streams and the front end's
/// connection. Trees to copy in come first, then trees to copy out.
pub(super) const FIRST_COPY_FD: RawFd = 4;

/// Time limit for copying out after the job's deadline.
const COPY_OUT_GRACE: Duration = Duration::from_secs(2 * 60);

/// The streams of one job.
pub(super) struct JobStreams {
    outputs: BTreeMap<OutputStream, OutputPump>,
    inputs: BTreeMap<InputStream, InputPump>,
    progress: mpsc::UnboundedReceiver<OutputProgress>,
    // Number of outputs that are not completely delivered yet.
    open: usize,
    not_copied: Vec<String>,
    copies: Vec<String>,
    status: Option<JobExit>,
    limits: Option<DetachedLimits>,
    // Set if the job is a runner.
    progress_parser: Option<ProgressParser>,
    // The runner reported that it has a job from GitHub.
    has_job: bool,
}

/// The pumps of all streams.
type Pumps = (BTreeMap<OutputStream, OutputPump>, BTreeMap<InputStream, InputPump>);

/// The channel on which the pumps report their progress.
type ProgressSender = mpsc::UnboundedSender<OutputProgress>;

impl JobStreams {
    /// Opens all streams of a job. Input flows at once, as far as its windows permit.
    pub(super) fn open(plan: &MicrovmPlan, job: &Job, link: &Link) -> Result<Self, FailureCause> {
        let refused = |error| FailureCause::Shepherd("open the job's streams", error);
        let (progress_sender, progress) = mpsc::unbounded_channel();
        let (outputs, inputs) = match plan.detached {
            None => Self::descriptors(job, link, &progress_sender),
            Some(limits) => Self::files(&plan.directory, limits, job, link, &progress_sender),
        }
        .map_err(refused)?;
        let copies = job.copy_out.iter().map(|path| String::from_utf8_lossy(path).into_owned());
        Ok(Self {
            open: outputs.len(),
            outputs,
            inputs,
            progress,
            not_copied: Vec::new(),
            copies: copies.collect(),
            status: None,
            limits: plan.detached,
            progress_parser: runner::is_runner(job).then(ProgressParser::default),
            has_job: false,
        })
    }

    /// Connects the streams to the descriptors that this process inherited.
    fn descriptors(job: &Job, link: &Link, progress_sender: &ProgressSender) -> io::Result<Pumps> {
        let copies_in = RawFd::try_from(job.copy_in.len()).unwrap_or(RawFd::MAX);
        let output = |stream| {
            let descriptor = take_descriptor(match stream {
                OutputStream::Stdout => 1,
                OutputStream::Stderr => 2,
                OutputStream::CopyOut(index) => FIRST_COPY_FD + copies_in + RawFd::from(index),
            })?;
            Ok((
                stream,
                OutputPump::start(stream, File::from(descriptor), progress_sender.clone())?,
            ))
        };
        let input = |stream| {
            let descriptor = take_descriptor(match stream {
                InputStream::Stdin => 0,
                InputStream::CopyIn(index) => FIRST_COPY_FD + RawFd::from(index),
            })?;
            Ok((stream, InputPump::start(stream, descriptor, link.input())?))
        };
        let outputs = outputs(job).map(output).collect::<io::Result<_>>()?;
        Ok((outputs, inputs(job).map(input).collect::<io::Result<_>>()?))
    }

    /// Connects the streams to files in the microVM's directory.
    fn files(
        directory: &Path,
        limits: DetachedLimits,
        job: &Job,
        link: &Link,
        progress_sender: &ProgressSender,
    ) -> io::Result<Pumps> {
        let log = OutputLog::create(directory, limits)?;
        let output = |stream| {
            let pump = match stream {
                OutputStream::Stdout | OutputStream::Stderr => {
                    OutputPump::start(stream, log.clone(), progress_sender.clone())
                }
                OutputStream::CopyOut(index) => {
                    let path = output::copy_out_path(directory, index);
                    let file = BoundedFile::create(&path, limits.copies.0)?;
                    OutputPump::start(stream, file, progress_sender.clone())
                }
            };
            Ok((stream, pump?))
        };
        let input = |stream| {
            let file = match stream {
                InputStream::Stdin => File::open("/dev/null"),
                InputStream::CopyIn(index) => File::open(output::copy_in_path(directory, index)),
            };
            Ok((stream, InputPump::start(stream, file?.into(), link.input())?))
        };
        let outputs = outputs(job).map(output).collect::<io::Result<_>>()?;
        Ok((outputs, inputs(job).map(input).collect::<io::Result<_>>()?))
    }

    /// Waits until the job has started or failed to start.
    pub(super) async fn until_started(
        &mut self,
        context: &mut Context,
        link: &mut Link,
        machine: &mut Machine,
        limit: Duration,
    ) -> Result<(), FailureCause> {
        let mut timeouts = JobTimeouts::start(context, Phase::Claimed, limit);
        loop {
            match self.next(context, link, machine, &mut timeouts).await? {
                Some(Received::Started) => return Ok(()),
                _ if self.status.is_some() => return Ok(()),
                _ => {}
            }
        }
    }

    /// Waits until the job has ended and all of its output is delivered.
    pub(super) async fn until_ended(
        &mut self,
        context: &mut Context,
        link: &mut Link,
        machine: &mut Machine,
        limit: Duration,
    ) -> Result<JobExit, FailureCause> {
        // A daemon's runner first waits for its job; the daemon limits that time.
        let waits = self.is_runner() && self.limits.is_some();
        let first = if waits { limit.max(context.plan.deadlines.idle) } else { limit };
        let mut timeouts = JobTimeouts::start(context, Phase::Running, first);
        loop {
            if let (Some(status), 0) = (&self.status, self.open) {
                return match timeouts.interrupted {
                    // The job ended on the interrupt, but after its deadline.
                    Some(cause @ FailureCause::Deadline(..)) => Err(cause),
                    _ => Ok(status.clone()),
                };
            }
            self.next(context, link, machine, &mut timeouts).await?;
        }
    }

    /// Kills the job after its deadline and waits until everything is copied out. Errors are
    /// ignored: the deadline is what ended the job.
    pub(super) async fn finish_copies(
        &mut self,
        context: &mut Context,
        link: &mut Link,
        machine: &mut Machine,
    ) {
        let kill = HostMessage::Signal(libc::SIGKILL);
        if self.copies.is_empty() || link.send(&kill).is_err() {
            return;
        }
        let mut timeouts = JobTimeouts::start(context, Phase::Running, COPY_OUT_GRACE);
        // Prevents a second interrupt.
        timeouts.interrupted = Some(FailureCause::Ended);
        while self.status.is_none() || self.open > 0 {
            if self.next(context, link, machine, &mut timeouts).await.is_err() {
                return;
            }
        }
    }

    /// Closes the input and returns the trees that were not copied out, each with the reason.
    pub(super) async fn close(self) -> Vec<String> {
        for pump in self.inputs.into_values() {
            pump.close().await;
        }
        self.not_copied
    }

    /// Handles the next event. Deadlines come first, so that no flood of data can delay them.
    async fn next(
        &mut self,
        context: &mut Context,
        link: &mut Link,
        machine: &mut Machine,
        timeouts: &mut JobTimeouts,
    ) -> Result<Option<Received>, FailureCause> {
        // After the end of its job, a guest has nothing more to send.
        let deadlines = [timeouts.end, timeouts.heartbeat.next()];
        let deadlines = if self.status.is_none() { &deadlines[..] } else { &deadlines[..1] };
        tokio::select! {
            biased;
            which = context.clock.wait_any(deadlines) => {
                let is_runner = self.progress_parser.is_some();
                timeouts.expired(which, is_runner, context, link).map(|()| None)
            }
            command = context.front.next_command() => match command? {
                // No job runs that could be interrupted.
                ShepherdCommand::Interrupt(_) | ShepherdCommand::End
                    if timeouts.phase != Phase::Running =>
                {
                    Err(FailureCause::Ended)
                }
                ShepherdCommand::Interrupt(request) => {
                    timeouts.interrupt(context, link, request, FailureCause::Ended).map(|()| None)
                }
                // The first `End` interrupts a runner, which then ends its job or deletes its
                // session. The second one ends the microVM.
                ShepherdCommand::End if self.is_runner() && timeouts.interrupted.is_none() => {
                    let grace = context.plan.deadlines.farewell;
                    let reason = FailureCause::Ended.to_string();
                    let request = InterruptRequest { grace, reason };
                    timeouts.interrupt(context, link, request, FailureCause::Ended).map(|()| None)
                }
                ShepherdCommand::End => Err(FailureCause::Ended),
                command => forward_command(&command, link).map(|()| None),
            },
            Some(progress) = self.progress.recv() => {
                self.output_progress(progress, link).map(|()| None)
            }
            received = link.receive(), if self.status.is_none() => {
                let received = received?;
                timeouts.guest_seen(context);
                let had_job = self.has_job;
                let received = self.receive(received, context)?;
                if self.has_job && !had_job {
                    let limit = context.plan.deadlines.job;
                    timeouts.restart(context, limit);
                }
                Ok(received)
            }
            reason = machine.stopped(), if self.status.is_none() => {
                Err(FailureCause::MachineStopped(reason))
            }
            error = egress::wait_for_failure(&mut context.egress) => Err(error.into()),
        }
    }

    /// Whether the job is a runner that has not ended.
    fn is_runner(&self) -> bool {
        self.status.is_none() && self.progress_parser.is_some()
    }

    fn output_progress(
        &mut self,
        progress: OutputProgress,
        link: &mut Link,
    ) -> Result<(), FailureCause> {
        match progress {
            OutputProgress::Written(stream, bytes) => link.credit_output(stream, bytes)?,
            // As when a shell's pipe closes.
            OutputProgress::ReaderGone(OutputStream::Stdout | OutputStream::Stderr) => {
                link.send(&HostMessage::Signal(libc::SIGPIPE))?;
            }
            OutputProgress::ReaderGone(OutputStream::CopyOut(index)) => {
                // For an attached microVM, the front end owns the pipe and knows the reason.
                if let Some(limits) = self.limits {
                    let why = format!("can't be written or exceeds {}", limits.copies);
                    self.not_copied(index, &why);
                }
            }
            OutputProgress::Finished(_) => self.open -= 1,
        }
        Ok(())
    }

    fn not_copied(&mut self, index: u16, why: &str) {
        let path = self.copies.get(usize::from(index)).map(String::as_str).unwrap_or_default();
        self.not_copied.push(format!("{path}: {why}"));
    }

    fn receive(
        &mut self,
        received: Received,
        context: &mut Context,
    ) -> Result<Option<Received>, FailureCause> {
        match received {
            Received::Output(stream, bytes) => {
                if let (OutputStream::Stdout, Some(progress_parser)) =
                    (stream, &mut self.progress_parser)
                {
                    for progress in progress_parser.read(&bytes) {
                        self.has_job |= matches!(progress, RunnerProgress::Running { .. });
                        context.report(EventKind::Runner(progress))?;
                    }
                }
                if let Some(pump) = self.outputs.get(&stream) {
                    pump.write(bytes);
                }
            }
            Received::OutputEnd(stream, error) => {
                self.outputs.remove(&stream);
                if let (OutputStream::CopyOut(index), Some(error)) = (stream, error) {
                    self.not_copied(index, &error);
                }
            }
            Received::Credit(stream, bytes) => {
                let credited = self.inputs.get(&stream).map(|pump| pump.credit(bytes));
                credited.transpose().map_err(|error| {
                    ChannelError::from(Violation::Flow { stream: stream.to_string(), error })
                })?;
            }
            Received::Heartbeat(statistics) => {
                context.statistics = Some(statistics);
                context.report_reached()?;
            }
            Received::Programs(programs, left_out) => context.programs.add(&programs, left_out),
            Received::Exited(status) => {
                // The streams of a job that did not start never end by themselves.
                self.outputs.clear();
                self.status = Some(status);
            }
            Received::Failed { step, error } => return Err(FailureCause::Agent { step, error }),
            received @ (Received::Started | Received::Prepared | Received::Hello(_)) => {
                return Ok(Some(received));
            }
        }
        Ok(None)
    }
}

fn forward_command(command: &ShepherdCommand, link: &mut Link) -> Result<(), FailureCause> {
    match command {
        ShepherdCommand::Signal(number) => link.send(&HostMessage::Signal(*number))?,
        ShepherdCommand::Resize(size) => link.send(&HostMessage::Resize(*size))?,
        ShepherdCommand::Prepare(_)
        | ShepherdCommand::Start(_)
        | ShepherdCommand::End
        | ShepherdCommand::Interrupt(_) => {}
    }
    Ok(())
}

/// Takes ownership of an inherited descriptor: a duplicate of a standard stream, any other
/// descriptor itself. Each number is taken once.
fn take_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    if number >= FIRST_COPY_FD {
        // SAFETY: the front end opened it for this stream, and nothing else in this process uses
        // it.
        return Ok(unsafe { OwnedFd::from_raw_fd(number) });
    }
    // SAFETY: duplicates a descriptor number; one that is not open gives an error.
    match unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, FIRST_COPY_FD) } {
        copy if copy < 0 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel just created it, and it has no other owner.
        copy => Ok(unsafe { OwnedFd::from_raw_fd(copy) }),
    }
}
