//! Tests of trees that are copied in and out.

use super::*;

use mayfly_tree::{ArchiveOrigin, Destination, Notes, Packer, TreeError};

fn pack(path: &Path) -> Vec<u8> {
    let mut archive = Vec::new();
    mayfly_tree::pack(path, &mut archive, Packer::Host).unwrap();
    archive
}

fn unpack(archive: &[u8], path: &Path, name: &str) -> Result<Notes, TreeError> {
    let destination = Destination { path, name: Some(name.as_bytes()) };
    mayfly_tree::unpack(archive, destination, ArchiveOrigin::Guest { limit: 1 << 20 }, |_| Ok(()))
}

#[test]
fn trees_go_in_before_the_job_and_out_after_it() {
    let mut host = Host::new();
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("sub")).unwrap();
    fs::write(source.path().join("sub/file"), "in").unwrap();
    let tree = pack(source.path());
    let script = "cat a/tree/sub/file; printf out > a/tree/new; rm -r a/tree/sub; mkfifo a/tree/p";
    host.start(Job {
        copy_in: vec![bytes("a/tree")],
        copy_out: vec![bytes("a/tree"), bytes("no such"), bytes("a/tree/new")],
        ..shell(script)
    });
    host.input(InputStream::CopyIn(0), &tree);
    host.input_end(InputStream::CopyIn(0));
    let result = host.finish(JobResult::default());
    assert_eq!(result.stdout(), "in");
    let target = tempfile::tempdir().unwrap();
    let unpack = |number, to: &str| {
        let archive = &result.outputs[&OutputStream::CopyOut(number)];
        unpack(archive, &target.path().join(to), to).unwrap()
    };
    let noted = unpack(0, "tree").lines();
    assert_eq!(noted, ["\"p\" is a pipe and was skipped"]);
    unpack(2, "new");
    let names = fs::read_dir(target.path().join("tree")).unwrap();
    assert_eq!(names.count(), 1, "the pipe is skipped");
    assert_eq!(fs::read(target.path().join("tree/new")).unwrap(), b"out");
    assert_eq!(fs::read(target.path().join("new")).unwrap(), b"out");
    assert_eq!(result.ends[&OutputStream::CopyOut(0)], None);
    let missing = result.ends[&OutputStream::CopyOut(1)].as_deref().unwrap();
    assert!(missing.contains("no such\": No such file"), "{missing}");
}

#[test]
fn a_tree_that_cannot_go_in_keeps_the_job_from_starting() {
    let mut host = Host::new();
    host.start(Job { copy_in: vec![bytes("a")], ..shell("echo not reached") });
    host.input(InputStream::CopyIn(0), &[1; 2000]);
    host.input_end(InputStream::CopyIn(0));
    let result = host.finish(JobResult::default());
    let status = result.status.clone();
    assert!(
        matches!(status, Some(JobExit::NotStarted(StartFailure::CopyInFailed(0, _)))),
        "{status:?}"
    );
    assert_eq!(result.stdout(), "");
}

#[test]
fn no_job_starts_before_the_end_of_each_archive_was_seen() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("file"), vec![7; 100_000]).unwrap();
    let whole = pack(source.path());
    // Cuts off the end, half of it, or more, at an entry's end and within one.
    for cut in [1, 512, 1024, 1025, 50_000, whole.len() - 512] {
        let mut host = Host::new();
        host.start(Job { copy_in: vec![bytes("a"), bytes("b")], ..shell("echo not reached") });
        host.input(InputStream::CopyIn(0), &whole);
        host.input_end(InputStream::CopyIn(0));
        host.input(InputStream::CopyIn(1), &whole[..whole.len() - cut]);
        host.input_end(InputStream::CopyIn(1));
        let result = host.finish(JobResult::default());
        let Some(JobExit::NotStarted(StartFailure::CopyInFailed(1, why))) = &result.status else {
            panic!("{cut}: {:?}", result.status);
        };
        assert_eq!(why, "the archive is truncated", "{cut}");
        assert_eq!(result.stdout(), "");
    }
}

#[test]
fn a_job_that_is_killed_as_a_whole_leaves_what_it_has_made() {
    for job in [
        shell("printf some > a; echo ready; sleep 1000"),
        on_terminal("printf some > a; echo ready; sh -ic 'sleep 1000'"),
    ] {
        let mut host = Host::new();
        host.start(Job { copy_out: vec![bytes("a")], ..job });
        let mut result = JobResult::default();
        host.wait_for(&mut result, "ready");
        host.send(&HostMessage::Signal(libc::SIGKILL));
        let result = host.finish(result);
        assert_eq!(result.status, Some(JobExit::Signal(9)));
        let target = tempfile::tempdir().unwrap();
        let archive = &result.outputs[&OutputStream::CopyOut(0)];
        unpack(archive, target.path(), "a").unwrap();
        assert_eq!(fs::read(target.path().join("a")).unwrap(), b"some");
    }
}
