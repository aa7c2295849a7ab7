//! GitHub's runner in an image: its source, its archive and its version check.

use std::fs::File;
use std::io::Seek;
use std::path::PathBuf;

use secrecy::SecretString;

use super::archive::{self, Member, TarballError};
use super::layer::{Access, Layer, directories_between};
use crate::error::ImageError;
use crate::hash;
use crate::manifest;
use crate::name::Digest;
use crate::recipe::{self, Recipe, RecipeContent, Release, RunnerVersion, UserSpec};

/// The program that takes jobs, relative to the runner's directory.
const LISTENER: &str = "bin/Runner.Listener";
/// The base URL of GitHub's release archives.
const PUBLISHED: &str = "https://github.com/actions/runner/releases/download";

/// Directories of job hooks: a recipe's files in them run before or after each job, in the order of
/// their names. Each comes with the variable that configures the runner and the script that runs
/// the hooks.
const JOB_HOOKS: [(&str, &str, &str); 2] = [
    (
        "/etc/mayfly/job-started.d",
        "ACTIONS_RUNNER_HOOK_JOB_STARTED",
        "/usr/local/libexec/mayfly/job-started.sh",
    ),
    (
        "/etc/mayfly/job-completed.d",
        "ACTIONS_RUNNER_HOOK_JOB_COMPLETED",
        "/usr/local/libexec/mayfly/job-completed.sh",
    ),
];

/// The source of a runner.
#[derive(Debug, Clone)]
pub enum RunnerSource {
    /// A local archive.
    Archive(PathBuf),
    /// A release that GitHub offers an account.
    Release(RunnerRelease),
}

/// A release of the runner that can be downloaded.
#[derive(Debug, Clone)]
pub struct RunnerRelease {
    /// Its version.
    pub version: Release,
    /// The URL of its archive.
    pub url: String,
    /// The archive's digest.
    pub sha256: Digest,
    /// The token for the download, if required.
    pub token: Option<SecretString>,
}

/// The runner that a build needs, before it is fetched.
#[derive(Debug)]
pub(super) struct RunnerRequest {
    /// Its source.
    pub(super) source: RunnerSource,
    /// The expected digest of its archive.
    sha256: Option<Digest>,
    /// The version that it must report.
    version: Option<Release>,
}

/// Returns the runner that the recipe and the caller request; `None` for an image without a runner.
pub(super) fn request(
    recipe: &Recipe,
    given: Option<&RunnerSource>,
) -> Result<Option<RunnerRequest>, ImageError> {
    let Some(runner) = &recipe.content.runner else {
        return match given {
            Some(_) => Err(ImageError::RunnerUnexpected { path: recipe.path.clone() }),
            None => Ok(None),
        };
    };
    let version = match runner.version {
        Some(RunnerVersion::Release(release)) => Some(release),
        _ => None,
    };
    let source = match given {
        Some(source) => source.clone(),
        None => source_of(recipe, runner, version)?,
    };
    Ok(Some(match source {
        RunnerSource::Release(release) => RunnerRequest {
            sha256: Some(release.sha256.clone()),
            version: Some(release.version),
            source: RunnerSource::Release(release),
        },
        source @ RunnerSource::Archive(_) => {
            RunnerRequest { source, sha256: runner.sha256.clone(), version }
        }
    }))
}

/// Returns the source of the runner per the recipe.
fn source_of(
    recipe: &Recipe,
    runner: &recipe::RunnerSpec,
    version: Option<Release>,
) -> Result<RunnerSource, ImageError> {
    if let Some(archive) = &runner.archive {
        return Ok(RunnerSource::Archive(recipe.resolve(archive)));
    }
    let Some(version) = version else {
        return Err(ImageError::RunnerUnspecified { path: recipe.path.clone() });
    };
    let sha256 = runner.sha256.clone().ok_or_else(|| ImageError::RecipeValue {
        path: recipe.path.clone(),
        key: "runner.version",
        value: version.to_string(),
        reason: "requires `sha256`, the digest of the archive to download",
    })?;
    let url = format!("{PUBLISHED}/v{version}/actions-runner-linux-x64-{version}.tar.gz");
    Ok(RunnerSource::Release(RunnerRelease { version, url, sha256, token: None }))
}

/// A runner whose archive is present and verified.
pub(super) struct ActionsRunner<'c> {
    file: File,
    path: PathBuf,
    sha256: Digest,
    version: Option<Release>,
    /// The time of its newest file, in seconds since 1970.
    released: u64,
    directory: &'c str,
    pub(super) user: &'c UserSpec,
}

impl RunnerRequest {
    /// Opens the archive at `path` and verifies its digest.
    pub(super) fn open(
        self,
        path: PathBuf,
        content: &RecipeContent,
    ) -> Result<Option<ActionsRunner<'_>>, ImageError> {
        let Some(runner) = &content.runner else { return Ok(None) };
        let Some(user) = content.user(Some(&runner.user)) else { return Ok(None) };
        let mut file = File::open(&path).map_err(ImageError::read(&path))?;
        let (sha256, _) = hash::of_file(&mut file).map_err(ImageError::read(&path))?;
        file.rewind().map_err(ImageError::read(&path))?;
        match self.sha256 {
            Some(expected) if expected != sha256 => {
                let from = path.display().to_string();
                Err(ImageError::WrongDigest { from, expected, found: sha256 })
            }
            _ => {
                let tarball_error = |source| ImageError::Tarball { path: path.clone(), source };
                let released = scan(&mut file).map_err(tarball_error)?;
                let directory = runner.directory.as_str();
                let version = self.version;
                Ok(Some(ActionsRunner { file, path, sha256, version, released, directory, user }))
            }
        }
    }
}

impl ActionsRunner<'_> {
    /// Adds the runner, owned by its user.
    pub(super) fn unpack(&self, layer: &mut Layer) -> Result<(), ImageError> {
        let owner = self.user.uid;
        let directory = Access { owner, mode: 0o755 };
        for parent in directories_between(&self.user.home, self.directory) {
            layer.directory(parent, directory)?;
        }
        layer.directory(self.directory, directory)?;
        let file = self.file.try_clone().map_err(ImageError::read(&self.path))?;
        let unpacked = archive::read(file, |path, member| {
            let inside = |path: &str| format!("{}/{path}", self.directory);
            let added = match member {
                Member::Directory => layer.directory(&inside(path), directory),
                Member::File { bytes, executable, content, .. } => {
                    let mode = if executable { 0o755 } else { 0o644 };
                    layer.file(&inside(path), Access { owner, mode }, bytes, content)
                }
                Member::Symlink(target) => layer.symlink(&inside(path), owner, &target),
                Member::HardLink(other) => layer.hard_link(&inside(path), owner, &inside(&other)),
            };
            added.map_err(AddError::Layer)
        });
        unpacked.map_err(|error| match error {
            AddError::Archive(source) => ImageError::Tarball { path: self.path.clone(), source },
            AddError::Layer(error) => error,
        })
    }

    /// Configures the runner to run the recipe's job hooks, if there are any. A hook shows up as a
    /// step in every job's log, so none is configured without need.
    pub(super) fn add_job_hooks(
        &self,
        content: &RecipeContent,
        layer: &mut Layer,
    ) -> Result<(), ImageError> {
        let mut environment = String::new();
        for (directory, variable, script) in JOB_HOOKS {
            let is_there = |file: &recipe::FileSpec| {
                file.path.as_str().strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
            };
            if !content.files.iter().any(is_there) {
                continue;
            }
            let text =
                format!("#!/bin/sh\nset -e\nfor hook in {directory}/*; do\n    \"$hook\"\ndone\n");
            let access = Access { owner: 0, mode: 0o755 };
            layer.file(script, access, text.len() as u64, text.as_bytes())?;
            environment += &[variable, "=", script, "\n"].concat();
        }
        if environment.is_empty() {
            return Ok(());
        }
        // The runner reads it at startup.
        let path = format!("{}/.env", self.directory);
        let access = Access { owner: self.user.uid, mode: 0o644 };
        layer.file(&path, access, environment.len() as u64, environment.as_bytes())
    }

    /// Returns the path of the program that takes jobs.
    pub(super) fn listener(&self) -> String {
        format!("{}/{LISTENER}", self.directory)
    }

    /// Returns the directory of its own log.
    pub(super) fn diagnostics(&self) -> String {
        format!("{}/_diag", self.directory)
    }

    /// Returns the runner's entry for the manifest, if `output`, the version that it reports, is
    /// the expected one.
    pub(super) fn verified(self, output: &[u8]) -> Result<manifest::InstalledRunner, ImageError> {
        let output = String::from_utf8_lossy(output);
        let last = output.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        let found: Release = last.parse().map_err(|_| ImageError::RunnerVersion {
            found: last.chars().take(100).collect(),
            expected: "a version".to_owned(),
        })?;
        let expected = match self.version {
            Some(version) if version != found => version.to_string(),
            None if found < Release::OLDEST => format!("{} or later", Release::OLDEST),
            _ => {
                return Ok(manifest::InstalledRunner {
                    version: found.to_string(),
                    sha256: self.sha256,
                    released: self.released,
                    directory: self.directory.to_owned(),
                });
            }
        };
        Err(ImageError::RunnerVersion { found: found.to_string(), expected })
    }
}

/// Reads the whole archive, so that errors show before any slow step. Returns the time of its
/// newest file.
fn scan(file: &mut File) -> Result<u64, TarballError> {
    let (mut released, mut listener) = (0, false);
    archive::read::<TarballError>(file.try_clone()?, |path, member| {
        if let Member::File { modified, executable, .. } = member {
            released = released.max(modified);
            listener |= path == LISTENER && executable;
        }
        Ok(())
    })?;
    file.rewind()?;
    if listener { Ok(released) } else { Err(TarballError::MissingFile(LISTENER.to_owned())) }
}

/// The reason why an entry can't be added.
enum AddError {
    Archive(TarballError),
    Layer(ImageError),
}

impl From<TarballError> for AddError {
    fn from(error: TarballError) -> Self {
        Self::Archive(error)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::recipe::Setting;

    const RECIPE: &str = r#"
        name = "x"
        suite = "trixie"
        size = "512M"
        [kernel]
        package = "linux-image-cloud-amd64"
        [[users]]
        name = "runner"
        uid = 1001
        home = "/home/runner"
        shell = "/bin/sh"
        [runner]
    "#;

    fn recipe(text: &str, settings: &[&str]) -> Result<Recipe, ImageError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let settings: Vec<Setting> = settings.iter().map(|text| text.parse().unwrap()).collect();
        Recipe::load(file.path(), &settings)
    }

    fn release(version: &str) -> RunnerSource {
        RunnerSource::Release(RunnerRelease {
            version: version.parse().unwrap(),
            url: "https://example.com/runner".to_owned(),
            sha256: hash::of_bytes(b"newest"),
            token: None,
        })
    }

    #[test]
    fn a_given_source_overrides_the_recipe() {
        let archive = RunnerSource::Archive("given".into());
        let sha256 = format!("runner.sha256={}", hash::of_bytes(b"x"));
        let pinned = recipe(RECIPE, &["runner.version=2.335.1", &sha256]).unwrap();
        let requested = |recipe: &Recipe, given| request(recipe, given).unwrap().unwrap();

        let RunnerSource::Release(download) = requested(&pinned, None).source else { panic!() };
        assert!(download.url.ends_with("/v2.335.1/actions-runner-linux-x64-2.335.1.tar.gz"));
        let local = requested(&pinned, Some(&archive));
        assert!(matches!(local.source, RunnerSource::Archive(path) if path == *"given"));
        assert_eq!(local.sha256, Some(hash::of_bytes(b"x")), "the archive must be that one");

        let latest = recipe(RECIPE, &["runner.version=latest"]).unwrap();
        let newest = requested(&latest, Some(&release("2.340.0")));
        assert_eq!(newest.sha256, Some(hash::of_bytes(b"newest")));
        assert_eq!(newest.version, Some("2.340.0".parse().unwrap()));
    }

    #[test]
    fn a_missing_or_unexpected_runner_is_an_error() {
        let none = recipe(&RECIPE.replace("[runner]", ""), &[]).unwrap();
        assert!(request(&none, None).unwrap().is_none());
        let error = request(&none, Some(&release("2.335.1"))).unwrap_err();
        assert!(matches!(error, ImageError::RunnerUnexpected { .. }));
        for settings in [&[][..], &["runner.version=latest"]] {
            let error = request(&recipe(RECIPE, settings).unwrap(), None).unwrap_err();
            assert!(matches!(error, ImageError::RunnerUnspecified { .. }), "{error}");
        }
        let error = request(&recipe(RECIPE, &["runner.version=2.335.1"]).unwrap(), None);
        assert!(error.unwrap_err().to_string().contains("sha256"));
    }

    #[test]
    fn contradictory_runner_keys_are_rejected_with_the_recipe() {
        let digest = format!("runner.sha256={}", hash::of_bytes(b""));
        for (settings, key) in [
            (&["runner.version=2.328.9"][..], "runner.version"),
            (&["runner.version=latest", &digest], "runner.version"),
            (&["runner.version=latest", "runner.archive=x"], "runner.version"),
            (&["runner.user=nobody"], "runner.user"),
            (&["runner.directory=/opt/runner"], "runner.directory"),
        ] {
            let error = recipe(RECIPE, settings).unwrap_err().to_string();
            assert!(error.contains(key), "{settings:?}: {error}");
        }
    }

    #[test]
    fn the_runner_must_have_the_requested_version() {
        let recipe = recipe(RECIPE, &[]).unwrap();
        let reported = |version: Option<&str>, output: &str| {
            let user = &recipe.content.users[0];
            let runner = ActionsRunner {
                file: tempfile::tempfile().unwrap(),
                path: PathBuf::new(),
                sha256: hash::of_bytes(b""),
                version: version.map(|version| version.parse().unwrap()),
                released: 7,
                directory: "/home/runner/actions-runner",
                user,
            };
            runner.verified(output.as_bytes()).map(|runner| runner.version)
        };
        assert_eq!(reported(None, "2.335.1\n").unwrap(), "2.335.1");
        assert_eq!(reported(Some("2.335.1"), "noise\n2.335.1\n\n").unwrap(), "2.335.1");
        for (version, output) in [
            (Some("2.335.0"), "2.335.1"),
            (None, "2.328.0"),
            (None, ""),
            (None, "Segmentation fault"),
        ] {
            let error = reported(version, output).unwrap_err();
            assert!(matches!(error, ImageError::RunnerVersion { .. }), "{error}");
        }
    }
}
