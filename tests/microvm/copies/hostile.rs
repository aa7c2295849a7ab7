//! Guests that speak for their agent while something is copied out of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::stat::Mode;

use crate::support::image::Forgery;
use crate::support::{Ending, Host};

/// Has a guest copied out whose agent behaves as `mode` says, into a directory in which somebody
/// lives.
fn attack(mode: &str, guest: &str) -> (Host, Ending) {
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    let host = Host::bare();
    Forgery::hostile(mode).install(&host);
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
fn a_guest_that_sends_a_directory_instead_of_a_file_gets_one_of_the_files_name() {
    let (host, ending) = attack("copy-tree", "/home/runner/report");
    ending.assert_code(0);
    assert_eq!(names(&host), [".bashrc", "report"]);
    assert_eq!(fs::read_to_string(host.root().join("home/report/.bashrc")).unwrap(), "owned");
}

#[test]
fn a_guest_whose_tree_leads_out_is_refused_and_named() {
    let (host, ending) = attack("copy-escapes", "/home/runner/report");
    ending.assert_code(73).assert_says("\"../../escaped\" leads out of the tree");
    assert_eq!(names(&host), [".bashrc", "report"]);
}

#[test]
fn a_guest_whose_names_have_no_end_is_refused() {
    let (_, ending) = attack("copy-long-name", "/home/runner/report");
    ending.assert_code(73).assert_says("more than 4095 bytes in a name");
}

#[test]
fn a_guest_that_sends_half_an_archive_has_copied_nothing() {
    let (_, ending) = attack("copy-half", "/home/runner/report");
    ending.assert_code(73).assert_says("the archive ends in the middle");
}
