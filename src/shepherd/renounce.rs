//! What a shepherd gives up once QEMU runs, before it reads the guest's first byte: every
//! capability, the sight of all files but those of its own microVM and of the resolver, and all
//! system calls that it has no use for.
//!
//! There is no Landlock here: with the root nothing is left for it to guard.

use std::io;
use std::path::Path;

use super::plan::Plan;
use crate::isolation::calls;
use crate::isolation::filter::Calls;
use crate::isolation::root::{self, Entry, Right, Root};

/// What the resolver's configuration is made of (`resolver(5)`, `hosts(5)`, `nsswitch.conf(5)`).
const RESOLVER: [&str; 3] = ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"];

/// Devices that are none: what has no input reads from the first.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/urandom"];

/// Gives them up for this process. To be called while it has one thread: each has capabilities of
/// its own.
///
/// Afterwards the microVM's directory and that of its egress record are there and writable under
/// their names, and no other name leads anywhere.
pub(super) fn renounce(plan: &Plan) -> io::Result<()> {
    let mut entries = vec![Entry::new(&plan.directory, Right::Write)];
    if !plan.egress_record.starts_with(&plan.directory) {
        entries.push(Entry::new(&plan.egress_record, Right::Write));
    }
    let resolver = RESOLVER.map(|path| (path, Right::Read));
    let files = resolver.into_iter().chain(DEVICES.map(|path| (path, Right::Device)));
    let files = files.map(|(path, right)| (Path::new(path), right));
    let files = files.filter(|(path, _)| path.exists());
    entries.extend(files.map(|(path, right)| Entry::new(path, right)));
    let root =
        Root::make(&plan.private.join("roots/shepherd"), &entries).map_err(io::Error::other)?;
    root::enter(root.name())?;
    std::env::set_current_dir(&plan.directory)?;
    drop_capabilities()?;
    // This also forbids to gain privileges by executing a program.
    let filter = calls::shepherd().and_then(Calls::filter).map_err(io::Error::other);
    filter?.install()
}

/// `_LINUX_CAPABILITY_VERSION_3` of `capget(2)`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

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
