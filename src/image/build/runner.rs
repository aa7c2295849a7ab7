//! GitHub's runner in an image: where it comes from, how it is unpacked, and whether it runs.

use std::fs::File;
use std::io::Seek;
use std::path::PathBuf;

use secrecy::SecretString;

use super::archive::{self, Member, TarballError};
use super::layer::{Access, Layer, directories_between};
use crate::image::error::ImageError;
use crate::image::hash;
use crate::image::manifest;
use crate::image::name::Digest;
use crate::image::recipe::{self, Content, Recipe, Release, RunnerVersion, User};

/// The program that takes jobs, below the runner's directory.
const LISTENER: &str = "bin/Runner.Listener";
/// Where GitHub publishes the archives of releases.
const PUBLISHED: &str = "https://github.com/actions/runner/releases/download";

/// Where a recipe's files are scripts that the runner runs before and after each job; the variable
/// by which the runner is told; and what runs them, in the order of their names.
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

/// Where the runner comes from, if not from where the recipe says.
#[derive(Debug, Clone)]
pub enum RunnerSource {
    /// A local archive.
    Archive(PathBuf),
    /// What GitHub gives an account.
    Release(RunnerRelease),
}

/// A release of the runner that can be downloaded.
#[derive(Debug, Clone)]
pub struct RunnerRelease {
    /// Its version.
    pub version: Release,
    /// Where its archive is.
    pub url: String,
    /// The archive's digest.
    pub sha256: Digest,
    /// What the download needs, if it needs anything.
    pub token: Option<SecretString>,
}

/// The runner that a build takes, before it is there.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Where it comes from.
    pub(super) source: RunnerSource,
    /// The digest that its archive must have.
    sha256: Option<Digest>,
    /// The version that it must say it is.
    version: Option<Release>,
}

/// What the recipe and who calls the build want; none for an image without a runner.
pub(super) fn wanted(
    recipe: &Recipe,
    given: Option<&RunnerSource>,
) -> Result<Option<Wanted>, ImageError> {
    let Some(runner) = &recipe.content.runner else {
        return match given {
            Some(_) => Err(ImageError::RunnerUnwanted { path: recipe.path.clone() }),
            None => Ok(None),
        };
    };
    let version = match runner.version {
        Some(RunnerVersion::Release(release)) => Some(release),
        _ => None,
    };
    let source = match given {
        Some(source) => source.clone(),
        None => named(recipe, runner, version)?,
    };
    Ok(Some(match source {
        RunnerSource::Release(release) => Wanted {
            sha256: Some(release.sha256.clone()),
            version: Some(release.version),
            source: RunnerSource::Release(release),
        },
        source @ RunnerSource::Archive(_) => {
            Wanted { source, sha256: runner.sha256.clone(), version }
        }
    }))
}

/// Where the recipe says that the runner comes from.
fn named(
    recipe: &Recipe,
    runner: &recipe::Runner,
    version: Option<Release>,
) -> Result<RunnerSource, ImageError> {
    if let Some(archive) = &runner.archive {
        return Ok(RunnerSource::Archive(recipe.beside(archive)));
    }
    let Some(version) = version else {
        return Err(ImageError::RunnerUnnamed { path: recipe.path.clone() });
    };
    let sha256 = runner.sha256.clone().ok_or_else(|| ImageError::RecipeValue {
        path: recipe.path.clone(),
        key: "runner.version",
        value: version.to_string(),
        problem: "a version that is downloaded needs its archive's `sha256`",
    })?;
    let url = format!("{PUBLISHED}/v{version}/actions-runner-linux-x64-{version}.tar.gz");
    Ok(RunnerSource::Release(RunnerRelease { version, url, sha256, token: None }))
}

/// The runner whose archive is there and is the one that was wanted.
pub(super) struct ActionsRunner<'c> {
    file: File,
    path: PathBuf,
    sha256: Digest,
    version: Option<Release>,
    /// The time of its newest file, in seconds since 1970.
    released: u64,
    directory: &'c str,
    pub(super) user: &'c User,
}

impl Wanted {
    /// The archive at `path`, if it has the digest that it must have.
    pub(super) fn open(
        self,
        path: PathBuf,
        content: &Content,
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
                let unfit = |source| ImageError::Tarball { path: path.clone(), source };
                let released = look_through(&mut file).map_err(unfit)?;
                let directory = runner.directory.as_str();
                let version = self.version;
                Ok(Some(ActionsRunner { file, path, sha256, version, released, directory, user }))
            }
        }
    }
}

impl ActionsRunner<'_> {
    /// Adds the runner as its user's.
    pub(super) fn unpack(&self, layer: &mut Layer) -> Result<(), ImageError> {
        let owner = self.user.uid;
        let directory = Access { owner, mode: 0o755 };
        for above in directories_between(&self.user.home, self.directory) {
            layer.directory(above, directory)?;
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
                Member::Link(target) => layer.symlink(&inside(path), owner, &target),
                Member::SameAs(other) => layer.hard_link(&inside(path), owner, &inside(&other)),
            };
            added.map_err(Trouble::Layer)
        });
        unpacked.map_err(|trouble| match trouble {
            Trouble::Archive(source) => ImageError::Tarball { path: self.path.clone(), source },
            Trouble::Layer(error) => error,
        })
    }

    /// Lets the runner run the recipe's scripts around each job, where there are any: a hook is a
    /// step of every job's log, so none is named without need.
    pub(super) fn add_job_hooks(
        &self,
        content: &Content,
        layer: &mut Layer,
    ) -> Result<(), ImageError> {
        let mut environment = String::new();
        for (directory, variable, script) in JOB_HOOKS {
            let is_there = |file: &recipe::File| {
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
        // Read by the runner when it starts.
        let path = format!("{}/.env", self.directory);
        let access = Access { owner: self.user.uid, mode: 0o644 };
        layer.file(&path, access, environment.len() as u64, environment.as_bytes())
    }

    /// The program that takes jobs.
    pub(super) fn listener(&self) -> String {
        format!("{}/{LISTENER}", self.directory)
    }

    /// Where it writes its own log.
    pub(super) fn diagnostics(&self) -> String {
        format!("{}/_diag", self.directory)
    }

    /// What the manifest says of it, if it is the version that was wanted. `answer` is what it
    /// says itself.
    pub(super) fn described(self, answer: &[u8]) -> Result<manifest::Runner, ImageError> {
        let said = String::from_utf8_lossy(answer);
        let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        let found: Release = last.parse().map_err(|_| ImageError::RunnerVersion {
            found: last.chars().take(100).collect(),
            expected: "a version".to_owned(),
        })?;
        let expected = match self.version {
            Some(version) if version != found => version.to_string(),
            None if found < Release::OLDEST => format!("{} or later", Release::OLDEST),
            _ => {
                return Ok(manifest::Runner {
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

/// Reads the whole archive, so that what is wrong with it is known before anything long is begun.
/// Returns the time of its newest file.
fn look_through(file: &mut File) -> Result<u64, TarballError> {
    let (mut released, mut listener) = (0, false);
    archive::read::<TarballError>(file.try_clone()?, |path, member| {
        if let Member::File { modified, executable, .. } = member {
            released = released.max(modified);
            listener |= path == LISTENER && executable;
        }
        Ok(())
    })?;
    file.rewind()?;
    if listener { Ok(released) } else { Err(TarballError::Lacks(LISTENER.to_owned())) }
}

/// What can go wrong with each entry.
enum Trouble {
    Archive(TarballError),
    Layer(ImageError),
}

impl From<TarballError> for Trouble {
    fn from(error: TarballError) -> Self {
        Self::Archive(error)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::image::recipe::Setting;

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
    fn what_is_given_comes_before_what_the_recipe_names() {
        let archive = RunnerSource::Archive("given".into());
        let sha256 = format!("runner.sha256={}", hash::of_bytes(b"x"));
        let pinned = recipe(RECIPE, &["runner.version=2.335.1", &sha256]).unwrap();
        let wanted = |recipe: &Recipe, given| wanted(recipe, given).unwrap().unwrap();

        let RunnerSource::Release(download) = wanted(&pinned, None).source else { panic!() };
        assert!(download.url.ends_with("/v2.335.1/actions-runner-linux-x64-2.335.1.tar.gz"));
        let local = wanted(&pinned, Some(&archive));
        assert!(matches!(local.source, RunnerSource::Archive(path) if path == *"given"));
        assert_eq!(local.sha256, Some(hash::of_bytes(b"x")), "the archive must be that one");

        let latest = recipe(RECIPE, &["runner.version=latest"]).unwrap();
        let newest = wanted(&latest, Some(&release("2.340.0")));
        assert_eq!(newest.sha256, Some(hash::of_bytes(b"newest")));
        assert_eq!(newest.version, Some("2.340.0".parse().unwrap()));
    }

    #[test]
    fn a_runner_that_is_not_named_or_not_wanted_is_an_error() {
        let none = recipe(&RECIPE.replace("[runner]", ""), &[]).unwrap();
        assert!(wanted(&none, None).unwrap().is_none());
        let error = wanted(&none, Some(&release("2.335.1"))).unwrap_err();
        assert!(matches!(error, ImageError::RunnerUnwanted { .. }));
        for settings in [&[][..], &["runner.version=latest"]] {
            let error = wanted(&recipe(RECIPE, settings).unwrap(), None).unwrap_err();
            assert!(matches!(error, ImageError::RunnerUnnamed { .. }), "{error}");
        }
        let error = wanted(&recipe(RECIPE, &["runner.version=2.335.1"]).unwrap(), None);
        assert!(error.unwrap_err().to_string().contains("sha256"));
    }

    #[test]
    fn what_can_not_be_is_refused_with_the_recipe() {
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
    fn the_runner_must_be_the_one_that_was_wanted() {
        let recipe = recipe(RECIPE, &[]).unwrap();
        let said = |version: Option<&str>, answer: &str| {
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
            runner.described(answer.as_bytes()).map(|runner| runner.version)
        };
        assert_eq!(said(None, "2.335.1\n").unwrap(), "2.335.1");
        assert_eq!(said(Some("2.335.1"), "noise\n2.335.1\n\n").unwrap(), "2.335.1");
        for (version, answer) in [
            (Some("2.335.0"), "2.335.1"),
            (None, "2.328.0"),
            (None, ""),
            (None, "Segmentation fault"),
        ] {
            let error = said(version, answer).unwrap_err();
            assert!(matches!(error, ImageError::RunnerVersion { .. }), "{error}");
        }
    }
}
