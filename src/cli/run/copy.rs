//! Trees copied in and out, as archives through pipes.
//!
//! What comes out of a microVM was made by hostile code. It is unpacked on a thread that the
//! kernel lets write below the destination only (Landlock), beside what [`mayfly_tree`] refuses.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use landlock::{
    ABI, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr,
};
use mayfly_tree::{Destination, Notes, Origin, Packer, TreeError};

use super::arguments::CopyOut;
use crate::cli::microvm::CopyIn;
use crate::cli::report;
use crate::failure::{Code, Failure, chain};
use crate::host::{descriptors, memory};

/// The newest Landlock version whose rights are asked for; older kernels give what they have.
const LANDLOCK: ABI = ABI::V5;

/// Descriptors that a microVM takes beside those of its trees, in this process or its shepherd.
const OTHERS: u64 = 64;

/// Descriptors that a tree takes at the most, in either: here both ends of its pipe, and one on its
/// way to the shepherd; there one end, and a pipe that wakes who waits for it.
const PER_TREE: u64 = 3;

/// A tree could not be copied.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    /// It could not be packed.
    #[error("can't copy {} in", .0.display())]
    In(PathBuf, #[source] TreeError),
    /// It could not be unpacked.
    #[error("can't copy out to {}", .0.display())]
    Out(PathBuf, #[source] TreeError),
    /// There are more than this process can have pipes for.
    #[error("{trees} trees to copy take {needed} open files, and {limit} are allowed")]
    TooMany {
        /// Trees.
        trees: u64,
        /// Descriptors that they take.
        needed: u64,
        /// The limit of this process.
        limit: u64,
    },
    /// A pipe or thread could not be had.
    #[error("can't begin to copy")]
    NotBegun(#[source] io::Error),
}

impl Failure for CopyError {
    fn code(&self) -> Code {
        match self {
            Self::In(..) => Code::NotFound,
            Self::Out(..) => Code::CannotWrite,
            Self::TooMany { .. } | Self::NotBegun(_) => Code::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::TooMany { .. } => {
                Some(format!("copy one directory instead, or {}", descriptors::HINT))
            }
            Self::NotBegun(error) => {
                descriptors::ran_out(error).then(|| descriptors::HINT.to_owned())
            }
            Self::In(..) | Self::Out(..) => None,
        }
    }
}

/// The trees of one microVM, under way.
pub(super) struct Copies {
    /// The shepherd's ends of the pipes, in its order.
    descriptors: Vec<OwnedFd>,
    packing: JoinHandle<Result<Notes, CopyError>>,
    unpacking: Vec<(PathBuf, JoinHandle<Result<Notes, TreeError>>)>,
    bound: Option<memory::Bound>,
}

/// What became of them.
pub(super) struct Copied {
    /// Why one could not be packed.
    pub(super) packed: Result<(), CopyError>,
    /// Why others could not be unpacked.
    pub(super) not_unpacked: Vec<CopyError>,
    /// The destinations for which nothing came.
    pub(super) nothing_for: Vec<PathBuf>,
}

impl Copies {
    /// Begins to copy. What can be seen to be impossible is refused here; at most `limit` bytes of
    /// the disk are used for each tree that comes out.
    pub(super) fn begin(
        copy_in: &[CopyIn],
        copy_out: &[CopyOut],
        limit: u64,
    ) -> Result<Self, CopyError> {
        let trees = (copy_in.len() + copy_out.len()) as u64;
        let (needed, allowed) = (trees * PER_TREE + OTHERS, descriptors::raise());
        if trees > 0 && needed > allowed {
            return Err(CopyError::TooMany { trees, needed, limit: allowed });
        }
        let (mut descriptors, mut sources) = (Vec::new(), Vec::new());
        for copy in copy_in {
            mayfly_tree::check(&copy.host)
                .map_err(|error| CopyError::In(copy.host.clone(), error))?;
            let (reader, writer) = io::pipe().map_err(CopyError::NotBegun)?;
            descriptors.push(reader.into());
            sources.push((copy.host.clone(), writer));
        }
        let mut unpacking = Vec::new();
        for copy in copy_out {
            let (reader, writer) = io::pipe().map_err(CopyError::NotBegun)?;
            descriptors.push(writer.into());
            let thread = unpack(copy, limit, reader).map_err(CopyError::NotBegun)?;
            unpacking.push((copy.host.clone(), thread));
        }
        let packing = thread::Builder::new().name("copy-in".to_owned());
        let packing = packing.spawn(|| pack(sources)).map_err(CopyError::NotBegun)?;
        Ok(Self { descriptors, packing, unpacking, bound: None })
    }

    /// Bounds what this process may take for what comes out of the guest, until they have ended.
    pub(super) fn bound_memory(&mut self) -> io::Result<()> {
        if !self.unpacking.is_empty() {
            self.bound = Some(memory::bound(memory::FOR_UNPACKING)?);
        }
        Ok(())
    }

    /// Gives the shepherd's ends of the pipes away.
    pub(super) fn descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    /// Waits for the threads, whose pipes have ended with the shepherd, and shows their notes.
    pub(super) fn end(self) -> Copied {
        let note = |notes: &Notes| {
            notes.lines().iter().for_each(|line| report::warning(&format!("copying: {line}")));
        };
        let packed = self.packing.join().unwrap_or_else(|_| Err(panicked()));
        let packed = packed.map(|notes| note(&notes));
        let (mut not_unpacked, mut nothing_for) = (Vec::new(), Vec::new());
        for (host, thread) in self.unpacking {
            match thread.join() {
                Ok(Ok(notes)) => note(&notes),
                Ok(Err(TreeError::Nothing)) => nothing_for.push(host),
                Ok(Err(error)) => not_unpacked.push(CopyError::Out(host, error)),
                Err(_) => not_unpacked.push(panicked()),
            }
        }
        Copied { packed, not_unpacked, nothing_for }
    }
}

impl Copied {
    /// Says what did not come out, where something else decides how the run ends.
    pub(super) fn warn(&self) {
        for error in &self.not_unpacked {
            report::warning(&chain(error));
        }
    }
}

fn panicked() -> CopyError {
    CopyError::NotBegun(io::Error::other("its thread panicked"))
}

/// Packs one tree after the other, as the guest unpacks them.
fn pack(sources: Vec<(PathBuf, PipeWriter)>) -> Result<Notes, CopyError> {
    let mut all = Notes::default();
    for (path, writer) in sources {
        match mayfly_tree::pack(&path, writer, Packer::Host) {
            Ok(notes) => all.append(notes),
            // The guest, or whoever ended it, says why.
            Err(error) if error.is_refusal_of_the_other_side() => break,
            // The archive has no end then, and the guest starts nothing.
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
        mayfly_tree::unpack(archive, destination, Origin::Guest { limit }, confine)
    })
}

/// Lets this thread write nowhere but below `directory`, for good.
fn confine(directory: &Path) -> io::Result<()> {
    let writing = AccessFs::from_write(LANDLOCK);
    let descriptor = PathFd::new(directory).map_err(io::Error::other)?;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(writing)
        .and_then(Ruleset::create)
        .and_then(|rules| rules.add_rule(PathBeneath::new(descriptor, writing)))
        .and_then(RulesetCreated::restrict_self)
        .map(drop)
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::{Read, Write};

    fn copies(copy_in: &[&Path], copy_out: &[(&str, &Path)]) -> Result<Copies, CopyError> {
        let copy_in: Vec<_> = copy_in
            .iter()
            .map(|path| CopyIn { host: path.to_path_buf(), guest: b"/x".to_vec() })
            .collect();
        let copy_out: Vec<_> = copy_out
            .iter()
            .map(|(guest, host)| CopyOut { guest: guest.as_bytes().to_vec(), host: host.into() })
            .collect();
        Copies::begin(&copy_in, &copy_out, 1 << 20)
    }

    fn read(from: OwnedFd) -> Vec<u8> {
        let mut bytes = Vec::new();
        fs::File::from(from).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_goes_in_can_come_out() {
        let directory = tempfile::tempdir().unwrap();
        let (source, back) = (directory.path().join("source"), directory.path().join("back"));
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "content").unwrap();
        let mut way = copies(&[&source, &source], &[("/x", &back)]).unwrap();
        let mut ends = way.descriptors().into_iter();
        let archive = read(ends.next().unwrap());
        assert_eq!(read(ends.next().unwrap()), archive);
        fs::File::from(ends.next().unwrap()).write_all(&archive).unwrap();
        let copied = way.end();
        assert!(copied.packed.is_ok() && copied.not_unpacked.is_empty());
        assert_eq!(fs::read_to_string(back.join("file")).unwrap(), "content");
    }

    #[test]
    fn a_guest_that_takes_no_tree_is_no_failure_of_the_packer() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("large"), vec![1; 1 << 20]).unwrap();
        let mut way = copies(&[directory.path()], &[]).unwrap();
        drop(way.descriptors());
        assert!(way.end().packed.is_ok());
    }

    #[test]
    fn a_guest_that_sends_nothing_or_half_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        let mut way = copies(&[], &[("/x", &one), ("/y", &other)]).unwrap();
        let mut ends = way.descriptors().into_iter();
        drop(ends.next());
        fs::File::from(ends.next().unwrap()).write_all(&[0; 100]).unwrap();
        let copied = way.end();
        assert_eq!(copied.nothing_for, [one]);
        assert_eq!(copied.not_unpacked.len(), 1);
        let said = chain(&copied.not_unpacked[0]);
        assert_eq!(
            said,
            format!("can't copy out to {}: the archive ends in the middle", other.display())
        );
    }

    #[test]
    fn more_trees_than_there_can_be_pipes_are_refused_before_anything_is_opened() {
        let many = vec![Path::new("/"); 1 << 20];
        let error = copies(&many, &[]).err().unwrap();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.to_string().contains("take 3145792 open files"), "{error}");
        assert!(error.hint().unwrap().contains("ulimit -n"));
    }
}
