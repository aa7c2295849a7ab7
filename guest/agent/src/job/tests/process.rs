//! Tests of a job's process and its exit status.

use super::*;

#[test]
fn signals_reach_the_jobs_whole_group_and_end_it() {
    let mut host = Host::new();
    host.start(shell("sleep 60 | sleep 60; echo not reached"));
    host.send(&HostMessage::Signal(libc::SIGTERM));
    let result = host.finish(JobResult::default());
    assert_eq!(result.status, Some(JobExit::Signal(15)));
    assert_eq!(result.stdout(), "");
}

#[test]
fn a_real_time_signal_is_reported_like_any_other() {
    let result = Host::new().run(shell("kill -s 40 $$"));
    assert_eq!(result.status, Some(JobExit::Signal(40)));
}

#[test]
fn remaining_processes_are_killed() {
    let mut host = Host::new();
    let result = host.run(shell("sleep 60 & echo $!"));
    assert_eq!(result.status, Some(JobExit::Code(0)));
    // The output ended, so its pipe was closed: the process was killed.
    assert_eq!(result.ends[&OutputStream::Stdout], None);
}

#[test]
fn failed_commands_report_the_reason() {
    for (arguments, expected) in [
        (&["no such command"][..], StartFailure::CommandNotFound),
        (&["/no/such/command"], StartFailure::CommandNotFound),
        (&[""], StartFailure::CommandNotFound),
        (&["/etc/passwd"], StartFailure::CommandNotExecutable(String::new())),
        (&["/"], StartFailure::CommandNotExecutable(String::new())),
    ] {
        let result = Host::new().run(job(arguments));
        assert_eq!(result.ends.len(), 2, "{arguments:?}");
        match (result.status, expected) {
            (
                Some(JobExit::NotStarted(StartFailure::CommandNotExecutable(why))),
                StartFailure::CommandNotExecutable(_),
            ) => assert!(why.contains("ermission denied"), "{why}"),
            (status, expected) => assert_eq!(status, Some(JobExit::NotStarted(expected))),
        }
    }
}

#[test]
fn an_unexecutable_program_is_reported_only_if_no_other_is_found() {
    let mut host = Host::new();
    let [first, second] = ["first", "second"].map(|name| host.home.path().join(name));
    for directory in [&first, &second] {
        fs::create_dir(directory).unwrap();
        fs::write(directory.join("program"), "#!/bin/sh\necho ran\n").unwrap();
    }
    fs::set_permissions(second.join("program"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", first.display(), second.display());
    let environment = vec![(bytes("PATH"), bytes(&path))];
    let result = host.run(Job { environment, ..job(&["program"]) });
    assert_eq!(result.stdout(), "ran\n");
}

#[test]
fn unknown_users_and_directories_are_named() {
    let unknown = Job { user: Some("nobody-here".into()), ..job(&["true"]) };
    let status = Host::new().run(unknown).status;
    let expected = StartFailure::UserNotFound("nobody-here".into());
    assert_eq!(status, Some(JobExit::NotStarted(expected)));
    let nowhere = Job { directory: Some(bytes("/no/such")), ..job(&["true"]) };
    let status = Host::new().run(nowhere).status;
    let Some(JobExit::NotStarted(StartFailure::DirectoryNotEntered(why))) = status else {
        panic!("{status:?}")
    };
    assert!(why.starts_with("/no/such: "), "{why}");
}

#[test]
fn a_job_starts_in_a_clean_process() {
    let mut host = Host::new();
    let script = "pwd; umask; ls /proc/self/fd | wc -l; cat /proc/self/status | \
                  grep SigBlk | cut -f2; ps -o sid= -p $$ | tr -d ' '; echo $$";
    let environment = vec![(bytes("A"), bytes("1"))];
    let result = host.run(Job { environment, ..shell(script) });
    let text = result.stdout();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], host.home.path().to_str().unwrap());
    // Three streams and the one by which the directory is read.
    assert_eq!(lines[1..4], ["0022", "4", "0000000000000000"]);
    assert_eq!(lines[4], lines[5], "the job does not lead its own session");
}

#[test]
fn the_environment_is_that_of_a_login_and_not_the_agents() {
    let mut host = Host::new();
    let environment = vec![(bytes("A"), bytes("1")), (bytes("LANG"), bytes("C"))];
    let result = host.run(Job { environment, ..job(&["env"]) });
    let mut names: Vec<_> =
        result.stdout().lines().map(|line| line.split('=').next().unwrap().to_owned()).collect();
    names.sort_unstable();
    assert_eq!(names, ["A", "HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER"]);
    assert!(result.stdout().contains("LANG=C\n"));
}

#[test]
fn many_and_odd_arguments_arrive_unchanged() {
    let mut arguments: Vec<Bytes> = vec![bytes("printf"), bytes("%s")];
    arguments.extend((0..1024).map(|_| Bytes::from(vec![0xfe; 64])));
    let result = Host::new().run(Job { arguments, ..job(&[]) });
    assert_eq!(result.outputs[&OutputStream::Stdout], vec![0xfe; 64 * 1024]);
}

#[test]
fn a_job_ignores_no_signal_that_the_agent_ignores() {
    // Rust programs ignore SIGPIPE.
    let result = Host::new().run(shell("yes | head -n 1; kill -s PIPE $$; echo survived"));
    assert_eq!(result.status, Some(JobExit::Signal(13)));
    assert_eq!(result.stdout(), "y\n");
}
