//! The host: its programs, processors, memory, disk, descriptors and clock; the state directory;
//! HTTPS with the host's certificates and proxies.
//!
//! Owns the layout of the state directory. What a command needs is checked before anything starts,
//! so that a missing prerequisite gets a name and a hint instead of a failure half-way. Knows
//! nothing about microVMs.

pub mod capacity;
pub mod check;
pub mod clock;
pub mod descriptors;
pub mod lock;
pub mod memory;
pub mod programs;
pub mod size;
pub mod state;
pub mod web;

use std::fs::File;
use std::io::Read;

/// Returns bytes from the kernel's random number generator.
pub fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
