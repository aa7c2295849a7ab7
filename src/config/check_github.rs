//! Checks `[github]`.

use std::time::Duration;

use secrecy::ExposeSecret;

use super::draft::{AppDraft, GitHubDraft, WebhookDraft};
use super::environment::Environment;
use super::error::{ConfigError, ValueError};
use super::github::{Repository, Scope, Target};
use super::secrets::SecretSources;
use super::sources::Sources;
use super::types::{AppCredentials, GitHubConfig, GitHubCredentials, Secret, WebhookConfig};

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
    let target: Target = draft.url.parse().map_err(|reason| {
        sources.error("github.url", shown(&draft.url), ValueError::GitHub(reason))
    })?;
    let api = match &draft.api {
        Some(written) => written.parse().map_err(|reason| {
            sources.error("github.api", shown(written), ValueError::GitHub(reason))
        })?,
        None => target.api(),
    };
    let credentials = credentials(draft, &target.scope, sources, environment)?;
    let webhook =
        draft.webhook.as_ref().map(|draft| webhook(draft, sources, environment)).transpose()?;
    let repositories = repositories(&draft.repositories, &target.scope, sources)?;
    let interval = |key: &str, written: Option<Duration>| match written {
        Some(written) if !(INTERVALS.0..=INTERVALS.1).contains(&written) => {
            let reason = ValueError::Duration(INTERVALS.0.into(), INTERVALS.1.into());
            Err(sources.error(key, humantime::format_duration(written), reason))
        }
        written => Ok(written),
    };
    let poll = interval("github.poll", draft.poll)?;
    let reconcile = interval("github.reconcile", draft.reconcile)?.unwrap_or(RECONCILE);
    Ok(GitHubConfig { target, api, credentials, webhook, repositories, poll, reconcile })
}

/// Returns a URL for messages, without a password that may be in it.
fn shown(url: &str) -> &str {
    if url.contains('@') { "…@…" } else { url }
}

fn credentials(
    draft: &GitHubDraft,
    scope: &Scope,
    sources: &Sources,
    environment: &Environment,
) -> Result<GitHubCredentials, ConfigError> {
    if let Some(app) = &draft.app {
        if draft.token.is_some() || draft.token_file.is_some() {
            let key = if draft.token.is_some() { "github.token" } else { "github.token_file" };
            return Err(sources.error(key, "…", ValueError::Conflict("github.app".into())));
        }
        if matches!(scope, Scope::Enterprise(_)) {
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
                ValueError::Conflict("github.app.id".into()),
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
    scope: &Scope,
    sources: &Sources,
) -> Result<Vec<Repository>, ConfigError> {
    if written.len() > MAX_REPOSITORIES {
        let reason = ValueError::TooMany(MAX_REPOSITORIES);
        return Err(sources.error("github.repositories", written.len(), reason));
    }
    let mut repositories = Vec::new();
    for (index, text) in written.iter().enumerate() {
        let error = |reason| sources.error(format!("github.repositories[{index}]"), text, reason);
        let repository: Repository =
            text.parse().map_err(|reason| error(ValueError::GitHub(reason)))?;
        let below = match scope {
            Scope::Repository(own) => own.to_string().eq_ignore_ascii_case(text),
            Scope::Organization(own) => own.eq_ignore_ascii_case(&repository.owner),
            Scope::Enterprise(_) => true,
        };
        if !below {
            return Err(error(ValueError::OutsideScope(scope.to_string())));
        }
        if !repositories.contains(&repository) {
            repositories.push(repository);
        }
    }
    if let (Scope::Repository(own), true) = (scope, repositories.is_empty()) {
        repositories.push(own.clone());
    }
    Ok(repositories)
}
