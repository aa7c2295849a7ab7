//! The organization, repository or enterprise at GitHub that runners are registered with, and its
//! API's URL.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;

/// The scope that runners are registered in, parsed from its URL in a browser.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// `https://github.com`, `https://TENANT.ghe.com` or a private server; no trailing slash.
    pub origin: String,
    /// The scope at this origin.
    pub scope: Scope,
}

/// The owner of registered runners. Displays as the path in a URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// An organization: the repositories that its runner groups admit.
    Organization(String),
    /// One repository.
    Repository(Repository),
    /// An enterprise: the organizations that its runner groups admit.
    Enterprise(String),
}

/// A repository's full name. Displays as `OWNER/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// The user or organization.
    pub owner: String,
    /// The repository's name.
    pub name: String,
}

/// The root URL of a REST API; no trailing slash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ApiBase(String);

/// An invalid URL or repository name. The text follows the value.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum TargetError {
    /// The text is not a URL without credentials, query and fragment.
    #[error("not a URL such as https://github.com/ORGANIZATION")]
    InvalidUrl,
    /// Credentials would be sent unencrypted.
    #[error("not https, and its host is not a loopback address")]
    Insecure,
    /// The path does not name a scope.
    #[error("not the URL of an organization, a repository or an enterprise on a GitHub server")]
    UnknownScope,
    /// The text is not `OWNER/NAME`, or a name has characters that GitHub does not allow.
    #[error("not of the form OWNER/NAME")]
    InvalidRepository,
}

impl Target {
    /// Returns the root of this target's API: `api.github.com`, `api.TENANT.ghe.com`, or `/api/v3`
    /// on any other server.
    pub fn api(&self) -> ApiBase {
        let (scheme, host) = self.origin.split_once("://").unwrap_or(("https", &self.origin));
        ApiBase(if host == "github.com" || host.ends_with(".ghe.com") {
            format!("{scheme}://api.{host}")
        } else {
            format!("{}/api/v3", self.origin)
        })
    }

    /// Returns the path that this scope's calls start with, e.g. `/orgs/octo`.
    pub fn path(&self) -> String {
        match &self.scope {
            Scope::Organization(name) => format!("/orgs/{name}"),
            Scope::Repository(repository) => format!("/repos/{repository}"),
            Scope::Enterprise(name) => format!("/enterprises/{name}"),
        }
    }

    /// Whether the target is on GitHub's own service, which always has rate limits.
    pub fn is_hosted(&self) -> bool {
        self.origin == "https://github.com" || self.origin.ends_with(".ghe.com")
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (origin, path) = origin(text)?;
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let scope = match segments[..] {
            ["enterprises", name] if is_name(name) => Scope::Enterprise(name.to_owned()),
            ["enterprises"] => return Err(TargetError::UnknownScope),
            [name] if is_name(name) => Scope::Organization(name.to_owned()),
            [owner, name] => {
                let name = name.strip_suffix(".git").unwrap_or(name);
                let repository =
                    format!("{owner}/{name}").parse().map_err(|_| TargetError::UnknownScope)?;
                Scope::Repository(repository)
            }
            _ => return Err(TargetError::UnknownScope),
        };
        Ok(Self { origin, scope })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.origin, self.scope)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Organization(name) => formatter.write_str(name),
            Self::Repository(repository) => repository.fmt(formatter),
            Self::Enterprise(name) => write!(formatter, "enterprises/{name}"),
        }
    }
}

impl FromStr for Repository {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text.split_once('/') {
            Some((owner, name)) if is_name(owner) && is_name(name) => {
                Ok(Self { owner: owner.to_owned(), name: name.to_owned() })
            }
            _ => Err(TargetError::InvalidRepository),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.owner, self.name)
    }
}

impl FromStr for ApiBase {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (origin, path) = origin(text)?;
        Ok(Self(format!("{origin}{}", path.trim_end_matches('/'))))
    }
}

impl ApiBase {
    /// Returns the URL, without a trailing slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Splits a URL into its origin (scheme and lowercase host) and its path.
fn origin(text: &str) -> Result<(String, String), TargetError> {
    let uri: Uri = text.parse().map_err(|_| TargetError::InvalidUrl)?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(TargetError::InvalidUrl);
    };
    // `Uri` drops a fragment.
    if authority.as_str().contains('@') || uri.query().is_some() || text.contains('#') {
        return Err(TargetError::InvalidUrl);
    }
    match scheme {
        "https" => {}
        "http" if is_loopback(authority.host()) => {}
        _ => return Err(TargetError::Insecure),
    }
    let server = match authority.as_str().to_ascii_lowercase() {
        server if server == "www.github.com" => "github.com".to_owned(),
        server => server,
    };
    Ok((format!("{scheme}://{server}"), uri.path().to_owned()))
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a text is a valid owner or repository name; such names need no escaping in a path.
fn is_name(text: &str) -> bool {
    !matches!(text, "" | "." | "..")
        && text.len() <= 100
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_its_scope_and_its_api() {
        let table = [
            ("https://github.com/octo", "/orgs/octo", "https://api.github.com"),
            ("https://GitHub.com/octo/", "/orgs/octo", "https://api.github.com"),
            ("https://www.github.com/octo", "/orgs/octo", "https://api.github.com"),
            ("https://git.example.com:8443/o", "/orgs/o", "https://git.example.com:8443/api/v3"),
            ("https://github.com/octo/a.b/", "/repos/octo/a.b", "https://api.github.com"),
            ("https://octo.ghe.com/enterprises/o", "/enterprises/o", "https://api.octo.ghe.com"),
            ("https://github.com/octo/hello.git", "/repos/octo/hello", "https://api.github.com"),
            ("https://github.com/enterprises/big", "/enterprises/big", "https://api.github.com"),
            ("https://octo.ghe.com/octo", "/orgs/octo", "https://api.octo.ghe.com"),
            ("https://git.example.com/octo", "/orgs/octo", "https://git.example.com/api/v3"),
            ("http://127.0.0.1:8080/o/r", "/repos/o/r", "http://127.0.0.1:8080/api/v3"),
            ("http://[::1]:80/o", "/orgs/o", "http://[::1]:80/api/v3"),
        ];
        for (text, path, api) in table {
            let target: Target = text.parse().unwrap();
            assert_eq!((target.path().as_str(), target.api().as_str()), (path, api), "{text}");
            assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
        }
    }

    #[test]
    fn an_unsafe_or_ambiguous_url_is_rejected() {
        for text in [
            "http://github.com/octo",
            "ftp://github.com/octo",
            "github.com/octo",
            "https://token@github.com/octo",
            "https://github.com/",
            "https://github.com/enterprises",
            "https://github.com/a/b/c",
            "https://github.com/a/..",
            "https://github.com/a%2fb",
            "https://github.com/octo?x=y",
            "https://github.com/octo#x",
            "https://github.com/octo hello",
            "https://user:word@github.com/octo",
            "octo/hello",
            "",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_custom_api_base_needs_https_or_loopback() {
        let base: ApiBase = "http://127.0.0.1:9/".parse().unwrap();
        assert_eq!(base.as_str(), "http://127.0.0.1:9");
        assert!("http://192.0.2.1/".parse::<ApiBase>().is_err());
    }
}
