//! The limit of open files of this process and its children (`RLIMIT_NOFILE`).

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The hint when descriptors run out.
pub const HINT: &str = "raise the limit of open files: ulimit -n, or LimitNOFILE= of the unit";

/// The limit that a process sets for itself. A higher one would slow down programs that close every
/// possible descriptor.
const TARGET_LIMIT: u64 = 65_536;

/// Raises this process's limit as far as the host allows. Returns the limit.
pub fn raise_limit() -> u64 {
    let Ok((now, max)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    let target = TARGET_LIMIT.min(max).max(now);
    // On failure, the limit stays as it is.
    match setrlimit(Resource::RLIMIT_NOFILE, target, max) {
        Ok(()) => target,
        Err(_) => now,
    }
}

/// Descriptors reserved for files, calls and clients other than microVMs.
const RESERVED: u64 = 16;

/// Fails like a lack of descriptors if one more microVM would use reserved ones.
pub fn check_spare() -> io::Result<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let open = std::fs::read_dir("/proc/self/fd")?.count() as u64;
    if open + RESERVED > limit { Err(io::Error::from_raw_os_error(libc::EMFILE)) } else { Ok(()) }
}

/// Returns whether an error is a lack of descriptors.
pub fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_to_what_the_host_allows() {
        let (_, max) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let raised = raise_limit();
        assert!(raised >= TARGET_LIMIT.min(max), "{raised} of {max}");
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (raised, max));
        assert_eq!(raise_limit(), raised);
    }

    #[test]
    fn some_descriptors_are_reserved() {
        let (limit, max) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        check_spare().unwrap();
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        setrlimit(Resource::RLIMIT_NOFILE, open + RESERVED / 2, max).unwrap();
        let error = check_spare().unwrap_err();
        setrlimit(Resource::RLIMIT_NOFILE, limit, max).unwrap();
        assert!(is_exhausted(&error), "{error}");
    }

    #[test]
    fn only_a_lack_of_descriptors_counts_as_one() {
        for (number, lack) in [(libc::EMFILE, true), (libc::ENFILE, true), (libc::EINVAL, false)] {
            assert_eq!(is_exhausted(&io::Error::from_raw_os_error(number)), lack);
        }
    }
}
