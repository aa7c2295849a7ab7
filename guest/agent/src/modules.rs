//! Loads kernel modules.

use std::fs;
use std::fs::File;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::error::{Context, StepError};

/// Loads the modules in a list, one absolute path per line, in order. Removes the modules and the
/// list, because the initramfs is in memory.
pub(crate) fn load_listed(list: &Path) -> Result<(), StepError> {
    let text = fs::read_to_string(list).context(|| format!("read {}", list.display()))?;
    for path in text.lines().filter(|line| !line.is_empty()) {
        load(path)?;
        fs::remove_file(path).context(|| format!("remove {path}"))?;
    }
    fs::remove_file(list).context(|| format!("remove {}", list.display()))
}

/// Loads a module, unless the kernel already has it.
pub(crate) fn load(path: &str) -> Result<(), StepError> {
    let module = File::open(path).context(|| format!("open the module {path}"))?;
    match finit_module(&module, c"", ModuleInitFlags::empty()) {
        // The kernel has it already, or built in.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error).context(|| format!("load the module {path}")),
    }
}
