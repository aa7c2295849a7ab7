//! Runs the job's process, and kills everything it started when it ends.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::mpsc;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use mayfly_protocol::flow::MAX_CHUNK;
use mayfly_protocol::frame::FrameError;
use mayfly_protocol::message::{InputStream, JobExit, OutputStream, StartFailure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::control::Control;
use super::follow::FollowedDirectory;
use super::input::Input;
use super::reap::{self, ReapMode, WaitFor};
use super::spawn::{Process, StreamEnds};
use super::terminal;
use super::{JobContext, Streams};

/// The time limit for killed processes to end. Only a process that waits for a device takes
/// noticeable time, and it is harmless.
const REAP_DEADLINE: Duration = Duration::from_secs(2);

/// Serves the process until it and all its descendants have ended and all their output was sent.
pub(super) fn supervise(
    process: Process,
    streams: &Streams,
    control: &Control,
    context: &JobContext,
    followed: Option<FollowedDirectory>,
) -> Result<JobExit, FrameError> {
    let leader = process.pid;
    // Never sends; dropping it ends the following.
    let (runs, ended) = mpsc::channel();
    thread::scope(|scope| {
        if let (Some(followed), Some(to)) = (followed, process.stderr_copy) {
            scope.spawn(move || followed.follow(&to, &ended));
        }
        let pumps = connect(scope, process.ends, streams);
        let status = wait_for_leader(leader, control, context.is_init);
        // Must come before the kill, so that a killed service is not started again.
        context.services.disable();
        kill_remaining(leader, context.is_init);
        // The output stays open until the follower has read everything.
        drop(runs);
        // Wakes the thread that writes the job's input, if it waits for the host.
        if let Some(input) = streams.inputs.get(&InputStream::Stdin) {
            input.close();
        }
        for pump in pumps {
            // Ignores a panic of the thread.
            pump.join().unwrap_or(Ok(()))?;
        }
        Ok(status)
    })
}

/// A thread that sends output.
type Pump<'scope> = ScopedJoinHandle<'scope, Result<(), FrameError>>;

/// Starts a thread per standard stream. Returns those of the outputs; that of the input ends with
/// the scope.
fn connect<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    ends: StreamEnds,
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
        StreamEnds::Terminal(master) => {
            if let Ok(keyboard) = master.try_clone() {
                scope.spawn(move || match stdin {
                    Some(input) => discard_rest(&terminal::type_in(&keyboard, input), input),
                    // A terminal without input.
                    None => drop(terminal::type_in(&keyboard, io::empty())),
                });
            }
            (Some(master), None)
        }
        StreamEnds::Pipes { stdin: pipe, stdout, stderr } => {
            if let (Some(input), Some(pipe)) = (stdin, pipe) {
                scope.spawn(move || discard_rest(&feed(pipe, input), input));
            }
            (Some(stdout), Some(stderr))
        }
    };
    let pumps = [pump(OutputStream::Stdout, stdout), pump(OutputStream::Stderr, stderr)];
    pumps.into_iter().flatten().collect()
}

/// Writes all input to the job's standard input, and closes the pipe.
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

/// Discards the remaining input if the job has stopped reading it.
fn discard_rest(fed: &io::Result<()>, input: &Input) {
    if fed.is_err() {
        input.close();
    }
}

/// Waits until the leader ends, and reaps every other process that ends meanwhile.
fn wait_for_leader(leader: Pid, control: &Control, is_init: bool) -> JobExit {
    let which = if is_init { WaitFor::Any } else { WaitFor::One(leader) };
    // First waits without reaping, so that the leader's ID is not reused while it is in use.
    while let Ok(ended) = reap::wait(which, ReapMode::KeepZombie) {
        let is_leader = ended.pid == leader;
        if is_leader {
            control.detach();
        }
        let _reaped = reap::wait(WaitFor::One(ended.pid), ReapMode::Reap);
        if is_leader {
            return ended.status;
        }
    }
    // No other code reaps processes.
    JobExit::NotStarted(StartFailure::Other("the job's process was lost".to_owned()))
}

/// Kills the job's remaining processes.
///
/// For PID 1 that is every process but itself. The kernel signals all of them at once, under the
/// lock that a fork needs, so none escapes by forking, whatever session, control group, or PID
/// namespace it has created.
fn kill_remaining(leader: Pid, is_init: bool) {
    let target = if is_init { Pid::from_raw(-1) } else { Pid::from_raw(-leader.as_raw()) };
    // Fails if no process remains.
    let _none_left = kill(target, Signal::SIGKILL);
    if !is_init {
        return;
    }
    let start = Instant::now();
    while start.elapsed() < REAP_DEADLINE {
        match reap::try_any() {
            Ok(None) => thread::sleep(Duration::from_millis(1)),
            Ok(Some(_)) | Err(Errno::EINTR) => {}
            // No process remains.
            Err(_) => return,
        }
    }
}
