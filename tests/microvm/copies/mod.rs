//! Copying files and directories in and out.

mod hostile;
mod kinds;

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use crate::support::Host;
use crate::support::host::Devices;

#[test]
fn a_directory_goes_in_and_comes_out_unchanged() {
    let host = Host::new();
    let (source, back) = (host.root().join("source"), host.root().join("back"));
    fs::create_dir_all(source.join("deep/er")).unwrap();
    // More than any buffer on the way holds.
    let large: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(source.join("deep/large"), &large).unwrap();
    fs::write(source.join("deep/er/program"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(source.join("deep/er/program"), Permissions::from_mode(0o755)).unwrap();
    fs::write(source.join(OsStr::from_bytes(b"odd \xff\nname")), "odd").unwrap();
    symlink("deep/er", source.join("link")).unwrap();
    symlink("/etc/shadow", source.join("leads-out")).unwrap();

    let (copy_in, copy_out) =
        (format!("{}:/work/in", source.display()), format!("/work/in:{}", back.display()));
    let script = "stat -c '%U %a' . deep/er/program; link/program; readlink leads-out; \
                  echo added > added; test -s deep/large";
    let options = ["--copy-in", &copy_in, "--copy-out", &copy_out, "--workdir", "/work/in"];
    let ending = host.run(options.iter().chain(&["--", "sh", "-c", script]));
    ending.assert_code(0).assert_output("runner 755\nrunner 755\nran\n/etc/shadow\n");

    assert_eq!(fs::read(back.join("deep/large")).unwrap(), large);
    let mode = fs::metadata(back.join("deep/er/program")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    assert_eq!(fs::read(back.join(OsStr::from_bytes(b"odd \xff\nname"))).unwrap(), b"odd");
    assert_eq!(fs::read_link(back.join("link")).unwrap(), OsStr::new("deep/er"));
    assert!(!back.join("leads-out").is_symlink(), "the link leads to a file of this host");
    ending.assert_stderr_has("\"leads-out\" is a link that leads out of the tree and was skipped");
    assert_eq!(fs::read_to_string(back.join("added")).unwrap(), "added\n");
    host.assert_clean();
}

#[test]
fn files_go_in_and_come_out_even_if_the_command_fails() {
    let host = Host::new();
    let (source, out) = (host.root().join("source"), host.root().join("out"));
    fs::write(&source, "content").unwrap();
    fs::create_dir(&out).unwrap();
    fs::write(out.join("there"), "before").unwrap();
    fs::create_dir(out.join("tree")).unwrap();
    fs::write(out.join("tree/kept"), "kept").unwrap();
    let path = |name: &str| out.join(name).display().to_string();
    let arguments = [
        ("--copy-in", format!("{}:/new/directory/name", source.display())),
        ("--copy-in", format!("{}:/etc/hostname", source.display())),
        ("--copy-out", format!("/new/directory/name:{}", path("new"))),
        // Replacing a file, into a directory, and among existing files.
        ("--copy-out", format!("/etc/hostname:{}", path("there"))),
        ("--copy-out", format!("/etc/hostname:{}", path(""))),
        ("--copy-out", format!("/home/runner/tree:{}", path("tree"))),
    ];
    let words = arguments.iter().flat_map(|(option, value)| [*option, value]);
    let script = "cat /new/directory/name; mkdir tree; echo more > tree/more; exit 5";
    let ending = host.run(words.chain(["--", "sh", "-c", script]));
    ending.assert_code(5).assert_output("content");
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    assert_eq!(read("new"), "content");
    assert_eq!(read("there"), "content");
    assert_eq!(read("hostname"), "content");
    assert_eq!((read("tree/kept"), read("tree/more")), ("kept".into(), "more\n".into()));
    host.assert_clean();
}

#[test]
fn a_missing_source_on_the_host_is_named_before_anything_starts() {
    let host = Host::new();
    let ending = host.run(["--json", "--copy-in", "/not/there:/x", "--", "true"]);
    ending
        .assert_code(66)
        .assert_stderr_has("can't copy /not/there in")
        .assert_stderr_has("No such file");
    assert_eq!(ending.phases(), [""; 0], "{ending:?}");
    host.assert_clean();
}

#[test]
fn a_missing_source_in_the_guest_is_named_and_fails_the_run() {
    let host = Host::new();
    let out = host.root().join("out");
    let copy = format!("/not/there:{}", out.display());
    let ending = host.run(["--copy-out", &copy, "--", "echo", "ran"]);
    ending.assert_code(66).assert_output("ran\n").assert_stderr_has("can't copy out /not/there");
    assert!(!out.exists());
    // The command's own status takes precedence over the missing file.
    let ending = host.run(["--copy-out", &copy, "--", "sh", "-c", "exit 4"]);
    ending.assert_code(4).assert_stderr_has("can't copy out /not/there");
    host.assert_clean();
}

#[test]
fn an_unusable_destination_is_named() {
    let host = Host::new();
    fs::write(host.root().join("file"), "x").unwrap();
    let source = host.root().join("file").display().to_string();
    // A file in the guest where a directory should be.
    let ending = host.run(["--copy-in", &format!("{source}:/etc/passwd/x"), "--", "true"]);
    ending.assert_code(73).assert_stderr_has(&format!("can't copy {source} in"));
    // A file on the host where a directory should be.
    let copy_out = format!("/etc/hostname:{source}/x");
    let ending = host.run(["--copy-out", &copy_out, "--", "true"]);
    ending.assert_code(73).assert_stderr_has(&format!("can't copy out to {source}/x"));
    host.assert_clean();
}

#[test]
fn set_user_id_bits_and_owners_do_not_come_out() {
    let host = Host::new();
    let copy = format!("/root/tree:{}", host.root().join("out").display());
    let script = "mkdir /root/tree; cp /bin/true /root/tree/program; chown runner /root/tree/program; \
                  chmod 6755 /root/tree/program; mknod /root/tree/null c 1 3; mkfifo /root/tree/pipe";
    let ending = host.run(["--user", "root", "--copy-out", &copy, "--", "sh", "-c", script]);
    ending.assert_code(0);
    let program = fs::metadata(host.root().join("out/program")).unwrap();
    assert_eq!(program.permissions().mode() & 0o7777, 0o755);
    let owner = std::os::unix::fs::MetadataExt::uid(&program);
    assert_eq!(owner, nix::unistd::geteuid().as_raw());
    let names = fs::read_dir(host.root().join("out")).unwrap();
    assert_eq!(names.count(), 1, "devices and pipes stay behind");
    host.assert_clean();
}

#[test]
fn a_tree_that_cant_be_read_starts_no_command() {
    let mut host = Host::new();
    host.run_as_ordinary_user(&Devices::default());
    let source = host.root().join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("readable"), vec![1; 1 << 20]).unwrap();
    fs::write(source.join("sub/secret"), "x").unwrap();
    fs::set_permissions(source.join("sub/secret"), Permissions::from_mode(0o000)).unwrap();
    let copy = format!("{}:/work", source.display());
    let ending = host.run(["--copy-in", &copy, "--", "echo", "ran"]);
    ending
        .assert_code(66)
        .assert_output("")
        .assert_stderr_has("can't read \"sub/secret\": Permission");
    host.assert_clean();
}

#[test]
fn a_file_goes_into_an_existing_directory_of_the_guest() {
    let host = Host::new();
    fs::write(host.root().join("file"), "x").unwrap();
    for destination in ["/tmp/", "/tmp", "/new/"] {
        let copy = format!("{}:{destination}", host.root().join("file").display());
        let script = "cat $0/file; stat -c %U $0/file";
        let ending = host.run(["--copy-in", &copy, "--", "sh", "-c", script, destination]);
        ending.assert_code(0).assert_output("xrunner\n");
    }
}

#[test]
fn existing_files_come_out_after_the_timeout() {
    let host = Host::new();
    let out = host.root().join("out");
    let copy = format!("/home/runner/out:{}", out.display());
    let script = "mkdir out; echo so far > out/log; sleep 1000";
    for terminal in [false, true] {
        let options = ["--json", "--timeout", "4s", "--copy-out", &copy];
        let options = options.iter().chain(terminal.then_some(&"-t"));
        let ending = host.run(options.chain(&["--", "sh", "-c", script]));
        assert_eq!(ending.failure()["cause"], "job_deadline");
        ending.assert_code(124);
        assert_eq!(fs::read_to_string(out.join("log")).unwrap(), "so far\n");
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn more_trees_than_open_files_are_rejected_with_the_numbers() {
    let host = Host::new();
    let copy = format!("{}:/work", host.root().display());
    let copies = vec![["--copy-in".to_owned(), copy]; 400];
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 1024; exec \"$@\"", "sh"]).arg(&host.mayfly).arg("run");
    command.args(copies.into_iter().flatten()).args(["--", "true"]);
    command.env("MAYFLY_STATE_DIR", host.state()).env("PATH", &host.path);
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{stderr}");
    assert!(
        stderr.contains("copying 400 trees needs 1264 open files, but the limit is 1024"),
        "{stderr}"
    );
}

#[test]
fn forty_trees_go_in_with_a_low_limit_of_open_files() {
    let mut host = Host::new();
    host.wrapper = ["sh", "-c", "ulimit -n 200; exec \"$@\"", "sh"].map(Into::into).into();
    fs::write(host.root().join("file"), "x").unwrap();
    let copies: Vec<_> = (0..40)
        .flat_map(|number| {
            let copy = format!("{}:/work/{number}", host.root().join("file").display());
            ["--copy-in".to_owned(), copy]
        })
        .collect();
    let script = ["--", "sh", "-c", "ls /work | wc -l"].map(str::to_owned);
    let ending = host.run(copies.into_iter().chain(script));
    ending.assert_code(0).assert_output("40\n");
    host.assert_clean();
}
