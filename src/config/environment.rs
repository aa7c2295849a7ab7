//! What the settings read from outside of their file: variables, systemd credentials and the size
//! of the host. It is a value, so that tests don't need to change their process.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use mayfly_host::size::Size;

/// The environment that settings are loaded in.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Variables that are UTF-8. Settings are never anything else.
    pub variables: BTreeMap<String, String>,
    /// Processors that this process may use.
    pub processors: u32,
    /// Memory that this process could use.
    pub memory: Size,
}

impl Environment {
    /// Returns the environment of this process.
    pub fn of_process() -> io::Result<Self> {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let processors = std::thread::available_parallelism()?.get();
        let processors = u32::try_from(processors).unwrap_or(u32::MAX);
        Ok(Self { variables, processors, memory: memory()? })
    }

    /// Returns a variable if it is set and not empty.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Returns the directory of systemd credentials (`LoadCredential=`, systemd.exec(5)).
    pub(super) fn credentials(&self) -> Option<PathBuf> {
        self.variable("CREDENTIALS_DIRECTORY").map(PathBuf::from)
    }
}

/// Returns the memory of the host, or of the container if that is less (cgroup v2, `memory.max`).
fn memory() -> io::Result<Size> {
    let total = Size(nix::sys::sysinfo::sysinfo()?.ram_total());
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse().ok()).map(Size);
    Ok(limit.map_or(total, |limit| limit.min(total)))
}
