//! Test images without a recipe: small images, modified images, and images with a hostile guest.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use cpio::newc::{Builder, ModeFileType, trailer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Host, images};

/// The contents of a test image. Everything else is as in `base`.
pub(crate) struct TestImage {
    pub(crate) name: &'static str,
    pub(crate) kernel: Vec<u8>,
    pub(crate) initramfs: Vec<u8>,
    pub(crate) rootfs: Vec<u8>,
    pub(crate) kernel_arguments: String,
    /// Further changes of the manifest.
    pub(crate) change: fn(&mut Value),
}

impl TestImage {
    /// An image that can be found and verified, but can't boot.
    pub(crate) fn unbootable() -> Self {
        Self {
            name: "hollow",
            kernel: b"no kernel".to_vec(),
            initramfs: b"no initramfs".to_vec(),
            rootfs: vec![0; 1 << 20],
            kernel_arguments: String::new(),
            change: |_| {},
        }
    }

    /// An image with a guest that misbehaves according to `mode`.
    pub(crate) fn hostile(mode: &str) -> Self {
        Self::booting("hostile", "mayfly-hostile-guest", format!("mayfly.hostile={mode}"))
    }

    /// The minimal bootable image: its guest loads the drivers and powers off.
    #[allow(dead_code, reason = "for the benchmarks")]
    pub(crate) fn floor() -> Self {
        Self::booting("floor", "floor", String::new())
    }

    /// An image with the kernel and modules of `base`, and a test program as `/init`.
    fn booting(name: &'static str, init: &str, kernel_arguments: String) -> Self {
        let base = base();
        let mut initramfs = fs::read(base.join("initramfs")).unwrap();
        // The kernel accepts concatenated archives; a later file replaces an earlier one.
        initramfs.resize(initramfs.len().next_multiple_of(4), 0);
        initramfs.extend(archive_of_init(&fs::read(guest_program(init)).unwrap()));
        Self {
            name,
            kernel: fs::read(base.join("kernel")).unwrap(),
            initramfs,
            rootfs: empty_file_system(),
            kernel_arguments,
            change: |_| {},
        }
    }

    /// Installs the image in the store of a host. Returns its directory.
    pub(crate) fn install(&self, host: &Host) -> PathBuf {
        let text = fs::read(base().join("manifest.json")).unwrap();
        let mut manifest: Value = serde_json::from_slice(&text).unwrap();
        // No test reads its content.
        let sbom = b"{}".to_vec();
        let parts = [
            ("kernel", "kernel", &self.kernel),
            ("initramfs", "initramfs", &self.initramfs),
            ("rootfs", "rootfs.img", &self.rootfs),
            ("spdx", "sbom.spdx.json", &sbom),
            ("cyclonedx", "sbom.cdx.json", &sbom),
        ];
        manifest["name"] = self.name.into();
        for (part, file, bytes) in &parts {
            manifest["parts"][*part] =
                json!({ "file": file, "bytes": bytes.len(), "sha256": sha256(bytes) });
        }
        let arguments = manifest["kernel"]["command_line"].as_str().unwrap();
        manifest["kernel"]["command_line"] =
            format!("{arguments} {}", self.kernel_arguments).into();
        (self.change)(&mut manifest);
        let text = serde_json::to_vec(&manifest).unwrap();
        let digest = sha256(&text);
        let directory = host.images().join(self.name).join(&digest);
        fs::create_dir_all(&directory).unwrap();
        for (_, file, bytes) in &parts {
            fs::write(directory.join(file), bytes).unwrap();
        }
        fs::write(directory.join("manifest.json"), text).unwrap();
        symlink(&digest, host.images().join(self.name).join("latest")).unwrap();
        directory
    }
}

/// Returns the directory of the image `base`.
pub(crate) fn base() -> PathBuf {
    fs::canonicalize(images().join("base/latest")).unwrap()
}

/// Returns the digests of all files of an image.
pub(crate) fn digests(image: &Path) -> Vec<(PathBuf, String)> {
    let mut files: Vec<_> =
        fs::read_dir(image).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let digest = |path: PathBuf| {
        let mut hasher = Sha256::new();
        std::io::copy(&mut File::open(&path).unwrap(), &mut HashWriter(&mut hasher)).unwrap();
        (path, hex(&hasher.finalize()))
    };
    files.into_iter().map(digest).collect()
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Returns the SHA-256 of bytes in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Returns a cpio archive with a program as `/init`.
fn archive_of_init(program: &[u8]) -> Vec<u8> {
    let entry = Builder::new("init").ino(1).mode(0o755).set_mode_file_type(ModeFileType::Regular);
    let mut writer = entry.write(Vec::new(), u32::try_from(program.len()).unwrap());
    writer.write_all(program).unwrap();
    trailer(writer.finish().unwrap()).unwrap()
}

/// Returns an empty ext4 file system.
fn empty_file_system() -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(16 << 20).unwrap();
    let mut make = Command::new("mke2fs");
    let made = make.args(["-q", "-t", "ext4"]).arg(file.path()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    fs::read(file.path()).unwrap()
}

/// Builds a program of the hostile guest's package and returns its path. It is linked statically,
/// like the agent, because the initramfs has no libraries. Cargo skips an up-to-date build and
/// serializes concurrent ones.
pub(crate) fn guest_program(name: &str) -> PathBuf {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The target directory: `CARGO_TARGET_TMPDIR` is `<target>/tmp`.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build
        .args(["build", "--quiet", "--release", "--package", "mayfly-hostile-guest"])
        .args(["--target", TARGET])
        .arg("--target-dir")
        .arg(target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(root);
    let built = build.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    target.join(TARGET).join("release").join(name)
}
