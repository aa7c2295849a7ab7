//! Reloading the settings of a running daemon: which keys can change without a restart.

use std::collections::BTreeSet;

use super::types::{Settings, Trigger};

/// The keys that changed in a reload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingsChanges {
    /// Keys that are in effect for new microVMs and new calls.
    pub applied: Vec<String>,
    /// Keys that take effect after a restart of the daemon.
    pub needs_restart: Vec<String>,
}

/// Keys of resources that the daemon keeps open: sockets, directories, sessions.
const NEEDS_RESTART: [&str; 9] = [
    "host.accel",
    "host.allow_emulation",
    "host.listen",
    "host.socket",
    "host.socket_mode",
    "host.state_directory",
    "host.token",
    "telemetry.otlp_endpoint",
    "telemetry.otlp_headers",
];

/// Compares two settings and returns the keys that differ. Has no side effects.
pub fn diff(old: &Settings, new: &Settings) -> SettingsChanges {
    let (old_keys, new_keys) = (old.fingerprint(), new.fingerprint());
    let keys: BTreeSet<_> = old_keys.keys().chain(new_keys.keys()).collect();
    let changed = keys.into_iter().filter(|key| old_keys.get(*key) != new_keys.get(*key));
    let mut changes = SettingsChanges::default();
    for key in changed {
        let restart = NEEDS_RESTART.contains(&key.as_str())
            || key.starts_with("status.")
            || is_built_into_github(key, old, new)
            || is_trigger_without_listener(key, old, new);
        let list = if restart { &mut changes.needs_restart } else { &mut changes.applied };
        list.push(key.clone());
    }
    changes
}

/// Returns whether a key of `[github]` needs a restart. Clients and tasks keep the scope, the
/// credentials and the listeners for their lifetime.
fn is_built_into_github(key: &str, old: &Settings, new: &Settings) -> bool {
    let comes_or_goes = old.github.is_some() != new.github.is_some();
    key.starts_with("github.") && (comes_or_goes || key != "github.reconcile")
}

/// Returns whether a key is the trigger of a pool that the running daemon has no listener for.
fn is_trigger_without_listener(key: &str, old: &Settings, new: &Settings) -> bool {
    let name = key.strip_prefix("pool.").and_then(|key| key.strip_suffix(".trigger"));
    let Some(pool) = name.and_then(|name| new.pool(name)) else { return false };
    let is_new = old.pool(pool.name.as_str()).is_none();
    match pool.trigger {
        Trigger::None | Trigger::Always | Trigger::ScaleSet | Trigger::Auto => !is_new,
        Trigger::Webhook | Trigger::Poll => {
            !is_new || old.pools.iter().all(|other| other.trigger != pool.trigger)
        }
    }
}

impl Settings {
    /// Returns these settings as far as a daemon that runs with `old` can apply them, and the
    /// changes.
    #[must_use]
    pub fn apply_reload(mut self, old: &Self) -> (Self, SettingsChanges) {
        let changes = diff(old, &self);
        match (&mut self.github, &old.github) {
            (Some(new), Some(old)) => {
                let reconcile = new.reconcile;
                new.clone_from(old);
                new.reconcile = reconcile;
            }
            (new, old) => new.clone_from(old),
        }
        for pool in &mut self.pools {
            if let Some(old) = old.pool(pool.name.as_str()) {
                pool.trigger = old.trigger;
            }
        }
        self.status.clone_from(&old.status);
        self.host.accelerator = old.host.accelerator;
        self.host.allow_emulation = old.host.allow_emulation;
        self.host.api = old.host.api.clone();
        self.host.state_directory.clone_from(&old.host.state_directory);
        self.telemetry.clone_from(&old.telemetry);
        (self, changes)
    }
}
