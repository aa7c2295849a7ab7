//! The limit of this process's private memory (`RLIMIT_DATA`): the last defense of code that
//! unpacks untrusted archives. Its own limits should never let it be reached.
//!
//! The limit counts private writable memory only, not address space: an allocator reserves far more
//! for threads on a machine with many processors, and mapped files cost nothing.

use std::{fs, io};

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// Memory for unpacking, in bytes, beyond what the process has. The largest window that an
/// archive's compression may require is 128 MiB.
pub const UNPACK_ALLOWANCE: u64 = 512 << 20;

/// The limit of this process until it is dropped. Children started meanwhile inherit it.
#[must_use = "the bound is gone with it"]
pub struct DataLimit {
    before: (rlim_t, rlim_t),
}

/// Limits this process to `beyond` bytes more than it has. A lower limit of the host stays in
/// effect.
///
/// An allocation that needs more fails, which ends the process.
///
/// # Errors
///
/// `/proc/self/status` can't be read, or the kernel rejects the limit.
pub fn limit_data(beyond: u64) -> io::Result<DataLimit> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_DATA)?;
    let limit = mapped()?.saturating_add(beyond).min(soft);
    setrlimit(Resource::RLIMIT_DATA, limit, hard)?;
    Ok(DataLimit { before: (soft, hard) })
}

impl Drop for DataLimit {
    fn drop(&mut self) {
        let (soft, hard) = self.before;
        // Raising it back to the previous limit is allowed.
        let _ = setrlimit(Resource::RLIMIT_DATA, soft, hard);
    }
}

/// Returns the bytes that count towards the limit: `VmData`.
fn mapped() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    let kibibytes: u64 =
        kibibytes.ok_or_else(|| io::Error::other("/proc/self/status has no VmData"))?;
    Ok(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEBIBYTE: usize = 1 << 20;

    fn can_allocate(bytes: usize) -> bool {
        Vec::<u8>::new().try_reserve_exact(bytes).is_ok()
    }

    #[test]
    fn allocations_succeed_within_the_limit_only() {
        let bounded = limit_data(256 * MEBIBYTE as u64).unwrap();
        assert!(can_allocate(128 * MEBIBYTE));
        assert!(!can_allocate(512 * MEBIBYTE));
        // Again: freed memory no longer counts.
        assert!(can_allocate(128 * MEBIBYTE));
        drop(bounded);
        assert!(can_allocate(512 * MEBIBYTE));
    }

    #[test]
    fn a_lower_limit_of_the_host_stays() {
        let outer = limit_data(256 * MEBIBYTE as u64).unwrap();
        let limit = getrlimit(Resource::RLIMIT_DATA).unwrap();
        let inner = limit_data(1 << 40).unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_DATA).unwrap(), limit);
        drop(inner);
        assert_eq!(getrlimit(Resource::RLIMIT_DATA).unwrap(), limit);
        drop(outer);
    }
}
