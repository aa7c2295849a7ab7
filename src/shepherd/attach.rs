//! Taking up a shepherd that another process started: what can fail, and what that means.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::detached;
use super::handle::asynchronous;
use super::record::{self, Liveness};
use super::wire::{self, Hello, Lines, Message, Report, VersionError};
use crate::host::descriptors;

/// How long a shepherd may take to say hello. One that is stopped says none.
const HELLO: Duration = Duration::from_secs(10);

/// Why a shepherd can't be attached to. None of these means that it is gone.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no such directory.
    #[error("the microVM has no directory")]
    NoDirectory,
    /// Nobody listens at its socket, or there is none: it ends, or is not detached.
    #[error("the shepherd does not listen")]
    NotListening(#[source] io::Error),
    /// This process may not use the directory or the socket.
    #[error("may not connect to the shepherd")]
    Refused(#[source] io::Error),
    /// This process or the host has no descriptors or memory left, or too many wait for the
    /// shepherd. Passes.
    #[error("can't connect to the shepherd now")]
    Busy(#[source] io::Error),
    /// It says nothing: it is stopped, or wedged.
    #[error("the shepherd has not said hello within {}", humantime::format_duration(HELLO))]
    Silent,
    /// It closed the connection, or what it says makes no sense.
    #[error("the shepherd does not speak the protocol")]
    Protocol,
    /// It is of a version that this one has nothing in common with. Does not pass.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// Anything else that the system refused.
    #[error("can't connect to the shepherd")]
    Failed(#[source] io::Error),
}

impl From<io::Error> for AttachError {
    fn from(error: io::Error) -> Self {
        let number = error.raw_os_error();
        let busy = [libc::EAGAIN, libc::ENOMEM, libc::ENOBUFS, libc::EINTR];
        match error.kind() {
            _ if descriptors::ran_out(&error) => Self::Busy(error),
            _ if number.is_some_and(|number| busy.contains(&number)) => Self::Busy(error),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Self::NotListening(error),
            io::ErrorKind::PermissionDenied => Self::Refused(error),
            _ => Self::Failed(error),
        }
    }
}

/// A connection on which both sides have said hello, or are about to.
pub(super) type Connection = (Lines<OwnedReadHalf>, OwnedWriteHalf, Hello);

/// A shepherd that was taken up.
pub(super) struct Attached {
    /// Its process, where it lives and could be told by its record.
    pub(super) pidfd: Option<OwnedFd>,
    /// None where it is gone.
    pub(super) connection: Option<Connection>,
}

/// Connects to the shepherd of a directory and hears its hello. Ours is the first line that is
/// written by whoever takes the connection.
pub(super) async fn attach(directory: &Path) -> Result<Attached, AttachError> {
    match record::liveness(directory) {
        Ok(Liveness::Gone) => return Ok(Attached { pidfd: None, connection: None }),
        Ok(Liveness::Alive | Liveness::Ending) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(AttachError::NoDirectory);
        }
        Err(error) => return Err(error.into()),
    }
    let pidfd = record::process(directory)?;
    let stream = asynchronous(detached::connect(directory)?)
        .map_err(|error| AttachError::Failed(io::Error::other(error)))?;
    let (read, write) = stream.into_split();
    let mut lines = Lines::new(read);
    let hello = match tokio::time::timeout(HELLO, lines.report()).await {
        Err(_) => return Err(AttachError::Silent),
        Ok(Ok(Some(Report::Hello(hello)))) => hello,
        Ok(_) => return Err(AttachError::Protocol),
    };
    if let Err(error) = hello.check() {
        refuse(write).await;
        return Err(error.into());
    }
    Ok(Attached { pidfd, connection: Some((lines, write, hello)) })
}

/// Says who we are to a shepherd that is given up, for its record.
async fn refuse(mut write: OwnedWriteHalf) {
    if let Ok(line) = wire::encode(&Message::Hello(&Hello::ours(0))) {
        let _ = tokio::time::timeout(HELLO, write.write_all(&line)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::super::detached::Place;
    use super::*;
    use crate::shepherd::Handle;

    /// What each way to fail is called, for the table below.
    async fn attached(directory: &Path) -> &'static str {
        match Handle::attach(directory).await {
            Ok(_) => "attached",
            Err(AttachError::NoDirectory) => "no directory",
            Err(AttachError::NotListening(_)) => "not listening",
            Err(AttachError::Refused(_)) => "refused",
            Err(AttachError::Busy(_)) => "busy",
            Err(AttachError::Silent) => "silent",
            Err(AttachError::Protocol) => "protocol",
            Err(AttachError::Version(_)) => "version",
            Err(AttachError::Failed(_)) => "failed",
        }
    }

    /// A directory that a living shepherd seems to have, and what answers at its socket.
    fn living(root: &Path, answer: Option<&'static str>) -> (std::path::PathBuf, Place) {
        let directory = root.join("m-0123456789");
        let place = Place::make(&directory).unwrap();
        if let Some(answer) = answer {
            let listener = place.listener().try_clone().unwrap();
            std::thread::spawn(move || reply(&listener, answer));
        }
        (directory, place)
    }

    fn reply(listener: &UnixListener, answer: &str) {
        use std::io::Write;
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(answer.as_bytes()));
        }
    }

    #[tokio::test]
    async fn each_answer_of_a_living_shepherd_has_its_error_and_none_is_its_end() {
        for (answer, expected) in [
            ("{\"hello\":{\"version\":1,\"min_version\":1}}\n", "attached"),
            ("{\"hello\":{\"version\":9,\"min_version\":8}}\n", "version"),
            ("{\"hello\":{\"version\":0,\"min_version\":0}}\n", "version"),
            ("{\"hello\":\"you\"}\n", "protocol"),
            ("{}\n", "protocol"),
            ("\n", "protocol"),
            ("\0\0\0\u{2}ab", "protocol"),
            ("", "protocol"),
        ] {
            let root = tempfile::tempdir().unwrap();
            let (directory, _place) = living(root.path(), Some(answer));
            assert_eq!(attached(&directory).await, expected, "{answer:?}");
            assert_eq!(record::liveness(&directory).unwrap(), Liveness::Alive);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_stopped_is_silent() {
        let root = tempfile::tempdir().unwrap();
        // The kernel takes the connection all the same.
        let (directory, _place) = living(root.path(), None);
        assert_eq!(attached(&directory).await, "silent");
    }

    #[tokio::test]
    async fn one_that_can_not_be_reached_is_not_taken_for_one_that_is_gone() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(attached(&root.path().join("m-none")).await, "no directory");
        let (directory, place) = living(root.path(), None);
        let socket = detached::socket(&directory).unwrap().unwrap();
        std::fs::rename(directory.join(&socket), root.path().join("moved")).unwrap();
        assert_eq!(attached(&directory).await, "not listening");
        // A socket that nobody has bound any more.
        drop(UnixListener::bind(directory.join(&socket)).unwrap());
        assert_eq!(attached(&directory).await, "not listening");
        drop(place);
        assert_eq!(attached(&directory).await, "attached", "its record is what is left");
    }

    #[tokio::test]
    async fn without_descriptors_it_is_busy_at_every_step() {
        let root = tempfile::tempdir().unwrap();
        let answer = "{\"hello\":{\"version\":1,\"min_version\":1}}\n";
        let (directory, _place) = living(root.path(), Some(answer));
        let mut hoard = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            hoard.push(file);
            // Enough to find the end of what one attempt needs.
            if hoard.len() >= 4096 {
                break;
            }
        }
        let (limit, hard) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        let highest = std::os::fd::AsRawFd::as_raw_fd(hoard.last().unwrap());
        let few = u64::try_from(highest).unwrap() + 1;
        nix::sys::resource::setrlimit(
            nix::sys::resource::Resource::RLIMIT_NOFILE,
            few.min(limit),
            hard,
        )
        .unwrap();
        let mut seen = Vec::new();
        for _ in 0..12 {
            seen.push(attached(&directory).await);
            hoard.pop();
        }
        assert_eq!(seen[0], "busy");
        assert_eq!(seen.last(), Some(&"attached"), "{seen:?}");
        assert!(seen.iter().all(|what| ["busy", "attached"].contains(what)), "{seen:?}");
    }

    #[tokio::test]
    async fn what_was_not_acknowledged_is_given_again_under_its_number() {
        use crate::shepherd::plan::Order;
        let root = tempfile::tempdir().unwrap();
        let answer = "{\"hello\":{\"version\":1,\"min_version\":1,\"acknowledged\":3}}\n\
                      {\"acknowledged\":{\"number\":4}}\n";
        let (directory, _place) = living(root.path(), Some(answer));
        let mut handle = Handle::attach(&directory).await.unwrap();
        assert_eq!(handle.order(&Order::Signal(1)).unwrap(), 4, "the number after those it has");
        assert_eq!(handle.order(&Order::Signal(2)).unwrap(), 5);
        assert!(handle.news().await.is_some());
        let orders = handle.into_unacknowledged();
        assert!(matches!(orders.iter().collect::<Vec<_>>()[..], [(5, Order::Signal(2))]));
        let mut again = Handle::attach(&directory).await.unwrap();
        again.resume(orders).unwrap();
        assert_eq!(again.order(&Order::End).unwrap(), 6);
    }
}
