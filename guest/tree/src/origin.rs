//! Who has made an archive, and what is taken of what it says.

use nix::sys::stat::FileStat;

/// Who has made an archive, and with that what is taken from it.
#[derive(Debug, Clone, Copy)]
pub enum Origin {
    /// A guest: hostile code, unpacked on a host. At most `limit` bytes of the disk are used; the
    /// caller's umask applies; set-id and sticky bits are dropped; links that lead out, pipes,
    /// sockets and devices are left out.
    Guest {
        /// Bytes on the disk.
        limit: u64,
    },
    /// A person on the host, unpacked in a guest: everything arrives as it was, and is `owner`'s,
    /// user and group.
    Host {
        /// The owner; none is the caller.
        owner: Option<(u32, u32)>,
    },
}

impl Origin {
    /// What is taken of a mode.
    pub(crate) fn mode(self, mode: u32) -> u32 {
        match self {
            Self::Guest { .. } => mode & 0o777,
            Self::Host { .. } => mode & 0o7777,
        }
    }

    /// What a directory's mode becomes that was just made: in a host the umask has its say.
    pub(crate) fn mode_of_directory(self, mode: u32, made: &FileStat) -> u32 {
        match self {
            Self::Guest { .. } => mode & made.st_mode,
            Self::Host { .. } => mode,
        }
    }

    pub(crate) fn limit(self) -> u64 {
        match self {
            Self::Guest { limit } => limit,
            Self::Host { .. } => u64::MAX,
        }
    }

    pub(crate) fn owner(self) -> Option<(u32, u32)> {
        match self {
            Self::Guest { .. } => None,
            Self::Host { owner } => owner,
        }
    }
}
