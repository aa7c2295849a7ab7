//! PID 1 of a hostile microVM.
//!
//! It boots like the agent, then misbehaves according to the kernel argument `mayfly.hostile=MODE`,
//! and runs until the host ends it. Each mode is one attack on the shepherd;
//! `tests/microvm/hostile.rs` checks the outcome.

mod copies;

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;

use mayfly_guest::power;
use mayfly_protocol::flow::{MAX_CHUNK, WINDOW};
use mayfly_protocol::frame::{self, FrameError};
use mayfly_protocol::message::{
    GuestHello, GuestMessage, HostMessage, InputStream, JobExit, OutputStream, Statistics,
};
use mayfly_protocol::{CONTROL_PORT, HOST_CID, VERSION};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

/// Clears a terminal, renames its window, and colors the following text.
const ESCAPES: &str = "\x1b[2J\x1b]0;owned\x07\x1b[31m";

fn main() {
    match mayfly_guest::start() {
        Ok(started) => {
            let mut guest = Guest { channel: started.connection, clocks: Vec::new() };
            // Fails when the host closes the channel: nothing remains to attack.
            let _ = misbehave(&mut guest);
            // The channel stays open.
            wait_forever()
        }
        Err(error) => {
            power::log_error(&error);
            wait_forever()
        }
    }
}

fn wait_forever() -> ! {
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
        "oversized" => guest.send_raw(&[0xff; 4]),
        "empty" => guest.send_raw(&[0; 4]),
        "malformed" => guest.send_raw(&[0, 0, 0, 2, 0xee, 0xee]),
        "half" => guest.send_raw(&[0, 0, 0, 9, 1, 2]),
        "trailing" => guest.send_trailing(),
        "other-version" => guest.send(&hello(VERSION + 98)),
        "no-hello" => guest.send(&GuestMessage::Prepared),
        "second-hello" => {
            guest.send(&hello(VERSION))?;
            guest.send(&hello(VERSION))
        }
        "out-of-order" => {
            guest.send(&hello(VERSION))?;
            guest.send(&GuestMessage::Started)
        }
        "escapes" => guest.send_escapes(),
        mode => {
            guest.start_job()?;
            misbehave_in_job(guest, mode)
        }
    }
}

/// Runs the modes that need a running job.
fn misbehave_in_job(guest: &mut Guest, mode: &str) -> Result<(), FrameError> {
    let bytes = |count: usize| vec![b'x'; count].into();
    match mode {
        // A full pipe holds up to one chunk more than the window.
        "window" => (0..WINDOW as usize / MAX_CHUNK + 4).try_for_each(|_| {
            guest.send(&GuestMessage::Output {
                stream: OutputStream::Stdout,
                bytes: bytes(MAX_CHUNK),
            })
        }),
        "chunk" => guest.send(&GuestMessage::Output {
            stream: OutputStream::Stdout,
            bytes: bytes(MAX_CHUNK + 1),
        }),
        "unknown-stream" => {
            guest.send(&GuestMessage::Output { stream: OutputStream::CopyOut(9), bytes: bytes(1) })
        }
        "credit" => {
            guest.send(&GuestMessage::Credit { stream: InputStream::Stdin, bytes: u32::MAX })
        }
        "early-exit" => guest.send(&GuestMessage::Exited(JobExit::Code(0))),
        "heartbeats" => loop {
            guest.send(&GuestMessage::Heartbeat(Statistics::default()))?;
        },
        "deaf" => loop {
            std::thread::park();
        },
        "console" => flood_console(),
        "ports" => guest.try_ports(),
        "clock" => guest.report_clock(),
        "asleep" => guest.sleep_until_woken(),
        mode if mode.starts_with("copy-") => guest.copy_out(&copies::archive(mode)),
        "chatter" => {
            guest.finish(3)?;
            guest.send_raw(&[0xff; 1024])
        }
        // The kernel panics when its first process ends.
        "death" => std::process::abort(),
        _ => Ok(()),
    }
}

fn hello(protocol: u16) -> GuestMessage {
    GuestMessage::Hello(GuestHello { protocol, agent: ESCAPES.into(), kernel: ESCAPES.into() })
}

/// The guest's side of the channel.
struct Guest {
    channel: File,
    /// The clock values from the host, in nanoseconds since the Unix epoch.
    clocks: Vec<u64>,
}

impl Guest {
    fn send(&mut self, message: &GuestMessage) -> Result<(), FrameError> {
        self.send_raw(&frame::encode(message)?)
    }

    /// Sends bytes in packets that the kernel does not split.
    fn send_raw(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        Ok(bytes.chunks(16 * 1024).try_for_each(|packet| self.channel.write_all(packet))?)
    }

    fn receive(&mut self) -> Result<Option<HostMessage>, FrameError> {
        frame::read(&mut self.channel)
    }

    /// Sends a message with an extra byte in its frame.
    fn send_trailing(&mut self) -> Result<(), FrameError> {
        let mut frame = frame::encode(&hello(VERSION))?;
        frame.push(0);
        frame[3] += 1;
        self.send_raw(&frame)
    }

    /// Reports a failure with texts that would control the terminal that shows them.
    fn send_escapes(&mut self) -> Result<(), FrameError> {
        fs::write("/dev/console", format!("{ESCAPES}on the console\n"))?;
        self.send(&hello(VERSION))?;
        let (step, error) =
            (format!("{ESCAPES}step"), format!("{ESCAPES}{}", "long ".repeat(1000)));
        self.send(&GuestMessage::Failed { step, error })
    }

    /// Behaves like the agent until a job runs.
    fn start_job(&mut self) -> Result<(), FrameError> {
        self.send(&hello(VERSION))?;
        while let Some(message) = self.receive()? {
            match message {
                HostMessage::Prepare(prepare) => {
                    self.clocks.push(prepare.wall_clock);
                    self.send(&GuestMessage::Prepared)?;
                }
                HostMessage::SetClock(now) => self.clocks.push(now),
                HostMessage::Start(_) => return self.send(&GuestMessage::Started),
                _ => {}
            }
        }
        Ok(())
    }

    /// Ends the job correctly.
    fn finish(&mut self, code: u8) -> Result<(), FrameError> {
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            self.send(&GuestMessage::OutputEnd { stream, error: None })?;
        }
        self.send(&GuestMessage::Exited(JobExit::Code(code)))
    }

    /// Prints, as the job's output, how often the host set the clock, and whether always forward.
    fn report_clock(&mut self) -> Result<(), FrameError> {
        let forward = self.clocks.is_sorted_by(|before, after| before < after);
        let report = format!("set {} times, forward: {forward}\n", self.clocks.len());
        let bytes = report.into_bytes().into();
        self.send(&GuestMessage::Output { stream: OutputStream::Stdout, bytes })?;
        self.finish(0)
    }

    /// Sends nothing until the host sets the clock, like a guest that lost its timer.
    fn sleep_until_woken(&mut self) -> Result<(), FrameError> {
        while !matches!(self.receive()?, Some(HostMessage::SetClock(_)) | None) {}
        let bytes = b"woken\n".to_vec().into();
        self.send(&GuestMessage::Output { stream: OutputStream::Stdout, bytes })?;
        self.finish(0)
    }

    /// Sends an archive as the copied-out tree, and ends the job successfully.
    fn copy_out(&mut self, archive: &[u8]) -> Result<(), FrameError> {
        let stream = OutputStream::CopyOut(0);
        // Every archive fits in the window.
        for chunk in archive.chunks(MAX_CHUNK) {
            self.send(&GuestMessage::Output { stream, bytes: chunk.to_vec().into() })?;
        }
        self.send(&GuestMessage::OutputEnd { stream, error: None })?;
        self.finish(0)
    }

    /// Prints, as the job's output, the host's ports that accept a connection.
    fn try_ports(&mut self) -> Result<(), FrameError> {
        let ports = [0, 1, 22, 80, CONTROL_PORT - 1, CONTROL_PORT, CONTROL_PORT + 1, u32::MAX - 1];
        // In parallel: the kernel waits two seconds for a missing response.
        let tries = ports.map(|port| (port, std::thread::spawn(move || can_connect(port))));
        let open = tries.into_iter().filter_map(|(port, connected)| match connected.join() {
            Ok(false) => None,
            _ => Some(port),
        });
        let open: Vec<u32> = open.collect();
        let report = format!("open: {open:?}\n").into_bytes().into();
        self.send(&GuestMessage::Output { stream: OutputStream::Stdout, bytes: report })?;
        self.finish(0)
    }
}

/// Writes more to the console than the host keeps, then causes a kernel panic.
fn flood_console() -> Result<(), FrameError> {
    let mut console = File::options().write(true).open("/dev/console")?;
    let line = format!("{ESCAPES}{}\n", "flood ".repeat(20));
    for _ in 0..8000 {
        console.write_all(line.as_bytes())?;
    }
    std::process::abort()
}

fn can_connect(port: u32) -> bool {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    socket.is_ok_and(|fd| connect(fd.as_raw_fd(), &VsockAddr::new(HOST_CID, port)).is_ok())
}
