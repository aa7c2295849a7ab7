//! A job's streams while it starts and runs: between the channel and the descriptors that the
//! front end has given, or the files of a detached microVM.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use mayfly_protocol::message::{HostMessage, InputStream, Job, JobStatus, OutputStream};
use tokio::sync::mpsc;

use super::cause::Cause;
use super::context::Context;
use super::detached::Detached;
use super::egress;
use super::event::{Happened, Phase};
use super::late::Late;
use super::output::{self, Bounded, OutputLog};
use super::plan::{Farewell, Order, Plan};
use super::runner::{self, Marks, RunnerMark};
use crate::channel::conversation::{input_name, inputs, outputs};
use crate::channel::pump::{InputPump, OutputPump, Passed};
use crate::channel::{ChannelError, Heard, Link, Violation};
use crate::machine::Machine;

/// The first descriptor of a copied tree; below it are the standard streams and the front end's
/// connection. The copied-in trees come first, then the copied-out ones.
pub(super) const FIRST_COPY: RawFd = 4;

/// How long copying out may take after the job's deadline.
const SAVING: Duration = Duration::from_secs(2 * 60);

/// The streams of one job.
pub(super) struct Streams {
    outputs: BTreeMap<OutputStream, OutputPump>,
    inputs: BTreeMap<InputStream, InputPump>,
    passed: mpsc::UnboundedReceiver<Passed>,
    // Outputs whose bytes the reader has not all taken yet.
    open: usize,
    not_copied: Vec<String>,
    copies: Vec<String>,
    status: Option<JobStatus>,
    bounds: Option<Detached>,
    // Of a job that is a runner.
    marks: Option<Marks>,
    // It said that it has a job of GitHub's.
    has_job: bool,
}

/// A stream's pump, for each stream.
type Pumps = (BTreeMap<OutputStream, OutputPump>, BTreeMap<InputStream, InputPump>);

/// Where the pumps tell what they passed on.
type Tell = mpsc::UnboundedSender<Passed>;

impl Streams {
    /// Opens all streams of a job. Input begins to flow at once, as far as its windows let it.
    pub(super) fn open(plan: &Plan, job: &Job, link: &Link) -> Result<Self, Cause> {
        let refused = |error| Cause::Shepherd("open the job's streams", error);
        let (tell, passed) = mpsc::unbounded_channel();
        let (outputs, inputs) = match plan.detached {
            None => Self::descriptors(job, link, &tell),
            Some(bounds) => Self::files(&plan.directory, bounds, job, link, &tell),
        }
        .map_err(refused)?;
        let copies = job.copy_out.iter().map(|path| String::from_utf8_lossy(path).into_owned());
        Ok(Self {
            open: outputs.len(),
            outputs,
            inputs,
            passed,
            not_copied: Vec::new(),
            copies: copies.collect(),
            status: None,
            bounds: plan.detached,
            marks: runner::is_runner(job).then(Marks::default),
            has_job: false,
        })
    }

    /// To and from the descriptors that this process was started with.
    fn descriptors(job: &Job, link: &Link, tell: &Tell) -> io::Result<Pumps> {
        let copies_in = RawFd::try_from(job.copy_in.len()).unwrap_or(RawFd::MAX);
        let output = |stream| {
            let descriptor = take(match stream {
                OutputStream::Stdout => 1,
                OutputStream::Stderr => 2,
                OutputStream::CopyOut(index) => FIRST_COPY + copies_in + RawFd::from(index),
            })?;
            Ok((stream, OutputPump::start(stream, File::from(descriptor), tell.clone())?))
        };
        let input = |stream| {
            let descriptor = take(match stream {
                InputStream::Stdin => 0,
                InputStream::CopyIn(index) => FIRST_COPY + RawFd::from(index),
            })?;
            Ok((stream, InputPump::start(stream, descriptor, link.input())?))
        };
        let outputs = outputs(job).map(output).collect::<io::Result<_>>()?;
        Ok((outputs, inputs(job).map(input).collect::<io::Result<_>>()?))
    }

    /// To and from files of the microVM's directory.
    fn files(
        directory: &Path,
        bounds: Detached,
        job: &Job,
        link: &Link,
        tell: &Tell,
    ) -> io::Result<Pumps> {
        let log = OutputLog::create(directory, bounds)?;
        let output = |stream| {
            let pump = match stream {
                OutputStream::Stdout | OutputStream::Stderr => {
                    OutputPump::start(stream, log.clone(), tell.clone())
                }
                OutputStream::CopyOut(index) => {
                    let file = Bounded::create(&output::copy(directory, index), bounds.copies.0)?;
                    OutputPump::start(stream, file, tell.clone())
                }
            };
            Ok((stream, pump?))
        };
        let input = |stream| {
            let file = match stream {
                InputStream::Stdin => File::open("/dev/null"),
                InputStream::CopyIn(index) => File::open(output::source(directory, index)),
            };
            Ok((stream, InputPump::start(stream, file?.into(), link.input())?))
        };
        let outputs = outputs(job).map(output).collect::<io::Result<_>>()?;
        Ok((outputs, inputs(job).map(input).collect::<io::Result<_>>()?))
    }

    /// Waits until the job runs, or turned out not to.
    pub(super) async fn until_started(
        &mut self,
        context: &mut Context,
        link: &mut Link,
        machine: &mut Machine,
        limit: Duration,
    ) -> Result<(), Cause> {
        let mut late = Late::begin(context, Phase::Claimed, limit);
        loop {
            match self.step(context, link, machine, &mut late).await? {
                Some(Heard::Started) => return Ok(()),
                _ if self.status.is_some() => return Ok(()),
                _ => {}
            }
        }
    }

    /// Waits until the job has ended and the readers have taken all of its output.
    pub(super) async fn until_ended(
        &mut self,
        context: &mut Context,
        link: &mut Link,
        machine: &mut Machine,
        limit: Duration,
    ) -> Result<JobStatus, Cause> {
        // A daemon's runner waits for its job first: how long, the daemon decides.
        let waits = self.is_runner() && self.bounds.is_some();
        let first = if waits { limit.max(context.plan.deadlines.idle) } else { limit };
        let mut late = Late::begin(context, Phase::Running, first);
        loop {
            if let (Some(status), 0) = (&self.status, self.open) {
                return match late.farewell {
                    // It ended as it was told to, but too late.
                    Some(cause @ Cause::Deadline(..)) => Err(cause),
                    _ => Ok(status.clone()),
                };
            }
            self.step(context, link, machine, &mut late).await?;
        }
    }

    /// After the job's deadline: has the guest kill the job, and waits until all that is copied out
    /// has come. Whatever goes wrong, the deadline is what ended the job.
    pub(super) async fn save(
        &mut self,
        context: &mut Context,
        link: &mut Link,
        machine: &mut Machine,
    ) {
        let kill = HostMessage::Signal(libc::SIGKILL);
        if self.copies.is_empty() || link.say(&kill).is_err() {
            return;
        }
        let mut late = Late::begin(context, Phase::Running, SAVING);
        // It was told already.
        late.farewell = Some(Cause::Ended);
        while self.status.is_none() || self.open > 0 {
            if self.step(context, link, machine, &mut late).await.is_err() {
                return;
            }
        }
    }

    /// Ends the input, and tells which trees were not copied out and why.
    pub(super) async fn close(self) -> Vec<String> {
        for pump in self.inputs.into_values() {
            pump.close().await;
        }
        self.not_copied
    }

    /// Whatever comes next. The deadline comes first, so that no flood can put it off.
    async fn step(
        &mut self,
        context: &mut Context,
        link: &mut Link,
        machine: &mut Machine,
        late: &mut Late,
    ) -> Result<Option<Heard>, Cause> {
        // A guest that told the end of its job has no more to say.
        let deadlines = [late.end, late.silence.next()];
        let deadlines = if self.status.is_none() { &deadlines[..] } else { &deadlines[..1] };
        tokio::select! {
            biased;
            which = context.clock.passed(deadlines) => {
                late.passed(which, self.marks.is_some(), context, link).map(|()| None)
            }
            order = context.front.order() => match order? {
                // There is no job yet that could be told.
                Order::Farewell(_) | Order::End if late.phase != Phase::Running => {
                    Err(Cause::Ended)
                }
                Order::Farewell(farewell) => {
                    late.interrupt(context, link, farewell, Cause::Ended).map(|()| None)
                }
                // A runner is told first, whoever ends it: it ends its job or deletes its session.
                // The second time it is ended.
                Order::End if self.is_runner() && late.farewell.is_none() => {
                    let within = context.plan.deadlines.farewell;
                    let farewell = Farewell { within, why: Cause::Ended.to_string() };
                    late.interrupt(context, link, farewell, Cause::Ended).map(|()| None)
                }
                Order::End => Err(Cause::Ended),
                order => obey(&order, link).map(|()| None),
            },
            Some(passed) = self.passed.recv() => self.passed_on(passed, link).map(|()| None),
            heard = link.hear(), if self.status.is_none() => {
                let heard = heard?;
                late.heard(context);
                let had_job = self.has_job;
                let heard = self.hear(heard, context)?;
                if self.has_job && !had_job {
                    let limit = context.plan.deadlines.job;
                    late.begin_again(context, limit);
                }
                Ok(heard)
            }
            death = machine.died(), if self.status.is_none() => Err(Cause::Died(death)),
            error = egress::failed(&mut context.egress) => Err(error.into()),
        }
    }

    /// Whether the job is a runner that has not ended.
    fn is_runner(&self) -> bool {
        self.status.is_none() && self.marks.is_some()
    }

    fn passed_on(&mut self, passed: Passed, link: &mut Link) -> Result<(), Cause> {
        match passed {
            Passed::On(stream, bytes) => link.pass_on(stream, bytes)?,
            // What a shell's pipe would tell the job.
            Passed::ReaderGone(OutputStream::Stdout | OutputStream::Stderr) => {
                link.say(&HostMessage::Signal(libc::SIGPIPE))?;
            }
            Passed::ReaderGone(OutputStream::CopyOut(index)) => {
                // Of an attached microVM the front end, whose pipe it is, knows more.
                if let Some(bounds) = self.bounds {
                    let why = format!("can't be written, or is more than {}", bounds.copies);
                    self.not_copied(index, &why);
                }
            }
            Passed::All(_) => self.open -= 1,
        }
        Ok(())
    }

    fn not_copied(&mut self, index: u16, why: &str) {
        let path = self.copies.get(usize::from(index)).map(String::as_str).unwrap_or_default();
        self.not_copied.push(format!("{path}: {why}"));
    }

    fn hear(&mut self, heard: Heard, context: &mut Context) -> Result<Option<Heard>, Cause> {
        match heard {
            Heard::Output(stream, bytes) => {
                if let (OutputStream::Stdout, Some(marks)) = (stream, &mut self.marks) {
                    for mark in marks.read(&bytes) {
                        self.has_job |= matches!(mark, RunnerMark::Running { .. });
                        context.tell(Happened::Runner(mark))?;
                    }
                }
                if let Some(pump) = self.outputs.get(&stream) {
                    pump.give(bytes);
                }
            }
            Heard::OutputEnd(stream, error) => {
                self.outputs.remove(&stream);
                if let (OutputStream::CopyOut(index), Some(error)) = (stream, error) {
                    self.not_copied(index, &error);
                }
            }
            Heard::Credit(stream, bytes) => {
                let credited = self.inputs.get(&stream).map(|pump| pump.credit(bytes));
                credited.transpose().map_err(|error| {
                    ChannelError::from(Violation::Flow { stream: input_name(stream), error })
                })?;
            }
            Heard::Heartbeat(statistics) => {
                context.statistics = Some(statistics);
                context.tell_reached()?;
            }
            Heard::Programs(programs, left_out) => context.programs.add(&programs, left_out),
            Heard::Exited(status) => {
                // A job that never ran has streams that never end by themselves.
                self.outputs.clear();
                self.status = Some(status);
            }
            Heard::Failed { step, error } => return Err(Cause::Agent { step, error }),
            heard @ (Heard::Started | Heard::Prepared | Heard::Hello(_)) => return Ok(Some(heard)),
        }
        Ok(None)
    }
}

fn obey(order: &Order, link: &mut Link) -> Result<(), Cause> {
    match order {
        Order::Signal(number) => link.say(&HostMessage::Signal(*number))?,
        Order::Resize(size) => link.say(&HostMessage::Resize(*size))?,
        Order::Prepare(_) | Order::Start(_) | Order::End | Order::Farewell(_) => {}
    }
    Ok(())
}

/// Takes possession of a descriptor that this process was started with: of a standard stream as a
/// copy, of any other as it is. Each number is taken once.
fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number >= FIRST_COPY {
        // SAFETY: the front end opened it for this stream, and nothing else in this process uses
        // it.
        return Ok(unsafe { OwnedFd::from_raw_fd(number) });
    }
    // SAFETY: duplicates a descriptor number; one that is not open gives an error.
    match unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, FIRST_COPY) } {
        copy if copy < 0 => Err(io::Error::last_os_error()),
        // SAFETY: the kernel just made it, and nobody else has it.
        copy => Ok(unsafe { OwnedFd::from_raw_fd(copy) }),
    }
}
