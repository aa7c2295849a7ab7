//! Attaching to a shepherd that another process started.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::detached;
use super::handle::asynchronous;
use super::record::{self, Liveness};
use super::wire::{self, Lines, Message, ShepherdReport, VersionError, WireHello};
use mayfly_host::descriptors;

/// Time limit for a shepherd's hello. A stopped shepherd sends none.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// An error of attaching to a shepherd. None of them means that the shepherd is gone.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The microVM's directory does not exist.
    #[error("the microVM has no directory")]
    NoDirectory,
    /// No process listens at the socket, or there is none: the shepherd exits or is not detached.
    #[error("the shepherd does not listen")]
    NotListening(#[source] io::Error),
    /// This process may not use the directory or the socket.
    #[error("permission denied to connect to the shepherd")]
    Refused(#[source] io::Error),
    /// Descriptors or memory ran out, or the socket's backlog is full. Temporary.
    #[error("can't connect to the shepherd now: resources are exhausted")]
    Busy(#[source] io::Error),
    /// The shepherd sends nothing: it is stopped or hangs.
    #[error("no hello from the shepherd within {}", humantime::format_duration(HELLO_TIMEOUT))]
    Silent,
    /// The shepherd closed the connection or sent an invalid message.
    #[error("the shepherd does not speak the protocol")]
    Protocol,
    /// The shepherd has no protocol version in common with this program. Permanent.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// Any other system error.
    #[error("can't connect to the shepherd")]
    Failed(#[source] io::Error),
}

impl From<io::Error> for AttachError {
    fn from(error: io::Error) -> Self {
        let number = error.raw_os_error();
        let busy = [libc::EAGAIN, libc::ENOMEM, libc::ENOBUFS, libc::EINTR];
        match error.kind() {
            _ if descriptors::is_exhausted(&error) => Self::Busy(error),
            _ if number.is_some_and(|number| busy.contains(&number)) => Self::Busy(error),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Self::NotListening(error),
            io::ErrorKind::PermissionDenied => Self::Refused(error),
            _ => Self::Failed(error),
        }
    }
}

/// A connection to a shepherd, and the hello that it sent.
pub(super) type Connection = (Lines<OwnedReadHalf>, OwnedWriteHalf, WireHello);

/// The result of attaching.
pub(super) struct Attached {
    /// The shepherd's process, if it runs and was found.
    pub(super) pidfd: Option<OwnedFd>,
    /// `None` if the shepherd is gone.
    pub(super) connection: Option<Connection>,
}

/// Connects to the shepherd of a directory and reads its hello. The caller writes this program's
/// hello as the first line.
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
    let hello = match tokio::time::timeout(HELLO_TIMEOUT, lines.next_report()).await {
        Err(_) => return Err(AttachError::Silent),
        Ok(Ok(Some(ShepherdReport::Hello(hello)))) => hello,
        Ok(_) => return Err(AttachError::Protocol),
    };
    if let Err(error) = hello.check() {
        refuse(write).await;
        return Err(error.into());
    }
    Ok(Attached { pidfd, connection: Some((lines, write, hello)) })
}

/// Sends this program's hello to an incompatible shepherd, for its record.
async fn refuse(mut write: OwnedWriteHalf) {
    if let Ok(line) = wire::encode(&Message::Hello(&WireHello::ours(0))) {
        let _ = tokio::time::timeout(HELLO_TIMEOUT, write.write_all(&line)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::super::detached::MicrovmDirectory;
    use super::*;
    use crate::ShepherdHandle;

    /// Returns a name for each result, for the table below.
    async fn attached(directory: &Path) -> &'static str {
        match ShepherdHandle::attach(directory).await {
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

    /// Creates the locked directory of a fake shepherd that sends `answer` to each connection.
    fn fake_shepherd(
        root: &Path,
        answer: Option<&'static str>,
    ) -> (std::path::PathBuf, MicrovmDirectory) {
        let directory = root.join("m-0123456789");
        let lock = MicrovmDirectory::create(&directory).unwrap();
        if let Some(answer) = answer {
            let listener = lock.listener().try_clone().unwrap();
            std::thread::spawn(move || reply(&listener, answer));
        }
        (directory, lock)
    }

    fn reply(listener: &UnixListener, answer: &str) {
        use std::io::Write;
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(answer.as_bytes()));
        }
    }

    #[tokio::test]
    async fn each_reply_of_a_running_shepherd_has_its_error_and_none_means_gone() {
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
            let (directory, _lock) = fake_shepherd(root.path(), Some(answer));
            assert_eq!(attached(&directory).await, expected, "{answer:?}");
            assert_eq!(record::liveness(&directory).unwrap(), Liveness::Alive);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_shepherd_is_silent() {
        let root = tempfile::tempdir().unwrap();
        // The kernel accepts the connection anyway.
        let (directory, _lock) = fake_shepherd(root.path(), None);
        assert_eq!(attached(&directory).await, "silent");
    }

    #[tokio::test]
    async fn an_unreachable_shepherd_is_not_taken_for_gone() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(attached(&root.path().join("m-none")).await, "no directory");
        let (directory, lock) = fake_shepherd(root.path(), None);
        let socket = detached::socket_name(&directory).unwrap().unwrap();
        std::fs::rename(directory.join(&socket), root.path().join("moved")).unwrap();
        assert_eq!(attached(&directory).await, "not listening");
        // A socket that no process has bound any more.
        drop(UnixListener::bind(directory.join(&socket)).unwrap());
        assert_eq!(attached(&directory).await, "not listening");
        drop(lock);
        assert_eq!(attached(&directory).await, "attached", "only its record remains");
    }

    #[tokio::test]
    async fn without_free_descriptors_every_step_is_busy() {
        let root = tempfile::tempdir().unwrap();
        let answer = "{\"hello\":{\"version\":1,\"min_version\":1}}\n";
        let (directory, _lock) = fake_shepherd(root.path(), Some(answer));
        let mut hoard = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            hoard.push(file);
            // Enough to reach the number that one attempt needs.
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
    async fn unacknowledged_commands_are_sent_again_under_their_numbers() {
        use crate::plan::ShepherdCommand;
        let root = tempfile::tempdir().unwrap();
        let answer = "{\"hello\":{\"version\":1,\"min_version\":1,\"acknowledged\":3}}\n\
                      {\"acknowledged\":{\"number\":4}}\n";
        let (directory, _lock) = fake_shepherd(root.path(), Some(answer));
        let mut handle = ShepherdHandle::attach(&directory).await.unwrap();
        assert_eq!(
            handle.send_command(&ShepherdCommand::Signal(1)).unwrap(),
            4,
            "after those it has"
        );
        assert_eq!(handle.send_command(&ShepherdCommand::Signal(2)).unwrap(), 5);
        assert!(handle.next_update().await.is_some());
        let commands = handle.into_unacknowledged();
        assert!(matches!(
            commands.iter().collect::<Vec<_>>()[..],
            [(5, ShepherdCommand::Signal(2))]
        ));
        let mut again = ShepherdHandle::attach(&directory).await.unwrap();
        again.resend(commands).unwrap();
        assert_eq!(again.send_command(&ShepherdCommand::End).unwrap(), 6);
    }
}
