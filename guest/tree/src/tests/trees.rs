//! Trees that are packed and unpacked unchanged.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::time::{Duration, SystemTime};

use super::*;
use crate::{Packer, pack};

fn packed(path: &Path, packer: Packer) -> (Vec<u8>, Notes) {
    let mut archive = Vec::new();
    let notes = pack(path, &mut archive, packer).unwrap();
    (archive, notes)
}

/// Packs what `make` creates, and unpacks it at `inner`.
fn through(
    packer: Packer,
    origin: ArchiveOrigin,
    make: impl FnOnce(&Path),
) -> (TestDir, Notes, Notes) {
    let source = tempfile::tempdir().unwrap();
    let tree = source.path().join("tree");
    fs::create_dir(&tree).unwrap();
    make(&tree);
    let (archive, skipped) = packed(&tree, packer);
    let dir = TestDir::new();
    let notes = dir.unpack(&archive, origin).unwrap();
    (dir, skipped, notes)
}

const DIRECTIONS: [(Packer, ArchiveOrigin); 2] = [(Packer::Host, HOST), (Packer::Guest, GUEST)];

#[test]
fn names_links_modes_and_times_arrive() {
    for (packer, origin) in DIRECTIONS {
        let long = "long/".repeat(60);
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let (dir, skipped, notes) = through(packer, origin, |tree| {
            fs::create_dir_all(tree.join(&long)).unwrap();
            fs::write(tree.join(&long).join("file"), vec![7; 100_000]).unwrap();
            let program = tree.join("program");
            fs::write(&program, "x").unwrap();
            fs::set_permissions(&program, Permissions::from_mode(0o751)).unwrap();
            fs::File::options().write(true).open(&program).unwrap().set_modified(time).unwrap();
            fs::write(tree.join(OsStr::from_bytes(b"odd \xff\n")), "odd").unwrap();
            fs::write(tree.join("n".repeat(255)), "").unwrap();
            symlink("long/../program".repeat(20), tree.join("broken")).unwrap();
            symlink("program", tree.join("link")).unwrap();
            fs::hard_link(&program, tree.join("other")).unwrap();
            fs::hard_link(&program, tree.join("long/third")).unwrap();
        });
        assert!(skipped.lines().is_empty(), "{skipped:?}");
        let inner = dir.path("inner");
        assert_eq!(fs::read(inner.join(&long).join("file")).unwrap(), vec![7; 100_000]);
        let program = fs::metadata(inner.join("program")).unwrap();
        assert_eq!(program.mode() & 0o7777, 0o751);
        assert_eq!(program.modified().unwrap(), time);
        assert_eq!(fs::read(inner.join(OsStr::from_bytes(b"odd \xff\n"))).unwrap(), b"odd");
        assert!(inner.join("n".repeat(255)).is_file());
        assert_eq!(fs::read_link(inner.join("link")).unwrap(), Path::new("program"));
        for other in ["other", "long/third"] {
            assert_eq!(fs::metadata(inner.join(other)).unwrap().ino(), program.ino(), "{other}");
        }
        // It has `..` after a component that might be a link.
        let broken = inner.join("broken").is_symlink();
        assert_eq!(broken, matches!(origin, ArchiveOrigin::Host { .. }), "{notes:?}");
        assert_eq!(notes.lines().is_empty(), broken, "{notes:?}");
    }
}

#[test]
fn read_only_directories_keep_their_modes() {
    // Root ignores modes; a microVM test covers an ordinary user.
    for (packer, origin) in DIRECTIONS {
        let (dir, ..) = through(packer, origin, |tree| {
            fs::create_dir_all(tree.join("a/b")).unwrap();
            fs::write(tree.join("a/b/file"), "x").unwrap();
            for path in ["a/b/file", "a/b", "a"] {
                fs::set_permissions(tree.join(path), Permissions::from_mode(0o555)).unwrap();
            }
        });
        for path in ["a", "a/b", "a/b/file"] {
            let mode = fs::metadata(dir.path("inner").join(path)).unwrap().mode();
            assert_eq!(mode & 0o7777, 0o555, "{path}");
        }
        assert_eq!(dir.listed(), ["a/", "a/b/", "a/b/file=x"]);
    }
}

#[test]
fn holes_stay_holes() {
    for (packer, origin) in DIRECTIONS {
        let (dir, ..) = through(packer, origin, |tree| {
            let make = |name: &str, size, parts: &[u64]| {
                let file = fs::File::create(tree.join(name)).unwrap();
                for part in parts {
                    file.write_all_at(b"data", *part).unwrap();
                }
                file.set_len(size).unwrap();
            };
            make("hole", 1 << 30, &[]);
            make("middle", 1 << 30, &[1 << 20]);
            make("end", (1 << 30) + 4, &[1 << 30]);
            let many: Vec<u64> = (0..100).map(|part| part << 20).collect();
            make("many", 1 << 30, &many);
        });
        for (name, size, parts) in [
            ("hole", 1 << 30, 0),
            ("middle", 1 << 30, 1),
            ("end", (1 << 30) + 4, 1),
            ("many", 1 << 30, 100),
        ] {
            let file = fs::File::open(dir.path("inner").join(name)).unwrap();
            let metadata = file.metadata().unwrap();
            assert_eq!(metadata.len(), size, "{name}");
            assert!(metadata.blocks() * 512 <= (parts + 1) * 64 * 1024, "{name}: {metadata:?}");
            let mut data = [0; 4];
            let at = match name {
                "middle" => 1 << 20,
                "end" => 1 << 30,
                _ => 99 << 20,
            };
            file.read_exact_at(&mut data, at).unwrap();
            assert_eq!(&data == b"data", name != "hole", "{name}");
        }
    }
}

#[test]
fn special_files_are_skipped_with_a_note() {
    for (packer, origin) in DIRECTIONS {
        let (dir, skipped, notes) = through(packer, origin, |tree| {
            nix::unistd::mkfifo(&tree.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
            drop(UnixListener::bind(tree.join("socket")).unwrap());
            fs::write(tree.join("file"), "x").unwrap();
        });
        let mut said = [skipped.lines(), notes.lines()].concat();
        said.sort();
        let socket = "\"socket\" is a socket and was skipped";
        if packer == Packer::Host {
            assert_eq!(dir.listed(), ["file=x", "pipe|"]);
            assert_eq!(said, [socket]);
        } else {
            assert_eq!(dir.listed(), ["file=x"]);
            assert_eq!(said, ["\"pipe\" is a pipe and was skipped", socket]);
        }
    }
}

#[test]
fn the_number_of_notes_is_limited() {
    let (_, skipped, _) = through(Packer::Host, HOST, |tree| {
        for number in 0..30 {
            drop(UnixListener::bind(tree.join(format!("{number}"))).unwrap());
        }
    });
    assert_eq!(skipped.lines().len(), 11);
    assert_eq!(skipped.lines()[10], "20 more");
}

/// Truncates the file when the first bytes of the archive are written.
struct Cut<'a>(&'a Path, Vec<u8>);

impl Write for Cut<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        fs::write(self.0, "").unwrap();
        self.1.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_failure_while_packing_produces_no_archive() {
    let source = tempfile::tempdir().unwrap();
    let file = source.path().join("file");
    fs::write(&file, vec![1; 4 << 20]).unwrap();
    let mut cut = Cut(&file, Vec::new());
    let error = pack(source.path(), &mut cut, Packer::Host).unwrap_err();
    assert!(error.to_string().contains("was truncated"), "{error}");
    let error = TestDir::new().unpack(&cut.1, HOST).unwrap_err();
    assert!(matches!(error, TreeError::Truncated), "{error}");
}

/// Appends to the file with each write of the archive.
struct Grow<'a>(&'a Path, Vec<u8>);

impl Write for Grow<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut file = fs::File::options().append(true).open(self.0).unwrap();
        file.write_all(&[2; 1000]).unwrap();
        self.1.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_growing_file_keeps_its_initial_size() {
    let source = tempfile::tempdir().unwrap();
    let file = source.path().join("file");
    fs::write(&file, vec![1; 1 << 20]).unwrap();
    let mut grow = Grow(&file, Vec::new());
    pack(&file, &mut grow, Packer::Host).unwrap();
    let dir = TestDir::new();
    dir.unpack(&grow.1, HOST).unwrap();
    assert_eq!(fs::read(dir.path("inner")).unwrap(), vec![1; 1 << 20]);
}

#[test]
fn what_is_neither_a_file_nor_a_directory_is_not_packed() {
    let source = tempfile::tempdir().unwrap();
    let pipe = source.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, says) in [
        (pipe.as_path(), "is a pipe or socket"),
        (Path::new("/dev/zero"), "is a device"),
        (Path::new("/not/there"), "No such file"),
    ] {
        let mut archive = Vec::new();
        let error = pack(path, &mut archive, Packer::Host).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        let said = format!("{error}: {}", source.unwrap_or_default());
        assert!(said.contains(says), "{said}");
        assert!(archive.is_empty());
    }
}

#[test]
fn a_kernel_file_without_a_size_makes_no_broken_archive() {
    let (archive, _) = packed(Path::new("/proc/self/status"), Packer::Guest);
    let dir = TestDir::new();
    dir.unpack(&archive, GUEST).unwrap();
    assert_eq!(fs::read(dir.path("inner")).unwrap(), b"");
}

#[test]
fn a_link_as_source_is_followed() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("tree")).unwrap();
    fs::write(source.path().join("tree/file"), "x").unwrap();
    symlink("tree", source.path().join("link")).unwrap();
    let (archive, _) = packed(&source.path().join("link"), Packer::Guest);
    let dir = TestDir::new();
    dir.unpack(&archive, GUEST).unwrap();
    assert_eq!(dir.listed(), ["file=x"]);
}

#[test]
fn deep_trees_and_many_files_arrive() {
    let deep = "d/".repeat(crate::MAX_DEPTH - 1);
    let (dir, ..) = through(Packer::Guest, GUEST, |tree| {
        fs::create_dir_all(tree.join(&deep)).unwrap();
        fs::write(tree.join(&deep).join("bottom"), "x").unwrap();
        for number in 0..2000 {
            fs::write(tree.join(format!("{number}")), "").unwrap();
        }
    });
    assert_eq!(fs::read_to_string(dir.path("inner").join(&deep).join("bottom")).unwrap(), "x");
    assert_eq!(fs::read_dir(dir.path("inner")).unwrap().count(), 2001);
}
