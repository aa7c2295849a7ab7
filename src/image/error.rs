//! Errors of image handling, with hints.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use mayfly_tree::TreeError;

use super::archive::ArchiveError;
use super::build::TarballError;
use super::download::DownloadError;
use super::kernel::KernelError;
use super::modules::ModuleError;
use super::name::{Digest, ImageName, InvalidName, Reference};
use super::signature::{KeyError, SignatureError};
use mayfly_failure::{Code, Failure};

/// The reason why an image can't be built, found or trusted.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The recipe is missing or can't be read.
    #[error("can't read the recipe {path}")]
    RecipeUnreadable {
        /// The recipe.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The recipe is not TOML, or has an unknown key or a value of the wrong type.
    #[error("invalid recipe {path}")]
    RecipeInvalid {
        /// The recipe.
        path: PathBuf,
        /// The position and cause, with the line in question.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A required key is missing from the recipe and its profiles.
    #[error("the recipe {path} and its profiles lack the required key `{key}`")]
    RecipeIncomplete {
        /// The recipe.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// A key or value set on the command line is invalid.
    #[error("invalid setting --set {setting}")]
    SettingInvalid {
        /// The setting as written.
        setting: String,
        /// The cause.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The manifest holds no valid recipe.
    #[error("the manifest of image `{image}` holds no valid recipe")]
    ManifestRecipe {
        /// The image.
        image: ImageName,
        /// The cause.
        #[source]
        source: toml::ser::Error,
    },
    /// A value of the recipe contradicts another value or the machine.
    #[error("invalid recipe {path}: {key} = {value:?}: {reason}")]
    RecipeValue {
        /// The recipe.
        path: PathBuf,
        /// The key, e.g. `files.source`.
        key: &'static str,
        /// Its value.
        value: String,
        /// The reason why it is rejected.
        reason: &'static str,
    },
    /// A program that a build needs is not installed.
    #[error("{program} is not installed")]
    ProgramMissing {
        /// The program.
        program: &'static str,
        /// The Debian package that contains it.
        package: &'static str,
    },
    /// The host does not allow the namespaces that a build needs.
    #[error("can't create the namespaces that a build needs: {detail}")]
    NamespacesRefused {
        /// The message of `unshare`.
        detail: String,
        /// Whether the build runs as root.
        root: bool,
    },
    /// A program of the build failed.
    #[error("{program} failed ({outcome}){}", format_tail(tail))]
    Tool {
        /// The program.
        program: String,
        /// Its exit status or signal.
        outcome: String,
        /// The last lines of its output.
        tail: Vec<String>,
    },
    /// The build exceeded its deadline.
    #[error("the build timed out after {}", humantime::format_duration(*limit))]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// The guest agent was not found.
    #[error("agent not found at {}", join_paths(searched))]
    AgentMissing {
        /// The paths that were tried.
        searched: Vec<PathBuf>,
    },
    /// The file can't run as the agent of a guest.
    #[error("{path} can't run as the guest agent: {reason}")]
    AgentUnsuitable {
        /// The program.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The kernel package is unusable.
    #[error("can't use the kernel {path}")]
    Kernel {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: KernelError,
    },
    /// The kernel lacks a module that the recipe names.
    #[error("can't load the recipe's modules into the kernel {release}")]
    Modules {
        /// The kernel's release.
        release: String,
        /// The module and the cause.
        #[source]
        source: ModuleError,
    },
    /// The recipe needs a runner but does not specify which.
    #[error("the recipe {path} does not specify which runner to install")]
    RunnerUnspecified {
        /// The recipe.
        path: PathBuf,
    },
    /// A runner was given for a recipe without one.
    #[error("a runner was given, but the recipe {path} has no [runner]")]
    RunnerUnexpected {
        /// The recipe.
        path: PathBuf,
    },
    /// The runner's version is not the expected one.
    #[error("the runner reports version {found:?}, expected {expected}")]
    RunnerVersion {
        /// The version that it reports.
        found: String,
        /// The expected version.
        expected: String,
    },
    /// The content does not match its expected digest.
    #[error("{from} has SHA-256 {found}, expected {expected}")]
    WrongDigest {
        /// Its file or URL.
        from: String,
        /// The expected digest.
        expected: Digest,
        /// The digest that it has.
        found: Digest,
    },
    /// A download failed.
    #[error("can't download {url}")]
    Download {
        /// Its URL.
        url: String,
        /// The cause.
        #[source]
        source: DownloadError,
    },
    /// An archive can't be unpacked.
    #[error("can't unpack the archive {path}")]
    Tarball {
        /// The archive.
        path: PathBuf,
        /// The cause.
        #[source]
        source: TarballError,
    },
    /// A name, digest or reference is malformed.
    #[error("invalid image name")]
    Name(#[source] InvalidName),
    /// No image of the store matches the reference.
    #[error("image `{reference}` not found in {store}")]
    Unknown {
        /// The reference.
        reference: Reference,
        /// The store.
        store: PathBuf,
    },
    /// More than one build has a digest with this prefix.
    #[error("image `{reference}` is ambiguous: it matches {}", join_digests(matches))]
    Ambiguous {
        /// The reference.
        reference: Reference,
        /// The matching digests.
        matches: Vec<Digest>,
    },
    /// The name has no previous build, or that build was removed.
    #[error("image `{name}` has no previous build")]
    NoPrevious {
        /// The name.
        name: ImageName,
    },
    /// The image lacks the signature that this host requires.
    #[error("image `{image}` is not trusted")]
    Untrusted {
        /// The image's name and digest.
        image: String,
        /// The cause.
        #[source]
        source: SignatureError,
    },
    /// The file is not a valid image archive.
    #[error("can't import {path}")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ArchiveError,
    },
    /// A signing key is unusable.
    #[error("can't use the key {key}")]
    Key {
        /// The key, or its file.
        key: String,
        /// The cause.
        #[source]
        source: KeyError,
    },
    /// The manifest can't be parsed or written.
    #[error("can't parse the manifest {path}")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A file of the image has changed since the build.
    #[error("{part} has changed since the build: SHA-256 {found}, expected {expected}")]
    Changed {
        /// The file.
        part: PathBuf,
        /// The digest that it was built with.
        expected: Digest,
        /// The digest that it has.
        found: Digest,
    },
    /// An input of a rebuild differs from that of the original build.
    #[error(
        "{path} differs from the input of image `{image}`: SHA-256 {found}, expected {expected}"
    )]
    InputMismatch {
        /// The recipe or the agent.
        path: PathBuf,
        /// The image's name and digest.
        image: String,
        /// The digest of the original input.
        expected: Digest,
        /// The digest that the file has.
        found: Digest,
    },
    /// A rebuilt image differs from the original.
    #[error("the rebuilt image differs from `{image}`: its digest is {rebuilt}")]
    RebuildMismatch {
        /// The image's name and digest.
        image: String,
        /// The digest of the rebuilt image.
        rebuilt: Digest,
    },
    /// A root file system can't be read.
    #[error("can't read the file system in {path}")]
    FileSystem {
        /// The part.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ext4_view::Ext4Error,
    },
    /// The image's agent uses another version of the protocol.
    #[error("the agent in image `{image}` speaks protocol {found}, this Mayfly speaks {expected}")]
    Protocol {
        /// The image's name and digest.
        image: String,
        /// The image's version.
        found: u16,
        /// This program's version.
        expected: u16,
    },
    /// Another process held the store's lock for too long.
    #[error("the image store {store} is locked by another process")]
    StoreBusy {
        /// The store.
        store: PathBuf,
    },
    /// A file can't be read.
    #[error("can't read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A file can't be written, created, moved or removed.
    #[error("can't write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// Returns a function for `map_err` that reports `path` as unreadable.
    pub(super) fn read(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::Read { path, source }
    }

    /// Returns a function for `map_err` that reports `path` as unwritable.
    pub(super) fn write(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::Write { path, source }
    }

    /// Returns a function for `map_err` that reports a full disk at `path`.
    pub(super) fn disk_full(path: impl Into<PathBuf>) -> impl FnOnce(TreeError) -> Self {
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
            | Self::RunnerUnspecified { .. }
            | Self::RunnerUnexpected { .. }
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
            Self::AgentUnsuitable { .. }
            | Self::Kernel { .. }
            | Self::Manifest { .. }
            | Self::Changed { .. }
            | Self::Archive { .. }
            | Self::Key { .. }
            | Self::WrongDigest { .. }
            | Self::ManifestRecipe { .. }
            | Self::RunnerVersion { .. }
            | Self::Tarball { .. }
            | Self::InputMismatch { .. }
            | Self::RebuildMismatch { .. }
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
            Self::NamespacesRefused { root: false, .. } => "Install the package uidmap; add \
                 65,536 ids to /etc/subuid and /etc/subgid (usermod --add-subuids 100000-165535 \
                 --add-subgids 100000-165535 USER); allow user namespaces: see `mayfly doctor`."
                .to_owned(),
            Self::TimedOut { .. } => "Set a longer limit with --timeout.".to_owned(),
            Self::AgentMissing { .. } => "Set its path with --agent or MAYFLY_GUEST.".to_owned(),
            Self::AgentUnsuitable { .. } => "Build it with \
                 RUSTFLAGS='-C target-feature=+crt-static' and an explicit --target."
                .to_owned(),
            Self::RunnerUnspecified { .. } => "Give an archive with --runner-archive, or set \
                 runner.version and runner.sha256. For `latest`, give the settings of the \
                 GitHub account with --config."
                .to_owned(),
            Self::Unknown { .. } => {
                "List images with `mayfly image list`; build one with `mayfly image build`."
                    .to_owned()
            }
            Self::NoPrevious { .. } => {
                "List its builds with `mayfly image list`; select one with NAME@DIGEST-PREFIX."
                    .to_owned()
            }
            Self::Untrusted { source: SignatureError::Missing, .. } => {
                "Sign it with a key that this \
                 host trusts: mayfly image sign NAME --key FILE"
                    .to_owned()
            }
            Self::Untrusted { .. } => {
                "Add the key to host.image_keys in the settings, to MAYFLY_IMAGE_KEYS, or to the \
                 command line."
                    .to_owned()
            }
            Self::Ambiguous { .. } => "Give more digits of the digest.".to_owned(),
            Self::InputMismatch { .. } => {
                "Name the recipe with --recipe and the agent with --agent, both as originally used."
                    .to_owned()
            }
            Self::RebuildMismatch { .. } => "The differences are listed above. If newer packages \
                 caused them, set `mirror` in the recipe to a mirror of \
                 the original state."
                .to_owned(),
            Self::Changed { .. } | Self::Manifest { .. } | Self::Protocol { .. } => {
                "Rebuild the image: mayfly image build RECIPE".to_owned()
            }
            _ => return None,
        };
        Some(hint)
    }
}

fn format_tail(tail: &[String]) -> String {
    if tail.is_empty() {
        return String::new();
    }
    format!("; last lines of output:\n  {}", tail.join("\n  "))
}

fn join_paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn join_digests(digests: &[Digest]) -> String {
    digests.iter().map(Digest::as_str).collect::<Vec<_>>().join(", ")
}
