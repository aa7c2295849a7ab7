//! Builds images from recipes.
//!
//! Every program runs in an [`enclosure`]. Everything is made in a [`workspace`] inside the store
//! and renamed into place when it is complete, so an interrupted build leaves no image. This module
//! must not know how images are found or verified afterwards.

mod agent;
mod archive;
mod boot;
mod disk;
mod enclosure;
mod fetch;
mod layer;
mod populate;
mod process;
mod rebuild;
mod runner;
mod sources;
mod system;
pub mod updates;
mod workspace;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

pub use agent::{agent_digest, find_agent};
pub use archive::TarballError;
pub use rebuild::Rebuilt;
pub use runner::{RunnerRelease, RunnerSource};
pub(super) use workspace::{DeadBuild, Workspace, dead_builds, disposable_directory};

use mayfly_protocol::settings::GuestSettings;

use boot::KernelPackage;
use enclosure::{Enclosure, host_command};
use populate::{AddedContent, Populator};
use process::{Deadline, ProcessRunner};
use runner::RunnerRequest;
use system::{InstalledSystem, System};

use super::error::ImageError;
use super::hardening;
use super::hash;
use super::manifest;
use super::manifest::{
    AgentInfo, BuildInputs, Format, KernelInfo, Manifest, Part, PartName, Parts,
};
use super::name::Digest;
use super::recipe::{KernelArgument, Recipe};
use super::sbom::{DebianPackage, Sbom, SbomSubject, SystemFacts};
use super::store::{Candidate, Image, MANIFEST, Store};

/// Receives the progress of a build, for display.
pub trait Progress {
    /// A new step starts; the previous one is done.
    fn step(&self, step: &str);

    /// A line of output of a program in this step, without control characters.
    fn detail(&self, line: &str);
}

/// The configuration of a build.
pub struct Builder<'a> {
    /// The store for the image.
    pub store: &'a Store,
    /// The recipe.
    pub recipe: &'a Recipe,
    /// The guest agent, a static program; see [`find_agent`].
    pub agent: &'a Path,
    /// The source of the runner, if it differs from the recipe's.
    pub runner: Option<&'a RunnerSource>,
    /// The timestamp of everything in the image if the recipe has none, in seconds since 1970
    /// (`SOURCE_DATE_EPOCH`).
    pub date: Option<u64>,
    /// The timeout of the build.
    pub timeout: Duration,
    /// The receiver of progress.
    pub progress: &'a dyn Progress,
}

impl Builder<'_> {
    /// Builds the image and makes it the current build of its name; see [`Self::build_candidate`].
    ///
    /// # Errors
    ///
    /// The host lacks a requirement, a program failed, or the timeout expired. The store is
    /// unchanged.
    pub fn build(&self) -> Result<Image, ImageError> {
        self.store.promote(&self.build_candidate()?)
    }

    /// Builds the image without making it current. Must be called from a thread that lives until it
    /// returns; if the process ends earlier, the kernel kills the programs of the build.
    ///
    /// # Errors
    ///
    /// Those of [`Self::build`].
    pub fn build_candidate(&self) -> Result<Candidate, ImageError> {
        let agent = agent::read_agent(self.agent)?;
        let runner_request = runner::request(self.recipe, self.runner)?;
        self.in_workspace(|workspace, enclosure, runner| {
            Build { builder: self, runner, enclosure, agent }.make(runner_request, workspace)
        })
    }

    /// Runs `work` in a directory of the store that is removed afterwards, whatever the result.
    fn in_workspace<T>(
        &self,
        work: impl FnOnce(&Workspace, Enclosure, &ProcessRunner<'_>) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        let runner =
            ProcessRunner { deadline: Deadline::after(self.timeout), progress: self.progress };
        self.progress.step("checking the host");
        enclosure::check_programs()?;
        // Creates the store, so that problems with it show early.
        drop(self.store.lock()?);
        let enclosure = Enclosure::new(&runner)?;
        let workspace = Workspace::create(self.store, enclosure, &runner)?;
        let result = work(&workspace, enclosure, &runner);
        // Also after the deadline: a failed build leaves nothing behind.
        let cleaner =
            ProcessRunner { deadline: Deadline::after(CLEANUP_TIMEOUT), progress: self.progress };
        let removed = workspace.remove(enclosure, &cleaner);
        let done = result?;
        removed?;
        Ok(done)
    }
}

/// The timeout for removing a build's directory.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(120);

/// A running build.
struct Build<'a> {
    builder: &'a Builder<'a>,
    runner: &'a ProcessRunner<'a>,
    enclosure: Enclosure,
    agent: Vec<u8>,
}

/// The finished parts of an image and their packages.
struct FinishedParts {
    parts: Parts,
    packages: Vec<manifest::InstalledPackage>,
}

impl Build<'_> {
    fn make(
        &self,
        runner_request: Option<RunnerRequest>,
        workspace: &Workspace,
    ) -> Result<Candidate, ImageError> {
        let (store, recipe) = (self.builder.store, self.builder.recipe);
        let content = &recipe.content;
        let (image, system) = (workspace.image(), System::new(workspace.work()));

        let fetched = self.fetch(runner_request, content)?;

        self.step("installing packages")?;
        let date = content.source_date_epoch.or(self.builder.date);
        let installed = system.install(recipe, content, date, self.enclosure, self.runner)?;

        self.step("unpacking the kernel")?;
        let package = KernelPackage::unpack(&system.kernel(), self.runner)?;
        package.write_kernel(&image.join(PartName::Kernel.as_str()))?;
        let hardening = hardening::plan(content);
        let settings = GuestSettings {
            modules: package.guest_modules(&content.kernel.guest_modules, &content.modules)?,
            services: content.services.clone(),
            ..hardening.settings.clone()
        };
        let initramfs = image.join(PartName::Initramfs.as_str());
        let modules =
            package.write_initramfs(&self.agent, &settings, &content.modules, &initramfs)?;

        let (script, date) = (&hardening.script, installed.date);
        let populator =
            Populator { build: self, content, system: &system, hardening: script, date };
        let added = populator.run(&package, fetched)?;

        self.step("making the file system")?;
        disk::make(
            &system.root(),
            &image.join(PartName::Rootfs.as_str()),
            disk::FileSystemOptions { size: recipe.size, inodes: content.inodes },
            installed.date,
            self.enclosure,
            self.runner,
        )?;

        let finished_parts = self.describe(&image, installed, &package, &system, &added)?;

        self.step("writing the manifest")?;
        let manifest = Manifest {
            format: Format,
            name: recipe.name.clone(),
            architecture: std::env::consts::ARCH.to_owned(),
            protocol: mayfly_protocol::VERSION,
            created: date,
            kernel: self.kernel(package, modules, &hardening.kernel_arguments),
            parts: finished_parts.parts,
            packages: finished_parts.packages,
            runner: added.runner,
            downloads: added.downloads,
            settings,
            hardening: hardening.controls,
            inputs: self.inputs(added.sources, self.agent())?,
        };
        let digest = write_manifest(&manifest, &image)?;
        self.runner.deadline.check()?;
        store.publish(&image, &manifest.name, digest)
    }

    /// Hashes the finished parts, and writes the bills of materials beside them.
    fn describe(
        &self,
        image: &Path,
        installed: InstalledSystem,
        kernel_package: &KernelPackage,
        system: &System,
        added: &AddedContent,
    ) -> Result<FinishedParts, ImageError> {
        self.step("writing the bills of materials")?;
        let recipe = self.builder.recipe;
        let kernel = finished(image, PartName::Kernel)?;
        let initramfs = finished(image, PartName::Initramfs)?;
        let rootfs = finished(image, PartName::Rootfs)?;
        let facts =
            self.facts(installed.packages, kernel_package, system, added.runner.as_ref())?;
        let subject = SbomSubject {
            name: &recipe.name,
            suite: recipe.suite.as_str(),
            created: installed.date,
            parts: [&kernel, &initramfs, &rootfs],
            agent: &self.agent(),
            runner: added.runner.as_ref(),
            downloads: &added.downloads,
        };
        let [spdx, cyclonedx] = write_bills(&Sbom::new(&subject, &facts), image)?;
        let packages = facts.packages.into_iter().map(|found| found.package).collect();
        Ok(FinishedParts { parts: Parts { kernel, initramfs, rootfs, spdx, cyclonedx }, packages })
    }

    fn step(&self, step: &str) -> Result<(), ImageError> {
        self.builder.progress.step(step);
        self.runner.deadline.check()
    }

    /// Collects what the packages, the kernel and the runner declare about themselves.
    fn facts(
        &self,
        packages: Vec<DebianPackage>,
        kernel: &KernelPackage,
        system: &System,
        runner: Option<&manifest::InstalledRunner>,
    ) -> Result<SystemFacts, ImageError> {
        let mut facts = SystemFacts::new(packages, kernel.metadata.clone());
        kernel.describe(&mut facts);
        let directory = runner.map(|runner| runner.directory.as_str());
        system.describe(&mut facts, directory, self.enclosure, self.runner)?;
        Ok(facts)
    }

    fn kernel(
        &self,
        package: KernelPackage,
        modules: Vec<String>,
        hardening: &[&'static str],
    ) -> KernelInfo {
        let arguments = &self.builder.recipe.content.kernel.arguments;
        let arguments = arguments.iter().map(KernelArgument::as_str);
        // The recipe's arguments come last: of duplicates, the kernel uses the last.
        let arguments: Vec<&str> = hardening.iter().copied().chain(arguments).collect();
        KernelInfo {
            package: package.metadata.package.name,
            version: package.metadata.package.version,
            release: package.release,
            command_line: arguments.join(" "),
            modules,
        }
    }

    fn agent(&self) -> AgentInfo {
        AgentInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sha256: hash::of_bytes(&self.agent),
        }
    }

    fn inputs(
        &self,
        files: BTreeMap<String, Digest>,
        agent: AgentInfo,
    ) -> Result<BuildInputs, ImageError> {
        let recipe = self.builder.recipe;
        Ok(BuildInputs {
            recipe: recipe.digest.clone(),
            profiles: recipe.profiles.clone(),
            settings: recipe.settings.clone(),
            effective: recipe.effective.clone(),
            files,
            suite: recipe.suite.to_string(),
            agent,
            tools: tool_versions(self.runner)?,
        })
    }
}

/// Hashes a finished part, makes it read-only and syncs it to disk.
fn finished(directory: &Path, name: PartName) -> Result<Part, ImageError> {
    let path = directory.join(name.as_str());
    let mut file = File::open(&path).map_err(ImageError::read(&path))?;
    let (sha256, bytes) = hash::of_file(&mut file).map_err(ImageError::read(&path))?;
    seal(&file, &path)?;
    Ok(Part { file: name, bytes, sha256 })
}

fn write_bills(bill: &Sbom, directory: &Path) -> Result<[Part; 2], ImageError> {
    let write = |name: PartName, bytes: serde_json::Result<Vec<u8>>| {
        let path = directory.join(name.as_str());
        let written = bytes.map_err(io::Error::from).and_then(|bytes| fs::write(&path, bytes));
        written.map_err(ImageError::write(path))?;
        finished(directory, name)
    };
    Ok([write(PartName::Spdx, bill.to_spdx())?, write(PartName::CycloneDx, bill.to_cyclonedx())?])
}

fn write_manifest(manifest: &Manifest, directory: &Path) -> Result<Digest, ImageError> {
    let path = directory.join(MANIFEST);
    let bytes = manifest
        .to_bytes()
        .map_err(|source| ImageError::Manifest { path: path.clone(), source })?;
    fs::write(&path, &bytes).map_err(ImageError::write(&path))?;
    let file = File::open(&path).map_err(ImageError::read(&path))?;
    seal(&file, &path)?;
    let opened = fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
        .and_then(|()| File::open(directory)?.sync_all());
    opened.map_err(ImageError::write(directory))?;
    Ok(hash::of_bytes(&bytes))
}

/// Makes a finished file read-only and syncs it to disk.
fn seal(file: &File, path: &Path) -> Result<(), ImageError> {
    file.set_permissions(fs::Permissions::from_mode(0o444))
        .and_then(|()| file.sync_all())
        .map_err(ImageError::write(path))
}

/// Returns the first line of each build tool's version output.
fn tool_versions(runner: &ProcessRunner<'_>) -> Result<BTreeMap<String, String>, ImageError> {
    let script = "for tool in mmdebstrap apt-get dpkg-deb depmod; do
            printf '%s\\t%s\\n' $tool \"$($tool --version | head -n 1)\"
        done
        printf 'mke2fs\\t%s\\n' \"$(mke2fs -V 2>&1 | head -n 1)\"";
    let output = runner.run(host_command("sh").args(["-c", script]))?;
    let output = String::from_utf8_lossy(&output);
    let versions = output.lines().filter_map(|line| line.split_once('\t'));
    Ok(versions.map(|(tool, version)| (tool.to_owned(), version.to_owned())).collect())
}
