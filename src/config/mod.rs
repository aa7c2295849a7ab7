//! The settings of `mayfly serve`: one TOML file, then `MAYFLY_*` variables, checked.
//!
//! What is written is a draft; what the rest of Mayfly gets is [`Settings`], of which every value
//! has been checked: secrets are read, images and policies can be parsed, sizes fit the host. An
//! error names the file (or the variable), the key and the value. Owns the format
//! (`docs/reference/settings.md`); it opens no file but the settings, the secrets that they name
//! and what tells the size of the host, and knows nothing of the daemon.

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
mod labels;
mod reload;
mod secrets;
mod show;
mod sources;
mod types;

pub use environment::Environment;
pub use error::{ConfigError, Problem};
pub use reload::{Changes, diff};
pub use types::{
    Access, Api, App, Credentials, Deadlines, GitHub, Hooks, Host, Otlp, Pool, PoolName,
    Repository, Scope, Secret, Settings, StatusPage, Telemetry, Trigger, Webhook,
};

#[cfg(test)]
mod tests;
