//! The command's standard streams: bytes, end of file, terminals, and buffering.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::support::processes::{self, ProcessTree};
use crate::support::{Host, Running, TIMEOUT, is_long_run, until};

#[test]
fn input_reaches_the_command_and_comes_back_unchanged() {
    let host = Host::new();
    let every_byte: Vec<u8> = (0..=255).collect();
    let input = every_byte.repeat(8192);
    let mut running = Running::start_with(&mut host.command(["-i", "--", "cat"]), Stdio::piped());
    running.feed(input.clone());
    let ending = running.finish(TIMEOUT);
    ending.assert_code(0);
    assert!(ending.stdout == input, "{} of {} bytes", ending.stdout.len(), input.len());
    host.assert_clean();
}

#[test]
fn one_byte_of_input_is_enough() {
    let host = Host::new();
    let mut running = Running::start_with(&mut host.command(["-i", "--", "cat"]), Stdio::piped());
    running.feed(b"x".to_vec());
    running.finish(TIMEOUT).assert_code(0).assert_output("x");
}

#[test]
fn without_the_option_the_command_has_no_input() {
    let host = Host::new();
    let mut running = Running::start_with(&mut host.command(["--", "wc", "-c"]), Stdio::piped());
    running.feed(b"not for the command".to_vec());
    running.finish(TIMEOUT).assert_code(0).assert_output("0\n");
}

#[test]
fn a_command_need_not_read_its_input() {
    let host = Host::new();
    let mut command = host.command(["-i", "--", "sh", "-c", "head -c 3; exit 6"]);
    let zeros = File::open("/dev/zero").unwrap();
    let ending = Running::start_with(&mut command, zeros).finish(TIMEOUT);
    ending.assert_code(6).assert_output("\0\0\0");
    host.assert_clean();
}

#[test]
fn closed_standard_streams_are_accepted() {
    let host = Host::new();
    let mayfly = host.mayfly.display();
    for (closed, output) in [("<&-", "0\nout\n"), ("<&- >&- 2>&-", "")] {
        let mut shell = std::process::Command::new("sh");
        shell.arg("-c").arg(format!(
            "exec {mayfly} run -i -- sh -c 'wc -c; echo out; echo err >&2; exit 4' {closed}"
        ));
        shell.env_clear().env("PATH", &host.path).env("MAYFLY_STATE_DIR", host.state());
        let ending = Running::start(&mut shell).finish(TIMEOUT);
        ending.assert_code(4).assert_output(output);
    }
    host.assert_clean();
}

#[test]
fn output_without_a_reader_is_not_a_failure() {
    let host = Host::new();
    for verb in [
        &["doctor", "--json"][..],
        &["config", "show"],
        &["egress", "show", "github"],
        &["image", "list"],
        &["ps"],
        &["completions", "bash"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let unread = Running::start_with_io(&mut host.mayfly(verb), Stdio::null(), writer);
        let unread = unread.finish(TIMEOUT);
        let warned = unread.stderr.lines().all(|line| line.starts_with("warning: "));
        assert!(unread.code() == 0 && warned, "{verb:?}: {unread:?}");

        let full = File::options().write(true).open("/dev/full").unwrap();
        let full = Running::start_with_io(&mut host.mayfly(verb), Stdio::null(), full);
        full.finish(TIMEOUT).assert_code(73).assert_stderr_has("No space left on device");
    }
    // Nor if nothing reads the warning.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut refused = host.mayfly(["image", "inspect", "nothing"]);
    let status = refused.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).status();
    assert_eq!(status.unwrap().code(), Some(66));
}

#[test]
fn a_terminal_is_allocated_on_request() {
    let host = Host::new();
    let script = "tty; stty size; echo err >&2; exit 2";
    let ending = host.run(["-t", "--", "sh", "-c", script]);
    // A terminal has one stream, and ends lines with CR LF.
    ending.assert_code(2).assert_output("/dev/pts/0\r\n24 80\r\nerr\r\n");
    assert_eq!(ending.stderr, "");
    let ending = host.run(["--", "tty"]);
    ending.assert_code(1).assert_output("not a tty\n");
    host.assert_clean();
}

#[test]
fn the_users_terminal_belongs_to_the_command_while_it_runs() {
    let host = Host::new();
    let size = Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).unwrap();
    let settings = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
    let script = "stty size; trap 'stty size' WINCH; trap 'echo caught; exit 8' INT; \
                  echo ready; while :; do sleep 0.05; done";
    let mut command = host.command(["-it", "--", "sh", "-c", script]);
    let copy = || Stdio::from(pty.slave.try_clone().unwrap());
    command.stdin(copy()).stdout(copy()).stderr(copy());
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut screen = Screen::of(pty.master.try_clone().unwrap());
    screen.wait_for("33 101\r\nready\r\n");
    resize(&pty.master, Winsize { ws_row: 40, ws_col: 90, ws_xpixel: 0, ws_ypixel: 0 });
    // The terminal is not the controlling one of this session, so the test sends the signal itself.
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGWINCH).unwrap();
    screen.wait_for("40 90\r\n");
    // Ctrl-C is an ordinary key on this host, and a signal in the microVM.
    File::from(pty.master.try_clone().unwrap()).write_all(b"\x03").unwrap();
    screen.wait_for("caught\r\n");
    let status = until("the end", TIMEOUT, || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(8), "{}", screen.text);
    let after = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
    assert_eq!(after.local_flags, settings.local_flags, "the terminal is as it was");
    assert_eq!(after.input_flags, settings.input_flags, "the terminal is as it was");
    host.assert_clean();
}

#[test]
fn a_reader_that_stops_ends_the_command() {
    let host = Host::new();
    let mut command = host.command(["--", "sh", "-c", "trap 'echo piped >&2' EXIT; yes"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 2];
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let status = until("the end", TIMEOUT, || child.try_wait().unwrap());
    assert_eq!((first, status.code()), (*b"y\n", Some(128 + 13)));
    host.assert_clean();
}

#[test]
fn much_output_through_a_slow_reader_is_complete_and_uses_little_memory() {
    const MEBIBYTE: u64 = 1 << 20;
    // More than all buffers on the way can hold, in either direction.
    let bytes: u64 = if is_long_run() { 2_000_000_000 } else { 300_000_000 };
    let host = Host::new();
    let count = bytes.to_string();
    let mut command = host.command(["--json", "--", "head", "-c", &count, "/dev/zero"]);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(host.root().join("stderr")).unwrap())
        .spawn()
        .unwrap();
    let tree = ProcessTree::wait_for(Pid::from_raw(i32::try_from(child.id()).unwrap()));
    let start = Instant::now();
    let mut stdout = child.stdout.take().unwrap();
    let (mut total, mut buffer, mut peaks) = (0, vec![0; 1 << 16], Peaks::default());
    loop {
        let read = stdout.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        assert!(buffer[..read].iter().all(|byte| *byte == 0), "a byte that was not sent");
        total += read as u64;
        // Slow for long enough that all buffers on the way are full.
        if start.elapsed() < Duration::from_secs(4) {
            std::thread::sleep(Duration::from_millis(20));
        }
        if total / MEBIBYTE != (total - read as u64) / MEBIBYTE || total < 4 * MEBIBYTE {
            peaks.sample(tree);
        }
    }
    let status = until("the end", TIMEOUT, || child.try_wait().unwrap());
    assert_eq!((total, status.code()), (bytes, Some(0)));
    eprintln!("{bytes} bytes in {:.1} s; {peaks:?}", start.elapsed().as_secs_f64());
    assert!(peaks.samples > 10, "{peaks:?}");
    assert!(peaks.front < 64 * MEBIBYTE, "{peaks:?}");
    assert!(peaks.vsock < 64 * MEBIBYTE, "{peaks:?}");
    assert!(peaks.shepherd < 15 * MEBIBYTE, "{peaks:?}");
    host.assert_clean();
}

/// The peak anonymous memory of each process, in bytes. Excludes the guest's memory, which is
/// shared, and the program, whose size depends on optimization.
#[derive(Debug, Default)]
struct Peaks {
    samples: usize,
    front: u64,
    shepherd: u64,
    vsock: u64,
}

impl Peaks {
    fn sample(&mut self, tree: ProcessTree) {
        let size = |pid| processes::size(pid, "RssAnon");
        // A process that has just exited has no values.
        let Some(front) = size(tree.front) else { return };
        let Some(shepherd) = size(tree.shepherd) else { return };
        let Some(vsock) = size(tree.vsock) else { return };
        self.samples += 1;
        self.front = self.front.max(front);
        self.shepherd = self.shepherd.max(shepherd);
        self.vsock = self.vsock.max(vsock);
    }
}

mod ioctl {
    nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, libc::winsize);
}

fn resize(terminal: &OwnedFd, size: Winsize) {
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(terminal);
    // SAFETY: the descriptor is open and the pointer valid for the call.
    unsafe { ioctl::set_size(descriptor, &raw const size) }.unwrap();
}

/// The output of a terminal.
struct Screen {
    shown: std::sync::mpsc::Receiver<Vec<u8>>,
    text: String,
}

impl Screen {
    fn of(master: OwnedFd) -> Self {
        let (show, shown) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let (mut master, mut buffer) = (File::from(master), [0; 4096]);
            // Fails when the last program that has the terminal open has exited.
            while let Ok(count @ 1..) = master.read(&mut buffer) {
                if show.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { shown, text: String::new() }
    }

    fn wait_for(&mut self, text: &str) {
        while !self.text.contains(text) {
            match self.shown.recv_timeout(TIMEOUT) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("{error} before {text:?}; shown: {:?}", self.text),
            }
        }
    }
}
