//! GitHub's runner in an image: where it comes from, how it is unpacked, and whether it runs.

use std::fs::File;
use std::io::Seek;
use std::path::PathBuf;

use secrecy::SecretString;

use super::archive::{self, TarballError, Member};
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
    directory: &'c str,
    pub(super) user: &'c User,
}

impl Wanted {
    /// The archive at `path`, if it has the digest that it must have.
    pub(super) fn open<'c>(
        self,
        path: PathBuf,
        content: &'c Content,
    ) -> Result<Option<ActionsRunner<'c>>, ImageError> {
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
                let directory = runner.directory.as_str();
                Ok(Some(ActionsRunner {
                    file,
                    path,
                    sha256,
                    version: self.version,
                    directory,
                    user,
                }))
            }
        }
    }
}

impl ActionsRunner<'_> {
    /// Adds the runner as its user's. Returns when it was made, as its newest file tells.
    pub(super) fn unpack(&self, layer: &mut Layer) -> Result<u64, ImageError> {
        let owner = self.user.uid;
        let directory = Access { owner, mode: 0o755 };
        for above in directories_between(&self.user.home, self.directory) {
            layer.directory(above, directory)?;
        }
        layer.directory(self.directory, directory)?;
        let (mut released, mut listener) = (0, false);
        let file = self.file.try_clone().map_err(ImageError::read(&self.path))?;
        archive::read(file, |path, member| {
            let inside = |path: &str| format!("{}/{path}", self.directory);
            match member {
                Member::Directory => layer.directory(&inside(path), directory),
                Member::File { bytes, modified, executable, content } => {
                    released = released.max(modified);
                    listener |= path == LISTENER && executable;
                    let mode = if executable { 0o755 } else { 0o644 };
                    layer.file(&inside(path), Access { owner, mode }, bytes, content)
                }
                Member::Link(target) => layer.symlink(&inside(path), owner, &target),
                Member::SameAs(other) => layer.hard_link(&inside(path), owner, &inside(&other)),
            }
            .map_err(Trouble::Layer)
        })
        .map_err(|trouble| match trouble {
            Trouble::Archive(source) => self.unfit(source),
            Trouble::Layer(error) => error,
        })?;
        if listener {
            Ok(released)
        } else {
            Err(self.unfit(TarballError::Lacks(LISTENER.to_owned())))
        }
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
    pub(super) fn described(
        self,
        answer: &[u8],
        released: u64,
    ) -> Result<manifest::Runner, ImageError> {
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
                    released,
                    directory: self.directory.to_owned(),
                });
            }
        };
        Err(ImageError::RunnerVersion { found: found.to_string(), expected })
    }

    fn unfit(&self, source: TarballError) -> ImageError {
        ImageError::Tarball { path: self.path.clone(), source }
    }
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
