//! Settings that are read again while the daemon runs: what can change, and what can't.

use std::collections::BTreeSet;

use super::types::{Settings, Trigger};

/// What becomes of changed keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those that take effect: new microVMs and new calls are as they say.
    pub applied: Vec<String>,
    /// Those that don't until the daemon is started again.
    pub needs_restart: Vec<String>,
}

/// The keys that are built into what the daemon has open: sockets, directories, sessions.
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

/// The keys that differ, and what becomes of each. Pure.
pub fn diff(old: &Settings, new: &Settings) -> Changes {
    let (old_keys, new_keys) = (old.fingerprint(), new.fingerprint());
    let keys: BTreeSet<_> = old_keys.keys().chain(new_keys.keys()).collect();
    let changed = keys.into_iter().filter(|key| old_keys.get(*key) != new_keys.get(*key));
    let mut changes = Changes::default();
    for key in changed {
        let restart = NEEDS_RESTART.contains(&key.as_str())
            || key.starts_with("status.")
            || is_built_into_github(key, old, new)
            || is_unheard(key, old, new);
        let list = if restart { &mut changes.needs_restart } else { &mut changes.applied };
        list.push(key.clone());
    }
    changes
}

/// Whom runners register with, by which credentials, and what is listened to: clients and tasks
/// have it for their life.
fn is_built_into_github(key: &str, old: &Settings, new: &Settings) -> bool {
    let comes_or_goes = old.github.is_some() != new.github.is_some();
    key.starts_with("github.") && (comes_or_goes || key != "github.reconcile")
}

/// Whether a key is a trigger that nothing of the daemon listens to for its pool.
fn is_unheard(key: &str, old: &Settings, new: &Settings) -> bool {
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
    /// These settings as far as a daemon that runs with `old` can take them on, and what changed.
    #[must_use]
    pub fn take_on(mut self, old: &Self) -> (Self, Changes) {
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
