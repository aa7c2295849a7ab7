//! Puts into the new system what is not from the distribution's packages, and runs in it what has
//! to be run.

use std::collections::BTreeMap;

use super::Build;
use super::boot::KernelPackage;
use super::fetch::{self, Fetched};
use super::layer::{Access, Layer};
use super::runner::ActionsRunner;
use super::system::{Sources, System, write_files};
use crate::image::error::ImageError;
use crate::image::manifest;
use crate::image::name::Digest;
use crate::image::recipe::Content;

/// What there is to say of what was put in.
pub(super) struct Filled {
    pub(super) runner: Option<manifest::Runner>,
    pub(super) downloads: Vec<manifest::Download>,
    /// The digests of the files from beside the recipe.
    pub(super) sources: BTreeMap<String, Digest>,
}

/// A system that has its packages.
pub(super) struct Filling<'b> {
    pub(super) build: &'b Build<'b>,
    pub(super) content: &'b Content,
    pub(super) system: &'b System,
    /// The script that hardens the system.
    pub(super) hardening: &'b str,
    /// The time that stands for now.
    pub(super) date: u64,
}

impl Filling<'_> {
    pub(super) fn fill(
        &self,
        kernel: &KernelPackage,
        fetched: Fetched<'_>,
    ) -> Result<Filled, ImageError> {
        let Build { builder, runner: process, enclosure, .. } = self.build;
        self.build.step("adding files")?;
        let (content, mut sources) = (self.content, Sources::default());
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

        let runner = fetched.runner.map(|runner| self.try_runner(runner)).transpose()?;
        self.run_hooks()?;
        self.system.finish(self.hardening, self.date, *enclosure, process)?;
        Ok(Filled { runner, downloads, sources: sources.digests })
    }

    /// Lets the runner say its version and load all of itself, which it can't where a library is
    /// missing.
    fn try_runner(&self, runner: ActionsRunner<'_>) -> Result<manifest::Runner, ImageError> {
        self.build.step("trying the runner")?;
        let (user, listener) = (Some(runner.user), runner.listener());
        let inside = |command: &[&str]| {
            let Build { runner: process, enclosure, .. } = self.build;
            self.system.inside(user, command, self.date, *enclosure, process)
        };
        let version = inside(&[&listener, "--version"])?;
        inside(&[&listener, "warmup"])?;
        inside(&["rm", "-rf", &runner.diagnostics()])?;
        runner.described(&version)
    }

    /// Puts the recipe's scripts where nothing of a build stays.
    fn write_hooks(&self, layer: &mut Layer, sources: &mut Sources) -> Result<(), ImageError> {
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
            self.system.inside(user, &[&hook_path(number)], self.date, *enclosure, process)?;
        }
        Ok(())
    }
}

fn hook_path(number: usize) -> String {
    format!("/run/recipe-hook-{number}")
}
