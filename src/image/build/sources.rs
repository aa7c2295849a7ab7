//! The default package sources, when the recipe has no mirror.
//!
//! A machine that runs the same distribution as the image already has a source that it can reach.
//! So apt is queried for it, and its release replaced by the image's. The sources are used for the
//! build and, as with any bootstrap, remain in the image's apt configuration.

use std::collections::BTreeMap;
use std::fs;

use super::enclosure::host_command;
use super::process::ProcessRunner;
use crate::recipe::{Suite, Uri};

/// The suffixes of a release's own, its updates' and its security suite.
const POCKETS: [&str; 3] = ["", "-updates", "-security"];

/// Returns the lines of a `sources.list` for `suite`, from the sources of this machine; empty if it
/// runs a distribution other than Debian or has no source for its own release.
pub(super) fn of_host(runner: &ProcessRunner<'_>, suite: &Suite) -> Vec<String> {
    let Ok(os_release) = fs::read_to_string("/etc/os-release") else { return Vec::new() };
    let Some(release) = debian_release(&os_release) else { return Vec::new() };
    // The release information is preferred over the configured sources; without `apt-get update`,
    // as in containers, only the latter exist.
    let mut attempts = ["--release-info", "--no-release-info"].into_iter().map(|option| {
        let mut command = host_command("apt-get");
        command.args(["indextargets", option]);
        command.args(["--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"]);
        // Errors in this machine's sources do not fail the build.
        let targets = runner.run(&mut command).unwrap_or_default();
        lines(&String::from_utf8_lossy(&targets), release, suite)
    });
    attempts.find(|lines| !lines.is_empty()).unwrap_or_default()
}

/// Returns the name of the Debian release in `os-release(5)`.
fn debian_release(os_release: &str) -> Option<&str> {
    let value = |key: &str| {
        os_release
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim_matches('"'))
    };
    if value("ID")? == "debian" { value("VERSION_CODENAME") } else { None }
}

/// Returns the first usable source of each pocket, rewritten for `suite`.
fn lines(targets: &str, release: &str, suite: &Suite) -> Vec<String> {
    let mut found: BTreeMap<&str, Uri> = BTreeMap::new();
    for target in targets.lines() {
        let mut fields = target.splitn(3, ' ');
        let (Some(name), Some("main"), Some(uri)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let Some(pocket) = name.strip_prefix(release) else { continue };
        // A source with a password is omitted: it would become part of the image.
        if let Ok(uri) = Uri::try_from(uri.to_owned()) {
            found.entry(pocket).or_insert(uri);
        }
    }
    if !found.contains_key("") {
        return Vec::new();
    }
    POCKETS
        .iter()
        .filter_map(|pocket| Some(format!("deb {} {suite}{pocket} main", found.get(pocket)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trixie() -> Suite {
        Suite::try_from("trixie".to_owned()).unwrap()
    }

    #[test]
    fn the_release_is_replaced_in_each_pocket() {
        let targets = "\
bookworm main http://a.example.com/debian/
bookworm-updates main http://a.example.com/debian/
bookworm contrib http://b.example.com/debian/
bookworm-backports main http://a.example.com/debian/
nodistro main http://c.example.com/
bookworm-security main http://s.example.com/debian-security/
bookworm main http://second.example.com/debian/
";
        let expected = [
            "deb http://a.example.com/debian/ trixie main",
            "deb http://a.example.com/debian/ trixie-updates main",
            "deb http://s.example.com/debian-security/ trixie-security main",
        ];
        assert_eq!(lines(targets, "bookworm", &trixie()), expected);
    }

    #[test]
    fn a_source_with_a_password_is_not_used() {
        let targets = "bookworm main https://user:secret@a.example.com/debian/\n";
        assert_eq!(lines(targets, "bookworm", &trixie()), Vec::<String>::new());
    }

    #[test]
    fn only_debian_hosts_provide_sources() {
        let debian = "PRETTY_NAME=\"x\"\nID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(debian_release(debian), Some("bookworm"));
        let derived = "ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n";
        assert_eq!(debian_release(derived), None);
    }
}
