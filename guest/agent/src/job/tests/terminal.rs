//! Tests of jobs on a terminal.

use super::*;

#[test]
fn a_terminal_has_a_size() {
    let mut host = Host::new();
    host.start(Job { stdin: false, ..on_terminal("tty; stty size; echo err >&2; cat") });
    let result = host.finish(JobResult::default());
    let text = result.stdout();
    assert!(text.starts_with("/dev/pts/"), "{text}");
    assert!(text.ends_with("33 99\r\nerr\r\n"), "{text}");
    assert_eq!(result.ends[&OutputStream::Stderr], None);
    assert_eq!(result.status, Some(JobExit::Code(0)));
}

#[test]
fn a_resize_reaches_the_foreground() {
    let mut host = Host::new();
    host.start(on_terminal(
        "trap 'stty size; exit' WINCH; echo ready; while sleep 0.05; do :; done",
    ));
    let mut result = JobResult::default();
    host.wait_for(&mut result, "ready");
    host.send(&HostMessage::Resize(TerminalSize { rows: 40, columns: 120 }));
    assert!(host.finish(result).stdout().contains("40 120"));
}

#[test]
fn a_terminals_input_ends_even_within_a_line() {
    let mut host = Host::new();
    host.start(on_terminal("stty -echo; echo ready; cat; echo done"));
    let mut result = JobResult::default();
    host.wait_for(&mut result, "ready");
    host.input(InputStream::Stdin, b"line\nhalf");
    host.input_end(InputStream::Stdin);
    let text = host.finish(result).stdout();
    assert!(text.ends_with("line\r\nhalfdone\r\n"), "{text}");
}

#[test]
fn an_interrupt_goes_to_the_terminals_foreground_group() {
    let mut host = Host::new();
    // With job control, the inner shell is the foreground group of the terminal.
    let script = "set -m; (trap 'echo interrupted; exit' INT; echo ready; \
                  while :; do sleep 0.05; done); echo after";
    host.start(on_terminal(script));
    let mut result = JobResult::default();
    host.wait_for(&mut result, "ready");
    host.send(&HostMessage::Signal(libc::SIGINT));
    let text = host.finish(result).stdout();
    assert!(text.contains("interrupted") && text.contains("after"), "{text}");
}
