//! How much of the host there is to give: processors, memory, disk.

use std::fs;
use std::io;
use std::path::Path;

use super::size::Size;
use crate::failure::{Code, Failure};

/// What the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Processors that this process may use.
    pub processors: u32,
    /// Memory that could be had without swapping (`MemAvailable` of `/proc/meminfo`).
    pub memory: Size,
}

/// More was asked for than the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// Virtual processors beyond the real ones make a guest wait for itself.
    #[error("{asked} processors are more than the {available} of this host")]
    Processors {
        /// Processors asked for.
        asked: u32,
        /// Processors there are.
        available: u32,
    },
    /// The host would have to swap or kill.
    #[error("{asked} of memory is more than the {available} that this host has free")]
    Memory {
        /// Memory asked for.
        asked: Size,
        /// Memory there is.
        available: Size,
    },
}

impl Failure for Exceeded {
    fn code(&self) -> Code {
        Code::Unavailable
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Processors { .. } => None,
            Self::Memory { .. } => Some("end something, or ask for less".to_owned()),
        }
    }
}

impl Capacity {
    /// Reads it from the kernel.
    pub fn read() -> io::Result<Self> {
        let processors = std::thread::available_parallelism()?.get();
        let memory = available_memory(&fs::read_to_string("/proc/meminfo")?)
            .ok_or_else(|| io::Error::other("no MemAvailable in /proc/meminfo"))?;
        Ok(Self { processors: u32::try_from(processors).unwrap_or(u32::MAX), memory })
    }

    /// Whether a machine of this size fits.
    pub fn admit(&self, processors: u32, memory: Size) -> Result<(), Exceeded> {
        if processors > self.processors {
            return Err(Exceeded::Processors { asked: processors, available: self.processors });
        }
        if memory > self.memory {
            return Err(Exceeded::Memory { asked: memory, available: self.memory });
        }
        Ok(())
    }
}

/// Room on the file system of `path` for an ordinary user.
pub fn disk_available(path: &Path) -> io::Result<Size> {
    let statistics = nix::sys::statvfs::statvfs(path)?;
    Ok(Size(statistics.blocks_available().saturating_mul(statistics.fragment_size())))
}

fn available_memory(meminfo: &str) -> Option<Size> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(Size(kibibytes << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Capacity = Capacity { processors: 2, memory: Size::gibibytes(4) };

    #[test]
    fn what_fits_is_admitted_and_what_does_not_is_named() {
        assert_eq!(HOST.admit(2, Size::gibibytes(4)), Ok(()));
        assert_eq!(HOST.admit(3, Size(1)), Err(Exceeded::Processors { asked: 3, available: 2 }));
        let error = HOST.admit(1, Size::gibibytes(5)).unwrap_err().to_string();
        assert!(error.contains("5 GiB") && error.contains("4 GiB"), "{error}");
    }

    #[test]
    fn available_memory_is_found_in_meminfo() {
        let text = "MemTotal:  100 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(available_memory(text), Some(Size::mebibytes(2)));
        assert_eq!(available_memory("MemTotal: 1 kB"), None);
    }
}
