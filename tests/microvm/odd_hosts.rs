//! Unusual hosts: long paths, an empty `PATH`, few open files, and signals to all processes at
//! once.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use nix::sys::signal::{Signal, kill};

use crate::support::processes::ProcessTree;
use crate::support::{Host, Running, TIMEOUT, images};

#[test]
fn a_state_directory_may_have_a_long_path() {
    let host = Host::new();
    for length in [90, 120, 400] {
        let state = host.root().join("x/".repeat(length / 2));
        fs::create_dir_all(state.join("images")).unwrap();
        symlink(images().join("base"), state.join("images/base")).unwrap();
        let mut command = host.command(["--", "echo", "ran"]);
        let ending = Running::start(command.env("MAYFLY_STATE_DIR", &state)).finish(TIMEOUT);
        ending.assert_code(0).assert_output("ran\n");
    }
}

#[test]
fn programs_are_found_without_a_path() {
    let host = Host::new();
    for path in [Some(""), Some(":"), None] {
        let mut command = host.command(["--", "echo", "ran"]);
        match path {
            Some(path) => command.env("PATH", path),
            None => command.env_remove("PATH"),
        };
        Running::start(&mut command).finish(TIMEOUT).assert_code(0).assert_output("ran\n");
    }
    let command = host.command(["--", "true"]);
    let mut bare = Command::new("unshare");
    // Nor in the default directories.
    bare.args(["--mount", "sh", "-c", "PATH=/usr/bin:/bin:/usr/sbin:/sbin; mount -t tmpfs none /usr/bin; PATH=/nowhere:/usr/bin; exec \"$@\"", "sh"]);
    bare.arg(command.get_program()).args(command.get_args());
    bare.env("MAYFLY_STATE_DIR", host.state()).env("PATH", &host.path);
    let ending = Running::start(&mut bare).finish(TIMEOUT);
    ending.assert_code(69).assert_stderr_has("qemu-system-x86_64 was not found in");
    ending.assert_stderr_has("/nowhere, /usr/bin");
}

#[test]
fn few_open_files_are_enough() {
    let mut host = Host::new();
    host.wrapper = ["sh", "-c", "ulimit -n 100; exec \"$@\"", "sh"].map(Into::into).into();
    host.shell("echo ran").assert_code(0).assert_output("ran\n");
    host.wrapper = ["sh", "-c", "ulimit -n 8; exec \"$@\"", "sh"].map(Into::into).into();
    let ending = host.shell("echo ran");
    assert_ne!(ending.code(), 0);
    ending.assert_output("").assert_stderr_has("Too many open files");
    assert!(!ending.stderr.contains("Invalid argument"), "{ending:?}");
}

#[test]
fn a_signal_to_all_processes_ends_the_run_as_that_signal() {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        for front_first in [true, false] {
            let host = Host::new();
            let script = "trap '' TERM INT; echo ready; while :; do sleep 1; done";
            let mut running = host.start(["--", "sh", "-c", script]);
            running.wait_for_output("ready");
            let mut all = ProcessTree::wait_for(running.pid()).all();
            if !front_first {
                all.reverse();
            }
            for pid in all {
                // The end of one process may end others.
                let _ = kill(pid, signal);
            }
            let ending = running.finish(TIMEOUT);
            assert_eq!(ending.code(), code, "{signal} {front_first}: {ending:?}");
            host.assert_no_process();
        }
    }
}
