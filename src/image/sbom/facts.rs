//! Metadata that a finished system contains about its packages and its runner.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use serde::Deserialize;

use super::license;
use crate::manifest::InstalledPackage;

/// The largest file that is read, in bytes; the longest copyright files have a tenth of it.
const MAX_FILE: u64 = 4 << 20;

/// The most files that are read.
const MAX_FILES: usize = 20_000;

/// The output format for `dpkg-query`, with the fields in the order of [`DebianPackage::parse`].
pub(crate) const PACKAGE_FORMAT: &str = "${Package}\\t${Version}\\t${Architecture}\\t\
     ${source:Package}\\t${source:Version}\\t${Maintainer}\\t${Homepage}\\n";

/// The metadata of a Debian package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DebianPackage {
    pub(crate) package: InstalledPackage,
    /// The source package that it was built from.
    pub(super) source: String,
    pub(super) source_version: String,
    /// `NAME <ADDRESS>`.
    pub(super) maintainer: String,
    /// Empty if it has none.
    pub(super) homepage: String,
}

impl DebianPackage {
    /// Parses a line of [`PACKAGE_FORMAT`].
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('\t').map(str::to_owned);
        let mut next = || fields.next();
        Some(Self {
            package: InstalledPackage { name: next()?, version: next()?, architecture: next()? },
            source: next()?,
            source_version: next()?,
            maintainer: next()?,
            homepage: next()?,
        })
    }
}

/// `SystemFacts` about a system's content that its manifest does not have.
#[derive(Debug)]
pub(crate) struct SystemFacts {
    /// The packages in its root file system, sorted.
    pub(crate) packages: Vec<DebianPackage>,
    /// The package of its kernel.
    pub(super) kernel: DebianPackage,
    /// `ID` and `VERSION_ID` of `os-release(5)`.
    pub(super) distribution: (Option<String>, Option<String>),
    /// The licenses of packages, as SPDX expressions by package name.
    licenses: BTreeMap<String, String>,
    /// Names and versions of .NET packages in the runner.
    pub(super) libraries: BTreeSet<(String, String)>,
    /// The versions of Node.js in the runner, by directory.
    pub(super) nodes: BTreeMap<String, String>,
}

impl SystemFacts {
    /// Creates the facts known before any file is read.
    pub(crate) fn new(packages: Vec<DebianPackage>, kernel: DebianPackage) -> Self {
        Self {
            packages,
            kernel,
            distribution: (None, None),
            licenses: BTreeMap::new(),
            libraries: BTreeSet::new(),
            nodes: BTreeMap::new(),
        }
    }

    /// Reads the files that `describe.sh` has collected.
    pub(crate) fn read(&mut self, archive: impl Read) -> io::Result<()> {
        for entry in tar::Archive::new(archive).entries()?.take(MAX_FILES) {
            let mut entry = entry?;
            // Longer files contain no metadata.
            if entry.size() > MAX_FILE {
                continue;
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            let path = entry.path()?.to_string_lossy().into_owned();
            self.add_file(&path, &String::from_utf8_lossy(&bytes));
        }
        Ok(())
    }

    /// Reads one file, given its path in the system without the leading slash. Unknown files are
    /// ignored.
    pub(crate) fn add_file(&mut self, path: &str, text: &str) {
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            ["usr", "lib", "os-release"] => {
                self.distribution = (value(text, "ID"), value(text, "VERSION_ID"));
            }
            ["usr", "share", "doc", package, "copyright"] => {
                let license = license::declared(text);
                self.licenses.extend(license.map(|license| (package.to_owned(), license)));
            }
            [.., "bin", file] if file.ends_with(".deps.json") => {
                self.libraries.extend(libraries(text));
            }
            [.., directory, "include", "node", "node_version.h"] => {
                let version = node_version(text);
                self.nodes.extend(version.map(|version| (directory.to_owned(), version)));
            }
            _ => {}
        }
    }

    /// Returns the license of a package, if its copyright file is machine-readable.
    pub(super) fn license(&self, package: &str) -> Option<&str> {
        self.licenses.get(package).map(String::as_str)
    }
}

/// Returns a value of `os-release(5)`.
fn value(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(line.trim_matches(['"', '\'']).to_owned())
}

#[derive(Deserialize)]
struct Dependencies {
    libraries: BTreeMap<String, Library>,
}

#[derive(Deserialize)]
struct Library {
    #[serde(rename = "type")]
    kind: String,
}

/// Returns the packages and the .NET runtime in a `deps.json`, without the runner itself.
fn libraries(text: &str) -> Vec<(String, String)> {
    let Ok(dependencies) = serde_json::from_str::<Dependencies>(text) else { return Vec::new() };
    let split = |(key, library): (&String, &Library)| {
        if !matches!(library.kind.as_str(), "package" | "runtimepack") {
            return None;
        }
        let (name, version) = key.split_once('/')?;
        let name = name.strip_prefix("runtimepack.").unwrap_or(name);
        Some((name.to_owned(), version.to_owned()))
    };
    dependencies.libraries.iter().filter_map(split).collect()
}

/// Returns the version in a header of Node.js.
fn node_version(header: &str) -> Option<String> {
    let number = |key: &str| {
        header.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "#define" && words.next()? == key).then(|| words.next())?
        })
    };
    let numbers = ["NODE_MAJOR_VERSION", "NODE_MINOR_VERSION", "NODE_PATCH_VERSION"];
    let numbers: Option<Vec<u32>> = numbers.iter().map(|key| number(key)?.parse().ok()).collect();
    let [major, minor, patch] = numbers?.try_into().ok()?;
    Some(format!("{major}.{minor}.{patch}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_read_from_dpkgs_line() {
        let line = "curl\t8.14.1-2\tamd64\tcurl\t8.14.1-2\tA B <a@example.com>\t";
        let package = DebianPackage::parse(line).unwrap();
        assert_eq!(package.package.version, "8.14.1-2");
        assert_eq!(package.maintainer, "A B <a@example.com>");
        assert_eq!(package.homepage, "");
        assert_eq!(DebianPackage::parse("curl\t8"), None);
    }

    #[test]
    fn each_known_file_is_parsed() {
        let kernel = DebianPackage::parse("linux\t6\tamd64\tlinux\t6\tA\t").unwrap();
        let mut facts = SystemFacts::new(Vec::new(), kernel);
        let files = [
            ("usr/lib/os-release", "PRETTY_NAME=\"x\"\nID=debian\nVERSION_ID=\"13\"\n"),
            ("usr/share/doc/zlib1g/copyright", "Format: x/copyright-format/1.0\nLicense: Zlib\n"),
            ("usr/share/doc/prose/copyright", "Somebody wrote it.\n"),
            (
                "home/runner/actions-runner/bin/Runner.Worker.deps.json",
                r#"{"libraries": {
                    "Runner.Worker/1.0.0": {"type": "project"},
                    "runtimepack.Microsoft.NETCore.App.Runtime.linux-x64/8.0.18": {"type": "runtimepack"},
                    "System.Text.Json/8.0.5": {"type": "package", "sha512": "x"}}}"#,
            ),
            ("home/runner/actions-runner/bin/Broken.deps.json", "{"),
            (
                "home/runner/actions-runner/externals/node20/include/node/node_version.h",
                "#define NODE_MAJOR_VERSION 20\n#define NODE_MINOR_VERSION 19\n\
                 #define NODE_PATCH_VERSION 3\n",
            ),
            ("etc/passwd", "root:x:0:0"),
        ];
        let mut archive = tar::Builder::new(Vec::new());
        for (path, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            archive.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
        facts.read(archive.into_inner().unwrap().as_slice()).unwrap();

        assert_eq!(facts.distribution, (Some("debian".to_owned()), Some("13".to_owned())));
        assert_eq!(facts.license("zlib1g"), Some("Zlib"));
        assert_eq!(facts.license("prose"), None);
        let libraries: Vec<_> =
            facts.libraries.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let runtime = "Microsoft.NETCore.App.Runtime.linux-x64 8.0.18";
        assert_eq!(libraries, [runtime, "System.Text.Json 8.0.5"]);
        assert_eq!(facts.nodes["node20"], "20.19.3");
    }
}
