//! The parts that a machine boots: kernel and initramfs, out of the kernel's package.

use std::fs;
use std::io::{BufWriter, Read};
use std::path::{Path, PathBuf};

use mayfly_protocol::settings::Settings;

use super::enclosure::outside;
use super::process::Runner;
use crate::image::error::ImageError;
use crate::image::initramfs::{self, Module};
use crate::image::kernel::{self, KernelError};
use crate::image::modules::{Catalogue, name_of};
use crate::image::recipe::ModuleName;

/// The most that one module may be after decompression, in bytes.
const MODULE_LIMIT: u64 = 64 << 20;

/// The kernel's package, unpacked.
pub(super) struct KernelPackage {
    /// Its name.
    pub(super) name: String,
    /// Its version.
    pub(super) version: String,
    /// What `uname -r` will say.
    pub(super) release: String,
    /// The compressed kernel.
    bz_image: PathBuf,
    /// The directory with `modules.dep`.
    modules: PathBuf,
}

impl KernelPackage {
    /// Unpacks the one package in `directory`, beside it.
    pub(super) fn unpack(directory: &Path, runner: &Runner<'_>) -> Result<Self, ImageError> {
        let package = only(directory, "package", |name| has_extension(name, "deb"))?;
        let mut show = outside("dpkg-deb");
        show.args(["--show", "--showformat=${Package}\\t${Version}"]).arg(&package);
        let shown = String::from_utf8_lossy(&runner.run(&mut show)?).into_owned();
        let (name, version) = shown.trim().split_once('\t').unwrap_or((&shown, ""));

        let unpacked = directory.join("unpacked");
        runner.run(outside("dpkg-deb").arg("--extract").arg(&package).arg(&unpacked))?;
        let bz_image = only(&unpacked.join("boot"), "kernel", |name| name.starts_with("vmlinuz-"))?;
        // Debian moved it below /usr in 2024.
        let base = [unpacked.join("usr"), unpacked]
            .into_iter()
            .find(|base| base.join("lib/modules").is_dir())
            .ok_or_else(|| not_one(directory, "directory of modules"))?;
        let modules = only(&base.join("lib/modules"), "directory of modules", |_| true)?;
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        runner.run(outside("depmod").arg("--basedir").arg(&base).arg(&release))?;
        Ok(Self { name: name.to_owned(), version: version.to_owned(), release, bz_image, modules })
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
        let text = |file: &str| {
            let path = self.modules.join(file);
            fs::read_to_string(&path).map_err(ImageError::read(path))
        };
        let catalogue = Catalogue::parse(&text("modules.dep")?, &text("modules.builtin")?);
        let order = catalogue
            .load_order(wanted.iter().map(ModuleName::as_str))
            .map_err(|source| ImageError::Modules { release: self.release.clone(), source })?;
        let modules =
            order.into_iter().map(|path| self.module(path)).collect::<Result<Vec<_>, _>>()?;
        let output = fs::File::create_new(path).map_err(ImageError::write(path))?;
        initramfs::write(BufWriter::new(output), agent, settings, &modules)
            .map_err(ImageError::write(path))?;
        Ok(modules.into_iter().map(|module| module.name).collect())
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

fn decompressed(compressed: &[u8]) -> Result<Vec<u8>, KernelError> {
    let mut bytes = Vec::new();
    let mut limited = kernel::decompressor(compressed)?.take(MODULE_LIMIT);
    limited.read_to_end(&mut bytes).map_err(KernelError::Damaged)?;
    Ok(bytes)
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
