//! The first words with a guest, and the last that can be found out about one.

use std::time::{Duration, SystemTime};

use mayfly_protocol::message::{HostMessage, Network, Prepare};
use tokio::net::UnixListener;

use super::cause::Cause;
use super::event::Happened;
use super::front::Front;
use crate::channel::{ChannelError, Heard, Link};
use crate::machine::{Death, Machine};
use crate::network;

/// Bytes of entropy that a guest is given: the size of the kernel's pool.
const ENTROPY: usize = 64;
/// Time between a guest's heartbeats, in milliseconds.
const HEARTBEAT: u32 = 1000;
/// How long a closed channel may wait to be explained by the machine's end.
const EXPLANATION: Duration = Duration::from_secs(2);
/// How long a signal may take to reach this process after it has ended QEMU.
const STRAGGLER: Duration = Duration::from_millis(300);

/// The guest's first words and ours: hello, what it needs, and that it has it.
pub(super) async fn greet(
    listener: UnixListener,
    hostname: String,
) -> Result<(Link, Happened), Cause> {
    let failed = |what| move |error| Cause::Shepherd(what, error);
    let (connection, _) = listener.accept().await.map_err(failed("accept the guest"))?;
    // Whatever else connects from inside finds nobody.
    drop(listener);
    let mut link = Link::open(connection);
    let Heard::Hello(hello) = hear(&mut link).await? else {
        return Err(ChannelError::Closed.into());
    };
    let entropy = crate::host::random::<ENTROPY>().map_err(failed("read random bytes"))?;
    link.say(&HostMessage::Prepare(Prepare {
        entropy: entropy.to_vec().into(),
        wall_clock: wall_clock(),
        hostname,
        network: Some(Network {
            address: network::GUEST.octets(),
            prefix: network::PREFIX,
            gateway: network::GATEWAY.octets(),
            mtu: network::MTU,
        }),
        heartbeat_interval: HEARTBEAT,
    }))?;
    while hear(&mut link).await? != Heard::Prepared {}
    Ok((link, Happened::Greeted { agent: hello.agent, kernel: hello.kernel }))
}

/// The host's clock: nanoseconds since the Unix epoch.
pub(super) fn wall_clock() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos().try_into().unwrap_or(u64::MAX)
}

async fn hear(link: &mut Link) -> Result<Heard, Cause> {
    match link.hear().await? {
        Heard::Failed { step, error } => Err(Cause::Agent { step, error }),
        heard => Ok(heard),
    }
}

/// A closed channel is what a guest's end looks like first; the machine knows more. And a signal
/// that was sent to all processes ends QEMU before this one may have seen it.
pub(super) async fn explain(cause: Cause, machine: &mut Machine, front: &mut Front) -> Cause {
    let cause = match cause {
        Cause::Channel(ChannelError::Closed) => {
            let death = tokio::time::timeout(EXPLANATION, machine.died()).await;
            death.map_or(cause, Cause::Died)
        }
        _ => cause,
    };
    match cause {
        Cause::Died(Death::QemuEnded(_) | Death::VsockEnded(_)) => {
            tokio::time::timeout(STRAGGLER, front.ended()).await.unwrap_or(cause)
        }
        _ => cause,
    }
}
