//! Makes the bootable parts, kernel and initramfs, from the kernel's package.

use std::fs;
use std::io::{BufWriter, Read};
use std::path::{Path, PathBuf};

use mayfly_protocol::settings::GuestSettings;

use super::enclosure::host_command;
use super::layer::Layer;
use super::process::ProcessRunner;
use crate::error::ImageError;
use crate::initramfs::{self, Module};
use crate::kernel::{self, KernelError};
use crate::modules::{Catalog, name_of};
use crate::recipe::ModuleName;
use crate::sbom::{DebianPackage, PACKAGE_FORMAT, SystemFacts};

/// The largest decompressed module, in bytes.
const MAX_MODULE: u64 = 64 << 20;

/// The unpacked package of a kernel.
pub(super) struct KernelPackage {
    /// The package's own metadata.
    pub(super) metadata: DebianPackage,
    /// The output of `uname -r` with this kernel.
    pub(super) release: String,
    /// The compressed kernel.
    bz_image: PathBuf,
    /// The directory with `modules.dep`.
    modules: PathBuf,
    /// Its copyright file.
    copyright: PathBuf,
}

impl KernelPackage {
    /// Unpacks the `only_entry` package in `directory`, into a subdirectory.
    pub(super) fn unpack(directory: &Path, runner: &ProcessRunner<'_>) -> Result<Self, ImageError> {
        let package = only_entry(directory, "package", |name| has_extension(name, "deb"))?;
        let mut show = host_command("dpkg-deb");
        show.arg("--show").arg(format!("--showformat={PACKAGE_FORMAT}")).arg(&package);
        let shown = String::from_utf8_lossy(&runner.run(&mut show)?).into_owned();
        let metadata = DebianPackage::parse(shown.trim_end_matches('\n'))
            .ok_or_else(|| not_exactly_one(directory, "package with valid metadata"))?;

        let unpacked = directory.join("unpacked");
        runner.run(host_command("dpkg-deb").arg("--extract").arg(&package).arg(&unpacked))?;
        let bz_image =
            only_entry(&unpacked.join("boot"), "kernel", |name| name.starts_with("vmlinuz-"))?;
        let copyright = unpacked.join(copyright_of(&metadata.package.name));
        // Debian moved it below /usr in 2024.
        let base = [unpacked.join("usr"), unpacked]
            .into_iter()
            .find(|base| base.join("lib/modules").is_dir())
            .ok_or_else(|| not_exactly_one(directory, "directory of modules"))?;
        let modules = only_entry(&base.join("lib/modules"), "directory of modules", |_| true)?;
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        runner.run(host_command("depmod").arg("--basedir").arg(&base).arg(&release))?;
        Ok(Self { metadata, release, bz_image, modules, copyright })
    }

    /// Adds the package's license to `facts`.
    pub(super) fn describe(&self, facts: &mut SystemFacts) {
        // Without a copyright file, its license is unknown.
        if let Ok(text) = fs::read_to_string(&self.copyright) {
            facts.add_file(&copyright_of(&self.metadata.package.name), &text);
        }
    }

    /// Writes the uncompressed kernel.
    pub(super) fn write_kernel(&self, path: &Path) -> Result<(), ImageError> {
        let image = fs::read(&self.bz_image).map_err(ImageError::read(&self.bz_image))?;
        let kernel = kernel::vmlinux(&image)
            .map_err(|source| ImageError::Kernel { path: self.bz_image.clone(), source })?;
        fs::write(path, kernel).map_err(ImageError::write(path))
    }

    /// Writes the initramfs with `agent` and the modules required by `requested`. Returns the
    /// modules' names in load order.
    pub(super) fn write_initramfs(
        &self,
        agent: &[u8],
        settings: &GuestSettings,
        requested: &[ModuleName],
        path: &Path,
    ) -> Result<Vec<String>, ImageError> {
        let catalog = self.catalog()?;
        let order = self.load_order(&catalog, requested)?;
        let modules =
            order.into_iter().map(|path| self.read_module(path)).collect::<Result<Vec<_>, _>>()?;
        let output = fs::File::create_new(path).map_err(ImageError::write(path))?;
        initramfs::write(BufWriter::new(output), agent, settings, &modules)
            .map_err(ImageError::write(path))?;
        Ok(modules.into_iter().map(|module| module.name).collect())
    }

    /// Returns the files of the modules required by `requested` in the root file system, without
    /// those of the initramfs, in load order: paths in the guest.
    pub(super) fn guest_modules(
        &self,
        requested: &[ModuleName],
        loaded: &[ModuleName],
    ) -> Result<Vec<String>, ImageError> {
        let catalog = self.catalog()?;
        let loaded = self.load_order(&catalog, loaded)?;
        let mut order = self.load_order(&catalog, requested)?;
        order.retain(|path| !loaded.contains(path));
        Ok(order.into_iter().map(|path| self.guest_path(path)).collect())
    }

    /// Installs the modules required by `requested`, with indexes, where the guest's `modprobe(8)`
    /// finds them. They are uncompressed, so that the agent can load them as well. No other modules
    /// are installed, so this list determines what a guest can load.
    pub(super) fn write_guest_modules(
        &self,
        requested: &[ModuleName],
        stage: &Path,
        layer: &mut Layer,
        runner: &ProcessRunner<'_>,
    ) -> Result<(), ImageError> {
        if requested.is_empty() {
            return Ok(());
        }
        let directory = stage.join("lib/modules").join(&self.release);
        let catalog = self.catalog()?;
        for relative in self.load_order(&catalog, requested)? {
            let path = directory.join(uncompressed_name(relative));
            let parent = path.parent().unwrap_or(&directory);
            fs::create_dir_all(parent).map_err(ImageError::write(parent))?;
            fs::write(&path, self.read_module(relative)?.bytes)
                .map_err(ImageError::write(&path))?;
        }
        fs::create_dir_all(&directory).map_err(ImageError::write(&directory))?;
        // The built-in modules, so that loading one of them is not an error.
        for file in ["modules.builtin", "modules.builtin.modinfo"] {
            let from = self.modules.join(file);
            fs::copy(&from, directory.join(file)).map_err(ImageError::read(from))?;
        }
        runner.run(host_command("depmod").arg("--basedir").arg(stage).arg(&self.release))?;
        layer.tree(&directory, &format!("/usr/lib/modules/{}", self.release))
    }

    fn guest_path(&self, relative: &str) -> String {
        format!("/usr/lib/modules/{}/{}", self.release, uncompressed_name(relative))
    }

    fn catalog(&self) -> Result<Catalog, ImageError> {
        let text = |file: &str| {
            let path = self.modules.join(file);
            fs::read_to_string(&path).map_err(ImageError::read(path))
        };
        Ok(Catalog::parse(&text("modules.dep")?, &text("modules.builtin")?))
    }

    fn load_order<'c>(
        &self,
        catalog: &'c Catalog,
        requested: &[ModuleName],
    ) -> Result<Vec<&'c str>, ImageError> {
        catalog
            .load_order(requested.iter().map(ModuleName::as_str))
            .map_err(|source| ImageError::Modules { release: self.release.clone(), source })
    }

    fn read_module(&self, relative: &str) -> Result<Module, ImageError> {
        let path = self.modules.join(relative);
        let file = fs::read(&path).map_err(ImageError::read(&path))?;
        let bytes = if has_extension(relative, "ko") {
            file
        } else {
            decompressed(&file).map_err(|source| ImageError::Kernel { path, source })?
        };
        Ok(Module { name: name_of(relative), bytes })
    }
}

/// Returns the path of a module without its compression suffix.
fn uncompressed_name(path: &str) -> &str {
    path.find(".ko.").map_or(path, |end| &path[..end + ".ko".len()])
}

fn decompressed(compressed: &[u8]) -> Result<Vec<u8>, KernelError> {
    let mut bytes = Vec::new();
    let mut limited = kernel::decompressor(compressed)?.take(MAX_MODULE);
    limited.read_to_end(&mut bytes).map_err(KernelError::Damaged)?;
    Ok(bytes)
}

fn copyright_of(package: &str) -> String {
    format!("usr/share/doc/{package}/copyright")
}

fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

/// Returns the `only_entry` matching entry of a directory.
fn only_entry(
    directory: &Path,
    what: &'static str,
    fits: fn(&str) -> bool,
) -> Result<PathBuf, ImageError> {
    let entries = fs::read_dir(directory).map_err(ImageError::read(directory))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(ImageError::read(directory))?;
        if entry.file_name().to_str().is_some_and(fits) {
            found.push(entry.path());
        }
    }
    match (found.pop(), found.is_empty()) {
        (Some(path), true) => Ok(path),
        _ => Err(not_exactly_one(directory, what)),
    }
}

fn not_exactly_one(directory: &Path, what: &'static str) -> ImageError {
    ImageError::Kernel { path: directory.to_owned(), source: KernelError::NotExactlyOne(what) }
}
