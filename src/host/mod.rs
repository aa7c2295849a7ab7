//! What this host offers: the state directory, programs, devices, memory.
//!
//! Everything here is asked before anything is started, so that what is missing has a name and a
//! hint instead of a failure half-way. Owns the layout of the state directory. Knows nothing of
//! microVMs: `doctor` and the front ends ask, the other folders are told.

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

/// Fresh bytes from the kernel's random number generator.
pub fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
