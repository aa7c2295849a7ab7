//! Downloads files that are pinned by digest.
//!
//! Downloads are cached in the store, `.downloads/<sha256>`, so that the next build needs no
//! network. A cached file is always complete: it has no name until its digest is verified, so an
//! interrupted download leaves nothing behind.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Request, Response, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use nix::fcntl::AtFlags;
use secrecy::{ExposeSecret, SecretString};

use super::error::ImageError;
use super::hash;
use super::name::Digest;
use super::store::Store;
use mayfly_common::backoff::delay;
use mayfly_host::size::Size;
use mayfly_host::web::{self, Connector, Proxies};

/// The download cache in a store.
pub(super) const DIRECTORY: &str = ".downloads";

/// The largest download, in bytes.
const MAX_BYTES: u64 = 2 << 30;
/// The timeout for connecting, and for each read.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The most redirects.
const MAX_REDIRECTS: usize = 5;
/// The most attempts.
const MAX_ATTEMPTS: u32 = 3;
/// The delay before the second attempt.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// The interval between progress reports.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// The reason why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The server can't be reached, or the connection broke.
    #[error("the connection failed")]
    Connection(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server does not have the file or denies access.
    #[error("the server responded with status {0}")]
    Status(u16),
    /// No data arrived before the timeout.
    #[error("received no data for {} s", IDLE_TIMEOUT.as_secs())]
    Stalled,
    /// The URL or a redirect is invalid or insecure.
    #[error("the URL or a redirect is invalid or insecure")]
    UnusableAddress,
    /// The file exceeds the size limit.
    #[error("the download is larger than {}", Size(MAX_BYTES))]
    TooLarge,
}

impl DownloadError {
    /// Returns whether a retry may succeed.
    fn is_transient(&self) -> bool {
        match self {
            Self::Connection(_) | Self::Stalled => true,
            Self::Status(status) => *status == 429 || *status >= 500,
            Self::UnusableAddress | Self::TooLarge => false,
        }
    }
}

/// A file to download.
pub(super) struct DownloadRequest<'a> {
    /// From where.
    pub(super) url: &'a str,
    /// The expected digest.
    pub(super) sha256: &'a Digest,
    /// A bearer token, sent to the first server only.
    pub(super) token: Option<&'a SecretString>,
}

/// Downloads files into the cache of a store.
pub(super) struct Downloader<'a> {
    directory: PathBuf,
    /// Receives progress reports.
    report: &'a dyn Fn(&str),
    /// The time by which all downloads must be done.
    deadline: Instant,
}

/// The reason why one attempt failed.
enum AttemptError {
    Download(DownloadError),
    Image(ImageError),
}

impl From<DownloadError> for AttemptError {
    fn from(error: DownloadError) -> Self {
        Self::Download(error)
    }
}

impl<'a> Downloader<'a> {
    /// Creates a downloader for a store.
    pub(super) fn new(
        store: &Store,
        deadline: Instant,
        report: &'a dyn Fn(&str),
    ) -> Result<Self, ImageError> {
        let directory = store.path().join(DIRECTORY);
        fs::create_dir_all(&directory).map_err(ImageError::write(&directory))?;
        Ok(Self { directory, report, deadline })
    }

    /// Returns the path of the file and downloads it if it is not cached.
    pub(super) fn fetch(&self, request: &DownloadRequest<'_>) -> Result<PathBuf, ImageError> {
        let path = self.directory.join(request.sha256.as_str());
        if let Ok(mut file) = File::open(&path) {
            let (found, _) = hash::of_file(&mut file).map_err(ImageError::read(&path))?;
            if found == *request.sha256 {
                return Ok(path);
            }
            fs::remove_file(&path).map_err(ImageError::write(&path))?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ImageError::read("/proc/self"))?;
        let mut file = runtime.block_on(self.download(request))?;
        file.rewind().map_err(ImageError::read(&path))?;
        let (found, _) = hash::of_file(&mut file).map_err(ImageError::read(&path))?;
        if found != *request.sha256 {
            let (from, expected) = (request.url.to_owned(), request.sha256.clone());
            return Err(ImageError::WrongDigest { from, expected, found });
        }
        link_into_place(&file, &path).map_err(ImageError::write(&path))?;
        Ok(path)
    }

    /// Downloads into an unnamed file, with retries.
    async fn download(&self, request: &DownloadRequest<'_>) -> Result<File, ImageError> {
        let failed = |source| ImageError::Download { url: request.url.to_owned(), source };
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        let attempts = async {
            for failures in 0..MAX_ATTEMPTS {
                let is_last = failures + 1 == MAX_ATTEMPTS;
                match self.attempt(request).await {
                    Ok(file) => return Ok(file),
                    Err(AttemptError::Download(error)) if !is_last && error.is_transient() => {
                        (self.report)(&format!("{error}; trying again"));
                    }
                    Err(AttemptError::Download(error)) => return Err(failed(error)),
                    Err(AttemptError::Image(error)) => return Err(error),
                }
                // Two steps at a time: each delay is four times the one before.
                tokio::time::sleep(delay(2 * failures, FIRST_DELAY, IDLE_TIMEOUT)).await;
            }
            Err(failed(DownloadError::Stalled))
        };
        match tokio::time::timeout(remaining, attempts).await {
            Ok(result) => result,
            Err(_) => Err(failed(DownloadError::Stalled)),
        }
    }

    async fn attempt(&self, request: &DownloadRequest<'_>) -> Result<File, AttemptError> {
        let response = follow_redirects(request).await?;
        let length = content_length(&response);
        if length.is_some_and(|length| length > MAX_BYTES) {
            return Err(DownloadError::TooLarge.into());
        }
        let write = |source| AttemptError::Image(ImageError::write(&self.directory)(source));
        let mut file = tempfile::tempfile_in(&self.directory).map_err(write)?;
        let mut body = response.into_body();
        let (mut bytes, mut last_report) = (0, Instant::now());
        while let Some(frame) = in_time(body.frame()).await? {
            let frame = frame.map_err(|error| DownloadError::Connection(error.into()))?;
            let Some(piece) = frame.data_ref() else { continue };
            bytes += piece.len() as u64;
            if bytes > MAX_BYTES {
                return Err(DownloadError::TooLarge.into());
            }
            file.write_all(piece).map_err(write)?;
            if last_report.elapsed() >= PROGRESS_INTERVAL {
                last_report = Instant::now();
                (self.report)(&progress(bytes, length));
            }
        }
        Ok(file)
    }
}

fn progress(bytes: u64, length: Option<u64>) -> String {
    match length {
        Some(length) => format!("{} of {}", Size(bytes), Size(length)),
        None => Size(bytes).to_string(),
    }
}

async fn in_time<T>(step: impl Future<Output = T>) -> Result<T, DownloadError> {
    tokio::time::timeout(IDLE_TIMEOUT, step).await.map_err(|_| DownloadError::Stalled)
}

/// Sends the request, follows redirects, and returns the final response.
async fn follow_redirects(
    request: &DownloadRequest<'_>,
) -> Result<Response<Incoming>, DownloadError> {
    let connector = web::connector(&Proxies::from_environment(), IDLE_TIMEOUT)
        .map_err(|error| DownloadError::Connection(error.into()))?;
    let client: Client<HttpsConnector<Connector>, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build(connector);
    let mut address: Uri = request.url.parse().map_err(|_| DownloadError::UnusableAddress)?;
    // The token is for the first server only, not for redirect targets.
    let mut token = request.token;
    for _ in 0..=MAX_REDIRECTS {
        let http_request = build_request(&address, token.take())?;
        let response = in_time(client.request(http_request)).await?;
        let response = response.map_err(|error| DownloadError::Connection(error.into()))?;
        match response.status().as_u16() {
            200 => return Ok(response),
            301 | 302 | 303 | 307 | 308 => {
                let next = response.headers().get(LOCATION).and_then(|next| next.to_str().ok());
                address = next
                    .and_then(|next| redirected(&address, next))
                    .ok_or(DownloadError::UnusableAddress)?;
            }
            status => return Err(DownloadError::Status(status)),
        }
    }
    Err(DownloadError::UnusableAddress)
}

fn build_request(
    address: &Uri,
    token: Option<&SecretString>,
) -> Result<Request<Empty<Bytes>>, DownloadError> {
    let mut request = Request::get(address).header(USER_AGENT, "mayfly");
    if let Some(token) = token {
        let value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()));
        let mut value = value.map_err(|_| DownloadError::UnusableAddress)?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    request.body(Empty::new()).map_err(|_| DownloadError::UnusableAddress)
}

/// Returns the target of a redirect; `None` if it is invalid or leads from https to http.
fn redirected(from: &Uri, to: &str) -> Option<Uri> {
    let next: Uri = to.parse().ok()?;
    let next = match (next.scheme(), next.authority()) {
        (Some(_), Some(_)) => next,
        (None, None) if to.starts_with('/') => {
            let mut parts = from.clone().into_parts();
            parts.path_and_query = next.into_parts().path_and_query;
            Uri::from_parts(parts).ok()?
        }
        _ => return None,
    };
    match (from.scheme_str()?, next.scheme_str()?) {
        (_, "https") | ("http", "http") => Some(next),
        _ => None,
    }
}

fn content_length(response: &Response<Incoming>) -> Option<u64> {
    response.headers().get(hyper::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Gives a finished file its name. Another build may have done so already.
fn link_into_place(file: &File, path: &Path) -> std::io::Result<()> {
    file.sync_all()?;
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    let linked = nix::unistd::linkat(
        nix::fcntl::AT_FDCWD,
        from.as_str(),
        nix::fcntl::AT_FDCWD,
        path,
        AtFlags::AT_SYMLINK_FOLLOW,
    );
    match linked {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests;
