//! Finds the guest agent and checks that it is a static program.

use std::fs;
use std::path::{Path, PathBuf};

use object::Endianness;
use object::elf;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};

use crate::error::ImageError;
use crate::hash;
use crate::name::Digest;

/// The agent's file name.
const NAME: &str = "mayfly-guest";

/// Finds the agent: at the path `named`, else beside the running program, else at the installation
/// path of a package.
///
/// # Errors
///
/// It is at none of these paths.
pub fn find_agent(named: Option<&Path>) -> Result<PathBuf, ImageError> {
    let candidates = match named {
        Some(path) => vec![path.to_owned()],
        None => std::env::current_exe().map(|program| default_paths(&program)).unwrap_or_default(),
    };
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(ImageError::AgentMissing { searched: candidates }),
    }
}

fn default_paths(program: &Path) -> Vec<PathBuf> {
    let directory = program.parent().unwrap_or(Path::new("/"));
    let mut paths = vec![directory.join(NAME)];
    paths.extend(directory.parent().map(|prefix| prefix.join("libexec/mayfly").join(NAME)));
    paths
}

/// Returns the digest that an image built with this agent records.
///
/// # Errors
///
/// The file can't be read, or can't run as an agent.
pub fn agent_digest(path: &Path) -> Result<Digest, ImageError> {
    Ok(hash::of_bytes(&read_agent(path)?))
}

/// Reads the agent, which must be a static program for x86-64.
pub(super) fn read_agent(path: &Path) -> Result<Vec<u8>, ImageError> {
    let bytes = fs::read(path).map_err(ImageError::read(path))?;
    match check(&bytes) {
        Ok(()) => Ok(bytes),
        Err(reason) => Err(ImageError::AgentUnsuitable { path: path.to_owned(), reason }),
    }
}

fn check(bytes: &[u8]) -> Result<(), String> {
    let file = ElfFile64::<Endianness>::parse(bytes)
        .map_err(|error| format!("not a 64-bit ELF program ({error})"))?;
    let (header, endian) = (file.elf_header(), file.endian());
    if header.e_machine(endian) != elf::EM_X86_64 {
        return Err("not built for x86-64".to_owned());
    }
    if !matches!(header.e_type(endian), elf::ET_EXEC | elf::ET_DYN) || header.e_entry(endian) == 0 {
        return Err("an ELF file but not a program".to_owned());
    }
    let segments = header
        .program_headers(endian, bytes)
        .map_err(|error| format!("its segments can't be read ({error})"))?;
    // The initramfs has no dynamic linker.
    if segments.iter().any(|segment| segment.p_type(endian) == elf::PT_INTERP) {
        return Err("linked dynamically".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_rejected() {
        let error = read_agent(Path::new("/bin/sh")).unwrap_err();
        assert!(error.to_string().ends_with("linked dynamically"), "{error}");
    }

    #[test]
    fn a_file_that_is_not_a_program_is_rejected() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
        let error = read_agent(&path).unwrap_err();
        assert!(error.to_string().contains("not a 64-bit ELF program"), "{error}");
    }

    #[test]
    fn the_agent_is_searched_beside_the_program_then_in_libexec() {
        let paths = default_paths(Path::new("/opt/mayfly/bin/mayfly"));
        let expected = ["/opt/mayfly/bin/mayfly-guest", "/opt/mayfly/libexec/mayfly/mayfly-guest"];
        assert_eq!(paths, expected.map(PathBuf::from));
    }

    #[test]
    fn a_named_agent_is_searched_nowhere_else() {
        let error = find_agent(Some(Path::new("/no/agent"))).unwrap_err();
        assert_eq!(error.to_string(), "agent not found at /no/agent");
    }
}
