//! The check of `[status]`.

use super::check_host::strong;
use super::draft::StatusDraft;
use super::environment::Environment;
use super::error::{ConfigError, Problem};
use super::secrets::Wanted;
use super::sources::Sources;
use super::types::{Access, StatusPage};

pub(super) fn status(
    draft: &StatusDraft,
    sources: &Sources,
    environment: &Environment,
) -> Result<StatusPage, ConfigError> {
    let listen = draft.listen.ok_or_else(|| ConfigError::Missing {
        origin: sources.origin("status"),
        key: "status.listen".into(),
        why: "without an address there is no listener",
    })?;
    let wanted = Wanted {
        key: "status.token",
        text: draft.token.as_ref(),
        file: draft.token_file.as_deref(),
        credential: "status-token",
    };
    let access = match (wanted.find(sources, environment)?, draft.allow_unauthenticated) {
        (Some(_), true) => {
            let problem = Problem::Both("a token");
            return Err(sources.error("status.allow_unauthenticated", true, problem));
        }
        (Some(token), false) => {
            strong("status.token", &token, sources)?;
            Access::Token(token)
        }
        (None, true) => Access::Anyone,
        (None, false) if listen.ip().is_loopback() => Access::Host,
        (None, false) => return Err(sources.error("status.listen", listen, Problem::Open)),
    };
    Ok(StatusPage { listen, access })
}
