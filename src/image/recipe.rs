//! What an image should be: the recipe that a person writes, and its checks.
//!
//! Whatever a recipe holds is checked when it is read, by the types of its values: what reaches
//! the build can be an argument of a program or a line of a file without any quoting.

mod values;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use values::{
    AbsolutePath, KernelArgument, Mode, ModuleName, PackageName, Suite, Uri, UserName,
};

use super::error::ImageError;
use super::hash;
use super::name::{Digest, ImageName};
use crate::host::size::Size;

/// A recipe's text is refused beyond this, in bytes.
const TEXT_LIMIT: u64 = 1 << 20;

/// The smallest file system that is worth making: even an empty Debian needs more than half.
const SMALLEST: Size = Size(256 << 20);

/// A recipe, with where it came from.
#[derive(Debug)]
pub struct Recipe {
    /// What it says.
    pub content: Content,
    /// The digest of its text.
    pub digest: Digest,
    /// The file that it was read from.
    pub path: PathBuf,
}

/// What a recipe says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// What the image is to be called.
    pub name: ImageName,
    /// The release of the distribution, e.g. `trixie`.
    pub suite: Suite,
    /// Where packages come from. Without it: where the machine's own come from if it runs the
    /// same distribution, else what mmdebstrap takes by itself.
    pub mirror: Option<Uri>,
    /// What is installed beside the distribution's essential packages.
    #[serde(default)]
    pub packages: Vec<PackageName>,
    /// The length of the root file system.
    pub size: Size,
    /// Kernel modules that the guest needs to reach its root file system and its host.
    #[serde(default)]
    pub modules: Vec<ModuleName>,
    /// The kernel.
    pub kernel: Kernel,
    /// Users that are made.
    #[serde(default)]
    pub users: Vec<User>,
    /// Files that are written.
    #[serde(default)]
    pub files: Vec<File>,
    /// What is kept from a job.
    #[serde(default)]
    pub hardening: Hardening,
    /// Seconds since 1970 that stand for "now" in everything that is made. Without it:
    /// `SOURCE_DATE_EPOCH`, else the date of the newest package list.
    pub source_date_epoch: Option<u64>,
}

/// What is kept from a job: every control that fits the image, but for those that are named here.
#[derive(Debug, Default, Deserialize)]
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
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Its package, or one that depends on it.
    pub package: PackageName,
    /// Arguments beside those that the machine gives.
    #[serde(default)]
    pub arguments: Vec<KernelArgument>,
}

/// A user of the guest. Its group has the same name and number.
#[derive(Debug, Deserialize)]
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
#[derive(Debug, Deserialize)]
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
    /// Reads and checks a recipe.
    ///
    /// # Errors
    ///
    /// Says which line, key and value is wrong and why.
    pub fn load(path: &Path) -> Result<Self, ImageError> {
        let unreadable = |source| ImageError::RecipeUnreadable { path: path.to_owned(), source };
        let length = fs::metadata(path).map_err(unreadable)?.len();
        if length > TEXT_LIMIT {
            return Err(unreadable(std::io::Error::other("it is larger than 1 MiB")));
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text, path)
    }

    /// A recipe from its text; `path` is for messages and for what is relative to it.
    fn parse(text: &str, path: &Path) -> Result<Self, ImageError> {
        let content: Content = toml::from_str(text).map_err(|source| {
            ImageError::RecipeInvalid { path: path.to_owned(), source: Box::new(source) }
        })?;
        content.check().map_err(|Contradiction { key, value, problem }| {
            ImageError::RecipeValue { path: path.to_owned(), key, value, problem }
        })?;
        Ok(Self { content, digest: hash::of_bytes(text.as_bytes()), path: path.to_owned() })
    }

    /// The path of a file that the recipe names relative to itself.
    pub(super) fn beside(&self, relative: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new(".")).join(relative)
    }
}

/// A value that does not go with the others.
struct Contradiction {
    key: &'static str,
    value: String,
    problem: &'static str,
}

impl Content {
    fn check(&self) -> Result<(), Contradiction> {
        let wrong = |key, value: &dyn ToString, problem| {
            Err(Contradiction { key, value: value.to_string(), problem })
        };
        if self.size < SMALLEST {
            return wrong("size", &self.size, "a root file system needs at least 256M");
        }
        if !self.size.0.is_multiple_of(4096) {
            return wrong("size", &self.size.0, "it must be a multiple of 4K");
        }
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for user in &self.users {
            if user.uid == 0 {
                return wrong("users.uid", &user.uid, "0 is root's");
            }
            if !numbers.insert(user.uid) {
                return wrong("users.uid", &user.uid, "another user has it");
            }
            if !names.insert(&user.name) {
                return wrong("users.name", &user.name, "another user has it");
            }
        }
        let mut paths = BTreeSet::new();
        for file in &self.files {
            if !paths.insert(&file.path) {
                return wrong("files.path", &file.path, "another file has it");
            }
            if file.content.is_some() == file.source.is_some() {
                let problem = "it needs either `content` or `source`";
                return wrong("files.path", &file.path, problem);
            }
            if let Some(owner) = &file.owner
                && self.uid_of(owner).is_none()
            {
                return wrong("files.owner", owner, "it is neither root nor one of `users`");
            }
        }
        Ok(())
    }

    /// The number of root or of a user of the recipe.
    pub(super) fn uid_of(&self, name: &UserName) -> Option<u32> {
        if name.as_str() == "root" {
            return Some(0);
        }
        self.users.iter().find(|user| user.name == *name).map(|user| user.uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::chain;

    const SMALL: &str = r#"
        name = "small"
        suite = "trixie"
        size = "512M"
        [kernel]
        package = "linux-image-cloud-amd64"
    "#;

    fn parse(text: &str) -> Result<Recipe, ImageError> {
        Recipe::parse(text, Path::new("recipes/small.toml"))
    }

    fn refusal(addition: &str) -> String {
        chain(&parse(&format!("{SMALL}\n{addition}")).unwrap_err())
    }

    #[test]
    fn what_is_not_said_is_empty() {
        let recipe = parse(SMALL).unwrap();
        assert!(recipe.content.packages.is_empty() && recipe.content.mirror.is_none());
        assert_eq!(recipe.beside(Path::new("a")), Path::new("recipes/a"));
    }

    #[test]
    fn the_recipes_of_the_project_are_right() {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
        let recipe = Recipe::load(&images.join("base/image.toml")).unwrap();
        assert_eq!(recipe.content.name.as_str(), "base");
    }

    #[test]
    fn an_unknown_key_is_named_with_file_and_line() {
        let message = refusal("argument = []");
        assert!(message.contains("recipes/small.toml"), "{message}");
        assert!(message.contains("line 8") && message.contains("`argument`"), "{message}");
    }

    #[test]
    fn a_wrong_value_is_shown_with_its_line() {
        let message = chain(&parse(&SMALL.replace("512M", "big")).unwrap_err());
        assert!(message.contains("line 4") && message.contains("\"big\""), "{message}");
    }

    #[test]
    fn contradictions_name_key_and_value() {
        let user = "[[users]]\nname='a'\nuid=7\nhome='/home/a'\nshell='/bin/sh'\n";
        let file = "[[files]]\npath='/etc/x'\n";
        for (addition, key, value) in [
            (user.replace('7', "0"), "users.uid", "0"),
            (format!("{user}{}", user.replace("'a'", "'b'")), "users.uid", "7"),
            (format!("{user}{}", user.replace('7', "8")), "users.name", "a"),
            (file.to_owned(), "files.path", "/etc/x"),
            (format!("{file}content=''\nsource='y'"), "files.path", "/etc/x"),
            (format!("{file}content=''\n{file}content=''"), "files.path", "/etc/x"),
            (format!("{file}content=''\nowner='b'"), "files.owner", "b"),
        ] {
            let message = refusal(&addition);
            assert!(message.contains(&format!("{key} = {value:?}")), "{message}");
        }
        let message = chain(&parse(&SMALL.replace("512M", "1M")).unwrap_err());
        assert!(message.contains("size = \"1 MiB\""), "{message}");
    }
}
