//! Checks `[github]`.

use std::time::Duration;

use hyper::Uri;
use secrecy::ExposeSecret;

use super::draft::{AppDraft, GitHubDraft, WebhookDraft};
use super::environment::Environment;
use super::error::{ConfigError, ValueError};
use super::secrets::SecretSources;
use super::sources::Sources;
use super::types::{
    AppCredentials, GitHubConfig, GitHubCredentials, GitHubScope, RepositoryName, Secret,
    WebhookConfig,
};

/// The default interval for listing the runners: 12 calls of the 5,000 that GitHub allows per hour.
const RECONCILE: Duration = Duration::from_secs(5 * 60);
/// Each repository is polled in turn. More of them would exceed GitHub's rate limit.
const MAX_REPOSITORIES: usize = 500;
/// The range of both intervals.
const INTERVALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

pub(super) fn check(
    draft: &GitHubDraft,
    sources: &Sources,
    environment: &Environment,
) -> Result<GitHubConfig, ConfigError> {
    if draft.url.is_empty() {
        return Err(ConfigError::Missing {
            origin: sources.origin("github"),
            key: "github.url".into(),
            why: "it names the scope to register runners with",
        });
    }
    let (server, scope) = scope(&draft.url)
        .ok_or_else(|| sources.error("github.url", shown(&draft.url), ValueError::Url))?;
    let api = match &draft.api {
        Some(written) => address(written)
            .ok_or_else(|| sources.error("github.api", shown(written), ValueError::Address))?,
        None => api_of(&server),
    };
    let credentials = credentials(draft, &scope, sources, environment)?;
    let webhook =
        draft.webhook.as_ref().map(|draft| webhook(draft, sources, environment)).transpose()?;
    let repositories = repositories(&draft.repositories, &scope, sources)?;
    let interval = |key: &str, written: Option<Duration>| match written {
        Some(written) if !(INTERVALS.0..=INTERVALS.1).contains(&written) => {
            let reason = ValueError::Duration(INTERVALS.0.into(), INTERVALS.1.into());
            Err(sources.error(key, humantime::format_duration(written), reason))
        }
        written => Ok(written),
    };
    let poll = interval("github.poll", draft.poll)?;
    let reconcile = interval("github.reconcile", draft.reconcile)?.unwrap_or(RECONCILE);
    Ok(GitHubConfig { server, scope, api, credentials, webhook, repositories, poll, reconcile })
}

/// Returns a URL for messages, without a password that may be in it.
fn shown(url: &str) -> &str {
    if url.contains('@') { "…@…" } else { url }
}

/// Returns a URL without a slash at the end if it is valid: `https`, or `http` to this host.
fn address(text: &str) -> Option<String> {
    let uri: Uri = text.parse().ok()?;
    let host = uri.host()?;
    let local = host == "localhost"
        || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    let allowed = match uri.scheme_str()? {
        "https" => true,
        "http" => local,
        _ => false,
    };
    let plain = uri.query().is_none() && !text.contains(['@', '#']);
    (allowed && plain).then(|| text.trim_end_matches('/').to_owned())
}

/// Splits the URL of a scope into the URL of the server and the scope.
fn scope(url: &str) -> Option<(String, GitHubScope)> {
    let url = address(url)?;
    let uri: Uri = url.parse().ok()?;
    let path = uri.path().trim_matches('/');
    let server = url.strip_suffix(path)?.trim_end_matches('/').to_owned();
    let parts: Vec<_> = path.split('/').collect();
    if !parts.iter().all(|part| is_slug(part)) {
        return None;
    }
    let scope = match parts[..] {
        [owner] => GitHubScope::Organization(owner.to_owned()),
        ["enterprises", slug] => GitHubScope::Enterprise(slug.to_owned()),
        [owner, name] => {
            let name = name.strip_suffix(".git").unwrap_or(name);
            GitHubScope::Repository(RepositoryName {
                owner: owner.to_owned(),
                name: name.to_owned(),
            })
        }
        _ => return None,
    };
    Some((server, scope))
}

/// Returns whether a text can be a name in the path of a GitHub URL.
fn is_slug(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !text.is_empty() && text.len() <= 100 && !matches!(text, "." | "..") && text.bytes().all(plain)
}

/// Returns the URL of a server's REST API: a separate host at GitHub, a path on an Enterprise
/// Server.
fn api_of(server: &str) -> String {
    match server.strip_prefix("https://") {
        Some("github.com" | "www.github.com") => "https://api.github.com".into(),
        Some(host) if host.ends_with(".ghe.com") => format!("https://api.{host}"),
        _ => format!("{server}/api/v3"),
    }
}

fn credentials(
    draft: &GitHubDraft,
    scope: &GitHubScope,
    sources: &Sources,
    environment: &Environment,
) -> Result<GitHubCredentials, ConfigError> {
    if let Some(app) = &draft.app {
        if draft.token.is_some() || draft.token_file.is_some() {
            let key = if draft.token.is_some() { "github.token" } else { "github.token_file" };
            return Err(sources.error(key, "…", ValueError::Conflict("github.app")));
        }
        if matches!(scope, GitHubScope::Enterprise(_)) {
            return Err(sources.error("github.app", "…", ValueError::AppForEnterprise));
        }
        return Ok(GitHubCredentials::App(check_app(app, sources, environment)?));
    }
    let secret_sources = SecretSources {
        key: "github.token",
        text: draft.token.as_ref(),
        file: draft.token_file.as_deref(),
        credential: "github-token",
    };
    let variable = || {
        let value = environment.variable("GITHUB_TOKEN")?.trim().to_owned();
        Some(Secret { value: value.into(), source: "GITHUB_TOKEN".into() })
    };
    let token = secret_sources.find(sources, environment)?.or_else(variable);
    let token = token.ok_or_else(|| ConfigError::Missing {
        origin: sources.origin("github"),
        key: "github.token_file".into(),
        why: "Mayfly needs credentials for GitHub",
    })?;
    // The token is sent in a header.
    if !token.value.expose_secret().bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ConfigError::Value {
            origin: token.source,
            key: "github.token".into(),
            value: "…".into(),
            reason: ValueError::NotPrintable,
        });
    }
    Ok(GitHubCredentials::Token(token))
}

fn check_app(
    draft: &AppDraft,
    sources: &Sources,
    environment: &Environment,
) -> Result<AppCredentials, ConfigError> {
    let issuer = match (draft.id, &draft.client_id) {
        (Some(_), Some(id)) => {
            return Err(sources.error(
                "github.app.client_id",
                id,
                ValueError::Conflict("github.app.id"),
            ));
        }
        (Some(id), None) => id.to_string(),
        (None, Some(id)) => id.clone(),
        (None, None) => {
            return Err(ConfigError::Missing {
                origin: sources.origin("github.app"),
                key: "github.app.client_id".into(),
                why: "a GitHub App is identified by its client_id or id",
            });
        }
    };
    let secret_sources = SecretSources {
        key: "github.app.private_key",
        text: None,
        file: draft.private_key_file.as_deref(),
        credential: "github-app-key",
    };
    let private_key =
        secret_sources.find(sources, environment)?.ok_or_else(|| ConfigError::Missing {
            origin: sources.origin("github.app"),
            key: "github.app.private_key_file".into(),
            why: "a GitHub App signs its requests with this key",
        })?;
    let pem = private_key.value.expose_secret();
    if !(pem.starts_with("-----BEGIN ") && pem.contains("PRIVATE KEY-----")) {
        let key = "github.app.private_key_file";
        return Err(sources.error(key, private_key.source, ValueError::NotPrivateKey));
    }
    Ok(AppCredentials { issuer, private_key, installation: draft.installation })
}

fn webhook(
    draft: &WebhookDraft,
    sources: &Sources,
    environment: &Environment,
) -> Result<WebhookConfig, ConfigError> {
    let secret_sources = SecretSources {
        key: "github.webhook.secret",
        text: draft.secret.as_ref(),
        file: draft.secret_file.as_deref(),
        credential: "github-webhook-secret",
    };
    let secret =
        secret_sources.find(sources, environment)?.ok_or_else(|| ConfigError::Missing {
            origin: sources.origin("github.webhook"),
            key: "github.webhook.secret_file".into(),
            why: "without a secret, anyone could send deliveries",
        })?;
    if secret.value.expose_secret().is_empty() {
        return Err(sources.error("github.webhook.secret", "", ValueError::Empty));
    }
    Ok(WebhookConfig { listen: draft.listen, secret, hook: draft.hook })
}

fn repositories(
    written: &[String],
    scope: &GitHubScope,
    sources: &Sources,
) -> Result<Vec<RepositoryName>, ConfigError> {
    if written.len() > MAX_REPOSITORIES {
        let reason = ValueError::TooMany(MAX_REPOSITORIES);
        return Err(sources.error("github.repositories", written.len(), reason));
    }
    let mut repositories = Vec::new();
    for (index, text) in written.iter().enumerate() {
        let error = |reason| sources.error(format!("github.repositories[{index}]"), text, reason);
        let repository = match text.split_once('/') {
            Some((owner, name)) if is_slug(owner) && is_slug(name) => {
                RepositoryName { owner: owner.to_owned(), name: name.to_owned() }
            }
            _ => return Err(error(ValueError::Repository)),
        };
        let below = match scope {
            GitHubScope::Repository(own) => own.to_string().eq_ignore_ascii_case(text),
            GitHubScope::Organization(own) => own.eq_ignore_ascii_case(&repository.owner),
            GitHubScope::Enterprise(_) => true,
        };
        if !below {
            return Err(error(ValueError::OutsideScope(scope.to_string())));
        }
        if !repositories.contains(&repository) {
            repositories.push(repository);
        }
    }
    if let (GitHubScope::Repository(own), true) = (scope, repositories.is_empty()) {
        repositories.push(own.clone());
    }
    Ok(repositories)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_gives_server_scope_and_api() {
        for (url, server, expected, api) in [
            ("https://github.com/acme", "https://github.com", "acme", "https://api.github.com"),
            (
                "https://github.com/acme/a.b/",
                "https://github.com",
                "acme/a.b",
                "https://api.github.com",
            ),
            (
                "https://github.com/acme/x.git",
                "https://github.com",
                "acme/x",
                "https://api.github.com",
            ),
            (
                "https://acme.ghe.com/enterprises/acme",
                "https://acme.ghe.com",
                "enterprises/acme",
                "https://api.acme.ghe.com",
            ),
            (
                "https://git.example.com:8443/acme",
                "https://git.example.com:8443",
                "acme",
                "https://git.example.com:8443/api/v3",
            ),
            ("http://127.0.0.1:80/o/r", "http://127.0.0.1:80", "o/r", "http://127.0.0.1:80/api/v3"),
        ] {
            let (found, scope) = scope(url).unwrap();
            assert_eq!((found.as_str(), scope.to_string().as_str()), (server, expected), "{url}");
            assert_eq!(api_of(&found), api);
        }
    }

    #[test]
    fn an_invalid_scope_is_rejected() {
        for url in [
            "",
            "acme/x",
            "https://github.com",
            "https://github.com/a/b/c",
            "https://github.com/a/..",
            "https://github.com/a b",
            "https://user:word@github.com/a",
            "https://github.com/a?x=1",
            "https://github.com/a#b",
            "http://github.com/a",
            "ftp://github.com/a",
        ] {
            assert!(scope(url).is_none(), "{url}");
        }
    }
}
