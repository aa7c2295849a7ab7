//! Starts the job's process. Everything is prepared before the fork, so that the child only makes
//! system calls until it becomes the job.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use mayfly_protocol::message::{Job, StartFailure};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, Gid, Pid, Uid, fchown, fork, pipe2};

use super::ProcessRules;
use super::child::{self, ChildFailure, Step};
use super::environment::{assignments, c_string, candidates, variables};
use super::reap::{self, ReapMode, WaitFor};
use super::terminal;
use super::user::User;

/// The data that the child needs, in the form that system calls take.
pub(super) struct ChildPlan {
    pub(super) candidates: Vec<CString>,
    pub(super) arguments: Pointers,
    pub(super) environment: Pointers,
    pub(super) directory: CString,
    /// Whether to fall back to the root directory if `directory` does not exist.
    pub(super) directory_is_home: bool,
    /// The user to switch to, if any.
    pub(super) user: Option<User>,
    pub(super) rules: ProcessRules,
    /// `cgroup.procs` of the job's group.
    pub(super) group: Option<File>,
    /// The job's standard input, output and error.
    pub(super) streams: [OwnedFd; 3],
    pub(super) has_terminal: bool,
    pub(super) report: OwnedFd,
}

/// A null-terminated array of C strings, as `execve` takes it.
pub(super) struct Pointers {
    pointers: Vec<*const libc::c_char>,
    /// The strings that `pointers` points to.
    _strings: Vec<CString>,
}

impl Pointers {
    fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr());
        let pointers = pointers.chain(std::iter::once(std::ptr::null())).collect();
        Self { pointers, _strings: strings }
    }

    pub(super) fn as_ptr(&self) -> *const *const libc::c_char {
        self.pointers.as_ptr()
    }
}

/// The agent's ends of the job's streams.
pub(crate) enum StreamEnds {
    /// One terminal for all streams.
    Terminal(File),
    /// One pipe per stream; no input if the job has none.
    Pipes { stdin: Option<File>, stdout: File, stderr: File },
}

/// A job's process.
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) ends: StreamEnds,
    /// A copy of the job's end of its standard error, to which lines of followed files are written.
    pub(crate) stderr_copy: Option<File>,
}

/// Starts the job's program.
///
/// `user` determines the job's variables; only a `privileged` agent also switches to that user.
pub(crate) fn spawn(
    job: &Job,
    user: &User,
    privileged: bool,
    rules: ProcessRules,
    group: Option<&Path>,
) -> Result<Process, StartFailure> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| StartFailure::Other(format!("{what}: {error}"))
    };
    let (ends, streams) = open_streams(job).map_err(failed("open the job's streams"))?;
    if privileged {
        // Without this, the job could not open /dev/stdout and the like.
        for stream in &streams {
            set_stream_owner(stream, user)
                .map_err(failed("change the owner of the job's streams"))?;
        }
    }
    let follows = job.follow.is_some() && job.terminal.is_none();
    let stderr_copy = follows.then(|| streams[2].try_clone().map(File::from)).transpose();
    let stderr_copy = stderr_copy.map_err(failed("duplicate the job's standard error"))?;
    let (mut report, report_of_child) = pipe2(OFlag::O_CLOEXEC)
        .map(|(a, b)| (File::from(a), b))
        .map_err(|error| failed("open a pipe")(error.into()))?;
    let group = group.map(|group| File::options().write(true).open(group.join("cgroup.procs")));
    let group = group.transpose().map_err(failed("open the job's control group"))?;
    let become_user = privileged.then(|| user.clone());
    let resources = SpawnResources { become_user, rules, group, streams, report: report_of_child };
    let plan = build_plan(job, user, resources)?;
    // SAFETY: the child makes system calls only, on memory that was prepared before.
    match unsafe { fork() }.map_err(|error| failed("fork")(error.into()))? {
        ForkResult::Child => child::run(&plan),
        ForkResult::Parent { child } => {
            // The child has its own copies; the pipe must end when they are closed.
            drop(plan);
            let mut bytes = Vec::new();
            // Limited by the size of a report.
            report.read_to_end(&mut bytes).map_err(failed("read the child's report"))?;
            match ChildFailure::parse(&bytes) {
                None => Ok(Process { pid: child, ends, stderr_copy }),
                Some(report) => {
                    let _reaped = reap::wait(WaitFor::One(child), ReapMode::Reap);
                    Err(start_failure(report, job, user))
                }
            }
        }
    }
}

/// The resources that a plan takes over.
struct SpawnResources {
    become_user: Option<User>,
    rules: ProcessRules,
    group: Option<File>,
    streams: [OwnedFd; 3],
    report: OwnedFd,
}

fn build_plan(
    job: &Job,
    user: &User,
    resources: SpawnResources,
) -> Result<ChildPlan, StartFailure> {
    let SpawnResources { become_user, rules, group, streams, report } = resources;
    let variables = variables(user, job.terminal.is_some(), &job.environment);
    let program = job.arguments.first().ok_or(StartFailure::CommandNotFound)?;
    let arguments = job.arguments.iter().map(|argument| c_string(argument.to_vec(), "an argument"));
    Ok(ChildPlan {
        candidates: candidates(program, &variables)?,
        arguments: Pointers::new(arguments.collect::<Result<_, _>>()?),
        environment: Pointers::new(assignments(&variables)?),
        directory: c_string(working_directory(job, user), "the directory's name")?,
        directory_is_home: job.directory.is_none(),
        user: become_user,
        rules,
        group,
        streams,
        has_terminal: job.terminal.is_some(),
        report,
    })
}

/// Returns the working directory of the job.
pub(crate) fn working_directory(job: &Job, user: &User) -> Vec<u8> {
    match &job.directory {
        Some(directory) => directory.to_vec(),
        None => user.home.as_os_str().as_encoded_bytes().to_vec(),
    }
}

/// Opens the job's streams. Returns the agent's ends and the job's ends.
fn open_streams(job: &Job) -> io::Result<(StreamEnds, [OwnedFd; 3])> {
    if let Some(size) = job.terminal {
        let (master, slave) = terminal::open(size)?;
        let streams = [slave.try_clone()?, slave.try_clone()?, slave];
        return Ok((StreamEnds::Terminal(master), streams));
    }
    let (stdin_of_job, stdin) = if job.stdin {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        (read, Some(File::from(write)))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    let (stdout, stdout_of_job) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, stderr_of_job) = pipe2(OFlag::O_CLOEXEC)?;
    let ends = StreamEnds::Pipes { stdin, stdout: stdout.into(), stderr: stderr.into() };
    Ok((ends, [stdin_of_job, stdout_of_job, stderr_of_job]))
}

/// Makes the user the owner of a pipe or terminal. A terminal keeps its group, which lets others
/// write to it; `/dev/null` is unchanged.
fn set_stream_owner(stream: &OwnedFd, user: &User) -> io::Result<()> {
    let kind = nix::sys::stat::fstat(stream)?.st_mode & libc::S_IFMT;
    let terminal = kind == libc::S_IFCHR && nix::unistd::isatty(stream).unwrap_or(false);
    if kind == libc::S_IFIFO {
        fchown(stream, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
    } else if terminal {
        fchown(stream, Some(Uid::from_raw(user.uid)), None)?;
    }
    Ok(())
}

/// Converts the child's failure to the reason that is reported to the host.
fn start_failure(report: ChildFailure, job: &Job, user: &User) -> StartFailure {
    let error = io::Error::from(report.error);
    match report.step {
        Step::Execute if report.error == Errno::ENOENT => StartFailure::CommandNotFound,
        Step::Execute => StartFailure::CommandNotExecutable(error.to_string()),
        Step::Directory => {
            let directory = working_directory(job, user);
            let directory = String::from_utf8_lossy(&directory);
            StartFailure::DirectoryNotEntered(format!("{directory}: {error}"))
        }
        step => StartFailure::Other(format!("{}: {error}", step.name())),
    }
}

/// Returns the raw descriptors that become 0, 1, and 2 of the job.
pub(super) fn raw_descriptors(streams: &[OwnedFd; 3]) -> [RawFd; 3] {
    streams.each_ref().map(|stream| stream.as_fd().as_raw_fd())
}
