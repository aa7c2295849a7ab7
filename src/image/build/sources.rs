//! Where packages are fetched from when the recipe does not say.
//!
//! A machine that runs the same distribution as the image already has a source that it can
//! reach: apt is asked for it, and the release in it replaced by the image's. The answer is used
//! for the build and, as with any bootstrap, is what the image's own apt will ask.

use std::collections::BTreeMap;
use std::fs;

use super::enclosure::outside;
use super::process::Runner;
use crate::image::recipe::{Suite, Uri};

/// Releases that go with a release: its updates and its security fixes.
const POCKETS: [&str; 3] = ["", "-updates", "-security"];

/// The lines of a `sources.list` for `suite`, from the sources of this machine; none if it runs
/// another distribution than Debian or has no source for its own release.
pub(super) fn of_this_machine(runner: &Runner<'_>, suite: &Suite) -> Vec<String> {
    let Ok(os_release) = fs::read_to_string("/etc/os-release") else { return Vec::new() };
    let Some(release) = debian_release(&os_release) else { return Vec::new() };
    // What is known of the releases goes before what is written in the sources; where `apt-get
    // update` has left nothing, as in containers, the latter is all there is.
    let mut asked = ["--release-info", "--no-release-info"].into_iter().map(|option| {
        let mut command = outside("apt-get");
        command.args(["indextargets", option]);
        command.args(["--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"]);
        // Whatever is wrong with this machine's sources is not the build's affair.
        let targets = runner.run(&mut command).unwrap_or_default();
        lines(&String::from_utf8_lossy(&targets), release, suite)
    });
    asked.find(|lines| !lines.is_empty()).unwrap_or_default()
}

/// The name of the Debian release that `os-release(5)` describes.
fn debian_release(os_release: &str) -> Option<&str> {
    let value = |key: &str| {
        os_release
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim_matches('"'))
    };
    if value("ID")? == "debian" { value("VERSION_CODENAME") } else { None }
}

/// The first usable source of each pocket, rewritten for `suite`.
fn lines(targets: &str, release: &str, suite: &Suite) -> Vec<String> {
    let mut found: BTreeMap<&str, Uri> = BTreeMap::new();
    for target in targets.lines() {
        let mut fields = target.splitn(3, ' ');
        let (Some(name), Some("main"), Some(uri)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let Some(pocket) = name.strip_prefix(release) else { continue };
        // A source with a password in it is left out: the image would carry it.
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
    fn only_debian_lends_its_sources() {
        let debian = "PRETTY_NAME=\"x\"\nID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(debian_release(debian), Some("bookworm"));
        let derived = "ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n";
        assert_eq!(debian_release(derived), None);
    }
}
