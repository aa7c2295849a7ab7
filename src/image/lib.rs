//! Images: building, storing and verifying what a microVM boots from.
//!
//! [`build::Builder`] turns a [`recipe`] into a directory of the [`store`]:
//!
//! ```text
//! <store>/<name>/latest -> <digest>     the current build of the name
//! <store>/<name>/previous -> <digest>   the build that was current before, for a rollback
//! <store>/<name>/<digest>/
//!     kernel          uncompressed ELF kernel
//!     initramfs       newc archive: the agent as /init, modules, their load order in /modules
//!     rootfs.img      raw ext4, sparse, always used read-only
//!     sbom.spdx.json  bill of materials; sbom.cdx.json is the same in CycloneDX
//!     manifest.json   digests of the five files, and all inputs of the build
//!     manifest.json.minisig   optional signature; the only file that may change
//! <store>/.downloads/<sha256>   download cache of builds
//! ```
//!
//! The image's digest is that of the manifest, so it covers every byte of the image. A directory
//! under its digest is complete and immutable: it is made elsewhere and renamed into place.
//!
//! This crate owns the store's layout and the contract with the agent in the initramfs. It must
//! not know how a microVM is run, and it prints nothing.

mod archive;
pub mod build;
pub mod diff;
mod docker;
mod download;
mod error;
mod files;
pub mod hardening;
mod hash;
mod initramfs;
mod kernel;
mod manifest;
mod modules;
mod name;
pub mod recipe;
pub mod refresh;
mod sbom;
mod signature;
mod store;
mod verify;

pub use archive::{ArchiveError, TransferProgress, check as check_archive};
pub use download::DownloadError;
pub use error::ImageError;
pub use manifest::{
    AgentInfo, BuildInputs, InstalledDownload, InstalledPackage, InstalledRunner, KernelInfo,
    Manifest, Part, Parts,
};
pub use name::{Digest, ImageName, InvalidName, Reference};
pub use signature::{KeyError, KeyId, PublicKey, SecretKey, SignatureError, SignatureInfo, Trust};
pub use store::{
    Candidate, CollectedBuild, CollectionReport, Hold, Image, Listing, RetainedBuilds,
    RetentionReason, Store,
};
