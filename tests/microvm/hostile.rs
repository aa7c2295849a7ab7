//! Hostile guests: each ends only its own microVM, with the right failure cause.

use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

use crate::support::image::TestImage;
use crate::support::{CommandOutput, Host, Running, TIMEOUT, processes};

fn host_with(mode: &str) -> Host {
    let host = Host::bare();
    TestImage::hostile(mode).install(&host);
    host
}

/// The options of every run.
const ATTACK: [&str; 5] = ["--image", "hostile", "--json", "--memory", "256M"];

/// Runs a job in the hostile guest.
fn attack(host: &Host, options: &[&str]) -> CommandOutput {
    let words = ATTACK.iter().chain(options).chain(&["--", "job"]);
    let endless = File::open("/dev/zero").unwrap();
    Running::start_with(&mut host.command(words), endless).finish(TIMEOUT)
}

/// Checks that the run fails with this cause and message.
#[track_caller]
fn assert_detected(mode: &str, options: &[&str], cause: &str, message: &str) {
    let host = host_with(mode);
    let ending = attack(&host, options);
    ending.assert_stderr_has(message).assert_output("");
    ending.assert_failed(&host, cause, 125);
    assert!(!ending.stderr.contains('\x1b'), "escape sequences reach the terminal: {ending:?}");
}

#[test]
fn an_oversized_frame_is_rejected() {
    assert_detected("oversized", &[], "hostile_guest", "frame of 4294967295 bytes");
}

#[test]
fn an_empty_frame_is_rejected() {
    assert_detected("empty", &[], "hostile_guest", "empty frame");
}

#[test]
fn a_malformed_message_is_rejected() {
    assert_detected("malformed", &[], "hostile_guest", "malformed message");
}

#[test]
fn trailing_bytes_are_rejected() {
    assert_detected("trailing", &[], "hostile_guest", "trailing bytes after the message");
}

#[test]
fn a_message_before_hello_is_rejected() {
    assert_detected("no-hello", &[], "hostile_guest", "sent Prepared before its hello");
}

#[test]
fn a_second_hello_is_rejected() {
    assert_detected("second-hello", &[], "hostile_guest", "the guest sent Hello ");
}

#[test]
fn a_message_out_of_order_is_rejected() {
    assert_detected("out-of-order", &[], "hostile_guest", "the guest sent Started ");
}

#[test]
fn another_protocol_version_is_reported() {
    let (its, ours) = (mayfly_protocol::VERSION + 98, mayfly_protocol::VERSION);
    let says = format!("has protocol version {its}, this program {ours}");
    assert_detected("other-version", &[], "agent_version", &says);
}

#[test]
fn output_beyond_the_window_is_rejected() {
    let host = host_with("window");
    let (_unread, output) = std::io::pipe().unwrap();
    let mut command = host.command(ATTACK.iter().chain(&["--", "job"]));
    let ending = Running::start_with_io(&mut command, Stdio::null(), output).finish(TIMEOUT);
    ending.assert_stderr_has("violated the flow control of stdout").assert_failed(
        &host,
        "hostile_guest",
        125,
    );
}

#[test]
fn an_oversized_chunk_is_rejected() {
    assert_detected("chunk", &[], "hostile_guest", "a chunk of 65537 bytes");
}

#[test]
fn excess_credit_is_rejected() {
    assert_detected("credit", &["-i"], "hostile_guest", "violated the flow control of stdin");
}

#[test]
fn credit_for_a_closed_input_is_rejected() {
    assert_detected("credit", &[], "hostile_guest", "sent Credit for stdin, which is not open");
}

#[test]
fn output_of_an_unknown_stream_is_rejected() {
    let says = "sent Output for copied tree 9, which is not open";
    assert_detected("unknown-stream", &[], "hostile_guest", says);
}

#[test]
fn an_exit_before_the_ends_of_the_streams_is_rejected() {
    assert_detected("early-exit", &[], "hostile_guest", "before the end of stdout");
}

#[test]
fn texts_of_the_guest_contain_no_escape_sequences() {
    assert_detected("escapes", &[], "agent", "the guest's agent could not ");
    let host = host_with("escapes");
    let ending = attack(&host, &[]);
    ending.assert_stderr_has("]0;owned[31mon the console");
    assert!(ending.stderr.len() < 8000, "{} bytes", ending.stderr.len());
}

#[test]
fn a_guest_that_never_sends_hello_times_out() {
    let says = "the guest did not become ready within 4s";
    assert_detected("silence", &["--boot-timeout", "4s"], "boot_deadline", says);
}

#[test]
fn half_a_message_does_not_delay_the_deadline() {
    let says = "the guest did not become ready within 4s";
    assert_detected("half", &["--boot-timeout", "4s"], "boot_deadline", says);
}

#[test]
#[ignore = "takes a minute"]
fn a_guest_without_heartbeats_times_out() {
    // The guest has a job, but does not know the mode, and so does nothing.
    assert_detected("idle", &[], "silent", "no heartbeat from the guest for 1m");
}

#[test]
fn a_flood_of_heartbeats_does_not_delay_the_deadline() {
    let host = host_with("heartbeats");
    let ending = attack(&host, &["--timeout", "2s"]);
    ending.assert_failed(&host, "job_deadline", 124);
}

#[test]
fn a_guest_that_reads_no_input_does_not_delay_the_deadline() {
    let host = host_with("deaf");
    let ending = attack(&host, &["--interactive", "--timeout", "2s"]);
    ending.assert_failed(&host, "job_deadline", 124);
}

#[test]
fn a_flood_on_the_console_uses_bounded_space() {
    let host = host_with("console");
    let mut command = host.command(ATTACK.iter().chain(&["--", "job"]));
    let mut running = Running::start(&mut command);
    running.wait_for_phase("running");
    let shepherd = processes::shepherd(running.pid()).unwrap();
    let mut most = 0;
    while !running.has_exited() {
        // Only anonymous memory: the resident part of the program depends on the build.
        most = most.max(processes::size(shepherd, "RssAnon").unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    }
    let ending = running.finish(TIMEOUT);
    let black_box = ending.assert_failed(&host, "kernel_panic", 125);
    assert!(!ending.stderr.contains('\x1b'), "escape sequences reach the terminal: {ending:?}");
    let sizes = ["console.log", "console.previous"]
        .map(|name| fs::metadata(black_box.join(name)).unwrap().len());
    assert!(sizes.iter().all(|size| *size <= 136 * 1024), "{sizes:?}");
    assert!(most > 0 && most < 15 << 20, "the shepherd used {most} bytes");
}

#[test]
fn only_the_channels_port_accepts_a_connection_and_only_one() {
    let host = host_with("ports");
    attack(&host, &[]).assert_code(0).assert_output("open: []\n");
    host.assert_clean();
}

#[test]
fn messages_after_the_jobs_end_are_ignored() {
    let host = host_with("chatter");
    attack(&host, &[]).assert_code(3).assert_output("");
    host.assert_clean();
}

#[test]
fn an_exit_of_the_agent_is_a_kernel_panic() {
    assert_detected("death", &[], "kernel_panic", "Attempted to kill init");
}

/// A microVM that waited for its job has missed clock steps and suspensions of the host.
#[test]
fn the_clock_is_set_again_right_before_the_job() {
    let host = host_with("clock");
    attack(&host, &[]).assert_code(0).assert_output("set 2 times, forward: true\n");
}
