//! The shepherd's process: its start, its phases and its exit.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream as Socket;
use std::process::ExitCode;

use tokio::net::UnixStream;

use super::cause::FailureCause;
use super::detached;
use super::enclosure;
use super::event::{Event, EventKind, FailureReport, JobOutcome, Phase};
use super::front_end::{FrontEnd, FrontListener, GreetedConnection};
use super::phases::{Failed, Planned};
use super::plan::{MicrovmPlan, ShepherdCommand};
use mayfly_failure::Failure;
use mayfly_isolation::peer::PeerPolicy;

/// The descriptor of the connection to the front end.
pub(super) const FRONT_END_FD: i32 = 3;

/// Runs a shepherd. The exit code is only for process monitors; the front end gets events.
pub fn run() -> ExitCode {
    match run_shepherd() {
        Ok(()) => ExitCode::SUCCESS,
        // The connection itself failed, so there is no front end to report to.
        Err(_) => ExitCode::from(mayfly_failure::Code::Internal as u8),
    }
}

fn run_shepherd() -> io::Result<()> {
    close_on_exec()?;
    // SAFETY: the starting process gives it this descriptor; nothing else uses it.
    let socket = unsafe { Socket::from_raw_fd(FRONT_END_FD) };
    // Later front ends are in the same namespaces as the first one.
    let peers = PeerPolicy::parent_namespaces(socket.as_fd())?;
    // One thread suffices: a shepherd mostly waits.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        socket.set_nonblocking(true)?;
        // An incompatible front end recognizes that by our hello.
        let Some(mut first) = GreetedConnection::accept_first(UnixStream::from_std(socket)?).await
        else {
            return Ok(());
        };
        // Without a plan there is nothing to do or report.
        let Some((number, ShepherdCommand::Prepare(plan))) = first.first_command().await else {
            return Ok(());
        };
        let (listener, lock) = match plan.detached {
            Some(_) => {
                let (socket, lock) = detached::take_inherited()?;
                (Some(FrontListener { socket, peers }), Some(lock))
            }
            None => (None, None),
        };
        let front = FrontEnd::new(first, number, listener)?;
        Box::pin(supervise(*plan, lock, front)).await;
        Ok(())
    })
}

/// Closes all descriptors from the front end's on in child processes.
fn close_on_exec() -> io::Result<()> {
    let (first, last) = (FRONT_END_FD.cast_unsigned(), u32::MAX);
    let flags = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: sets a flag of descriptors, by number.
    match unsafe { libc::close_range(first, last, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

async fn supervise(plan: MicrovmPlan, lock: Option<OwnedFd>, front: FrontEnd) {
    let started = match enclosure::mount_private(&plan.private) {
        Ok(()) => Planned::start(plan.clone(), lock, front),
        Err(error) => Err(Box::new((error.into(), front))),
    };
    match started {
        Ok(planned) => {
            if let Err(failed) = run_phases(planned).await {
                failed.destroy().await;
            }
        }
        Err(failed) => {
            let (cause, mut front) = *failed;
            front.send_event(&Event::now(
                &plan.id,
                plan.requested_at,
                failure_without_record(&plan, &cause),
            ));
            front.close().await;
        }
    }
}

async fn run_phases(planned: Planned) -> Result<(), Box<Failed>> {
    let prepared = planned.prepare().await?;
    let booting = prepared.boot().await?;
    let ready = booting.ready().await?;
    let claimed = ready.claim().await?;
    let running = claimed.start().await?;
    let finished = running.finish().await?;
    finished.destroy().await;
    Ok(())
}

/// Returns the final event of a microVM that has no record.
fn failure_without_record(plan: &MicrovmPlan, cause: &FailureCause) -> EventKind {
    EventKind::Ended(JobOutcome::Failed(FailureReport {
        phase: Phase::Planned,
        cause: cause.name().to_owned(),
        message: mayfly_failure::chain(cause),
        hint: cause.hint(),
        code: cause.code() as u8,
        statistics: None,
        black_box: plan.directory.clone(),
    }))
}
