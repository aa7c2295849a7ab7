//! The host's processors, memory and disk space.

use std::fs;
use std::io;
use std::path::Path;

use super::size::Size;
use mayfly_failure::{Code, Failure};

/// The host's capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Processors that this process may use.
    pub processors: u32,
    /// Memory available without swapping (`MemAvailable` of `/proc/meminfo`).
    pub memory: Size,
}

/// A request exceeds the host's capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CapacityError {
    /// More virtual processors than real ones would make a guest wait for itself.
    #[error("can't give a microVM {requested} processors: this host has {available}")]
    Processors {
        /// Requested processors.
        requested: u32,
        /// Available processors.
        available: u32,
    },
    /// More memory would make the host swap or kill processes.
    #[error("can't give a microVM {requested} of memory: this host has {available} available")]
    Memory {
        /// Requested memory.
        requested: Size,
        /// Available memory.
        available: Size,
    },
}

impl Failure for CapacityError {
    fn code(&self) -> Code {
        Code::Unavailable
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Processors { .. } => None,
            Self::Memory { .. } => {
                Some("free memory on the host, or lower the microVM's memory".to_owned())
            }
        }
    }
}

impl Capacity {
    /// Reads the capacity from the kernel.
    pub fn read() -> io::Result<Self> {
        let processors = std::thread::available_parallelism()?.get();
        let memory = available_memory(&fs::read_to_string("/proc/meminfo")?)
            .ok_or_else(|| io::Error::other("missing MemAvailable in /proc/meminfo"))?;
        Ok(Self { processors: u32::try_from(processors).unwrap_or(u32::MAX), memory })
    }

    /// Checks that a machine of this size fits.
    pub fn admit(&self, processors: u32, memory: Size) -> Result<(), CapacityError> {
        if processors > self.processors {
            return Err(CapacityError::Processors {
                requested: processors,
                available: self.processors,
            });
        }
        if memory > self.memory {
            return Err(CapacityError::Memory { requested: memory, available: self.memory });
        }
        Ok(())
    }
}

/// Returns the space available to ordinary users on the file system of `path`.
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
    fn a_fitting_machine_is_admitted_and_an_excess_is_reported() {
        assert_eq!(HOST.admit(2, Size::gibibytes(4)), Ok(()));
        assert_eq!(
            HOST.admit(3, Size(1)),
            Err(CapacityError::Processors { requested: 3, available: 2 })
        );
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
