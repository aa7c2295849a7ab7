//! What the distribution has now that an image does not, found without building anything: apt's
//! package lists are enough.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::enclosure::{self, Enclosure};
use super::process::{Deadline, Runner};
use super::system::{make_executable, read, write};
use super::workspace::Workspace;
use super::{CLEANING, Progress, sources};
use crate::image::error::ImageError;
use crate::image::manifest::Manifest;
use crate::image::recipe::{PackageName, Suite, Uri};
use crate::image::store::Store;

const HOOK: &str = include_str!("newer.sh");

/// Where an image's packages come from.
pub struct Origin<'a> {
    /// The release of the distribution.
    pub suite: &'a Suite,
    /// The recipe's mirror, if it names one.
    pub mirror: Option<&'a Uri>,
    /// The recipe's kernel package.
    pub kernel: &'a PackageName,
}

/// A package that would be another one today.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Newer {
    /// Its name.
    pub package: String,
    /// The version in the image.
    pub has: String,
    /// The version that is to be had; none if the package is no more.
    pub candidate: Option<String>,
}

/// The packages of an image of which there is another version, its kernel's among them.
///
/// # Errors
///
/// The host lacks something, a program failed, or time ran out.
pub fn look(
    store: &Store,
    manifest: &Manifest,
    origin: &Origin<'_>,
    timeout: Duration,
    progress: &dyn Progress,
) -> Result<Vec<Newer>, ImageError> {
    let runner = Runner { deadline: Deadline::after(timeout), progress };
    enclosure::check_programs()?;
    let enclosure = Enclosure::new(&runner)?;
    let workspace = Workspace::create(store, enclosure, &runner)?;
    let found = ask(&workspace.work(), manifest, origin, enclosure, &runner);
    let cleaner = Runner { deadline: Deadline::after(CLEANING), progress };
    workspace.remove(enclosure, &cleaner)?;
    found
}

fn ask(
    work: &Path,
    manifest: &Manifest,
    origin: &Origin<'_>,
    enclosure: Enclosure,
    runner: &Runner<'_>,
) -> Result<Vec<Newer>, ImageError> {
    let mut names: Vec<&str> =
        manifest.packages.iter().map(|package| package.name.as_str()).collect();
    // The last line ends, too.
    names.push("");
    write(&work.join("names"), &names.join("\n"))?;
    let (hook, temporary) = (work.join("newer.sh"), work.join("temporary"));
    write(&hook, HOOK)?;
    make_executable(&hook)?;
    fs::create_dir(&temporary).map_err(ImageError::write(&temporary))?;
    let sources = match origin.mirror {
        Some(mirror) => vec![mirror.to_string()],
        None => sources::of_this_machine(runner, origin.suite),
    };
    let mut command = enclosure.command("mmdebstrap");
    command
        // Nothing is installed: only the lists are fetched.
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

/// Versions by package; apt calls one that it knows but does not have `(none)`.
fn parse(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(_, version)| *version != "(none)")
        .map(|(name, version)| (name.to_owned(), version.to_owned()))
        .collect()
}

/// What differs. The kernel's package has another name with each version.
fn compare(manifest: &Manifest, kernel: &str, candidates: &BTreeMap<String, String>) -> Vec<Newer> {
    let newer = |package: &str, has: &str, candidate: Option<String>| {
        (candidate.as_deref() != Some(has)).then(|| Newer {
            package: package.to_owned(),
            has: has.to_owned(),
            candidate,
        })
    };
    let packages = manifest.packages.iter().filter_map(|package| {
        newer(&package.name, &package.version, candidates.get(&package.name).cloned())
    });
    let has = &manifest.kernel;
    let kernel = newer(kernel, &has.version, candidates.get(kernel).cloned());
    kernel.into_iter().chain(packages).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Package;

    fn package(name: &str, version: &str) -> Package {
        Package {
            name: name.to_owned(),
            version: version.to_owned(),
            architecture: "amd64".to_owned(),
        }
    }

    #[test]
    fn what_is_the_same_is_not_told_and_what_is_gone_is() {
        let mut manifest = Manifest::sample("x");
        manifest.kernel.version = "6.12-1".to_owned();
        manifest.packages = vec![package("bash", "5"), package("git", "2"), package("old", "1")];
        let candidates = parse("bash\t5\ngit\t3\nold\t(none)\nlinux-image-6.13\t6.13-1\n");
        let newer = compare(&manifest, "linux-image-6.13", &candidates);
        let told: Vec<_> = newer
            .iter()
            .map(|newer| (&*newer.package, &*newer.has, newer.candidate.as_deref()))
            .collect();
        let expected = [
            ("linux-image-6.13", "6.12-1", Some("6.13-1")),
            ("git", "2", Some("3")),
            ("old", "1", None),
        ];
        assert_eq!(told, expected);
    }
}
