//! Copies trees in and out, as archives through pipes.
//!
//! What comes out of a microVM is untrusted. Besides the checks of [`mayfly_tree`], it is unpacked
//! on a thread that may write only below the destination (Landlock).

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use mayfly_tree::{ArchiveOrigin, Destination, Notes, Packer, TreeError};

use super::arguments::CopyOut;
use crate::microvm::CopyIn;
use crate::report;
use mayfly_failure::{Code, Failure, chain};
use mayfly_host::{descriptors, memory};
use mayfly_isolation::landlock::restrict_writes;

/// Descriptors that a microVM needs besides those of its trees, in this process or its shepherd.
const OTHERS: u64 = 64;

/// Maximum number of descriptors per tree in either process. Here: both ends of its pipe, and one
/// in transfer to the shepherd. In the shepherd: one end, and a pipe to wake the waiting thread.
const PER_TREE: u64 = 3;

/// An error while copying trees.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    /// A tree could not be packed.
    #[error("can't copy {} in", .0.display())]
    In(PathBuf, #[source] TreeError),
    /// A tree could not be unpacked.
    #[error("can't copy out to {}", .0.display())]
    Out(PathBuf, #[source] TreeError),
    /// The trees need more pipes than this process can open.
    #[error("copying {trees} trees needs {needed} open files, but the limit is {limit}")]
    TooMany {
        /// The number of trees.
        trees: u64,
        /// The descriptors that they need.
        needed: u64,
        /// The limit of this process.
        limit: u64,
    },
    /// A pipe or thread could not be created.
    #[error("can't start copying")]
    Start(#[source] io::Error),
}

impl Failure for CopyError {
    fn code(&self) -> Code {
        match self {
            Self::In(..) => Code::NotFound,
            Self::Out(..) => Code::CannotWrite,
            Self::TooMany { .. } | Self::Start(_) => Code::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::TooMany { .. } => {
                Some(format!("copy one directory instead, or {}", descriptors::HINT))
            }
            Self::Start(error) => {
                descriptors::is_exhausted(error).then(|| descriptors::HINT.to_owned())
            }
            Self::In(..) | Self::Out(..) => None,
        }
    }
}

/// The running copies of one microVM.
pub(super) struct Copies {
    /// The shepherd's ends of the pipes, in its order.
    descriptors: Vec<OwnedFd>,
    packing: JoinHandle<Result<Notes, CopyError>>,
    unpacking: Vec<(PathBuf, JoinHandle<Result<Notes, TreeError>>)>,
    memory_limit: Option<memory::DataLimit>,
}

/// The result of the copies.
pub(super) struct Copied {
    /// The result of packing.
    pub(super) packed: Result<(), CopyError>,
    /// The errors of unpacking.
    pub(super) not_unpacked: Vec<CopyError>,
    /// The destinations that received no data.
    pub(super) empty: Vec<PathBuf>,
}

impl Copies {
    /// Starts to copy. Rejects sources that can't be copied. Each tree that is copied out may use
    /// `limit` bytes of the disk.
    pub(super) fn start(
        copy_in: &[CopyIn],
        copy_out: &[CopyOut],
        limit: u64,
    ) -> Result<Self, CopyError> {
        let trees = (copy_in.len() + copy_out.len()) as u64;
        let (needed, allowed) = (trees * PER_TREE + OTHERS, descriptors::raise_limit());
        if trees > 0 && needed > allowed {
            return Err(CopyError::TooMany { trees, needed, limit: allowed });
        }
        let (mut descriptors, mut sources) = (Vec::new(), Vec::new());
        for copy in copy_in {
            mayfly_tree::check(&copy.host)
                .map_err(|error| CopyError::In(copy.host.clone(), error))?;
            let (reader, writer) = io::pipe().map_err(CopyError::Start)?;
            descriptors.push(reader.into());
            sources.push((copy.host.clone(), writer));
        }
        let mut unpacking = Vec::new();
        for copy in copy_out {
            let (reader, writer) = io::pipe().map_err(CopyError::Start)?;
            descriptors.push(writer.into());
            let thread = unpack(copy, limit, reader).map_err(CopyError::Start)?;
            unpacking.push((copy.host.clone(), thread));
        }
        let packing = thread::Builder::new().name("copy-in".to_owned());
        let packing = packing.spawn(|| pack(sources)).map_err(CopyError::Start)?;
        Ok(Self { descriptors, packing, unpacking, memory_limit: None })
    }

    /// Limits the memory of this process while it unpacks trees, until the copies have ended.
    pub(super) fn limit_memory(&mut self) -> io::Result<()> {
        if !self.unpacking.is_empty() {
            self.memory_limit = Some(memory::limit_data(memory::UNPACK_ALLOWANCE)?);
        }
        Ok(())
    }

    /// Takes the shepherd's ends of the pipes.
    pub(super) fn descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    /// Waits for the threads, whose pipes end with the shepherd, and prints their notes.
    pub(super) fn end(self) -> Copied {
        let note = |notes: &Notes| {
            notes.lines().iter().for_each(|line| report::warning(&format!("copying: {line}")));
        };
        let packed = self.packing.join().unwrap_or_else(|_| Err(panicked()));
        let packed = packed.map(|notes| note(&notes));
        let (mut not_unpacked, mut empty) = (Vec::new(), Vec::new());
        for (host, thread) in self.unpacking {
            match thread.join() {
                Ok(Ok(notes)) => note(&notes),
                Ok(Err(TreeError::Missing)) => empty.push(host),
                Ok(Err(error)) => not_unpacked.push(CopyError::Out(host, error)),
                Err(_) => not_unpacked.push(panicked()),
            }
        }
        Copied { packed, not_unpacked, empty }
    }
}

impl Copied {
    /// Prints warnings about trees that were not copied out.
    pub(super) fn warn(&self) {
        for error in &self.not_unpacked {
            report::warning(&chain(error));
        }
    }
}

fn panicked() -> CopyError {
    CopyError::Start(io::Error::other("the copy thread panicked"))
}

/// Packs one tree after the other, in the order in which the guest unpacks them.
fn pack(sources: Vec<(PathBuf, PipeWriter)>) -> Result<Notes, CopyError> {
    let mut all = Notes::default();
    for (path, writer) in sources {
        match mayfly_tree::pack(&path, writer, Packer::Host) {
            Ok(notes) => all.append(notes),
            // The guest, or the cause of its end, reports the reason.
            Err(error) if error.is_broken_pipe() => break,
            // The archive is incomplete then, and the guest does not start the job.
            Err(error) => return Err(CopyError::In(path, error)),
        }
    }
    Ok(all)
}

fn unpack(
    copy: &CopyOut,
    limit: u64,
    archive: PipeReader,
) -> io::Result<JoinHandle<Result<Notes, TreeError>>> {
    let CopyOut { guest, host } = copy.clone();
    thread::Builder::new().name("copy-out".to_owned()).spawn(move || {
        let mut parts = guest.rsplit(|byte| *byte == b'/');
        let name = parts.find(|part| !matches!(*part, b"" | b"."));
        let destination = Destination { path: &host, name: Some(name.unwrap_or_default()) };
        mayfly_tree::unpack(archive, destination, ArchiveOrigin::Guest { limit }, restrict_writes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::{Read, Write};
    use std::path::Path;

    fn copies(copy_in: &[&Path], copy_out: &[(&str, &Path)]) -> Result<Copies, CopyError> {
        let copy_in: Vec<_> = copy_in
            .iter()
            .map(|path| CopyIn { host: path.to_path_buf(), guest: b"/x".to_vec() })
            .collect();
        let copy_out: Vec<_> = copy_out
            .iter()
            .map(|(guest, host)| CopyOut { guest: guest.as_bytes().to_vec(), host: host.into() })
            .collect();
        Copies::start(&copy_in, &copy_out, 1 << 20)
    }

    fn read(from: OwnedFd) -> Vec<u8> {
        let mut bytes = Vec::new();
        fs::File::from(from).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_tree_can_be_copied_in_and_out() {
        let directory = tempfile::tempdir().unwrap();
        let (source, back) = (directory.path().join("source"), directory.path().join("back"));
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "content").unwrap();
        let mut copies = copies(&[&source, &source], &[("/x", &back)]).unwrap();
        let mut ends = copies.descriptors().into_iter();
        let archive = read(ends.next().unwrap());
        assert_eq!(read(ends.next().unwrap()), archive);
        fs::File::from(ends.next().unwrap()).write_all(&archive).unwrap();
        let copied = copies.end();
        assert!(copied.packed.is_ok() && copied.not_unpacked.is_empty());
        assert_eq!(fs::read_to_string(back.join("file")).unwrap(), "content");
    }

    #[test]
    fn a_guest_that_reads_no_tree_is_not_an_error_of_the_packer() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("large"), vec![1; 1 << 20]).unwrap();
        let mut copies = copies(&[directory.path()], &[]).unwrap();
        drop(copies.descriptors());
        assert!(copies.end().packed.is_ok());
    }

    #[test]
    fn an_empty_archive_and_an_incomplete_one_are_distinguished() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        let mut copies = copies(&[], &[("/x", &one), ("/y", &other)]).unwrap();
        let mut ends = copies.descriptors().into_iter();
        drop(ends.next());
        fs::File::from(ends.next().unwrap()).write_all(&[0; 100]).unwrap();
        let copied = copies.end();
        assert_eq!(copied.empty, [one]);
        assert_eq!(copied.not_unpacked.len(), 1);
        let message = chain(&copied.not_unpacked[0]);
        assert_eq!(
            message,
            format!("can't copy out to {}: the archive is truncated", other.display())
        );
    }

    #[test]
    fn more_trees_than_possible_pipes_are_rejected_before_anything_is_opened() {
        let many = vec![Path::new("/"); 1 << 20];
        let error = copies(&many, &[]).err().unwrap();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.to_string().contains("needs 3145792 open files"), "{error}");
        assert!(error.hint().unwrap().contains("ulimit -n"));
    }
}
