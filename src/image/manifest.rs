//! What an image is and what it was made of, as its `manifest.json` says.

use std::collections::BTreeMap;

use mayfly_protocol::settings::Settings;
use serde::{Deserialize, Serialize};

use super::name::{Digest, ImageName};

/// The version of the manifest's own shape. A manifest of another is not understood.
pub(super) const FORMAT: u32 = 2;

/// The manifest of an image. Its bytes' SHA-256 is the image's digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of this shape, 2.
    pub format: Format,
    /// The image's name.
    pub name: ImageName,
    /// The processor that it is for, as Rust and the kernel call it, e.g. `x86_64`.
    pub architecture: String,
    /// The version of the channel's messages that the agent in it speaks.
    pub protocol: u16,
    /// The state of the packages it was made from, in seconds since 1970; not the time of the
    /// build, so that the same inputs give the same manifest.
    pub created: u64,
    /// Its kernel.
    pub kernel: Kernel,
    /// Its files.
    pub parts: Parts,
    /// The packages in its root file system, sorted by name.
    pub packages: Vec<Package>,
    /// The runner in it, if there is one.
    pub runner: Option<Runner>,
    /// The pinned downloads in it, sorted by name.
    pub downloads: Vec<Download>,
    /// How the agent in it sets a guest up.
    pub settings: Settings,
    /// Each hardening control by its name, and whether it is on.
    pub hardening: BTreeMap<String, bool>,
    /// What else went into it.
    pub inputs: Inputs,
}

/// The GitHub Actions runner in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runner {
    /// Its version, e.g. `2.335.1`.
    pub version: String,
    /// The digest of the archive that it was unpacked from.
    pub sha256: Digest,
    /// When it was made, in seconds since 1970: the time of the newest file in the archive.
    pub released: u64,
    /// The directory that it is in.
    pub directory: String,
}

impl Runner {
    /// Days from which a runner is called old: ten before GitHub's rule can bite.
    const OLD: u64 = 20;

    /// How many days old it is at `now`, in seconds since 1970, if that is a reason to build the
    /// image anew: GitHub sends no jobs to a runner whose successor is out for 30 days.
    pub fn too_many_days(&self, now: u64) -> Option<u64> {
        let days = now.saturating_sub(self.released) / 86_400;
        Some(days).filter(|days| *days > Self::OLD)
    }
}

/// A program that was downloaded by its digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Download {
    /// What it is called.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it is in the image.
    pub path: String,
    /// Where it was downloaded from.
    pub url: String,
    /// The digest of what was downloaded.
    pub sha256: Digest,
}

/// The version of the manifest's shape, checked when it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Format;

impl TryFrom<u32> for Format {
    type Error = String;

    fn try_from(format: u32) -> Result<Self, String> {
        if format == FORMAT {
            Ok(Self)
        } else {
            Err(format!("manifest format {format} is unknown, this Mayfly knows {FORMAT}"))
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
pub struct Kernel {
    /// The package that it is from.
    pub package: String,
    /// That package's version.
    pub version: String,
    /// What `uname -r` says.
    pub release: String,
    /// The arguments that the image wants; the machine adds its own.
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
    /// The agent and the modules that it needs to find the root file system.
    pub initramfs: Part,
    /// The root file system.
    pub rootfs: Part,
    /// The bill of materials as SPDX 2.3.
    pub spdx: Part,
    /// The bill of materials as `CycloneDX` 1.5.
    pub cyclonedx: Part,
}

impl Parts {
    /// All of them.
    pub fn all(&self) -> [&Part; 5] {
        let [kernel, initramfs, rootfs] = self.booted();
        [kernel, initramfs, rootfs, &self.spdx, &self.cyclonedx]
    }

    /// Those that a machine boots.
    pub fn booted(&self) -> [&Part; 3] {
        [&self.kernel, &self.initramfs, &self.rootfs]
    }
}

/// One file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name in the image's directory.
    pub file: PartName,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Digest,
}

/// The names that parts have. A manifest can't name any other file.
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
    /// The file's name.
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
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Debian's name of its architecture, `all` for one that fits every machine.
    pub architecture: String,
}

/// What an image was made of beside its packages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    /// The digest of the recipe's text.
    pub recipe: Digest,
    /// The digests of the recipe's profiles, by their paths as it has them.
    pub profiles: BTreeMap<String, Digest>,
    /// What was set on the command line, in order.
    pub settings: Vec<String>,
    /// What the recipe says with its profiles and settings, in the words of a recipe.
    pub effective: serde_json::Value,
    /// The digests of the files that the recipe takes from beside itself, by their paths as it has
    /// them.
    pub files: BTreeMap<String, Digest>,
    /// The distribution's release.
    pub suite: String,
    /// The agent.
    pub agent: Agent,
    /// The versions of the programs that made it, as they say themselves.
    pub tools: BTreeMap<String, String>,
}

/// The agent in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// The version of the Mayfly that put it there.
    pub version: String,
    /// Its digest.
    pub sha256: Digest,
}

impl Manifest {
    /// The bytes of `manifest.json`, always the same for the same manifest.
    pub(super) fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

#[cfg(test)]
impl Manifest {
    /// One with parts of no bytes and no packages, for tests to fill in.
    pub(crate) fn sample(name: &str) -> Self {
        let nothing = super::hash::of_bytes(b"");
        let part = |file| Part { file, bytes: 0, sha256: nothing.clone() };
        Self {
            format: Format,
            name: name.parse().unwrap(),
            architecture: "x86_64".to_owned(),
            protocol: mayfly_protocol::VERSION,
            created: 1,
            kernel: Kernel {
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
            settings: Settings::default(),
            hardening: BTreeMap::new(),
            inputs: Inputs {
                recipe: nothing.clone(),
                profiles: BTreeMap::new(),
                settings: Vec::new(),
                effective: serde_json::Value::Null,
                files: BTreeMap::new(),
                suite: "trixie".to_owned(),
                agent: Agent { version: "0".to_owned(), sha256: nothing },
                tools: BTreeMap::new(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::hash;

    #[test]
    fn a_runner_is_old_after_twenty_days() {
        let runner = Runner {
            version: "2.335.1".to_owned(),
            sha256: hash::of_bytes(b""),
            released: 1_000_000,
            directory: "/home/runner/actions-runner".to_owned(),
        };
        let after = |days: u64| runner.too_many_days(1_000_000 + days * 86_400);
        assert_eq!((after(0), after(20), after(21)), (None, None, Some(21)));
        assert_eq!(runner.too_many_days(0), None, "a clock that is behind");
    }
}
