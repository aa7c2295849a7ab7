//! The errors that end the daemon.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use mayfly_failure::{Code, Failure};
use mayfly_forge::ForgeSetupError;
use mayfly_ledger::LedgerError;
use mayfly_machine::accelerator::KvmUnavailable;

/// An error with which the daemon can't start or continue. Running jobs continue without it.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The ledger can't be used. The daemon does nothing that it can't record.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The forge can't be opened with these settings.
    #[error(transparent)]
    Forge(#[from] ForgeSetupError),
    /// No accelerator can be used.
    #[error(transparent)]
    Accelerator(#[from] KvmUnavailable),
    /// The host has no KVM, and the settings don't allow emulation.
    #[error("KVM can't be used on this host ({0}), and emulation is not allowed")]
    Emulation(String),
    /// The directories of microVMs can't be read.
    #[error("can't read the directory {0}")]
    Microvms(PathBuf, #[source] io::Error),
    /// A directory can't be created.
    #[error("can't create the directory {0}")]
    Directory(PathBuf, #[source] io::Error),
    /// The API's socket can't be created.
    #[error("can't create the API's socket {0}")]
    Socket(PathBuf, #[source] io::Error),
    /// A TCP address can't be bound.
    #[error("can't listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The exporter of traces can't be set up.
    #[error("can't set up the exporter of traces")]
    Collector(#[source] io::Error),
    /// Signal handlers can't be installed.
    #[error("can't install signal handlers")]
    Signals(#[source] io::Error),
    /// The kernel gave no random bytes.
    #[error("can't get random bytes from the kernel")]
    Random(#[source] io::Error),
    /// The path of Mayfly's executable, which starts shepherds, is unknown.
    #[error("can't find Mayfly's own executable")]
    Executable(#[source] io::Error),
}

impl Failure for DaemonError {
    fn code(&self) -> Code {
        match self {
            Self::Ledger(error) => error.code(),
            Self::Forge(error) => error.code(),
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
            Self::Forge(error) => error.hint(),
            Self::Accelerator(error) => error.hint(),
            Self::Emulation(_) => Some(
                "use a host with KVM; to try Mayfly without isolation, set allow_emulation = true in [host]"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}
