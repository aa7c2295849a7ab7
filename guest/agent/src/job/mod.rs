//! The one job: what it is given, its process, what it leaves.
//!
//! Owns the job's threads and its streams. Knows nothing of the order of the conversation, nor of
//! how the machine was booted.
//!
//! One thread conducts: it unpacks what is copied in, starts the process, reaps, packs what is
//! copied out and reports. Beside it runs one thread for each of the job's standard streams, and one for
//! files that are followed.

mod child;
mod control;
mod environment;
mod follow;
mod input;
mod output;
mod process;
pub(crate) mod reap;
mod spawn;
mod terminal;
mod twins;
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
    GuestMessage, InputStream, Job, JobStatus, NotStarted, OutputStream, TerminalSize,
};
use mayfly_protocol::settings::Settings;
use mayfly_tree::{Destination, Origin, Packer};

use crate::channel::Sender;
use crate::error::{During, StepError, chain};
use crate::harden::Hardening;
use crate::programs::ProgramLog;
use crate::services::Services;
use crate::statistics;
use control::Control;
use follow::Followed;
use input::Input;
use output::Output;
use user::User;

/// Whose job it is where the host names nobody.
const DEFAULT_USER: &str = "runner";

/// Files are written by their owner only, unless the image says otherwise.
const DEFAULT_UMASK: u32 = 0o022;

/// What a job finds around it.
#[derive(Debug, Clone)]
pub struct Place {
    /// The file of users.
    pub passwd: PathBuf,
    /// The file of groups.
    pub groups: PathBuf,
    /// The control group that the job joins.
    pub control_group: Option<PathBuf>,
    /// Whether this process is PID 1 of the machine: it then becomes the job's user, reaps
    /// orphans, and every other process is the job's.
    pub is_init: bool,
    /// Programs that it can connect to.
    pub services: Services,
    /// What its processes may do.
    pub rules: Rules,
}

/// What the processes of a job may do, and what the host is told of them.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// The mode creation mask that they start with.
    pub umask: u32,
    /// They leave no core dumps.
    pub no_core_dumps: bool,
    /// No program gives them more rights.
    pub no_new_privileges: bool,
    /// The host is told of each program that they execute.
    pub log_programs: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self::of(&Settings::default())
    }
}

impl Rules {
    /// Those of an image.
    pub fn of(settings: &Settings) -> Self {
        Self {
            umask: settings.umask.unwrap_or(DEFAULT_UMASK),
            no_core_dumps: settings.no_core_dumps,
            no_new_privileges: settings.no_new_privileges,
            log_programs: settings.log_programs,
        }
    }
}

/// A job that was started.
pub(crate) struct Running {
    streams: Arc<Streams>,
    control: Arc<Control>,
}

/// The job's streams, by name.
struct Streams {
    inputs: BTreeMap<InputStream, Input>,
    outputs: BTreeMap<OutputStream, Output>,
}

impl Running {
    /// Lets the job begin. What comes of it, failures included, the host hears through `sender`.
    ///
    /// It waits until `hardening` is done.
    pub(crate) fn start(
        job: Job,
        place: &Place,
        sender: &Arc<Sender>,
        hardening: Option<Hardening>,
    ) -> Result<Self, StepError> {
        let streams = Arc::new(Streams::new(&job, sender));
        let control = Arc::new(Control::new(job.terminal));
        let conductor = Conductor {
            job,
            place: place.clone(),
            sender: Arc::clone(sender),
            streams: Arc::clone(&streams),
            control: Arc::clone(&control),
        };
        let conduct = move || {
            // It fails where the host is gone, which whoever reads from it finds, too.
            let _gone = match conductor.get_ready(hardening) {
                Ok(log) => conductor.conduct(log.as_ref()),
                Err(failure) => conductor.sender.send(&failure.to_message()),
            };
        };
        let thread = std::thread::Builder::new().name("job".into());
        thread.spawn(conduct).during(|| "start the job's thread")?;
        Ok(Self { streams, control })
    }

    pub(crate) fn input(&self, stream: InputStream, bytes: &[u8]) -> Result<(), StepError> {
        self.streams.input(stream)?.push(bytes)
    }

    pub(crate) fn input_end(&self, stream: InputStream) -> Result<(), StepError> {
        self.streams.input(stream)?.end()
    }

    pub(crate) fn credit(&self, stream: OutputStream, bytes: u32) -> Result<(), StepError> {
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

fn unknown(stream: &dyn std::fmt::Debug) -> StepError {
    StepError::new("understand the host", format!("the job has no stream {stream:?}"))
}

/// What the conducting thread works with.
struct Conductor {
    job: Job,
    place: Place,
    sender: Arc<Sender>,
    streams: Arc<Streams>,
    control: Arc<Control>,
}

impl Conductor {
    /// What must be before any program of the job's.
    fn get_ready(&self, hardening: Option<Hardening>) -> Result<Option<ProgramLog>, StepError> {
        hardening.map_or(Ok(()), Hardening::finish)?;
        let log = self.place.rules.log_programs.then(|| ProgramLog::start(&self.sender));
        log.transpose()
    }

    /// Takes the job from its beginning to its report.
    fn conduct(&self, log: Option<&ProgramLog>) -> Result<(), FrameError> {
        // Asked once: the job may change what the files say.
        let user = self.find_user();
        let begun = user.clone().and_then(|user| self.begin(&user));
        let status = match begun {
            Ok(process) => {
                self.sender.send(&GuestMessage::Started)?;
                let followed = user.as_ref().ok().and_then(|user| self.followed(user));
                process::attend(process, &self.streams, &self.control, &self.place, followed)?
            }
            Err(reason) => JobStatus::NotStarted(reason),
        };
        // Nobody reads what still comes.
        self.streams.inputs.values().for_each(Input::close);
        let ran = user.ok().filter(|_| !matches!(status, JobStatus::NotStarted(_)));
        for (stream, output) in &self.streams.outputs {
            match (stream, &ran) {
                (OutputStream::CopyOut(number), Some(user)) => {
                    output.end(self.copy_out(*number, output, user))?;
                }
                (OutputStream::CopyOut(_), None) => {
                    output.end(Some("the job never started".to_owned()))?;
                }
                // Their threads have ended them.
                (OutputStream::Stdout | OutputStream::Stderr, Some(_)) => {}
                (OutputStream::Stdout | OutputStream::Stderr, None) => output.end(None)?,
            }
        }
        // Nothing of the job's runs any more.
        log.map_or(Ok(()), ProgramLog::finish)?;
        // The last figures are those that explain an end: processes killed for want of memory, a
        // full disk.
        self.sender.send(&GuestMessage::Heartbeat(statistics::read()))?;
        self.sender.send(&GuestMessage::Exited(status))
    }

    /// Unpacks what is copied in and starts the process.
    fn begin(&self, user: &User) -> Result<spawn::Process, NotStarted> {
        let owner = self.place.is_init.then_some((user.uid, user.gid));
        for (number, destination) in (0..).zip(&self.job.copy_in) {
            let destination = self.relative_to_start(user, destination);
            if let Some(input) = self.streams.inputs.get(&InputStream::CopyIn(number)) {
                let place = Destination { path: &destination, name: None };
                // The host keeps what it has noted; nothing of its own is left out here.
                mayfly_tree::unpack(input, place, Origin::Host { owner }, |_| Ok(()))
                    .map_err(|error| NotStarted::CopyInFailed(number, chain(&error)))?;
                // What follows the end of an archive is of no use.
                input.close();
            }
        }
        let group = self.place.control_group.as_deref();
        let (is_init, rules) = (self.place.is_init, self.place.rules);
        let process = spawn::spawn(&self.job, user, is_init, rules, group)?;
        self.control.attach(&process);
        Ok(process)
    }

    fn find_user(&self) -> Result<User, NotStarted> {
        let wanted = self.job.user.as_deref().unwrap_or(DEFAULT_USER);
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|error| NotStarted::Other(format!("read {}: {error}", path.display())))
        };
        let (passwd, groups) = (read(&self.place.passwd)?, read(&self.place.groups)?);
        user::find(wanted, &passwd, &groups)
            .ok_or_else(|| NotStarted::UserNotFound(wanted.to_owned()))
    }

    /// Packs what is copied out. Tells why it is not all there.
    fn copy_out(&self, number: u16, output: &Output, user: &User) -> Option<String> {
        let path = self.job.copy_out.get(usize::from(number))?;
        let path = self.relative_to_start(user, path);
        mayfly_tree::pack(&path, output, Packer::Guest).err().map(|error| chain(&error))
    }

    /// What is followed while the job runs.
    fn followed(&self, user: &User) -> Option<Followed> {
        let directory = self.relative_to_start(user, self.job.follow.as_ref()?);
        let user = self.place.is_init.then_some((user.uid, user.gid));
        Some(Followed { directory, user })
    }

    /// A path of the guest; one that is not absolute starts where the job does.
    fn relative_to_start(&self, user: &User, path: &[u8]) -> PathBuf {
        let start = PathBuf::from(OsString::from_vec(spawn::directory(&self.job, user)));
        start.join(OsString::from_vec(path.to_vec()))
    }
}
