//! Tests of followed files.

use super::*;

/// Gives the follower time to read the directory.
const PAUSE: &str = "sleep 0.4";

/// Returns a job whose files in `pages` are followed.
fn following(script: &str) -> Job {
    Job { follow: Some(bytes("pages")), ..shell(script) }
}

/// Returns the standard error of such a job, with the followed lines.
fn followed(script: &str) -> String {
    let result = Host::new().run(following(script));
    assert_eq!(result.status, Some(JobExit::Code(0)), "{}", result.text(OutputStream::Stderr));
    result.text(OutputStream::Stderr)
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn lines_come_while_the_job_runs_and_with_its_own_output() {
    let mut host = Host::new();
    host.start(following(
        "mkdir pages; printf 'one\\nhal' >pages/a; while [ ! -e go ]; do sleep 0.05; done; \
         echo f >>pages/a; echo own >&2; printf 'no end' >>pages/a; echo out",
    ));
    let mut result = JobResult::default();
    while result.outputs.get(&OutputStream::Stderr).is_none_or(|text| text != b"one\n") {
        assert!(host.step(&mut result));
    }
    fs::write(host.home.path().join("go"), "").unwrap();
    let result = host.finish(result);
    assert_eq!(sorted(&result.text(OutputStream::Stderr)), ["half", "no end", "one", "own"]);
    assert_eq!(result.stdout(), "out\n");
}

#[test]
fn a_file_that_is_deleted_is_read_to_its_end() {
    let script = format!(
        "mkdir pages; exec 3>pages/a; echo one >&3; {PAUSE}; echo two >&3; rm pages/a; {PAUSE}; \
         echo three >pages/b; {PAUSE}; rm pages/b"
    );
    assert_eq!(followed(&script), "one\ntwo\nthree\n");
}

#[test]
fn the_last_lines_are_read_after_the_jobs_end() {
    let script = "mkdir pages; i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done >pages/a";
    let expected: Vec<String> = (0..3000).map(|number| number.to_string()).collect();
    assert_eq!(followed(script).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn many_files_are_all_read_a_few_at_a_time() {
    let script = "mkdir new; for i in $(seq 300); do echo $i >new/$i; done; mv new pages; sleep 1";
    let mut lines: Vec<u32> = followed(script).lines().map(|line| line.parse().unwrap()).collect();
    lines.sort_unstable();
    assert_eq!(lines, (1..=300).collect::<Vec<_>>());
}

#[test]
fn a_line_in_two_files_comes_once() {
    let line = "2026-01-02T03:04:05.1230000Z";
    let script = format!(
        "mkdir pages; for f in step job; do printf '\\357\\273\\277{line} a\\n' >pages/$f; \
         printf 'of the same text\\n{line} b\\n' >>pages/$f; done; {PAUSE}; \
         echo '2026-01-02T03:04:06.1230000Z a' >pages/next"
    );
    let expected =
        format!("{line} a\nof the same text\n{line} b\n2026-01-02T03:04:06.1230000Z a\n");
    assert_eq!(followed(&script), expected);
}

#[test]
fn a_long_line_comes_in_pieces() {
    let text =
        followed("mkdir pages; head -c 200000 /dev/zero | tr '\\0' x >pages/a; echo y >>pages/a");
    let lines: Vec<_> = text.lines().map(str::len).collect();
    assert_eq!(lines, [65_536, 65_536, 65_536, 200_000 - 3 * 65_536 + 1]);
}

#[test]
fn links_pipes_and_directories_are_not_read() {
    let script = format!(
        "mkdir pages; echo secret >other; ln -s ../other pages/link; mkfifo pages/pipe; \
         mkdir pages/directory; echo good >pages/file; {PAUSE}"
    );
    assert_eq!(followed(&script), "good\n");
}

#[test]
fn files_are_not_followed_on_a_terminal() {
    let job = on_terminal("mkdir pages; echo one >pages/a; sleep 0.3; echo out");
    let result = Host::new().run(Job { follow: Some(bytes("pages")), ..job });
    assert_eq!(
        (result.stdout().as_str(), result.text(OutputStream::Stderr)),
        ("out\r\n", String::new())
    );
}

#[test]
fn the_remaining_data_at_the_end_is_limited() {
    let mut host = Host::new();
    host.start(following("mkdir pages; truncate -s 1T pages/a"));
    let result = host.finish(JobResult::default());
    assert_eq!(result.status, Some(JobExit::Code(0)));
    assert!(result.outputs[&OutputStream::Stderr].len() < 200 << 20);
}

#[test]
fn a_follower_has_only_the_permissions_of_the_jobs_user() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let write = |name: &str, owner, mode| {
        let path = root.path().join(name);
        fs::write(&path, format!("{name}\n")).unwrap();
        std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    write("own", 1234, 0o600);
    write("unreadable", 1234, 0);
    write("others", 0, 0o644);
    write("secret", 0, 0o600);
    let (read, write) = std::io::pipe().unwrap();
    let directory = root.path().to_owned();
    let (runs, ended) = std::sync::mpsc::channel::<()>();
    let follow = move || {
        let followed =
            super::super::follow::FollowedDirectory { directory, user: Some((1234, 1234)) };
        followed.follow(&std::os::fd::OwnedFd::from(write).into(), &ended);
    };
    let thread = std::thread::spawn(follow);
    drop(runs);
    assert_eq!(std::io::read_to_string(read).unwrap(), "own\n");
    thread.join().unwrap();
    // This thread has kept its permissions.
    assert_eq!(fs::read_to_string(root.path().join("secret")).unwrap(), "secret\n");
}
