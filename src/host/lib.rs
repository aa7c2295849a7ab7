//! The host's capabilities: the state directory, programs, devices, memory.
//!
//! Everything here is checked before anything is started, so that a missing prerequisite gets a
//! name and a hint instead of a failure half-way. Owns the layout of the state directory. Knows
//! nothing about microVMs: `doctor` and the front ends call this module and pass the results on.

pub mod capacity;
pub mod check;
pub mod clock;
pub mod descriptors;
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
