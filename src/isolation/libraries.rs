//! The shared libraries of a program, as the host's dynamic linker resolves them.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use object::elf::{FileHeader64, PT_INTERP};
use object::read::ReadCache;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadRef};
use tokio::process::Command;

use super::root::{MountAccess, RootEntry};

/// The directory of libraries in a program's root.
const DIRECTORY: &str = "/libraries";

/// The environment of a program whose libraries are in [`DIRECTORY`].
pub const ENVIRONMENT: &std::ffi::CStr = c"LD_LIBRARY_PATH=/libraries";

/// Lists the files that a program needs in its root to start: itself, its dynamic linker and its
/// libraries. The linker only lists the libraries of `program` and runs none of its code.
pub async fn entries_for(program: &Path) -> io::Result<Vec<RootEntry>> {
    let mut entries = vec![RootEntry::new(program, MountAccess::Execute)];
    let Some(linker) = linker(program)? else { return Ok(entries) };
    let output = Command::new(&linker)
        .arg("--list")
        .arg(program)
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output()
        .await?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        let message = format!("can't find its libraries: {}", message.trim());
        return Err(io::Error::other(message));
    }
    entries.push(RootEntry::new(&linker, MountAccess::Execute));
    for library in parse(&String::from_utf8_lossy(&output.stdout)) {
        if let Some(name) = library.file_name() {
            let target = Path::new(DIRECTORY).join(name);
            entries.push(RootEntry::at(&library, &target, MountAccess::Execute));
        }
    }
    Ok(entries)
}

/// Returns the dynamic linker that a program names. `None` if it is statically linked.
fn linker(program: &Path) -> io::Result<Option<PathBuf>> {
    let file = ReadCache::new(BufReader::new(File::open(program)?));
    let bad = |error: object::Error| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let header = FileHeader64::<Endianness>::parse(&file).map_err(bad)?;
    let endian = header.endian().map_err(bad)?;
    for segment in header.program_headers(endian, &file).map_err(bad)? {
        if segment.p_type(endian) == PT_INTERP {
            let (offset, size) = (segment.p_offset(endian), segment.p_filesz(endian));
            let name = (&file).read_bytes_at(offset, size).map_err(|()| {
                let text = "can't read the name of the program's dynamic linker";
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?;
            let name = String::from_utf8_lossy(name);
            return Ok(Some(PathBuf::from(name.trim_end_matches('\0'))));
        }
    }
    Ok(None)
}

/// Parses the output of a dynamic linker: lines like `libm.so.6 => /lib/libm.so.6 (0x7f…)`.
fn parse(list: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let (_, found) = line.split_once(" => ")?;
        let (path, _address) = found.rsplit_once(" (")?;
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    list.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linkers_output_is_parsed() {
        let list = "\tlinux-vdso.so.1 (0x00007fc22ae13000)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007fc22a81e000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007fc22ae15000)\n\
                    \tlibgone.so => not found\n\
                    \tlibodd.so => /opt/a (b)/libodd.so (0x1)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/opt/a (b)/libodd.so"];
        assert_eq!(parse(list), expected.map(PathBuf::from));
    }

    #[tokio::test]
    async fn this_program_has_a_linker_and_a_script_is_rejected() {
        let this = std::env::current_exe().unwrap();
        let entries = entries_for(&this).await.unwrap();
        assert!(entries.len() > 2, "{entries:?}");
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(entries_for(&script).await.is_err());
    }
}
