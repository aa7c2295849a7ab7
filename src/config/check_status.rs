//! Checks `[status]`.

use super::check_host::check_token_strength;
use super::draft::StatusDraft;
use super::environment::Environment;
use super::error::{ConfigError, ValueError};
use super::secrets::SecretSources;
use super::sources::Sources;
use super::types::{StatusAccess, StatusConfig};

pub(super) fn status(
    draft: &StatusDraft,
    sources: &Sources,
    environment: &Environment,
) -> Result<StatusConfig, ConfigError> {
    let listen = draft.listen.ok_or_else(|| ConfigError::Missing {
        origin: sources.origin("status"),
        key: "status.listen".into(),
        why: "the status page needs an address to listen on",
    })?;
    let secret_sources = SecretSources {
        key: "status.token",
        text: draft.token.as_ref(),
        file: draft.token_file.as_deref(),
        credential: "status-token",
    };
    let access = match (secret_sources.find(sources, environment)?, draft.allow_unauthenticated) {
        (Some(_), true) => {
            let reason = ValueError::Conflict("the token of [status]".into());
            return Err(sources.error("status.allow_unauthenticated", true, reason));
        }
        (Some(token), false) => {
            check_token_strength("status.token", &token, sources)?;
            StatusAccess::Token(token)
        }
        (None, true) => StatusAccess::Anyone,
        (None, false) if listen.ip().is_loopback() => StatusAccess::LocalHost,
        (None, false) => {
            return Err(sources.error("status.listen", listen, ValueError::Unauthenticated));
        }
    };
    Ok(StatusConfig { listen, access })
}
