//! The origin of an archive, which decides how it is unpacked.

use nix::sys::stat::FileStat;

/// The origin of an archive, which decides how it is unpacked.
#[derive(Debug, Clone, Copy)]
pub enum ArchiveOrigin {
    /// A guest: untrusted, unpacked on a host. Uses at most `limit` bytes of the disk, applies the
    /// caller's umask, clears set-id and sticky bits, and skips links that lead out of the tree,
    /// pipes, sockets, and devices.
    Guest {
        /// The most bytes on the disk.
        limit: u64,
    },
    /// The host's user: trusted, unpacked in a guest. Everything is unpacked unchanged, and owned
    /// by `owner`, a user and a group.
    Host {
        /// The owner; the caller if none.
        owner: Option<(u32, u32)>,
    },
}

impl ArchiveOrigin {
    /// Returns the part of an entry's mode that is applied.
    pub(crate) fn mode(self, mode: u32) -> u32 {
        match self {
            Self::Guest { .. } => mode & 0o777,
            Self::Host { .. } => mode & 0o7777,
        }
    }

    /// Returns the final mode of a new directory: on a host, the umask applies.
    pub(crate) fn directory_mode(self, mode: u32, made: &FileStat) -> u32 {
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
