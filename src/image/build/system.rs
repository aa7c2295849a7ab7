//! Creates the root file system's content with mmdebstrap and scripts.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::enclosure::Enclosure;
use super::layer::{Access, Layer, directories_between};
use super::process::ProcessRunner;
use super::sources;
use crate::error::ImageError;
use crate::hash;
use crate::name::Digest;
use crate::recipe::{PackageName, Recipe, RecipeContent, UserName, UserSpec};
use crate::sbom::{DebianPackage, PACKAGE_FORMAT, SystemFacts};

const CUSTOMIZE: &str = include_str!("customize.sh");
const CLEAN: &str = include_str!("clean.sh");
const INSIDE: &str = include_str!("inside.sh");
const FINISH: &str = include_str!("finish.sh");
const DESCRIBE: &str = include_str!("describe.sh");

/// The dpkg options of the image, during the build and in the guest. They exclude manual pages and
/// all locales except the C library's C.UTF-8. Copyright files stay, and so do the directories of
/// manual pages: packages of Java and `PostgreSQL` can't be installed without them.
const DPKG_OPTIONS: [&str; 8] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    // The disk is disposable: syncing each unpacked file would protect nothing.
    "force-unsafe-io",
];

/// The paths of a system under construction, in the build's `work` directory.
pub(super) struct System {
    work: PathBuf,
}

/// A system whose packages are installed.
pub(super) struct InstalledSystem {
    /// The timestamp of everything in the image, in seconds since 1970.
    pub(super) date: u64,
    /// Its packages, sorted.
    pub(super) packages: Vec<DebianPackage>,
}

impl System {
    pub(super) fn new(work: PathBuf) -> Self {
        Self { work }
    }

    /// Returns the new system's root directory. Only the enclosure may write to it.
    pub(super) fn root(&self) -> PathBuf {
        self.work.join("root")
    }

    /// Returns the directory of the kernel's package.
    pub(super) fn kernel(&self) -> PathBuf {
        self.work.join("kernel")
    }

    /// Returns the staging directory of the guest's modules.
    pub(super) fn modules(&self) -> PathBuf {
        self.work.join("modules")
    }

    fn hook(&self) -> PathBuf {
        self.work.join("customize.sh")
    }

    /// Installs the recipe's packages, creates its users and downloads its kernel's package.
    pub(super) fn install(
        &self,
        recipe: &Recipe,
        content: &RecipeContent,
        date: Option<u64>,
        enclosure: Enclosure,
        runner: &ProcessRunner<'_>,
    ) -> Result<InstalledSystem, ImageError> {
        for directory in [self.kernel(), self.work.join("temporary")] {
            fs::create_dir(&directory).map_err(ImageError::write(directory))?;
        }
        write(&self.work.join("users"), &user_lines(&content.users))?;
        write(&self.hook(), CUSTOMIZE)?;
        make_executable(&self.hook())?;
        let sources = match &content.mirror {
            Some(mirror) => vec![mirror.to_string()],
            None => sources::of_host(runner, &recipe.suite),
        };
        let mut command = enclosure.command("mmdebstrap");
        command
            .args(self.arguments(recipe, content, sources))
            .env("TMPDIR", self.work.join("temporary"))
            .env("MAYFLY_WORK", &self.work)
            .env("MAYFLY_KERNEL", recipe.kernel.as_str())
            .env("MAYFLY_DATE", date.map(|date| date.to_string()).unwrap_or_default())
            .env("MAYFLY_FORMAT", PACKAGE_FORMAT);
        runner.run_as("mmdebstrap", &mut command)?;
        self.installed()
    }

    /// Returns mmdebstrap's arguments. The mode is "root", because the enclosure has already made
    /// this process root of its namespaces.
    fn arguments(
        &self,
        recipe: &Recipe,
        content: &RecipeContent,
        sources: Vec<String>,
    ) -> Vec<String> {
        let mut packages: Vec<&str> = content.packages.iter().map(PackageName::as_str).collect();
        if content.hardening.sudo {
            packages.push("sudo");
        }
        let mut arguments: Vec<String> =
            ["--mode=root", "--format=directory", "--variant=minbase"].map(str::to_owned).into();
        arguments.extend(DPKG_OPTIONS.iter().map(|option| format!("--dpkgopt={option}")));
        if !packages.is_empty() {
            arguments.push(format!("--include={}", packages.join(",")));
        }
        arguments.push(format!("--customize-hook={}", self.hook().display()));
        arguments.push(recipe.suite.to_string());
        arguments.push(self.root().display().to_string());
        arguments.extend(sources);
        arguments
    }

    /// Reads the files that the hook wrote.
    fn installed(&self) -> Result<InstalledSystem, ImageError> {
        let date = read(&self.work.join("date"))?;
        let date = date.trim().parse().map_err(|_| {
            ImageError::read(self.work.join("date"))(io::Error::other("not a date"))
        })?;
        Ok(InstalledSystem { date, packages: parse_packages(&read(&self.work.join("packages"))?) })
    }

    /// Returns the path of the archive of additional files.
    pub(super) fn layer(&self) -> PathBuf {
        self.work.join("files.tar")
    }

    /// Removes files that differ between builds, and unpacks the [`layer`](Self::layer).
    pub(super) fn unpack_layer(
        &self,
        date: u64,
        enclosure: Enclosure,
        runner: &ProcessRunner<'_>,
    ) -> Result<(), ImageError> {
        self.script("clean.sh", (CLEAN, None), date, enclosure, runner)?;
        // With a root of its own, so that no symbolic link of the new system leads outside.
        let script = "exec chroot \"$1\" tar --extract --numeric-owner --same-permissions \
                      --overwrite <\"$2\"";
        let mut command = enclosure.command("sh");
        command.args(["-c", script, "unpack"]).arg(self.root()).arg(self.layer());
        runner.run_as("tar", &mut command).map(drop)
    }

    /// Runs a program in the new system as `user` or root, and returns its output.
    pub(super) fn run_inside(
        &self,
        user: Option<&UserSpec>,
        command: &[&str],
        date: u64,
        enclosure: Enclosure,
        runner: &ProcessRunner<'_>,
    ) -> Result<Vec<u8>, ImageError> {
        let (id, home) = user.map_or((0, "/root"), |user| (user.uid, user.home.as_str()));
        let mut script = enclosure.command("sh");
        script.args(["-c", INSIDE, "inside"]).arg(self.root());
        script.arg(format!("{id}:{id}")).arg(home).args(command);
        script.env("SOURCE_DATE_EPOCH", date.to_string());
        runner.run_as(&format!("{} in the new system", command.join(" ")), &mut script)
    }

    /// Completes the system with the hardening script, the last program that runs in it.
    pub(super) fn finish(
        &self,
        hardening: &str,
        date: u64,
        enclosure: Enclosure,
        runner: &ProcessRunner<'_>,
    ) -> Result<(), ImageError> {
        let harden = self.work.join("harden.sh");
        write(&harden, hardening)?;
        self.script("finish.sh", (FINISH, Some(&harden)), date, enclosure, runner)
    }

    fn script(
        &self,
        name: &str,
        (text, more): (&str, Option<&PathBuf>),
        date: u64,
        enclosure: Enclosure,
        runner: &ProcessRunner<'_>,
    ) -> Result<(), ImageError> {
        let mut command: Command = enclosure.command("sh");
        command.args(["-c", text, name]).arg(self.root()).arg(date.to_string()).args(more);
        runner.run_as(name, &mut command).map(drop)
    }

    /// Adds the finished system's own metadata to `facts`: that of its packages, and of the runner
    /// in `directory`.
    pub(super) fn describe(
        &self,
        facts: &mut SystemFacts,
        directory: Option<&str>,
        enclosure: Enclosure,
        runner: &ProcessRunner<'_>,
    ) -> Result<(), ImageError> {
        let archive = self.work.join("facts.tar");
        let mut command = enclosure.command("sh");
        command.args(["-c", DESCRIBE, "describe"]).arg(self.root());
        command.arg(directory.unwrap_or_default()).arg(&archive);
        runner.run_as("the inventory script", &mut command)?;
        let file = fs::File::open(&archive).map_err(ImageError::read(&archive))?;
        facts.read(io::BufReader::new(file)).map_err(ImageError::read(&archive))
    }
}

/// Returns a line for each user, for the hook. No field can contain a colon or a line break
/// (`recipe`).
fn user_lines(users: &[UserSpec]) -> String {
    let line = |user: &UserSpec| {
        let groups: Vec<&str> = user.groups.iter().map(UserName::as_str).collect();
        let UserSpec { name, uid, home, shell, .. } = user;
        format!("{name}:{uid}:{home}:{shell}:{}\n", groups.join(","))
    };
    users.iter().map(line).collect()
}

fn parse_packages(text: &str) -> Vec<DebianPackage> {
    let mut packages: Vec<_> = text.lines().filter_map(DebianPackage::parse).collect();
    packages.sort();
    packages
}

/// Adds the recipe's files to the layer. Records in `sources` the digests of the files that the
/// recipe refers to.
pub(super) fn write_files(
    recipe: &Recipe,
    content: &RecipeContent,
    layer: &mut Layer,
    sources: &mut RecipeFiles,
) -> Result<(), ImageError> {
    for file in &content.files {
        let bytes = sources.bytes(recipe, file.content.as_deref(), file.source.as_deref())?;
        let path = file.path.as_str();
        let owner = match content.user(file.owner.as_ref()) {
            Some(user) => {
                for directory in directories_between(&user.home, path) {
                    layer.directory(directory, Access { owner: user.uid, mode: 0o755 })?;
                }
                user.uid
            }
            None => 0,
        };
        let access = Access { owner, mode: file.mode.0 };
        layer.file(path, access, bytes.len() as u64, bytes.as_slice())?;
    }
    Ok(())
}

/// Reads the files that a recipe refers to, and records their digests.
#[derive(Default)]
pub(super) struct RecipeFiles {
    /// The digests of the files, by path as written in the recipe.
    pub(super) digests: BTreeMap<String, Digest>,
}

impl RecipeFiles {
    /// Returns `content`, or the content of the file `source`.
    pub(super) fn bytes(
        &mut self,
        recipe: &Recipe,
        content: Option<&str>,
        source: Option<&Path>,
    ) -> Result<Vec<u8>, ImageError> {
        let Some(source) = source else {
            return Ok(content.unwrap_or_default().as_bytes().to_vec());
        };
        let path = recipe.resolve(source);
        let bytes = fs::read(&path).map_err(ImageError::read(path))?;
        self.digests.insert(source.display().to_string(), hash::of_bytes(&bytes));
        Ok(bytes)
    }
}

pub(super) fn read(path: &Path) -> Result<String, ImageError> {
    fs::read_to_string(path).map_err(ImageError::read(path))
}

pub(super) fn write(path: &Path, text: &str) -> Result<(), ImageError> {
    fs::write(path, text).map_err(ImageError::write(path))
}

pub(super) fn make_executable(path: &Path) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(ImageError::write(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_sorted_by_name() {
        let packages = parse_packages(
            "zlib1g\t1:1.3\tamd64\tzlib\t1:1.3\tA\t\napt\t3.0\tamd64\tapt\t3.0\tB\t\n",
        );
        let names: Vec<_> = packages.iter().map(|found| found.package.name.as_str()).collect();
        assert_eq!(names, ["apt", "zlib1g"]);
        assert_eq!(packages[1].package.version, "1:1.3");
    }

    #[test]
    fn files_keep_mode_owner_and_the_date() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("recipe.toml");
        fs::write(directory.path().join("tool.sh"), "#!/bin/sh\n").unwrap();
        let text = r#"
            name = "x"
            suite = "trixie"
            size = "512M"
            [kernel]
            package = "linux-image-cloud-amd64"
            [[users]]
            name = "runner"
            uid = 1001
            home = "/home/runner"
            shell = "/bin/sh"
            [[files]]
            path = "/home/runner/bin/tool"
            mode = "0755"
            owner = "runner"
            source = "tool.sh"
            [[files]]
            path = "/etc/x"
            content = "x"
        "#;
        fs::write(&path, text).unwrap();
        let recipe = Recipe::load(&path, &[]).unwrap();
        assert_eq!(user_lines(&recipe.content.users), "runner:1001:/home/runner:/bin/sh:\n");

        let archive = directory.path().join("files.tar");
        let mut layer = Layer::create(archive.clone(), 7).unwrap();
        let mut sources = RecipeFiles::default();
        write_files(&recipe, &recipe.content, &mut layer, &mut sources).unwrap();
        layer.finish().unwrap();
        let expected = ("tool.sh".to_owned(), hash::of_bytes(b"#!/bin/sh\n"));
        assert_eq!(sources.digests, [expected].into());
        let mut archive = tar::Archive::new(fs::File::open(archive).unwrap());
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let header = entry.unwrap().header().clone();
                let path = header.path().unwrap().display().to_string();
                (path, header.mode().unwrap(), header.uid().unwrap(), header.mtime().unwrap())
            })
            .collect();
        let expected = [
            ("home/runner/bin", 0o755, 1001, 7),
            ("home/runner/bin/tool", 0o755, 1001, 7),
            ("etc/x", 0o644, 0, 7),
        ]
        .map(|(path, mode, uid, date)| (path.to_owned(), mode, uid, date));
        assert_eq!(entries, expected);
    }
}
