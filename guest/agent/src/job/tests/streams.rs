//! Tests of the job's standard streams and their windows.

use super::*;

#[test]
fn output_error_and_status_come_apart() {
    let mut host = Host::new();
    let result = host.run(shell("echo out; echo err >&2; exit 7"));
    assert_eq!(result.stdout(), "out\n");
    assert_eq!(result.text(OutputStream::Stderr), "err\n");
    assert_eq!(result.status, Some(JobExit::Code(7)));
    assert_eq!(result.ends.len(), 2);
    host.send(&HostMessage::Shutdown);
    assert!(matches!(host.outcome(), SessionEnd::Shutdown));
}

#[test]
fn input_reaches_the_job_with_its_end() {
    let mut host = Host::new();
    host.start(Job { stdin: true, ..job(&["cat"]) });
    host.input(InputStream::Stdin, b"x\xff\0");
    host.input_end(InputStream::Stdin);
    let result = host.finish(JobResult::default());
    assert_eq!(result.outputs[&OutputStream::Stdout], b"x\xff\0");
}

#[test]
fn a_job_without_input_reads_the_end_at_once() {
    let result = Host::new().run(job(&["cat"]));
    assert_eq!(result.status, Some(JobExit::Code(0)));
}

#[test]
fn unread_input_is_discarded_and_credited() {
    let mut host = Host::new();
    host.start(Job { stdin: true, ..shell("exec <&-; echo closed; sleep 60") });
    let mut result = JobResult::default();
    host.wait_for(&mut result, "closed");
    let mut sent = 0_u64;
    for _ in 0..20 {
        host.input(InputStream::Stdin, &vec![0; MAX_CHUNK]);
        sent += MAX_CHUNK as u64;
        while sent - result.credit > u64::from(WINDOW) - MAX_CHUNK as u64 {
            assert!(host.step(&mut result));
        }
    }
    host.send(&HostMessage::Signal(libc::SIGKILL));
    assert_eq!(host.finish(result).status, Some(JobExit::Signal(9)));
}

#[test]
fn a_lot_of_output_reaches_a_slow_reader_completely() {
    const SIZE: usize = 100_000_000;
    let mut host = Host::new();
    host.start(shell("yes 0123456789abcde | head -c 100000000; echo end >&2"));
    let mut result = JobResult::default();
    for _ in 0..100 {
        assert!(host.step(&mut result));
        std::thread::sleep(Duration::from_millis(1));
    }
    let result = host.finish(result);
    let output = &result.outputs[&OutputStream::Stdout];
    assert_eq!(output.len(), SIZE);
    assert!(output.chunks(16).all(|line| line == b"0123456789abcde\n"));
    assert_eq!(result.text(OutputStream::Stderr), "end\n");
}

#[test]
fn an_unread_stream_blocks_only_itself() {
    let mut host = Host::new();
    host.start(shell(
        "(yes | head -c 1000000; echo done >&3) 3>&2 & sleep 0.3; echo err >&2; wait",
    ));
    let (mut unread, mut error) = (0, false);
    // Without credit, one window of bytes comes, then no more.
    while unread < WINDOW as usize || !error {
        match host.receive().unwrap() {
            GuestMessage::Output { stream: OutputStream::Stdout, bytes } => unread += bytes.len(),
            GuestMessage::Output { stream: OutputStream::Stderr, bytes } => {
                assert_eq!(&bytes[..], b"err\n");
                error = true;
            }
            GuestMessage::Started => {}
            message => panic!("{message:?}"),
        }
    }
    assert_eq!(unread, WINDOW as usize);
    host.send(&HostMessage::Credit { stream: OutputStream::Stdout, bytes: WINDOW });
    assert!(matches!(host.receive(), Some(GuestMessage::Output { .. })));
    host.send(&HostMessage::Signal(libc::SIGKILL));
}
