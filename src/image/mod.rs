//! Images: what a microVM boots from, how one is made, kept and checked.
//!
//! A [`recipe`] is built by [`build::Builder`] into a directory of the [`store`]:
//!
//! ```text
//! <store>/<name>/latest -> <digest>     the build that the name means
//! <store>/<name>/previous -> <digest>   the one that it meant before, for a rollback
//! <store>/<name>/<digest>/
//!     kernel          uncompressed ELF kernel
//!     initramfs       newc archive: the agent as /init, modules, their load order in /modules
//!     rootfs.img      raw ext4, sparse, only ever a read-only base
//!     sbom.spdx.json  what is in them, for scanners; sbom.cdx.json is the same in CycloneDX
//!     manifest.json   digests of the five, and everything that went into them
//!     manifest.json.minisig   who vouches for it, if anybody does; the one file that may change
//! <store>/.downloads/<sha256>   what builds have downloaded
//! ```
//!
//! The digest is that of the manifest, so it stands for every byte of the image. A directory
//! under its digest is whole and never changes: it is made elsewhere and renamed into place.
//!
//! This folder owns the store's layout and the contract with the agent in the initramfs. It must
//! not know how a microVM is run, nor print anything.

mod archive;
pub mod build;
pub mod diff;
mod docker;
mod download;
mod error;
pub mod files;
pub mod hardening;
mod hash;
mod initramfs;
mod kernel;
mod manifest;
mod modules;
mod name;
pub mod recipe;
mod sbom;
mod signature;
mod store;
mod verify;

pub use archive::{ArchiveError, Moved, check as check_archive};
pub use download::DownloadError;
pub use error::ImageError;
pub use manifest::{Agent, Download, Inputs, Kernel, Manifest, Package, Part, Parts, Runner};
pub use name::{Digest, ImageName, InvalidName, Reference};
pub use signature::{KeyError, KeyId, PublicKey, SecretKey, SignatureError, Signed, Trust};
pub use store::{Build, Candidate, Collection, Hold, Image, Kept, Listing, Retention, Store};
