//! Finds the packages of an image that have updates, without building: apt's package lists are
//! enough.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::enclosure::{self, Enclosure};
use super::process::{Deadline, ProcessRunner};
use super::system::{make_executable, read, write};
use super::workspace::Workspace;
use super::{CLEANUP_TIMEOUT, Progress, sources};
use crate::error::ImageError;
use crate::manifest::Manifest;
use crate::recipe::{PackageName, Suite, Uri};
use crate::store::Store;

const HOOK: &str = include_str!("updates.sh");

/// The origin of an image's packages.
pub struct PackageOrigin<'a> {
    /// The release of the distribution.
    pub suite: &'a Suite,
    /// The recipe's mirror, if it names one.
    pub mirror: Option<&'a Uri>,
    /// The recipe's kernel package.
    pub kernel: &'a PackageName,
}

/// A package whose version has changed since the build.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PackageUpdate {
    /// Its name.
    pub package: String,
    /// The version in the image.
    #[serde(rename = "has")]
    pub installed: String,
    /// The available version; `None` if the package was removed.
    pub candidate: Option<String>,
}

/// Finds the packages of an image, including its kernel, that have another version.
///
/// # Errors
///
/// The host lacks a requirement, a program failed, or the timeout expired.
pub fn find(
    store: &Store,
    manifest: &Manifest,
    origin: &PackageOrigin<'_>,
    timeout: Duration,
    progress: &dyn Progress,
) -> Result<Vec<PackageUpdate>, ImageError> {
    let runner = ProcessRunner { deadline: Deadline::after(timeout), progress };
    enclosure::check_programs()?;
    let enclosure = Enclosure::new(&runner)?;
    let workspace = Workspace::create(store, enclosure, &runner)?;
    let found = query(&workspace.work(), manifest, origin, enclosure, &runner);
    let cleaner = ProcessRunner { deadline: Deadline::after(CLEANUP_TIMEOUT), progress };
    workspace.remove(enclosure, &cleaner)?;
    found
}

fn query(
    work: &Path,
    manifest: &Manifest,
    origin: &PackageOrigin<'_>,
    enclosure: Enclosure,
    runner: &ProcessRunner<'_>,
) -> Result<Vec<PackageUpdate>, ImageError> {
    let mut names: Vec<&str> =
        manifest.packages.iter().map(|package| package.name.as_str()).collect();
    // Ends the last line.
    names.push("");
    write(&work.join("names"), &names.join("\n"))?;
    let (hook, temporary) = (work.join("updates.sh"), work.join("temporary"));
    write(&hook, HOOK)?;
    make_executable(&hook)?;
    fs::create_dir(&temporary).map_err(ImageError::write(&temporary))?;
    let sources = match origin.mirror {
        Some(mirror) => vec![mirror.to_string()],
        None => sources::of_host(runner, origin.suite),
    };
    let mut command = enclosure.command("mmdebstrap");
    command
        // Installs nothing; only the package lists are fetched.
        .args(["--mode=root", "--format=directory", "--variant=custom"])
        .arg(format!("--customize-hook={}", hook.display()))
        .arg(origin.suite.to_string())
        .arg(work.join("root"))
        .args(sources)
        .env("TMPDIR", temporary)
        .env("MAYFLY_WORK", work)
        .env("MAYFLY_KERNEL", origin.kernel.as_str());
    runner.run_as("mmdebstrap", &mut command)?;
    let kernel = read(&work.join("kernel"))?;
    Ok(compare(manifest, kernel.trim(), &parse(&read(&work.join("candidates"))?)))
}

/// Parses versions by package; apt prints `(none)` for a package without a candidate.
fn parse(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(_, version)| *version != "(none)")
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .collect()
}

/// Returns the differences. The kernel's package has a different name for each version.
fn compare(
    manifest: &Manifest,
    kernel: &str,
    candidates: &BTreeMap<String, String>,
) -> Vec<PackageUpdate> {
    let update = |package: &str, installed: &str, candidate: Option<String>| {
        (candidate.as_deref() != Some(installed)).then(|| PackageUpdate {
            package: package.to_owned(),
            installed: installed.to_owned(),
            candidate,
        })
    };
    let packages = manifest.packages.iter().filter_map(|package| {
        update(&package.name, &package.version, candidates.get(&package.name).cloned())
    });
    let installed = &manifest.kernel;
    let kernel = update(kernel, &installed.version, candidates.get(kernel).cloned());
    kernel.into_iter().chain(packages).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InstalledPackage;

    fn package(name: &str, version: &str) -> InstalledPackage {
        InstalledPackage {
            name: name.to_owned(),
            version: version.to_owned(),
            architecture: "amd64".to_owned(),
        }
    }

    #[test]
    fn changed_and_removed_packages_are_reported() {
        let mut manifest = Manifest::sample("x");
        manifest.kernel.version = "6.12-1".to_owned();
        manifest.packages = vec![package("bash", "5"), package("git", "2"), package("old", "1")];
        let candidates = parse("bash\t5\ngit\t3\nold\t(none)\nlinux-image-6.13\t6.13-1\n");
        let updates = compare(&manifest, "linux-image-6.13", &candidates);
        let reported: Vec<_> = updates
            .iter()
            .map(|update| (&*update.package, &*update.installed, update.candidate.as_deref()))
            .collect();
        let expected = [
            ("linux-image-6.13", "6.12-1", Some("6.13-1")),
            ("git", "2", Some("3")),
            ("old", "1", None),
        ];
        assert_eq!(reported, expected);
    }
}
