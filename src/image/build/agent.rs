//! Finds the guest agent and checks that it can run where there is nothing but itself.

use std::fs;
use std::path::{Path, PathBuf};

use object::Endianness;
use object::elf;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};

use crate::image::error::ImageError;
use crate::image::hash;
use crate::image::name::Digest;

/// The agent's file name.
const NAME: &str = "mayfly-guest";

/// Finds the agent: the one that was `named`, else beside the running program, else where a
/// package would put it.
///
/// # Errors
///
/// It is in none of these places.
pub fn find_agent(named: Option<&Path>) -> Result<PathBuf, ImageError> {
    let candidates = match named {
        Some(path) => vec![path.to_owned()],
        None => std::env::current_exe().map(|program| usual_places(&program)).unwrap_or_default(),
    };
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(ImageError::AgentMissing { searched: candidates }),
    }
}

fn usual_places(program: &Path) -> Vec<PathBuf> {
    let directory = program.parent().unwrap_or(Path::new("/"));
    let mut places = vec![directory.join(NAME)];
    places.extend(directory.parent().map(|prefix| prefix.join("libexec/mayfly").join(NAME)));
    places
}

/// What an image that was built with this agent says of it.
///
/// # Errors
///
/// It can't be read, or can't be an agent.
pub fn digest_of_agent(path: &Path) -> Result<Digest, ImageError> {
    Ok(hash::of_bytes(&read_agent(path)?))
}

/// The agent's bytes, if it is a static program for this machine's processor.
pub(super) fn read_agent(path: &Path) -> Result<Vec<u8>, ImageError> {
    let bytes = fs::read(path).map_err(ImageError::read(path))?;
    match check(&bytes) {
        Ok(()) => Ok(bytes),
        Err(problem) => Err(ImageError::AgentUnfit { path: path.to_owned(), problem }),
    }
}

fn check(bytes: &[u8]) -> Result<(), String> {
    let file = ElfFile64::<Endianness>::parse(bytes)
        .map_err(|error| format!("it is not a 64-bit ELF program ({error})"))?;
    let (header, endian) = (file.elf_header(), file.endian());
    if header.e_machine(endian) != elf::EM_X86_64 {
        return Err("it is for another processor than x86-64".to_owned());
    }
    if !matches!(header.e_type(endian), elf::ET_EXEC | elf::ET_DYN) || header.e_entry(endian) == 0 {
        return Err("it is an ELF file but not a program".to_owned());
    }
    let segments = header
        .program_headers(endian, bytes)
        .map_err(|error| format!("its segments can't be read ({error})"))?;
    // There is no dynamic linker in the initramfs.
    if segments.iter().any(|segment| segment.p_type(endian) == elf::PT_INTERP) {
        return Err("it is linked dynamically".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_refused() {
        let error = read_agent(Path::new("/bin/sh")).unwrap_err();
        assert!(error.to_string().ends_with("it is linked dynamically"), "{error}");
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let error = read_agent(&path).unwrap_err();
        assert!(error.to_string().contains("not a 64-bit ELF program"), "{error}");
    }

    #[test]
    fn the_agent_is_looked_for_beside_the_program_then_in_libexec() {
        let places = usual_places(Path::new("/opt/mayfly/bin/mayfly"));
        let expected = ["/opt/mayfly/bin/mayfly-guest", "/opt/mayfly/libexec/mayfly/mayfly-guest"];
        assert_eq!(places, expected.map(PathBuf::from));
    }

    #[test]
    fn an_agent_that_was_named_is_looked_for_nowhere_else() {
        let error = find_agent(Some(Path::new("/no/agent"))).unwrap_err();
        assert_eq!(error.to_string(), "the guest agent is not at /no/agent");
    }
}
