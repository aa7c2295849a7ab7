//! Copies a tree with every kind of file into a microVM and back. `docs/reference/copies.md`
//! documents the result; `MAYFLY_WRITE_REFERENCE=1` regenerates that page.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::support::host::{Devices, ORDINARY_USER};
use crate::support::{Host, Running, TIMEOUT};

/// A kind of file: its name, and a function that creates it in its own directory.
type Kind = (&'static str, fn(&Path));

const KINDS: [Kind; 46] = [
    ("a file", |at| write(&at.join("file"), b"text\n", 0o644)),
    ("an empty file", |at| write(&at.join("file"), b"", 0o644)),
    ("a file of 5 MB", |at| write(&at.join("file"), &b"mayfly".repeat(800_000), 0o644)),
    ("a file of written zeros", |at| write(&at.join("file"), &[0; 1 << 20], 0o644)),
    ("a program", |at| write(&at.join("file"), b"#!/bin/sh\n", 0o755)),
    ("a file that only its owner may read", |at| write(&at.join("file"), b"x", 0o600)),
    ("a read-only file", |at| write(&at.join("file"), b"x", 0o444)),
    ("a file that its group may write", |at| write(&at.join("file"), b"x", 0o664)),
    ("a file that all may write", |at| write(&at.join("file"), b"x", 0o666)),
    ("a set-user-id program", |at| write(&at.join("file"), b"x", 0o4755)),
    ("a set-group-id program", |at| write(&at.join("file"), b"x", 0o2755)),
    ("an empty directory", |at| directory(&at.join("d"), 0o755)),
    ("a directory that only its owner may enter", |at| directory(&at.join("d"), 0o700)),
    ("a read-only directory", |at| {
        directory(&at.join("d"), 0o755);
        write(&at.join("d/file"), b"x", 0o444);
        directory(&at.join("d"), 0o555);
    }),
    ("nested read-only directories (Go's module cache)", |at| {
        fs::create_dir_all(at.join("a/b/c")).unwrap();
        write(&at.join("a/b/c/file"), b"x", 0o444);
        for path in ["a/b/c", "a/b", "a"] {
            directory(&at.join(path), 0o555);
        }
    }),
    ("a sticky directory", |at| directory(&at.join("d"), 0o1755)),
    ("a set-group-id directory", |at| directory(&at.join("d"), 0o2755)),
    ("200 nested directories", |at| fs::create_dir_all(at.join("d/".repeat(200))).unwrap()),
    ("a directory of 2,000 files", |at| {
        (0..2000).for_each(|number| write(&at.join(number.to_string()), b"", 0o644));
    }),
    ("a name with spaces", |at| write(&at.join(" a  b "), b"x", 0o644)),
    ("a name with a line break", |at| write(&at.join("a\nb"), b"x", 0o644)),
    ("a name with quotes and a backslash", |at| write(&at.join("'\"\\`$"), b"x", 0o644)),
    ("a name that is not UTF-8", |at| {
        write(&at.join(OsStr::from_bytes(b"\xff\xfe")), b"x", 0o644);
    }),
    ("a name with an escape sequence", |at| write(&at.join("\u{1b}[31m"), b"x", 0o644)),
    ("a name of 255 bytes", |at| write(&at.join("n".repeat(255)), b"x", 0o644)),
    ("a path of 150 bytes", |at| deep(at, 3)),
    ("a path of 1,000 bytes", |at| deep(at, 20)),
    ("a name that begins with a dash", |at| write(&at.join("-rf"), b"x", 0o644)),
    ("a hidden file, and a name of dots", |at| {
        write(&at.join(".hidden"), b"x", 0o644);
        write(&at.join("..."), b"x", 0o644);
    }),
    ("names that differ by case", |at| {
        write(&at.join("a"), b"x", 0o644);
        write(&at.join("A"), b"y", 0o644);
    }),
    ("a link to a file", |at| {
        write(&at.join("file"), b"x", 0o644);
        symlink("file", at.join("link")).unwrap();
    }),
    ("a link to a directory", |at| {
        directory(&at.join("d"), 0o755);
        symlink("./d", at.join("link")).unwrap();
    }),
    ("a dangling link", |at| symlink("nothing", at.join("link")).unwrap()),
    ("a link to the directory above", |at| symlink("..", at.join("link")).unwrap()),
    ("circular links", |at| {
        symlink("b", at.join("a")).unwrap();
        symlink("a", at.join("b")).unwrap();
    }),
    ("a link of 300 bytes", |at| symlink("x/".repeat(150), at.join("link")).unwrap()),
    ("an absolute link", |at| symlink("/etc/passwd", at.join("link")).unwrap()),
    ("a link that leads out of the tree", |at| symlink("../../x", at.join("link")).unwrap()),
    ("three hard links to one file", |at| {
        write(&at.join("a"), b"x", 0o644);
        fs::hard_link(at.join("a"), at.join("b")).unwrap();
        fs::hard_link(at.join("a"), at.join("c")).unwrap();
    }),
    ("a sparse file", |at| {
        let file = File::create(at.join("file")).unwrap();
        file.write_all_at(b"data", 8 << 20).unwrap();
        file.set_len(64 << 20).unwrap();
    }),
    ("a sparse file of 1 GiB without data", |at| {
        File::create(at.join("file")).unwrap().set_len(1 << 30).unwrap();
    }),
    ("a pipe", |at| {
        nix::unistd::mkfifo(&at.join("pipe"), Mode::from_bits_truncate(0o644)).unwrap();
    }),
    ("a socket", |at| drop(UnixListener::bind(at.join("socket")).unwrap())),
    ("a device", |at| {
        mknod(&at.join("null"), SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3)).unwrap();
    }),
    ("a file of 1980", |at| dated(&at.join("file"), 315_532_800)),
    ("a file of 2100", |at| dated(&at.join("file"), 4_102_444_800)),
];

fn write(path: &Path, bytes: &[u8], mode: u32) {
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn directory(path: &Path, mode: u32) {
    fs::create_dir_all(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn deep(at: &Path, levels: usize) {
    let path = at.join(format!("{}/", "d".repeat(49)).repeat(levels));
    fs::create_dir_all(&path).unwrap();
    write(&path.join("file"), b"x", 0o644);
}

fn dated(path: &Path, seconds: u64) {
    write(path, b"x", 0o644);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

/// The output of `find` for each path: its kind, mode, size, time, links, blocks, and target.
const LOOK: &str = r"find . -mindepth 1 -printf '%P\0%y %m %s %Ts %n %b %l\0'";

/// The paths of a tree, with the properties of each.
type Listing = BTreeMap<Vec<u8>, BTreeMap<&'static str, String>>;

fn listing(output: &[u8]) -> Listing {
    let words: Vec<&[u8]> = output.split(|byte| *byte == 0).collect();
    let pairs = words.chunks_exact(2).map(|pair| {
        let text = String::from_utf8_lossy(pair[1]).into_owned();
        let parts: Vec<&str> = text.splitn(7, ' ').collect();
        let [kind, mode, size, time, names, blocks, target] = parts[..] else { panic!("{text}") };
        let mut properties = BTreeMap::from([("kind", kind), ("link", target)]);
        if kind != "l" {
            properties.extend([("mode", mode), ("time", time)]);
        }
        let (bytes, on_disk): (u64, u64) = (size.parse().unwrap(), blocks.parse().unwrap());
        if kind == "f" {
            let holes = if on_disk * 512 < bytes { "some" } else { "none" };
            properties.extend([("size", size), ("names", names), ("holes", holes)]);
        }
        (
            pair[0].to_vec(),
            properties.into_iter().map(|(key, value)| (key, value.to_owned())).collect(),
        )
    });
    pairs.collect()
}

fn list(directory: &Path) -> Listing {
    let output = Command::new("sh").args(["-c", LOOK]).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    listing(&output.stdout)
}

/// Describes what has become of each kind.
fn arrived(before: &Listing, after: &Listing) -> Vec<String> {
    let of = |number: usize| {
        let prefix = format!("{number:02}/");
        let mut results = BTreeSet::new();
        for (path, properties) in
            before.iter().filter(|(path, _)| path.starts_with(prefix.as_bytes()))
        {
            match after.get(path) {
                None => drop(results.insert("skipped, with a note".to_owned())),
                Some(now) => results.extend(
                    properties
                        .iter()
                        .filter(|(key, value)| now[*key] != **value)
                        .map(|(key, value)| format!("{key} {} instead of {value}", now[key])),
                ),
            }
        }
        let results: Vec<_> = results.into_iter().collect();
        if results.is_empty() { "unchanged".to_owned() } else { results.join(", ") }
    };
    let extra: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
    assert!(extra.is_empty(), "{extra:?}");
    (0..KINDS.len()).map(of).collect()
}

/// Creates the tree, and copies it in and out. Returns the result inside, and the result outside.
fn through(host: &Host, ordinary: bool) -> [Vec<String>; 2] {
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    let (source, back) = (host.root().join("source"), host.root().join("back"));
    for (number, (_, make)) in KINDS.iter().enumerate() {
        let at = source.join(format!("{number:02}"));
        fs::create_dir_all(&at).unwrap();
        make(&at);
    }
    if ordinary {
        let owner = format!("{ORDINARY_USER}:{ORDINARY_USER}");
        let chown = Command::new("chown").arg("-hR").arg(owner).arg(&source).status().unwrap();
        assert!(chown.success());
        // Changing the owner clears these bits.
        write(&source.join("09/file"), b"x", 0o4755);
        write(&source.join("10/file"), b"x", 0o2755);
    }
    let before = list(&source);
    let copy_in = format!("{}:/home/runner/in", source.display());
    let copy_out = format!("/home/runner/in:{}", back.display());
    let options = ["--copy-in", &copy_in, "--copy-out", &copy_out, "-w", "/home/runner/in"];
    let mut command = host.command(options.iter().chain(&["--", "sh", "-c", LOOK]));
    let ending = Running::start(&mut command).finish(TIMEOUT * 2);
    ending.assert_code(0);
    for note in [
        "\"42/socket\" is a socket and was skipped",
        "\"43/null\" is a device and was skipped",
        "\"41/pipe\" is a pipe and was skipped",
        "\"36/link\" is a link that leads out of the tree and was skipped",
    ] {
        ending.assert_stderr_has(note);
    }
    for (number, file) in [(0, "file"), (2, "file"), (39, "file")] {
        let path = format!("{number:02}/{file}");
        let same = fs::read(source.join(&path)).unwrap() == fs::read(back.join(&path)).unwrap();
        assert!(same, "{path} has different content");
    }
    let [inside, outside] = [listing(&ending.stdout), list(&back)];
    [arrived(&before, &inside), arrived(&before, &outside)]
}

fn page(root: &[Vec<String>; 2], ordinary: &[Vec<String>; 2]) -> String {
    let mut page = "\
<!-- Made by a test: MAYFLY_WRITE_REFERENCE=1 scripts/test -->

# Copies

This table shows how `--copy-in` and `--copy-out` of `mayfly run` copy each kind of file. In the microVM, all files
belong to the command's user; on the host, to the user who runs Mayfly. On the host, the umask restricts the
permissions (022 in this table). The copy on the host has the requested name, whatever name the guest sends. If a
directory comes, its contents go directly into a destination that is missing, is empty or has the same name; into
any other directory it goes under the requested name. Mayfly neither writes nor links outside the destination.
Extended attributes and access control lists are not copied. The command starts only after everything is copied
in; an unreadable file fails the run before that. A copy out has at most 1,000,000 entries and 1,024 nested
directories, takes no more space than the microVM's disk (holes take none), and leaves 2 % of the host's disk free
(at most 256 MiB).

| File | In the microVM | Back on the host |
|---|---|---|
"
    .to_owned();
    for (number, (what, _)) in KINDS.iter().enumerate() {
        let cell = |way: usize| match (&root[way][number], &ordinary[way][number]) {
            (root, ordinary) if root == ordinary => root.clone(),
            (root, ordinary) => format!("as root: {root}; as an ordinary user: {ordinary}"),
        };
        let _ = writeln!(page, "| {what} | {} | {} |", cell(0), cell(1));
    }
    page
}

#[test]
fn every_kind_of_file_goes_in_and_out_as_root_and_as_an_ordinary_user() {
    let root = through(&Host::new(), false);
    let mut host = Host::new();
    host.run_as_ordinary_user(&Devices::default());
    let ordinary = through(&host, true);
    let page = page(&root, &ordinary);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/copies.md");
    if std::env::var_os("MAYFLY_WRITE_REFERENCE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        written, page,
        "docs/reference/copies.md is out of date: regenerate it with MAYFLY_WRITE_REFERENCE=1"
    );
}

#[test]
#[ignore = "takes minutes"]
fn a_hundred_thousand_files_go_in_and_out() {
    let host = Host::new();
    let (source, back) = (host.root().join("source"), host.root().join("back"));
    for directory in 0..100 {
        let at = source.join(directory.to_string());
        fs::create_dir_all(&at).unwrap();
        (0..1000).for_each(|number| fs::write(at.join(number.to_string()), b"x").unwrap());
    }
    let copy_in = format!("{}:/home/runner/in", source.display());
    let copy_out = format!("/home/runner/in:{}", back.display());
    let options = ["--copy-in", &copy_in, "--copy-out", &copy_out, "-w", "/home/runner/in"];
    let mut command =
        host.command(options.iter().chain(&["--", "sh", "-c", "find . -type f | wc -l"]));
    let ending = Running::start(&mut command).finish(TIMEOUT * 10);
    ending.assert_code(0).assert_output("100000\n");
    assert_eq!(list(&source).len(), list(&back).len());
    host.assert_clean();
}
