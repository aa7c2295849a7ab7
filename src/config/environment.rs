//! What the settings take from outside of their file: variables, systemd's credentials, the size
//! of the host. A value, so that tests need no process of their own.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use crate::host::size::Size;

/// What settings are loaded in.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Variables that are UTF-8; settings are nothing else.
    pub variables: BTreeMap<String, String>,
    /// Processors that this process may use.
    pub processors: u32,
    /// All memory that this process could have.
    pub memory: Size,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> io::Result<Self> {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let processors = std::thread::available_parallelism()?.get();
        let processors = u32::try_from(processors).unwrap_or(u32::MAX);
        Ok(Self { variables, processors, memory: memory()? })
    }

    /// A variable that is set and not empty.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Where the credentials are that systemd hands over (`LoadCredential=`, systemd.exec(5)).
    pub(super) fn credentials(&self) -> Option<PathBuf> {
        self.variable("CREDENTIALS_DIRECTORY").map(PathBuf::from)
    }
}

/// The memory of the host, or of the container if that is less (cgroup v2, `memory.max`).
fn memory() -> io::Result<Size> {
    let total = Size(nix::sys::sysinfo::sysinfo()?.ram_total());
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse().ok()).map(Size);
    Ok(limit.map_or(total, |limit| limit.min(total)))
}
