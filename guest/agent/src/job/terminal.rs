//! A pseudo-terminal for the job.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use mayfly_protocol::flow::MAX_CHUNK;
use mayfly_protocol::message::TerminalSize;
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, unlockpt};
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};

mod request {
    nix::ioctl_write_ptr_bad! {
        /// Sets the size of a terminal's window (`ioctl_tty(2)`).
        set_size, libc::TIOCSWINSZ, libc::winsize
    }
    nix::ioctl_write_int_bad! {
        /// Opens the other end of a pseudo-terminal, independently of `/dev/pts`.
        open_peer, libc::TIOCGPTPEER
    }
}

/// Opens a pseudo-terminal of the given size. Returns the agent's end and the job's end.
pub(crate) fn open(size: TerminalSize) -> io::Result<(File, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    // SAFETY: the descriptor is open; the argument is the flags to open with.
    let slave = unsafe { request::open_peer(master.as_raw_fd(), flags.bits()) }?;
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    let master = File::from(OwnedFd::from(master));
    resize(&master, size)?;
    Ok((master, slave))
}

/// Sets the size of the window; the kernel signals the foreground process group.
pub(crate) fn resize(master: &File, size: TerminalSize) -> io::Result<()> {
    let size =
        libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open and the kernel reads one winsize.
    unsafe { request::set_size(master.as_raw_fd(), &raw const size) }?;
    Ok(())
}

/// Writes all of `input` to the terminal, and then the end-of-file character.
pub(crate) fn type_in(mut master: &File, mut input: impl Read) -> io::Result<()> {
    let mut buffer = vec![0; MAX_CHUNK];
    let mut at_line_start = true;
    loop {
        let count = input.read(&mut buffer)?;
        let Some(last) = buffer[..count].last() else { break };
        at_line_start = *last == b'\n' || *last == b'\r';
        master.write_all(&buffer[..count])?;
    }
    let settings = tcgetattr(master)?;
    // In non-canonical mode there is no end-of-file character.
    if settings.local_flags.contains(LocalFlags::ICANON) {
        let end = settings.control_chars[SpecialCharacterIndices::VEOF as usize];
        // In the middle of a line, the first one only flushes the line.
        let ends = if at_line_start { &[end][..] } else { &[end, end] };
        master.write_all(ends)?;
    }
    Ok(())
}
