//! The check of `[host]`.

use std::net::SocketAddr;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::draft::HostDraft;
use super::environment::Environment;
use super::error::{ConfigError, Problem};
use super::secrets::{Wanted, absolute};
use super::sources::Sources;
use super::types::{Api, Host, Secret};
use crate::host::size::Size;
use crate::image::Trust;
use crate::machine::accelerator::{Accelerator, Wish};

/// What is left to the host itself where nothing is said: for the daemon, shepherds and page cache.
const RESERVE: Size = Size::mebibytes(512);
/// The most processors that can be promised: far more than any host has.
const MAX_PROCESSORS: u32 = 65_536;
/// More keys than one host has reason to trust.
const MAX_IMAGE_KEYS: usize = 64;
/// As much as systemd gives a service to stop by default.
const DRAIN: Duration = Duration::from_secs(90);
const MAX_DRAIN: Duration = Duration::from_secs(7 * 86_400);
/// A hundred logs as long as they can be, and thousands of ordinary ones.
const LOG_BYTES: Size = Size(10 << 30);
/// Some three million jobs.
const AUDIT_BYTES: Size = Size(10 << 30);
/// A year, and time to notice that it is over.
const AUDIT_AGE: Duration = Duration::from_secs(400 * 86_400);
/// Who may submit jobs may use the host: the owner, unless a mode says more.
const SOCKET_MODE: u32 = 0o600;
/// The fewest characters of a token for a listener.
const LEAST_TOKEN: usize = 16;

pub(super) fn host(
    draft: &HostDraft,
    sources: &Sources,
    environment: &Environment,
) -> Result<Host, ConfigError> {
    let cpus = draft.cpus.unwrap_or(environment.processors);
    if !(1..=MAX_PROCESSORS).contains(&cpus) {
        let problem = Problem::Range(1, MAX_PROCESSORS.into());
        return Err(sources.error("host.cpus", cpus, problem));
    }
    let spare = Size(environment.memory.0.saturating_sub(reserve(environment.memory).0));
    for (key, path) in
        [("host.state_directory", &draft.state_directory), ("host.socket", &draft.socket)]
    {
        if let Some(path) = path {
            absolute(path).map_err(|problem| sources.error(key, path.display(), problem))?;
        }
    }
    let accelerator = draft.accel.unwrap_or_default();
    if accelerator == Wish::Exactly(Accelerator::Tcg) && !draft.allow_emulation {
        return Err(sources.error("host.accel", "tcg", Problem::Emulation));
    }
    let drain = draft.drain.unwrap_or(DRAIN);
    if drain > MAX_DRAIN {
        let shown = humantime::format_duration(drain);
        let problem = Problem::Duration(Duration::ZERO.into(), MAX_DRAIN.into());
        return Err(sources.error("host.drain", shown, problem));
    }
    Ok(Host {
        cpus,
        memory: draft.memory.unwrap_or(spare),
        state_directory: draft.state_directory.clone(),
        api: Api {
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

/// What the host keeps: a tenth of a large one, at least [`RESERVE`], and half of a tiny one.
fn reserve(memory: Size) -> Size {
    Size((memory.0 / 10).max(RESERVE.0).min(memory.0 / 2))
}

fn mode(draft: &HostDraft, sources: &Sources) -> Result<u32, ConfigError> {
    let Some(text) = &draft.socket_mode else { return Ok(SOCKET_MODE) };
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| mode & !0o660 == 0 && mode & 0o600 == 0o600)
        .ok_or_else(|| sources.error("host.socket_mode", text, Problem::Mode))
}

fn image_keys(draft: &HostDraft, sources: &Sources) -> Result<Trust, ConfigError> {
    if draft.image_keys.len() > MAX_IMAGE_KEYS {
        let problem = Problem::TooMany(MAX_IMAGE_KEYS);
        return Err(sources.error("host.image_keys", draft.image_keys.len(), problem));
    }
    let key = |(index, text): (usize, &String)| {
        let place = format!("host.image_keys[{index}]");
        text.parse().map_err(|_| sources.error(place, text, Problem::NoImageKey))
    };
    draft.image_keys.iter().enumerate().map(key).collect::<Result<_, _>>().map(Trust::new)
}

fn tcp(
    draft: &HostDraft,
    sources: &Sources,
    environment: &Environment,
) -> Result<Option<(SocketAddr, Secret)>, ConfigError> {
    let wanted = Wanted {
        key: "host.token",
        text: draft.token.as_ref(),
        file: draft.token_file.as_deref(),
        credential: "api-token",
    };
    let Some(listen) = draft.listen else {
        let key = if draft.token.is_some() { "host.token" } else { "host.token_file" };
        return match (&draft.token, &draft.token_file) {
            (None, None) => Ok(None),
            _ => Err(sources.error(key, "…", Problem::NoEffect("there is no host.listen"))),
        };
    };
    let token = wanted.find(sources, environment)?.ok_or_else(|| ConfigError::Missing {
        origin: sources.origin("host.listen"),
        key: "host.token_file".into(),
        why: "whoever reaches host.listen could read everything",
    })?;
    strong("host.token", &token, sources)?;
    Ok(Some((listen, token)))
}

/// Refuses a token that can be guessed, or can't be sent in a header.
pub(super) fn strong(key: &str, token: &Secret, sources: &Sources) -> Result<(), ConfigError> {
    let text = token.value.expose_secret();
    if text.len() < LEAST_TOKEN || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(sources.error(key, "…", Problem::TooShort));
    }
    Ok(())
}
