//! Kernel modules.

use std::fs;
use std::fs::File;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::error::{During, StepError};

/// Loads the modules that a list names, one absolute path a line, in its order, and removes both
/// them and the list: the initramfs lies in memory.
pub(crate) fn load_listed(list: &Path) -> Result<(), StepError> {
    let text = fs::read_to_string(list).during(|| format!("read {}", list.display()))?;
    for path in text.lines().filter(|line| !line.is_empty()) {
        load(path)?;
        fs::remove_file(path).during(|| format!("remove {path}"))?;
    }
    fs::remove_file(list).during(|| format!("remove {}", list.display()))
}

/// Loads a module, unless the kernel has it.
pub(crate) fn load(path: &str) -> Result<(), StepError> {
    let module = File::open(path).during(|| format!("open the module {path}"))?;
    match finit_module(&module, c"", ModuleInitFlags::empty()) {
        // The kernel has it already, or built in.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error).during(|| format!("load the module {path}")),
    }
}
