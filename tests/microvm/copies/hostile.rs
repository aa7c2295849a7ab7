//! Hostile guests that send forged archives while something is copied out.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::stat::Mode;

use crate::support::image::TestImage;
use crate::support::{CommandOutput, Host};

/// Copies out of a guest whose agent behaves according to `mode`, into a directory that resembles a
/// home directory.
fn attack(mode: &str, guest: &str) -> (Host, CommandOutput) {
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    let host = Host::bare();
    TestImage::hostile(mode).install(&host);
    let home = host.root().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join(".bashrc"), "mine").unwrap();
    let copy = format!("{guest}:{}", home.display());
    let options = ["--image", "hostile", "--memory", "256M", "--copy-out", &copy, "--", "job"];
    let ending = host.run(options);
    assert_eq!(fs::read_to_string(home.join(".bashrc")).unwrap(), "mine");
    assert!(!host.root().join("escaped").exists());
    (host, ending)
}

fn names(host: &Host) -> Vec<String> {
    let entries = fs::read_dir(host.root().join("home")).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_guest_does_not_choose_the_name_of_a_file() {
    let (host, ending) = attack("copy-names", "/home/runner/report");
    ending.assert_code(0);
    assert_eq!(names(&host), [".bashrc", "report"]);
    let report = host.root().join("home/report");
    assert_eq!(fs::read_to_string(&report).unwrap(), "owned");
    let mode = fs::metadata(report).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "{mode:o}");
}

#[test]
fn a_directory_sent_instead_of_a_file_gets_the_files_name() {
    let (host, ending) = attack("copy-tree", "/home/runner/report");
    ending.assert_code(0);
    assert_eq!(names(&host), [".bashrc", "report"]);
    assert_eq!(fs::read_to_string(host.root().join("home/report/.bashrc")).unwrap(), "owned");
}

#[test]
fn a_tree_that_leads_out_is_rejected_and_named() {
    let (host, ending) = attack("copy-escapes", "/home/runner/report");
    ending.assert_code(73).assert_stderr_has("\"../../escaped\" leads out of the tree");
    assert_eq!(names(&host), [".bashrc", "report"]);
}

#[test]
fn endless_names_are_rejected() {
    let (_, ending) = attack("copy-long-name", "/home/runner/report");
    ending.assert_code(73).assert_stderr_has("more than 4095 bytes in a name");
}

#[test]
fn half_an_archive_is_reported_as_truncated() {
    let (_, ending) = attack("copy-half", "/home/runner/report");
    ending.assert_code(73).assert_stderr_has("the archive is truncated");
}
