//! Everything that can go wrong with images, with what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use mayfly_tree::TreeError;

use super::archive::ArchiveError;
use super::build::TarballError;
use super::download::DownloadError;
use super::kernel::KernelError;
use super::modules::UnknownModule;
use super::name::{Digest, ImageName, InvalidName, Reference};
use super::signature::{KeyError, SignatureError};
use crate::failure::{Code, Failure};

/// Why an image can't be made, found or trusted.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The recipe is not there or can't be read.
    #[error("can't read the recipe {path}")]
    RecipeUnreadable {
        /// The recipe.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The recipe is not TOML, or has an unknown key or a value of the wrong kind.
    #[error("the recipe {path} is wrong")]
    RecipeInvalid {
        /// The recipe.
        path: PathBuf,
        /// Where and why, with the line in question.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// Neither the recipe nor its profiles say what every recipe must.
    #[error("the recipe {path} says no `{key}`, nor do its profiles")]
    RecipeIncomplete {
        /// The recipe.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// A key or value that was set on the command line.
    #[error("--set {setting} is wrong")]
    SettingInvalid {
        /// What was set.
        setting: String,
        /// Why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A manifest whose recipe is none.
    #[error("image `{image}` has no recipe to build it from again")]
    RecipeOfManifest {
        /// The image.
        image: ImageName,
        /// Why not.
        #[source]
        source: toml::ser::Error,
    },
    /// Values of the recipe that contradict each other or the machine.
    #[error("the recipe {path} is wrong: {key} = {value:?}: {problem}")]
    RecipeValue {
        /// The recipe.
        path: PathBuf,
        /// The key in question, e.g. `files.source`.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A program that a build needs is not installed.
    #[error("{program} is not installed")]
    ProgramMissing {
        /// The program.
        program: &'static str,
        /// Debian's package that has it.
        package: &'static str,
    },
    /// The host does not let a build have namespaces of its own.
    #[error("a build needs namespaces of its own, which this host refuses: {detail}")]
    NamespacesRefused {
        /// What `unshare` said.
        detail: String,
        /// Whether the build runs as root.
        root: bool,
    },
    /// A program of the build failed.
    #[error("{program} failed ({outcome}){}", shown_tail(tail))]
    Tool {
        /// The program.
        program: String,
        /// Its exit status or signal.
        outcome: String,
        /// The last lines that it printed.
        tail: Vec<String>,
    },
    /// The build was not done by its deadline.
    #[error("the build was not done after {}", humantime::format_duration(*limit))]
    TimedOut {
        /// The time that it was given.
        limit: Duration,
    },
    /// There is no agent to put into the image.
    #[error("the guest agent is not at {}", paths(searched))]
    AgentMissing {
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// The agent could not run in a guest.
    #[error("{path} can't be the guest agent: {problem}")]
    AgentUnfit {
        /// The program.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// The kernel package is not what it should be.
    #[error("can't use the kernel {path}")]
    Kernel {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: KernelError,
    },
    /// The kernel does not have a module that the recipe names.
    #[error("the recipe's modules do not fit the kernel {release}")]
    Modules {
        /// The kernel's release.
        release: String,
        /// Which, and why.
        #[source]
        source: UnknownModule,
    },
    /// The recipe wants a runner and does not say which.
    #[error("the recipe {path} leaves open which runner the image is to have")]
    RunnerUnnamed {
        /// The recipe.
        path: PathBuf,
    },
    /// A runner was given to a recipe that wants none.
    #[error("the recipe {path} has no [runner]")]
    RunnerUnwanted {
        /// The recipe.
        path: PathBuf,
    },
    /// The runner is another one than it should be.
    #[error("the runner says that it is {found:?}, and it should be {expected}")]
    RunnerVersion {
        /// What it says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// Something is not what its digest says.
    #[error("{from} has SHA-256 {found} instead of {expected}")]
    WrongDigest {
        /// Where it is from.
        from: String,
        /// The digest that it should have.
        expected: Digest,
        /// The digest that it has.
        found: Digest,
    },
    /// A download that did not come.
    #[error("can't download {url}")]
    Download {
        /// From where.
        url: String,
        /// Why not.
        #[source]
        source: DownloadError,
    },
    /// An archive that can't be unpacked.
    #[error("can't use the archive {path}")]
    Tarball {
        /// The archive.
        path: PathBuf,
        /// Why not.
        #[source]
        source: TarballError,
    },
    /// A name, digest or reference that is none.
    #[error("not an image's name")]
    Name(#[source] InvalidName),
    /// No image is called so.
    #[error("there is no image `{reference}` in {store}")]
    Unknown {
        /// What was asked for.
        reference: Reference,
        /// Where.
        store: PathBuf,
    },
    /// More than one build has a digest that begins so.
    #[error("`{reference}` could be any of {}", list(matches))]
    Ambiguous {
        /// What was asked for.
        reference: Reference,
        /// The digests that begin so.
        matches: Vec<Digest>,
    },
    /// A name has meant one build only, or the one before is gone.
    #[error("`{name}` has meant no other build that is still there")]
    NoPrevious {
        /// The name.
        name: ImageName,
    },
    /// An image that is not signed as this host wants it.
    #[error("image `{image}` is not to be trusted")]
    Untrusted {
        /// The image's name and digest.
        image: String,
        /// Why not.
        #[source]
        source: SignatureError,
    },
    /// An archive that is no image's.
    #[error("can't import {path}")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ArchiveError,
    },
    /// A key for signatures that can't be used.
    #[error("can't use the key {key}")]
    Key {
        /// The key, or the file that it is in.
        key: String,
        /// Why not.
        #[source]
        source: KeyError,
    },
    /// A manifest that does not say what a manifest says.
    #[error("can't understand the manifest {path}")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A part of an image is not what it was when it was built.
    #[error("{part} of the image is not what was built: SHA-256 {found} instead of {expected}")]
    Changed {
        /// The file.
        part: PathBuf,
        /// The digest that it was built with.
        expected: Digest,
        /// The digest that it has.
        found: Digest,
    },
    /// What an image is to be built again from is not what it was built from.
    #[error(
        "{path} is not what image `{image}` was built from: SHA-256 {found} instead of {expected}"
    )]
    OtherInput {
        /// The recipe or the agent.
        path: PathBuf,
        /// The image's name and digest.
        image: String,
        /// The digest of what it was built from.
        expected: Digest,
        /// The digest that the file has.
        found: Digest,
    },
    /// An image that was built again is not the same.
    #[error("image `{image}` built again is another: {rebuilt}")]
    NotTheSame {
        /// The image's name and digest.
        image: String,
        /// The digest of the second one.
        rebuilt: Digest,
    },
    /// A root file system is none that can be read.
    #[error("can't read the file system in {path}")]
    FileSystem {
        /// The part.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ext4_view::Ext4Error,
    },
    /// The image's agent speaks another version of the protocol.
    #[error("the agent in image `{image}` speaks protocol {found}, this Mayfly speaks {expected}")]
    Protocol {
        /// The image's name and digest.
        image: String,
        /// The image's version.
        found: u16,
        /// This program's version.
        expected: u16,
    },
    /// Others have held the store for too long.
    #[error("the image store {store} is locked by another process")]
    StoreBusy {
        /// The store.
        store: PathBuf,
    },
    /// Something can't be read.
    #[error("can't read {path}")]
    Read {
        /// What.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something can't be written, made, moved or removed.
    #[error("can't write {path}")]
    Write {
        /// What.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// For `map_err`: that `path` can't be read.
    pub(super) fn read(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::Read { path, source }
    }

    /// For `map_err`: that `path` can't be written.
    pub(super) fn write(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::Write { path, source }
    }

    /// A disk that is too full for what would be written to `path`.
    pub(super) fn no_room(path: impl Into<PathBuf>) -> impl FnOnce(TreeError) -> Self {
        let write = Self::write(path);
        |error| write(io::Error::new(io::ErrorKind::StorageFull, error.to_string()))
    }
}

impl Failure for ImageError {
    fn code(&self) -> Code {
        match self {
            Self::RecipeInvalid { .. }
            | Self::RecipeIncomplete { .. }
            | Self::SettingInvalid { .. }
            | Self::RecipeValue { .. }
            | Self::RunnerUnnamed { .. }
            | Self::RunnerUnwanted { .. }
            | Self::Modules { .. } => Code::BadConfiguration,
            Self::RecipeUnreadable { .. }
            | Self::AgentMissing { .. }
            | Self::Unknown { .. }
            | Self::NoPrevious { .. }
            | Self::Read { .. } => Code::NotFound,
            Self::ProgramMissing { .. }
            | Self::Tool { .. }
            | Self::Download { .. }
            | Self::StoreBusy { .. } => Code::Unavailable,
            Self::NamespacesRefused { .. } | Self::Untrusted { .. } => Code::Forbidden,
            Self::TimedOut { .. } => Code::TimedOut,
            Self::AgentUnfit { .. }
            | Self::Kernel { .. }
            | Self::Manifest { .. }
            | Self::Changed { .. }
            | Self::Archive { .. }
            | Self::Key { .. }
            | Self::WrongDigest { .. }
            | Self::RecipeOfManifest { .. }
            | Self::RunnerVersion { .. }
            | Self::Tarball { .. }
            | Self::OtherInput { .. }
            | Self::NotTheSame { .. }
            | Self::FileSystem { .. }
            | Self::Protocol { .. } => Code::BadData,
            Self::Name(_) | Self::Ambiguous { .. } => Code::Usage,
            Self::Write { .. } => Code::CannotWrite,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::ProgramMissing { package, .. } => {
                format!("Install it: apt-get install {package}")
            }
            Self::NamespacesRefused { root: true, .. } => {
                "As root a build needs CAP_SYS_ADMIN; in a container, add that capability."
                    .to_owned()
            }
            Self::NamespacesRefused { root: false, .. } => "An ordinary user needs the package \
                 uidmap, a range of at least 65,535 ids in /etc/subuid and /etc/subgid \
                 (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER) and a \
                 kernel that lets users make user namespaces (where AppArmor restricts them: \
                 sysctl kernel.apparmor_restrict_unprivileged_userns=0)."
                .to_owned(),
            Self::TimedOut { .. } => "Give it more with --timeout.".to_owned(),
            Self::AgentMissing { .. } => "Name it with --agent or MAYFLY_GUEST.".to_owned(),
            Self::AgentUnfit { .. } => "Build it with \
                 RUSTFLAGS='-C target-feature=+crt-static' and an explicit --target."
                .to_owned(),
            Self::RunnerUnnamed { .. } => "Name an archive with --runner-archive, or set \
                 runner.version and runner.sha256; for `latest`, name with --config the settings \
                 of the GitHub account that is asked."
                .to_owned(),
            Self::Unknown { .. } => {
                "`mayfly image list` shows what is there; `mayfly image build` makes one."
                    .to_owned()
            }
            Self::NoPrevious { .. } => {
                "`mayfly image list` shows its builds; NAME@DIGEST-PREFIX means a certain one."
                    .to_owned()
            }
            Self::Untrusted { source: SignatureError::Missing, .. } => {
                "Sign it with a key that this \
                 host trusts: mayfly image sign NAME --key FILE"
                    .to_owned()
            }
            Self::Untrusted { .. } => {
                "Trusted keys are in host.image_keys of the settings, in MAYFLY_IMAGE_KEYS, or were \
                 named on the command line."
                    .to_owned()
            }
            Self::Ambiguous { .. } => "Give more digits.".to_owned(),
            Self::OtherInput { .. } => {
                "Name the recipe with --recipe and the agent with --agent, as they were then."
                    .to_owned()
            }
            Self::NotTheSame { .. } => "What differs is listed above. Packages that have moved \
                 on since then make another image; a mirror of their state then \
                 (`mirror` in the recipe) brings them back."
                .to_owned(),
            Self::Changed { .. } | Self::Manifest { .. } | Self::Protocol { .. } => {
                "Build the image again: mayfly image build RECIPE".to_owned()
            }
            _ => return None,
        };
        Some(hint)
    }
}

fn shown_tail(tail: &[String]) -> String {
    if tail.is_empty() {
        return String::new();
    }
    format!("; its last lines:\n  {}", tail.join("\n  "))
}

fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn list(digests: &[Digest]) -> String {
    digests.iter().map(Digest::as_str).collect::<Vec<_>>().join(", ")
}
