//! The job's process while it lives, and the end of everything it started.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::mpsc;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use mayfly_protocol::flow::MAX_CHUNK;
use mayfly_protocol::frame::FrameError;
use mayfly_protocol::message::{InputStream, JobStatus, NotStarted, OutputStream};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::control::Control;
use super::follow::Followed;
use super::input::Input;
use super::reap::{self, Leave, Whom};
use super::spawn::{Ends, Process};
use super::terminal;
use super::{Place, Streams};

/// How long processes that were killed may take to end. Only one that waits for a device takes
/// longer than an instant, and such a one does no more harm.
const REAP_DEADLINE: Duration = Duration::from_secs(2);

/// Serves the process until it and all that it started have ended and all their output was sent.
pub(super) fn attend(
    process: Process,
    streams: &Streams,
    control: &Control,
    place: &Place,
    followed: Option<Followed>,
) -> Result<JobStatus, FrameError> {
    let leader = process.pid;
    // Nothing is ever sent: what is followed ends with this.
    let (runs, ended) = mpsc::channel();
    thread::scope(|scope| {
        if let (Some(followed), Some(to)) = (followed, process.beside) {
            scope.spawn(move || followed.follow(&to, &ended));
        }
        let pumps = connect(scope, process.ends, streams);
        let status = wait(leader, control, place.is_init);
        // Before: a service that is killed must not be started again.
        place.services.withdraw();
        kill_rest(leader, place.is_init);
        // The output lasts until that has read all.
        drop(runs);
        // Wakes the thread that feeds the job, if it still waits for the host.
        if let Some(input) = streams.inputs.get(&InputStream::Stdin) {
            input.close();
        }
        for pump in pumps {
            // A panic has ended the whole process.
            pump.join().unwrap_or(Ok(()))?;
        }
        Ok(status)
    })
}

/// A thread that passes output on.
type Pump<'scope> = ScopedJoinHandle<'scope, Result<(), FrameError>>;

/// Starts a thread for each standard stream. Gives those of the outputs; that of the input ends
/// with the scope.
fn connect<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    ends: Ends,
    streams: &'env Streams,
) -> Vec<Pump<'scope>> {
    let stdin = streams.inputs.get(&InputStream::Stdin);
    let pump = |stream, from: Option<File>| {
        let output = streams.outputs.get(&stream)?;
        Some(scope.spawn(move || {
            from.map_or(Ok(()), |from| output.pump(from))?;
            output.end(None)
        }))
    };
    let (stdout, stderr) = match ends {
        Ends::Terminal(master) => {
            if let Ok(keyboard) = master.try_clone() {
                scope.spawn(move || match stdin {
                    Some(input) => discard_rest(&terminal::type_in(&keyboard, input), input),
                    // A terminal at which nobody sits.
                    None => drop(terminal::type_in(&keyboard, io::empty())),
                });
            }
            (Some(master), None)
        }
        Ends::Pipes { stdin: pipe, stdout, stderr } => {
            if let (Some(input), Some(pipe)) = (stdin, pipe) {
                scope.spawn(move || discard_rest(&feed(pipe, input), input));
            }
            (Some(stdout), Some(stderr))
        }
    };
    let pumps = [pump(OutputStream::Stdout, stdout), pump(OutputStream::Stderr, stderr)];
    pumps.into_iter().flatten().collect()
}

/// Writes all input to the job, and closes the pipe.
fn feed(mut pipe: File, mut input: &Input) -> io::Result<()> {
    let mut buffer = vec![0; MAX_CHUNK];
    loop {
        let count = input.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        pipe.write_all(&buffer[..count])?;
    }
}

/// A job need not read all its input: what it does not take is discarded.
fn discard_rest(fed: &io::Result<()>, input: &Input) {
    if fed.is_err() {
        input.close();
    }
}

/// Waits for the leader's end, and reaps whatever else ends meanwhile.
fn wait(leader: Pid, control: &Control, is_init: bool) -> JobStatus {
    let whom = if is_init { Whom::Any } else { Whom::One(leader) };
    // Without reaping at first, so that the number stays the leader's until nobody uses it.
    while let Ok(ended) = reap::wait(whom, Leave::Zombie) {
        let is_leader = ended.pid == leader;
        if is_leader {
            control.detach();
        }
        let _reaped = reap::wait(Whom::One(ended.pid), Leave::Nothing);
        if is_leader {
            return ended.status;
        }
    }
    // Nobody else reaps here.
    JobStatus::NotStarted(NotStarted::Other("the job's process was lost".to_owned()))
}

/// Kills what the job has left behind.
///
/// For PID 1 that is every process but itself: the kernel delivers to all of them at once, under
/// the lock that a fork needs, so that none escapes by forking, whatever session, control group or
/// PID namespace it made.
fn kill_rest(leader: Pid, is_init: bool) {
    let whom = if is_init { Pid::from_raw(-1) } else { Pid::from_raw(-leader.as_raw()) };
    // It fails where there is nobody left.
    let _nobody = kill(whom, Signal::SIGKILL);
    if !is_init {
        return;
    }
    let start = Instant::now();
    while start.elapsed() < REAP_DEADLINE {
        match reap::try_any() {
            Ok(None) => thread::sleep(Duration::from_millis(1)),
            Ok(Some(_)) | Err(Errno::EINTR) => {}
            // Nobody is left.
            Err(_) => return,
        }
    }
}
