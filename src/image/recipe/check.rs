//! Whether the values of a recipe go together. Each by itself was checked by its type when it was
//! read.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::{Content, Recipe, Release, RunnerVersion, UserName};
use crate::host::size::Size;
use crate::image::hardening;

/// The smallest file system that is worth making: even an empty Debian needs more than half.
const SMALLEST: Size = Size(256 << 20);

/// How much disk an inode may stand for: a block, and the most that `mke2fs` takes.
const INODES: RangeInclusive<Size> = Size(4 << 10)..=Size(4 << 20);

/// A value that does not go with the others.
pub(super) struct Contradiction {
    pub(super) key: &'static str,
    pub(super) value: String,
    pub(super) problem: &'static str,
}

fn wrong(
    key: &'static str,
    value: &dyn ToString,
    problem: &'static str,
) -> Result<(), Contradiction> {
    Err(Contradiction { key, value: value.to_string(), problem })
}

impl Recipe {
    pub(super) fn check(&self) -> Result<(), Contradiction> {
        if self.size < SMALLEST {
            return wrong("size", &self.size, "a root file system needs at least 256M");
        }
        if !self.size.0.is_multiple_of(4096) {
            return wrong("size", &self.size.0, "it must be a multiple of 4K");
        }
        if let Some(inodes) = self.content.inodes
            && !INODES.contains(&inodes)
        {
            let problem = "an inode stands for 4K of disk at the least, and for 4M at the most";
            return wrong("inodes", &inodes, problem);
        }
        self.content.check_sysctl()?;
        self.content.check_users()?;
        self.content.check_files()?;
        self.content.check_hooks()?;
        self.content.check_runner()
    }
}

impl Content {
    /// A parameter that hardening sets has one owner: who wants another value switches that control
    /// off, and sees it in the image's audit.
    fn check_sysctl(&self) -> Result<(), Contradiction> {
        let all = hardening::plan(self).settings.parameters;
        let is_taken = |path: &str| all.iter().filter(|(name, _)| name == path).count() > 1;
        let both = self.sysctl.iter().find(|(path, _)| is_taken(path));
        match both {
            None => Ok(()),
            Some((path, _)) => wrong(
                "sysctl",
                &path.replace('/', "."),
                "a hardening control sets it; name that control in `hardening.off` first \
                 (docs/reference/hardening.md)",
            ),
        }
    }

    fn check_users(&self) -> Result<(), Contradiction> {
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
        Ok(())
    }

    fn check_files(&self) -> Result<(), Contradiction> {
        let mut paths = BTreeSet::new();
        for file in &self.files {
            if !paths.insert(&file.path) {
                return wrong("files.path", &file.path, "another file has it");
            }
            if file.content.is_some() == file.source.is_some() {
                let problem = "it needs either `content` or `source`";
                return wrong("files.path", &file.path, problem);
            }
            self.check_user("files.owner", file.owner.as_ref())?;
        }
        for download in &self.downloads {
            if !paths.insert(&download.path) {
                return wrong("downloads.path", &download.path, "another file has it");
            }
        }
        for name in &self.hardening.off {
            if hardening::find(name).is_none() {
                let problem = "there is no such control (see docs/reference/hardening.md)";
                return wrong("hardening.off", name, problem);
            }
        }
        Ok(())
    }

    fn check_hooks(&self) -> Result<(), Contradiction> {
        for hook in &self.hooks {
            if hook.content.is_some() == hook.source.is_some() {
                let source = hook.source.clone().unwrap_or_default();
                let problem = "it needs either `content` or `source`";
                return wrong("hooks.source", &source.display(), problem);
            }
            self.check_user("hooks.user", hook.user.as_ref())?;
        }
        Ok(())
    }

    fn check_runner(&self) -> Result<(), Contradiction> {
        let Some(runner) = &self.runner else { return Ok(()) };
        let Some(user) = self.user(Some(&runner.user)) else {
            return wrong("runner.user", &runner.user, "it is none of `users`");
        };
        // The runner writes beside its programs.
        if !runner.directory.is_below(&user.home) {
            return wrong("runner.directory", &runner.directory, "it is not below its user's home");
        }
        match runner.version {
            Some(RunnerVersion::Release(release)) if release < Release::OLDEST => {
                wrong("runner.version", &release, "GitHub registers none that is so old")
            }
            Some(RunnerVersion::Latest) if runner.sha256.is_some() => {
                wrong("runner.version", &"latest", "what `sha256` it will have can't be known")
            }
            Some(RunnerVersion::Latest) if runner.archive.is_some() => {
                wrong("runner.version", &"latest", "an `archive` is what it is")
            }
            _ => Ok(()),
        }
    }

    /// Whether somebody is root or one of the recipe's users.
    fn check_user(&self, key: &'static str, name: Option<&UserName>) -> Result<(), Contradiction> {
        match name {
            Some(name) if name.as_str() != "root" && self.user(Some(name)).is_none() => {
                wrong(key, name, "it is neither root nor one of `users`")
            }
            _ => Ok(()),
        }
    }
}
