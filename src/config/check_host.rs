//! Checks `[host]`.

use std::net::SocketAddr;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::draft::HostDraft;
use super::environment::Environment;
use super::error::{ConfigError, ValueError};
use super::secrets::{SecretSources, absolute};
use super::sources::Sources;
use super::types::{ApiConfig, HostConfig, Secret};
use mayfly_host::size::Size;
use mayfly_image::Trust;
use mayfly_machine::accelerator::{Accelerator, AcceleratorPreference};

/// Memory that is left to the host by default: for the daemon, shepherds and the page cache.
const RESERVE: Size = Size::mebibytes(512);
/// The maximum number of processors, far more than any host has.
const MAX_PROCESSORS: u32 = 65_536;
/// The maximum number of image keys.
const MAX_IMAGE_KEYS: usize = 64;
/// systemd's default stop timeout of a service.
const DRAIN: Duration = Duration::from_secs(90);
const MAX_DRAIN: Duration = Duration::from_secs(7 * 86_400);
/// Enough for a hundred logs of maximum length, or thousands of ordinary ones.
const LOG_BYTES: Size = Size(10 << 30);
/// Enough for about three million jobs.
const AUDIT_BYTES: Size = Size(10 << 30);
/// One year plus time to notice that it is over.
const AUDIT_AGE: Duration = Duration::from_secs(400 * 86_400);
/// Anyone who can submit jobs can use the host, so by default only the owner can.
const SOCKET_MODE: u32 = 0o600;
/// The minimum length of a token for a listener.
const MIN_TOKEN_LENGTH: usize = 16;

pub(super) fn host(
    draft: &HostDraft,
    sources: &Sources,
    environment: &Environment,
) -> Result<HostConfig, ConfigError> {
    let cpus = draft.cpus.unwrap_or(environment.processors);
    if !(1..=MAX_PROCESSORS).contains(&cpus) {
        let reason = ValueError::Range(1, MAX_PROCESSORS.into());
        return Err(sources.error("host.cpus", cpus, reason));
    }
    let spare = Size(environment.memory.0.saturating_sub(reserve(environment.memory).0));
    for (key, path) in
        [("host.state_directory", &draft.state_directory), ("host.socket", &draft.socket)]
    {
        if let Some(path) = path {
            absolute(path).map_err(|reason| sources.error(key, path.display(), reason))?;
        }
    }
    let accelerator = draft.accel.unwrap_or_default();
    if accelerator == AcceleratorPreference::Exactly(Accelerator::Tcg) && !draft.allow_emulation {
        return Err(sources.error("host.accel", "tcg", ValueError::Emulation));
    }
    let drain = draft.drain.unwrap_or(DRAIN);
    if drain > MAX_DRAIN {
        let shown = humantime::format_duration(drain);
        let reason = ValueError::Duration(Duration::ZERO.into(), MAX_DRAIN.into());
        return Err(sources.error("host.drain", shown, reason));
    }
    Ok(HostConfig {
        cpus,
        memory: draft.memory.unwrap_or(spare),
        state_directory: draft.state_directory.clone(),
        api: ApiConfig {
            socket: draft.socket.clone(),
            mode: mode(draft, sources)?,
            tcp: tcp(draft, sources, environment)?,
        },
        accelerator,
        allow_emulation: draft.allow_emulation,
        image_keys: image_keys(draft, sources)?,
        drain,
        log_bytes: draft.log_bytes.unwrap_or(LOG_BYTES),
        audit_bytes: draft.audit_bytes.unwrap_or(AUDIT_BYTES),
        audit_age: draft.audit_age.unwrap_or(AUDIT_AGE),
    })
}

/// Returns the memory that the host keeps: a tenth of it, at least [`RESERVE`], at most half of it.
fn reserve(memory: Size) -> Size {
    Size((memory.0 / 10).max(RESERVE.0).min(memory.0 / 2))
}

fn mode(draft: &HostDraft, sources: &Sources) -> Result<u32, ConfigError> {
    let Some(text) = &draft.socket_mode else { return Ok(SOCKET_MODE) };
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| mode & !0o660 == 0 && mode & 0o600 == 0o600)
        .ok_or_else(|| sources.error("host.socket_mode", text, ValueError::Mode))
}

fn image_keys(draft: &HostDraft, sources: &Sources) -> Result<Trust, ConfigError> {
    if draft.image_keys.len() > MAX_IMAGE_KEYS {
        let reason = ValueError::TooMany(MAX_IMAGE_KEYS);
        return Err(sources.error("host.image_keys", draft.image_keys.len(), reason));
    }
    let key = |(index, text): (usize, &String)| {
        let key = format!("host.image_keys[{index}]");
        text.parse().map_err(|_| sources.error(key, text, ValueError::NotImageKey))
    };
    draft.image_keys.iter().enumerate().map(key).collect::<Result<_, _>>().map(Trust::new)
}

fn tcp(
    draft: &HostDraft,
    sources: &Sources,
    environment: &Environment,
) -> Result<Option<(SocketAddr, Secret)>, ConfigError> {
    let secret_sources = SecretSources {
        key: "host.token",
        text: draft.token.as_ref(),
        file: draft.token_file.as_deref(),
        credential: "api-token",
    };
    let Some(listen) = draft.listen else {
        let key = if draft.token.is_some() { "host.token" } else { "host.token_file" };
        return match (&draft.token, &draft.token_file) {
            (None, None) => Ok(None),
            _ => Err(sources.error(key, "…", ValueError::NoEffect("host.listen is not set"))),
        };
    };
    let token = secret_sources.find(sources, environment)?.ok_or_else(|| ConfigError::Missing {
        origin: sources.origin("host.listen"),
        key: "host.token_file".into(),
        why: "without a token, anyone who can connect to host.listen could read everything",
    })?;
    check_token_strength("host.token", &token, sources)?;
    Ok(Some((listen, token)))
}

/// Rejects a token that is easy to guess or can't be sent in a header.
pub(super) fn check_token_strength(
    key: &str,
    token: &Secret,
    sources: &Sources,
) -> Result<(), ConfigError> {
    let text = token.value.expose_secret();
    if text.len() < MIN_TOKEN_LENGTH || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(sources.error(key, "…", ValueError::TooShort));
    }
    Ok(())
}
