//! The handshake with a guest, and the refinement of a failure's cause.

use std::time::{Duration, SystemTime};

use mayfly_protocol::message::{HostMessage, Network, Prepare};
use tokio::net::UnixListener;

use super::cause::FailureCause;
use super::event::EventKind;
use super::front_end::FrontEnd;
use mayfly_channel::{ChannelError, Link, Received};
use mayfly_machine::{Machine, StopReason};

/// Bytes of entropy for a guest: the size of the kernel's pool.
const ENTROPY_BYTES: usize = 64;
/// Interval of a guest's heartbeats, in milliseconds.
const HEARTBEAT_MS: u32 = 1000;
/// How long to wait for the machine's stop reason after the channel closed.
const STOP_REASON_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a signal may take to reach this process after it stopped QEMU.
const SIGNAL_DELAY: Duration = Duration::from_millis(300);

/// Performs the handshake: receives the hello, prepares the guest and waits until it is prepared.
pub(super) async fn shake_hands(
    listener: UnixListener,
    hostname: String,
) -> Result<(Link, EventKind), FailureCause> {
    let failed = |what| move |error| FailureCause::Shepherd(what, error);
    let (connection, _) =
        listener.accept().await.map_err(failed("accept the guest's connection"))?;
    // Later connections from inside the guest are refused.
    drop(listener);
    let mut link = Link::open(connection);
    let Received::Hello(hello) = receive(&mut link).await? else {
        return Err(ChannelError::Closed.into());
    };
    let entropy = mayfly_host::random::<ENTROPY_BYTES>().map_err(failed("read random bytes"))?;
    link.send(&HostMessage::Prepare(Prepare {
        entropy: entropy.to_vec().into(),
        wall_clock: wall_clock(),
        hostname,
        network: Some(Network {
            address: mayfly_network::GUEST.octets(),
            prefix: mayfly_network::PREFIX,
            gateway: mayfly_network::GATEWAY.octets(),
            mtu: mayfly_network::MTU,
        }),
        heartbeat_interval: HEARTBEAT_MS,
    }))?;
    while receive(&mut link).await? != Received::Prepared {}
    Ok((link, EventKind::Greeted { agent: hello.agent, kernel: hello.kernel }))
}

/// Returns the host's wall clock in nanoseconds since the Unix epoch.
pub(super) fn wall_clock() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos().try_into().unwrap_or(u64::MAX)
}

async fn receive(link: &mut Link) -> Result<Received, FailureCause> {
    match link.receive().await? {
        Received::Failed { step, error } => Err(FailureCause::Agent { step, error }),
        received => Ok(received),
    }
}

/// Finds a more precise cause of a failure. A stopping machine closes the channel before its stop
/// reason is known. And a signal to the whole process group can stop QEMU before this process
/// notices it.
pub(super) async fn refine_cause(
    cause: FailureCause,
    machine: &mut Machine,
    front: &mut FrontEnd,
) -> FailureCause {
    let cause = match cause {
        FailureCause::Channel(ChannelError::Closed) => {
            let reason = tokio::time::timeout(STOP_REASON_TIMEOUT, machine.stopped()).await;
            reason.map_or(cause, FailureCause::MachineStopped)
        }
        _ => cause,
    };
    match cause {
        FailureCause::MachineStopped(StopReason::QemuExited(_) | StopReason::VsockExited(_)) => {
            tokio::time::timeout(SIGNAL_DELAY, front.wait_for_end()).await.unwrap_or(cause)
        }
        _ => cause,
    }
}
