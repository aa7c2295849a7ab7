//! Images that no recipe makes: small ones, changed ones, ones with a guest that misbehaves.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use cpio::newc::{Builder, ModeFileType, trailer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Host, images};

/// What an image is made of; the rest is as in `base`.
pub(crate) struct Forgery {
    pub(crate) name: &'static str,
    pub(crate) kernel: Vec<u8>,
    pub(crate) initramfs: Vec<u8>,
    pub(crate) rootfs: Vec<u8>,
    pub(crate) kernel_arguments: String,
    /// What else its manifest says.
    pub(crate) change: fn(&mut Value),
}

impl Forgery {
    /// An image that is found and verified, but could never boot.
    pub(crate) fn hollow() -> Self {
        Self {
            name: "hollow",
            kernel: b"no kernel".to_vec(),
            initramfs: b"no initramfs".to_vec(),
            rootfs: vec![0; 1 << 20],
            kernel_arguments: String::new(),
            change: |_| {},
        }
    }

    /// A guest that misbehaves in the way that `mode` names.
    pub(crate) fn hostile(mode: &str) -> Self {
        Self::booting("hostile", "mayfly-hostile-guest", format!("mayfly.hostile={mode}"))
    }

    /// A guest that loads its drivers and powers off: the least that can be booted.
    #[allow(dead_code, reason = "for the benchmarks")]
    pub(crate) fn floor() -> Self {
        Self::booting("floor", "floor", String::new())
    }

    /// The kernel and the modules of `base` with a program of the tests' as `/init`.
    fn booting(name: &'static str, init: &str, kernel_arguments: String) -> Self {
        let base = base();
        let mut initramfs = fs::read(base.join("initramfs")).unwrap();
        // The kernel takes archives one behind the other; a later file replaces an earlier one.
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

    /// Puts the image into the store of a host.
    pub(crate) fn install(&self, host: &Host) -> PathBuf {
        let text = fs::read(base().join("manifest.json")).unwrap();
        let mut manifest: Value = serde_json::from_slice(&text).unwrap();
        // Nobody asks what is in it.
        let bill = b"{}".to_vec();
        let parts = [
            ("kernel", "kernel", &self.kernel),
            ("initramfs", "initramfs", &self.initramfs),
            ("rootfs", "rootfs.img", &self.rootfs),
            ("spdx", "sbom.spdx.json", &bill),
            ("cyclonedx", "sbom.cdx.json", &bill),
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

/// The directory of the image `base`.
pub(crate) fn base() -> PathBuf {
    fs::canonicalize(images().join("base/latest")).unwrap()
}

/// The digests of all files of an image.
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

/// The SHA-256 of bytes, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// A cpio archive with a program as `/init`.
fn archive_of_init(program: &[u8]) -> Vec<u8> {
    let entry = Builder::new("init").ino(1).mode(0o755).set_mode_file_type(ModeFileType::Regular);
    let mut writer = entry.write(Vec::new(), u32::try_from(program.len()).unwrap());
    writer.write_all(program).unwrap();
    trailer(writer.finish().unwrap()).unwrap()
}

/// An ext4 file system with nothing in it.
fn empty_file_system() -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(16 << 20).unwrap();
    let mut make = Command::new("mke2fs");
    let made = make.args(["-q", "-t", "ext4"]).arg(file.path()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    fs::read(file.path()).unwrap()
}

/// A program of the hostile guest's package, built like the agent: static, because nothing is
/// beside it. Cargo does nothing where it is up to date, and lets one build at a time.
pub(crate) fn guest_program(name: &str) -> PathBuf {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The build's own directory, as the tests' is `<target>/tmp`.
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
