//! The parts that a machine boots: kernel and initramfs, out of the kernel's package.

use std::fs;
use std::io::{BufWriter, Read};
use std::path::{Path, PathBuf};

use mayfly_protocol::settings::Settings;

use super::enclosure::outside;
use super::layer::Layer;
use super::process::Runner;
use crate::image::error::ImageError;
use crate::image::initramfs::{self, Module};
use crate::image::kernel::{self, KernelError};
use crate::image::modules::{Catalogue, name_of};
use crate::image::recipe::ModuleName;
use crate::image::sbom::{DebianPackage, Facts, PACKAGE_FORMAT};

/// The most that one module may be after decompression, in bytes.
const MODULE_LIMIT: u64 = 64 << 20;

/// The kernel's package, unpacked.
pub(super) struct KernelPackage {
    /// What it says of itself.
    pub(super) described: DebianPackage,
    /// What `uname -r` will say.
    pub(super) release: String,
    /// The compressed kernel.
    bz_image: PathBuf,
    /// The directory with `modules.dep`.
    modules: PathBuf,
    /// Its copyright file.
    copyright: PathBuf,
}

impl KernelPackage {
    /// Unpacks the one package in `directory`, beside it.
    pub(super) fn unpack(directory: &Path, runner: &Runner<'_>) -> Result<Self, ImageError> {
        let package = only(directory, "package", |name| has_extension(name, "deb"))?;
        let mut show = outside("dpkg-deb");
        show.arg("--show").arg(format!("--showformat={PACKAGE_FORMAT}")).arg(&package);
        let shown = String::from_utf8_lossy(&runner.run(&mut show)?).into_owned();
        let described = DebianPackage::parse(shown.trim_end_matches('\n'))
            .ok_or_else(|| not_one(directory, "described package"))?;

        let unpacked = directory.join("unpacked");
        runner.run(outside("dpkg-deb").arg("--extract").arg(&package).arg(&unpacked))?;
        let bz_image = only(&unpacked.join("boot"), "kernel", |name| name.starts_with("vmlinuz-"))?;
        let copyright = unpacked.join(copyright_of(&described.package.name));
        // Debian moved it below /usr in 2024.
        let base = [unpacked.join("usr"), unpacked]
            .into_iter()
            .find(|base| base.join("lib/modules").is_dir())
            .ok_or_else(|| not_one(directory, "directory of modules"))?;
        let modules = only(&base.join("lib/modules"), "directory of modules", |_| true)?;
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        runner.run(outside("depmod").arg("--basedir").arg(&base).arg(&release))?;
        Ok(Self { described, release, bz_image, modules, copyright })
    }

    /// Adds to `facts` the package's licence.
    pub(super) fn describe(&self, facts: &mut Facts) {
        // Without a copyright file its licence is not known.
        if let Ok(text) = fs::read_to_string(&self.copyright) {
            facts.take(&copyright_of(&self.described.package.name), &text);
        }
    }

    /// Writes the uncompressed kernel.
    pub(super) fn write_kernel(&self, path: &Path) -> Result<(), ImageError> {
        let image = fs::read(&self.bz_image).map_err(ImageError::read(&self.bz_image))?;
        let kernel = kernel::vmlinux(&image)
            .map_err(|source| ImageError::Kernel { path: self.bz_image.clone(), source })?;
        fs::write(path, kernel).map_err(ImageError::write(path))
    }

    /// Writes the initramfs with `agent` and the modules that `wanted` needs. Returns the
    /// modules' names in load order.
    pub(super) fn write_initramfs(
        &self,
        agent: &[u8],
        settings: &Settings,
        wanted: &[ModuleName],
        path: &Path,
    ) -> Result<Vec<String>, ImageError> {
        let catalogue = self.catalogue()?;
        let order = self.load_order(&catalogue, wanted)?;
        let modules =
            order.into_iter().map(|path| self.module(path)).collect::<Result<Vec<_>, _>>()?;
        let output = fs::File::create_new(path).map_err(ImageError::write(path))?;
        initramfs::write(BufWriter::new(output), agent, settings, &modules)
            .map_err(ImageError::write(path))?;
        Ok(modules.into_iter().map(|module| module.name).collect())
    }

    /// The files of the modules that `wanted` needs in the root file system beyond those of the
    /// initramfs, in load order: paths in the guest.
    pub(super) fn guest_modules(
        &self,
        wanted: &[ModuleName],
        loaded: &[ModuleName],
    ) -> Result<Vec<String>, ImageError> {
        let catalogue = self.catalogue()?;
        let loaded = self.load_order(&catalogue, loaded)?;
        let mut order = self.load_order(&catalogue, wanted)?;
        order.retain(|path| !loaded.contains(path));
        Ok(order.into_iter().map(|path| self.guest_path(path)).collect())
    }

    /// Puts the modules that `wanted` needs where `modprobe(8)` of the guest looks for them, with
    /// its indexes: uncompressed, so that the agent can load them, too, and none else, so that it
    /// is this list that says what a guest can load.
    pub(super) fn write_guest_modules(
        &self,
        wanted: &[ModuleName],
        stage: &Path,
        layer: &mut Layer,
        runner: &Runner<'_>,
    ) -> Result<(), ImageError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let directory = stage.join("lib/modules").join(&self.release);
        let catalogue = self.catalogue()?;
        for relative in self.load_order(&catalogue, wanted)? {
            let path = directory.join(uncompressed_name(relative));
            let parent = path.parent().unwrap_or(&directory);
            fs::create_dir_all(parent).map_err(ImageError::write(parent))?;
            fs::write(&path, self.module(relative)?.bytes).map_err(ImageError::write(&path))?;
        }
        fs::create_dir_all(&directory).map_err(ImageError::write(&directory))?;
        // What the kernel has in itself, so that to ask for it is no failure.
        for file in ["modules.builtin", "modules.builtin.modinfo"] {
            let from = self.modules.join(file);
            fs::copy(&from, directory.join(file)).map_err(ImageError::read(from))?;
        }
        runner.run(outside("depmod").arg("--basedir").arg(stage).arg(&self.release))?;
        layer.tree(&directory, &format!("/usr/lib/modules/{}", self.release))
    }

    fn guest_path(&self, relative: &str) -> String {
        format!("/usr/lib/modules/{}/{}", self.release, uncompressed_name(relative))
    }

    fn catalogue(&self) -> Result<Catalogue, ImageError> {
        let text = |file: &str| {
            let path = self.modules.join(file);
            fs::read_to_string(&path).map_err(ImageError::read(path))
        };
        Ok(Catalogue::parse(&text("modules.dep")?, &text("modules.builtin")?))
    }

    fn load_order<'c>(
        &self,
        catalogue: &'c Catalogue,
        wanted: &[ModuleName],
    ) -> Result<Vec<&'c str>, ImageError> {
        catalogue
            .load_order(wanted.iter().map(ModuleName::as_str))
            .map_err(|source| ImageError::Modules { release: self.release.clone(), source })
    }

    fn module(&self, relative: &str) -> Result<Module, ImageError> {
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

/// The path of a module without what says how it is compressed.
fn uncompressed_name(path: &str) -> &str {
    path.find(".ko.").map_or(path, |end| &path[..end + ".ko".len()])
}

fn decompressed(compressed: &[u8]) -> Result<Vec<u8>, KernelError> {
    let mut bytes = Vec::new();
    let mut limited = kernel::decompressor(compressed)?.take(MODULE_LIMIT);
    limited.read_to_end(&mut bytes).map_err(KernelError::Damaged)?;
    Ok(bytes)
}

fn copyright_of(package: &str) -> String {
    format!("usr/share/doc/{package}/copyright")
}

fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

/// The one entry of a directory whose name fits.
fn only(
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
        _ => Err(not_one(directory, what)),
    }
}

fn not_one(directory: &Path, what: &'static str) -> ImageError {
    ImageError::Kernel { path: directory.to_owned(), source: KernelError::NotOne(what) }
}
