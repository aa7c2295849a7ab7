//! Makes an image from a recipe.
//!
//! Every program runs in an [`enclosure`]; everything is made in a [`workspace`] inside the store
//! and renamed to its place when it is whole, so that a build that ends in the middle, however it
//! ends, is no image. This folder must not know how images are found or checked afterwards.

mod agent;
mod archive;
mod boot;
mod disk;
mod enclosure;
mod fetch;
mod fill;
mod layer;
pub mod newer;
mod process;
mod rebuild;
mod runner;
mod sources;
mod system;
mod workspace;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

pub use agent::{digest_of_agent, find_agent};
pub use archive::TarballError;
pub use rebuild::Rebuilt;
pub use runner::{RunnerRelease, RunnerSource};
pub(super) use workspace::{DeadBuild, Workspace, dead_builds, doomed_directory};

use mayfly_protocol::settings::Settings;

use boot::KernelPackage;
use enclosure::{Enclosure, outside};
use fill::{Filled, Filling};
use process::{Deadline, Runner};
use runner::Wanted;
use system::{Installed, System};

use super::error::ImageError;
use super::hardening;
use super::hash;
use super::manifest;
use super::manifest::{Agent, Format, Inputs, Kernel, Manifest, Part, PartName, Parts};
use super::name::Digest;
use super::recipe::{KernelArgument, Recipe};
use super::sbom::{Bill, DebianPackage, Facts, Subject};
use super::store::{Candidate, Image, MANIFEST, Store};

/// Is told how a build goes on, to show it to somebody.
pub trait Progress {
    /// A step begins; the one before it is done.
    fn step(&self, step: &str);

    /// A line that a program printed in this step, without control characters.
    fn detail(&self, line: &str);
}

/// A build to be made.
pub struct Builder<'a> {
    /// Where the image goes.
    pub store: &'a Store,
    /// What it should be.
    pub recipe: &'a Recipe,
    /// The guest agent, a static program; see [`find_agent`].
    pub agent: &'a Path,
    /// Where the runner comes from, if not from where the recipe says.
    pub runner: Option<&'a RunnerSource>,
    /// Seconds since 1970 that stand for "now" if the recipe says none (`SOURCE_DATE_EPOCH`).
    pub date: Option<u64>,
    /// How long it may take.
    pub timeout: Duration,
    /// Who is told of its progress.
    pub progress: &'a dyn Progress,
}

impl Builder<'_> {
    /// Makes the image and lets its name mean it; see [`Self::build_candidate`].
    ///
    /// # Errors
    ///
    /// The host lacks something, a program failed, or time ran out; the store is as before.
    pub fn build(&self) -> Result<Image, ImageError> {
        self.store.adopt(&self.build_candidate()?)
    }

    /// Makes the image; its name means what it meant before. Must be called from a thread that
    /// lives until it returns; if the process ends before, the kernel ends what the build started.
    ///
    /// # Errors
    ///
    /// Those of [`Self::build`].
    pub fn build_candidate(&self) -> Result<Candidate, ImageError> {
        let agent = agent::read_agent(self.agent)?;
        let wanted = runner::wanted(self.recipe, self.runner)?;
        self.in_workspace(|workspace, enclosure, runner| {
            Build { builder: self, runner, enclosure, agent }.make(wanted, workspace)
        })
    }

    /// Does some work in a directory of the store that is gone afterwards, however it ends.
    fn in_workspace<T>(
        &self,
        work: impl FnOnce(&Workspace, Enclosure, &Runner<'_>) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        let runner = Runner { deadline: Deadline::after(self.timeout), progress: self.progress };
        self.progress.step("checking the host");
        enclosure::check_programs()?;
        // Makes the store, so that what is in the way is known now.
        drop(self.store.lock()?);
        let enclosure = Enclosure::new(&runner)?;
        let workspace = Workspace::create(self.store, enclosure, &runner)?;
        let result = work(&workspace, enclosure, &runner);
        // Also after the deadline: a build that failed leaves nothing.
        let cleaner = Runner { deadline: Deadline::after(CLEANING), progress: self.progress };
        let removed = workspace.remove(enclosure, &cleaner);
        let done = result?;
        removed?;
        Ok(done)
    }
}

/// How long it may take to remove a build's directory.
const CLEANING: Duration = Duration::from_secs(120);

/// A build under way.
struct Build<'a> {
    builder: &'a Builder<'a>,
    runner: &'a Runner<'a>,
    enclosure: Enclosure,
    agent: Vec<u8>,
}

/// What is known of an image when its parts are finished.
struct Described {
    parts: Parts,
    packages: Vec<manifest::Package>,
}

impl Build<'_> {
    fn make(&self, wanted: Option<Wanted>, workspace: &Workspace) -> Result<Candidate, ImageError> {
        let (store, recipe) = (self.builder.store, self.builder.recipe);
        let content = &recipe.content;
        let (image, system) = (workspace.image(), System::new(workspace.work()));

        let fetched = self.fetch(wanted, content)?;

        self.step("installing packages")?;
        let date = content.source_date_epoch.or(self.builder.date);
        let installed = system.install(recipe, content, date, self.enclosure, self.runner)?;

        self.step("unpacking the kernel")?;
        let package = KernelPackage::unpack(&system.kernel(), self.runner)?;
        package.write_kernel(&image.join(PartName::Kernel.as_str()))?;
        let hardening = hardening::plan(content);
        let settings = Settings {
            modules: package.guest_modules(&content.kernel.guest_modules, &content.modules)?,
            services: content.services.clone(),
            ..hardening.settings.clone()
        };
        let initramfs = image.join(PartName::Initramfs.as_str());
        let modules =
            package.write_initramfs(&self.agent, &settings, &content.modules, &initramfs)?;

        let (script, date) = (&hardening.script, installed.date);
        let filling = Filling { build: self, content, system: &system, hardening: script, date };
        let filled = filling.fill(&package, fetched)?;

        self.step("making the file system")?;
        disk::make(
            &system.root(),
            &image.join(PartName::Rootfs.as_str()),
            disk::Shape { size: recipe.size, inodes: content.inodes },
            installed.date,
            self.enclosure,
            self.runner,
        )?;

        let described = self.describe(&image, installed, &package, &system, &filled)?;

        self.step("writing the manifest")?;
        let manifest = Manifest {
            format: Format,
            name: recipe.name.clone(),
            architecture: std::env::consts::ARCH.to_owned(),
            protocol: mayfly_protocol::VERSION,
            created: date,
            kernel: self.kernel(package, modules, &hardening.kernel_arguments),
            parts: described.parts,
            packages: described.packages,
            runner: filled.runner,
            downloads: filled.downloads,
            settings,
            hardening: hardening.controls,
            inputs: self.inputs(filled.sources, self.agent())?,
        };
        let digest = write_manifest(&manifest, &image)?;
        self.runner.deadline.check()?;
        store.publish(&image, &manifest.name, digest)
    }

    /// Measures the finished parts, and writes the bills of materials beside them.
    fn describe(
        &self,
        image: &Path,
        installed: Installed,
        kernel_package: &KernelPackage,
        system: &System,
        filled: &Filled,
    ) -> Result<Described, ImageError> {
        self.step("writing the bills of materials")?;
        let recipe = self.builder.recipe;
        let kernel = finished(image, PartName::Kernel)?;
        let initramfs = finished(image, PartName::Initramfs)?;
        let rootfs = finished(image, PartName::Rootfs)?;
        let facts =
            self.facts(installed.packages, kernel_package, system, filled.runner.as_ref())?;
        let subject = Subject {
            name: &recipe.name,
            suite: recipe.suite.as_str(),
            created: installed.date,
            parts: [&kernel, &initramfs, &rootfs],
            agent: &self.agent(),
            runner: filled.runner.as_ref(),
            downloads: &filled.downloads,
        };
        let [spdx, cyclonedx] = write_bills(&Bill::of(&subject, &facts), image)?;
        let packages = facts.packages.into_iter().map(|described| described.package).collect();
        Ok(Described { parts: Parts { kernel, initramfs, rootfs, spdx, cyclonedx }, packages })
    }

    fn step(&self, step: &str) -> Result<(), ImageError> {
        self.builder.progress.step(step);
        self.runner.deadline.check()
    }

    /// What the packages, the kernel and the runner say of themselves.
    fn facts(
        &self,
        packages: Vec<DebianPackage>,
        kernel: &KernelPackage,
        system: &System,
        runner: Option<&manifest::Runner>,
    ) -> Result<Facts, ImageError> {
        let mut facts = Facts::new(packages, kernel.described.clone());
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
    ) -> Kernel {
        let arguments = &self.builder.recipe.content.kernel.arguments;
        let arguments = arguments.iter().map(KernelArgument::as_str);
        // The recipe's own come last: of two with one name the kernel takes the later.
        let arguments: Vec<&str> = hardening.iter().copied().chain(arguments).collect();
        Kernel {
            package: package.described.package.name,
            version: package.described.package.version,
            release: package.release,
            command_line: arguments.join(" "),
            modules,
        }
    }

    fn agent(&self) -> Agent {
        Agent { version: env!("CARGO_PKG_VERSION").to_owned(), sha256: hash::of_bytes(&self.agent) }
    }

    fn inputs(&self, files: BTreeMap<String, Digest>, agent: Agent) -> Result<Inputs, ImageError> {
        let recipe = self.builder.recipe;
        Ok(Inputs {
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

/// Measures a finished part, makes it read-only and waits until it is on the disk.
fn finished(directory: &Path, name: PartName) -> Result<Part, ImageError> {
    let path = directory.join(name.as_str());
    let mut file = File::open(&path).map_err(ImageError::read(&path))?;
    let (sha256, bytes) = hash::of_file(&mut file).map_err(ImageError::read(&path))?;
    seal(&file, &path)?;
    Ok(Part { file: name, bytes, sha256 })
}

fn write_bills(bill: &Bill, directory: &Path) -> Result<[Part; 2], ImageError> {
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

/// Makes a finished file read-only and durable.
fn seal(file: &File, path: &Path) -> Result<(), ImageError> {
    file.set_permissions(fs::Permissions::from_mode(0o444))
        .and_then(|()| file.sync_all())
        .map_err(ImageError::write(path))
}

/// The first line of what each program says its version is.
fn tool_versions(runner: &Runner<'_>) -> Result<BTreeMap<String, String>, ImageError> {
    let script = "for tool in mmdebstrap apt-get dpkg-deb depmod; do
            printf '%s\\t%s\\n' $tool \"$($tool --version | head -n 1)\"
        done
        printf 'mke2fs\\t%s\\n' \"$(mke2fs -V 2>&1 | head -n 1)\"";
    let answer = runner.run(outside("sh").args(["-c", script]))?;
    let answer = String::from_utf8_lossy(&answer);
    let versions = answer.lines().filter_map(|line| line.split_once('\t'));
    Ok(versions.map(|(tool, version)| (tool.to_owned(), version.to_owned())).collect())
}
