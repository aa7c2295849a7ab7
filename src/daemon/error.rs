//! What ends the daemon.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::failure::{Code, Failure};
use crate::github::forge::GitHubError;
use crate::ledger::LedgerError;
use crate::machine::accelerator::Unusable;

/// The daemon can't start, or can't go on. Jobs that run go on without it.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The ledger can't be used: what can't be recorded is not done.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// GitHub's settings can't be used.
    #[error(transparent)]
    GitHub(#[from] GitHubError),
    /// No accelerator.
    #[error(transparent)]
    Accelerator(#[from] Unusable),
    /// Emulation is not allowed.
    #[error("this host can't run microVMs with KVM ({0}), and emulation is no isolation boundary")]
    Emulation(String),
    /// The directories of microVMs can't be read.
    #[error("can't look through {0}")]
    Microvms(PathBuf, #[source] io::Error),
    /// A directory can't be made.
    #[error("can't make {0}")]
    Directory(PathBuf, #[source] io::Error),
    /// The socket of the API can't be made.
    #[error("can't listen at {0}")]
    Socket(PathBuf, #[source] io::Error),
    /// An address can't be listened at.
    #[error("can't listen at {0}")]
    Listen(SocketAddr, #[source] io::Error),
    /// Traces can't be sent.
    #[error("can't set up what sends traces")]
    Collector(#[source] io::Error),
    /// Signals can't be taken.
    #[error("can't wait for signals")]
    Signals(#[source] io::Error),
    /// No random bytes.
    #[error("no random bytes")]
    Random(#[source] io::Error),
    /// The executable that shepherds are started from is not known.
    #[error("can't find Mayfly's own executable")]
    Executable(#[source] io::Error),
}

impl Failure for DaemonError {
    fn code(&self) -> Code {
        match self {
            Self::Ledger(error) => error.code(),
            Self::GitHub(error) => error.code(),
            Self::Accelerator(error) => error.code(),
            Self::Socket(_, error) if error.kind() == io::ErrorKind::AddrInUse => Code::Unavailable,
            Self::Microvms(..) | Self::Directory(..) | Self::Socket(..) => Code::CannotWrite,
            Self::Emulation(_)
            | Self::Listen(..)
            | Self::Collector(_)
            | Self::Signals(_)
            | Self::Random(_)
            | Self::Executable(_) => Code::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Ledger(error) => error.hint(),
            Self::GitHub(error) => error.hint(),
            Self::Accelerator(error) => error.hint(),
            Self::Emulation(_) => Some(
                "use a host with KVM; to try Mayfly without, set allow_emulation = true in [host]"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}
