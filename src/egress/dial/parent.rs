//! Tunnels through a parent proxy, with `CONNECT`.

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::host::Host;
use crate::verdict::RefusalCause;
use mayfly_common::text::without_deceptive;
use mayfly_failure::{Code, Failure};

/// Maximum length of a response head, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// An error in the credentials of a parent proxy.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file can't be read.
    #[error("can't read the parent proxy's credentials from {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The I/O error.
        #[source]
        source: std::io::Error,
    },
    /// The file is not one line `user:password`.
    #[error("the parent proxy's credentials in {} are not one line user:password", file.display())]
    Shape {
        /// The file.
        file: PathBuf,
    },
}

impl Failure for CredentialsError {
    fn code(&self) -> Code {
        match self {
            Self::Read { .. } => Code::NotFound,
            Self::Shape { .. } => Code::BadConfiguration,
        }
    }
}

/// Returns the value of a `Proxy-Authorization` header, from a file with `user:password`.
pub(super) fn read_credentials(file: &Path) -> Result<SecretString, CredentialsError> {
    let text = std::fs::read_to_string(file)
        .map(SecretString::from)
        .map_err(|source| CredentialsError::Read { file: file.to_path_buf(), source })?;
    let line = text.expose_secret().trim_end_matches(['\r', '\n']);
    if !line.contains(':') || line.contains(char::is_control) {
        return Err(CredentialsError::Shape { file: file.to_path_buf() });
    }
    let encoded = SecretString::from(data_encoding::BASE64.encode(line.as_bytes()));
    Ok(SecretString::from(format!("Basic {}", encoded.expose_secret())))
}

/// Requests a tunnel from the proxy at the other end.
pub(super) async fn open_tunnel(
    stream: &mut TcpStream,
    host: &Host,
    port: u16,
    authorization: Option<&SecretString>,
) -> Result<(), RefusalCause> {
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
    if let Some(value) = authorization {
        request.push_str("Proxy-Authorization: ");
        request.push_str(value.expose_secret());
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    let request = SecretString::from(request);
    let failed = |error: std::io::Error| RefusalCause::Parent(error.to_string());
    stream.write_all(request.expose_secret().as_bytes()).await.map_err(failed)?;
    let head = read_head(stream).await.map_err(failed)?;
    match status(&head) {
        Some((200..=299, _)) => Ok(()),
        Some((status, reason)) => {
            Err(RefusalCause::Parent(format!("it answered {status} {reason}")))
        }
        None => Err(RefusalCause::Parent("its response is not HTTP".into())),
    }
}

/// Reads up to and including the empty line, and no byte after it: that belongs to the destination.
async fn read_head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while head.len() < MAX_HEAD {
        let seen = stream.peek(&mut chunk).await?;
        if seen == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let before = head.len();
        head.extend_from_slice(&chunk[..seen]);
        // The end may begin in the previous chunk.
        let from = before.saturating_sub(3);
        let end = head[from..].windows(4).position(|bytes| bytes == b"\r\n\r\n");
        head.truncate(end.map_or(head.len(), |end| from + end + 4));
        stream.read_exact(&mut chunk[..head.len() - before]).await?;
        if end.is_some() {
            return Ok(head);
        }
    }
    Err(std::io::Error::other("its response head is too long"))
}

/// Returns the status of a response and its reason, printable and short.
fn status(head: &[u8]) -> Option<(u16, String)> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let (version, rest) = line.split_once(' ')?;
    let (status, reason) = rest.split_once(' ').unwrap_or((rest, ""));
    if !version.starts_with("HTTP/1.") || status.len() != 3 {
        return None;
    }
    Some((status.parse().ok()?, without_deceptive(reason, 100)))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn through(answer: &'static [u8]) -> (Result<(), RefusalCause>, TcpStream, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut proxy, _) = listener.accept().await.unwrap();
        let served = async {
            let mut request = vec![0; 1000];
            let length = proxy.read(&mut request).await.unwrap();
            for part in answer.chunks(7) {
                proxy.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            proxy.shutdown().await.unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        };
        let host = Host::parse("a.example").unwrap();
        let secret = SecretString::from("Basic eDp5");
        let (result, request) =
            tokio::join!(open_tunnel(&mut client, &host, 443, Some(&secret)), served);
        (result, client, request)
    }

    #[tokio::test]
    async fn a_tunnel_is_requested_by_name_and_its_first_bytes_stay_unread() {
        let (result, mut client, request) =
            through(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nSSH-2.0-x\r\n").await;
        result.unwrap();
        assert_eq!(
            request,
            "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\
             Proxy-Authorization: Basic eDp5\r\n\r\n"
        );
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "SSH-2.0-x\r\n");
    }

    #[tokio::test]
    async fn a_refusal_reports_the_status_of_the_proxy() {
        for (answer, cause) in [
            (&b"HTTP/1.1 403 Forbid\x1bden\r\n\r\n"[..], "it answered 403 Forbidden"),
            (
                b"HTTP/1.0 407 Proxy Authentication Required\r\n\r\n",
                "it answered 407 Proxy Authentication Required",
            ),
            (b"SSH-2.0-OpenSSH\r\n\r\n", "its response is not HTTP"),
            (b"HTTP/1.1 200 OK\r\n", "unexpected end of file"),
        ] {
            assert_eq!(
                through(answer).await.0,
                Err(RefusalCause::Parent(cause.into())),
                "{answer:?}"
            );
        }
    }

    #[test]
    fn credentials_are_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("credentials");
        std::fs::write(&file, "user:pass word\n").unwrap();
        let value = read_credentials(&file).unwrap();
        assert_eq!(value.expose_secret(), "Basic dXNlcjpwYXNzIHdvcmQ=");
        for text in ["", "user", "user:pass\r\nX-Evil: 1\r\n"] {
            std::fs::write(&file, text).unwrap();
            let error = read_credentials(&file).unwrap_err();
            assert!(matches!(error, CredentialsError::Shape { .. }), "{text:?}");
        }
        let error = read_credentials(Path::new("/nowhere")).unwrap_err();
        assert_eq!(error.to_string(), "can't read the parent proxy's credentials from /nowhere");
    }
}
