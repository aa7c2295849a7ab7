//! Validates the values of a recipe against each other. Each value alone was validated by its type
//! when the recipe was read.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::{Recipe, RecipeContent, Release, RunnerVersion, UserName};
use crate::hardening;
use mayfly_host::size::Size;

/// The smallest root file system. Even an empty Debian needs more than half of it.
const SMALLEST: Size = Size(256 << 20);

/// The allowed bytes of disk for each inode: from one block to the maximum of `mke2fs`.
const INODES: RangeInclusive<Size> = Size(4 << 10)..=Size(4 << 20);

/// A value that contradicts another one.
pub(super) struct Contradiction {
    pub(super) key: &'static str,
    pub(super) value: String,
    pub(super) reason: &'static str,
}

fn reject(
    key: &'static str,
    value: &dyn ToString,
    reason: &'static str,
) -> Result<(), Contradiction> {
    Err(Contradiction { key, value: value.to_string(), reason })
}

impl Recipe {
    pub(super) fn check(&self) -> Result<(), Contradiction> {
        if self.size < SMALLEST {
            return reject("size", &self.size, "a root file system needs at least 256M");
        }
        if !self.size.0.is_multiple_of(4096) {
            return reject("size", &self.size.0, "must be a multiple of 4K");
        }
        if let Some(inodes) = self.content.inodes
            && !INODES.contains(&inodes)
        {
            let reason = "must be between 4K and 4M of disk for each inode";
            return reject("inodes", &inodes, reason);
        }
        self.content.check_sysctl()?;
        self.content.check_users()?;
        self.content.check_files()?;
        self.content.check_hooks()?;
        self.content.check_runner()
    }
}

impl RecipeContent {
    /// Rejects parameters that a hardening control sets. To set another value, the recipe must
    /// disable the control, which the image's audit then shows.
    fn check_sysctl(&self) -> Result<(), Contradiction> {
        let all = hardening::plan(self).settings.parameters;
        let is_taken = |path: &str| all.iter().filter(|(name, _)| name == path).count() > 1;
        let conflict = self.sysctl.iter().find(|(path, _)| is_taken(path));
        match conflict {
            None => Ok(()),
            Some((path, _)) => reject(
                "sysctl",
                &path.replace('/', "."),
                "a hardening control sets it; list that control in `hardening.off` first \
                 (docs/reference/hardening.md)",
            ),
        }
    }

    fn check_users(&self) -> Result<(), Contradiction> {
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for user in &self.users {
            if user.uid == 0 {
                return reject("users.uid", &user.uid, "0 is reserved for root");
            }
            if !numbers.insert(user.uid) {
                return reject("users.uid", &user.uid, "another user has the same uid");
            }
            if !names.insert(&user.name) {
                return reject("users.name", &user.name, "another user has the same name");
            }
        }
        Ok(())
    }

    fn check_files(&self) -> Result<(), Contradiction> {
        let mut paths = BTreeSet::new();
        for file in &self.files {
            if !paths.insert(&file.path) {
                return reject("files.path", &file.path, "another file has the same path");
            }
            if file.content.is_some() == file.source.is_some() {
                let reason = "needs either `content` or `source`";
                return reject("files.path", &file.path, reason);
            }
            self.check_user("files.owner", file.owner.as_ref())?;
        }
        for download in &self.downloads {
            if !paths.insert(&download.path) {
                return reject("downloads.path", &download.path, "another file has the same path");
            }
        }
        for name in &self.hardening.off {
            if hardening::find(name).is_none() {
                let reason = "unknown control (see docs/reference/hardening.md)";
                return reject("hardening.off", name, reason);
            }
        }
        Ok(())
    }

    fn check_hooks(&self) -> Result<(), Contradiction> {
        for hook in &self.hooks {
            if hook.content.is_some() == hook.source.is_some() {
                let source = hook.source.clone().unwrap_or_default();
                let reason = "needs either `content` or `source`";
                return reject("hooks.source", &source.display(), reason);
            }
            self.check_user("hooks.user", hook.user.as_ref())?;
        }
        Ok(())
    }

    fn check_runner(&self) -> Result<(), Contradiction> {
        let Some(runner) = &self.runner else { return Ok(()) };
        let Some(user) = self.user(Some(&runner.user)) else {
            return reject("runner.user", &runner.user, "not one of `users`");
        };
        // The runner writes into its own directory.
        if !runner.directory.is_below(&user.home) {
            return reject("runner.directory", &runner.directory, "must be below its user's home");
        }
        match runner.version {
            Some(RunnerVersion::Release(release)) if release < Release::OLDEST => {
                reject("runner.version", &release, "too old: GitHub rejects its registration")
            }
            Some(RunnerVersion::Latest) if runner.sha256.is_some() => {
                reject("runner.version", &"latest", "can't be combined with `sha256`")
            }
            Some(RunnerVersion::Latest) if runner.archive.is_some() => {
                reject("runner.version", &"latest", "can't be combined with `archive`")
            }
            _ => Ok(()),
        }
    }

    /// Checks that a user is root or one of the recipe's users.
    fn check_user(&self, key: &'static str, name: Option<&UserName>) -> Result<(), Contradiction> {
        match name {
            Some(name) if name.as_str() != "root" && self.user(Some(name)).is_none() => {
                reject(key, name, "neither root nor one of `users`")
            }
            _ => Ok(()),
        }
    }
}
