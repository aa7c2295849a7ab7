//! The one job: its input, its process, and its output.
//!
//! Owns the job's threads and streams. Independent of the order of messages, and of how the machine
//! was booted.
//!
//! The main thread of the job unpacks the copied-in trees, starts the process, reaps, packs the
//! copied-out trees, and reports. Further threads serve the standard streams and the followed
//! files.

mod child;
mod control;
mod duplicates;
mod environment;
mod follow;
mod input;
mod output;
mod process;
pub(crate) mod reap;
mod spawn;
mod terminal;
pub(crate) mod user;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mayfly_protocol::frame::FrameError;
use mayfly_protocol::message::{
    GuestMessage, InputStream, Job, JobExit, OutputStream, StartFailure, TerminalSize,
};
use mayfly_protocol::settings::GuestSettings;
use mayfly_tree::{ArchiveOrigin, Destination, Packer};

use crate::channel::Sender;
use crate::error::{Context, StepError, chain};
use crate::harden::Hardening;
use crate::programs::ProgramLog;
use crate::services::Services;
use crate::statistics;
use control::Control;
use follow::FollowedDirectory;
use input::Input;
use output::Output;
use user::User;

/// The user of a job if the host specifies none.
const DEFAULT_USER: &str = "runner";

/// The umask of a job if the image sets none: only the owner may write files.
const DEFAULT_UMASK: u32 = 0o022;

/// The environment of jobs on this machine.
#[derive(Debug, Clone)]
pub struct JobContext {
    /// The path of the passwd file.
    pub passwd: PathBuf,
    /// The path of the group file.
    pub groups: PathBuf,
    /// The control group that the job joins.
    pub control_group: Option<PathBuf>,
    /// Whether this process is PID 1 of the machine. It then switches to the job's user and reaps
    /// orphans, and every other process belongs to the job.
    pub is_init: bool,
    /// The services that the job can connect to.
    pub services: Services,
    /// The restrictions of its processes.
    pub rules: ProcessRules,
}

/// The restrictions of a job's processes.
#[derive(Debug, Clone, Copy)]
pub struct ProcessRules {
    /// The file mode creation mask at start.
    pub umask: u32,
    /// Whether core dumps are disabled.
    pub no_core_dumps: bool,
    /// Whether no program can give them more privileges.
    pub no_new_privileges: bool,
    /// Whether each executed program is reported to the host.
    pub log_programs: bool,
}

impl Default for ProcessRules {
    fn default() -> Self {
        Self::new(&GuestSettings::default())
    }
}

impl ProcessRules {
    /// Returns the rules in the settings of an image.
    pub fn new(settings: &GuestSettings) -> Self {
        Self {
            umask: settings.umask.unwrap_or(DEFAULT_UMASK),
            no_core_dumps: settings.no_core_dumps,
            no_new_privileges: settings.no_new_privileges,
            log_programs: settings.log_programs,
        }
    }
}

/// A started job.
pub(crate) struct RunningJob {
    streams: Arc<Streams>,
    control: Arc<Control>,
}

/// The job's streams.
struct Streams {
    inputs: BTreeMap<InputStream, Input>,
    outputs: BTreeMap<OutputStream, Output>,
}

impl RunningJob {
    /// Starts the job once `hardening` has finished. Its outcome, including failures, is reported
    /// to the host through `sender`.
    pub(crate) fn start(
        job: Job,
        context: &JobContext,
        sender: &Arc<Sender>,
        hardening: Option<Hardening>,
    ) -> Result<Self, StepError> {
        let streams = Arc::new(Streams::new(&job, sender));
        let control = Arc::new(Control::new(job.terminal));
        let job_thread = JobThread {
            job,
            context: context.clone(),
            sender: Arc::clone(sender),
            streams: Arc::clone(&streams),
            control: Arc::clone(&control),
        };
        let run = move || {
            // A failure means that the host has disconnected, which the session detects, too.
            let _disconnected = match job_thread.prepare(hardening) {
                Ok(log) => job_thread.run(log.as_ref()),
                Err(failure) => job_thread.sender.send(&failure.to_message()),
            };
        };
        let thread = std::thread::Builder::new().name("job".into());
        thread.spawn(run).context(|| "start the job's thread")?;
        Ok(Self { streams, control })
    }

    pub(crate) fn push_input(&self, stream: InputStream, bytes: &[u8]) -> Result<(), StepError> {
        self.streams.input(stream)?.push(bytes)
    }

    pub(crate) fn end_input(&self, stream: InputStream) -> Result<(), StepError> {
        self.streams.input(stream)?.end()
    }

    pub(crate) fn add_credit(&self, stream: OutputStream, bytes: u32) -> Result<(), StepError> {
        match self.streams.outputs.get(&stream) {
            Some(output) => output.credit(bytes),
            None => Err(unknown(&stream)),
        }
    }

    pub(crate) fn signal(&self, number: i32) {
        self.control.signal(number);
    }

    pub(crate) fn resize(&self, size: TerminalSize) {
        self.control.resize(size);
    }
}

impl Streams {
    fn new(job: &Job, sender: &Arc<Sender>) -> Self {
        let input = |stream| (stream, Input::new(stream, Arc::clone(sender)));
        let output = |stream| (stream, Output::new(stream, Arc::clone(sender)));
        let stdin = job.stdin.then_some(InputStream::Stdin);
        let copy_in = (0..).zip(&job.copy_in).map(|(number, _)| InputStream::CopyIn(number));
        let copy_out = (0..).zip(&job.copy_out).map(|(number, _)| OutputStream::CopyOut(number));
        let standard = [OutputStream::Stdout, OutputStream::Stderr];
        Self {
            inputs: stdin.into_iter().chain(copy_in).map(input).collect(),
            outputs: standard.into_iter().chain(copy_out).map(output).collect(),
        }
    }

    fn input(&self, stream: InputStream) -> Result<&Input, StepError> {
        self.inputs.get(&stream).ok_or_else(|| unknown(&stream))
    }
}

fn unknown(stream: &dyn std::fmt::Display) -> StepError {
    StepError::new("handle a message of the host", format!("the job has no stream {stream}"))
}

/// The state of the job's main thread.
struct JobThread {
    job: Job,
    context: JobContext,
    sender: Arc<Sender>,
    streams: Arc<Streams>,
    control: Arc<Control>,
}

impl JobThread {
    /// Waits for hardening, and starts the program log before any program of the job runs.
    fn prepare(&self, hardening: Option<Hardening>) -> Result<Option<ProgramLog>, StepError> {
        hardening.map_or(Ok(()), Hardening::finish)?;
        let log = self.context.rules.log_programs.then(|| ProgramLog::start(&self.sender));
        log.transpose()
    }

    /// Runs the job from its start to its report.
    fn run(&self, log: Option<&ProgramLog>) -> Result<(), FrameError> {
        // Looked up only once, because the job may change the files.
        let user = self.find_user();
        let started = user.clone().and_then(|user| self.start_process(&user));
        let status = match started {
            Ok(process) => {
                self.sender.send(&GuestMessage::Started)?;
                let followed = user.as_ref().ok().and_then(|user| self.followed(user));
                process::supervise(process, &self.streams, &self.control, &self.context, followed)?
            }
            Err(reason) => JobExit::NotStarted(reason),
        };
        // Discard the remaining input.
        self.streams.inputs.values().for_each(Input::close);
        let ran = user.ok().filter(|_| !matches!(status, JobExit::NotStarted(_)));
        for (stream, output) in &self.streams.outputs {
            match (stream, &ran) {
                (OutputStream::CopyOut(number), Some(user)) => {
                    output.end(self.copy_out(*number, output, user))?;
                }
                (OutputStream::CopyOut(_), None) => {
                    output.end(Some("the job did not start".to_owned()))?;
                }
                // Their threads have already ended these.
                (OutputStream::Stdout | OutputStream::Stderr, Some(_)) => {}
                (OutputStream::Stdout | OutputStream::Stderr, None) => output.end(None)?,
            }
        }
        // No process of the job runs any more.
        log.map_or(Ok(()), ProgramLog::finish)?;
        // The last statistics can explain the end: processes killed by the OOM killer, or a full
        // disk.
        self.sender.send(&GuestMessage::Heartbeat(statistics::read()))?;
        self.sender.send(&GuestMessage::Exited(status))
    }

    /// Unpacks the copied-in trees and starts the process.
    fn start_process(&self, user: &User) -> Result<spawn::Process, StartFailure> {
        let owner = self.context.is_init.then_some((user.uid, user.gid));
        for (number, destination) in (0..).zip(&self.job.copy_in) {
            let destination = self.relative_to_start(user, destination);
            if let Some(input) = self.streams.inputs.get(&InputStream::CopyIn(number)) {
                let target = Destination { path: &destination, name: None };
                // The notes are empty: nothing from the host is skipped here.
                mayfly_tree::unpack(input, target, ArchiveOrigin::Host { owner }, |_| Ok(()))
                    .map_err(|error| StartFailure::CopyInFailed(number, chain(&error)))?;
                // Discard data after the end of the archive.
                input.close();
            }
        }
        let group = self.context.control_group.as_deref();
        let (is_init, rules) = (self.context.is_init, self.context.rules);
        let process = spawn::spawn(&self.job, user, is_init, rules, group)?;
        self.control.attach(&process);
        Ok(process)
    }

    fn find_user(&self) -> Result<User, StartFailure> {
        let requested = self.job.user.as_deref().unwrap_or(DEFAULT_USER);
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|error| StartFailure::Other(format!("read {}: {error}", path.display())))
        };
        let (passwd, groups) = (read(&self.context.passwd)?, read(&self.context.groups)?);
        user::find(requested, &passwd, &groups)
            .ok_or_else(|| StartFailure::UserNotFound(requested.to_owned()))
    }

    /// Packs a copied-out tree. Returns the error if it is incomplete.
    fn copy_out(&self, number: u16, output: &Output, user: &User) -> Option<String> {
        let path = self.job.copy_out.get(usize::from(number))?;
        let path = self.relative_to_start(user, path);
        mayfly_tree::pack(&path, output, Packer::Guest).err().map(|error| chain(&error))
    }

    /// Returns the directory to follow while the job runs.
    fn followed(&self, user: &User) -> Option<FollowedDirectory> {
        let directory = self.relative_to_start(user, self.job.follow.as_ref()?);
        let user = self.context.is_init.then_some((user.uid, user.gid));
        Some(FollowedDirectory { directory, user })
    }

    /// Resolves a path of the guest, relative to the job's working directory.
    fn relative_to_start(&self, user: &User, path: &[u8]) -> PathBuf {
        let start = PathBuf::from(OsString::from_vec(spawn::working_directory(&self.job, user)));
        start.join(OsString::from_vec(path.to_vec()))
    }
}
