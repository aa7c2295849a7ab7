//! The settings of `mayfly serve`: one TOML file, then `MAYFLY_*` variables, checked.
//!
//! The written settings are parsed into a draft, then checked and turned into [`Settings`]: secrets
//! are read, images and policies are parsed, sizes fit the host. The rest of Mayfly uses
//! [`Settings`] only. An error names the file or variable, the key and the value.
//!
//! This crate owns the format (`docs/reference/settings.md`). It opens only the settings file, the
//! secrets that it names and the files that report the size of the host. It does not depend on the
//! daemon.

mod check;
mod check_github;
mod check_host;
mod check_pool;
mod check_status;
mod check_telemetry;
mod container;
mod draft;
mod environment;
mod error;
pub mod github;
mod labels;
mod reload;
mod secrets;
mod show;
mod sources;
mod types;

pub use environment::Environment;
pub use error::{ConfigError, ValueError};
pub use reload::{SettingsChanges, diff};
pub use types::{
    ApiConfig, AppCredentials, GitHubConfig, GitHubCredentials, HostConfig, OtlpConfig, PoolConfig,
    PoolDeadlines, PoolName, RunnerHooks, Secret, Settings, StatusAccess, StatusConfig,
    TelemetryConfig, Trigger, WebhookConfig,
};

#[cfg(test)]
mod tests;
