//! Guests that break the rules: each ends its own microVM with a named cause, and nothing else.

use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

use crate::support::image::Forgery;
use crate::support::{Ending, Host, PATIENCE, Running, processes};

fn host_with(mode: &str) -> Host {
    let host = Host::bare();
    Forgery::hostile(mode).install(&host);
    host
}

/// The options of every run here.
const ATTACK: [&str; 5] = ["--image", "hostile", "--json", "--memory", "256M"];

/// Runs a job on the guest that misbehaves.
fn attack(host: &Host, options: &[&str]) -> Ending {
    let words = ATTACK.iter().chain(options).chain(&["--", "job"]);
    let endless = File::open("/dev/zero").unwrap();
    Running::start_with(&mut host.command(words), endless).finish(PATIENCE)
}

/// Fails unless the guest is found out, for this reason.
#[track_caller]
fn assert_found_out(mode: &str, options: &[&str], cause: &str, says: &str) {
    let host = host_with(mode);
    let ending = attack(&host, options);
    ending.assert_says(says).assert_output("");
    ending.assert_failed(&host, cause, 125);
    assert!(!ending.stderr.contains('\x1b'), "escape sequences reach the terminal: {ending:?}");
}

#[test]
fn a_frame_that_is_too_long_is_refused() {
    assert_found_out("oversized", &[], "hostile_guest", "frame of 4294967295 bytes");
}

#[test]
fn an_empty_frame_is_refused() {
    assert_found_out("empty", &[], "hostile_guest", "empty frame");
}

#[test]
fn a_malformed_message_is_refused() {
    assert_found_out("malformed", &[], "hostile_guest", "malformed message");
}

#[test]
fn bytes_after_a_message_are_refused() {
    assert_found_out("trailing", &[], "hostile_guest", "left over after the message");
}

#[test]
fn a_message_before_hello_is_refused() {
    assert_found_out("no-hello", &[], "hostile_guest", "sent Prepared before its hello");
}

#[test]
fn a_second_hello_is_refused() {
    assert_found_out("second-hello", &[], "hostile_guest", "the guest sent Hello ");
}

#[test]
fn a_message_out_of_order_is_refused() {
    assert_found_out("out-of-order", &[], "hostile_guest", "the guest sent Started ");
}

#[test]
fn another_version_of_the_protocol_is_named() {
    let (its, ours) = (mayfly_protocol::VERSION + 98, mayfly_protocol::VERSION);
    let says = format!("speaks version {its} of the protocol, this program {ours}");
    assert_found_out("other-version", &[], "agent_version", &says);
}

#[test]
fn output_beyond_the_window_is_refused() {
    let host = host_with("window");
    let (_unread, output) = std::io::pipe().unwrap();
    let mut command = host.command(ATTACK.iter().chain(&["--", "job"]));
    let ending = Running::start_between(&mut command, Stdio::null(), output).finish(PATIENCE);
    ending.assert_says("broke the flow control of stdout").assert_failed(
        &host,
        "hostile_guest",
        125,
    );
}

#[test]
fn a_chunk_that_is_too_long_is_refused() {
    assert_found_out("chunk", &[], "hostile_guest", "a chunk of 65537 bytes");
}

#[test]
fn credit_that_nobody_owes_is_refused() {
    assert_found_out("credit", &["-i"], "hostile_guest", "broke the flow control of stdin");
}

#[test]
fn credit_for_an_input_that_is_not_there_is_refused() {
    assert_found_out("credit", &[], "hostile_guest", "sent Credit for stdin, which is not open");
}

#[test]
fn output_of_an_unknown_stream_is_refused() {
    let says = "sent Output for copied tree 9, which is not open";
    assert_found_out("unknown-stream", &[], "hostile_guest", says);
}

#[test]
fn an_end_before_the_ends_of_the_streams_is_refused() {
    assert_found_out("early-exit", &[], "hostile_guest", "before the end of stdout");
}

#[test]
fn texts_of_the_guest_move_no_cursor() {
    assert_found_out("escapes", &[], "agent", "the guest's agent could not ");
    let host = host_with("escapes");
    let ending = attack(&host, &[]);
    ending.assert_says("]0;owned[31mon the console");
    assert!(ending.stderr.len() < 8000, "{} bytes", ending.stderr.len());
}

#[test]
fn a_guest_that_never_says_hello_is_given_up() {
    let says = "the guest did not say hello within 4s";
    assert_found_out("silence", &["--boot-timeout", "4s"], "boot_deadline", says);
}

#[test]
fn half_a_message_does_not_hold_up_the_deadline() {
    let says = "the guest did not say hello within 4s";
    assert_found_out("half", &["--boot-timeout", "4s"], "boot_deadline", says);
}

#[test]
#[ignore = "takes a minute"]
fn a_guest_that_falls_silent_is_given_up() {
    // It has a job, and no mode that it knows.
    assert_found_out("idle", &[], "silent", "the guest has not been heard of for 1m");
}

#[test]
fn a_flood_of_heartbeats_does_not_put_off_the_deadline() {
    let host = host_with("heartbeats");
    let ending = attack(&host, &["--timeout", "2s"]);
    ending.assert_failed(&host, "job_deadline", 124);
}

#[test]
fn a_guest_that_takes_no_input_does_not_put_off_the_deadline() {
    let host = host_with("deaf");
    let ending = attack(&host, &["--interactive", "--timeout", "2s"]);
    ending.assert_failed(&host, "job_deadline", 124);
}

#[test]
fn a_flood_on_the_console_takes_little_room() {
    let host = host_with("console");
    let mut command = host.command(ATTACK.iter().chain(&["--", "job"]));
    let mut running = Running::start(&mut command);
    running.wait_for_phase("running");
    let shepherd = processes::shepherd(running.pid()).unwrap();
    let mut most = 0;
    while !running.has_ended() {
        // What it has made itself: how much of its program is read in depends on how it was built.
        most = most.max(processes::size(shepherd, "RssAnon").unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    }
    let ending = running.finish(PATIENCE);
    let black_box = ending.assert_failed(&host, "kernel_panic", 125);
    assert!(!ending.stderr.contains('\x1b'), "escape sequences reach the terminal: {ending:?}");
    let sizes = ["console.log", "console.previous"]
        .map(|name| fs::metadata(black_box.join(name)).unwrap().len());
    assert!(sizes.iter().all(|size| *size <= 136 * 1024), "{sizes:?}");
    assert!(most > 0 && most < 15 << 20, "the shepherd had {most} bytes");
}

#[test]
fn only_the_channels_port_of_the_host_answers_and_only_once() {
    let host = host_with("ports");
    attack(&host, &[]).assert_code(0).assert_output("open: []\n");
    host.assert_clean();
}

#[test]
fn what_comes_after_the_jobs_end_changes_nothing() {
    let host = host_with("chatter");
    attack(&host, &[]).assert_code(3).assert_output("");
    host.assert_clean();
}

#[test]
fn an_agent_that_ends_is_a_kernel_panic() {
    assert_found_out("death", &[], "kernel_panic", "Attempted to kill init");
}

/// A microVM that waited for its job has not seen the host's clock step, nor the host sleep.
#[test]
fn the_clock_is_set_again_right_before_the_job() {
    let host = host_with("clock");
    attack(&host, &[]).assert_code(0).assert_output("set 2 times, forward: true\n");
}
