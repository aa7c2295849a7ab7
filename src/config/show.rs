//! The settings in effect, for display and comparison: every key with its value, including
//! defaults, with secrets hidden.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::types::{
    GitHubConfig, GitHubCredentials, HostConfig, PoolConfig, Secret, Settings, StatusAccess,
    StatusConfig, TelemetryConfig,
};
use mayfly_machine::accelerator::AcceleratorPreference;

/// Returns the replacement for a secret.
type Hide = fn(&Secret) -> String;

impl Settings {
    /// Returns the settings in effect as JSON. A secret is replaced by the place it came from.
    pub fn show(&self) -> Value {
        self.tree(|secret| format!("(hidden, from {})", secret.source))
    }

    /// Returns the settings in effect as text, one line per key.
    pub fn lines(&self) -> Vec<String> {
        let flat = flatten(&self.show());
        flat.into_iter().map(|(key, value)| format!("{key} = {value}")).collect()
    }

    /// Returns every key with its value and a digest of each secret, so that changed secrets can be
    /// detected. Must not be shown to users.
    pub(super) fn fingerprint(&self) -> BTreeMap<String, Value> {
        let mut keys = flatten(&self.tree(|secret| {
            HEXLOWER.encode(&Sha256::digest(secret.value.expose_secret().as_bytes()))
        }));
        // `mayfly egress show` shows policies. Only the policies of pools matter here.
        let policies = self.pools.iter().map(|pool| &pool.egress);
        keys.extend(policies.map(|policy| {
            // `json!` panics on values that are not JSON. Any text that differs between policies
            // works.
            let shown = serde_json::to_value(policy);
            let shown = shown.unwrap_or_else(|_| Value::String(format!("{policy:?}")));
            (format!("egress.policy.{}", policy.name), shown)
        }));
        keys
    }

    fn tree(&self, hide: Hide) -> Value {
        let pools: Map<String, Value> =
            self.pools.iter().map(|pool| (pool.name.to_string(), show_pool(pool))).collect();
        let mut tree = Map::new();
        if let Some(github) = &self.github {
            tree.insert("github".into(), show_github(github, hide));
        }
        tree.insert("host".into(), show_host(&self.host, hide));
        tree.insert("telemetry".into(), show_telemetry(&self.telemetry, hide));
        tree.insert("pool".into(), pools.into());
        if let Some(status) = &self.status {
            tree.insert("status".into(), show_status(status, hide));
        }
        Value::Object(tree)
    }
}

fn duration(duration: std::time::Duration) -> Value {
    humantime::format_duration(duration).to_string().into()
}

fn show_github(github: &GitHubConfig, hide: Hide) -> Value {
    let mut shown = json!({
        "url": github.url(),
        "api": github.api.as_str(),
        "repositories": github.repositories.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "poll": github.poll.map(duration),
        "reconcile": duration(github.reconcile),
    });
    match &github.credentials {
        GitHubCredentials::Token(token) => shown["token"] = hide(token).into(),
        GitHubCredentials::App(app) => {
            shown["app"] = json!({
                "issuer": app.issuer,
                "private_key": hide(&app.private_key),
                "installation": app.installation,
            });
        }
    }
    if let Some(webhook) = &github.webhook {
        shown["webhook"] = json!({
            "listen": webhook.listen,
            "secret": hide(&webhook.secret),
            "hook": webhook.hook,
        });
    }
    shown
}

fn show_pool(pool: &PoolConfig) -> Value {
    json!({
        "labels": pool.labels,
        "runner_group": pool.runner_group,
        "image": pool.image.to_string(),
        "cpus": pool.cpus,
        "memory": pool.memory.to_string(),
        "disk": pool.disk.map(|disk| disk.to_string()),
        "min_idle": pool.min_idle,
        "max": pool.max,
        "trigger": pool.trigger,
        "egress": pool.egress.name,
        "deadlines": {
            "boot": pool.deadlines.boot.map(duration),
            "idle": duration(pool.deadlines.idle),
            "claim": duration(pool.deadlines.claim),
            "job": duration(pool.deadlines.job),
            "farewell": duration(pool.deadlines.farewell),
        },
        "environment": pool.environment,
        "hooks": {
            "job_started": pool.hooks.job_started,
            "job_completed": pool.hooks.job_completed,
        },
        "runner_directory": pool.runner_directory,
        "job_log": pool.job_log,
    })
}

fn show_host(host: &HostConfig, hide: Hide) -> Value {
    let mut shown = json!({
        "cpus": host.cpus,
        "memory": host.memory.to_string(),
        "state_directory": host.state_directory,
        "socket": host.api.socket,
        "socket_mode": format!("{:04o}", host.api.mode),
        "accel": match host.accelerator {
            AcceleratorPreference::Auto => "auto".to_owned(),
            AcceleratorPreference::Exactly(accelerator) => accelerator.to_string(),
        },
        "allow_emulation": host.allow_emulation,
        "image_keys": host.image_keys.keys().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "drain": duration(host.drain),
        "log_bytes": host.log_bytes.to_string(),
        "audit_bytes": host.audit_bytes.to_string(),
        "audit_age": duration(host.audit_age),
    });
    if let Some((listen, token)) = &host.api.tcp {
        shown["listen"] = json!(listen);
        shown["token"] = hide(token).into();
    }
    shown
}

fn show_status(status: &StatusConfig, hide: Hide) -> Value {
    let mut shown = json!({ "listen": status.listen });
    match &status.access {
        StatusAccess::LocalHost => {}
        StatusAccess::Token(token) => shown["token"] = hide(token).into(),
        StatusAccess::Anyone => shown["allow_unauthenticated"] = true.into(),
    }
    shown
}

fn show_telemetry(telemetry: &TelemetryConfig, hide: Hide) -> Value {
    let otlp = telemetry.otlp.as_ref();
    json!({
        "otlp_endpoint": otlp.map(|otlp| &otlp.endpoint),
        "otlp_headers": otlp.and_then(|otlp| otlp.headers.as_ref()).map(hide),
    })
}

/// Returns the values that are not tables under their dotted keys. Omits null values.
fn flatten(tree: &Value) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    let mut open = vec![(String::new(), tree)];
    while let Some((key, value)) = open.pop() {
        match value {
            Value::Object(fields) => open.extend(fields.iter().map(|(name, value)| {
                let dot = if key.is_empty() { "" } else { "." };
                (format!("{key}{dot}{name}"), value)
            })),
            Value::Null => {}
            other => {
                flat.insert(key, other.clone());
            }
        }
    }
    flat
}
