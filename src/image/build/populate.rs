//! Populates the new system with content from outside the distribution, and runs the hooks.

use std::collections::BTreeMap;

use super::Build;
use super::boot::KernelPackage;
use super::fetch::{self, Fetched};
use super::layer::{Access, Layer};
use super::runner::ActionsRunner;
use super::system::{RecipeFiles, System, write_files};
use crate::error::ImageError;
use crate::manifest;
use crate::name::Digest;
use crate::recipe::RecipeContent;

/// The content that was added, for the manifest.
pub(super) struct AddedContent {
    pub(super) runner: Option<manifest::InstalledRunner>,
    pub(super) downloads: Vec<manifest::InstalledDownload>,
    /// The digests of the files that the recipe refers to.
    pub(super) sources: BTreeMap<String, Digest>,
}

/// Populates a system whose packages are installed.
pub(super) struct Populator<'b> {
    pub(super) build: &'b Build<'b>,
    pub(super) content: &'b RecipeContent,
    pub(super) system: &'b System,
    /// The script that hardens the system.
    pub(super) hardening: &'b str,
    /// The timestamp of everything that is added, in seconds since 1970.
    pub(super) date: u64,
}

impl Populator<'_> {
    pub(super) fn run(
        &self,
        kernel: &KernelPackage,
        fetched: Fetched<'_>,
    ) -> Result<AddedContent, ImageError> {
        let Build { builder, runner: process, enclosure, .. } = self.build;
        self.build.step("adding files")?;
        let (content, mut sources) = (self.content, RecipeFiles::default());
        let mut layer = Layer::create(self.system.layer(), self.date)?;
        let modules = &content.kernel.guest_modules;
        kernel.write_guest_modules(modules, &self.system.modules(), &mut layer, process)?;
        if let Some(runner) = &fetched.runner {
            runner.unpack(&mut layer)?;
            runner.add_job_hooks(content, &mut layer)?;
        }
        let downloads = fetched.downloads.iter();
        let added = downloads.map(|(download, path)| fetch::add(download, path, &mut layer));
        let mut downloads = added.collect::<Result<Vec<_>, _>>()?;
        downloads.sort();
        write_files(builder.recipe, content, &mut layer, &mut sources)?;
        self.write_hooks(&mut layer, &mut sources)?;
        layer.finish()?;
        self.system.unpack_layer(self.date, *enclosure, process)?;

        let runner = fetched.runner.map(|runner| self.test_runner(runner)).transpose()?;
        self.run_hooks()?;
        self.system.finish(self.hardening, self.date, *enclosure, process)?;
        Ok(AddedContent { runner, downloads, sources: sources.digests })
    }

    /// Runs the runner once: it reports its version and loads all its libraries, which shows
    /// whether one is missing.
    fn test_runner(
        &self,
        runner: ActionsRunner<'_>,
    ) -> Result<manifest::InstalledRunner, ImageError> {
        self.build.step("testing the runner")?;
        let (user, listener) = (Some(runner.user), runner.listener());
        let inside = |command: &[&str]| {
            let Build { runner: process, enclosure, .. } = self.build;
            self.system.run_inside(user, command, self.date, *enclosure, process)
        };
        let version = inside(&[&listener, "--version"])?;
        inside(&[&listener, "warmup"])?;
        inside(&["rm", "-rf", &runner.diagnostics()])?;
        runner.verified(&version)
    }

    /// Writes the recipe's hooks to a directory that is emptied at the end of the build.
    fn write_hooks(&self, layer: &mut Layer, sources: &mut RecipeFiles) -> Result<(), ImageError> {
        for (number, hook) in self.content.hooks.iter().enumerate() {
            let recipe = self.build.builder.recipe;
            let text = sources.bytes(recipe, hook.content.as_deref(), hook.source.as_deref())?;
            let access = Access { owner: 0, mode: 0o755 };
            layer.file(&hook_path(number), access, text.len() as u64, text.as_slice())?;
        }
        Ok(())
    }

    fn run_hooks(&self) -> Result<(), ImageError> {
        let Build { runner: process, enclosure, .. } = self.build;
        for (number, hook) in self.content.hooks.iter().enumerate() {
            self.build.step("running the recipe's hooks")?;
            let user = self.content.user(hook.user.as_ref());
            self.system.run_inside(user, &[&hook_path(number)], self.date, *enclosure, process)?;
        }
        Ok(())
    }
}

fn hook_path(number: usize) -> String {
    format!("/run/recipe-hook-{number}")
}
