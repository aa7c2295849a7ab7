//! The settings as written in the file, before they are checked.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Deserializer};

use super::types::Trigger;
use mayfly_egress::policy::{PolicyDraft, SetDrafts};
use mayfly_host::size::Size;
use mayfly_image::Reference;
use mayfly_machine::accelerator::AcceleratorPreference;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Draft {
    pub(super) github: Option<GitHubDraft>,
    pub(super) pool: Option<Vec<PoolDraft>>,
    pub(super) host: HostDraft,
    pub(super) status: Option<StatusDraft>,
    pub(super) egress: EgressDraft,
    pub(super) telemetry: TelemetryDraft,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EgressDraft {
    pub(super) policy: BTreeMap<String, PolicyDraft>,
    pub(super) set: SetDrafts,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GitHubDraft {
    pub(super) url: String,
    pub(super) api: Option<String>,
    pub(super) token: Option<SecretText>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) app: Option<AppDraft>,
    pub(super) webhook: Option<WebhookDraft>,
    pub(super) repositories: Vec<String>,
    #[serde(deserialize_with = "optional_duration")]
    pub(super) poll: Option<Duration>,
    #[serde(deserialize_with = "optional_duration")]
    pub(super) reconcile: Option<Duration>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AppDraft {
    pub(super) id: Option<u64>,
    pub(super) client_id: Option<String>,
    pub(super) private_key_file: Option<PathBuf>,
    pub(super) installation: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WebhookDraft {
    pub(super) listen: SocketAddr,
    pub(super) secret: Option<SecretText>,
    pub(super) secret_file: Option<PathBuf>,
    pub(super) hook: Option<u64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PoolDraft {
    pub(super) name: String,
    #[serde(default)]
    pub(super) labels: Vec<String>,
    pub(super) runner_group: Option<String>,
    #[serde(default, deserialize_with = "optional_text")]
    pub(super) image: Option<Reference>,
    pub(super) cpus: Option<u32>,
    pub(super) memory: Option<Size>,
    pub(super) disk: Option<Size>,
    pub(super) min_idle: Option<u32>,
    pub(super) max: Option<u32>,
    pub(super) trigger: Option<Trigger>,
    pub(super) egress: Option<String>,
    #[serde(default)]
    pub(super) deadlines: DeadlinesDraft,
    #[serde(default)]
    pub(super) environment: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) hooks: HooksDraft,
    pub(super) runner_directory: Option<String>,
    pub(super) job_log: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DeadlinesDraft {
    #[serde(deserialize_with = "optional_duration")]
    pub(super) boot: Option<Duration>,
    #[serde(deserialize_with = "optional_duration")]
    pub(super) idle: Option<Duration>,
    #[serde(deserialize_with = "optional_duration")]
    pub(super) claim: Option<Duration>,
    #[serde(deserialize_with = "optional_duration")]
    pub(super) job: Option<Duration>,
    #[serde(deserialize_with = "optional_duration")]
    pub(super) farewell: Option<Duration>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HooksDraft {
    pub(super) job_started: Option<String>,
    pub(super) job_completed: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HostDraft {
    pub(super) cpus: Option<u32>,
    pub(super) memory: Option<Size>,
    pub(super) state_directory: Option<PathBuf>,
    pub(super) socket: Option<PathBuf>,
    pub(super) socket_mode: Option<String>,
    pub(super) listen: Option<SocketAddr>,
    pub(super) token: Option<SecretText>,
    pub(super) token_file: Option<PathBuf>,
    #[serde(deserialize_with = "optional_text")]
    pub(super) accel: Option<AcceleratorPreference>,
    pub(super) allow_emulation: bool,
    pub(super) image_keys: Vec<String>,
    #[serde(deserialize_with = "optional_duration")]
    pub(super) drain: Option<Duration>,
    pub(super) log_bytes: Option<Size>,
    pub(super) audit_bytes: Option<Size>,
    #[serde(deserialize_with = "optional_duration")]
    pub(super) audit_age: Option<Duration>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StatusDraft {
    pub(super) listen: Option<SocketAddr>,
    pub(super) token: Option<SecretText>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) allow_unauthenticated: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TelemetryDraft {
    pub(super) otlp_endpoint: Option<String>,
}

/// A secret that is written in the settings. An error about it does not repeat the value.
#[derive(Debug, Clone)]
pub(super) struct SecretText(pub(super) SecretString);

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match <figment::value::Value as Deserialize>::deserialize(deserializer)? {
            figment::value::Value::String(_, text) => Ok(Self(text.into())),
            _ => Err(serde::de::Error::custom("a secret must be a quoted string")),
        }
    }
}

/// Deserializes a value from a string. An error includes the string.
fn optional_text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    let text = String::deserialize(deserializer)?;
    let value =
        text.parse().map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}")))?;
    Ok(Some(value))
}

fn optional_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let value = humantime::parse_duration(&text).map_err(|error| {
        serde::de::Error::custom(format!(
            "{text:?} is not a duration such as 90s or 1h 30m: {error}"
        ))
    })?;
    Ok(Some(value))
}
