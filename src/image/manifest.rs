//! The `manifest.json` of an image: its parts and the inputs of its build.

use std::collections::BTreeMap;

use mayfly_protocol::settings::GuestSettings;
use serde::{Deserialize, Serialize};

use super::name::{Digest, ImageName};

/// The version of the manifest's format. Other versions are rejected.
pub(super) const FORMAT: u32 = 2;

/// The manifest of an image. Its bytes' SHA-256 is the image's digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the format, 2.
    pub format: Format,
    /// The image's name.
    pub name: ImageName,
    /// The processor architecture, as Rust and the kernel name it, e.g. `x86_64`.
    pub architecture: String,
    /// The version of the channel protocol that its agent speaks.
    pub protocol: u16,
    /// The date of the package lists, in seconds since 1970. It is not the time of the build, so
    /// that the same inputs give the same manifest.
    pub created: u64,
    /// Its kernel.
    pub kernel: KernelInfo,
    /// Its files.
    pub parts: Parts,
    /// The packages in its root file system, sorted by name.
    pub packages: Vec<InstalledPackage>,
    /// Its GitHub Actions runner, if any.
    pub runner: Option<InstalledRunner>,
    /// Its pinned downloads, sorted by name.
    pub downloads: Vec<InstalledDownload>,
    /// The agent's settings for guests.
    pub settings: GuestSettings,
    /// Each hardening control by name, and whether it is on.
    pub hardening: BTreeMap<String, bool>,
    /// The other inputs of the build.
    pub inputs: BuildInputs,
}

/// The GitHub Actions runner in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstalledRunner {
    /// Its version, e.g. `2.335.1`.
    pub version: String,
    /// The digest of its archive.
    pub sha256: Digest,
    /// Its date, in seconds since 1970: the time of the newest file in the archive.
    pub released: u64,
    /// Its directory in the image.
    pub directory: String,
}

impl InstalledRunner {
    /// The age in days above which a runner counts as outdated: ten days before GitHub's limit can
    /// apply.
    const OUTDATED_AFTER_DAYS: u64 = 20;

    /// Returns its age in days at `now` (seconds since 1970) if it is outdated. GitHub sends no
    /// jobs to a runner whose successor has been out for 30 days.
    pub fn days_if_outdated(&self, now: u64) -> Option<u64> {
        let days = now.saturating_sub(self.released) / 86_400;
        Some(days).filter(|days| *days > Self::OUTDATED_AFTER_DAYS)
    }
}

/// A downloaded program, pinned by digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstalledDownload {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its path in the image.
    pub path: String,
    /// The URL that it was downloaded from.
    pub url: String,
    /// The digest of the download.
    pub sha256: Digest,
}

/// The version of the manifest's format, checked during deserialization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Format;

impl TryFrom<u32> for Format {
    type Error = String;

    fn try_from(format: u32) -> Result<Self, String> {
        if format == FORMAT {
            Ok(Self)
        } else {
            Err(format!("unsupported manifest format {format}, this Mayfly supports {FORMAT}"))
        }
    }
}

impl From<Format> for u32 {
    fn from(_: Format) -> Self {
        FORMAT
    }
}

/// The kernel of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelInfo {
    /// The package that contains it.
    pub package: String,
    /// The package's version.
    pub version: String,
    /// The output of `uname -r`.
    pub release: String,
    /// The image's kernel arguments; the machine adds its own.
    pub command_line: String,
    /// The modules in the initramfs, in load order.
    pub modules: Vec<String>,
}

/// The files of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parts {
    /// The uncompressed kernel.
    pub kernel: Part,
    /// The agent and the modules that it needs to mount the root file system.
    pub initramfs: Part,
    /// The root file system.
    pub rootfs: Part,
    /// The bill of materials as SPDX 2.3.
    pub spdx: Part,
    /// The bill of materials as `CycloneDX` 1.5.
    pub cyclonedx: Part,
}

impl Parts {
    /// Returns all parts.
    pub fn all(&self) -> [&Part; 5] {
        let [kernel, initramfs, rootfs] = self.booted();
        [kernel, initramfs, rootfs, &self.spdx, &self.cyclonedx]
    }

    /// Returns the parts that a machine boots.
    pub fn booted(&self) -> [&Part; 3] {
        [&self.kernel, &self.initramfs, &self.rootfs]
    }
}

/// One file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its file name in the image's directory.
    pub file: PartName,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Digest,
}

/// The file names of parts. A manifest can't name any other file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PartName {
    /// See [`Parts::kernel`].
    #[serde(rename = "kernel")]
    Kernel,
    /// See [`Parts::initramfs`].
    #[serde(rename = "initramfs")]
    Initramfs,
    /// See [`Parts::rootfs`].
    #[serde(rename = "rootfs.img")]
    Rootfs,
    /// See [`Parts::spdx`].
    #[serde(rename = "sbom.spdx.json")]
    Spdx,
    /// See [`Parts::cyclonedx`].
    #[serde(rename = "sbom.cdx.json")]
    CycloneDx,
}

impl PartName {
    /// Returns the file name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::Rootfs => "rootfs.img",
            Self::Spdx => "sbom.spdx.json",
            Self::CycloneDx => "sbom.cdx.json",
        }
    }
}

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstalledPackage {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture in Debian's terms; `all` if it is independent of the machine.
    pub architecture: String,
}

/// The inputs of a build, other than packages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildInputs {
    /// The digest of the recipe's text.
    pub recipe: Digest,
    /// The digests of the recipe's profiles, by path as written in the recipe.
    pub profiles: BTreeMap<String, Digest>,
    /// The settings from the command line, in order.
    pub settings: Vec<String>,
    /// The recipe merged with its profiles and settings, in recipe format.
    pub effective: serde_json::Value,
    /// The digests of the files that the recipe refers to, by path as written in the recipe.
    pub files: BTreeMap<String, Digest>,
    /// The distribution's release.
    pub suite: String,
    /// The agent.
    pub agent: AgentInfo,
    /// The versions of the build tools, as they report them.
    pub tools: BTreeMap<String, String>,
}

/// The agent in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentInfo {
    /// The version of the Mayfly that built the image.
    pub version: String,
    /// Its digest.
    pub sha256: Digest,
}

impl Manifest {
    /// Returns the bytes of `manifest.json`. The result is deterministic.
    pub(super) fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

#[cfg(test)]
impl Manifest {
    /// Returns a manifest with empty parts and no packages, for tests to modify.
    pub(crate) fn sample(name: &str) -> Self {
        let nothing = super::hash::of_bytes(b"");
        let part = |file| Part { file, bytes: 0, sha256: nothing.clone() };
        Self {
            format: Format,
            name: name.parse().unwrap(),
            architecture: "x86_64".to_owned(),
            protocol: mayfly_protocol::VERSION,
            created: 1,
            kernel: KernelInfo {
                package: "linux-image".to_owned(),
                version: "6".to_owned(),
                release: "6-cloud".to_owned(),
                command_line: String::new(),
                modules: Vec::new(),
            },
            parts: Parts {
                kernel: part(PartName::Kernel),
                initramfs: part(PartName::Initramfs),
                rootfs: part(PartName::Rootfs),
                spdx: part(PartName::Spdx),
                cyclonedx: part(PartName::CycloneDx),
            },
            packages: Vec::new(),
            runner: None,
            downloads: Vec::new(),
            settings: GuestSettings::default(),
            hardening: BTreeMap::new(),
            inputs: BuildInputs {
                recipe: nothing.clone(),
                profiles: BTreeMap::new(),
                settings: Vec::new(),
                effective: serde_json::Value::Null,
                files: BTreeMap::new(),
                suite: "trixie".to_owned(),
                agent: AgentInfo { version: "0".to_owned(), sha256: nothing },
                tools: BTreeMap::new(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash;

    #[test]
    fn a_runner_is_old_after_twenty_days() {
        let runner = InstalledRunner {
            version: "2.335.1".to_owned(),
            sha256: hash::of_bytes(b""),
            released: 1_000_000,
            directory: "/home/runner/actions-runner".to_owned(),
        };
        let after = |days: u64| runner.days_if_outdated(1_000_000 + days * 86_400);
        assert_eq!((after(0), after(20), after(21)), (None, None, Some(21)));
        assert_eq!(runner.days_if_outdated(0), None, "a clock that is behind");
    }
}
