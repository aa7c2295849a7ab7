//! Recipes: the TOML files that images are built from, and their validation.
//!
//! Each value is validated by its type when the recipe is read, so the build can use it as a
//! program argument or a line of a file without quoting.
//!
//! A recipe can include [profiles](assemble), which several recipes share. The command line can set
//! keys.

mod assemble;
mod check;
mod extras;
mod sysctl;
mod values;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mayfly_protocol::settings::Service;
use serde::Deserialize;
use toml::Table;

pub use assemble::Setting;
use check::Contradiction;
pub use extras::{DownloadSpec, HookSpec, Release, RunnerSpec, RunnerVersion};
pub use sysctl::KernelParameters;
pub use values::{
    AbsolutePath, FileMode, KernelArgument, ModuleName, NameOrVersion, PackageName, Suite, Uri,
    Url, UserName,
};

use super::docker;
use super::error::ImageError;
use super::hash;
use super::manifest::Manifest;
use super::name::{Digest, ImageName};
use mayfly_host::size::Size;

/// The largest recipe, in bytes.
const TEXT_LIMIT: u64 = 1 << 20;

/// A validated recipe and its origin.
#[derive(Debug)]
pub struct Recipe {
    /// The image's name.
    pub name: ImageName,
    /// The release of the distribution, e.g. `trixie`.
    pub suite: Suite,
    /// The size of the root file system.
    pub size: Size,
    /// The kernel's package, or one that depends on it.
    pub kernel: PackageName,
    /// The rest of its content.
    pub content: RecipeContent,
    /// The recipe merged with its profiles and settings, as JSON.
    pub effective: serde_json::Value,
    /// The digest of its file.
    pub digest: Digest,
    /// The digests of its profiles, by path as written in the recipe.
    pub profiles: BTreeMap<String, Digest>,
    /// The settings from the command line, in order.
    pub settings: Vec<String>,
    /// The file that it was read from.
    pub path: PathBuf,
}

/// The content of a recipe, a profile or a setting.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeContent {
    /// The profiles to include: files relative to the recipe; later ones override earlier ones. A
    /// profile can't include profiles.
    #[serde(default)]
    profiles: Vec<PathBuf>,
    name: Option<ImageName>,
    suite: Option<Suite>,
    /// The package mirror. Default: the mirror of this machine if it runs the same distribution,
    /// else mmdebstrap's default.
    pub mirror: Option<Uri>,
    /// The packages to install, in addition to the distribution's essential ones.
    #[serde(default)]
    pub packages: Vec<PackageName>,
    size: Option<Size>,
    /// Bytes of disk for each inode of the root file system.
    pub inodes: Option<Size>,
    /// Kernel parameters that the agent sets before a job starts, in addition to those of the
    /// hardening.
    #[serde(default)]
    pub sysctl: KernelParameters,
    /// Kernel modules that the guest needs for its root file system and its channel to the host.
    #[serde(default)]
    pub modules: Vec<ModuleName>,
    /// The kernel.
    #[serde(default)]
    pub kernel: KernelSpec,
    /// The users to create.
    #[serde(default)]
    pub users: Vec<UserSpec>,
    /// The files to write.
    #[serde(default)]
    pub files: Vec<FileSpec>,
    /// GitHub's runner.
    pub runner: Option<RunnerSpec>,
    /// Files to download, pinned by digest.
    #[serde(default)]
    pub downloads: Vec<DownloadSpec>,
    /// Scripts to run in the new system at the end, in order.
    #[serde(default)]
    pub hooks: Vec<HookSpec>,
    /// Whether to install Docker's engine, for jobs that use containers.
    #[serde(default)]
    pub docker: bool,
    /// Programs that the agent starts when a client connects to their socket.
    #[serde(default)]
    pub services: Vec<Service>,
    /// The hardening.
    #[serde(default)]
    pub hardening: HardeningSpec,
    /// The timestamp of everything in the image, in seconds since 1970. Default:
    /// `SOURCE_DATE_EPOCH`, else the date of the newest package list.
    pub source_date_epoch: Option<u64>,
}

/// The hardening: every control that fits the image, except those listed here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HardeningSpec {
    /// Whether users of the recipe may become root with `sudo`, without a password.
    #[serde(default)]
    pub sudo: bool,
    /// The names of controls to disable.
    #[serde(default)]
    pub off: Vec<String>,
}

/// The kernel that an image boots.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelSpec {
    package: Option<PackageName>,
    /// Arguments in addition to those of the machine.
    #[serde(default)]
    pub arguments: Vec<KernelArgument>,
    /// Modules for the job, which the agent loads before it starts. They and their dependencies are
    /// installed in the root file system.
    #[serde(default)]
    pub guest_modules: Vec<ModuleName>,
}

/// A user of the guest. Its group has the same name and number.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserSpec {
    /// The login name.
    pub name: UserName,
    /// The user id, not 0.
    pub uid: u32,
    /// The home directory, which is created.
    pub home: AbsolutePath,
    /// Additional groups, which must exist.
    #[serde(default)]
    pub groups: Vec<UserName>,
    /// The login shell.
    pub shell: AbsolutePath,
}

/// A file of the guest.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Its path; missing parent directories are created.
    pub path: AbsolutePath,
    /// Its permissions, in octal.
    #[serde(default)]
    pub mode: FileMode,
    /// The owner: root, or one of the recipe's users.
    pub owner: Option<UserName>,
    /// The content.
    pub content: Option<String>,
    /// Or the file to copy, relative to the recipe.
    pub source: Option<PathBuf>,
}

impl Recipe {
    /// Reads a recipe and its profiles, applies `settings` and validates the result.
    ///
    /// # Errors
    ///
    /// Reports the invalid file, line, key and value, and the reason.
    pub fn load(path: &Path, settings: &[Setting]) -> Result<Self, ImageError> {
        let text = read(path)?;
        parse::<RecipeContent>(&text, path)?;
        let mut own: Table = parse(&text, path)?;
        let (profile_settings, other_settings): (Vec<_>, Vec<_>) =
            settings.iter().partition(|setting| setting.begins_with("profiles"));
        apply(&profile_settings, &mut own)?;

        let mut merged = Table::new();
        let mut profiles = BTreeMap::new();
        for name in profile_paths(&own, path)? {
            let (digest, profile) = load_profile(path, &name)?;
            profiles.insert(name.to_string_lossy().into_owned(), digest);
            assemble::merge(&mut merged, profile);
        }
        own.remove("profiles");
        assemble::merge(&mut merged, own);
        apply(&other_settings, &mut merged)?;

        let mut recipe = Self::from_table(merged, path)?;
        recipe.digest = hash::of_bytes(text.as_bytes());
        recipe.profiles = profiles;
        recipe.settings = settings.iter().map(Setting::to_string).collect();
        Ok(recipe)
    }

    /// Returns the recipe that an image was built from, as recorded in its manifest. Files that it
    /// refers to are looked up in the current directory.
    ///
    /// # Errors
    ///
    /// The recorded recipe is not valid for this Mayfly.
    pub fn of_manifest(manifest: &Manifest) -> Result<Self, ImageError> {
        let path = Path::new("manifest.json");
        let inputs = &manifest.inputs;
        let table = Table::try_from(&inputs.effective).map_err(|source| {
            ImageError::ManifestRecipe { image: manifest.name.clone(), source }
        })?;
        let recipe = Self::from_table(table, path)?;
        let (profiles, settings) = (inputs.profiles.clone(), inputs.settings.clone());
        Ok(Self { digest: inputs.recipe.clone(), profiles, settings, ..recipe })
    }

    /// Validates a merged recipe; `path` is used for messages and relative paths.
    fn from_table(table: Table, path: &Path) -> Result<Self, ImageError> {
        let effective = serde_json::to_value(&table)
            .map_err(|source| ImageError::Manifest { path: path.to_owned(), source })?;
        let mut content: RecipeContent = into_content(table, path)?;
        docker::expand(&mut content).map_err(|source| invalid(path, source))?;
        let missing = |key| ImageError::RecipeIncomplete { path: path.to_owned(), key };
        let recipe = Self {
            name: content.name.clone().ok_or_else(|| missing("name"))?,
            suite: content.suite.clone().ok_or_else(|| missing("suite"))?,
            size: content.size.ok_or_else(|| missing("size"))?,
            kernel: content.kernel.package.clone().ok_or_else(|| missing("kernel.package"))?,
            digest: hash::of_bytes(effective.to_string().as_bytes()),
            effective,
            profiles: BTreeMap::new(),
            settings: Vec::new(),
            path: path.to_owned(),
            content,
        };
        recipe.check().map_err(|Contradiction { key, value, reason }| ImageError::RecipeValue {
            path: path.to_owned(),
            key,
            value,
            reason,
        })?;
        Ok(recipe)
    }

    /// Resolves a path that the recipe names relative to itself.
    pub(super) fn resolve(&self, relative: &Path) -> PathBuf {
        resolve(&self.path, relative)
    }
}

fn resolve(path: &Path, relative: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new(".")).join(relative)
}

fn read(path: &Path) -> Result<String, ImageError> {
    let unreadable = |source| ImageError::RecipeUnreadable { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(unreadable)?.len();
    if length > TEXT_LIMIT {
        return Err(unreadable(std::io::Error::other("the recipe is larger than 1 MiB")));
    }
    fs::read_to_string(path).map_err(unreadable)
}

fn parse<T: serde::de::DeserializeOwned>(text: &str, path: &Path) -> Result<T, ImageError> {
    toml::from_str(text).map_err(|source| invalid(path, source))
}

fn into_content(table: Table, path: &Path) -> Result<RecipeContent, ImageError> {
    table.try_into().map_err(|source| invalid(path, source))
}

fn invalid(path: &Path, source: toml::de::Error) -> ImageError {
    ImageError::RecipeInvalid { path: path.to_owned(), source: Box::new(source) }
}

/// Applies settings. Each is validated on its own, so that an error can name it.
fn apply(settings: &[&Setting], recipe: &mut Table) -> Result<(), ImageError> {
    for setting in settings {
        let checked: Result<RecipeContent, _> = setting.alone().try_into();
        checked.map_err(|source| ImageError::SettingInvalid {
            setting: setting.to_string(),
            source: Box::new(source),
        })?;
        setting.apply(recipe);
    }
    Ok(())
}

fn profile_paths(recipe: &Table, path: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let profiles = recipe.get("profiles").cloned().unwrap_or(toml::Value::Array(Vec::new()));
    profiles.try_into().map_err(|source| invalid(path, source))
}

/// Loads a profile of the recipe at `path`, with its digest.
fn load_profile(path: &Path, name: &Path) -> Result<(Digest, Table), ImageError> {
    let file = resolve(path, name);
    let text = read(&file)?;
    let content: RecipeContent = parse(&text, &file)?;
    if let Some(nested) = content.profiles.first() {
        return Err(ImageError::RecipeValue {
            path: file,
            key: "profiles",
            value: nested.display().to_string(),
            reason: "a profile can't include profiles; list both in the recipe",
        });
    }
    let mut profile: Table = parse(&text, &file)?;
    assemble::rebase(&mut profile, name.parent().unwrap_or(Path::new("")));
    Ok((hash::of_bytes(text.as_bytes()), profile))
}

impl RecipeContent {
    /// Finds a user of the recipe by name; `None` for root.
    pub(super) fn user(&self, name: Option<&UserName>) -> Option<&UserSpec> {
        self.users.iter().find(|user| Some(&user.name) == name)
    }
}

#[cfg(test)]
mod tests;
