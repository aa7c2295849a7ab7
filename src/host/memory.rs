//! How much memory this process may map for itself (`RLIMIT_DATA`): the last bound under code that
//! unpacks what others packed, whose own bounds should never let it be reached.
//!
//! Of the address space, only what is private and can be written counts: an allocator reserves far
//! more than that for threads on a machine of many processors, and mapped files cost nothing.

use std::{fs, io};

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// What unpacking may take beyond what the process has, in bytes. The largest window that an
/// archive's compression may ask for is 128 MiB.
pub const FOR_UNPACKING: u64 = 512 << 20;

/// The bound of this process, until it is dropped. Children that are started meanwhile inherit it.
#[must_use = "the bound is gone with it"]
pub struct Bound {
    before: (rlim_t, rlim_t),
}

/// Lets this process map at most `beyond` bytes more than it has. A lower limit of the host's stays.
///
/// An allocation that needs more fails, which ends the process.
///
/// # Errors
///
/// There is no `/proc` that says what the process has, or the kernel refuses the limit.
pub fn bound(beyond: u64) -> io::Result<Bound> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_DATA)?;
    let limit = mapped()?.saturating_add(beyond).min(soft);
    setrlimit(Resource::RLIMIT_DATA, limit, hard)?;
    Ok(Bound { before: (soft, hard) })
}

impl Drop for Bound {
    fn drop(&mut self) {
        let (soft, hard) = self.before;
        // What was allowed before is allowed.
        let _ = setrlimit(Resource::RLIMIT_DATA, soft, hard);
    }
}

/// The bytes that the kernel holds against the limit: `VmData`.
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

    fn can_have(bytes: usize) -> bool {
        Vec::<u8>::new().try_reserve_exact(bytes).is_ok()
    }

    #[test]
    fn what_is_within_the_bound_can_be_had_and_nothing_beyond_it() {
        let bounded = bound(256 * MEBIBYTE as u64).unwrap();
        assert!(can_have(128 * MEBIBYTE));
        assert!(!can_have(512 * MEBIBYTE));
        // Again: what was given back counts no longer.
        assert!(can_have(128 * MEBIBYTE));
        drop(bounded);
        assert!(can_have(512 * MEBIBYTE));
    }

    #[test]
    fn a_lower_limit_of_the_hosts_stays() {
        let outer = bound(256 * MEBIBYTE as u64).unwrap();
        let limit = getrlimit(Resource::RLIMIT_DATA).unwrap();
        let inner = bound(1 << 40).unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_DATA).unwrap(), limit);
        drop(inner);
        assert_eq!(getrlimit(Resource::RLIMIT_DATA).unwrap(), limit);
        drop(outer);
    }
}
