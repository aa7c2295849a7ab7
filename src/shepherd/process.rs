//! The shepherd's process, from its first instruction to its last.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream as Socket;
use std::process::ExitCode;

use tokio::net::UnixStream;

use super::cause::Cause;
use super::detached;
use super::enclosure;
use super::event::{Event, FailureReport, Happened, Outcome, Phase};
use super::front::{Door, Front, Greeted};
use super::life::{Failed, Planned};
use super::plan::{Order, Plan};
use crate::failure::{self, Failure};
use crate::isolation::peer::Welcome;

/// The descriptor of the connection to the front end.
pub(super) const FRONT: i32 = 3;

/// Lives through one microVM. The exit code is for those who look at processes; what happened is
/// told to the front end.
pub fn run() -> ExitCode {
    match live() {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody is there to be told: the connection itself failed.
        Err(_) => ExitCode::from(failure::Code::Internal as u8),
    }
}

fn live() -> io::Result<()> {
    keep_from_children()?;
    // SAFETY: whoever starts a shepherd gives it this descriptor; nothing else uses it.
    let socket = unsafe { Socket::from_raw_fd(FRONT) };
    // Where the front end is, those that come after it are.
    let welcome = Welcome::above(socket.as_fd())?;
    // One thread is enough: the work is waiting.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        socket.set_nonblocking(true)?;
        // A front end of a version that has nothing in common sees it by our hello.
        let Some(mut first) = Greeted::first(UnixStream::from_std(socket)?).await else {
            return Ok(());
        };
        // Without a plan there is nothing to do and nothing to tell.
        let Some((number, Order::Prepare(plan))) = first.order().await else { return Ok(()) };
        let (door, lock) = match plan.detached {
            Some(_) => {
                let (listener, lock) = detached::inherited()?;
                (Some(Door { listener, welcome }), Some(lock))
            }
            None => (None, None),
        };
        let front = Front::open(first, number, door)?;
        Box::pin(shepherd(*plan, lock, front)).await;
        Ok(())
    })
}

/// Every descriptor from the front end's on is this process's alone.
fn keep_from_children() -> io::Result<()> {
    let (first, last) = (FRONT.cast_unsigned(), u32::MAX);
    let flags = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: sets a flag of descriptors, by number.
    match unsafe { libc::close_range(first, last, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

async fn shepherd(plan: Plan, lock: Option<OwnedFd>, front: Front) {
    let begun = match enclosure::settle(&plan.private) {
        Ok(()) => Planned::begin(plan.clone(), lock, front),
        Err(error) => Err(Box::new((error.into(), front))),
    };
    match begun {
        Ok(planned) => {
            if let Err(failed) = live_through(planned).await {
                failed.destroy().await;
            }
        }
        Err(unbegun) => {
            let (cause, mut front) = *unbegun;
            front.tell(&Event::now(&plan.id, plan.asked, unrecorded(&plan, &cause)));
            front.close().await;
        }
    }
}

async fn live_through(planned: Planned) -> Result<(), Box<Failed>> {
    let prepared = planned.prepare().await?;
    let booting = prepared.boot().await?;
    let ready = booting.ready().await?;
    let claimed = ready.claim().await?;
    let running = claimed.start().await?;
    let finished = running.finish().await?;
    finished.destroy().await;
    Ok(())
}

/// The end of a microVM that has no record.
fn unrecorded(plan: &Plan, cause: &Cause) -> Happened {
    Happened::Ended(Outcome::Failed(FailureReport {
        phase: Phase::Planned,
        cause: cause.name().to_owned(),
        message: failure::chain(cause),
        hint: cause.hint(),
        code: cause.code() as u8,
        statistics: None,
        black_box: plan.directory.clone(),
    }))
}
