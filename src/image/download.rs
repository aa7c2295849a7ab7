//! Downloads, each known by its digest before it is begun.
//!
//! What was downloaded is kept in the store, `.downloads/<sha256>`, so that the next build needs no
//! network. A file there is whole: it gets its name when its digest is right, and until then has
//! none, so that nothing is left of a download that ends half-way, however it ends.

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
use crate::host::size::Size;
use crate::host::web::{self, Connector, Proxies};

/// The directory of downloads in a store.
pub(super) const DIRECTORY: &str = ".downloads";

/// What is refused beyond, in bytes.
const LIMIT: u64 = 2 << 30;
/// The longest that a connection may take to be made, and that nothing may arrive on it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often one is sent elsewhere.
const REDIRECTS: usize = 5;
/// How often it is tried.
const TRIES: u32 = 3;
/// How often somebody is told how far it is.
const TOLD: Duration = Duration::from_millis(500);

/// Why there is no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The server can't be reached, or the connection broke.
    #[error("the connection failed")]
    Connection(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server has nothing, or not for us.
    #[error("the server answered with status {0}")]
    Status(u16),
    /// Nothing came for too long.
    #[error("nothing came for {} s", PATIENCE.as_secs())]
    Stalled,
    /// The server sends us to where we don't go.
    #[error("the server sent us to an address that can't be used")]
    Elsewhere,
    /// It does not end.
    #[error("it is larger than {}", Size(LIMIT))]
    TooLarge,
}

impl DownloadError {
    /// Whether another try may go better.
    fn may_pass(&self) -> bool {
        match self {
            Self::Connection(_) | Self::Stalled => true,
            Self::Status(status) => *status == 429 || *status >= 500,
            Self::Elsewhere | Self::TooLarge => false,
        }
    }
}

/// What is to be downloaded.
pub(super) struct Wanted<'a> {
    /// From where.
    pub(super) url: &'a str,
    /// What it must be.
    pub(super) sha256: &'a Digest,
    /// A bearer token, for the first server only.
    pub(super) token: Option<&'a SecretString>,
}

/// What a download is made with.
pub(super) struct Downloader<'a> {
    directory: PathBuf,
    /// Told how far it is.
    tell: &'a dyn Fn(&str),
    /// When it must be done.
    deadline: Instant,
}

/// Why one try failed.
enum Failed {
    Download(DownloadError),
    Image(ImageError),
}

impl From<DownloadError> for Failed {
    fn from(error: DownloadError) -> Self {
        Self::Download(error)
    }
}

impl<'a> Downloader<'a> {
    /// Downloads for a store.
    pub(super) fn new(
        store: &Store,
        deadline: Instant,
        tell: &'a dyn Fn(&str),
    ) -> Result<Self, ImageError> {
        let directory = store.path().join(DIRECTORY);
        fs::create_dir_all(&directory).map_err(ImageError::write(&directory))?;
        Ok(Self { directory, tell, deadline })
    }

    /// The path of what is wanted, downloaded if it is not there yet.
    pub(super) fn fetch(&self, wanted: &Wanted<'_>) -> Result<PathBuf, ImageError> {
        let path = self.directory.join(wanted.sha256.as_str());
        if let Ok(mut file) = File::open(&path) {
            let (found, _) = hash::of_file(&mut file).map_err(ImageError::read(&path))?;
            if found == *wanted.sha256 {
                return Ok(path);
            }
            fs::remove_file(&path).map_err(ImageError::write(&path))?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(ImageError::read("/proc/self"))?;
        let mut file = runtime.block_on(self.download(wanted))?;
        file.rewind().map_err(ImageError::read(&path))?;
        let (found, _) = hash::of_file(&mut file).map_err(ImageError::read(&path))?;
        if found != *wanted.sha256 {
            let (from, expected) = (wanted.url.to_owned(), wanted.sha256.clone());
            return Err(ImageError::WrongDigest { from, expected, found });
        }
        give_name(&file, &path).map_err(ImageError::write(&path))?;
        Ok(path)
    }

    /// A file without a name that has all of it.
    async fn download(&self, wanted: &Wanted<'_>) -> Result<File, ImageError> {
        let failed = |source| ImageError::Download { url: wanted.url.to_owned(), source };
        let left = self.deadline.saturating_duration_since(Instant::now());
        let tries = async {
            let mut pause = Duration::from_secs(1);
            for last in (0..TRIES).rev() {
                match self.once(wanted).await {
                    Ok(file) => return Ok(file),
                    Err(Failed::Download(error)) if last > 0 && error.may_pass() => {
                        (self.tell)(&format!("{error}; trying again"));
                    }
                    Err(Failed::Download(error)) => return Err(failed(error)),
                    Err(Failed::Image(error)) => return Err(error),
                }
                tokio::time::sleep(pause).await;
                pause *= 4;
            }
            Err(failed(DownloadError::Stalled))
        };
        match tokio::time::timeout(left, tries).await {
            Ok(end) => end,
            Err(_) => Err(failed(DownloadError::Stalled)),
        }
    }

    async fn once(&self, wanted: &Wanted<'_>) -> Result<File, Failed> {
        let response = answer(wanted).await?;
        let length = content_length(&response);
        if length.is_some_and(|length| length > LIMIT) {
            return Err(DownloadError::TooLarge.into());
        }
        let write = |source| Failed::Image(ImageError::write(&self.directory)(source));
        let mut file = tempfile::tempfile_in(&self.directory).map_err(write)?;
        let mut body = response.into_body();
        let (mut bytes, mut told) = (0, Instant::now());
        while let Some(frame) = in_time(body.frame()).await? {
            let frame = frame.map_err(|error| DownloadError::Connection(error.into()))?;
            let Some(piece) = frame.data_ref() else { continue };
            bytes += piece.len() as u64;
            if bytes > LIMIT {
                return Err(DownloadError::TooLarge.into());
            }
            file.write_all(piece).map_err(write)?;
            if told.elapsed() >= TOLD {
                told = Instant::now();
                (self.tell)(&progress(bytes, length));
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
    tokio::time::timeout(PATIENCE, step).await.map_err(|_| DownloadError::Stalled)
}

/// The answer that has it, after those that say where it is.
async fn answer(wanted: &Wanted<'_>) -> Result<Response<Incoming>, DownloadError> {
    let connector = web::connector(&Proxies::from_environment(), PATIENCE)
        .map_err(|error| DownloadError::Connection(error.into()))?;
    let client: Client<HttpsConnector<Connector>, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build(connector);
    let mut address: Uri = wanted.url.parse().map_err(|_| DownloadError::Elsewhere)?;
    // The token is the first server's; those that it sends us to are others.
    let mut token = wanted.token;
    for _ in 0..=REDIRECTS {
        let request = request(&address, token.take())?;
        let response = in_time(client.request(request)).await?;
        let response = response.map_err(|error| DownloadError::Connection(error.into()))?;
        match response.status().as_u16() {
            200 => return Ok(response),
            301 | 302 | 303 | 307 | 308 => {
                let next = response.headers().get(LOCATION).and_then(|next| next.to_str().ok());
                address = next
                    .and_then(|next| redirected(&address, next))
                    .ok_or(DownloadError::Elsewhere)?;
            }
            status => return Err(DownloadError::Status(status)),
        }
    }
    Err(DownloadError::Elsewhere)
}

fn request(
    address: &Uri,
    token: Option<&SecretString>,
) -> Result<Request<Empty<Bytes>>, DownloadError> {
    let mut request = Request::get(address).header(USER_AGENT, "mayfly");
    if let Some(token) = token {
        let value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()));
        let mut value = value.map_err(|_| DownloadError::Elsewhere)?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    request.body(Empty::new()).map_err(|_| DownloadError::Elsewhere)
}

/// Where a redirection leads; none where it leads from https to anything less.
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

/// Gives a finished file its name. Another build may have been faster.
fn give_name(file: &File, path: &Path) -> std::io::Result<()> {
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
