//! What an image should be: the recipe that a person writes, and its checks.
//!
//! Whatever a recipe holds is checked when it is read, by the types of its values: what reaches
//! the build can be an argument of a program or a line of a file without any quoting.
//!
//! A recipe may take [profiles](assemble), parts that several recipes share, and the command line
//! may set keys of it.

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
pub use extras::{Download, Hook, Release, Runner, RunnerVersion};
pub use sysctl::Parameters;
pub use values::{
    AbsolutePath, KernelArgument, Mode, ModuleName, PackageName, Suite, Uri, Url, UserName, Word,
};

use super::docker;
use super::error::ImageError;
use super::hash;
use super::manifest::Manifest;
use super::name::{Digest, ImageName};
use crate::host::size::Size;

/// A recipe's text is refused beyond this, in bytes.
const TEXT_LIMIT: u64 = 1 << 20;

/// A recipe, with where it came from.
#[derive(Debug)]
pub struct Recipe {
    /// What the image is to be called.
    pub name: ImageName,
    /// The release of the distribution, e.g. `trixie`.
    pub suite: Suite,
    /// The length of the root file system.
    pub size: Size,
    /// The kernel's package, or one that depends on it.
    pub kernel: PackageName,
    /// What it says beside that.
    pub content: Content,
    /// All of it as one text without profiles and settings, in JSON.
    pub effective: serde_json::Value,
    /// The digest of its file.
    pub digest: Digest,
    /// The digests of its profiles, by their paths as the recipe has them.
    pub profiles: BTreeMap<String, Digest>,
    /// What was set from outside, in order.
    pub settings: Vec<String>,
    /// The file that it was read from.
    pub path: PathBuf,
}

/// What a recipe, a profile or a setting says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// The parts that it shares with other recipes: files relative to it, the later over the
    /// earlier. A profile can't name any.
    #[serde(default)]
    profiles: Vec<PathBuf>,
    name: Option<ImageName>,
    suite: Option<Suite>,
    /// Where packages come from. Without it: where the machine's own come from if it runs the
    /// same distribution, else what mmdebstrap takes by itself.
    pub mirror: Option<Uri>,
    /// What is installed beside the distribution's essential packages.
    #[serde(default)]
    pub packages: Vec<PackageName>,
    size: Option<Size>,
    /// Bytes of disk for each inode of the root file system.
    pub inodes: Option<Size>,
    /// Kernel parameters that the agent sets before a job starts, beside those of the hardening.
    #[serde(default)]
    pub sysctl: Parameters,
    /// Kernel modules that the guest needs to reach its root file system and its host.
    #[serde(default)]
    pub modules: Vec<ModuleName>,
    /// The kernel.
    #[serde(default)]
    pub kernel: Kernel,
    /// Users that are made.
    #[serde(default)]
    pub users: Vec<User>,
    /// Files that are written.
    #[serde(default)]
    pub files: Vec<File>,
    /// GitHub's runner.
    pub runner: Option<Runner>,
    /// Files that are downloaded by their digest.
    #[serde(default)]
    pub downloads: Vec<Download>,
    /// Scripts that are run in the new system at the end, in order.
    #[serde(default)]
    pub hooks: Vec<Hook>,
    /// Docker's engine, for jobs that use containers.
    #[serde(default)]
    pub docker: bool,
    /// Programs that the agent starts when somebody connects to their socket.
    #[serde(default)]
    pub services: Vec<Service>,
    /// What is kept from a job.
    #[serde(default)]
    pub hardening: Hardening,
    /// Seconds since 1970 that stand for "now" in everything that is made. Without it:
    /// `SOURCE_DATE_EPOCH`, else the date of the newest package list.
    pub source_date_epoch: Option<u64>,
}

/// What is kept from a job: every control that fits the image, but for those that are named here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardening {
    /// Users of the recipe may become root by `sudo`, without a password.
    #[serde(default)]
    pub sudo: bool,
    /// The names of controls that are switched off.
    #[serde(default)]
    pub off: Vec<String>,
}

/// The kernel that an image boots.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    package: Option<PackageName>,
    /// Arguments beside those that the machine gives.
    #[serde(default)]
    pub arguments: Vec<KernelArgument>,
    /// Modules for the job, which the agent loads before it begins. They and what they need are
    /// put into the root file system.
    #[serde(default)]
    pub guest_modules: Vec<ModuleName>,
}

/// A user of the guest. Its group has the same name and number.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The login name.
    pub name: UserName,
    /// The number, not 0.
    pub uid: u32,
    /// The home directory, which is made.
    pub home: AbsolutePath,
    /// Other groups, which must be there.
    #[serde(default)]
    pub groups: Vec<UserName>,
    /// The login shell.
    pub shell: AbsolutePath,
}

/// A file of the guest.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Where it is written; directories above it are made.
    pub path: AbsolutePath,
    /// Its permissions, in octal.
    #[serde(default)]
    pub mode: Mode,
    /// The user that owns it: root, or one of the recipe's.
    pub owner: Option<UserName>,
    /// What is in it.
    pub content: Option<String>,
    /// Or the file to copy, relative to the recipe.
    pub source: Option<PathBuf>,
}

impl Recipe {
    /// Reads a recipe and its profiles, applies `settings` and checks all of it.
    ///
    /// # Errors
    ///
    /// Says which file, line, key and value is wrong and why.
    pub fn load(path: &Path, settings: &[Setting]) -> Result<Self, ImageError> {
        let text = read(path)?;
        parse::<Content>(&text, path)?;
        let mut own: Table = parse(&text, path)?;
        let (of_profiles, others): (Vec<_>, Vec<_>) =
            settings.iter().partition(|setting| setting.begins_with("profiles"));
        apply(&of_profiles, &mut own)?;

        let mut merged = Table::new();
        let mut profiles = BTreeMap::new();
        for name in named_profiles(&own, path)? {
            let (digest, profile) = load_profile(path, &name)?;
            profiles.insert(name.to_string_lossy().into_owned(), digest);
            assemble::merge(&mut merged, profile);
        }
        own.remove("profiles");
        assemble::merge(&mut merged, own);
        apply(&others, &mut merged)?;

        let mut recipe = Self::from_table(merged, path)?;
        recipe.digest = hash::of_bytes(text.as_bytes());
        recipe.profiles = profiles;
        recipe.settings = settings.iter().map(Setting::to_string).collect();
        Ok(recipe)
    }

    /// The recipe that an image was built from, as its manifest has it. What that took from beside
    /// it is looked for in the current directory.
    ///
    /// # Errors
    ///
    /// The manifest's is none of this Mayfly.
    pub fn of_manifest(manifest: &Manifest) -> Result<Self, ImageError> {
        let path = Path::new("manifest.json");
        let inputs = &manifest.inputs;
        let table = Table::try_from(&inputs.effective).map_err(|source| {
            ImageError::RecipeOfManifest { image: manifest.name.clone(), source }
        })?;
        let recipe = Self::from_table(table, path)?;
        let (profiles, settings) = (inputs.profiles.clone(), inputs.settings.clone());
        Ok(Self { digest: inputs.recipe.clone(), profiles, settings, ..recipe })
    }

    /// A recipe without profiles; `path` is for messages and for what is relative to it.
    fn from_table(table: Table, path: &Path) -> Result<Self, ImageError> {
        let effective = serde_json::to_value(&table)
            .map_err(|source| ImageError::Manifest { path: path.to_owned(), source })?;
        let mut content: Content = content_of(table, path)?;
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
        recipe.check().map_err(|Contradiction { key, value, problem }| {
            ImageError::RecipeValue { path: path.to_owned(), key, value, problem }
        })?;
        Ok(recipe)
    }

    /// The path of a file that the recipe names relative to itself.
    pub(super) fn beside(&self, relative: &Path) -> PathBuf {
        beside(&self.path, relative)
    }
}

fn beside(path: &Path, relative: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new(".")).join(relative)
}

fn read(path: &Path) -> Result<String, ImageError> {
    let unreadable = |source| ImageError::RecipeUnreadable { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(unreadable)?.len();
    if length > TEXT_LIMIT {
        return Err(unreadable(std::io::Error::other("it is larger than 1 MiB")));
    }
    fs::read_to_string(path).map_err(unreadable)
}

fn parse<T: serde::de::DeserializeOwned>(text: &str, path: &Path) -> Result<T, ImageError> {
    toml::from_str(text).map_err(|source| invalid(path, source))
}

fn content_of(table: Table, path: &Path) -> Result<Content, ImageError> {
    table.try_into().map_err(|source| invalid(path, source))
}

fn invalid(path: &Path, source: toml::de::Error) -> ImageError {
    ImageError::RecipeInvalid { path: path.to_owned(), source: Box::new(source) }
}

/// Each setting is checked by itself, so that a message can name it.
fn apply(settings: &[&Setting], recipe: &mut Table) -> Result<(), ImageError> {
    for setting in settings {
        let checked: Result<Content, _> = setting.alone().try_into();
        checked.map_err(|source| ImageError::SettingInvalid {
            setting: setting.to_string(),
            source: Box::new(source),
        })?;
        setting.apply(recipe);
    }
    Ok(())
}

fn named_profiles(recipe: &Table, path: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let profiles = recipe.get("profiles").cloned().unwrap_or(toml::Value::Array(Vec::new()));
    profiles.try_into().map_err(|source| invalid(path, source))
}

/// A profile of the recipe at `path`, with its digest.
fn load_profile(path: &Path, name: &Path) -> Result<(Digest, Table), ImageError> {
    let file = beside(path, name);
    let text = read(&file)?;
    let content: Content = parse(&text, &file)?;
    if let Some(nested) = content.profiles.first() {
        return Err(ImageError::RecipeValue {
            path: file,
            key: "profiles",
            value: nested.display().to_string(),
            problem: "a profile can't take profiles; name both in the recipe",
        });
    }
    let mut profile: Table = parse(&text, &file)?;
    assemble::rebase(&mut profile, name.parent().unwrap_or(Path::new("")));
    Ok((hash::of_bytes(text.as_bytes()), profile))
}

impl Content {
    /// A user of the recipe by its name; none for root, which is not one of them.
    pub(super) fn user(&self, name: Option<&UserName>) -> Option<&User> {
        self.users.iter().find(|user| Some(&user.name) == name)
    }
}

#[cfg(test)]
mod tests;
