//! The job's process: everything is made ready before the fork, so that the child only makes
//! system calls until it is the job.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use mayfly_protocol::message::{Job, NotStarted};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, Gid, Pid, Uid, fchown, fork, pipe2};

use super::Rules;
use super::child::{self, Report, Step};
use super::environment::{assignments, candidates, terminated, variables};
use super::reap::{self, Leave, Whom};
use super::terminal;
use super::user::User;

/// What the child needs, in the form in which it hands it to the kernel.
pub(super) struct Plan {
    pub(super) candidates: Vec<CString>,
    pub(super) arguments: Pointers,
    pub(super) environment: Pointers,
    pub(super) directory: CString,
    /// Whether to go to the root directory where `directory` is not there.
    pub(super) directory_is_home: bool,
    /// Whom to become; none leaves the child as it is.
    pub(super) user: Option<User>,
    pub(super) rules: Rules,
    /// `cgroup.procs` of the job's group.
    pub(super) group: Option<File>,
    /// The job's standard input, output and error.
    pub(super) streams: [OwnedFd; 3],
    pub(super) has_terminal: bool,
    pub(super) report: OwnedFd,
}

/// A null-terminated array of strings, as `execve` takes it.
pub(super) struct Pointers {
    pointers: Vec<*const libc::c_char>,
    /// What they point to.
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
pub(crate) enum Ends {
    /// One end for all.
    Terminal(File),
    /// One each; no input where the job has none.
    Pipes { stdin: Option<File>, stdout: File, stderr: File },
}

/// A job's process.
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) ends: Ends,
    /// The job's own end of its standard error, where what it writes elsewhere is to come with it.
    pub(crate) beside: Option<File>,
}

/// Starts the job's program.
///
/// `user` gives the job its variables; only an agent that is `privileged` also becomes that user.
pub(crate) fn spawn(
    job: &Job,
    user: &User,
    privileged: bool,
    rules: Rules,
    group: Option<&Path>,
) -> Result<Process, NotStarted> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| NotStarted::Other(format!("{what}: {error}"))
    };
    let (ends, streams) = open_streams(job).map_err(failed("open the job's streams"))?;
    if privileged {
        // Or the job could not open /dev/stdout and its like.
        for stream in &streams {
            hand_over(stream, user).map_err(failed("hand over the job's streams"))?;
        }
    }
    let follows = job.follow.is_some() && job.terminal.is_none();
    let beside = follows.then(|| streams[2].try_clone().map(File::from)).transpose();
    let beside = beside.map_err(failed("duplicate the job's standard error"))?;
    let (mut report, report_of_child) = pipe2(OFlag::O_CLOEXEC)
        .map(|(a, b)| (File::from(a), b))
        .map_err(|error| failed("open a pipe")(error.into()))?;
    let group = group.map(|group| File::options().write(true).open(group.join("cgroup.procs")));
    let group = group.transpose().map_err(failed("open the job's control group"))?;
    let become_user = privileged.then(|| user.clone());
    let prepared = Prepared { become_user, rules, group, streams, report: report_of_child };
    let plan = plan(job, user, prepared)?;
    // SAFETY: the child makes system calls only, on memory that was made ready before.
    match unsafe { fork() }.map_err(|error| failed("fork")(error.into()))? {
        ForkResult::Child => child::run(&plan),
        ForkResult::Parent { child } => {
            // The child has its own copies; the pipe must end when those are closed.
            drop(plan);
            let mut bytes = Vec::new();
            // Bounded by what a child can say before it ends.
            report.read_to_end(&mut bytes).map_err(failed("hear of the job's start"))?;
            match Report::parse(&bytes) {
                None => Ok(Process { pid: child, ends, beside }),
                Some(report) => {
                    let _reaped = reap::wait(Whom::One(child), Leave::Nothing);
                    Err(explain(report, job, user))
                }
            }
        }
    }
}

/// What a plan takes over as it is.
struct Prepared {
    become_user: Option<User>,
    rules: Rules,
    group: Option<File>,
    streams: [OwnedFd; 3],
    report: OwnedFd,
}

fn plan(job: &Job, user: &User, prepared: Prepared) -> Result<Plan, NotStarted> {
    let Prepared { become_user, rules, group, streams, report } = prepared;
    let variables = variables(user, job.terminal.is_some(), &job.environment);
    let program = job.arguments.first().ok_or(NotStarted::CommandNotFound)?;
    let arguments =
        job.arguments.iter().map(|argument| terminated(argument.to_vec(), "an argument"));
    Ok(Plan {
        candidates: candidates(program, &variables)?,
        arguments: Pointers::new(arguments.collect::<Result<_, _>>()?),
        environment: Pointers::new(assignments(&variables)?),
        directory: terminated(directory(job, user), "the directory's name")?,
        directory_is_home: job.directory.is_none(),
        user: become_user,
        rules,
        group,
        streams,
        has_terminal: job.terminal.is_some(),
        report,
    })
}

/// Where the job starts.
pub(crate) fn directory(job: &Job, user: &User) -> Vec<u8> {
    match &job.directory {
        Some(directory) => directory.to_vec(),
        None => user.home.as_os_str().as_encoded_bytes().to_vec(),
    }
}

/// Both ends of the job's streams.
fn open_streams(job: &Job) -> io::Result<(Ends, [OwnedFd; 3])> {
    if let Some(size) = job.terminal {
        let (master, slave) = terminal::open(size)?;
        let streams = [slave.try_clone()?, slave.try_clone()?, slave];
        return Ok((Ends::Terminal(master), streams));
    }
    let (stdin_of_job, stdin) = if job.stdin {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        (read, Some(File::from(write)))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    let (stdout, stdout_of_job) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, stderr_of_job) = pipe2(OFlag::O_CLOEXEC)?;
    let ends = Ends::Pipes { stdin, stdout: stdout.into(), stderr: stderr.into() };
    Ok((ends, [stdin_of_job, stdout_of_job, stderr_of_job]))
}

/// Gives a pipe or terminal to the user. Terminals keep the group by which others write to them,
/// and nobody owns `/dev/null`.
fn hand_over(stream: &OwnedFd, user: &User) -> io::Result<()> {
    let kind = nix::sys::stat::fstat(stream)?.st_mode & libc::S_IFMT;
    let terminal = kind == libc::S_IFCHR && nix::unistd::isatty(stream).unwrap_or(false);
    if kind == libc::S_IFIFO {
        fchown(stream, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
    } else if terminal {
        fchown(stream, Some(Uid::from_raw(user.uid)), None)?;
    }
    Ok(())
}

/// What the child's failure means to the host.
fn explain(report: Report, job: &Job, user: &User) -> NotStarted {
    let error = io::Error::from(report.error);
    match report.step {
        Step::Execute if report.error == Errno::ENOENT => NotStarted::CommandNotFound,
        Step::Execute => NotStarted::CommandNotExecutable(error.to_string()),
        Step::Directory => {
            let directory = directory(job, user);
            let directory = String::from_utf8_lossy(&directory);
            NotStarted::DirectoryNotEntered(format!("{directory}: {error}"))
        }
        step => NotStarted::Other(format!("{}: {error}", step.name())),
    }
}

/// The descriptors that become 0, 1 and 2 of the job.
pub(super) fn raw(streams: &[OwnedFd; 3]) -> [RawFd; 3] {
    streams.each_ref().map(|stream| stream.as_fd().as_raw_fd())
}
