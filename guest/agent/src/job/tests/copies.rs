//! Trees that go in and out.

use super::*;

/// Adds entries that lead out of the archive.
type Escape = fn(&mut tar::Builder<Vec<u8>>) -> io::Result<()>;

#[test]
fn trees_go_in_before_the_job_and_out_after_it() {
    let mut host = Host::new();
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("sub")).unwrap();
    fs::write(source.path().join("sub/file"), "in").unwrap();
    let mut tree = Vec::new();
    copy_out::pack(source.path(), &mut tree).unwrap();
    let script = "cat a/tree/sub/file; printf out > a/tree/new; rm -r a/tree/sub; mkfifo a/tree/p";
    host.start(Job {
        copy_in: vec![bytes("a/tree")],
        copy_out: vec![bytes("a/tree"), bytes("no such"), bytes("a/tree/new")],
        ..shell(script)
    });
    host.input(InputStream::CopyIn(0), &tree);
    host.input_end(InputStream::CopyIn(0));
    let result = host.finish(Heard::default());
    assert_eq!(result.stdout(), "in");
    let target = tempfile::tempdir().unwrap();
    let unpack = |number, to: &str| {
        let archive = &result.outputs[&OutputStream::CopyOut(number)];
        copy_in::unpack(archive.as_slice(), &target.path().join(to), None).unwrap();
    };
    unpack(0, "tree");
    unpack(2, "new");
    let names = fs::read_dir(target.path().join("tree")).unwrap();
    assert_eq!(names.count(), 1, "the pipe is left out");
    assert_eq!(fs::read(target.path().join("tree/new")).unwrap(), b"out");
    assert_eq!(fs::read(target.path().join("new")).unwrap(), b"out");
    assert_eq!(result.ends[&OutputStream::CopyOut(0)], None);
    let missing = result.ends[&OutputStream::CopyOut(1)].as_deref().unwrap();
    assert!(missing.contains("no such: No such file"), "{missing}");
}

#[test]
fn a_tree_that_cannot_go_in_keeps_the_job_from_starting() {
    let mut host = Host::new();
    host.start(Job { copy_in: vec![bytes("a")], ..shell("echo not reached") });
    host.input(InputStream::CopyIn(0), &[1; 2000]);
    host.input_end(InputStream::CopyIn(0));
    let result = host.finish(Heard::default());
    let status = result.status.clone();
    assert!(
        matches!(status, Some(JobStatus::NotStarted(NotStarted::CopyInFailed(0, _)))),
        "{status:?}"
    );
    assert_eq!(result.stdout(), "");
}

#[test]
fn a_tree_survives_being_packed_and_unpacked() {
    let source = tempfile::tempdir().unwrap();
    let long = "long/".repeat(40);
    fs::create_dir_all(source.path().join(&long)).unwrap();
    fs::write(source.path().join(&long).join("file"), vec![7; 100_000]).unwrap();
    symlink("nowhere", source.path().join("link")).unwrap();
    let mode = fs::Permissions::from_mode(0o751);
    fs::set_permissions(source.path().join(&long).join("file"), mode).unwrap();
    let mut archive = Vec::new();
    copy_out::pack(source.path(), &mut archive).unwrap();
    let target = tempfile::tempdir().unwrap();
    let copy = target.path().join("missing/parents/copy");
    copy_in::unpack(archive.as_slice(), &copy, None).unwrap();
    let file = copy.join(&long).join("file");
    assert_eq!(fs::read(&file).unwrap(), vec![7; 100_000]);
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("nowhere"));
}

#[test]
fn a_file_of_the_kernel_that_has_no_size_makes_no_broken_archive() {
    let mut archive = Vec::new();
    copy_out::pack(Path::new("/proc/self/status"), &mut archive).unwrap();
    let target = tempfile::tempdir().unwrap();
    copy_in::unpack(archive.as_slice(), &target.path().join("status"), None).unwrap();
    assert_eq!(fs::read(target.path().join("status")).unwrap(), b"");
}

#[test]
fn an_archive_cannot_lead_out_of_its_destination() {
    let escapes: [Escape; 2] = [
        |builder| {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..9].copy_from_slice(b"../escape");
            header.set_size(1);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append(&header, io::repeat(b'x').take(1))
        },
        |builder| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, "link", "..")?;
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            header.set_mode(0o644);
            builder.append_data(&mut header, "link/escape", io::repeat(b'x').take(1))
        },
    ];
    for escape in escapes {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o755);
        builder.append_data(&mut header, ".", io::empty()).unwrap();
        escape(&mut builder).unwrap();
        let archive = builder.into_inner().unwrap();
        let target = tempfile::tempdir().unwrap();
        let inner = target.path().join("inner");
        copy_in::unpack(archive.as_slice(), &inner, None).unwrap_err();
        assert!(!target.path().join("escape").exists());
    }
}
