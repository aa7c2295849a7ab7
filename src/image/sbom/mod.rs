//! Bills of materials: what an image is made of, for programs that look for known faults or
//! forbidden licences, in the two formats that they read.
//!
//! A [`Bill`] is made once, from the manifest and from what the system says of itself
//! ([`Facts`]); [`spdx`] and [`cyclonedx`] only write it down. All of it is pure: the same image
//! gives the same bytes, so a bill is a part of its image like any other.
//!
//! This folder must not know how an image is built, nor where a bill is kept.

mod crates;
mod cyclonedx;
mod facts;
mod licence;
mod purl;
mod spdx;

use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

pub(super) use facts::{DebianPackage, Facts, PACKAGE_FORMAT};

use super::hash;
use super::manifest::{Agent, Download, Part, Runner};
use super::name::{Digest, ImageName};
use purl::purl;

/// What an image's manifest says that a bill is made of.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    pub(super) name: &'a ImageName,
    pub(super) suite: &'a str,
    /// Seconds since 1970.
    pub(super) created: u64,
    /// The parts that a machine boots.
    pub(super) parts: [&'a Part; 3],
    pub(super) agent: &'a Agent,
    pub(super) runner: Option<&'a Runner>,
    pub(super) downloads: &'a [Download],
}

/// What an image is made of.
#[derive(Debug, Serialize)]
pub(super) struct Bill {
    /// The image's name.
    name: ImageName,
    /// The state of its packages, as in RFC 3339.
    created: String,
    /// The image itself, then all that is in it.
    components: Vec<Component>,
}

/// The image in [`Bill::components`].
const IMAGE: usize = 0;

/// Something that an image is made of.
#[derive(Debug, Serialize)]
struct Component {
    kind: Kind,
    name: String,
    version: Option<String>,
    /// Who publishes it: a name and perhaps an address.
    supplier: Option<(String, Option<String>)>,
    /// An SPDX expression.
    licence: Option<String>,
    purl: Option<String>,
    sha256: Option<Digest>,
    /// Where it was downloaded from.
    location: Option<String>,
    homepage: Option<String>,
    /// What it was built from, for people.
    source: Option<String>,
    /// Which component it is in.
    within: Option<usize>,
}

/// What kind of thing a component is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Kind {
    Image,
    /// A file of the image.
    Part,
    System,
    Program,
    Library,
}

impl Component {
    fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
            version: None,
            supplier: None,
            licence: None,
            purl: None,
            sha256: None,
            location: None,
            homepage: None,
            source: None,
            within: Some(IMAGE),
        }
    }
}

impl Bill {
    /// What `subject` is made of.
    pub(super) fn of(subject: &Subject<'_>, facts: &Facts) -> Self {
        let time = UNIX_EPOCH + Duration::from_secs(subject.created);
        let created = humantime::format_rfc3339_seconds(time).to_string();
        let version = Some(created.clone());
        let image = Component {
            version,
            within: None,
            ..Component::new(Kind::Image, subject.name.as_str())
        };
        let mut bill = Self { name: subject.name.clone(), created, components: vec![image] };
        bill.components.extend(subject.parts.map(part));
        let distribution = Distribution::of(subject, facts);
        bill.components.push(distribution.component());
        let packages = std::iter::once(&facts.kernel).chain(&facts.packages);
        bill.components.extend(packages.map(|package| distribution.package(package, facts)));
        bill.add_agent(subject.agent);
        bill.components.extend(subject.downloads.iter().map(download));
        if let Some(runner) = subject.runner {
            bill.add_runner(runner, facts);
        }
        bill
    }

    /// The bill as SPDX 2.3.
    ///
    /// # Errors
    ///
    /// None that a bill can cause.
    pub(super) fn to_spdx(&self) -> serde_json::Result<Vec<u8>> {
        spdx::write(self)
    }

    /// The bill as `CycloneDX` 1.5.
    ///
    /// # Errors
    ///
    /// None that a bill can cause.
    pub(super) fn to_cyclonedx(&self) -> serde_json::Result<Vec<u8>> {
        cyclonedx::write(self)
    }

    /// Adds a component and returns its place.
    fn add(&mut self, component: Component) -> usize {
        self.components.push(component);
        self.components.len() - 1
    }

    fn add_agent(&mut self, agent: &Agent) {
        let within = Some(self.add(Component {
            version: Some(agent.version.clone()),
            licence: Some(env!("CARGO_PKG_LICENSE").to_owned()),
            purl: Some(purl("generic", "mayfly-guest", Some(&agent.version), &[])),
            sha256: Some(agent.sha256.clone()),
            ..Component::new(Kind::Program, "mayfly-guest")
        }));
        for found in crates::of_agent() {
            self.add(Component {
                purl: Some(purl("cargo", &found.name, Some(&found.version), &[])),
                version: Some(found.version),
                sha256: found.sha256,
                within,
                ..Component::new(Kind::Library, found.name)
            });
        }
    }

    fn add_runner(&mut self, runner: &Runner, facts: &Facts) {
        let tag = format!("v{}", runner.version);
        let within = Some(self.add(Component {
            version: Some(runner.version.clone()),
            supplier: Some(("GitHub".to_owned(), None)),
            purl: Some(purl("github", "actions/runner", Some(&tag), &[])),
            sha256: Some(runner.sha256.clone()),
            homepage: Some("https://github.com/actions/runner".to_owned()),
            ..Component::new(Kind::Program, "actions-runner")
        }));
        for (name, version) in &facts.libraries {
            self.add(Component {
                version: Some(version.clone()),
                purl: Some(purl("nuget", name, Some(version), &[])),
                within,
                ..Component::new(Kind::Library, name)
            });
        }
        for (directory, version) in &facts.nodes {
            self.add(Component {
                version: Some(version.clone()),
                purl: Some(purl("generic", "node", Some(version), &[])),
                source: Some(format!("the runner's externals/{directory}")),
                within,
                ..Component::new(Kind::Program, "node")
            });
        }
    }

    /// A name for this bill that no other has: a UUID of version 8 from the digest of its content.
    fn uuid(&self) -> serde_json::Result<String> {
        let digest = hash::of_bytes(&serde_json::to_vec(self)?);
        let digits = digest.as_str();
        let parts =
            [&digits[..8], &digits[8..12], &digits[13..16], &digits[17..20], &digits[20..32]];
        let [first, second, third, fourth, fifth] = parts;
        Ok(format!("{first}-{second}-8{third}-8{fourth}-{fifth}"))
    }

    /// Identifiers of all components within this bill, of letters, digits, `.` and `-`.
    fn identifiers(&self) -> Vec<String> {
        let plain = |character: char| {
            if character.is_ascii_alphanumeric() || character == '.' { character } else { '-' }
        };
        let identifier = |(index, component): (usize, &Component)| {
            let name: String = component.name.chars().map(plain).collect();
            format!("{index}-{name}")
        };
        self.components.iter().enumerate().map(identifier).collect()
    }
}

/// Who packaged the system, as package URLs have it.
struct Distribution {
    /// E.g. `debian`.
    vendor: String,
    /// E.g. `13`, or the release's name.
    version: String,
}

impl Distribution {
    fn of(subject: &Subject<'_>, facts: &Facts) -> Self {
        let (vendor, version) = facts.distribution.clone();
        Self {
            vendor: vendor.unwrap_or_else(|| "debian".to_owned()),
            version: version.unwrap_or_else(|| subject.suite.to_owned()),
        }
    }

    fn component(&self) -> Component {
        Component {
            version: Some(self.version.clone()),
            ..Component::new(Kind::System, &self.vendor)
        }
    }

    fn package(&self, package: &DebianPackage, facts: &Facts) -> Component {
        let DebianPackage { package, source, source_version, maintainer, homepage } = package;
        let distribution = format!("{}-{}", self.vendor, self.version);
        let upstream = format!("{source}@{source_version}");
        let qualifiers = [
            ("arch", package.architecture.as_str()),
            ("distro", &distribution),
            ("upstream", &upstream),
        ];
        let path = format!("{}/{}", self.vendor, package.name);
        Component {
            version: Some(package.version.clone()),
            supplier: person(maintainer),
            licence: facts.licence(&package.name).map(str::to_owned),
            purl: Some(purl("deb", &path, Some(&package.version), &qualifiers)),
            homepage: is_web_address(homepage).then(|| homepage.clone()),
            source: Some(format!("source package {source} {source_version}")),
            ..Component::new(Kind::Library, &package.name)
        }
    }
}

fn part(part: &Part) -> Component {
    Component {
        sha256: Some(part.sha256.clone()),
        ..Component::new(Kind::Part, part.file.as_str())
    }
}

fn download(download: &Download) -> Component {
    let Download { name, version, path, url, sha256 } = download;
    let checksum = format!("sha256:{sha256}");
    let qualifiers = [("checksum", checksum.as_str()), ("download_url", url)];
    Component {
        version: Some(version.clone()),
        purl: Some(purl("generic", name, Some(version), &qualifiers)),
        sha256: Some(sha256.clone()),
        location: is_web_address(url).then(|| url.clone()),
        source: Some(format!("installed as {path}")),
        ..Component::new(Kind::Program, name)
    }
}

/// `NAME <ADDRESS>`, as Debian names a maintainer.
fn person(maintainer: &str) -> Option<(String, Option<String>)> {
    let (name, address) = match maintainer.rsplit_once('<') {
        Some((name, address)) => (name, address.strip_suffix('>')),
        None => (maintainer, None),
    };
    let name = name.trim().trim_matches('"');
    (!name.is_empty()).then(|| (name.to_owned(), address.map(str::to_owned)))
}

/// Whether a text can stand where the formats want a URL.
fn is_web_address(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !b"<>\"{}|\\^`[]".contains(&byte);
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(allowed))
}

#[cfg(test)]
mod tests;
