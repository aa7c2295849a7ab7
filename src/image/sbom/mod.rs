//! Software bills of materials (SBOMs) of images, in two formats, for scanners that look for known
//! vulnerabilities or forbidden licenses.
//!
//! An [`Sbom`] is made once, from the manifest and from the system's own metadata
//! ([`SystemFacts`]); [`spdx`] and [`cyclonedx`] only serialize it. All of it is pure: the same
//! image gives the same bytes, so an SBOM is a part of its image like any other.
//!
//! This module must not know how an image is built, nor where an SBOM is stored.

mod crates;
mod cyclonedx;
mod facts;
mod license;
mod purl;
mod spdx;

use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

pub(super) use facts::{DebianPackage, PACKAGE_FORMAT, SystemFacts};

use super::hash;
use super::manifest::{AgentInfo, InstalledDownload, InstalledRunner, Part};
use super::name::{Digest, ImageName};
use purl::purl;

/// The parts of an image's manifest that an SBOM is made of.
#[derive(Debug)]
pub(super) struct SbomSubject<'a> {
    pub(super) name: &'a ImageName,
    pub(super) suite: &'a str,
    /// Seconds since 1970.
    pub(super) created: u64,
    /// The bootable parts.
    pub(super) parts: [&'a Part; 3],
    pub(super) agent: &'a AgentInfo,
    pub(super) runner: Option<&'a InstalledRunner>,
    pub(super) downloads: &'a [InstalledDownload],
}

/// The components of an image.
#[derive(Debug, Serialize)]
pub(super) struct Sbom {
    /// The image's name.
    name: ImageName,
    /// The date of its package lists, per RFC 3339.
    created: String,
    /// The image itself, then everything in it.
    components: Vec<Component>,
}

/// The index of the image in [`Sbom::components`].
const IMAGE: usize = 0;

/// A component of an image.
#[derive(Debug, Serialize)]
struct Component {
    kind: ComponentKind,
    name: String,
    version: Option<String>,
    /// Its publisher: a name and an optional address.
    supplier: Option<(String, Option<String>)>,
    /// An SPDX expression.
    license: Option<String>,
    purl: Option<String>,
    sha256: Option<Digest>,
    /// The URL that it was downloaded from.
    location: Option<String>,
    homepage: Option<String>,
    /// Its source, for display.
    source: Option<String>,
    /// The index of the component that contains it.
    within: Option<usize>,
}

/// The kind of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum ComponentKind {
    Image,
    /// A file of the image.
    Part,
    System,
    Program,
    Library,
}

impl Component {
    fn new(kind: ComponentKind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
            version: None,
            supplier: None,
            license: None,
            purl: None,
            sha256: None,
            location: None,
            homepage: None,
            source: None,
            within: Some(IMAGE),
        }
    }
}

impl Sbom {
    /// Returns the SBOM of `subject`.
    pub(super) fn new(subject: &SbomSubject<'_>, facts: &SystemFacts) -> Self {
        let time = UNIX_EPOCH + Duration::from_secs(subject.created);
        let created = humantime::format_rfc3339_seconds(time).to_string();
        let version = Some(created.clone());
        let image = Component {
            version,
            within: None,
            ..Component::new(ComponentKind::Image, subject.name.as_str())
        };
        let mut sbom = Self { name: subject.name.clone(), created, components: vec![image] };
        sbom.components.extend(subject.parts.map(part));
        let distribution = Distribution::of(subject, facts);
        sbom.components.push(distribution.component());
        let packages = std::iter::once(&facts.kernel).chain(&facts.packages);
        sbom.components.extend(packages.map(|package| distribution.package(package, facts)));
        sbom.add_agent(subject.agent);
        sbom.components.extend(subject.downloads.iter().map(download));
        if let Some(runner) = subject.runner {
            sbom.add_runner(runner, facts);
        }
        sbom
    }

    /// Returns the SBOM as SPDX 2.3.
    ///
    /// # Errors
    ///
    /// None that an SBOM can cause.
    pub(super) fn to_spdx(&self) -> serde_json::Result<Vec<u8>> {
        spdx::write(self)
    }

    /// Returns the SBOM as `CycloneDX` 1.5.
    ///
    /// # Errors
    ///
    /// None that an SBOM can cause.
    pub(super) fn to_cyclonedx(&self) -> serde_json::Result<Vec<u8>> {
        cyclonedx::write(self)
    }

    /// Adds a component and returns its index.
    fn add(&mut self, component: Component) -> usize {
        self.components.push(component);
        self.components.len() - 1
    }

    fn add_agent(&mut self, agent: &AgentInfo) {
        let within = Some(self.add(Component {
            version: Some(agent.version.clone()),
            license: Some(env!("CARGO_PKG_LICENSE").to_owned()),
            purl: Some(purl("generic", "mayfly-guest", Some(&agent.version), &[])),
            sha256: Some(agent.sha256.clone()),
            ..Component::new(ComponentKind::Program, "mayfly-guest")
        }));
        for found in crates::of_agent() {
            self.add(Component {
                purl: Some(purl("cargo", &found.name, Some(&found.version), &[])),
                version: Some(found.version),
                sha256: found.sha256,
                within,
                ..Component::new(ComponentKind::Library, found.name)
            });
        }
    }

    fn add_runner(&mut self, runner: &InstalledRunner, facts: &SystemFacts) {
        let tag = format!("v{}", runner.version);
        let within = Some(self.add(Component {
            version: Some(runner.version.clone()),
            supplier: Some(("GitHub".to_owned(), None)),
            purl: Some(purl("github", "actions/runner", Some(&tag), &[])),
            sha256: Some(runner.sha256.clone()),
            homepage: Some("https://github.com/actions/runner".to_owned()),
            ..Component::new(ComponentKind::Program, "actions-runner")
        }));
        for (name, version) in &facts.libraries {
            self.add(Component {
                version: Some(version.clone()),
                purl: Some(purl("nuget", name, Some(version), &[])),
                within,
                ..Component::new(ComponentKind::Library, name)
            });
        }
        for (directory, version) in &facts.nodes {
            self.add(Component {
                version: Some(version.clone()),
                purl: Some(purl("generic", "node", Some(version), &[])),
                source: Some(format!("the runner's externals/{directory}")),
                within,
                ..Component::new(ComponentKind::Program, "node")
            });
        }
    }

    /// Returns a unique name: a UUID of version 8 from the digest of the content.
    fn uuid(&self) -> serde_json::Result<String> {
        let digest = hash::of_bytes(&serde_json::to_vec(self)?);
        let digits = digest.as_str();
        let parts =
            [&digits[..8], &digits[8..12], &digits[13..16], &digits[17..20], &digits[20..32]];
        let [first, second, third, fourth, fifth] = parts;
        Ok(format!("{first}-{second}-8{third}-8{fourth}-{fifth}"))
    }

    /// Returns unique identifiers of all components, of letters, digits, `.` and `-`.
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

/// The distribution, as in package URLs.
struct Distribution {
    /// E.g. `debian`.
    vendor: String,
    /// E.g. `13`, or the release's name.
    version: String,
}

impl Distribution {
    fn of(subject: &SbomSubject<'_>, facts: &SystemFacts) -> Self {
        let (vendor, version) = facts.distribution.clone();
        Self {
            vendor: vendor.unwrap_or_else(|| "debian".to_owned()),
            version: version.unwrap_or_else(|| subject.suite.to_owned()),
        }
    }

    fn component(&self) -> Component {
        Component {
            version: Some(self.version.clone()),
            ..Component::new(ComponentKind::System, &self.vendor)
        }
    }

    fn package(&self, package: &DebianPackage, facts: &SystemFacts) -> Component {
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
            license: facts.license(&package.name).map(str::to_owned),
            purl: Some(purl("deb", &path, Some(&package.version), &qualifiers)),
            homepage: is_web_address(homepage).then(|| homepage.clone()),
            source: Some(format!("source package {source} {source_version}")),
            ..Component::new(ComponentKind::Library, &package.name)
        }
    }
}

fn part(part: &Part) -> Component {
    Component {
        sha256: Some(part.sha256.clone()),
        ..Component::new(ComponentKind::Part, part.file.as_str())
    }
}

fn download(download: &InstalledDownload) -> Component {
    let InstalledDownload { name, version, path, url, sha256 } = download;
    let checksum = format!("sha256:{sha256}");
    let qualifiers = [("checksum", checksum.as_str()), ("download_url", url)];
    Component {
        version: Some(version.clone()),
        purl: Some(purl("generic", name, Some(version), &qualifiers)),
        sha256: Some(sha256.clone()),
        location: is_web_address(url).then(|| url.clone()),
        source: Some(format!("installed as {path}")),
        ..Component::new(ComponentKind::Program, name)
    }
}

/// Parses `NAME <ADDRESS>`, as Debian writes a maintainer.
fn person(maintainer: &str) -> Option<(String, Option<String>)> {
    let (name, address) = match maintainer.rsplit_once('<') {
        Some((name, address)) => (name, address.strip_suffix('>')),
        None => (maintainer, None),
    };
    let name = name.trim().trim_matches('"');
    (!name.is_empty()).then(|| (name.to_owned(), address.map(str::to_owned)))
}

/// Returns whether a text is a valid URL for both formats.
fn is_web_address(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_graphic() && !b"<>\"{}|\\^`[]".contains(&byte);
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(allowed))
}

#[cfg(test)]
mod tests;
