//! What a shepherd gives up once QEMU runs, before it reads the guest's first byte: every
//! capability, and the right to write anywhere but in its own directories.

use std::io;
use std::path::Path;

use landlock::{
    ABI, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr,
};

/// The newest Landlock version whose rights are asked for; older kernels give what they have.
const LANDLOCK: ABI = ABI::V5;

/// `_LINUX_CAPABILITY_VERSION_3` of `capget(2)`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Gives them up, for this thread and those that it starts from now on; so it is to be called
/// while there is no other.
///
/// `directory` stays writable and may be removed, `record` stays writable.
pub(super) fn renounce(directory: &Path, record: &Path) -> io::Result<()> {
    let writing = AccessFs::from_write(LANDLOCK);
    let mut rules = vec![(directory, writing), (record, writing)];
    rules.extend(directory.parent().map(|parent| (parent, AccessFs::RemoveDir.into())));
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(writing)
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    for (path, access) in rules {
        let descriptor = PathFd::new(path).map_err(io::Error::other)?;
        ruleset =
            ruleset.add_rule(PathBeneath::new(descriptor, access)).map_err(io::Error::other)?;
    }
    // This also forbids to gain privileges by executing a program.
    ruleset.restrict_self().map_err(io::Error::other)?;
    drop_capabilities()
}

/// `struct __user_cap_header_struct` of `capget(2)`.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

fn drop_capabilities() -> io::Result<()> {
    let header = Header { version: CAPABILITY_VERSION, pid: 0 };
    // Effective, permitted and inheritable, for each half of the capabilities: none.
    let none = [[0_u32; 3]; 2];
    // SAFETY: header and data have the layout that this version asks for, and outlive the call.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const none) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
