//! PID 1 of a microVM that breaks the rules.
//!
//! It boots as the agent does, then misbehaves as the kernel argument `mayfly.hostile=MODE` says,
//! and goes on until the host ends it. Each mode is one way in which hostile code could attack the
//! shepherd; the tests of `tests/microvm/hostile.rs` say what has to come of it.

mod copies;

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;

use mayfly_guest::power;
use mayfly_protocol::flow::{MAX_CHUNK, WINDOW};
use mayfly_protocol::frame::{self, FrameError};
use mayfly_protocol::message::{
    GuestMessage, Hello, HostMessage, InputStream, JobStatus, OutputStream, Statistics,
};
use mayfly_protocol::{CONTROL_PORT, HOST_CID, VERSION};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

/// Clears a terminal, renames its window, and would colour what follows.
const ESCAPES: &str = "\x1b[2J\x1b]0;owned\x07\x1b[31m";

fn main() {
    match mayfly_guest::start() {
        Ok(started) => {
            let mut guest = Guest { channel: started.connection, clocks: Vec::new() };
            // Where the host has hung up there is nobody left to attack.
            let _gone = misbehave(&mut guest);
            // With the channel open.
            wait_for_the_end()
        }
        Err(error) => {
            power::say(&error);
            wait_for_the_end()
        }
    }
}

fn wait_for_the_end() -> ! {
    loop {
        std::thread::park();
    }
}

fn misbehave(guest: &mut Guest) -> Result<(), FrameError> {
    let arguments = fs::read_to_string("/proc/cmdline")?;
    let mut words = arguments.split_whitespace();
    let mode = words.find_map(|word| word.strip_prefix("mayfly.hostile=")).unwrap_or_default();
    match mode {
        "silence" => Ok(()),
        "oversized" => guest.raw(&[0xff; 4]),
        "empty" => guest.raw(&[0; 4]),
        "malformed" => guest.raw(&[0, 0, 0, 2, 0xee, 0xee]),
        "half" => guest.raw(&[0, 0, 0, 9, 1, 2]),
        "trailing" => guest.trailing(),
        "other-version" => guest.say(&hello(VERSION + 98)),
        "no-hello" => guest.say(&GuestMessage::Prepared),
        "second-hello" => {
            guest.say(&hello(VERSION))?;
            guest.say(&hello(VERSION))
        }
        "out-of-order" => {
            guest.say(&hello(VERSION))?;
            guest.say(&GuestMessage::Started)
        }
        "escapes" => guest.escapes(),
        mode => {
            guest.run_job()?;
            misbehave_in_job(guest, mode)
        }
    }
}

/// What needs a job that runs.
fn misbehave_in_job(guest: &mut Guest, mode: &str) -> Result<(), FrameError> {
    let bytes = |count: usize| vec![b'x'; count].into();
    match mode {
        // A pipe that nobody reads has room for a chunk beside what the window has.
        "window" => (0..WINDOW as usize / MAX_CHUNK + 4).try_for_each(|_| {
            guest.say(&GuestMessage::Output {
                stream: OutputStream::Stdout,
                bytes: bytes(MAX_CHUNK),
            })
        }),
        "chunk" => guest.say(&GuestMessage::Output {
            stream: OutputStream::Stdout,
            bytes: bytes(MAX_CHUNK + 1),
        }),
        "unknown-stream" => {
            guest.say(&GuestMessage::Output { stream: OutputStream::CopyOut(9), bytes: bytes(1) })
        }
        "credit" => {
            guest.say(&GuestMessage::Credit { stream: InputStream::Stdin, bytes: u32::MAX })
        }
        "early-exit" => guest.say(&GuestMessage::Exited(JobStatus::Code(0))),
        "heartbeats" => loop {
            guest.say(&GuestMessage::Heartbeat(Statistics::default()))?;
        },
        "deaf" => loop {
            std::thread::park();
        },
        "console" => flood_console(),
        "ports" => guest.try_ports(),
        "clock" => guest.tell_clock(),
        "asleep" => guest.sleep_until_woken(),
        mode if mode.starts_with("copy-") => guest.copy_out(&copies::archive(mode)),
        "chatter" => {
            guest.finish(3)?;
            guest.raw(&[0xff; 1024])
        }
        // The kernel panics when its first process ends.
        "death" => std::process::abort(),
        _ => Ok(()),
    }
}

fn hello(protocol: u16) -> GuestMessage {
    GuestMessage::Hello(Hello { protocol, agent: ESCAPES.into(), kernel: ESCAPES.into() })
}

/// The connection to the host.
struct Guest {
    channel: File,
    /// What the clock was set to, in nanoseconds since the Unix epoch.
    clocks: Vec<u64>,
}

impl Guest {
    fn say(&mut self, message: &GuestMessage) -> Result<(), FrameError> {
        self.raw(&frame::encode(message)?)
    }

    /// In packets that the kernel passes on whole.
    fn raw(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        Ok(bytes.chunks(16 * 1024).try_for_each(|packet| self.channel.write_all(packet))?)
    }

    fn hear(&mut self) -> Result<Option<HostMessage>, FrameError> {
        frame::read(&mut self.channel)
    }

    /// A message with a byte too many in its frame.
    fn trailing(&mut self) -> Result<(), FrameError> {
        let mut frame = frame::encode(&hello(VERSION))?;
        frame.push(0);
        frame[3] += 1;
        self.raw(&frame)
    }

    /// An agent that gives up, with texts that would take over the terminal they are shown on.
    fn escapes(&mut self) -> Result<(), FrameError> {
        fs::write("/dev/console", format!("{ESCAPES}on the console\n"))?;
        self.say(&hello(VERSION))?;
        let (step, error) =
            (format!("{ESCAPES}step"), format!("{ESCAPES}{}", "long ".repeat(1000)));
        self.say(&GuestMessage::Failed { step, error })
    }

    /// Behaves, until a job runs.
    fn run_job(&mut self) -> Result<(), FrameError> {
        self.say(&hello(VERSION))?;
        while let Some(message) = self.hear()? {
            match message {
                HostMessage::Prepare(prepare) => {
                    self.clocks.push(prepare.wall_clock);
                    self.say(&GuestMessage::Prepared)?;
                }
                HostMessage::SetClock(now) => self.clocks.push(now),
                HostMessage::Start(_) => return self.say(&GuestMessage::Started),
                _ => {}
            }
        }
        Ok(())
    }

    /// Ends the job as it should end.
    fn finish(&mut self, code: u8) -> Result<(), FrameError> {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            self.say(&GuestMessage::OutputEnd { stream, error: None })?;
        }
        self.say(&GuestMessage::Exited(JobStatus::Code(code)))
    }

    /// Tells, as a job's output, how often the clock was set before the job, and whether forward.
    fn tell_clock(&mut self) -> Result<(), FrameError> {
        let forward = self.clocks.is_sorted_by(|before, after| before < after);
        let report = format!("set {} times, forward: {forward}\n", self.clocks.len());
        let bytes = report.into_bytes().into();
        self.say(&GuestMessage::Output { stream: OutputStream::Stdout, bytes })?;
        self.finish(0)
    }

    /// Says nothing, as a guest that lost its timer, until its clock is set.
    fn sleep_until_woken(&mut self) -> Result<(), FrameError> {
        while !matches!(self.hear()?, Some(HostMessage::SetClock(_)) | None) {}
        let bytes = b"woken\n".to_vec().into();
        self.say(&GuestMessage::Output { stream: OutputStream::Stdout, bytes })?;
        self.finish(0)
    }

    /// Sends this as what is copied out, and ends the job well.
    fn copy_out(&mut self, archive: &[u8]) -> Result<(), FrameError> {
        let stream = OutputStream::CopyOut(0);
        // All of them are smaller than what may be under way.
        for chunk in archive.chunks(MAX_CHUNK) {
            self.say(&GuestMessage::Output { stream, bytes: chunk.to_vec().into() })?;
        }
        self.say(&GuestMessage::OutputEnd { stream, error: None })?;
        self.finish(0)
    }

    /// Tells, as a job's output, to which ports of the host it could connect.
    fn try_ports(&mut self) -> Result<(), FrameError> {
        let ports = [0, 1, 22, 80, CONTROL_PORT - 1, CONTROL_PORT, CONTROL_PORT + 1, u32::MAX - 1];
        // At once: the kernel waits two seconds for an answer that does not come.
        let tries = ports.map(|port| (port, std::thread::spawn(move || can_connect(port))));
        let open = tries.into_iter().filter_map(|(port, connected)| match connected.join() {
            Ok(false) => None,
            _ => Some(port),
        });
        let open: Vec<u32> = open.collect();
        let report = format!("open: {open:?}\n").into_bytes().into();
        self.say(&GuestMessage::Output { stream: OutputStream::Stdout, bytes: report })?;
        self.finish(0)
    }
}

/// Writes more on the console than the host keeps, and then ends the machine with a panic.
fn flood_console() -> Result<(), FrameError> {
    let mut console = File::options().write(true).open("/dev/console")?;
    let line = format!("{ESCAPES}{}\n", "flood ".repeat(20));
    for _ in 0..8000 {
        console.write_all(line.as_bytes())?;
    }
    std::process::abort()
}

fn can_connect(port: u32) -> bool {
    let made = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    made.is_ok_and(|made| connect(made.as_raw_fd(), &VsockAddr::new(HOST_CID, port)).is_ok())
}
