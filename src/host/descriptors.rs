//! How many files this process and its children may have open (`RLIMIT_NOFILE`).

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What helps where descriptors run out.
pub const HINT: &str = "let more files be open: ulimit -n, or LimitNOFILE= of the unit";

/// What a process raises its own limit to. A higher one would slow down programs that close every
/// number there could be.
const ENOUGH: u64 = 65_536;

/// Raises this process's limit as far as the host lets it, and gives the limit.
pub fn raise() -> u64 {
    let Ok((now, most)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    let wanted = ENOUGH.min(most).max(now);
    // What can't be raised stays as it is.
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, most) {
        Ok(()) => wanted,
        Err(_) => now,
    }
}

/// Descriptors that a process keeps for what is no microVM's: files, calls, those who ask.
const KEPT: u64 = 16;

/// An error, as of a lack of descriptors, where one more microVM would take some of those that are kept
/// for the rest of this process.
pub fn spare() -> io::Result<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let open = std::fs::read_dir("/proc/self/fd")?.count() as u64;
    if open + KEPT > limit { Err(io::Error::from_raw_os_error(libc::EMFILE)) } else { Ok(()) }
}

/// Whether an error says that no more files can be open.
pub fn ran_out(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_to_what_the_host_allows() {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let raised = raise();
        assert!(raised >= ENOUGH.min(most), "{raised} of {most}");
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (raised, most));
        assert_eq!(raise(), raised);
    }

    #[test]
    fn some_descriptors_are_kept() {
        let (limit, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        spare().unwrap();
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        setrlimit(Resource::RLIMIT_NOFILE, open + KEPT / 2, most).unwrap();
        let error = spare().unwrap_err();
        setrlimit(Resource::RLIMIT_NOFILE, limit, most).unwrap();
        assert!(ran_out(&error), "{error}");
    }

    #[test]
    fn only_a_lack_of_descriptors_is_one() {
        for (number, lack) in [(libc::EMFILE, true), (libc::ENFILE, true), (libc::EINVAL, false)] {
            assert_eq!(ran_out(&io::Error::from_raw_os_error(number)), lack);
        }
    }
}
